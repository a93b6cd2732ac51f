//! Attaches CSI volumes to the nodes of their pods, and detaches them.
//!
//! Flow: [`plan`] compares the pods of a node with the VolumeAttachments. An attacher, which belongs to the
//! CSI driver, acts on these objects and says `attached`; the node's status then lists the volume, and its
//! kubelet mounts it. Only nodes whose kubelet leaves attaching to this controller take part.
//!
//! Invariants:
//! 1. A volume that only one node may use has attachments to one node.
//! 2. A volume that the kubelet has mounted is not detached, except from a node that is out of service,
//!    or not ready for six minutes.
//! 3. The node's status does not list a volume any more before its attachment is deleted.
//! 4. An attachment with a name that no such controller gives is left alone.

mod plan;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use k8s_core::{
    api::api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::{CSIDriver, VolumeAttachment},
    },
    client::{DeleteOptions, Patch},
    meta::{ObjectExt, ObjectKey},
};
use serde_json::json;

use self::plan::{Observed, Plan};
use crate::{
    Options, conditions,
    pods::{self, index_by_node, pods_on},
};
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, EventType, Reconcile};

/// Interval of looks while something waits.
const AGAIN: Duration = Duration::from_secs(10);

/// Runs the controller.
pub(crate) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    index_by_node(&environment.caches);
    let node = |name: &str| if name.is_empty() { Vec::new() } else { vec![ObjectKey::new("", name)] };
    Controller::<Node>::new()
        .named("attachdetach-controller")
        .watches::<Pod>(move |_, pod| {
            if claim_names(pod).next().is_some() { node(pods::node_name(pod)) } else { Vec::new() }
        })
        .watches::<VolumeAttachment>(move |_, attachment| node(&attachment.spec.node_name))
        .watches::<PersistentVolumeClaim>(nodes_of)
        .reads::<PersistentVolume>()
        .reads::<CSIDriver>()
        .run_in(environment, Attacher::default())
        .boxed()
}

/// Returns the names of the claims that a pod refers to, those of its ephemeral volumes included.
fn claim_names(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name(), volume.name)),
        (None, None) => None,
    })
}

/// Returns the nodes of the pods that refer to a claim.
fn nodes_of(caches: &Caches, claim: &PersistentVolumeClaim) -> Vec<ObjectKey> {
    let pods = caches.of::<Pod>().in_namespace(claim.namespace());
    let uses = |pod: &&Arc<Pod>| {
        !pods::node_name(pod).is_empty() && claim_names(pod).any(|name| name == claim.name())
    };
    pods.iter().filter(uses).map(|pod| ObjectKey::new("", pods::node_name(pod))).collect()
}

/// Returns the attachments that controllers like this one made. Those of others are left alone.
fn own(caches: &Caches) -> Vec<Arc<VolumeAttachment>> {
    let mut all = caches.of::<VolumeAttachment>().list();
    all.retain(|attachment| plan::is_own_name(attachment.name()));
    all
}

/// Times since when volumes are not needed, by node and volume.
#[derive(Default)]
struct Attacher {
    unwanted: Mutex<HashMap<(String, String), Timestamp>>,
}

impl Attacher {
    fn plan(&self, cx: &Context, node: &Node) -> Plan {
        let caches = cx.caches();
        let (claims, volumes) = (caches.of::<PersistentVolumeClaim>(), caches.of::<PersistentVolume>());
        let drivers = caches.of::<CSIDriver>();
        let now = cx.clock().now();
        let mut unwanted = self.unwanted.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |volume: &str| {
            let key = (node.name().to_owned(), volume.to_owned());
            unwanted.get(&key).map_or(Duration::ZERO, |since| {
                Duration::try_from(now.duration_since(*since)).unwrap_or_default()
            })
        };
        let is_ready = conditions::is_true(node.status.as_ref().and_then(|s| s.conditions.as_ref()), "Ready");
        let plan = Observed {
            node,
            is_ready,
            pods: &pods_on(caches, node.name()),
            claim: &|pod, name| claims.get(pod.namespace(), name),
            volume: &|name| volumes.get("", name),
            is_attached_by: &|driver| {
                drivers.get("", driver).is_none_or(|driver| driver.spec.attach_required.unwrap_or(true))
            },
            attachments: &own(caches),
            unwanted: &since,
        }
        .plan();
        unwanted.retain(|(of, volume), _| of != node.name() || plan.unwanted.contains(volume));
        for volume in &plan.unwanted {
            unwanted.entry((node.name().to_owned(), volume.clone())).or_insert(now);
        }
        plan
    }
}

impl Reconcile for Attacher {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let Plan { report, delete, create, said, waits, .. } = self.plan(cx, &node);
        if let Some(report) = report {
            let metadata = json!({"uid": node.uid(), "resourceVersion": node.metadata.resource_version});
            let patch = Patch::Merge(json!({"metadata": metadata, "status": {"volumesAttached": report}}));
            cx.api::<Node>("").patch_status(node.name(), &patch).await?;
        }
        for attachment in delete {
            cx.delete(&*attachment, DeleteOptions::default()).await?;
        }
        for attachment in create {
            match cx.create(&attachment).await {
                Err(Error::Api(e)) if e.is_already_exists() => {}
                made => drop(made?),
            }
        }
        let pods = pods_on(cx.caches(), node.name());
        for said in said {
            let kind =
                if said.reason == "FailedAttachVolume" { EventType::Warning } else { EventType::Normal };
            if let Some(pod) = pods.iter().find(|pod| pod.uid() == said.pod) {
                cx.event(&**pod, kind, said.reason, said.message);
            }
        }
        Ok(Action::maybe_after(waits.then_some(AGAIN)))
    }

    /// Detaches the volumes of a node that does not exist, after the time in which it may come back.
    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        let (node, now) = (&cx.key().name, cx.clock().now());
        let mut all = own(cx.caches());
        all.retain(|attachment| attachment.spec.node_name == *node && !attachment.is_deleting());
        let (mut due, mut waits) = (Vec::new(), false);
        {
            let mut unwanted = self.unwanted.lock().unwrap_or_else(PoisonError::into_inner);
            if all.is_empty() {
                unwanted.retain(|(of, _), _| of != node);
            }
            for attachment in all {
                let volume = plan::volume_of(&attachment).unwrap_or_default().to_owned();
                let since = *unwanted.entry((node.clone(), volume)).or_insert(now);
                if Duration::try_from(now.duration_since(since))
                    .is_ok_and(|time| time > plan::LONGEST_UNMOUNT)
                {
                    due.push(attachment);
                } else {
                    waits = true;
                }
            }
        }
        for attachment in due {
            cx.delete(&*attachment, DeleteOptions::default()).await?;
        }
        Ok(Action::maybe_after(waits.then_some(AGAIN)))
    }
}
