//! The built-in plugins, with upstream's names, weights and messages: one row each of `ROWS`.

mod affinity;
mod dynamic_resources;
mod node;
pub(crate) mod preemption;
mod queue;
mod resources;
mod spread;
mod volume;

pub use affinity::InterPodAffinity;
pub use dynamic_resources::DynamicResources;
pub use node::{ImageLocality, NodeAffinity, NodeName, NodePorts, NodeUnschedulable, TaintToleration};
pub use preemption::DefaultPreemption;
pub use queue::{DefaultBinder, PrioritySort, SchedulingGates};
pub use resources::{NodeResourcesBalancedAllocation, NodeResourcesFit};
pub use spread::PodTopologySpread;
pub use volume::{NodeVolumeLimits, VolumeBinding, VolumeRestrictions, VolumeZone};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Plugin, Points,
    args::{DefaultPreemptionArgs, InterPodAffinityArgs, PodTopologySpreadArgs},
};

/// A built-in plugin: its name, and its construction from arguments.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Makes the plugin. The error is the path of the field with the reason.
    pub(crate) make: fn(&Value) -> Result<Points, String>,
}

const fn row(name: &'static str, make: fn(&Value) -> Result<Points, String>) -> Row {
    Row { name, make }
}

/// The built-in plugins in the order of their filters: the cheapest first.
pub(crate) static ROWS: [Row; 19] = [
    row("SchedulingGates", |v| plain(v, SchedulingGates)),
    row("PrioritySort", |v| plain(v, PrioritySort)),
    row("NodeUnschedulable", |v| plain(v, NodeUnschedulable)),
    row("NodeName", |v| plain(v, NodeName)),
    row("TaintToleration", |v| plain(v, TaintToleration)),
    row("NodeAffinity", |v| Ok(NodeAffinity::new(args(v)?).points())),
    row("NodePorts", |v| plain(v, NodePorts)),
    row("NodeResourcesFit", |v| {
        let args = args(v)?;
        resources::validate(&args)?;
        Ok(NodeResourcesFit::new(args).points())
    }),
    row("VolumeRestrictions", |v| plain(v, VolumeRestrictions)),
    row("NodeVolumeLimits", |v| plain(v, NodeVolumeLimits)),
    row("VolumeBinding", |v| Ok(VolumeBinding::new(args(v)?).points())),
    row("VolumeZone", |v| plain(v, VolumeZone)),
    row("DynamicResources", |v| plain(v, DynamicResources::default())),
    row("PodTopologySpread", |v| {
        let args: PodTopologySpreadArgs = args(v)?;
        match args.defaulting_type.as_str() {
            "System" if !args.default_constraints.is_empty() => {
                return Err(
                    "defaultingType: when .defaultConstraints are specified, it must be \"List\"".into()
                );
            }
            "System" | "List" => {}
            other => return Err(format!("defaultingType: {other:?} is neither \"System\" nor \"List\"")),
        }
        if let Some(at) = args.default_constraints.iter().position(|c| c.label_selector.is_some()) {
            let why = "constraint must not define a selector, as they deduced for each pod";
            return Err(format!("defaultConstraints[{at}].labelSelector: {why}"));
        }
        Ok(PodTopologySpread::new(args).points())
    }),
    row("InterPodAffinity", |v| {
        let args: InterPodAffinityArgs = args(v)?;
        if !(0..=100).contains(&args.hard_pod_affinity_weight) {
            return Err("hardPodAffinityWeight: not in the range 0-100".into());
        }
        Ok(InterPodAffinity::new(args).points())
    }),
    row("DefaultPreemption", |v| {
        let args: DefaultPreemptionArgs = args(v)?;
        if args.min_candidate_nodes_percentage > 100 {
            return Err("minCandidateNodesPercentage: not in the range 0-100".into());
        }
        if args.min_candidate_nodes_percentage == 0 && args.min_candidate_nodes_absolute == 0 {
            return Err(
                "minCandidateNodesAbsolute: cannot be zero together with minCandidateNodesPercentage".into(),
            );
        }
        Ok(DefaultPreemption::new(args).points())
    }),
    row("NodeResourcesBalancedAllocation", |v| {
        let args = args(v)?;
        resources::validate_balanced(&args)?;
        Ok(NodeResourcesBalancedAllocation::new(&args).points())
    }),
    row("ImageLocality", |v| plain(v, ImageLocality)),
    row("DefaultBinder", |v| plain(v, DefaultBinder)),
];

fn args<T: DeserializeOwned + Default>(value: &Value) -> Result<T, String> {
    match value {
        Value::Null => Ok(T::default()),
        value => T::deserialize(value).map_err(|e| e.to_string()),
    }
}

fn plain(value: &Value, plugin: impl Plugin) -> Result<Points, String> {
    match value {
        Value::Null => Ok(plugin.points()),
        _ => Err("the plugin has no arguments".into()),
    }
}

/// Returns the built-in plugins with default arguments.
#[cfg(test)]
pub(crate) fn all() -> Vec<Points> {
    ROWS.iter().filter_map(|row| (row.make)(&Value::Null).ok()).collect()
}

/// Replaces each score by a function of it. `least` and `most` are the smallest and the largest: if there are
/// few values between them, each is computed once.
fn replace(scores: &mut [i64], (least, most): (i64, i64), new: impl Fn(i64) -> i64) {
    let values = usize::try_from(most.saturating_sub(least)).unwrap_or(usize::MAX);
    if values >= scores.len() {
        return scores.iter_mut().for_each(|score| *score = new(*score));
    }
    let table: Vec<i64> = (least..=most).map(new).collect();
    for score in scores {
        let at = usize::try_from(*score - least).unwrap_or(usize::MAX);
        *score = table.get(at).copied().unwrap_or(0);
    }
}

fn limits(scores: &[i64]) -> (i64, i64) {
    (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0))
}

/// Scales to 0 to 100 in proportion to the largest; `reverse` gives the smallest score 100.
fn proportional(scores: &mut [i64], reverse: bool) {
    let (least, most) = limits(scores);
    replace(scores, (least, most), |score| {
        let part = if most <= 0 { 0 } else { score.max(0) * 100 / most };
        if reverse { 100 - part } else { part }
    });
}

/// Scales linearly: the smallest becomes 0, the largest 100.
fn stretched(scores: &mut [i64]) {
    let (least, most) = limits(scores);
    replace(
        scores,
        (least, most),
        |score| {
            if most == least { 0 } else { (score - least) * 100 / (most - least) }
        },
    );
}

#[cfg(test)]
mod tests;
