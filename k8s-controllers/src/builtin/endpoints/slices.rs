//! Packs backends into EndpointSlices of at most 100, changing as few of the present slices as possible.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_core::{
    api::{
        api::{
            core::v1::{Node, ObjectReference, Service},
            discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::DeleteOptions,
    meta::{ObjectExt, owner_reference},
};

use super::{
    backends::{self, Backend, Port},
    pods_behind,
};
use crate::{Action, Caches, Context, Error, Reconcile, builtin::pods};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// How many endpoints a slice has at most.
const LARGEST: usize = 100;

pub(super) struct Slices;

impl Reconcile for Slices {
    type Kind = Service;

    async fn reconcile(&self, cx: &Context, service: Arc<Service>) -> Result<Action, Error> {
        if service.is_deleting() {
            return Ok(Action::await_change());
        }
        let Some(pods) = pods_behind(cx.caches(), &service) else { return Ok(Action::await_change()) };
        let mut present: Vec<Arc<EndpointSlice>> = cx.owned(&*service);
        present.retain(|s| s.label(MANAGED_BY) == Some(MANAGER) && !s.is_deleting());
        let families = backends::families(&service);
        let mut plan = Plan::default();
        for family in &families {
            let (same, others) = present.into_iter().partition(|s| s.address_type == *family);
            present = others;
            let groups = backends::groups(&service, &pods, family);
            let desired = groups
                .into_iter()
                .map(|(ports, backends)| {
                    let endpoints = backends.iter().map(|b| endpoint(b, cx.caches())).collect();
                    (ports.iter().map(endpoint_port).collect(), endpoints)
                })
                .collect();
            plan.add(&service, family, same, desired);
        }
        plan.delete.extend(present);
        for slice in &plan.create {
            cx.create(slice).await?;
        }
        for slice in &plan.update {
            cx.replace(slice).await?;
        }
        for slice in &plan.delete {
            cx.delete(&**slice, DeleteOptions::default()).await?;
        }
        Ok(Action::await_change())
    }
}

/// Ports and endpoints that go together.
type Group = (Vec<EndpointPort>, Vec<Endpoint>);

#[derive(Default)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<Arc<EndpointSlice>>,
}

impl Plan {
    /// Keeps present slices where their endpoints are still wanted, fills the gaps, and makes new ones for what is left.
    fn add(
        &mut self,
        service: &Service,
        family: &str,
        present: Vec<Arc<EndpointSlice>>,
        mut desired: Vec<Group>,
    ) {
        // One empty slice says that somebody has looked.
        let placeholder = desired.is_empty();
        if placeholder {
            desired.push((Vec::new(), Vec::new()));
        }
        let mut by_ports: HashMap<String, Vec<Arc<EndpointSlice>>> = HashMap::new();
        for slice in present {
            by_ports.entry(ports_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
        }
        for (ports, endpoints) in desired {
            let mut wanted: BTreeMap<String, Endpoint> =
                endpoints.into_iter().map(|e| (endpoint_key(&e), e)).collect();
            let kept = by_ports.remove(&ports_key(&ports)).unwrap_or_default();
            let mut next: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
            for slice in kept {
                let still = |e: &Endpoint| wanted.remove(&endpoint_key(e));
                let endpoints = slice.endpoints.iter().flatten().filter_map(still).collect();
                next.push((slice, endpoints));
            }
            let mut fresh = wanted.into_values();
            // Slices that change anyway are filled first, then the fullest of the others.
            next.sort_by_key(|(slice, endpoints)| {
                let changed = slice.endpoints.as_ref().is_none_or(|e| e.len() != endpoints.len());
                (!changed, std::cmp::Reverse(endpoints.len()))
            });
            for (_, endpoints) in &mut next {
                let room = LARGEST.saturating_sub(endpoints.len());
                endpoints.extend(fresh.by_ref().take(room));
            }
            let mut place_held = false;
            for (slice, endpoints) in next {
                if endpoints.is_empty() && (!placeholder || place_held) {
                    self.delete.push(slice);
                    continue;
                }
                place_held = true;
                let mut updated = shape(service, family, &ports, endpoints, Some(&slice));
                if !same(&updated, &slice) {
                    note_trigger(service, &mut updated);
                    self.update.push(updated);
                }
            }
            while fresh.len() > 0 || (placeholder && !place_held) {
                place_held = true;
                let endpoints = fresh.by_ref().take(LARGEST).collect();
                let mut made = shape(service, family, &ports, endpoints, None);
                note_trigger(service, &mut made);
                self.create.push(made);
            }
        }
        self.delete.extend(by_ports.into_values().flatten());
    }
}

fn ports_key(ports: &[EndpointPort]) -> String {
    let mut all: Vec<String> = ports
        .iter()
        .map(|p| {
            format!(
                "{:?}/{:?}/{:?}/{:?}",
                p.name.as_deref().unwrap_or_default(),
                p.protocol,
                p.port,
                p.app_protocol
            )
        })
        .collect();
    all.sort();
    all.join(",")
}

fn endpoint_key(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref()).unwrap_or_default();
    format!("{}/{uid}", endpoint.addresses.first().map_or("", String::as_str))
}

fn endpoint_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(backend: &Backend, caches: &Caches) -> Endpoint {
    let pod = &backend.pod;
    let node_name = Some(pods::node_name(pod).to_owned()).filter(|n| !n.is_empty());
    let node = node_name.as_ref().and_then(|name| caches.of::<Node>().get("", name));
    Endpoint {
        addresses: vec![backend.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name,
        zone: node.and_then(|n| n.label("topology.kubernetes.io/zone").map(str::to_owned)),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace().to_owned()),
            name: Some(pod.name().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn shape(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    live: Option<&EndpointSlice>,
) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.name().to_owned());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if backends::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    let mut metadata = live.map(|l| l.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        generate_name: Some(format!("{}-", service.name())),
        namespace: Some(service.namespace().to_owned()),
        owner_references: Some(vec![owner_reference(service)]),
        ..ObjectMeta::default()
    });
    metadata.labels = Some(labels);
    EndpointSlice {
        metadata,
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()).filter(|p| !p.is_empty()),
    }
}

/// Whether a slice says the same. Order does not matter, and neither does how emptiness is written.
fn same(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    let by_key = |s: &EndpointSlice| -> BTreeMap<String, Endpoint> {
        s.endpoints.iter().flatten().map(|e| (endpoint_key(e), e.clone())).collect()
    };
    let key = |s: &EndpointSlice| ports_key(s.ports.as_deref().unwrap_or_default());
    a.metadata.labels == b.metadata.labels && key(a) == key(b) && by_key(a) == by_key(b)
}

/// When the change that led here was made, for those who measure how long it takes to reach the nodes.
fn note_trigger(service: &Service, slice: &mut EndpointSlice) {
    if let Some(time) = service.annotation(TRIGGER) {
        slice.metadata.annotations.get_or_insert_default().insert(TRIGGER.into(), time.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::api::api::core::v1::ServiceSpec;
    use proptest::prelude::*;

    use super::*;

    fn service() -> Service {
        Service {
            metadata: ObjectMeta {
                name: Some("web".into()),
                namespace: Some("n".into()),
                uid: Some("u".into()),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceSpec::default()),
            status: None,
        }
    }

    fn group(port: i32, ids: &[u16]) -> Group {
        let ports = vec![EndpointPort { port: Some(port), ..EndpointPort::default() }];
        let endpoint = |id: &u16| Endpoint {
            addresses: vec![format!("10.0.{}.{}", id >> 8, id & 255)],
            ..Endpoint::default()
        };
        (ports, ids.iter().map(endpoint).collect())
    }

    proptest! {
        /// After a plan the slices hold exactly what is wanted, none too large; planning again changes nothing.
        #[test]
        fn slices_hold_exactly_what_is_wanted(
            rounds in proptest::collection::vec((proptest::collection::btree_set(0u16..400, 0..300), proptest::collection::btree_set(400u16..500, 0..20)), 1..6),
        ) {
            let service = service();
            let mut live: Vec<Arc<EndpointSlice>> = Vec::new();
            let mut next_name = 0;
            for (one, two) in rounds {
                let mut desired = Vec::new();
                if !one.is_empty() { desired.push(group(80, &one.iter().copied().collect::<Vec<_>>())); }
                if !two.is_empty() { desired.push(group(81, &two.iter().copied().collect::<Vec<_>>())); }
                for again in [false, true] {
                    let mut plan = Plan::default();
                    plan.add(&service, "IPv4", live.clone(), desired.clone());
                    if again {
                        prop_assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
                        continue;
                    }
                    let gone: Vec<String> = plan.delete.iter().map(|s| s.name().to_owned()).collect();
                    live.retain(|s| !gone.iter().any(|n| n == s.name()) && !plan.update.iter().any(|u| u.name() == s.name()));
                    live.extend(plan.update.into_iter().map(Arc::new));
                    for mut made in plan.create {
                        next_name += 1;
                        made.metadata.name = Some(format!("web-{next_name}"));
                        live.push(Arc::new(made));
                    }
                }
                let mut have: Vec<(String, String)> = live.iter()
                    .flat_map(|s| s.endpoints.iter().flatten().map(|e| (ports_key(s.ports.as_deref().unwrap_or_default()), endpoint_key(e)))).collect();
                have.sort();
                let mut want: Vec<(String, String)> = desired.iter()
                    .flat_map(|(p, e)| e.iter().map(|e| (ports_key(p), endpoint_key(e)))).collect();
                want.sort();
                prop_assert_eq!(have, want);
                prop_assert!(!live.is_empty());
                prop_assert!(live.iter().all(|s| s.endpoints.as_ref().is_none_or(|e| e.len() <= LARGEST)));
            }
        }
    }
}
