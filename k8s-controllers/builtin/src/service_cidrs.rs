//! ServiceCIDRs: says which are ready, and keeps a deleted one while Services have addresses of it.
//!
//! Invariants:
//! 1. A ServiceCIDR that is not being deleted has the finalizer, and the condition Ready is true.
//! 2. A ServiceCIDR that is being deleted goes only when no Service has an address that is in no other range,
//!    and not before API servers had time to learn of the deletion.
//!
//! Not here: taking addresses (the API server), which makes an IPAddress for each.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile};
use k8s_core::{
    api::{
        api::networking::v1::{IPAddress, ServiceCIDR},
        apimachinery::pkg::apis::meta::v1::Condition,
    },
    meta::{ObjectExt, ObjectKey},
};

use super::{Options, served::is_served};

/// Upstream's name.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Label of addresses that Services have.
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
/// Time until all API servers know that a range is being deleted, and take no address from it.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if !is_served::<ServiceCIDR>(&environment).await {
            return;
        }
        Controller::<ServiceCIDR>::new()
            .named("service-cidr-controller")
            .workers(1)
            // A new or deleted range, or an address that went, may set another one free.
            .watches::<ServiceCIDR>(|caches, _| waiting(&caches.of::<ServiceCIDR>().list()))
            .watches::<IPAddress>(|caches, _| waiting(&caches.of::<ServiceCIDR>().list()))
            .run_in(environment, ServiceCidrs)
            .await;
    })
}

/// Returns the ranges that are being deleted.
fn waiting(all: &[Arc<ServiceCIDR>]) -> Vec<ObjectKey> {
    all.iter().filter(|range| range.is_deleting()).map(|range| range.key()).collect()
}

fn ranges(object: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let all = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    all.filter_map(|text| text.parse::<IpNet>().ok()).map(|range| range.trunc())
}

fn is_of_service(address: &IPAddress) -> bool {
    address.label(MANAGED_BY.0) == Some(MANAGED_BY.1)
}

/// Returns true if a Service has an address of this range that is in no other one. A range within another one
/// holds nothing.
fn is_in_use(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let others = || all.iter().filter(|other| other.name() != range.name()).flat_map(|other| ranges(other));
    let covered = |one: &IpNet| others().any(|other| other.contains(one));
    let bare: Vec<IpNet> = ranges(range).filter(|one| !covered(one)).collect();
    addresses
        .iter()
        .filter(|address| is_of_service(address))
        .filter_map(|address| address.name().parse::<IpAddr>().ok())
        .any(|address| {
            bare.iter().any(|one| one.contains(&address)) && !others().any(|other| other.contains(&address))
        })
}

struct ServiceCidrs;

impl Reconcile for ServiceCidrs {
    type Kind = ServiceCIDR;

    async fn reconcile(&self, cx: &Context, range: Arc<ServiceCIDR>) -> Result<Action, Error> {
        if !range.is_deleting() {
            let held = cx.add_finalizer(&*range, FINALIZER).await?;
            ready(cx, &held, "True", "", "Kubernetes Service CIDR is ready").await?;
            return Ok(Action::await_change());
        }
        if !range.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER) {
            return Ok(Action::await_change());
        }
        let all = cx.caches().of::<ServiceCIDR>().list();
        if is_in_use(&range, &all, &cx.caches().of::<IPAddress>().list()) {
            let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            ready(cx, &range, "False", "Terminating", why).await?;
            return Ok(Action::await_change());
        }
        let since = range.metadata.deletion_timestamp.as_ref().map(|time| cx.clock().since(time.0));
        match GRACE.checked_sub(since.unwrap_or_default()).filter(|left| !left.is_zero()) {
            Some(left) => Ok(Action::requeue_after(left)),
            None => {
                cx.remove_finalizer(&*range, FINALIZER).await?;
                Ok(Action::await_change())
            }
        }
    }
}

/// Writes the condition Ready.
async fn ready(
    cx: &Context,
    range: &ServiceCIDR,
    status: &str,
    reason: &str,
    why: &str,
) -> Result<(), Error> {
    let now = cx.clock().time();
    cx.status(range, |next| {
        let all = next.status.get_or_insert_default().conditions.get_or_insert_default();
        let made = Condition {
            type_: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message: why.into(),
            last_transition_time: now,
            observed_generation: None,
        };
        match all.iter_mut().find(|condition| condition.type_ == "Ready") {
            Some(known) if known.status == status && known.reason == reason && known.message == why => {}
            Some(known) => {
                let since = known.last_transition_time.clone();
                let same = known.status == status;
                *known = made;
                if same {
                    known.last_transition_time = since;
                }
            }
            None => all.push(made),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn range(name: &str, cidr: &str) -> Arc<ServiceCIDR> {
        let object = json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn address(name: &str) -> Arc<IPAddress> {
        let labels = json!({MANAGED_BY.0: MANAGED_BY.1});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
    }

    #[test]
    fn a_range_is_in_use_while_an_address_is_in_no_other() {
        let (default, inner) = (range("kubernetes", "10.96.0.0/16"), range("inner", "10.96.8.0/24"));
        let more = range("more", "10.97.0.0/24");
        let all = [default.clone(), inner.clone(), more.clone()];
        let have = [address("10.96.8.7"), address("10.97.0.9")];
        assert!(is_in_use(&more, &all, &have));
        assert!(!is_in_use(&inner, &all, &have), "it is within another");
        assert!(!is_in_use(&default, &all, &have), "its only address is in the inner one, too");
        assert!(is_in_use(&default, &all, &[address("10.96.0.1")]));
        assert!(!is_in_use(&more, &all, &have[..1]));
        let other: IPAddress = serde_json::from_value(json!({"metadata": {"name": "10.97.0.9"}})).unwrap();
        assert!(!is_in_use(&more, &all, &[Arc::new(other)]), "it is of no Service");
    }

    proptest! {
        /// After the deletion of a range that is not in use each address is in a range.
        #[test]
        fn no_address_is_left_without_a_range(
            cidrs in proptest::collection::vec((0u8..4, 24u8..30), 1..5),
            hosts in proptest::collection::vec((0u8..4, any::<u8>()), 0..6),
        ) {
            let made = |(i, (part, length)): (usize, &(u8, u8))| range(&format!("r{i}"), &format!("10.0.{part}.0/{length}"));
            let all: Vec<_> = cidrs.iter().enumerate().map(made).collect();
            let within = |a: &IpAddr, all: &[Arc<ServiceCIDR>]| all.iter().flat_map(|r| ranges(r)).any(|r| r.contains(a));
            let ips: Vec<IpAddr> = hosts.iter().map(|(p, h)| IpAddr::from([10, 0, *p, *h])).collect();
            let ips: Vec<IpAddr> = ips.into_iter().filter(|a| within(a, &all)).collect();
            let addresses: Vec<_> = ips.iter().map(|a| address(&a.to_string())).collect();
            let rest: Vec<_> = all[1..].to_vec();
            let safe = ips.iter().all(|a| within(a, &rest));
            prop_assert_eq!(!is_in_use(&all[0], &all, &addresses), safe);
        }
    }
}
