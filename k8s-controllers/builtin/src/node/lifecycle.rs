//! Node health: conditions, taints, and the readiness of pods.
//!
//! Flow: a node is alive while its Lease is renewed or its status is written. If neither is seen for the grace
//! period, its conditions become `Unknown`. Conditions are translated to taints with the effect `NoSchedule`
//! at once, and to those with the effect `NoExecute`, which evict pods, at the rate of its zone ([`zones`]).
//! Pods of a node that is not ready are marked not ready.
//!
//! Invariants:
//! 1. The grace period is measured by this process's clock, because the node's is not trusted, and excludes
//!    pauses (see [`Awake`]).
//! 2. A node that is not ready has one of the `NoExecute` taints not-ready and unreachable at most: the one
//!    of its present condition. A ready node has neither.
//! 3. In a zone nodes are given such a taint at most at the rate of its state. While no node of the cluster
//!    is ready, none is, and those that are there are removed.
//! 4. A pod is marked not ready at most once for each time that its node is not ready.
//! 5. Taints, conditions and labels of others stay as they are.

mod plan;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::{
            coordination::v1::Lease,
            core::v1::{Node, Pod},
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
    client::Patch,
    meta::ObjectExt,
};
use serde_json::{Value, json};

pub(super) use self::plan::is_ready;
use self::plan::{Evict, ready};
use super::{
    LEASES,
    awake::{Awake, LOOK_EVERY},
    zones::{Rates, Turn, Zones, zone_of},
};
use crate::{
    Options,
    pods::{self, pods_on},
};
use k8s_controllers::{Action, Context, Error, EventType, Reconcile};

/// Observations of a node.
#[derive(Clone)]
struct Sign {
    uid: String,
    lease: Option<String>,
    heartbeat: Option<Time>,
    /// Time since the last heartbeat was seen.
    seen: Awake,
    /// Time at which the node was first seen not to be ready.
    not_ready: Option<Timestamp>,
    /// Pods that were marked not ready since then.
    marked: HashSet<String>,
}

struct Known {
    signs: HashMap<String, Sign>,
    zones: Zones,
    /// Time of the last count of the zones' nodes.
    surveyed: Option<Timestamp>,
}

pub(super) struct Lifecycle {
    /// Interval at which the nodes of zones are counted.
    period: Duration,
    grace: Duration,
    startup_grace: Duration,
    known: Mutex<Known>,
}

impl Lifecycle {
    pub(super) fn new(options: &Options) -> Self {
        let rates = Rates {
            normal: options.node_eviction_rate,
            secondary: options.secondary_node_eviction_rate,
            large: options.large_cluster_size_threshold,
            unhealthy: options.unhealthy_zone_threshold,
        };
        Lifecycle {
            period: options.node_monitor_period,
            grace: options.node_monitor_grace,
            startup_grace: options.node_startup_grace,
            known: Mutex::new(Known { signs: HashMap::new(), zones: Zones::new(rates), surveyed: None }),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records heartbeats. Returns the time since the last one, and true for a node that is new.
    fn look(&self, cx: &Context, node: &Node) -> (Duration, bool) {
        let lease = cx.caches().of::<Lease>().get(LEASES, node.name());
        let lease = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0.to_string()));
        let heartbeat = ready(node).and_then(|c| c.last_heartbeat_time.clone());
        let now = cx.clock().now();
        let mut known = self.known();
        let first = || Sign {
            uid: node.uid().to_owned(),
            lease: lease.clone(),
            heartbeat: heartbeat.clone(),
            seen: Awake::begin(now),
            not_ready: None,
            marked: HashSet::new(),
        };
        let is_new = known.signs.get(node.name()).is_none_or(|sign| sign.uid != node.uid());
        if is_new {
            known.signs.insert(node.name().to_owned(), first());
        }
        let sign = known.signs.entry(node.name().to_owned()).or_insert_with(first);
        // A status written by this controller is not a heartbeat.
        let ours = ready(node).is_some_and(|c| c.status == "Unknown");
        if sign.lease != lease || (sign.heartbeat != heartbeat && !ours) {
            (sign.lease, sign.heartbeat, sign.seen) = (lease, heartbeat, Awake::begin(now));
        }
        (sign.seen.look(now), is_new)
    }

    /// Counts the nodes of all zones, at most once in a period.
    fn survey(&self, cx: &Context) {
        let now = cx.clock().now();
        let mut known = self.known();
        let since = known.surveyed.map(|last| Duration::try_from(now.duration_since(last)));
        if since.is_some_and(|since| since.is_ok_and(|since| since < self.period)) {
            return;
        }
        let nodes = cx.caches().of::<Node>().list();
        if known.zones.survey(nodes.iter().map(|node| (&**node, is_ready(node)))) {
            // The fault was on this side: other nodes get the whole grace period to be heard.
            known.signs.values_mut().for_each(|sign| sign.seen = Awake::begin(now));
        }
        known.surveyed = Some(now);
    }

    /// Decides about the taint that evicts pods from a node. Returns also the time until the next decision.
    fn evict(&self, cx: &Context, node: &Node) -> (Evict, Option<Duration>) {
        if plan::evicting(node).is_none() {
            return (Evict::Keep, None);
        }
        self.survey(cx);
        let now = cx.clock().now();
        let mut known = self.known();
        if known.zones.all_down() {
            return (Evict::Clear, Some(self.period));
        }
        if plan::has_evicting(node) {
            return (Evict::Keep, Some(self.period));
        }
        // Nodes that fail together are counted together before the first one is tainted.
        let since = known.signs.get(node.name()).and_then(|sign| sign.not_ready).unwrap_or(now);
        let wait =
            self.period.saturating_sub(Duration::try_from(now.duration_since(since)).unwrap_or_default());
        if !wait.is_zero() {
            return (Evict::Keep, Some(wait));
        }
        match known.zones.take(&zone_of(node), now) {
            Turn::Now => (Evict::Taint, Some(self.period)),
            Turn::After(wait) => (Evict::Keep, Some(wait.min(self.period))),
            Turn::Stopped => (Evict::Keep, Some(self.period)),
        }
    }

    /// Records the state of a node. Returns true if it was ready when it was last seen.
    fn turned(&self, node: &Node, now: Timestamp) -> bool {
        let mut known = self.known();
        let Some(sign) = known.signs.get_mut(node.name()) else { return false };
        if is_ready(node) {
            (sign.not_ready, sign.marked) = (None, HashSet::new());
            return false;
        }
        sign.not_ready.replace(sign.not_ready.unwrap_or(now)).is_none()
    }

    /// Marks the ready pods of a node, each once.
    async fn mark_pods(&self, cx: &Context, node: &Node) -> Result<(), Error> {
        for pod in pods_on(cx.caches(), node.name()).into_iter().filter(|pod| pods::is_ready(pod)) {
            let marked =
                self.known().signs.get(node.name()).is_some_and(|sign| sign.marked.contains(pod.uid()));
            if !marked && mark(cx, &pod).await? {
                let message = "Node is not ready";
                cx.event(&*pod, EventType::Warning, "NodeNotReady", message);
            }
            if let Some(sign) = self.known().signs.get_mut(node.name()) {
                sign.marked.insert(pod.uid().to_owned());
            }
        }
        Ok(())
    }
}

impl Reconcile for Lifecycle {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let (silence, is_new) = self.look(cx, &node);
        if is_new {
            let message = format!("Registered Node {} in Controller", node.name());
            cx.event(&*node, EventType::Normal, "RegisteredNode", message);
        }
        let was_ready = is_ready(&node);
        let grace = if ready(&node).is_some() { self.grace } else { self.startup_grace };
        let mut node = node;
        if silence >= grace {
            let mut next = (*node).clone();
            plan::set_unknown(&mut next, &cx.clock().time());
            if next != *node {
                node = Arc::new(cx.replace_status(&next).await?);
            }
        }
        let turned = self.turned(&node, cx.clock().now());
        let (evict, wait) = self.evict(cx, &node);
        write(cx, &node, evict).await?;
        if ready(&node).is_some() && !is_ready(&node) {
            // After a start nodes that are not ready are nothing new.
            if was_ready || (turned && !is_new) {
                let message = format!("Node {} status is now: NodeNotReady", node.name());
                cx.event(&*node, EventType::Normal, "NodeNotReady", message);
            }
            self.mark_pods(cx, &node).await?;
        }
        let look = (silence < grace).then(|| (grace - silence).min(LOOK_EVERY));
        Ok(Action::maybe_after(look.into_iter().chain(wait).min()))
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        let name = &cx.key().name;
        let sign = self.known().signs.remove(name);
        if let Some(sign) = sign {
            let mut node = Node::default();
            (node.metadata.name, node.metadata.uid) = (Some(name.clone()), Some(sign.uid));
            let message = format!("Removing Node {name} from Controller");
            cx.event(&node, EventType::Normal, "RemovingNode", message);
        }
        Ok(Action::await_change())
    }
}

/// Writes taints and labels.
async fn write(cx: &Context, node: &Node, evict: Evict) -> Result<(), Error> {
    let mut patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}});
    let (taints, labels) = (plan::taints(node, evict, &cx.clock().time()), plan::labels(node));
    if taints.is_none() && labels.is_empty() {
        return Ok(());
    }
    if let Some(taints) = taints {
        patch["spec"] = json!({"taints": taints});
    }
    for (label, value) in labels {
        patch["metadata"]["labels"][label] = Value::from(value);
    }
    cx.merge(node, &patch).await.map(drop)
}

/// Marks a pod not ready. The kubelet's message is kept. Returns false if the pod is gone.
async fn mark(cx: &Context, pod: &Pod) -> Result<bool, Error> {
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": cx.clock().time()});
    // The cached pod is trimmed, so nothing else of its status is written.
    let patch = json!({
        "metadata": {"uid": pod.uid(), "resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": [condition]},
    });
    match cx.api::<Pod>(pod.namespace()).patch_status(pod.name(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e.into()),
    }
}
