//! Changes of the cluster: they update the scheduler's view and the queue, and wake pods.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_core::{
    api::api::core::v1::{Node, Pod},
    cache::Change,
    meta::ObjectExt,
};
use tokio::time::Instant;
use tracing::debug;

use super::{Input, Report, Scheduler, Shared, is_terminal, node_of, nominated_node};
use crate::{Cluster, Event, PodInfo, WakeOn, queue::Queue};

/// Returns the kinds of an update of a node.
fn node_changes(old: &Node, new: &Node) -> WakeOn {
    let mut what = WakeOn::NOTHING;
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    if allocatable(old) != allocatable(new) {
        what = what.or(WakeOn::NODE_ALLOCATABLE);
    }
    if old.metadata.labels != new.metadata.labels {
        what = what.or(WakeOn::NODE_LABELS);
    }
    if old.spec != new.spec {
        what = what.or(WakeOn::NODE_TAINTS);
    }
    what
}

impl Scheduler {
    /// Wakes the pods that a change may help, as the plugins that refused them say.
    pub(super) fn wake(&mut self, event: &Event<'_>) {
        wake(&mut self.queue, &self.profiles, &self.by_name, &self.cluster, event);
    }

    pub(super) fn take_in(&mut self, input: Input) {
        match input {
            Input::Pod(Change::Resync) | Input::Node(Change::Resync) => self.resync(),
            Input::Pod(Change::Added(pod)) | Input::Pod(Change::Modified(_, pod)) => self.pod_changed(&pod),
            Input::Pod(Change::Deleted(pod)) => self.pod_gone(pod.uid()),
            Input::Node(Change::Added(node)) => self.node_changed(WakeOn::NODE_ADDED, None, node),
            Input::Node(Change::Modified(old, new)) => {
                let what = node_changes(&old, &new);
                self.node_changed(what, Some(&old), new);
            }
            Input::Node(Change::Deleted(node)) => {
                self.cluster.remove_node(node.name());
                // One topology domain less can make a spread constraint satisfiable.
                self.wake(&Event::node(WakeOn::NODE_GONE, None, Some(&node)));
            }
            Input::Claim(Change::Added(claim)) => self.wake(&Event::claim(Some(&claim), None)),
            Input::Claim(Change::Modified(old, claim)) => self.wake(&Event::claim(Some(&claim), Some(&old))),
            Input::Claim(Change::Deleted(claim)) => self.wake(&Event::claim(None, Some(&claim))),
            Input::Claim(Change::Resync) => self.wake(&Event::of(WakeOn::ANYTHING)),
            Input::Object(what, namespace, name) => self.wake(&Event::object(what, &namespace, &name)),
            Input::Report(Report::Bound(bound)) => self.bound(*bound),
            Input::Report(Report::NotEvicted(uid)) => self.queue.hurry(&uid),
            Input::Due => {}
        }
    }

    fn node_changed(&mut self, what: WakeOn, old: Option<&Node>, node: Arc<Node>) {
        let name = node.name().to_owned();
        self.cluster.set_node(node);
        if what != WakeOn::NOTHING {
            let event = Event::node(what, self.cluster.node(&name), old);
            wake(&mut self.queue, &self.profiles, &self.by_name, &self.cluster, &event);
        }
    }

    /// Rebuilds everything from the caches after changes were missed.
    pub(super) fn resync(&mut self) {
        let nodes = self.nodes.list();
        let names: HashSet<&str> = nodes.iter().map(|n| n.name()).collect();
        let gone: Vec<String> = self
            .cluster
            .nodes()
            .iter()
            .map(|n| n.name().to_owned())
            .filter(|n| !names.contains(n.as_str()))
            .collect();
        for name in gone {
            self.cluster.remove_node(&name);
        }
        for node in &nodes {
            self.cluster.set_node(node.clone());
        }
        let pods = self.pods.list();
        let uids: HashSet<&str> = pods.iter().map(|p| p.uid()).collect();
        for uid in self.cluster.confirmed() {
            if !uids.contains(uid.as_str()) {
                self.pod_gone(&uid);
            }
        }
        for pod in &pods {
            self.pod_changed(pod);
        }
        self.queue.wake(WakeOn::ANYTHING, Instant::now(), &mut |_, _| true);
    }

    fn pod_changed(&mut self, pod: &Arc<Pod>) {
        if is_terminal(pod) {
            return self.pod_gone(pod.uid());
        }
        let Some(node) = node_of(pod) else { return self.pending(pod) };
        self.queue.remove(pod.uid());
        self.failures.remove(pod.uid());
        let known = self.cluster.has_confirmed(pod.uid(), node).cloned();
        let same = known.as_ref().is_some_and(|known| {
            known.pod.metadata.labels == pod.metadata.labels
                && known.pod.spec == pod.spec
                && known.pod.is_deleting() == pod.is_deleting()
                && allocated(&known.pod) == allocated(pod)
        });
        if same {
            return;
        }
        let info = Arc::new(PodInfo::new(pod.clone()));
        self.cluster.set_pod(info.clone(), node);
        let Some(known) = known else {
            return self.wake(&Event::pod(WakeOn::POD_PLACED, &info, None));
        };
        if known.pod.metadata.labels != pod.metadata.labels {
            self.wake(&Event::pod(WakeOn::POD_LABELS, &info, Some(&known)));
        }
        if info.requests.is_below(&known.requests) {
            self.wake(&Event::pod(WakeOn::POD_SCALED_DOWN, &info, Some(&known)));
        }
        if !known.pod.is_deleting() && pod.is_deleting() {
            // A pod that is being deleted no longer counts for spreading.
            self.wake(&Event::pod(WakeOn::POD_LABELS, &info, Some(&known)));
        }
    }

    fn pending(&mut self, pod: &Arc<Pod>) {
        let uid = pod.uid();
        let profile = self.profile_of(pod).filter(|_| !pod.is_deleting());
        let Some(profile) = profile else { return self.leave_queue(uid) };
        if self.cluster.is_placed(uid) {
            return;
        }
        let gates: Vec<_> = profile.rows.iter().filter_map(|row| row.pre_enqueue.clone()).collect();
        let info = self.queue.get(pod).unwrap_or_else(|| Arc::new(PodInfo::new(pod.clone())));
        if let Some(reject) = gates.iter().find_map(|gate| gate.pre_enqueue(&info).err()) {
            debug!(pod = %info.key, reasons = ?reject.reasons, "held back");
            return self.leave_queue(uid);
        }
        // Without a name before and now, a nomination of ours may not be written yet.
        let nominated = nominated_node(pod);
        if nominated.is_some() || self.queue.object(uid).is_some_and(|old| nominated_node(old).is_some()) {
            self.cluster.nominate(&info, nominated);
        }
        self.queue.set(info);
    }

    fn leave_queue(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.failures.remove(uid);
        if let Some(node) = self.cluster.withdraw(uid) {
            self.freed(&node);
        }
    }

    /// Wakes pods after room on a node is no longer kept for another one.
    pub(super) fn freed(&mut self, node: &str) {
        let event = Event::node(WakeOn::NODE_ALLOCATABLE, self.cluster.node(node), None);
        wake(&mut self.queue, &self.profiles, &self.by_name, &self.cluster, &event);
    }

    fn pod_gone(&mut self, uid: &str) {
        self.leave_queue(uid);
        if let Some(pod) = self.cluster.remove_pod(uid) {
            self.wake(&Event::pod(WakeOn::POD_GONE, &pod, None));
        }
    }
}

/// Returns the parts of a pod's status that say what its node has given it.
fn allocated(pod: &Pod) -> Vec<(&str, String)> {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let given = statuses.filter(|s| s.allocated_resources.is_some() || s.resources.is_some());
    given.map(|s| (s.name.as_str(), format!("{:?}{:?}", s.allocated_resources, s.resources))).collect()
}

/// Wakes the waiting pods for which a plugin that refused them says that the change may help.
fn wake(
    queue: &mut Queue,
    profiles: &[Shared],
    by_name: &HashMap<String, usize>,
    cluster: &Cluster,
    event: &Event<'_>,
) {
    queue.wake(event.what, Instant::now(), &mut |pod, refused_by| {
        let name =
            pod.pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let Some(shared) = by_name.get(name).and_then(|at| profiles.get(*at)) else { return true };
        // Without refusals there was no node at all.
        refused_by == 0
            || shared.profile.refusers(refused_by).any(|row| {
                row.wakes_on().meets(event.what)
                    && row.enqueue.as_ref().is_none_or(|plugin| plugin.hint(cluster, pod, event))
            })
    });
}
