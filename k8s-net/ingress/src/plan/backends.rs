//! Ports of Services, and their ready endpoints.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_core::{
    api::api::{core::v1::Service, discovery::v1::EndpointSlice, networking::v1::ServiceBackendPort},
    meta::ObjectKey,
};

use super::Objects;
use crate::{annotations::Problem, backend::Backend};

/// The backends of one table, by Service and port.
#[derive(Default)]
pub(super) struct Backends {
    known: HashMap<(ObjectKey, String), Arc<Backend>>,
}

impl Backends {
    /// Returns the Services that were looked for.
    pub(super) fn services(&self) -> BTreeSet<ObjectKey> {
        self.known.keys().map(|(service, _)| service.clone()).collect()
    }

    /// Returns the backend of a Service's port. One without Service, port or endpoints is a backend without
    /// endpoints.
    pub(super) fn of(
        &mut self,
        objects: &Objects<'_>,
        service: ObjectKey,
        port: &ServiceBackendPort,
    ) -> (Arc<Backend>, Option<Problem>) {
        let name = port.name.clone().filter(|name| !name.is_empty());
        let shown = name.unwrap_or_else(|| port.number.unwrap_or_default().to_string());
        let found = (objects.service)(&service.namespace, &service.name);
        let external = found.as_ref().is_some_and(|found| is_external(found));
        let problem = external.then(|| {
            let message = format!("Service {service}: Services of type ExternalName are not served");
            Problem::new("BackendRefused", message)
        });
        let id = (service, shown);
        if let Some(known) = self.known.get(&id) {
            return (known.clone(), problem);
        }
        let endpoints = match found.as_ref().filter(|_| !external).and_then(|s| port_name(s, port)) {
            Some(name) => {
                let slices = (objects.slices)(&id.0.namespace, &id.0.name);
                endpoints(&slices, &name, objects.refused)
            }
            None => Vec::new(),
        };
        let backend = Arc::new(Backend::new(
            id.0.clone(),
            id.1.clone(),
            endpoints,
            objects.seed.wrapping_add(self.known.len()),
        ));
        self.known.insert(id, backend.clone());
        (backend, problem)
    }
}

fn is_external(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

/// Returns the name of a Service's port, which its EndpointSlices have; empty for the only one.
fn port_name(service: &Service, wanted: &ServiceBackendPort) -> Option<String> {
    let mut ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let found = ports.find(|port| match wanted.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => port.name.as_deref() == Some(name),
        None => Some(port.port) == wanted.number,
    });
    found.map(|port| port.name.clone().unwrap_or_default())
}

/// Returns the ready endpoints, in order and once each. Addresses of the machine itself that nobody should
/// reach by way of a proxy are left out, and so are `refused` ones.
fn endpoints(slices: &[Arc<EndpointSlice>], port: &str, refused: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut found = BTreeSet::new();
    for slice in slices {
        let mut ports = slice.ports.iter().flatten();
        let number = ports.find(|p| p.name.as_deref().unwrap_or_default() == port).and_then(|p| p.port);
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let is_ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let addresses = endpoint.addresses.iter().filter(|_| is_ready);
            let addresses = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
            found.extend(addresses.filter(|a| may_be_reached(*a)).map(|a| SocketAddr::new(a, number)));
        }
    }
    found.into_iter().filter(|endpoint| !refused.contains(endpoint)).collect()
}

/// Returns false for addresses that lead to the machine itself or to its link.
pub(crate) fn may_be_reached(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast())
        }
    }
}
