//! Spreading of pods over topology domains.

use std::collections::HashMap;

use crate::{Cycle, Filter, NodeInfo, PodInfo, Reject, Score, plugin::proportional, pod_info::Spread};

/// Pod topology spread constraints: required ones filter, the others score.
#[derive(Clone, Copy, Debug)]
pub struct PodTopologySpread;

/// For each constraint: number of selected pods per domain.
struct Counts(Vec<HashMap<String, i64>>);

fn counts(cx: &Cycle<'_>, pod: &PodInfo, constraints: &[&Spread]) -> Vec<HashMap<String, i64>> {
    let mut all = vec![HashMap::new(); constraints.len()];
    for node in cx.cluster().nodes() {
        for (constraint, domains) in constraints.iter().zip(&mut all) {
            let Some(value) = node.label(&constraint.topology_key) else { continue };
            let counts = (!constraint.honor_affinity || pod.allows_node(&node.node))
                && (!constraint.honor_taints || super::node::untolerated(pod, node).is_none());
            if counts {
                *domains.entry(value.to_owned()).or_default() += selected(node, pod, constraint);
            }
        }
    }
    all
}

fn selected(node: &NodeInfo, pod: &PodInfo, constraint: &Spread) -> i64 {
    let is = |p: &&std::sync::Arc<PodInfo>| {
        p.key.namespace == pod.key.namespace && constraint.selector.matches(p.pod.metadata.labels.as_ref())
    };
    node.pods.iter().filter(is).count().try_into().unwrap_or(i64::MAX)
}

impl Filter for PodTopologySpread {
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let required: Vec<&Spread> = pod.spread.iter().filter(|s| s.required).collect();
        if required.is_empty() {
            return Ok(false);
        }
        let counts = counts(cx, pod, &required);
        cx.put(Counts(counts));
        Ok(true)
    }

    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(Counts(all)) = cx.get::<Counts>() else { return Ok(()) };
        for (constraint, domains) in pod.spread.iter().filter(|s| s.required).zip(all) {
            let Some(value) = node.label(&constraint.topology_key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Reject::never(reason));
            };
            let enough = i64::try_from(domains.len()).unwrap_or(i64::MAX) >= constraint.min_domains;
            let least = if enough { domains.values().copied().min().unwrap_or(0) } else { 0 };
            let itself = i64::from(constraint.selector.matches(pod.pod.metadata.labels.as_ref()));
            let there = domains.get(value).copied().unwrap_or(0);
            if there + itself - least > constraint.max_skew {
                return Err(Reject::full("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }
}

struct Wishes(Vec<HashMap<String, i64>>);

impl Score for PodTopologySpread {
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        let wished: Vec<&Spread> = pod.spread.iter().filter(|s| !s.required).collect();
        if wished.is_empty() {
            return false;
        }
        let counts = counts(cx, pod, &wished);
        cx.put(Wishes(counts));
        true
    }

    fn score(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Wishes(all)) = cx.get::<Wishes>() else { return 0 };
        let there = |(constraint, domains): (&Spread, &HashMap<String, i64>)| {
            // A node without the topology key scores like the fullest domain.
            match node.label(&constraint.topology_key) {
                Some(value) => domains.get(value).copied().unwrap_or(0),
                None => domains.values().copied().max().unwrap_or(0) + 1,
            }
        };
        pod.spread.iter().filter(|s| !s.required).zip(all).map(there).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        proportional(scores, true);
    }
}

/// Spreads the pods of one controller over nodes, unless they have spread constraints of their own.
#[derive(Clone, Copy, Debug)]
pub struct GroupSpread;

impl Score for GroupSpread {
    fn prepare(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        pod.group.is_some() && pod.spread.is_empty()
    }

    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        pod.group.map_or(0, |group| node.in_group(group))
    }

    fn normalize(&self, scores: &mut [i64]) {
        proportional(scores, true);
    }
}
