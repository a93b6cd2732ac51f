//! Mirrors manually written Endpoints, of Services without a selector, to EndpointSlices.
//!
//! One slice per subset and address family, with a limit of addresses. The Endpoints object owns them, so
//! that they are deleted with it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_core::{
    api::api::{
        core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    meta::{ObjectExt, ObjectKey, owner_reference},
};

use super::{
    pack::{Group, MANAGED_BY, Plan, SERVICE_NAME, Template},
    trigger,
};
use k8s_controllers::{Action, Caches, Context, Error, EventType, Reconcile};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that old clients use as leader locks are not mirrored.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are not copied to slices.
const NOT_COPIED: [&str; 2] = ["kubectl.kubernetes.io/last-applied-configuration", trigger::ANNOTATION];
/// Maximum number of mirrored addresses per subset.
const LARGEST: usize = 1000;

/// Maps a mirrored slice to its Endpoints object, which has the Service's name.
pub(super) fn mirrored(_: &Caches, slice: &EndpointSlice) -> Vec<ObjectKey> {
    let name = slice.label(SERVICE_NAME).filter(|_| slice.label(MANAGED_BY) == Some(MANAGER));
    name.map(|name| ObjectKey::new(slice.namespace(), name)).into_iter().collect()
}

fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let without_selector = service.is_some_and(|s| s.spec.as_ref().is_none_or(|s| s.selector.is_none()));
    let skipped = endpoints.label(SKIP) == Some("true") || endpoints.annotation(LEADER).is_some();
    without_selector && !skipped && !endpoints.is_deleting()
}

pub(super) struct Mirroring;

impl Reconcile for Mirroring {
    type Kind = Endpoints;

    async fn reconcile(&self, cx: &Context, endpoints: Arc<Endpoints>) -> Result<Action, Error> {
        let present = slices_of(cx);
        let service = cx.cached::<Service>(endpoints.name());
        if !is_mirrored(&endpoints, service.as_deref()) {
            Plan { delete: present, ..Plan::default() }.act(cx).await?;
            return Ok(Action::await_change());
        }
        let (groups, skipped) = groups(&endpoints);
        skipped.tell(cx, &endpoints);
        let template = template(&endpoints);
        let mut plan = Plan::default();
        let mut rest = present;
        for (family, groups) in groups {
            let (same, others) = rest.into_iter().partition(|s| s.address_type == family);
            rest = others;
            plan.add(&template, family, same, groups);
        }
        plan.delete.extend(rest);
        if let Err(e) = plan.act(cx).await {
            let message = format!("Failed to update EndpointSlices: {e}");
            cx.event(&*endpoints, EventType::Warning, "FailedToUpdateEndpointSlices", message);
            return Err(e);
        }
        Ok(Action::await_change())
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        // The garbage collector would delete them later; the name may be reused sooner.
        Plan { delete: slices_of(cx), ..Plan::default() }.act(cx).await?;
        Ok(Action::await_change())
    }
}

fn slices_of(cx: &Context) -> Vec<Arc<EndpointSlice>> {
    let mut all = cx.caches().of::<EndpointSlice>().in_namespace(&cx.key().namespace);
    all.retain(|slice| mirrored(cx.caches(), slice).contains(cx.key()) && !slice.is_deleting());
    all
}

fn template(endpoints: &Endpoints) -> Template {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), endpoints.name().to_owned());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    Template {
        name: endpoints.name().to_owned(),
        namespace: endpoints.namespace().to_owned(),
        owner: owner_reference(endpoints),
        labels,
        annotations: Some(annotations),
        largest: LARGEST,
        keeps_empty: false,
        trigger: endpoints.annotation(trigger::ANNOTATION).map(str::to_owned),
    }
}

/// Numbers of addresses that are not mirrored.
#[derive(Debug, Default, PartialEq, Eq)]
struct Skipped {
    too_many: usize,
    malformed: usize,
}

impl Skipped {
    fn tell(&self, cx: &Context, endpoints: &Endpoints) {
        if self.malformed > 0 {
            let message =
                format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", self.malformed);
            cx.event(endpoints, EventType::Warning, "InvalidIPAddress", message);
        }
        if self.too_many > 0 {
            let message = format!(
                "A max of {LARGEST} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                self.too_many
            );
            cx.event(endpoints, EventType::Warning, "TooManyAddressesToMirror", message);
        }
    }
}

/// Returns the endpoints of slices by address family. Subsets with equal ports are merged.
fn groups(endpoints: &Endpoints) -> (BTreeMap<&'static str, Vec<Group>>, Skipped) {
    let mut all: BTreeMap<&'static str, Vec<Group>> = BTreeMap::new();
    let mut skipped = Skipped::default();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        for (at, (address, ready)) in ready.chain(others).enumerate() {
            let family = match address.ip.parse() {
                _ if at >= LARGEST => {
                    skipped.too_many += 1;
                    continue;
                }
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => {
                    skipped.malformed += 1;
                    continue;
                }
            };
            let groups = all.entry(family).or_default();
            let endpoint = endpoint(address, ready);
            match groups.iter_mut().find(|(known, _)| *known == ports) {
                Some((_, endpoints)) => endpoints.push(endpoint),
                None => groups.push((ports.clone(), vec![endpoint])),
            }
        }
    }
    (all, skipped)
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let port = |p: &k8s_core::api::api::core::v1::EndpointPort| EndpointPort {
        name: Some(p.name.clone().unwrap_or_default()),
        protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
        port: Some(p.port),
        app_protocol: p.app_protocol.clone(),
    };
    subset.ports.iter().flatten().map(port).collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn families_and_ports_are_kept_apart_and_what_cannot_be_mirrored_is_told() {
        let many: Vec<_> =
            (0..1001).map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250)})).collect();
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "n"},
            "subsets": [
                {"addresses": [{"ip": "10.0.0.1"}, {"ip": "::1"}], "notReadyAddresses": [{"ip": "x"}], "ports": [{"port": 1}]},
                {"addresses": [{"ip": "10.0.0.2", "hostname": "h"}], "ports": [{"port": 1}]},
                {"notReadyAddresses": many, "ports": [{"port": 2, "name": "p"}]},
            ],
        }))
        .unwrap();
        let (all, skipped) = groups(&endpoints);
        assert_eq!(skipped, Skipped { too_many: 1, malformed: 1 });
        let sizes: Vec<_> = all
            .iter()
            .flat_map(|(family, groups)| groups.iter().map(|(p, e)| (*family, p[0].port, e.len())))
            .collect();
        assert_eq!(sizes, [("IPv4", Some(1), 2), ("IPv4", Some(2), 1000), ("IPv6", Some(1), 1)]);
        assert_eq!(all["IPv4"][0].1[1].hostname.as_deref(), Some("h"));
        assert_eq!(all["IPv4"][1].1[0].conditions.as_ref().unwrap().ready, Some(false));
    }
}
