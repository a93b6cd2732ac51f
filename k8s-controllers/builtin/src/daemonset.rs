//! DaemonSet: one pod on every eligible node.
//!
//! Flow: [`plan`] compares nodes and pods. Pods are created with a node affinity for their node and placed by
//! the scheduler. Each template is kept as a ControllerRevision, whose hash labels its pods. A rolling update
//! deletes outdated pods on at most `maxUnavailable` nodes at a time; the next reconcile creates their
//! replacements. (`maxSurge` is not supported: the old pod is deleted first.)

mod plan;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        apps::v1::{ControllerRevision, DaemonSet},
        core::v1::{
            Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
            PodSpec, Toleration,
        },
    },
    client::DeleteOptions,
    meta::{LabelSelector, ObjectExt},
};

use super::{
    Options,
    batch::{catch_up, is_in_doubt, slow_start},
    claim, history, pods,
};
use k8s_controllers::{Action, Context, Controller, Environment, Error, EventType, Reconcile};

/// Label with the hash of the pod's template.
const HASH: &str = "controller-revision-hash";

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<DaemonSet>::new()
        .named("daemonset-controller")
        .owns::<Pod>()
        .owns::<ControllerRevision>()
        .watches::<Node>(|caches, _| caches.of::<DaemonSet>().list().iter().map(|d| d.key()).collect())
        .run_in(environment, DaemonSets)
}

struct DaemonSets;

impl Reconcile for DaemonSets {
    type Kind = DaemonSet;

    async fn reconcile(&self, cx: &Context, set: Arc<DaemonSet>) -> Result<Action, Error> {
        let spec = set.spec.clone().unwrap_or_default();
        let selector = LabelSelector::from_api(&spec.selector)
            .map_err(|e| Error::invalid(format!("selector of {}", cx.key()), e))?;
        if selector.is_everything() || set.is_deleting() {
            return Ok(Action::await_change());
        }
        let all: Vec<Arc<Pod>> = claim::claim(cx, &*set, &selector).await?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let history = history::ensure(cx, &*set, &selector, &spec.template, collisions, HASH).await?;
        let hash = history.update.label(HASH).unwrap_or_default().to_owned();
        let nodes = cx.caches().of::<Node>().list();
        let now = cx.clock().now();
        let plan = plan::plan(&set, &hash, &nodes, &all, now);

        for pod in &plan.delete {
            cx.delete(&**pod, DeleteOptions::default()).await?;
            let message = format!("Deleted pod: {}", pod.name());
            cx.event(&*set, EventType::Normal, "SuccessfulDelete", message);
        }
        for pod in &plan.failed {
            let message =
                format!("Found failed daemon pod {} on node {}, will try to kill it", pod.key(), target(pod));
            cx.event(&*set, EventType::Warning, "FailedDaemonPod", message);
            cx.delete(&**pod, DeleteOptions::default()).await?;
        }
        let pods = plan.create.iter().map(|node| build(&set, &hash, node)).collect();
        let (_, failure) = slow_start(cx, &set, pods, pods::create_one).await;
        if failure.as_ref().is_some_and(is_in_doubt) {
            catch_up::<Pod>(cx, &selector);
        }
        cx.status(&*set, |next| {
            next.status = Some(plan.status);
            next.status.get_or_insert_default().collision_count = history.collisions;
        })
        .await?;
        if plan.is_complete {
            let limit = spec.revision_history_limit.unwrap_or(10);
            history::clean_up(cx, &history.all, limit, |revision| {
                let label = revision.label(HASH);
                label == Some(&hash) || all.iter().any(|pod| pod.label(HASH) == label)
            })
            .await?;
        }
        match failure {
            Some(e) => Err(e),
            None => Ok(Action::maybe_after(plan.after)),
        }
    }
}

/// Returns the node that a pod is on or was created for; empty if there is none.
fn target(pod: &Pod) -> String {
    if !pods::node_name(pod).is_empty() {
        return pods::node_name(pod).to_owned();
    }
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fields = required
        .into_iter()
        .flat_map(|r| &r.node_selector_terms)
        .flat_map(|t| t.match_fields.iter().flatten());
    let named = |r: &&NodeSelectorRequirement| r.key == "metadata.name" && r.operator == "In";
    let mut values = fields.filter(named).filter_map(|r| r.values.as_ref()?.first().cloned());
    values.next().unwrap_or_default()
}

/// Taints that all daemon pods tolerate: daemons must run on impaired nodes, too.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let host = spec.host_network == Some(true);
    let network = host.then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

fn build(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(set, &template);
    pod.metadata.labels.get_or_insert_default().insert(HASH.into(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    // The affinity for one node replaces the template's own node terms, which were evaluated when the node
    // was selected.
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    affinity
        .node_affinity
        .get_or_insert_with(NodeAffinity::default)
        .required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}
