//! Routes to the pods of other nodes (`host-gw`): each node's pod CIDR via the node's address.
//!
//! Flow: [`follow`] reads Nodes from a cache; `plan` computes the routes, `apply` sets them and removes
//! others of ours. Works if all nodes share one layer 2 network. Pods of a node without a route are
//! unreachable; their packets are never sent to the default route.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use futures::FutureExt;
use ipnet::Ipv4Net;
use k8s_core::{api::api::core::v1::Node, cache::Cache, meta::ObjectExt};
use tracing::warn;

use crate::rtnl::{How, Route, Rtnl};

/// A pod CIDR and the address of its node.
pub(crate) type NodeRoute = (Ipv4Net, Ipv4Addr);

/// Computes the routes to other nodes' pods, sorted.
pub(crate) fn plan(nodes: &[Arc<Node>], own: &str, cluster_cidr: Ipv4Net) -> Vec<NodeRoute> {
    let mut routes = Vec::new();
    for node in nodes.iter().filter(|n| n.name() != own) {
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let address =
            addresses.filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse::<Ipv4Addr>().ok());
        let ranges = node.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr));
        // A node must not attract other traffic by claiming a CIDR outside of the cluster's.
        let range = ranges
            .filter_map(|r| r.parse::<Ipv4Net>().ok())
            .map(|r| r.trunc())
            .find(|r| cluster_cidr.contains(r));
        routes.extend(range.zip(address));
    }
    routes.sort_by_key(|(range, address)| (range.network(), range.prefix_len(), *address));
    routes.dedup_by_key(|(range, _)| *range);
    routes
}

/// Sets these routes and removes others of ours inside the CIDR. Blocking. A failure does not stop the
/// others; the first error is returned.
pub(crate) fn apply(routes: &[NodeRoute], cluster_cidr: Ipv4Net) -> io::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let mut first = Ok(());
    for (to, gateway) in routes {
        let how = How::Via { gateway: *gateway, index: None };
        let set = rtnl.set_route(&Route { to: *to, how, metric: 0 });
        first = first.and(set.map_err(|e| io::Error::new(e.kind(), format!("{to} via {gateway}: {e}"))));
    }
    first.and(remove_others(&mut rtnl, routes, cluster_cidr))
}

/// Removes all routes to other nodes' pods.
pub(crate) fn remove(rtnl: &mut Rtnl, cluster_cidr: Ipv4Net) -> io::Result<()> {
    remove_others(rtnl, &[], cluster_cidr)
}

fn remove_others(rtnl: &mut Rtnl, keep: &[NodeRoute], cluster_cidr: Ipv4Net) -> io::Result<()> {
    for route in rtnl.routes()?.into_iter().filter(|r| r.is_ours && cluster_cidr.contains(&r.to)) {
        let Some(gateway) = route.gateway else { continue };
        if !keep.contains(&(route.to, gateway)) {
            rtnl.del_route(&Route { to: route.to, how: How::Via { gateway, index: None }, metric: 0 })?;
        }
    }
    Ok(())
}

/// Maintains the routes until it is dropped or the cache is. Failures are retried on the next change or after
/// 10 s.
pub async fn follow(nodes: Cache<Node>, own: String, cluster_cidr: Ipv4Net) {
    let mut changes = nodes.subscribe();
    nodes.synced().await;
    let mut applied = None;
    loop {
        let wanted = plan(&nodes.list(), &own, cluster_cidr);
        if applied.as_ref() != Some(&wanted) {
            let routes = wanted.clone();
            match tokio::task::spawn_blocking(move || apply(&routes, cluster_cidr)).await {
                Ok(Ok(())) => applied = Some(wanted),
                Ok(Err(error)) => warn!(%error, "routes to other nodes"),
                Err(error) => warn!(%error, "routes to other nodes"),
            }
        }
        match tokio::time::timeout(Duration::from_secs(10), changes.next()).await {
            Ok(None) => return,
            Ok(Some(_)) => while let Some(Some(_)) = changes.next().now_or_never() {},
            Err(_) => {}
        }
    }
}
