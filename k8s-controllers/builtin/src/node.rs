//! Node controllers: health, eviction, pod CIDRs.
//!
//! [`lifecycle`] derives conditions and taints from a node's Lease and status; [`eviction`] deletes pods that
//! do not tolerate `NoExecute` taints; [`ipam`] allocates pod CIDRs; [`pod_gc`] deletes pods that no node
//! will finish; [`ttl`] tells kubelets how long to keep ConfigMaps and Secrets.

mod awake;
mod eviction;
mod ipam;
mod lifecycle;
mod pod_gc;
pub(super) mod ttl;
mod zones;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod},
    },
    meta::{ObjectExt, ObjectKey},
};

use super::{
    Options,
    pods::{self, index_by_node},
};
use k8s_controllers::{Controller, Environment};

const LEASES: &str = "kube-node-lease";

pub(super) fn lifecycle(environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    index_by_node(&environment.caches);
    Controller::<Node>::new()
        .named("node-controller")
        .watches::<Lease>(|_, lease| {
            if lease.namespace() == LEASES { vec![ObjectKey::new("", lease.name())] } else { Vec::new() }
        })
        .reads::<Pod>()
        .run_in(environment, lifecycle::Lifecycle::new(&options))
}

pub(super) fn eviction(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    index_by_node(&environment.caches);
    Controller::<Node>::new()
        .named("taint-eviction-controller")
        .watches::<Pod>(|caches, pod| {
            let node = caches.of::<Node>().get("", pods::node_name(pod));
            node.filter(|n| eviction::is_tainted(n)).map(|n| n.key()).into_iter().collect()
        })
        .run_in(environment, eviction::TaintEviction::default())
}

pub(super) fn ipam(environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    let mask = options.node_cidr_mask;
    let Some(cidr) = options.cluster_cidr else { return Box::pin(async {}) };
    match ipam::Subnets::new(cidr, mask) {
        Some(subnets) => {
            ipam::index(&environment.caches);
            Controller::<Node>::new()
                .named("node-ipam-controller")
                .workers(1)
                .run_in(environment, ipam::NodeIpam::new(subnets))
        }
        None => Box::pin(async move { tracing::error!(%cidr, mask, "not a range of pod ranges") }),
    }
}

pub(super) fn pod_gc(environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    Box::pin(pod_gc::run(environment, options.terminated_pod_threshold))
}
