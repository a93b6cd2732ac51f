//! Spreading of pods over topology domains.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use k8s_core::{
    api::api::core::v1::TopologySpreadConstraint,
    meta::{LabelSelector, ObjectExt},
};

use super::{limits, node::is_tainted, replace};
use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, NormalizeScore, Plugin, PodInfo, Points,
    PreFilter, PreScore, Reject, Score, WakeOn,
    args::PodTopologySpreadArgs,
    cluster::ZONE,
    feasible::Feasible,
    index::{Domains, Question},
    many::AtOnce,
    pod_info::Spread,
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

/// Returns the question of the pods that a constraint counts. `None`: it counts none.
fn question(pod: &PodInfo, constraint: &Spread) -> Option<Question> {
    // Upstream counts no pods for a selector that selects everything.
    let selector = constraint.selector.as_ref().filter(|selector| !selector.is_everything())?;
    Some(Question { all: vec![(vec![pod.key.namespace.clone()], selector.clone())], deleted: false })
}

/// Returns true if a constraint includes all nodes.
fn includes_all(constraint: &Spread, cluster: &Cluster, pod: &PodInfo) -> bool {
    let by_affinity = constraint.honor_affinity && (pod.node_labels.is_some() || pod.node_terms.is_some());
    let by_taints = constraint.honor_taints && cluster.flagged().hard_taints > 0;
    !by_affinity && !by_taints
}

/// Counts the pods of constraints by domain. With `strict` a node counts only if it has all topology keys.
fn counted(cluster: &Cluster, pod: &PodInfo, constraints: &[Spread], strict: bool) -> Vec<Domains> {
    let questions: Vec<Option<Question>> = constraints.iter().map(|c| question(pod, c)).collect();
    let all = constraints.iter().zip(&questions);
    let all: Vec<Domains> = all.map(|(c, q)| cluster.by_domain(q.as_ref(), &c.topology_key)).collect();
    let total = cluster.nodes().len();
    let one_key = constraints.iter().all(|c| c.topology_key == constraints[0].topology_key);
    let any_node = !strict || one_key || all.iter().all(|domains| domains.nodes() == total);
    let count = |(constraint, question): (&Spread, &Option<Question>), domains: &Domains| {
        if any_node && includes_all(constraint, cluster, pod) {
            return domains.clone();
        }
        let pods = question.as_ref().map(|question| cluster.by_node(question)).unwrap_or_default();
        domains.limited(total, |slot| {
            let included = (any_node || all.iter().all(|domains| domains.of(slot).is_some()))
                && cluster.nodes().get(slot).is_some_and(|node| includes(constraint, pod, node));
            included.then(|| pods.get(slot).copied().unwrap_or(0).into())
        })
    };
    constraints.iter().zip(&questions).zip(&all).map(|(one, domains)| count(one, domains)).collect()
}

/// A required constraint with the number of selected pods per domain.
struct Required {
    constraint: Spread,
    domains: Domains,
    /// 1 if the constraint counts the pod itself.
    itself: i64,
    /// The smallest number of a domain; 0 if there are too few domains.
    least: OnceLock<i64>,
}

struct Constraints(Vec<Required>);

/// Refusals by number.
const MISSING: u8 = 1;
const SKEWED: u8 = 2;

fn refusal(number: u8) -> Reject {
    if number == MISSING {
        let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
        Reject::never(reason)
    } else {
        Reject::full("node(s) didn't match pod topology spread constraints")
    }
}

impl Required {
    fn least(&self) -> i64 {
        *self.least.get_or_init(|| {
            let (mut domains, mut least) = (0, None);
            for domain in self.domains.used() {
                let pods = self.domains.pods_in(domain);
                least = Some(least.map_or(pods, |least: i64| least.min(pods)));
                domains += 1;
            }
            least.filter(|_| domains >= self.constraint.min_domains).unwrap_or(0)
        })
    }

    /// Returns 0, or the number of the refusal.
    fn check(&self, slot: usize) -> u8 {
        match self.domains.pods_at(slot) {
            None => MISSING,
            Some(there) if there + self.itself - self.least() > self.constraint.max_skew => SKEWED,
            Some(_) => 0,
        }
    }
}

impl Constraints {
    fn check(&self, slot: usize) -> u8 {
        self.0.iter().map(|required| required.check(slot)).find(|number| *number != 0).unwrap_or(0)
    }
}

impl PreFilter for PodTopologySpread {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let cluster = cx.cluster();
        let constraints = self.constraints(cluster, pod, true);
        if constraints.is_empty() {
            return Ok(false);
        }
        let domains = counted(cluster, pod, &constraints, true);
        let one = |(constraint, domains): (Spread, Domains)| {
            let itself = i64::from(constraint.selects(pod));
            Required { constraint, domains, itself, least: OnceLock::new() }
        };
        cx.put(Constraints(constraints.into_iter().zip(domains).map(one).collect()));
        Ok(true)
    }

    fn moved(&self, cx: &mut Cycle<'_>, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        let Some(Constraints(all)) = cx.get_mut::<Constraints>() else { return };
        if other.key.namespace != pod.key.namespace || other.pod.is_deleting() {
            return;
        }
        if all.iter().any(|required| required.domains.of(node.slot).is_none()) {
            return;
        }
        for Required { constraint, domains, least, .. } in all {
            let everything = constraint.selector.as_ref().is_none_or(LabelSelector::is_everything);
            if !everything && constraint.selects(other) && includes(constraint, pod, node) {
                domains.add(node.slot, by);
                *least = OnceLock::new();
            }
        }
    }
}

impl Filter for PodTopologySpread {
    fn filter(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        match cx.get::<Constraints>().map_or(0, |all| all.check(node.slot)) {
            0 => Ok(()),
            number => Err(refusal(number)),
        }
    }
}

/// A preferred constraint.
struct Preferred {
    domains: Domains,
    /// The number of selected pods by node, if the domains are single nodes.
    by_node: Option<Arc<Vec<i32>>>,
    /// The part of the score by domain, or else by the number of pods on the node.
    parts: Vec<f64>,
    max_skew: i64,
    /// Weight of a pod, larger for constraints with more domains among the feasible nodes.
    weight: f64,
}

/// Limit of the numbers of pods whose part is computed in advance.
const MOST_PARTS: i64 = 256;

impl Preferred {
    fn with_parts(mut self) -> Self {
        self.parts = match &self.by_node {
            Some(_) => (0..MOST_PARTS).map(|pods| self.part(pods)).collect(),
            None => {
                (0..self.domains.number()).map(|domain| self.part(self.domains.pods_in(domain))).collect()
            }
        };
        self
    }

    fn part(&self, pods: i64) -> f64 {
        pods as f64 * self.weight + (self.max_skew - 1) as f64
    }

    fn part_at(&self, slot: usize, domain: usize) -> f64 {
        let Some(by_node) = &self.by_node else { return self.parts.get(domain).copied().unwrap_or(0.0) };
        let pods = by_node.get(slot).copied().unwrap_or(0);
        let known = usize::try_from(pods).ok().and_then(|at| self.parts.get(at).copied());
        known.unwrap_or_else(|| self.part(pods.into()))
    }
}

/// Rounds a score, which is not negative.
fn rounded(score: f64) -> i64 {
    let whole = score as i64;
    whole + i64::from(score - whole as f64 >= 0.5)
}

struct Wishes {
    all: Vec<Preferred>,
    /// Nodes without all topology keys get the score 0.
    strict: bool,
}

impl Wishes {
    fn ignores(&self, slot: usize) -> bool {
        self.strict && self.all.iter().any(|wish| wish.domains.of(slot).is_none())
    }

    fn score(&self, slot: usize) -> i64 {
        if self.ignores(slot) {
            return 0;
        }
        let mut score = 0.0;
        for wish in &self.all {
            if let Some(domain) = wish.domains.of(slot) {
                score += wish.part_at(slot, domain);
            }
        }
        rounded(score)
    }

    fn normalize(&self, slots: impl Iterator<Item = usize> + Clone, scores: &mut [i64]) {
        if !self.strict {
            let (least, most) = limits(scores);
            return replace(scores, (least, most), |score| match most {
                0 => 100,
                most => 100 * (most + least - score) / most,
            });
        }
        let ignored = |slot: usize| self.ignores(slot);
        let counted =
            || scores.iter().zip(slots.clone()).filter(|(_, slot)| !ignored(*slot)).map(|(s, _)| *s);
        let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        for (score, slot) in scores.iter_mut().zip(slots) {
            *score = match (ignored(slot), most) {
                (true, _) => 0,
                (false, 0) => 100,
                (false, most) => 100 * (most + least - *score) / most,
            };
        }
    }
}

impl PodTopologySpread {
    /// Counts for the score. `slots` returns the indexes of the feasible nodes.
    fn prepare<'s>(&self, cx: &mut Cycle<'_>, pod: &PodInfo, slots: &dyn Fn() -> &'s [u32]) -> bool {
        let cluster = cx.cluster();
        let constraints = self.constraints(cluster, pod, false);
        if constraints.is_empty() {
            return false;
        }
        let strict = !self.system || !pod.spread.is_empty();
        let domains = counted(cluster, pod, &constraints, strict);
        let has_all = |slot: usize| domains.iter().all(|domains| domains.of(slot).is_some());
        let everywhere = domains.iter().all(|domains| domains.whole(cluster.nodes().len()));
        let slots = slots();
        let scored =
            || slots.iter().map(|slot| *slot as usize).filter(|slot| !strict || everywhere || has_all(*slot));
        let weight = |size: usize| ((size + 2) as f64).ln();
        let all = constraints.iter().zip(&domains).map(|(constraint, domains)| {
            let host = constraint.topology_key == HOSTNAME;
            let question = question(pod, constraint).filter(|_| host);
            Preferred {
                max_skew: constraint.max_skew,
                domains: domains.clone(),
                weight: weight(if host {
                    if everywhere || !strict { slots.len() } else { scored().count() }
                } else {
                    domains.among(scored())
                }),
                by_node: host.then(|| question.map(|q| cluster.by_node(&q)).unwrap_or_default()),
                parts: Vec::new(),
            }
            .with_parts()
        });
        let wishes = Wishes { all: all.collect(), strict: strict && !everywhere };
        cx.put(wishes);
        true
    }
}

impl PreScore for PodTopologySpread {
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, nodes: &[&NodeInfo]) -> bool {
        let slots: Vec<u32> = nodes.iter().map(|n| u32::try_from(n.slot).unwrap_or(u32::MAX)).collect();
        self.prepare(cx, pod, &|| &slots)
    }
}

impl Score for PodTopologySpread {
    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        cx.get::<Wishes>().map_or(0, |wishes| wishes.score(node.slot))
    }
}

impl NormalizeScore for PodTopologySpread {
    fn normalize(&self, cx: &Cycle<'_>, _: &PodInfo, nodes: &[&NodeInfo], scores: &mut [i64]) {
        if let Some(wishes) = cx.get::<Wishes>() {
            wishes.normalize(nodes.iter().map(|node| node.slot), scores);
        }
    }
}

impl AtOnce for PodTopologySpread {
    fn filter<'a>(&'a self, cx: &'a Cycle<'_>, _: &'a PodInfo) -> Box<dyn Fn(usize) -> u8 + 'a> {
        match cx.get::<Constraints>() {
            Some(all) => Box::new(|slot| all.check(slot)),
            None => Box::new(|_| 0),
        }
    }

    fn refusal(&self, number: u8) -> Reject {
        refusal(number)
    }

    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, nodes: &Feasible<'_>) -> bool {
        self.prepare(cx, pod, &|| nodes.slots())
    }

    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, nodes: &[u32], scores: &mut [i64]) {
        let Some(wishes) = cx.get::<Wishes>() else { return scores.fill(0) };
        for (score, slot) in scores.iter_mut().zip(nodes) {
            *score = wishes.score(*slot as usize);
        }
    }

    fn normalize(&self, cx: &Cycle<'_>, nodes: &[u32], scores: &mut [i64]) {
        if let Some(wishes) = cx.get::<Wishes>() {
            wishes.normalize(nodes.iter().map(|slot| *slot as usize), scores);
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
        let points = Points::of(self).pre_filters().filters().pre_scores().scores(2).normalizes();
        points.wakes().at_once().points()
    }
}
