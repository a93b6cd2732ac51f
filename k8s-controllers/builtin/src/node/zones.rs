//! Zones of nodes, their states, and the rate at which nodes of a zone get `NoExecute` taints.
//!
//! A network that is split makes healthy nodes look dead. So a zone in which many nodes fail together is
//! tainted slowly or not at all, and if no node of the cluster is ready, the fault is taken to be on this
//! side.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_core::{api::api::core::v1::Node, meta::ObjectExt};

/// Label of nodes that do not count.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
const REGION: [&str; 2] = ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"];
const ZONE: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];

/// Limits of the rates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// Nodes tainted per second in a zone whose state is normal, or in which no node is ready.
    pub(super) normal: f64,
    /// Nodes tainted per second in a large zone that is partially disrupted. A small one: none.
    pub(super) secondary: f64,
    /// Number of nodes above which a zone is large.
    pub(super) large: usize,
    /// Part of the nodes that are not ready from which on a zone is partially disrupted.
    pub(super) unhealthy: f64,
}

/// State of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Normal,
    PartialDisruption,
    FullDisruption,
}

/// Number of nodes of a zone.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    ready: usize,
    other: usize,
}

#[derive(Debug)]
struct Zone {
    state: State,
    size: usize,
    /// Time of the last taint.
    last: Option<Timestamp>,
}

/// The zones of a cluster.
#[derive(Debug)]
pub(super) struct Zones {
    rates: Rates,
    zones: BTreeMap<String, Zone>,
    /// No zone has a ready node.
    all_down: bool,
}

/// Answer to a request for a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Taint it.
    Now,
    /// Ask again after this time.
    After(Duration),
    /// None of the zone is tainted in its present state.
    Stopped,
}

/// Returns the zone of a node, with its region; empty without labels.
pub(super) fn zone_of(node: &Node) -> String {
    let of = |keys: [&str; 2]| keys.iter().find_map(|key| node.label(key)).unwrap_or_default().to_owned();
    let (region, zone) = (of(REGION), of(ZONE));
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

impl Rates {
    fn state(&self, count: Count) -> State {
        let all = count.ready + count.other;
        #[expect(clippy::cast_precision_loss, reason = "numbers of nodes are small")]
        let part = count.other as f64 / all as f64;
        match count {
            Count { ready: 0, other: 1.. } => State::FullDisruption,
            // Two nodes that fail in a small zone are no disruption.
            Count { other: 3.., .. } if part >= self.unhealthy => State::PartialDisruption,
            Count { .. } => State::Normal,
        }
    }

    /// Returns the number of nodes tainted per second.
    fn rate(&self, zone: &Zone) -> f64 {
        match zone.state {
            State::Normal | State::FullDisruption => self.normal,
            State::PartialDisruption if zone.size > self.large => self.secondary,
            State::PartialDisruption => 0.0,
        }
    }
}

impl Zones {
    pub(super) fn new(rates: Rates) -> Self {
        Zones { rates, zones: BTreeMap::new(), all_down: false }
    }

    /// Counts the nodes anew. Returns true if some node is ready again after none was.
    pub(super) fn survey<'a>(&mut self, nodes: impl Iterator<Item = (&'a Node, bool)>) -> bool {
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        for (node, ready) in nodes.filter(|(node, _)| node.label(EXCLUDED).is_none()) {
            let count = counts.entry(zone_of(node)).or_default();
            *(if ready { &mut count.ready } else { &mut count.other }) += 1;
        }
        let was_down = self.all_down;
        self.all_down = !counts.is_empty() && counts.values().all(|count| count.ready == 0);
        self.zones.retain(|name, _| counts.contains_key(name));
        for (name, count) in counts {
            let (state, size) = (self.rates.state(count), count.ready + count.other);
            let zone = self.zones.entry(name).or_insert(Zone { state, size, last: None });
            (zone.state, zone.size) = (state, size);
        }
        was_down && !self.all_down
    }

    /// Returns true if no node of the cluster is ready.
    pub(super) fn all_down(&self) -> bool {
        self.all_down
    }

    /// Asks to taint a node of a zone. At most one is tainted at once.
    pub(super) fn take(&mut self, zone: &str, now: Timestamp) -> Turn {
        if self.all_down {
            return Turn::Stopped;
        }
        // A zone of nodes that do not count is normal.
        let normal = Zone { state: State::Normal, size: 0, last: None };
        let zone = self.zones.entry(zone.to_owned()).or_insert(normal);
        let rate = self.rates.rate(zone);
        if rate <= 0.0 {
            return Turn::Stopped;
        }
        let every = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
        let passed = zone.last.map(|last| Duration::try_from(now.duration_since(last)).unwrap_or_default());
        match passed.map(|passed| every.saturating_sub(passed)) {
            None | Some(Duration::ZERO) => {
                zone.last = Some(now);
                Turn::Now
            }
            Some(wait) => Turn::After(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RATES: Rates = Rates { normal: 0.1, secondary: 0.01, large: 50, unhealthy: 0.55 };

    fn node(zone: &str, label: &str) -> Node {
        let labels = json!({ZONE[0]: zone, label: ""});
        serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels}})).unwrap()
    }

    fn zones(counts: &[(&str, usize, usize)]) -> Zones {
        let mut zones = Zones::new(RATES);
        survey(&mut zones, counts);
        zones
    }

    /// Surveys zones of a number of ready and of other nodes.
    fn survey(zones: &mut Zones, counts: &[(&str, usize, usize)]) -> bool {
        let each = |(zone, ready, other): &(&str, usize, usize)| {
            let ready = vec![(node(zone, "x"), true); *ready];
            ready.into_iter().chain(vec![(node(zone, "x"), false); *other])
        };
        let all: Vec<(Node, bool)> = counts.iter().flat_map(each).collect();
        zones.survey(all.iter().map(|(node, ready)| (node, *ready)))
    }

    fn states(zones: &Zones) -> Vec<State> {
        zones.zones.values().map(|zone| zone.state).collect()
    }

    #[test]
    fn a_zone_has_upstreams_state() {
        use State::{FullDisruption, Normal, PartialDisruption};
        for (ready, other, want) in [
            (3, 0, Normal),
            (1, 2, Normal),
            (2, 3, PartialDisruption),
            (3, 3, Normal),
            (45, 55, PartialDisruption),
            (46, 54, Normal),
            (0, 1, FullDisruption),
        ] {
            assert_eq!(
                states(&zones(&[("a", ready, other), ("b", 1, 0)])),
                [want, Normal],
                "{ready} {other}"
            );
        }
    }

    #[test]
    fn taints_come_one_by_one_at_the_zones_rate() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (zone, other) = (zone_of(&node("a", "x")), zone_of(&node("b", "x")));
        let mut normal = zones(&[("a", 5, 2), ("b", 1, 0)]);
        assert_eq!(normal.take(&zone, at(100)), Turn::Now);
        assert_eq!(normal.take(&zone, at(104)), Turn::After(Duration::from_secs(6)));
        assert_eq!(normal.take(&other, at(104)), Turn::Now, "another zone");
        assert_eq!(normal.take(&zone, at(110)), Turn::Now);

        let mut small = zones(&[("a", 10, 40)]);
        assert_eq!(small.take(&zone, at(100)), Turn::Stopped);
        let mut large = zones(&[("a", 10, 41)]);
        assert_eq!(large.take(&zone, at(100)), Turn::Now);
        assert_eq!(large.take(&zone, at(150)), Turn::After(Duration::from_secs(50)));
        // The rate changes with the state.
        survey(&mut large, &[("a", 50, 1)]);
        assert_eq!(large.take(&zone, at(150)), Turn::Now);
        let mut full = zones(&[("a", 0, 3), ("b", 1, 0)]);
        assert_eq!(full.take(&zone, at(100)), Turn::Now, "others are ready, so it is the zone");
    }

    #[test]
    fn nothing_is_tainted_when_no_node_is_ready() {
        let (now, zone) = (Timestamp::UNIX_EPOCH, zone_of(&node("a", "x")));
        let mut zones = zones(&[("a", 0, 3), ("b", 0, 1)]);
        assert!(zones.all_down());
        assert_eq!(zones.take(&zone, now), Turn::Stopped);
        assert!(survey(&mut zones, &[("a", 0, 3), ("b", 1, 0)]), "it is over");
        assert!(!survey(&mut zones, &[("a", 0, 3), ("b", 1, 0)]));
        assert_eq!(zones.take(&zone, now), Turn::Now);
    }

    #[test]
    fn excluded_nodes_do_not_count() {
        let (excluded, ready) = (node("a", EXCLUDED), node("a", "x"));
        let mut zones = Zones::new(RATES);
        zones.survey([(&excluded, false), (&ready, true)].into_iter());
        assert_eq!(states(&zones), [State::Normal]);
        zones.survey([(&excluded, false)].into_iter());
        assert!(!zones.all_down());
    }
}
