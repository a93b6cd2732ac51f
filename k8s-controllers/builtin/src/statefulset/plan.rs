//! Computes the steps of one round, and the status. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::{
            apps::v1::{StatefulSet, StatefulSetStatus},
            core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec},
        },
        apimachinery::pkg::util::intstr::IntOrString,
    },
    meta::ObjectExt,
};

use super::{
    claims::{self, Owners, Retention},
    identity::{self, POD_INDEX, POD_NAME, REVISION, claim_name, claim_templates, ordinal},
};
use crate::{batch::BURST, deployment::scaled, pods};

/// A template and the name of its revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version<'a> {
    pub(super) name: &'a str,
    pub(super) template: &'a PodTemplateSpec,
}

/// A claim that a pod needs.
#[derive(Debug)]
pub(super) enum Claim {
    /// It is missing.
    Create(Box<PersistentVolumeClaim>),
    /// Its owners are not those of the policy.
    Own(Arc<PersistentVolumeClaim>, Owners),
    /// It is being deleted, and must be gone first. Holds its name.
    Leaving(String),
}

/// A step.
#[derive(Debug)]
pub(super) enum Step {
    /// Make a pod, after its claims.
    Create(Box<Pod>, Vec<Claim>),
    /// Write claims of a pod that exists.
    Claims(Arc<Pod>, Vec<Claim>),
    /// Set the labels of a pod's identity.
    Identify(Arc<Pod>, i32),
    Delete(Arc<Pod>),
}

/// A round: steps in their order, and the status after them.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: StatefulSetStatus,
    /// Time until a pod that is ready becomes available.
    pub(super) after: Option<Duration>,
}

/// What is observed.
pub(super) struct Observed<'a> {
    pub(super) set: &'a StatefulSet,
    /// Pods that the set controls.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) current: Version<'a>,
    pub(super) update: Version<'a>,
    /// Finds a claim by its name.
    pub(super) claim: &'a (dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>> + Sync),
    pub(super) now: Timestamp,
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Observed<'_> {
    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn first(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref()?.start).unwrap_or(0)
    }

    fn replicas(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
    }

    /// The last wanted ordinal; before the first one if none is wanted.
    fn last(&self) -> i32 {
        self.first().saturating_sub(1).saturating_add(self.replicas())
    }

    fn is_scaled_away(&self, ordinal: i32) -> bool {
        let first = i64::from(self.first());
        !(first..first + i64::from(self.replicas())).contains(&i64::from(ordinal))
    }

    fn is_ready(pod: &Pod) -> bool {
        pods::phase(pod) == "Running" && pods::is_ready(pod)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::available_in(pod, self.min_ready(), self.now) == Some(Duration::ZERO)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        pod.is_deleting() || !self.is_available(pod)
    }

    /// Returns the claims that a pod lacks or that have wrong owners.
    fn claims(&self, pod: &Pod, ordinal: i32, create: bool) -> Vec<Claim> {
        let mut all = Vec::new();
        for template in claim_templates(self.set) {
            match (self.claim)(&claim_name(self.set, template, ordinal)) {
                None if create => {
                    all.push(Claim::Create(Box::new(claims::build(self.set, template, ordinal))));
                }
                None => {}
                Some(claim) if create && claim.is_deleting() => {
                    all.push(Claim::Leaving(claim.name().to_owned()));
                }
                Some(claim) => {
                    let owners = claims::owners(self.set, pod, &claim, self.is_scaled_away(ordinal));
                    all.extend(owners.map(|owners| Claim::Own(claim, owners)));
                }
            }
        }
        all
    }

    /// Returns true if a claim of a pod belongs to its predecessor, with which it will be deleted.
    fn has_stale_claim(&self, pod: &Pod, ordinal: i32) -> bool {
        Retention::of(self.set).with_pod
            && claim_templates(self.set).iter().any(|template| {
                let claim = (self.claim)(&claim_name(self.set, template, ordinal));
                claim.is_some_and(|claim| claims::is_stale(&claim, pod))
            })
    }

    /// Builds the pod with an ordinal, of the revision that it should have.
    fn build(&self, ordinal: i32) -> Pod {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolls = strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate";
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let kept = match rolling {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None if rolls => self.set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0),
            None => 0,
        };
        let old = i64::from(ordinal) < i64::from(self.first()) + i64::from(kept);
        let version = if old { self.current } else { self.update };
        identity::build(self.set, version.template, version.name, ordinal)
    }

    /// Computes the round.
    pub(super) fn plan(&self) -> Plan {
        let mut plan = Plan { status: self.status(), ..Plan::default() };
        let mut replicas = BTreeMap::<i32, &Arc<Pod>>::new();
        let mut condemned: Vec<(i32, &Arc<Pod>)> = Vec::new();
        for pod in self.pods {
            let Some(ordinal) = ordinal(self.set, pod) else { continue };
            if self.is_scaled_away(ordinal) {
                condemned.push((ordinal, pod));
            } else {
                replicas.insert(ordinal, pod);
            }
            let wait = pods::available_in(pod, self.min_ready(), self.now).filter(|wait| !wait.is_zero());
            plan.after = plan.after.into_iter().chain(wait).min();
        }
        condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        if !self.set.is_deleting() && self.scale(&mut plan, &replicas, &condemned) {
            self.update(&mut plan, &replicas);
        }
        self.complete(&mut plan.status);
        plan
    }

    /// Adds the steps towards the wanted pods. Returns false if they must be awaited before an update.
    fn scale(
        &self,
        plan: &mut Plan,
        replicas: &BTreeMap<i32, &Arc<Pod>>,
        condemned: &[(i32, &Arc<Pod>)],
    ) -> bool {
        let policy = self.set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref());
        let ordered = policy != Some("Parallel");
        // However many are wanted, a round is bounded: the next one goes on.
        for ordinal in self.first()..=self.last() {
            let settled = self.settle(plan, replicas.get(&ordinal).copied(), ordinal, ordered);
            if (!settled && ordered) || plan.steps.len() >= BURST {
                return false;
            }
        }
        for (ordinal, pod) in condemned {
            let claims = self.claims(pod, *ordinal, false);
            if !claims.is_empty() {
                plan.steps.push(Step::Claims((*pod).clone(), claims));
            }
        }
        let ailing = condemned.iter().rev().find(|(_, pod)| self.is_unavailable(pod)).map(|(_, pod)| *pod);
        for (_, pod) in condemned {
            if pod.is_deleting() {
                if ordered {
                    return false;
                }
                continue;
            }
            // Only the lowest of those that ail may go while it does.
            let healthy = Self::is_ready(pod) && self.is_available(pod);
            if ordered && !healthy && ailing.is_some_and(|ailing| !Arc::ptr_eq(ailing, pod)) {
                return false;
            }
            plan.steps.push(Step::Delete((*pod).clone()));
            if ordered {
                return false;
            }
        }
        true
    }

    /// Adds the steps for a wanted pod. Returns true if it is there and available.
    fn settle(&self, plan: &mut Plan, pod: Option<&Arc<Pod>>, ordinal: i32, ordered: bool) -> bool {
        let Some(pod) = pod else {
            let made = self.build(ordinal);
            if !self.has_stale_claim(&made, ordinal) {
                let claims = self.claims(&made, ordinal, true);
                plan.steps.push(Step::Create(Box::new(made), claims));
            }
            return false;
        };
        if pods::is_terminal(pod) {
            if !pod.is_deleting() {
                plan.steps.push(Step::Delete(pod.clone()));
            }
            return false;
        }
        let pending = matches!(pods::phase(pod), "" | "Pending");
        let waits = pod.is_deleting() || !Self::is_ready(pod) || !self.is_available(pod);
        // A pod that is not ready yet may lack a claim.
        if pending || !(waits && ordered) {
            let claims = self.claims(pod, ordinal, pending);
            if !claims.is_empty() {
                plan.steps.push(Step::Claims(pod.clone(), claims));
            }
        }
        if waits && ordered {
            return false;
        }
        let label = |key: &str, want: &str| pod.label(key) == Some(want);
        let named = label(POD_NAME, pod.name()) && label(POD_INDEX, &ordinal.to_string());
        if !named && !pod.is_deleting() {
            plan.steps.push(Step::Identify(pod.clone(), ordinal));
        }
        true
    }

    /// Adds the deletions of a rolling update, highest ordinal first.
    fn update(&self, plan: &mut Plan, replicas: &BTreeMap<i32, &Arc<Pod>>) {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
            return;
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let partition = rolling.and_then(|r| r.partition).unwrap_or(0);
        let most = rolling.and_then(|r| r.max_unavailable.clone()).unwrap_or(IntOrString::Int(1));
        let most = scaled(&most, self.replicas(), false).unwrap_or(1).max(1);
        let available = number(replicas.values().filter(|pod| !self.is_unavailable(pod)).count());
        let budget = usize::try_from(most.saturating_sub(self.replicas() - available)).unwrap_or(0);
        let updated = replicas.range(self.first().saturating_add(partition)..);
        let outdated = updated.rev().map(|(_, pod)| *pod);
        let outdated =
            outdated.filter(|pod| !pod.is_deleting() && pod.label(REVISION) != Some(self.update.name));
        for pod in outdated.take(budget) {
            plan.steps.push(Step::Delete((*pod).clone()));
            plan.status.current_replicas = plan.status.current_replicas.map(|n| (n - 1).max(0));
        }
    }

    /// Returns the status as the pods are.
    fn status(&self) -> StatefulSetStatus {
        let own = || self.pods.iter().filter(|pod| ordinal(self.set, pod).is_some());
        let of = |version: Version<'_>| {
            own().filter(|pod| !pod.is_deleting() && pod.label(REVISION) == Some(version.name)).count()
        };
        let ready = || own().filter(|pod| Self::is_ready(pod));
        StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas: number(own().count()),
            ready_replicas: Some(number(ready().count())),
            available_replicas: Some(number(ready().filter(|pod| self.is_available(pod)).count())),
            current_replicas: Some(number(of(self.current))),
            updated_replicas: Some(number(of(self.update))),
            current_revision: Some(self.current.name.to_owned()),
            update_revision: Some(self.update.name.to_owned()),
            collision_count: None,
            conditions: self.set.status.as_ref().and_then(|status| status.conditions.clone()),
        }
    }

    /// Notes the end of a rolling update: the update's revision becomes the current one.
    fn complete(&self, status: &mut StatefulSetStatus) {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolls = strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate";
        let all = Some(self.replicas());
        if rolls
            && status.updated_replicas == all
            && status.ready_replicas == all
            && Some(status.replicas) == all
        {
            status.current_replicas = status.updated_replicas;
            status.current_revision = status.update_revision.clone();
        }
    }
}

#[cfg(test)]
mod tests;
