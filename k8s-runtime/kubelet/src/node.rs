//! The Node object: registration, status and heartbeat.
//!
//! Flow: [`run`] registers the node with its conditions, so that it is Ready with the first write. Then the
//! Lease is renewed every 10 s. The status is written when it changed (here or in the API), and at least
//! every 5 min.
//! Not here: declaring a node dead (the node lifecycle controller does it from the Lease).

mod lease;
mod status;

use std::{sync::Arc, time::Duration};

use k8s_core::client::{Error, Patch};
use serde_json::json;
use tracing::{info, warn};

use crate::{context::Context, types::*};

const REPORT_EVERY: Duration = Duration::from_secs(300);
/// Interval at which disk, memory, images and the API's node are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Interval of the checks after a pause, and their number.
const LOOK_SOON: Duration = Duration::from_secs(2);
const LOOKS_SOON: u32 = 10;
/// A check that is later than this was paused (process stopped, machine asleep).
const LATE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(7);

/// Returns the Node object as the cache has it. Before it is known: what this kubelet registers.
pub(crate) fn cached(cx: &Context) -> Arc<Node> {
    cx.node.list().into_iter().next().unwrap_or_else(|| {
        Arc::new(Node {
            metadata: ObjectMeta {
                name: Some(cx.config.node_name.clone()),
                labels: Some(status::labels(cx)),
                ..ObjectMeta::default()
            },
            spec: None,
            status: Some(NodeStatus { allocatable: Some(cx.facts.allocatable()), ..NodeStatus::default() }),
        })
    })
}

/// Keeps the Node object and its Lease current. Runs until it is dropped.
pub(crate) async fn run(cx: Arc<Context>) {
    let mut delay = RETRY;
    let said = loop {
        match register(&cx).await {
            Ok(said) => break said,
            Err(e) => warn!(node = cx.config.node_name, error = %e, "node not registered, trying again"),
        }
        cx.clock.sleep(delay).await;
        delay = (delay * 2).min(LONGEST_RETRY);
    };
    info!(node = cx.config.node_name, "node registered");
    cx.events.normal(involved_node(&cx.config.node_name), "Starting", "Starting kubelet.");
    tokio::join!(lease::keep(&cx), report(&cx, said));
}

/// Returns a reference to a node for events. As upstream, its uid is its name.
pub(crate) fn involved_node(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// The status that was written last.
struct Said {
    /// The status that this kubelet computed.
    computed: NodeStatus,
    /// As the API server returned it; quantities may be in another format.
    stored: NodeStatus,
}

/// Creates the node's object, or updates an existing one.
async fn register(cx: &Context) -> Result<Said, Error> {
    let api = cx.client.all::<Node>();
    let name = &cx.config.node_name;
    let computed = status::compute(cx, None).await;
    let pod_cidr = cx.config.pod_cidr.map(|range| range.to_string());
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(status::labels(cx)),
            annotations: Some(
                [("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())]
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: pod_cidr.clone(),
            pod_cidrs: pod_cidr.clone().map(|range| vec![range]),
            taints: (!cx.config.node_taints.is_empty()).then(|| cx.config.node_taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(computed.clone()),
    };
    match api.create(&node).await {
        Ok(made) => match made.status.clone().filter(|s| s.conditions.is_some()) {
            Some(stored) => {
                tell(cx, None, &computed);
                return Ok(Said { computed, stored });
            }
            // An API server may drop the status on creation.
            None => return write(cx, made).await,
        },
        Err(e) if e.is_already_exists() => {}
        Err(e) => return Err(e),
    }
    let there = api.get(name).await?;
    let mut patch = json!({"metadata": {"labels": status::labels(cx)}});
    let has_range = there.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some());
    if let (false, Some(range)) = (has_range, pod_cidr) {
        patch["spec"] = json!({"podCIDR": range, "podCIDRs": [range]});
    }
    let there = api.patch(name, &Patch::Merge(patch)).await?;
    write(cx, there).await
}

/// Writes the current status to the Node object.
async fn write(cx: &Context, mut node: Node) -> Result<Said, Error> {
    let old = node.status.take();
    let computed = status::compute(cx, old.as_ref()).await;
    let mut status = computed.clone();
    let before = old.clone();
    if let Some(old) = old {
        status.volumes_attached = old.volumes_attached;
        let own = status::CONDITIONS;
        let foreign = old.conditions.into_iter().flatten().filter(|c| !own.contains(&c.type_.as_str()));
        status.conditions.get_or_insert_default().extend(foreign);
    }
    node.status = Some(status);
    let stored = cx.client.all::<Node>().replace_status(&cx.config.node_name, &node).await?;
    tell(cx, before.as_ref(), &computed);
    Ok(Said { computed, stored: stored.status.unwrap_or_default() })
}

/// Records an event for each pressure condition that has changed.
fn tell(cx: &Context, before: Option<&NodeStatus>, now: &NodeStatus) {
    let name = &cx.config.node_name;
    for reason in status::changes(before, now) {
        cx.events.normal(involved_node(name), reason, format!("Node {name} status is now: {reason}"));
    }
}

/// Reads the Node object and writes the status if it differs from the computed one. After a pause of this
/// kubelet, the node lifecycle controller has set the conditions to `Unknown`.
async fn report(cx: &Context, first: Said) {
    let name = &cx.config.node_name;
    let mut said = Some(first);
    let mut at = cx.clock.now();
    let mut soon = 0_u32;
    let mut pressure = cx.pressure.changes();
    loop {
        let (every, asleep) = (if soon > 0 { LOOK_SOON } else { LOOK_EVERY }, cx.clock.now());
        tokio::select! {
            () = cx.clock.sleep(every) => {}
            // The scheduler and users learn of pressure at once.
            Ok(()) = pressure.changed() => {}
        }
        soon = soon.saturating_sub(1);
        if cx.clock.since(asleep) > every + LATE {
            // Controllers react to the pause in the next seconds.
            soon = LOOKS_SOON;
        }
        let written = match cx.client.all::<Node>().get(name).await {
            Ok(node) => {
                let computed = status::compute(cx, node.status.as_ref()).await;
                let there = node.status.clone().unwrap_or_default();
                let current = said.as_ref().is_some_and(|said| {
                    !status::differs(&said.computed, &computed) && !status::differs(&said.stored, &there)
                });
                if current && cx.clock.since(at) < REPORT_EVERY {
                    continue;
                }
                write(cx, node).await
            }
            // Somebody deleted the Node object: register again.
            Err(e) if e.is_not_found() => register(cx).await,
            Err(e) => Err(e),
        };
        if let Err(e) = &written
            && !e.is_conflict()
        {
            warn!(node = name, error = %e, "node status not written");
        }
        if written.is_ok() {
            at = cx.clock.now();
        }
        said = written.ok();
    }
}
