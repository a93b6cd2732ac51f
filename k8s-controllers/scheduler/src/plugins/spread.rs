//! Spreading of pods over topology domains.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_core::{
    api::api::core::v1::TopologySpreadConstraint,
    meta::{LabelSelector, ObjectExt},
};

use super::node::is_tainted;
use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, NormalizeScore, Plugin, PodInfo, Points,
    PreFilter, PreScore, Reject, Score, WakeOn, args::PodTopologySpreadArgs, cluster::ZONE, pod_info::Spread,
    tally::Counts,
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Pod topology spread constraints: required ones filter, the others score.
#[derive(Clone, Debug)]
pub struct PodTopologySpread {
    defaults: Vec<TopologySpreadConstraint>,
    /// The defaults are upstream's: a node without a zone counts by its host name alone.
    system: bool,
}

impl Default for PodTopologySpread {
    fn default() -> Self {
        PodTopologySpread::new(PodTopologySpreadArgs::default())
    }
}

impl PodTopologySpread {
    pub(crate) fn new(args: PodTopologySpreadArgs) -> Self {
        let system = args.defaulting_type == "System";
        let one = |topology_key: &str, max_skew| TopologySpreadConstraint {
            topology_key: topology_key.to_owned(),
            max_skew,
            when_unsatisfiable: "ScheduleAnyway".into(),
            ..TopologySpreadConstraint::default()
        };
        let defaults = if system { vec![one(HOSTNAME, 3), one(ZONE, 5)] } else { args.default_constraints };
        PodTopologySpread { defaults, system }
    }

    /// Returns the constraints of a pod of one kind: its own, or else the defaults with the selector of its
    /// Services and its controller.
    fn constraints(&self, cluster: &Cluster, pod: &PodInfo, required: bool) -> Vec<Spread> {
        let has_own = pod
            .pod
            .spec
            .as_ref()
            .is_some_and(|s| s.topology_spread_constraints.as_ref().is_some_and(|all| !all.is_empty()));
        if has_own {
            return pod.spread.iter().filter(|s| s.required == required).cloned().collect();
        }
        let kind = |c: &&TopologySpreadConstraint| {
            (c.when_unsatisfiable == "DoNotSchedule") == required
                // Without zones the constraint would give all nodes the same score.
                && !(self.system && c.topology_key == ZONE && !cluster.has_zones())
        };
        let mut defaults = self.defaults.iter().filter(kind).peekable();
        if defaults.peek().is_none() {
            return Vec::new();
        }
        let Some(selector) = default_selector(cluster, pod) else { return Vec::new() };
        let own = |c: &TopologySpreadConstraint| {
            let mut constraint = Spread::parse(c, &pod.pod)?;
            constraint.selector = Some(selector.clone());
            Some(constraint)
        };
        defaults.filter_map(own).collect()
    }
}

/// Returns the selector of the pods that a pod belongs with: those of its Services and of its controller
/// together. `None`: it belongs to none.
fn default_selector(cluster: &Cluster, pod: &PodInfo) -> Option<LabelSelector> {
    let lists = cluster.lists()?;
    let labels = pod.pod.metadata.labels.as_ref()?;
    let mut merged = BTreeMap::new();
    for service in lists.services.in_namespace(&pod.key.namespace) {
        let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()) else { continue };
        if !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            merged.extend(selector.clone());
        }
    }
    let mut requirements = Vec::new();
    if let Some(owner) = pod.pod.controller_ref() {
        let (namespace, name, all) = (&pod.key.namespace, &owner.name, &lists.controllers);
        let api = match owner.kind.as_str() {
            "ReplicationController" => {
                let controller = all.replication.get(namespace, name);
                merged.extend(controller.and_then(|c| c.spec.clone()?.selector).unwrap_or_default());
                None
            }
            "ReplicaSet" => {
                all.replica_sets.get(namespace, name).and_then(|c| Some(c.spec.as_ref()?.selector.clone()))
            }
            "StatefulSet" => {
                all.stateful_sets.get(namespace, name).and_then(|c| Some(c.spec.as_ref()?.selector.clone()))
            }
            _ => None,
        };
        requirements = api.and_then(|s| LabelSelector::from_api(&s).ok()).unwrap_or_default().requirements;
    }
    let mut selector = LabelSelector::from_labels(&merged);
    selector.requirements.extend(requirements);
    (!selector.is_everything()).then_some(selector)
}

/// Returns true if the pods of a node count for a constraint.
fn includes(constraint: &Spread, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || pod.allows_node(&node.node))
        && (!constraint.honor_taints || !is_tainted(pod, node.taints()))
}

fn selected(cluster: &Cluster, pod: &PodInfo, constraint: &Spread) -> Arc<Counts> {
    match &constraint.selector {
        // Upstream counts no pods for a selector that selects everything.
        Some(selector) if !selector.is_everything() => cluster.selected(&pod.key.namespace, selector),
        _ => Arc::default(),
    }
}

fn on(counts: &Counts, node: &NodeInfo) -> i64 {
    counts.get(node.name()).copied().unwrap_or(0)
}

/// The required constraints with the number of selected pods per domain.
struct Required(Vec<(Spread, HashMap<String, i64>)>);

impl PreFilter for PodTopologySpread {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let cluster = cx.cluster();
        let constraints = self.constraints(cluster, pod, true);
        if constraints.is_empty() {
            return Ok(false);
        }
        let counts: Vec<Arc<Counts>> = constraints.iter().map(|c| selected(cluster, pod, c)).collect();
        let mut all: Vec<(Spread, HashMap<String, i64>)> =
            constraints.into_iter().map(|c| (c, HashMap::new())).collect();
        for node in cluster.nodes() {
            // A node counts only if it has all topology keys.
            if all.iter().any(|(c, _)| node.label(&c.topology_key).is_none()) {
                continue;
            }
            for ((constraint, domains), counts) in all.iter_mut().zip(&counts) {
                if includes(constraint, pod, node)
                    && let Some(value) = node.label(&constraint.topology_key)
                {
                    match domains.get_mut(value) {
                        Some(number) => *number += on(counts, node),
                        None => drop(domains.insert(value.to_owned(), on(counts, node))),
                    }
                }
            }
        }
        cx.put(Required(all));
        Ok(true)
    }

    fn moved(&self, cx: &mut Cycle<'_>, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        let Some(Required(all)) = cx.get_mut::<Required>() else { return };
        if other.key.namespace != pod.key.namespace || other.pod.is_deleting() {
            return;
        }
        if all.iter().any(|(c, _)| node.label(&c.topology_key).is_none()) {
            return;
        }
        for (constraint, domains) in all {
            let everything = constraint.selector.as_ref().is_none_or(LabelSelector::is_everything);
            if !everything
                && constraint.selects(other)
                && includes(constraint, pod, node)
                && let Some(number) = node.label(&constraint.topology_key).and_then(|v| domains.get_mut(v))
            {
                *number += by;
            }
        }
    }
}

impl Filter for PodTopologySpread {
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(Required(all)) = cx.get::<Required>() else { return Ok(()) };
        for (constraint, domains) in all {
            let Some(value) = node.label(&constraint.topology_key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Reject::never(reason));
            };
            let enough = i64::try_from(domains.len()).unwrap_or(i64::MAX) >= constraint.min_domains;
            let least = if enough { domains.values().copied().min().unwrap_or(0) } else { 0 };
            let itself = i64::from(constraint.selects(pod));
            let there = domains.get(value).copied().unwrap_or(0);
            if there + itself - least > constraint.max_skew {
                return Err(Reject::full("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }
}

/// A preferred constraint with the number of selected pods in each domain of the feasible nodes.
struct Preferred {
    constraint: Spread,
    counts: Arc<Counts>,
    /// `None`: the domains are single nodes.
    domains: Option<HashMap<String, i64>>,
    /// Weight of a pod, larger for constraints with more domains.
    weight: f64,
}

struct Wishes {
    all: Vec<Preferred>,
    /// Nodes without all topology keys get the score 0.
    strict: bool,
}

impl Wishes {
    fn ignores(&self, node: &NodeInfo) -> bool {
        self.strict && self.all.iter().any(|p| node.label(&p.constraint.topology_key).is_none())
    }
}

impl PreScore for PodTopologySpread {
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, nodes: &[&NodeInfo]) -> bool {
        let cluster = cx.cluster();
        let constraints = self.constraints(cluster, pod, false);
        if constraints.is_empty() {
            return false;
        }
        let strict = !self.system || !pod.spread.is_empty();
        let lacks =
            |node: &NodeInfo| strict && constraints.iter().any(|c| node.label(&c.topology_key).is_none());
        let scored: Vec<&&NodeInfo> = nodes.iter().filter(|node| !lacks(node)).collect();
        let mut all = Vec::with_capacity(constraints.len());
        for constraint in &constraints {
            let counts = selected(cluster, pod, constraint);
            let mut domains = None;
            let mut size = scored.len();
            if constraint.topology_key != HOSTNAME {
                let mut numbers: HashMap<String, i64> = HashMap::new();
                for value in scored.iter().filter_map(|node| node.label(&constraint.topology_key)) {
                    if !numbers.contains_key(value) {
                        numbers.insert(value.to_owned(), 0);
                    }
                }
                size = numbers.len();
                for (name, number) in &*counts {
                    let Some(node) = cluster.node(name) else { continue };
                    if let Some(sum) = node.label(&constraint.topology_key).and_then(|v| numbers.get_mut(v))
                        && !lacks(node)
                        && includes(constraint, pod, node)
                    {
                        *sum += number;
                    }
                }
                domains = Some(numbers);
            }
            let weight = ((size + 2) as f64).ln();
            all.push(Preferred { constraint: constraint.clone(), counts, domains, weight });
        }
        cx.put(Wishes { all, strict });
        true
    }
}

impl Score for PodTopologySpread {
    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(wishes) = cx.get::<Wishes>() else { return 0 };
        if wishes.ignores(node) {
            return 0;
        }
        let mut score = 0.0;
        for wish in &wishes.all {
            let Some(value) = node.label(&wish.constraint.topology_key) else { continue };
            let there = match &wish.domains {
                None => on(&wish.counts, node),
                Some(domains) => domains.get(value).copied().unwrap_or(0),
            };
            score += there as f64 * wish.weight + (wish.constraint.max_skew - 1) as f64;
        }
        score.round() as i64
    }
}

impl NormalizeScore for PodTopologySpread {
    fn normalize(&self, cx: &Cycle<'_>, _: &PodInfo, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let Some(wishes) = cx.get::<Wishes>() else { return };
        let counted: Vec<bool> = nodes.iter().map(|node| !wishes.ignores(node)).collect();
        let of_counted = || scores.iter().zip(&counted).filter(|(_, counted)| **counted).map(|(s, _)| *s);
        let (least, most) = (of_counted().min().unwrap_or(0), of_counted().max().unwrap_or(0));
        for (score, counted) in scores.iter_mut().zip(&counted) {
            *score = match (counted, most) {
                (false, _) => 0,
                (true, 0) => 100,
                (true, most) => 100 * (most + least - *score) / most,
            };
        }
    }
}

impl EnqueueExtensions for PodTopologySpread {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE.or(WakeOn::POD_PLACED).or(WakeOn::POD_LABELS).or(WakeOn::POD_GONE)
    }

    fn hint(&self, cluster: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        let Some(other) = event.pod else { return event.what != WakeOn::NODE_ALLOCATABLE };
        if other.key.namespace != pod.key.namespace {
            return false;
        }
        let constraints = self.constraints(cluster, pod, true);
        let concerned = |p: &PodInfo| constraints.iter().any(|c| c.selects(p));
        concerned(other) || event.old_pod.is_some_and(concerned)
    }
}

impl Plugin for PodTopologySpread {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().pre_scores().scores(2).normalizes().wakes().points()
    }
}
