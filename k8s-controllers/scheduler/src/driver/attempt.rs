//! An attempt to schedule a pod: the decision, and what follows from it.

use std::sync::Arc;

use k8s_controllers::{EventType, involved};
use k8s_core::{api::api::core::v1::Pod, client::Patch, meta::ObjectExt};
use tokio::time::Instant;
use tracing::debug;

use super::{
    Report, Scheduler,
    binding::{self, Bound, Failed},
    node_of, nominated_node, report,
};
use crate::{
    Event, Nomination, Placement, PodInfo, WakeOn,
    decide::{Decision, Unschedulable},
    extender,
    failures::{Failure, Reason},
    metrics::Outcome,
    queue::{Attempt, Refusal},
};

impl Scheduler {
    pub(super) async fn try_one(&mut self, attempt: Attempt) {
        let (pod, begun) = (attempt.pod.clone(), Instant::now());
        let Some(at) = self.profile_of(&pod.pod).and_then(|p| self.by_name.get(&p.profile.name).copied())
        else {
            return;
        };
        let shared = &self.profiles[at];
        let (extenders, cluster) = (&self.extenders, &self.cluster);
        let (kept, rng) = (&mut self.kept[at], &mut self.rng);
        match extender::decide(&shared.profile, extenders, cluster, &pod, kept, rng, &mut ()).await {
            Ok(Decision::Fits(fit)) => {
                debug!(pod = %pod.key, node = fit.node, evaluated = fit.evaluated, feasible = fit.feasible, "placed");
                self.failures.remove(pod.uid());
                self.place(at, attempt, fit.node, begun);
            }
            Ok(Decision::Nowhere(why)) => {
                shared.metrics.attempted(Outcome::Unschedulable, begun.elapsed(), attempt.failures);
                self.nowhere(at, attempt, why).await;
            }
            Err(error) => {
                debug!(pod = %pod.key, %error, "no decision");
                shared.metrics.attempted(Outcome::Error, begun.elapsed(), attempt.failures);
                self.retry(attempt, Reason::SchedulerError, error.to_string());
            }
        }
    }

    /// Reports a failed attempt and takes the nomination away. The pod is tried again after a back-off.
    fn retry(&mut self, attempt: Attempt, reason: Reason, message: String) {
        let failure = Failure { pod: attempt.pod.clone(), reason, message };
        let kept = self.cluster.withdraw(failure.pod.uid());
        if kept.is_some() || nominated_node(&failure.pod.pod).is_some() {
            if let Some(node) = kept {
                self.freed(&node);
            }
            self.failures.remove(failure.pod.uid());
            self.tell(&failure, Some(""));
        } else {
            self.failures.add(failure);
        }
        self.queue.retry(attempt, Instant::now());
    }

    /// Reserves the node for the pod and binds the pod in a task.
    fn place(&mut self, at: usize, attempt: Attempt, node: String, begun: Instant) {
        let (shared, pod) = (&self.profiles[at], attempt.pod.clone());
        let reserving = || shared.rows.iter().filter_map(|row| Some((row, row.reserve.as_ref()?)));
        let there = self.cluster.node(&node);
        let refused = there.and_then(|there| {
            reserving().find_map(|(row, plugin)| {
                let reject = plugin.reserve(&self.cluster, &pod, there).err()?;
                Some(Failed::refused(&row.name, &reject))
            })
        });
        if refused.is_some() {
            return self.bound(Bound { attempt, node, begun, failure: refused });
        }
        let (rows, extenders) = (shared.rows.clone(), self.extenders.clone());
        let (recorder, report) = (shared.recorder.clone(), self.report.clone());
        self.cluster.assume(pod.clone(), &node);
        let placement = Placement { client: self.client.clone(), pod, node };
        let shutdown = self.environment.shutdown.clone();
        tokio::spawn(async move {
            let failure = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                result = binding::bind(&rows, &extenders, &placement, &recorder) => result.err(),
            };
            // The receiver is gone only if the scheduler has ended.
            let _ =
                report.send(Report::Bound(Box::new(Bound { attempt, node: placement.node, begun, failure })));
        });
    }

    pub(super) fn bound(&mut self, Bound { mut attempt, node, begun, failure }: Bound) {
        let pod = attempt.pod.clone();
        let Some(shared) = self.profile_of(&pod.pod) else { return };
        let outcome = match failure.as_ref().map(Failed::reason) {
            None => Outcome::Scheduled,
            Some(Reason::Unschedulable) => Outcome::Unschedulable,
            Some(Reason::SchedulerError) => Outcome::Error,
        };
        shared.metrics.attempted(outcome, begun.elapsed(), attempt.failures);
        let Some(failure) = failure else { return };
        for plugin in shared.rows.iter().rev().filter_map(|row| row.reserve.as_ref()) {
            plugin.unreserve(&pod, &node);
        }
        debug!(pod = %pod.key, node, error = ?failure, "not bound");
        let live = self.pods.by_key(&pod.key).filter(|live| live.uid() == pod.uid());
        if self.cluster.forget(pod.uid()) || live.is_none() {
            // The plugins' reservations for the pod end only now, also if the pod left the node before.
            self.wake(&Event::pod(WakeOn::POD_GONE, &pod, None));
        }
        // An extender may have bound the pod, and its answer came too late.
        if let Some(live) = live.filter(|live| node_of(live).is_none() && !live.is_deleting()) {
            // Changes of a pod that is being bound are not taken in.
            attempt.pod = Arc::new(PodInfo::new(live));
            self.retry(attempt, failure.reason(), failure.to_string());
        }
    }

    async fn nowhere(&mut self, at: usize, attempt: Attempt, why: Unschedulable) {
        let pod = attempt.pod.clone();
        let shared = &self.profiles[at];
        let (reason, mut message) = (Reason::Unschedulable, why.message.clone());
        let refusal = Refusal { by: why.refused_by, wakes_on: why.wakes_on };
        let mut nomination = shared.profile.post_filter(&self.cluster, &pod, &why, &mut self.kept[at]);
        if let Nomination::Candidates(candidates) = nomination {
            nomination = self.extenders.preempt(&self.cluster, &pod, candidates).await;
        }
        match nomination {
            // The extenders have chosen.
            Nomination::Candidates(_) => {}
            Nomination::Wait(why) => append(&mut message, &why),
            Nomination::No(why) => {
                append(&mut message, &why);
                self.release(at, &pod);
                let kept = self.cluster.withdraw(pod.uid());
                if kept.is_some() || nominated_node(&pod.pod).is_some() {
                    // Nothing makes room there any more.
                    if let Some(node) = kept {
                        self.freed(&node);
                    }
                    self.failures.remove(pod.uid());
                    self.tell(&Failure { pod, reason, message }, Some(""));
                    return self.queue.wait(attempt, refusal, Instant::now());
                }
            }
            Nomination::Preempt { node, victims } => {
                shared.metrics.preempted(victims.len());
                self.cluster.nominate(&pod, Some(&node));
                self.evict(at, &pod, &node, victims);
                // Written at once: `nominatedNodeName` must reserve the freed room for this pod.
                self.failures.remove(pod.uid());
                self.tell(&Failure { pod, reason, message }, Some(&node));
                return self.queue.wait(attempt, refusal, Instant::now());
            }
        }
        self.failures.add(Failure { pod, reason, message });
        self.queue.wait(attempt, refusal, Instant::now());
    }

    /// Sends the requests of plugins that give up what keeps the pod from other nodes.
    fn release(&self, at: usize, pod: &Arc<PodInfo>) {
        for plugin in self.profiles[at].rows.iter().filter_map(|row| row.post_filter.as_ref()) {
            let Some(request) = plugin.release(&self.cluster, pod, &self.client) else { continue };
            let shutdown = self.environment.shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = request => {}
                }
            });
        }
    }

    fn evict(&self, at: usize, pod: &Arc<PodInfo>, node: &str, victims: Vec<Arc<PodInfo>>) {
        debug!(pod = %pod.key, node, victims = victims.len(), "preempting");
        let shared = &self.profiles[at];
        let (client, recorder, report) = (self.client.clone(), shared.recorder.clone(), self.report.clone());
        let (clock, name) = (self.environment.clock.clone(), shared.profile.name.clone());
        let (pod, node) = (pod.clone(), node.to_owned());
        tokio::spawn(async move {
            if report::evict(&client, &recorder, &clock, &name, &pod, &node, &victims).await.is_err() {
                // The receiver is gone only if the scheduler has ended.
                let _ = report.send(Report::NotEvicted(pod.uid().to_owned()));
            }
        });
    }

    /// Reports an unschedulable pod by an event, and in its status unless that says so already.
    pub(super) fn tell(&self, failure: &Failure, nominated: Option<&str>) {
        let pod = &failure.pod;
        let Some(shared) = self.profile_of(&pod.pod) else { return };
        let message = failure.message.clone();
        shared.recorder.event(involved(&*pod.pod), EventType::Warning, "FailedScheduling", message);
        let Some(patch) = report::unschedulable(failure, nominated, &self.environment.clock) else { return };
        let (api, name) = (self.client.namespaced::<Pod>(&pod.key.namespace), pod.key.name.clone());
        tokio::spawn(async move {
            if let Err(e) = api.patch_status(&name, &Patch::Strategic(patch)).await {
                debug!(pod = name, error = %e, "condition not written");
            }
        });
    }
}

/// Appends a plugin's message, if it has one, to that of a failure.
fn append(message: &mut String, reason: &str) {
    if !reason.is_empty() {
        message.push(' ');
        message.push_str(reason);
    }
}
