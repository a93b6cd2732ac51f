//! Plugins of resources: fit, and the scores of the utilization.

use std::collections::BTreeMap;

use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, Plugin, PodInfo, Points, PreScore, Reject,
    Resources, Score, WakeOn,
    args::{NodeResourcesBalancedAllocationArgs, NodeResourcesFitArgs, ResourceSpec, Strategy},
    many::{Passes, PerNode},
};

/// A resource by its name, which is looked at once.
#[derive(Clone, Debug)]
enum Kind {
    Cpu,
    Memory,
    Ephemeral,
    Other(String),
}

impl Kind {
    fn new(spec: &ResourceSpec) -> Self {
        match spec.name.as_str() {
            "cpu" => Kind::Cpu,
            "memory" => Kind::Memory,
            "ephemeral-storage" => Kind::Ephemeral,
            other => Kind::Other(other.to_owned()),
        }
    }

    fn of(&self, resources: &Resources) -> i64 {
        match self {
            Kind::Cpu => resources.milli_cpu,
            Kind::Memory => resources.memory,
            Kind::Ephemeral => resources.ephemeral,
            Kind::Other(name) => resources.other(name),
        }
    }
}

/// Rejects nodes without enough free resources, and scores nodes by the utilization with the pod.
#[derive(Clone, Debug)]
pub struct NodeResourcesFit {
    args: NodeResourcesFitArgs,
    /// The resources of the score with their weights.
    scored: Vec<(Kind, i64)>,
}

impl Default for NodeResourcesFit {
    fn default() -> Self {
        NodeResourcesFit::new(NodeResourcesFitArgs::default())
    }
}

impl NodeResourcesFit {
    pub(crate) fn new(args: NodeResourcesFitArgs) -> Self {
        let scored = args.scoring_strategy.resources.iter().map(|r| (Kind::new(r), r.weight)).collect();
        NodeResourcesFit { args, scored }
    }

    /// Returns true if the resource is an extended one that the configuration ignores.
    fn ignores(&self, name: &str) -> bool {
        let Some((group, _)) = name.split_once('/') else { return false };
        self.args.ignored_resources.iter().any(|n| n == name)
            || self.args.ignored_resource_groups.iter().any(|g| g == group)
    }

    fn check(
        &self,
        ask: &Resources,
        have: &Resources,
        used: &Resources,
        pods: i64,
        max_pods: i64,
    ) -> Result<(), Reject> {
        let short = |ask: i64, have: i64, used: i64| ask > 0 && ask > have.saturating_sub(used);
        let cpu = short(ask.milli_cpu, have.milli_cpu, used.milli_cpu);
        let memory = short(ask.memory, have.memory, used.memory);
        let ephemeral = short(ask.ephemeral, have.ephemeral, used.ephemeral);
        let lacks =
            |(name, n): &&(String, i64)| short(*n, have.other(name), used.other(name)) && !self.ignores(name);
        if pods < max_pods && !cpu && !memory && !ephemeral && !ask.others.iter().any(|o| lacks(&o)) {
            return Ok(());
        }
        let mut reject = Reject { reasons: Vec::new(), resolvable: true };
        let mut note = |short: bool, reason: &'static str, more_than_all: bool| {
            if short {
                reject.reasons.push(reason.into());
                reject.resolvable &= !more_than_all;
            }
        };
        note(pods >= max_pods, "Too many pods", false);
        note(cpu, "Insufficient cpu", ask.milli_cpu > have.milli_cpu);
        note(memory, "Insufficient memory", ask.memory > have.memory);
        note(ephemeral, "Insufficient ephemeral-storage", ask.ephemeral > have.ephemeral);
        for (name, n) in ask.others.iter().filter(lacks) {
            reject.reasons.push(format!("Insufficient {name}").into());
            reject.resolvable &= *n <= have.other(name);
        }
        Err(reject)
    }
}

impl Filter for NodeResourcesFit {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
        self.check(&pod.requests, &node.allocatable, &node.requested, pods, node.max_pods)
    }
}

/// Returns the utilization of a resource with the pod, and the amount that the node has of it. `None`: the
/// node has none, or the resource is an extended one that the pod does not ask for.
fn utilization(pod: &PodInfo, node: &NodeInfo, kind: &Kind) -> Option<(i64, i64)> {
    let (have, used, ask) = match kind {
        Kind::Cpu => (node.allocatable.milli_cpu, node.counted.0, pod.counted.0),
        Kind::Memory => (node.allocatable.memory, node.counted.1, pod.counted.1),
        other => {
            let ask = other.of(&pod.requests);
            if ask == 0 && matches!(other, Kind::Other(_)) {
                return None;
            }
            (other.of(&node.allocatable), other.of(&node.requested), ask)
        }
    };
    (have > 0).then(|| (used.saturating_add(ask), have))
}

/// Returns a part of a whole in percent.
fn percent(part: i64, whole: i64) -> i64 {
    match part.checked_mul(100) {
        Some(times) => times / whole,
        // Exabytes.
        None => (i128::from(part) * 100 / i128::from(whole)) as i64,
    }
}

impl Score for NodeResourcesFit {
    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let strategy = &self.args.scoring_strategy;
        let (mut sum, mut weights) = (0, 0);
        for (kind, weight) in &self.scored {
            let Some((used, have)) = utilization(pod, node, kind) else { continue };
            let score = match strategy.strategy {
                Strategy::LeastAllocated => percent(have.saturating_sub(used).max(0), have),
                Strategy::MostAllocated => percent(used.min(have), have),
                Strategy::RequestedToCapacityRatio => {
                    let score = self.ratio(if used > have { 100 } else { percent(used, have) });
                    if score <= 0 {
                        continue;
                    }
                    score
                }
            };
            sum += score * weight;
            weights += weight;
        }
        match strategy.strategy {
            _ if weights == 0 => 0,
            Strategy::RequestedToCapacityRatio => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }
}

impl NodeResourcesFit {
    /// Returns the score of a utilization in percent, on the configured broken line.
    fn ratio(&self, utilization: i64) -> i64 {
        let shape = self.args.scoring_strategy.requested_to_capacity_ratio.as_ref();
        let points = shape.map(|s| s.shape.as_slice()).unwrap_or_default();
        let Some(at) = points.iter().position(|p| utilization <= p.utilization) else {
            return points.last().map_or(0, |p| p.score * 10);
        };
        let (to, to_score) = (points[at].utilization, points[at].score * 10);
        if at == 0 {
            return to_score;
        }
        let (from, from_score) = (points[at - 1].utilization, points[at - 1].score * 10);
        from_score + (to_score - from_score) * (utilization - from) / (to - from).max(1)
    }
}

impl EnqueueExtensions for NodeResourcesFit {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED.or(WakeOn::NODE_ALLOCATABLE).or(WakeOn::POD_GONE).or(WakeOn::POD_SCALED_DOWN)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        if let Some(node) = event.node {
            // A node that is too small even when empty does not help.
            return self
                .check(&pod.requests, &node.allocatable, &Resources::default(), 0, node.max_pods)
                .is_ok();
        }
        if event.what == WakeOn::POD_SCALED_DOWN
            && let (Some(now), Some(before)) = (event.pod, event.old_pod)
        {
            let freed = |name: &str| now.requests.amount(name) < before.requests.amount(name);
            return pod.requests.names().any(|(name, ask)| ask > 0 && freed(name));
        }
        true
    }
}

impl Plugin for NodeResourcesFit {
    fn points(self) -> Points {
        Points::of(self).filters().scores(1).wakes().per_node().points()
    }
}

impl PerNode for NodeResourcesFit {
    fn passes(&self, cluster: &Cluster, pod: &PodInfo) -> Passes {
        let ask = &pod.requests;
        if !ask.others.is_empty() {
            return Passes::Ask;
        }
        let columns = cluster.columns();
        let mut passes: Vec<bool> =
            columns.pods.iter().zip(&columns.max_pods).map(|(pods, most)| pods < most).collect();
        let asked = [ask.milli_cpu, ask.memory, ask.ephemeral];
        for (ask, (have, used)) in asked.into_iter().zip(columns.allocatable.iter().zip(&columns.requested)) {
            if ask > 0 {
                for (passes, (have, used)) in passes.iter_mut().zip(have.iter().zip(used)) {
                    *passes &= ask <= have.saturating_sub(*used);
                }
            }
        }
        Passes::These(passes)
    }

    fn scores(&self, cluster: &Cluster, pod: &PodInfo, scores: &mut [i64]) -> bool {
        let columns = cluster.columns();
        let strategy = self.args.scoring_strategy.strategy;
        let [(Kind::Cpu, 1), (Kind::Memory, 1)] = self.scored[..] else { return false };
        let part = |ask: i64, used: i64, have: i64| {
            let used = used.saturating_add(ask);
            match strategy {
                Strategy::MostAllocated => percent(used.min(have), have),
                _ => percent(have.saturating_sub(used).max(0), have),
            }
        };
        if strategy == Strategy::RequestedToCapacityRatio {
            return false;
        }
        let ([cpu, memory, _], [used_cpu, used_memory]) = (&columns.allocatable, &columns.counted);
        let cpus = cpu.iter().zip(used_cpu);
        let memories = memory.iter().zip(used_memory);
        for (score, ((cpu, used_cpu), (memory, used_memory))) in scores.iter_mut().zip(cpus.zip(memories)) {
            *score = match (*cpu > 0, *memory > 0) {
                (true, true) => {
                    let parts =
                        part(pod.counted.0, *used_cpu, *cpu) + part(pod.counted.1, *used_memory, *memory);
                    parts / 2
                }
                (true, false) => part(pod.counted.0, *used_cpu, *cpu),
                (false, true) => part(pod.counted.1, *used_memory, *memory),
                (false, false) => 0,
            };
        }
        true
    }
}

/// Prefers nodes on which the pod makes the utilization of resources more similar.
#[derive(Clone, Debug)]
pub struct NodeResourcesBalancedAllocation {
    resources: Vec<Kind>,
}

impl Default for NodeResourcesBalancedAllocation {
    fn default() -> Self {
        NodeResourcesBalancedAllocation::new(&NodeResourcesBalancedAllocationArgs::default())
    }
}

/// Limit of the resources that are balanced.
const MOST_BALANCED: usize = 8;

impl NodeResourcesBalancedAllocation {
    pub(crate) fn new(args: &NodeResourcesBalancedAllocationArgs) -> Self {
        NodeResourcesBalancedAllocation { resources: args.resources.iter().map(Kind::new).collect() }
    }

    /// Returns the balance of the node without the pod and with it, as scores.
    fn balances(&self, pod: &PodInfo, node: &NodeInfo) -> (i64, i64) {
        let (mut before, mut after) = ([0.0; MOST_BALANCED], [0.0; MOST_BALANCED]);
        let mut number = 0;
        for kind in &self.resources {
            let ask = kind.of(&pod.requests);
            if ask == 0 && matches!(kind, Kind::Other(_)) {
                continue;
            }
            let have = kind.of(&node.allocatable);
            if have > 0 {
                let used = kind.of(&node.requested);
                before[number] = (used as f64 / have as f64).min(1.0);
                after[number] = (used.saturating_add(ask) as f64 / have as f64).min(1.0);
                number += 1;
            }
        }
        (balance(&before[..number]), balance(&after[..number]))
    }
}

/// Returns the score of a change of the balance.
fn change(before: i64, after: i64) -> i64 {
    50 + (50 + after - before) / 2
}

/// Returns 100 for equal utilizations, and less for a larger standard deviation.
fn balance(parts: &[f64]) -> i64 {
    let deviation = match parts {
        [] | [_] => 0.0,
        [a, b] => ((a - b) / 2.0).abs(),
        more => {
            let number = more.len() as f64;
            let mean = more.iter().sum::<f64>() / number;
            (more.iter().map(|p| (p - mean) * (p - mean)).sum::<f64>() / number).sqrt()
        }
    };
    ((1.0 - deviation) * 100.0) as i64
}

impl PreScore for NodeResourcesBalancedAllocation {
    fn pre_score(&self, _: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        // Skipped for pods without requests: they do not change the balance.
        self.resources.iter().any(|kind| kind.of(&pod.requests) > 0)
    }
}

impl Score for NodeResourcesBalancedAllocation {
    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (before, after) = self.balances(pod, node);
        change(before, after)
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn points(self) -> Points {
        Points::of(self).pre_scores().scores(1).per_node().points()
    }
}

impl PerNode for NodeResourcesBalancedAllocation {
    fn scores(&self, cluster: &Cluster, pod: &PodInfo, scores: &mut [i64]) -> bool {
        let [Kind::Cpu, Kind::Memory] = self.resources[..] else { return false };
        let columns = cluster.columns();
        let ([cpu, memory, _], [used_cpu, used_memory, _]) = (&columns.allocatable, &columns.requested);
        let cpus = cpu.iter().zip(used_cpu);
        let memories = memory.iter().zip(used_memory);
        let ask = (pod.requests.milli_cpu, pod.requests.memory);
        for (score, ((cpu, used_cpu), (memory, used_memory))) in scores.iter_mut().zip(cpus.zip(memories)) {
            if *cpu <= 0 || *memory <= 0 {
                // A single resource is always balanced.
                *score = 75;
                continue;
            }
            let part = |used: i64, have: i64| (used as f64 / have as f64).min(1.0);
            let before = balance(&[part(*used_cpu, *cpu), part(*used_memory, *memory)]);
            let after = balance(&[
                part(used_cpu.saturating_add(ask.0), *cpu),
                part(used_memory.saturating_add(ask.1), *memory),
            ]);
            *score = change(before, after);
        }
        true
    }
}

/// Checks arguments of NodeResourcesBalancedAllocation.
///
/// # Errors
/// The path of the field and the reason.
pub(crate) fn validate_balanced(args: &NodeResourcesBalancedAllocationArgs) -> Result<(), String> {
    if args.resources.len() > MOST_BALANCED {
        return Err(format!("resources: at most {MOST_BALANCED} resources can be balanced"));
    }
    match args.resources.iter().position(|r| r.weight != 1) {
        Some(at) => Err(format!("resources[{at}].weight: resource weight must be 1")),
        None => Ok(()),
    }
}

/// Checks arguments of NodeResourcesFit.
///
/// # Errors
/// The path of the field and the reason.
pub(crate) fn validate(args: &NodeResourcesFitArgs) -> Result<(), String> {
    let strategy = &args.scoring_strategy;
    let mut seen = BTreeMap::new();
    for (i, ResourceSpec { name, weight }) in strategy.resources.iter().enumerate() {
        if !(1..=100).contains(weight) {
            return Err(format!("scoringStrategy.resources[{i}].weight: {weight} is not between 1 and 100"));
        }
        if seen.insert(name, i).is_some() {
            return Err(format!("scoringStrategy.resources[{i}].name: {name:?} is listed twice"));
        }
    }
    if let Some((i, group)) =
        args.ignored_resource_groups.iter().enumerate().find(|(_, group)| group.contains('/'))
    {
        return Err(format!("ignoredResourceGroups[{i}]: resource group name can't contain '/': {group:?}"));
    }
    if strategy.strategy != Strategy::RequestedToCapacityRatio {
        return Ok(());
    }
    let path = "scoringStrategy.requestedToCapacityRatio.shape";
    let shape = strategy.requested_to_capacity_ratio.as_ref().map(|r| r.shape.as_slice()).unwrap_or_default();
    if shape.is_empty() {
        return Err(format!("{path}: at least one point must be specified"));
    }
    for (i, point) in shape.iter().enumerate() {
        if !(0..=100).contains(&point.utilization) {
            return Err(format!("{path}[{i}].utilization: {} is not between 0 and 100", point.utilization));
        }
        if !(0..=10).contains(&point.score) {
            return Err(format!("{path}[{i}].score: {} is not between 0 and 10", point.score));
        }
        if i > 0 && shape[i - 1].utilization >= point.utilization {
            return Err(format!("{path}[{i}].utilization: values must be sorted in increasing order"));
        }
    }
    Ok(())
}
