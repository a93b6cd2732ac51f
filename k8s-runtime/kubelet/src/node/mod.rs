//! The node: registering it, saying how it is, and proving that it is alive.
//!
//! Flow: [`run`] registers the node with its conditions in it, so that it is Ready with its first write; then the lease is renewed every
//! 10 s, and the status is written when it changed, and every 5 min.
//! Not here: who decides that a node is dead (the node lifecycle controller, from the lease).

mod facts;
mod lease;
mod status;

use std::{sync::Arc, time::Duration};

use k8s_core::client::{Error, Patch};
use serde_json::json;
use tracing::{info, warn};

pub(crate) use facts::Facts;

use crate::{context::Context, types::*};

const REPORT_EVERY: Duration = Duration::from_secs(300);
/// How often what may change (disk, memory, images) is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(7);

/// Keeps the node's objects current until it is dropped.
pub(crate) async fn run(cx: Arc<Context>) {
    let mut delay = RETRY;
    while let Err(e) = register(&cx).await {
        warn!(node = cx.config.node_name, error = %e, "node not registered, trying again");
        cx.clock.sleep(delay).await;
        delay = (delay * 2).min(LONGEST_RETRY);
    }
    info!(node = cx.config.node_name, "node registered");
    cx.events.node(&cx.config.node_name, "Starting", "Starting kubelet.");
    tokio::join!(lease::keep(&cx), report(&cx));
}

/// Makes the node's object, or brings the one that is there up to date.
async fn register(cx: &Context) -> Result<(), Error> {
    let api = cx.client.all::<Node>();
    let name = &cx.config.node_name;
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
            pod_cidr: cx.config.pod_cidr.clone(),
            pod_cidrs: cx.config.pod_cidr.clone().map(|c| vec![c]),
            taints: (!cx.config.node_taints.is_empty()).then(|| cx.config.node_taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status::compute(cx, None).await),
    };
    match api.create(&node).await {
        Ok(made) if made.status.as_ref().is_some_and(|s| s.conditions.is_some()) => return Ok(()),
        // Servers may leave the status out of a creation.
        Ok(made) => return write(cx, made).await,
        Err(e) if e.is_already_exists() => {}
        Err(e) => return Err(e),
    }
    let there = api.get(name).await?;
    let mut patch = json!({"metadata": {"labels": status::labels(cx)}});
    let has_range = there.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some());
    if let (false, Some(range)) = (has_range, &cx.config.pod_cidr) {
        patch["spec"] = json!({"podCIDR": range, "podCIDRs": [range]});
    }
    let there = api.patch(name, &Patch::Merge(patch)).await?;
    write(cx, there).await
}

/// Writes the present status over what an object has.
async fn write(cx: &Context, mut node: Node) -> Result<(), Error> {
    let old = node.status.take();
    let mut status = status::compute(cx, old.as_ref()).await;
    if let Some(old) = old {
        status.volumes_attached = old.volumes_attached;
        let own = status::CONDITIONS;
        let foreign = old.conditions.into_iter().flatten().filter(|c| !own.contains(&c.type_.as_str()));
        status.conditions.get_or_insert_default().extend(foreign);
    }
    node.status = Some(status);
    cx.client.all::<Node>().replace_status(&cx.config.node_name, &node).await.map(drop)
}

async fn report(cx: &Context) {
    let name = &cx.config.node_name;
    let mut said = status::compute(cx, None).await;
    let mut at = cx.clock.now();
    let mut failed = false;
    loop {
        cx.clock.sleep(LOOK_EVERY).await;
        let now = status::compute(cx, Some(&said)).await;
        if !failed && !status::differs(&said, &now) && cx.clock.since(at) < REPORT_EVERY {
            continue;
        }
        let written = match cx.client.all::<Node>().get(name).await {
            Ok(node) => write(cx, node).await,
            // Somebody deleted the node: it is still here.
            Err(e) if e.is_not_found() => register(cx).await,
            Err(e) => Err(e),
        };
        failed = written.is_err();
        match written {
            Ok(()) => {
                said = now;
                at = cx.clock.now();
            }
            Err(e) if e.is_conflict() => {}
            Err(e) => warn!(node = name, error = %e, "node status not written"),
        }
    }
}
