//! Topology hints by zone CPU capacity (`service.kubernetes.io/topology-mode: Auto`, KEP-2433). Pure.
//!
//! Traffic is assumed to originate in proportion to CPU capacity, so each zone should have that share of the
//! endpoints. A zone with clearly fewer is assigned endpoints of the zone with the largest surplus. If no
//! good assignment exists there are no hints at all: cluster-wide traffic overloads no endpoint.

use std::{collections::BTreeMap, sync::Arc};

use k8s_core::{
    api::api::core::v1::{Node, Service},
    meta::{ObjectExt, Quantity},
};

use super::slices::zone_of;
use crate::conditions;

const MODE: &str = "service.kubernetes.io/topology-mode";
/// Name of the annotation before 1.27.
const OLD_MODE: &str = "service.kubernetes.io/topology-aware-hints";
/// Permitted overload of an endpoint: 20 %.
const OVERLOAD: f64 = 0.2;

/// Returns true if a Service enables topology hints.
pub(super) fn is_auto(service: &Service) -> bool {
    let mode = service.annotation(MODE).or_else(|| service.annotation(OLD_MODE));
    matches!(mode, Some("Auto" | "auto"))
}

/// Reason for which there are no hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes")]
    Nodes,
    #[error("Nodes only ready in one zone")]
    OneZone,
    #[error("One or more endpoints do not have a zone specified")]
    EndpointZone,
    #[error("Insufficient number of endpoints")]
    Endpoints,
}

/// Returns zone and milli-CPU, if known, of a participating (ready worker) node; `None` for others.
pub(super) fn part(node: &Node) -> Option<(Option<String>, Option<i64>)> {
    let is_control_plane = node.metadata.labels.iter().flatten().any(|(label, _)| {
        matches!(label.as_str(), "node-role.kubernetes.io/control-plane" | "node-role.kubernetes.io/master")
    });
    let status = node.status.as_ref();
    if is_control_plane || !conditions::is_true(status.and_then(|s| s.conditions.as_ref()), "Ready") {
        return None;
    }
    let cpu = status.and_then(|s| Quantity::try_from(s.allocatable.as_ref()?.get("cpu")?).ok());
    let cpu = cpu.map(|cpu| cpu.milli());
    Some((zone_of(node).cloned(), cpu.filter(|cpu| *cpu > 0)))
}

/// Allocatable milli-CPU by zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zones(BTreeMap<String, i64>);

impl Zones {
    /// Sums the CPU of each zone.
    ///
    /// # Errors
    /// [`Refusal::Nodes`], [`Refusal::OneZone`].
    pub(super) fn of(nodes: &[Arc<Node>]) -> Result<Self, Refusal> {
        let mut zones = BTreeMap::new();
        for (zone, cpu) in nodes.iter().filter_map(|node| part(node)) {
            let (Some(zone), Some(cpu)) = (zone, cpu) else { return Err(Refusal::Nodes) };
            let sum: &mut i64 = zones.entry(zone).or_default();
            *sum = sum.saturating_add(cpu);
        }
        if zones.len() < 2 { Err(Refusal::OneZone) } else { Ok(Zones(zones)) }
    }

    /// Assigns each endpoint to a zone, given the endpoints' own zones.
    ///
    /// # Errors
    /// [`Refusal::EndpointZone`], [`Refusal::Endpoints`].
    pub(super) fn assign(&self, homes: &[Option<&str>]) -> Result<Vec<String>, Refusal> {
        let mut zones: Vec<String> = homes
            .iter()
            .map(|home| home.map(str::to_owned).ok_or(Refusal::EndpointZone))
            .collect::<Result<_, _>>()?;
        let all: f64 = self.0.values().map(|cpu| *cpu as f64).sum();
        let share = |zone: &str| self.0.get(zone).map_or(0.0, |cpu| *cpu as f64 / all * homes.len() as f64);
        // With fewer endpoints the zone's overload would exceed the limit.
        let least = |zone: &str| (share(zone) / (1.0 + OVERLOAD)).ceil();
        if self.0.keys().map(|zone| least(zone)).sum::<f64>() > homes.len() as f64 {
            return Err(Refusal::Endpoints);
        }
        let mut has: BTreeMap<&str, f64> = self.0.keys().map(|zone| (zone.as_str(), 0.0)).collect();
        homes.iter().flatten().for_each(|home| *has.entry(home).or_default() += 1.0);
        for poor in self.0.keys() {
            while has[poor.as_str()] < least(poor) {
                let spare = |zone: &&str| has[*zone] - share(zone);
                let rich = has.keys().copied().filter(|zone| has[zone] > least(zone));
                let rich = rich.max_by(|a, b| spare(a).total_cmp(&spare(b))).ok_or(Refusal::Endpoints)?;
                let lent = zones.iter_mut().rev().find(|zone| *zone == rich).ok_or(Refusal::Endpoints)?;
                poor.clone_into(lent);
                *has.entry(rich).or_default() -= 1.0;
                *has.entry(poor).or_default() += 1.0;
            }
        }
        Ok(zones)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zones(all: &[(&str, i64)]) -> Zones {
        Zones(all.iter().map(|(zone, cpu)| ((*zone).to_owned(), *cpu)).collect())
    }

    fn node(zone: &str, cpu: &str, ready: &str, role: &str) -> Arc<Node> {
        let mut labels = serde_json::json!({"topology.kubernetes.io/zone": zone});
        if !role.is_empty() {
            labels[format!("node-role.kubernetes.io/{role}")] = "".into();
        }
        let node = serde_json::json!({"metadata": {"labels": labels}, "status": {
            "allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}],
        }});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn only_ready_workers_count_and_all_of_them_must_be_known() {
        let (a, b) = (node("a", "4", "True", ""), node("b", "1500m", "True", ""));
        let others = [node("c", "4", "False", ""), node("c", "4", "True", "control-plane")];
        let both: Vec<_> = [a.clone(), a.clone(), b].into_iter().chain(others).collect();
        assert_eq!(Zones::of(&both), Ok(zones(&[("a", 8000), ("b", 1500)])));
        assert_eq!(Zones::of(std::slice::from_ref(&a)), Err(Refusal::OneZone));
        assert_eq!(Zones::of(&[a, node("b", "0", "True", "")]), Err(Refusal::Nodes));
    }

    #[test]
    fn endpoints_are_lent_where_zones_have_too_few() {
        let assign = |all: &[(&str, i64)], homes: &str| {
            let homes: Vec<String> = homes.chars().map(String::from).collect();
            let homes: Vec<Option<&str>> = homes.iter().map(|h| Some(h.as_str())).collect();
            zones(all).assign(&homes).map(|zones| zones.concat())
        };
        let even = [("a", 1000), ("b", 1000), ("c", 1000)];
        assert_eq!(assign(&even, "abc"), Ok("abc".into()));
        assert_eq!(assign(&even, "ab"), Err(Refusal::Endpoints));
        // Each zone needs 3; c has none, so it gets two of a's and one of b's.
        assert_eq!(assign(&even, "aaaaabbbb"), Ok("aaaccbbbc".into()));
        // An overload within the limit moves no endpoint.
        assert_eq!(assign(&[("a", 1000), ("b", 1000)], "aaaaaabbbbb"), Ok("aaaaaabbbbb".into()));
        assert_eq!(assign(&[("a", 3000), ("b", 1000)], "abbb"), Ok("abaa".into()));
        let unknown = zones(&even).assign(&[Some("a"), None, Some("b")]);
        assert_eq!(unknown, Err(Refusal::EndpointZone));
    }

    proptest! {
        /// No zone exceeds the overload limit, no endpoint is lost, and zones with enough endpoints keep
        /// theirs.
        #[test]
        fn no_zone_is_overloaded(
            cpus in proptest::collection::vec(1..64i64, 2..5),
            homes in proptest::collection::vec(0..5usize, 0..40),
        ) {
            let name = |i: usize| format!("z{i}");
            let zones = Zones(cpus.iter().enumerate().map(|(i, cpu)| (name(i), *cpu)).collect());
            let homes: Vec<String> = homes.iter().map(|i| name(i % cpus.len())).collect();
            let asked: Vec<Option<&str>> = homes.iter().map(|h| Some(h.as_str())).collect();
            let Ok(given) = zones.assign(&asked) else { return Ok(()) };
            prop_assert_eq!(given.len(), homes.len());
            let all: i64 = cpus.iter().sum();
            let count = |list: &[String], zone: &str| list.iter().filter(|z| *z == zone).count() as f64;
            for (i, cpu) in cpus.iter().enumerate() {
                let share = *cpu as f64 / all as f64 * homes.len() as f64;
                prop_assert!(count(&given, &name(i)) * (1.0 + OVERLOAD) >= share - 1e-9);
            }
            prop_assert_eq!(zones.assign(&given.iter().map(|z| Some(z.as_str())).collect::<Vec<_>>()), Ok(given));
        }
    }
}
