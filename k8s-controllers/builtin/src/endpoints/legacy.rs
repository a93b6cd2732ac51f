//! The Endpoints object of a Service, for clients without EndpointSlices.

use std::{collections::BTreeMap, sync::Arc};

use k8s_core::{
    api::{
        api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::DeleteOptions,
    meta::ObjectExt,
};

use super::{
    backends::{self, Backend, Port},
    pods_behind,
    trigger::{self, Tracker},
};
use crate::batch::is_namespace_terminating;
use k8s_controllers::{Action, Context, Error, EventType, Reconcile};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Maximum number of addresses in an Endpoints object.
const LARGEST: usize = 1000;

#[derive(Default)]
pub(super) struct Legacy {
    told: Tracker,
}

impl Reconcile for Legacy {
    type Kind = Service;

    async fn reconcile(&self, cx: &Context, service: Arc<Service>) -> Result<Action, Error> {
        let Some(pods) = pods_behind(cx.caches(), &service) else { return Ok(Action::await_change()) };
        if service.is_deleting() {
            return Ok(Action::await_change());
        }
        let family = backends::families(&service).swap_remove(0);
        let groups = backends::groups(&service, &pods, &family);
        let (subsets, truncated) = subsets(&service, groups);
        let live = cx.cached::<Endpoints>(service.name());
        let mut next = live.as_deref().cloned().unwrap_or_else(|| Endpoints {
            metadata: ObjectMeta {
                name: Some(service.name().to_owned()),
                namespace: Some(service.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            subsets: None,
        });
        let mut labels = backends::labels(&service);
        labels.insert(MANAGED_BY.into(), MANAGER.into());
        next.metadata.labels = Some(labels);
        let annotations = next.metadata.annotations.get_or_insert_default();
        annotations.remove(OVER_CAPACITY);
        if truncated {
            annotations.insert(OVER_CAPACITY.into(), "truncated".into());
        }
        next.metadata.annotations = next.metadata.annotations.take().filter(|a| !a.is_empty());
        next.subsets = Some(subsets).filter(|s| !s.is_empty());
        let time = self.told.next(&service, &pods);
        if live.as_deref() == Some(&next) {
            return Ok(Action::await_change());
        }
        trigger::write(&mut next.metadata, time.as_deref());
        let (reason, did, result) = match live {
            None => ("FailedToCreateEndpoint", "create endpoint for service", cx.create(&next).await),
            Some(_) => ("FailedToUpdateEndpoint", "update endpoint", cx.replace(&next).await),
        };
        if let Err(e) = result {
            // The write failed, so its trigger time was not published.
            self.told.forget(cx.key());
            if !is_namespace_terminating(&e) {
                let message = format!("Failed to {did} {}: {e}", cx.key());
                cx.event(&*service, EventType::Warning, reason, message);
            }
            return Err(e);
        }
        Ok(Action::await_change())
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        self.told.forget(cx.key());
        // Deleting a Service with a selector deletes its Endpoints; manually written ones stay.
        if let Some(live) = cx.cached::<Endpoints>(&cx.key().name)
            && live.label(MANAGED_BY) == Some(MANAGER)
        {
            cx.delete(&*live, DeleteOptions::default()).await?;
        }
        Ok(Action::await_change())
    }
}

#[derive(Default)]
struct Addresses {
    ready: Vec<EndpointAddress>,
    not_ready: Vec<EndpointAddress>,
}

/// Returns addresses by ports in a stable order, and true if some were truncated. Addresses that are not
/// ready are truncated first.
fn subsets(service: &Service, groups: backends::Groups) -> (Vec<EndpointSubset>, bool) {
    let mut by_ports: BTreeMap<Vec<Port>, Addresses> = BTreeMap::new();
    for (ports, mut backends) in groups {
        backends.sort_by(|a, b| a.ip.cmp(&b.ip).then_with(|| a.pod.uid().cmp(b.pod.uid())));
        if ports.is_empty() && !backends::is_headless(service) {
            continue;
        }
        let slot = by_ports.entry(ports).or_default();
        // A terminating pod gets no new connections, unless the Service publishes addresses that are not
        // ready.
        for backend in backends.iter().filter(|b| !b.terminating || b.ready) {
            let list = if backend.ready { &mut slot.ready } else { &mut slot.not_ready };
            list.push(address(backend));
        }
    }
    let mut left = LARGEST;
    let mut truncated = false;
    let mut cut = |list: &mut Vec<EndpointAddress>| {
        truncated |= list.len() > left;
        list.truncate(left);
        left -= list.len();
    };
    by_ports.values_mut().for_each(|slot| cut(&mut slot.ready));
    by_ports.values_mut().for_each(|slot| cut(&mut slot.not_ready));
    let some = |list: Vec<EndpointAddress>| Some(list).filter(|l| !l.is_empty());
    let subsets = by_ports
        .into_iter()
        .filter(|(_, a)| !a.ready.is_empty() || !a.not_ready.is_empty())
        .map(|(ports, addresses)| EndpointSubset {
            addresses: some(addresses.ready),
            not_ready_addresses: some(addresses.not_ready),
            ports: Some(ports.iter().map(endpoint_port).collect::<Vec<_>>()).filter(|p| !p.is_empty()),
        })
        .collect();
    (subsets, truncated)
}

fn endpoint_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()).filter(|n| !n.is_empty()),
        protocol: Some(port.protocol.clone()),
        port: port.number,
        app_protocol: port.app_protocol.clone(),
    }
}

fn address(backend: &Backend) -> EndpointAddress {
    EndpointAddress {
        ip: backend.ip.clone(),
        hostname: backend.hostname.clone(),
        node_name: backend.node_name(),
        target_ref: Some(backend.target_ref()),
    }
}
