//! EndpointSlices of Services with a selector: at most 100 endpoints each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_core::{
    api::api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::{
            Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
        },
    },
    meta::{ObjectExt, ObjectKey, owner_reference},
};

use super::{
    backends::{self, Backend, Port},
    pack::{Group, MANAGED_BY, Plan, SERVICE_NAME, Template},
    pods_behind,
    trigger::Tracker,
    zones::{self, Refusal, Zones},
};
use k8s_controllers::{Action, Caches, Context, Error, EventType, Reconcile};

const MANAGER: &str = "endpointslice-controller.k8s.io";
const ENABLED: &str = "Topology Aware Hints has been enabled";
/// Maximum number of endpoints per slice.
const LARGEST: usize = 100;

#[derive(Default)]
pub(super) struct Slices {
    told: Tracker,
    /// Last reported state of each Service's topology hints, per address family.
    shares: Mutex<HashMap<ObjectKey, Vec<Share>>>,
}

impl Slices {
    /// Sends an event when topology hints are enabled, or are disabled for a new reason.
    fn tell(&self, cx: &Context, service: &Service, shares: Vec<Share>) {
        let mut all = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.get(cx.key()).map_or(&[] as &[Share], Vec::as_slice);
        for Share { family, refusal, had_hints } in &shares {
            let known = before.iter().find(|s| s.family == *family);
            // Unknown state (after a start): report disabled hints, and hints that were not there before.
            let is_first = || refusal.is_some() || !had_hints;
            let is_news = known.map_or_else(is_first, |s| s.refusal != *refusal);
            let (kind, reason, message) = match refusal {
                None => (EventType::Normal, "TopologyAwareHintsEnabled", ENABLED.to_owned()),
                Some(why) => (EventType::Warning, "TopologyAwareHintsDisabled", why.to_string()),
            };
            if is_news {
                cx.event(service, kind, reason, format!("{message}, addressType: {family}"));
            }
        }
        if shares.is_empty() {
            all.remove(cx.key());
        } else {
            all.insert(cx.key().clone(), shares);
        }
    }
}

impl Reconcile for Slices {
    type Kind = Service;

    async fn reconcile(&self, cx: &Context, service: Arc<Service>) -> Result<Action, Error> {
        if service.is_deleting() {
            return Ok(Action::await_change());
        }
        let Some(pods) = pods_behind(cx.caches(), &service) else { return Ok(Action::await_change()) };
        let mut present: Vec<Arc<EndpointSlice>> = cx.owned(&*service);
        present.retain(|s| s.label(MANAGED_BY) == Some(MANAGER) && !s.is_deleting());
        let (plan, shares) = plan(cx.caches(), &service, &pods, present, self.told.next(&service, &pods));
        self.tell(cx, &service, shares);
        if let Err(e) = plan.act(cx).await {
            // The write failed, so its trigger time was not published.
            self.told.forget(cx.key());
            let message = format!("Error updating Endpoint Slices for Service {}: {e}", cx.key());
            cx.event(&*service, EventType::Warning, "FailedToUpdateEndpointSlices", message);
            return Err(e);
        }
        Ok(Action::await_change())
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        self.told.forget(cx.key());
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).remove(cx.key());
        Ok(Action::await_change())
    }
}

/// Returns the node's zone.
pub(super) fn zone_of(node: &Node) -> Option<&String> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone")
}

fn plan(
    caches: &Caches,
    service: &Service,
    pods: &[Arc<Pod>],
    mut present: Vec<Arc<EndpointSlice>>,
    trigger: Option<String>,
) -> (Plan, Vec<Share>) {
    let template = template(service, trigger);
    let prefers = Preference::of(service);
    let zones = zones::is_auto(service).then(|| Zones::of(&caches.of::<Node>().list()));
    let (mut plan, mut shares) = (Plan::default(), Vec::new());
    for family in &backends::families(service) {
        let (same, others) = present.into_iter().partition(|s| s.address_type == *family);
        present = others;
        let groups = backends::groups(service, pods, family);
        let mut desired: Vec<Group> = groups
            .into_iter()
            .map(|(ports, backends)| {
                let endpoints = backends.iter().map(|b| endpoint(b, caches, prefers)).collect();
                (ports.iter().map(endpoint_port).collect(), endpoints)
            })
            .collect();
        if let Some(zones) = &zones {
            let refusal = zones.clone().and_then(|zones| share(&mut desired, &zones)).err();
            let had_hints = same.iter().any(|s| s.endpoints.iter().flatten().any(|e| e.hints.is_some()));
            if desired.iter().any(|(_, endpoints)| endpoints.iter().any(is_ready)) {
                shares.push(Share { family: family.clone(), refusal, had_hints });
            }
        }
        plan.add(&template, family, same, desired);
    }
    plan.delete.extend(present);
    (plan, shares)
}

/// State of topology hints for one address family.
struct Share {
    family: String,
    /// Reason for which hints are disabled.
    refusal: Option<Refusal>,
    /// Existing slices had hints.
    had_hints: bool,
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true))
}

/// Sets zone hints on all ready endpoints, or on none.
fn share(desired: &mut [Group], zones: &Zones) -> Result<(), Refusal> {
    let all = || desired.iter().flat_map(|(_, endpoints)| endpoints).filter(|e| is_ready(e));
    let homes: Vec<Option<&str>> = all().map(|e| e.zone.as_deref()).collect();
    let given = zones.assign(&homes)?;
    let all = desired.iter_mut().flat_map(|(_, endpoints)| endpoints).filter(|e| is_ready(e));
    for (endpoint, name) in all.zip(given) {
        endpoint.hints = Some(EndpointHints { for_zones: Some(vec![ForZone { name }]), for_nodes: None });
    }
    Ok(())
}

fn template(service: &Service, trigger: Option<String>) -> Template {
    let mut labels = backends::labels(service);
    labels.insert(SERVICE_NAME.into(), service.name().to_owned());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    Template {
        name: service.name().to_owned(),
        namespace: service.namespace().to_owned(),
        owner: owner_reference(service),
        labels,
        annotations: None,
        largest: LARGEST,
        // One empty slice shows that the Service was processed.
        keeps_empty: true,
        trigger,
    }
}

fn endpoint_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    }
}

/// Preferred endpoints of clients (`trafficDistribution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preference {
    None,
    SameZone,
    SameNode,
}

impl Preference {
    fn of(service: &Service) -> Self {
        match service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref()) {
            // The older annotation takes precedence.
            _ if zones::is_auto(service) => Preference::None,
            Some("PreferClose" | "PreferSameZone") => Preference::SameZone,
            Some("PreferSameNode") => Preference::SameNode,
            _ => Preference::None,
        }
    }

    /// Returns the hints of an endpoint. Endpoints without traffic need none.
    fn hints(self, ready: bool, zone: Option<&String>, node: Option<&String>) -> Option<EndpointHints> {
        if !ready {
            return None;
        }
        let for_zones = zone.map(|name| vec![ForZone { name: name.clone() }]);
        let hints = match self {
            Preference::None => return None,
            Preference::SameZone => EndpointHints { for_zones, for_nodes: None },
            // Endpoints on other nodes of the zone are the second choice.
            Preference::SameNode => {
                EndpointHints { for_zones, for_nodes: node.map(|name| vec![ForNode { name: name.clone() }]) }
            }
        };
        Some(hints).filter(|h| *h != EndpointHints::default())
    }
}

fn endpoint(backend: &Backend, caches: &Caches, prefers: Preference) -> Endpoint {
    let node_name = backend.node_name();
    let node = node_name.as_ref().and_then(|name| caches.of::<Node>().get("", name));
    let zone = node.as_deref().and_then(zone_of).cloned();
    Endpoint {
        addresses: vec![backend.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hints: prefers.hints(backend.ready, zone.as_ref(), node_name.as_ref()),
        hostname: backend.hostname.clone(),
        node_name,
        zone,
        target_ref: Some(backend.target_ref()),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_follow_the_preference() {
        let (zone, node) = ("z".to_owned(), "n".to_owned());
        let zones =
            |h: &EndpointHints| h.for_zones.iter().flatten().map(|z| z.name.clone()).collect::<String>();
        let nodes =
            |h: &EndpointHints| h.for_nodes.iter().flatten().map(|n| n.name.clone()).collect::<String>();
        for (prefers, ready, zone, want) in [
            (Preference::None, true, Some(&zone), None),
            (Preference::SameZone, true, Some(&zone), Some(("z", ""))),
            (Preference::SameZone, false, Some(&zone), None),
            (Preference::SameZone, true, None, None),
            (Preference::SameNode, true, Some(&zone), Some(("z", "n"))),
            (Preference::SameNode, true, None, Some(("", "n"))),
        ] {
            let found = prefers.hints(ready, zone, Some(&node)).map(|h| (zones(&h), nodes(&h)));
            let want = want.map(|(z, n): (&str, &str)| (z.to_owned(), n.to_owned()));
            assert_eq!(found, want, "{prefers:?}, ready {ready}, zone {zone:?}");
        }
    }
}
