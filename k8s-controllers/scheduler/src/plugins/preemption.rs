//! Preemption: selects pods of lower priority to delete so that a pod fits.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use k8s_core::{
    api::{
        api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::{LabelSelector, ObjectExt},
};

use crate::{
    Candidate, NodeInfo, Nomination, Plugin, PodInfo, Points, PostFilter, Search, args::DefaultPreemptionArgs,
};

/// Preempts pods of lower priority: as few as possible, of the lowest priority, and without violating
/// disruption budgets where it can.
#[derive(Clone, Debug, Default)]
pub struct DefaultPreemption {
    args: DefaultPreemptionArgs,
}

impl DefaultPreemption {
    pub(crate) fn new(args: DefaultPreemptionArgs) -> Self {
        DefaultPreemption { args }
    }
}

/// Returns the reason for which a pod may not preempt others.
fn ineligible(search: &dyn Search) -> Option<&'static str> {
    let pod = search.pod();
    if pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    // Victims of an earlier preemption may still be leaving.
    let nominated = pod.pod.status.as_ref()?.nominated_node_name.as_ref().filter(|n| !n.is_empty())?;
    let node = search.cluster().node(nominated).filter(|_| search.resolvable().contains(nominated))?;
    let leaving = |p: &Arc<PodInfo>| p.priority < pod.priority && is_preempted(&p.pod);
    node.pods.iter().any(leaving).then_some("not eligible due to a terminating pod on the nominated node.")
}

fn is_preempted(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut target = conditions.filter(|c| c.type_ == "DisruptionTarget");
    pod.is_deleting()
        && target.any(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler"))
}

impl PostFilter for DefaultPreemption {
    fn post_filter(&self, search: &mut dyn Search) -> Nomination {
        let total = search.cluster().nodes().len();
        if total == 0 {
            return Nomination::No(String::new());
        }
        if let Some(reason) = ineligible(search) {
            return Nomination::Wait(format!("preemption: {reason}"));
        }
        let budgets: Vec<Arc<PodDisruptionBudget>> =
            search.cluster().lists().map(|lists| lists.budgets.list()).unwrap_or_default();
        let budgets = Budgets::new(&budgets);
        let nodes = search.resolvable_at();
        let share = nodes.len() * self.args.min_candidate_nodes_percentage / 100;
        let most = share.max(self.args.min_candidate_nodes_absolute);
        let (mut candidates, mut without, mut harmless) = (Vec::new(), 0, 0);
        for at in nodes {
            let known = search.recall(at);
            let outcome = known.unwrap_or_else(|| {
                let outcome = victims(search, at, &budgets);
                search.remember(at, &outcome);
                outcome
            });
            match outcome {
                Some(candidate) => {
                    harmless += usize::from(candidate.violating == 0);
                    candidates.push(candidate);
                }
                None => without += 1,
            }
            // As upstream: enough nodes are known, and one of them violates no budget.
            if harmless > 0 && candidates.len() >= most {
                break;
            }
        }
        if !candidates.is_empty() {
            return Nomination::Candidates(candidates);
        }
        let counts = [
            (without, "No preemption victims found for incoming pod"),
            (total - without, "Preemption is not helpful for scheduling"),
        ];
        let parts = counts.iter().filter(|(number, _)| *number > 0);
        let mut parts: Vec<String> = parts.map(|(number, reason)| format!("{number} {reason}")).collect();
        parts.sort();
        Nomination::No(format!("preemption: 0/{total} nodes are available: {}.", parts.join(", ")))
    }
}

/// Returns the nomination of the cheapest candidate. `None`: there is none.
pub(crate) fn cheapest(candidates: Vec<Candidate>) -> Option<Nomination> {
    let Candidate { node, victims, .. } = candidates.iter().min_by_key(|candidate| cost(candidate))?;
    Some(Nomination::Preempt { node: node.clone(), victims: victims.clone() })
}

fn start(pod: &PodInfo) -> Option<&Time> {
    pod.pod.status.as_ref()?.start_time.as_ref()
}

/// Cost of a preemption, compared in this order: violated budgets, highest priority of a victim, sum of the
/// priorities, number of victims, age of the oldest victim of the highest priority.
fn cost(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Option<&Time>>, &str) {
    let victims = &candidate.victims;
    let highest = victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    // Makes all priorities positive, so that fewer victims cost less.
    let sum = victims.iter().map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1).sum();
    let oldest = victims.iter().filter(|v| v.priority == highest).filter_map(|v| start(v)).min();
    (candidate.violating, highest, sum, victims.len(), Reverse(oldest), &candidate.node)
}

/// Orders pods by importance: higher priority first, then the older one.
pub(crate) fn importance(pod: &PodInfo) -> (Reverse<i32>, bool, Option<Time>, String) {
    let started = start(pod);
    (Reverse(pod.priority), started.is_none(), started.cloned(), pod.key.to_string())
}

/// Computes the victims on a node: all pods of lower priority, minus those that can stay. Pods that a budget
/// protects are spared first, then more important ones.
fn victims(search: &mut dyn Search, at: usize, budgets: &Budgets) -> Option<Candidate> {
    let priority = search.pod().priority;
    // Without a pod of lower priority nothing can help.
    if search.cluster().columns().lowest.get(at).is_none_or(|lowest| *lowest >= priority) {
        return None;
    }
    let node: &NodeInfo = search.cluster().nodes().get(at)?;
    let name = node.name().to_owned();
    let mut lower: Vec<Arc<PodInfo>> = node.pods.iter().filter(|p| p.priority < priority).cloned().collect();
    if !search.visit(&name) {
        return None;
    }
    for victim in &lower {
        search.remove(victim);
    }
    if !search.fits() {
        return None;
    }
    lower.sort_by_cached_key(|p| importance(p));
    let (protected, free) = budgets.split(lower);
    let mut spare = |all: Vec<Arc<PodInfo>>| -> Vec<Arc<PodInfo>> {
        all.into_iter()
            .filter(|victim| {
                search.restore(victim);
                let spared = search.fits();
                if !spared {
                    search.remove(victim);
                }
                !spared
            })
            .collect()
    };
    let mut victims = spare(protected);
    let violating = victims.len();
    victims.extend(spare(free));
    victims.sort_by_cached_key(|p| importance(p));
    // The filters may have passed in the meantime; there is nothing to preempt then.
    (!victims.is_empty()).then_some(Candidate { node: name, victims, violating })
}

/// Disruption budgets with the disruptions that each still allows.
struct Budgets<'a>(Vec<(&'a PodDisruptionBudget, LabelSelector, i32)>);

impl<'a> Budgets<'a> {
    fn new(all: &'a [Arc<PodDisruptionBudget>]) -> Self {
        let parse = |budget: &'a Arc<PodDisruptionBudget>| {
            let selector = LabelSelector::from_api(budget.spec.as_ref()?.selector.as_ref()?).ok()?;
            let allowed = budget.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0);
            (!selector.is_everything()).then_some((&**budget, selector, allowed))
        };
        Budgets(all.iter().filter_map(parse).collect())
    }

    /// Splits pods, most important first, into those whose deletion violates a budget and the others.
    fn split(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let mut left: BTreeMap<usize, i32> =
            self.0.iter().map(|(.., allowed)| *allowed).enumerate().collect();
        pods.into_iter().partition(|pod| {
            let mut violates = false;
            for (at, (budget, selector, _)) in self.0.iter().enumerate() {
                let status = budget.status.as_ref();
                let disrupted = status.and_then(|s| s.disrupted_pods.as_ref());
                // The API server has already counted the deletion of such a pod.
                let counted = disrupted.is_some_and(|all| all.contains_key(&pod.key.name));
                if budget.namespace() == pod.key.namespace
                    && pod.pod.metadata.labels.as_ref().is_some_and(|l| !l.is_empty())
                    && selector.matches(pod.pod.metadata.labels.as_ref())
                    && !counted
                {
                    let allowed = left.entry(at).or_default();
                    *allowed -= 1;
                    violates |= *allowed < 0;
                }
            }
            violates
        })
    }
}

impl Plugin for DefaultPreemption {
    fn points(self) -> Points {
        Points::of(self).post_filters().points()
    }
}
