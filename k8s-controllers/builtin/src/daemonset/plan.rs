//! Computes the nodes that need a pod, the pods to delete, and the status. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::{
            apps::v1::{DaemonSet, DaemonSetStatus, RollingUpdateDaemonSet},
            core::v1::{Node, Pod, PodSpec},
        },
        apimachinery::pkg::util::intstr::IntOrString,
    },
    meta::{
        ObjectExt,
        node::{NodeTerm, is_tolerated},
    },
};

use super::pod::{HASH, is_of_generation, target, tolerations};
use crate::{batch::BURST, deployment::scaled, pods, replicas::count};

/// Changes to make.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes to create a pod for.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that have ended, with their node: to be deleted, with an event.
    pub(super) ended: Vec<(Arc<Pod>, String)>,
    pub(super) status: DaemonSetStatus,
    /// Time until a pod becomes available, or a failed one may be deleted.
    pub(super) after: Option<Duration>,
}

/// What is observed.
pub(super) struct Observed<'a> {
    pub(super) set: &'a DaemonSet,
    /// Hashes of the revisions that hold the current template.
    pub(super) hashes: &'a [String],
    pub(super) nodes: &'a [Arc<Node>],
    /// Pods that the set controls.
    pub(super) pods: &'a [Arc<Pod>],
    /// Returns the time until a failed pod of a node may be deleted.
    pub(super) wait: &'a (dyn Fn(&str) -> Duration + Sync),
    pub(super) now: Timestamp,
}

/// Returns the terms of the required node affinity; `None` without one.
fn terms(spec: &PodSpec) -> Option<Vec<NodeTerm>> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref().map(NodeTerm::of)
}

/// A node's claim to a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fit {
    /// A pod should run there.
    should_run: bool,
    /// A pod that runs there may stay.
    may_stay: bool,
}

fn fit(spec: &PodSpec, terms: Option<&[NodeTerm]>, node: &Node) -> Fit {
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| node.label(k) == Some(v));
    let affine = terms.is_none_or(|terms| terms.iter().any(|term| term.matches(node)));
    let named = spec.node_name.as_deref().is_none_or(|name| name.is_empty() || name == node.name());
    if !selected || !affine || !named {
        return Fit::default();
    }
    let tolerations = tolerations(spec);
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let blocks = |effect: &str| {
        taints.into_iter().flatten().any(|t| t.effect == effect && !is_tolerated(t, &tolerations))
    };
    let evicts = blocks("NoExecute");
    Fit { should_run: !evicts && !blocks("NoSchedule"), may_stay: !evicts }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A node with its pods.
#[derive(Debug, Default)]
struct Place {
    /// False if pods name a node that does not exist.
    exists: bool,
    fit: Fit,
    /// Scheduled pods first, then the oldest.
    pods: Vec<Arc<Pod>>,
}

/// The nodes by name.
type Places = BTreeMap<String, Place>;

impl Observed<'_> {
    pub(super) fn plan(&self) -> Plan {
        let places = self.places();
        let mut plan = Plan { status: self.status(&places), ..Plan::default() };
        self.manage(&places, &mut plan);
        // As upstream, an update goes on when the caches have what was done for its nodes.
        if plan.create.is_empty() && plan.delete.is_empty() && plan.ended.is_empty() && self.rolls() {
            self.roll(&places, &mut plan);
        }
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        let soon = self.pods.iter().filter_map(|pod| pods::available_in(pod, self.min_ready(), self.now));
        plan.after = plan.after.into_iter().chain(soon.filter(|wait| !wait.is_zero())).min();
        plan
    }

    fn places(&self) -> Places {
        let spec = self.set.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
        let terms = terms(&spec);
        let mut places = Places::new();
        for node in self.nodes {
            let fit = fit(&spec, terms.as_deref(), node);
            places.insert(node.name().to_owned(), Place { exists: true, fit, pods: Vec::new() });
        }
        for pod in self.pods {
            // Its node removes a pod that has ended and is being deleted.
            if pods::is_terminal(pod) && pod.is_deleting() {
                continue;
            }
            if let Some(node) = target(pod) {
                places.entry(node.to_owned()).or_default().pods.push(pod.clone());
            }
        }
        for place in places.values_mut() {
            place.pods.sort_by_key(|pod| {
                let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
                (pods::node_name(pod).is_empty(), created, pod.name().to_owned())
            });
        }
        places
    }

    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::available_in(pod, self.min_ready(), self.now) == Some(Duration::ZERO)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.label(HASH).is_some_and(|hash| self.hashes.iter().any(|known| known == hash))
            || is_of_generation(self.set, pod)
    }

    fn rolls(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
    }

    /// Returns a limit of the rolling update for a number of nodes; `None` if it is not set.
    fn limit(
        &self,
        of: impl Fn(&RollingUpdateDaemonSet) -> Option<&IntOrString>,
        desired: usize,
    ) -> Option<usize> {
        let strategy = self.set.spec.as_ref()?.update_strategy.as_ref().filter(|_| self.rolls())?;
        let limit = scaled(of(strategy.rolling_update.as_ref()?)?, number(desired), true)?;
        Some(usize::try_from(limit).unwrap_or(0))
    }

    fn surge(&self, desired: usize) -> usize {
        self.limit(|rolling| rolling.max_surge.as_ref(), desired).unwrap_or(0)
    }

    /// Creates pods where they are missing, and deletes superfluous ones.
    fn manage(&self, places: &Places, plan: &mut Plan) {
        let surges = self.surge(1) > 0;
        for (node, Place { exists, fit, pods: here }) in places {
            let standing = here.iter().filter(|pod| !pod.is_deleting());
            if !exists {
                // They will never be scheduled. Pods that were on the node are the pod garbage collector's.
                plan.delete.extend(standing.filter(|pod| pods::node_name(pod).is_empty()).cloned());
                continue;
            }
            if !fit.may_stay {
                plan.delete.extend(standing.cloned());
                continue;
            }
            if here.is_empty() {
                plan.create.extend(fit.should_run.then(|| node.clone()));
                continue;
            }
            let (mut running, mut failed) = (Vec::new(), Vec::new());
            for pod in standing {
                match pods::phase(pod) {
                    "Failed" => failed.push(pod),
                    "Succeeded" => plan.ended.push((pod.clone(), node.clone())),
                    _ => running.push(pod),
                }
            }
            if let Some(first) = failed.first() {
                // Another failed pod of the node waits for the next round.
                match (self.wait)(node) {
                    Duration::ZERO => plan.ended.push(((*first).clone(), node.clone())),
                    wait => plan.after = plan.after.into_iter().chain([wait]).min(),
                }
            }
            if !surges {
                // Of several pods the first is kept. One that is being deleted must be gone before its
                // successor comes.
                plan.delete.extend(running.into_iter().skip(1).cloned());
            } else if here.iter().all(|pod| pod.is_deleting()) {
                plan.create.extend(fit.should_run.then(|| node.clone()));
            } else {
                self.prune(&running, plan);
            }
        }
    }

    /// Keeps at most two pods of a node whose set surges: an old one that is ready, and a new one that is not
    /// yet available.
    fn prune(&self, running: &[&Arc<Pod>], plan: &mut Plan) {
        if running.len() < 2 {
            return;
        }
        let (mut new, mut old) = (None, None);
        for pod in running {
            let place = if self.is_updated(pod) { &mut new } else { &mut old };
            match place {
                None => *place = Some(*pod),
                Some(_) => plan.delete.push((*pod).clone()),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!pods::is_ready(old) || self.is_available(new))
        {
            plan.delete.push(old.clone());
        }
    }

    /// Takes the next steps of a rolling update.
    fn roll(&self, places: &Places, plan: &mut Plan) {
        let desired = places.values().filter(|place| place.fit.should_run).count();
        let surge = self.surge(desired);
        let unavailable = self.limit(|rolling| rolling.max_unavailable.as_ref(), desired);
        if surge > 0 {
            self.roll_by_surge(places, desired, surge, plan);
        } else {
            self.roll_by_deletion(places, unavailable.unwrap_or(1).max(1), plan);
        }
    }

    /// Returns the pods of a node that are of the current and of another template; `None` if there are
    /// several.
    fn pair<'a>(&self, here: &'a [Arc<Pod>]) -> Option<(Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>)> {
        let (new, old): (Vec<_>, Vec<_>) =
            here.iter().filter(|pod| !pod.is_deleting()).partition(|pod| self.is_updated(pod));
        (new.len() < 2 && old.len() < 2).then(|| (new.first().copied(), old.first().copied()))
    }

    /// Deletes outdated pods while fewer than `most` nodes are without an available pod. One that is not
    /// available takes nothing away.
    fn roll_by_deletion(&self, places: &Places, most: usize, plan: &mut Plan) {
        let (mut unavailable, mut candidates) = (0, Vec::new());
        for Place { fit, pods, .. } in places.values() {
            match self.pair(pods) {
                Some((Some(new), None)) => unavailable += usize::from(!self.is_available(new)),
                Some((None, Some(old))) if self.is_available(old) => candidates.push(old.clone()),
                Some((None, Some(old))) => {
                    plan.delete.push(old.clone());
                    unavailable += 1;
                }
                // A node that is not to have a pod lacks none when its last one goes.
                Some((None, None)) if !fit.should_run => {}
                Some(_) | None => unavailable += 1,
            }
        }
        plan.delete.extend(candidates.into_iter().take(most.saturating_sub(unavailable)));
    }

    /// Creates new pods beside at most `most` available old ones. Old ones go when the new one is available.
    fn roll_by_surge(&self, places: &Places, desired: usize, most: usize, plan: &mut Plan) {
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut leaving) = (Vec::new(), Vec::new());
        for (node, Place { fit, pods, .. }) in places {
            let Some((new, old)) = self.pair(pods) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|pod| self.is_available(pod)));
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) => match (self.is_available(old), fit.should_run) {
                    (false, false) => plan.delete.push(old.clone()),
                    (false, true) => plan.create.push(node.clone()),
                    (true, false) => leaving.push(old.clone()),
                    (true, true) => candidates.push(node.clone()),
                },
                (Some(new), Some(old)) if self.is_available(new) => plan.delete.push(old.clone()),
                (Some(_), Some(_)) => surging += 1,
            }
        }
        plan.create.extend(candidates.into_iter().take(most.saturating_sub(surging)));
        // Those whose node is not to have a pod go when others are there in their place.
        plan.delete.extend(leaving.into_iter().take(available.saturating_sub(desired)));
    }

    fn status(&self, places: &Places) -> DaemonSetStatus {
        let (mut desired, mut current, mut misscheduled) = (0, 0, 0);
        let (mut ready, mut available, mut updated) = (0, 0, 0);
        for Place { fit, pods: here, .. } in places.values().filter(|place| place.exists) {
            if !fit.should_run {
                misscheduled += usize::from(!here.is_empty());
                continue;
            }
            desired += 1;
            let Some(pod) = here.first() else { continue };
            current += 1;
            ready += usize::from(pods::is_ready(pod));
            available += usize::from(self.is_available(pod));
            updated += usize::from(self.is_updated(pod));
        }
        let mut status = self.set.status.clone().unwrap_or_default();
        status.current_number_scheduled = number(current);
        status.desired_number_scheduled = number(desired);
        status.number_misscheduled = number(misscheduled);
        status.number_ready = number(ready);
        count(&mut status.updated_number_scheduled, number(updated));
        count(&mut status.number_available, number(available));
        count(&mut status.number_unavailable, number(desired - available));
        status.observed_generation = self.set.metadata.generation;
        status
    }
}

#[cfg(test)]
mod tests;
