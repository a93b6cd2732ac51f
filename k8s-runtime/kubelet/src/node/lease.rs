//! The node's Lease: renewed every 10 s, with a duration of 40 s.

use std::time::Duration;

use k8s_core::client::Error;
use tracing::warn;

use crate::{context::Context, types::*};

const NAMESPACE: &str = "kube-node-lease";
const SECONDS: i32 = 40;
const EVERY: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(7);

/// Renews the Lease. Runs until it is dropped.
pub(super) async fn keep(cx: &Context) {
    let mut delay = RETRY;
    let mut held: Option<Lease> = None;
    let mut owner = None;
    loop {
        if owner.is_none() {
            owner = owner_of(cx).await;
        }
        match renew(cx, held.take(), owner.as_ref()).await {
            Ok(lease) => {
                held = Some(lease);
                delay = RETRY;
                cx.clock.sleep(EVERY).await;
            }
            Err(e) => {
                warn!(node = cx.config.node_name, error = %e, "lease not renewed");
                cx.clock.sleep(delay).await;
                delay = (delay * 2).min(LONGEST_RETRY);
            }
        }
    }
}

/// Owner reference to the Node, so that the Lease is garbage-collected with it.
async fn owner_of(cx: &Context) -> Option<OwnerReference> {
    let node = cx.client.all::<Node>().get(&cx.config.node_name).await.ok()?;
    Some(OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: cx.config.node_name.clone(),
        uid: node.metadata.uid?,
        controller: None,
        block_owner_deletion: None,
    })
}

async fn renew(cx: &Context, held: Option<Lease>, owner: Option<&OwnerReference>) -> Result<Lease, Error> {
    let api = cx.client.namespaced::<Lease>(NAMESPACE);
    let name = &cx.config.node_name;
    let there = match held {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    let exists = there.is_some();
    let mut lease = there.unwrap_or_default();
    lease.metadata.name = Some(name.clone());
    lease.metadata.namespace = Some(NAMESPACE.into());
    if lease.metadata.owner_references.is_none() {
        lease.metadata.owner_references = owner.map(|o| vec![o.clone()]);
    }
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(name.clone());
    spec.lease_duration_seconds = Some(SECONDS);
    spec.renew_time = Some(cx.clock.micro_time());
    if exists { api.replace(name, &lease).await } else { api.create(&lease).await }
}
