//! Routes of added ranges of service addresses (ServiceCIDRs) to the bridge, so that a packet for an address
//! without a Service never leaves by the default route.
//!
//! The configured range has its route and guard from the start ([`crate::bridge`]). Routes of added ranges go
//! with the bridge.

use std::{io, sync::Arc, time::Duration};

use futures::FutureExt;
use ipnet::Ipv4Net;
use k8s_core::{api::api::networking::v1::ServiceCIDR, cache::Cache};
use tracing::warn;

use crate::{
    bridge::Bridge,
    rtnl::{How, Listed, Route, Rtnl},
};

/// Returns the added ranges that may have a route, sorted. `taken` are the ranges of other links: a range
/// that overlaps with one would cut off its hosts, and is left out.
pub(crate) fn plan(objects: &[Arc<ServiceCIDR>], configured: &[Ipv4Net], taken: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let texts = objects.iter().flat_map(|object| object.spec.iter().flat_map(|s| s.cidrs.iter().flatten()));
    let overlap = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
    let mut all: Vec<Ipv4Net> = texts
        .filter_map(|text| text.parse::<Ipv4Net>().ok())
        .map(|range| range.trunc())
        .filter(|range| !configured.iter().any(|own| overlap(own, range)))
        .filter(|range| !taken.iter().any(|other| overlap(other, range)))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Returns the ranges of links other than the bridge. A default route is none.
fn foreign(routes: &[Listed], bridge: u32) -> Vec<Ipv4Net> {
    let other = |r: &&Listed| r.link.is_some() && r.link != Some(bridge) && r.to.prefix_len() > 0;
    routes.iter().filter(other).map(|r| r.to).collect()
}

/// Sets the routes of the added ranges, and removes those of ranges that are gone. Blocking. Returns the
/// ranges that have no route because another link has their addresses.
pub(crate) fn apply(bridge: &Bridge, objects: &[Arc<ServiceCIDR>]) -> io::Result<Vec<Ipv4Net>> {
    let mut rtnl = Rtnl::open()?;
    let (index, gateway, configured) = (bridge.index(), bridge.gateway(), bridge.ranges());
    let route = |to| Route { to, how: How::Link { index, source: Some(gateway) }, metric: 0 };
    let routes = rtnl.routes()?;
    let wanted = plan(objects, &configured, &foreign(&routes, index));
    let mut first = Ok(());
    let ours = |r: &&Listed| r.is_ours && r.link == Some(index) && r.gateway.is_none();
    for gone in routes.iter().filter(ours).filter(|r| !configured.contains(&r.to) && !wanted.contains(&r.to))
    {
        first = first.and(rtnl.del_route(&route(gone.to)));
    }
    // One that the kernel refuses does not stop the others.
    for range in &wanted {
        let set = rtnl.set_route(&route(*range));
        first = first.and(set.map_err(|e| io::Error::new(e.kind(), format!("{range}: {e}"))));
    }
    first?;
    let all = plan(objects, &configured, &[]);
    Ok(all.into_iter().filter(|range| !wanted.contains(range)).collect())
}

/// Maintains the routes until it is dropped or the cache is. Failures are retried on the next change or after
/// 10 s.
pub(crate) async fn follow(ranges: Cache<ServiceCIDR>, bridge: Bridge) {
    let mut changes = ranges.subscribe();
    ranges.synced().await;
    let mut told = Vec::new();
    loop {
        let (on, objects) = (bridge.clone(), ranges.list());
        match tokio::task::spawn_blocking(move || apply(&on, &objects)).await {
            Ok(Ok(refused)) if refused != told => {
                if !refused.is_empty() {
                    warn!(ranges = ?refused, "another link has these addresses: Services are not routed by them");
                }
                told = refused;
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "routes of service ranges"),
            Err(error) => warn!(%error, "routes of service ranges"),
        }
        match tokio::time::timeout(Duration::from_secs(10), changes.next()).await {
            Ok(None) => return,
            Ok(Some(_)) => while let Some(Some(_)) = changes.next().now_or_never() {},
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_range_of_another_link_is_left_alone() {
        let ranges = |texts: &[&str]| -> Vec<Ipv4Net> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let object = |cidrs: &[&str]| -> Arc<ServiceCIDR> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"cidrs": cidrs}})).unwrap(),
            )
        };
        let configured = ranges(&["10.42.0.0/16", "10.43.0.0/16"]);
        let taken = ranges(&["192.0.2.0/24", "10.9.9.0/24"]);
        for (cidrs, want) in [
            (&["10.43.0.0/16"][..], &[][..]),
            (&["10.43.8.0/24", "10.42.0.0/15"], &[]),
            (&["10.44.0.1/16", "fd00::/112"], &["10.44.0.0/16"]),
            (&["10.45.0.0/24", "10.44.0.0/24", "10.45.0.0/24"], &["10.44.0.0/24", "10.45.0.0/24"]),
            (&["192.0.2.128/25"], &[]),
            (&["10.9.0.0/16"], &[]),
            (&["0.0.0.0/0"], &[]),
        ] {
            assert_eq!(plan(&[object(cidrs)], &configured, &taken), ranges(want), "{cidrs:?}");
        }
    }
}
