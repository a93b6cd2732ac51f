//! EndpointSlices and Endpoints: the addresses behind Services.
//!
//! Flow: [`backends`] computes addresses and ports from a Service and its pods; [`slices`] builds
//! EndpointSlices and [`legacy`] the older Endpoints object; [`mirroring`] builds EndpointSlices for manually
//! written Endpoints. [`pack`] distributes endpoints over slices, and [`zones`] assigns topology hints. Each
//! of the three is a controller of its own, and writes only changes.

mod backends;
mod legacy;
mod mirroring;
mod pack;
mod slices;
mod trigger;
mod zones;

use std::{collections::BTreeSet, sync::Arc};

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        core::v1::{Endpoints, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    meta::{LabelSelector, ObjectExt, ObjectKey},
};

use super::{Options, pods};
use k8s_controllers::{Caches, Controller, Environment, predicates};

pub(super) fn slices(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    pods::index_by_node(&environment.caches);
    Controller::<Service>::new()
        .named("endpointslice-controller")
        .workers(5)
        .owns::<EndpointSlice>()
        .watches::<Pod>(selecting)
        .watches_when::<Node>(
            predicates::changed(|node: &Node| (slices::zone_of(node).cloned(), zones::part(node))),
            |caches, node| {
                let pods = pods::pods_on(caches, node.name());
                let services = pods.iter().flat_map(|pod| selecting(caches, pod));
                // Services with topology hints depend on all nodes.
                let all = caches.of::<Service>().list();
                let auto = all.iter().filter(|service| zones::is_auto(service)).map(|service| service.key());
                services.chain(auto).collect::<BTreeSet<ObjectKey>>().into_iter().collect()
            },
        )
        .run_in(environment, slices::Slices::default())
}

pub(super) fn endpoints(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Service>::new()
        .named("endpoint-controller")
        .workers(5)
        .watches::<Endpoints>(|_, endpoints| vec![endpoints.key()])
        .watches::<Pod>(selecting)
        .run_in(environment, legacy::Legacy::default())
}

pub(super) fn mirroring(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Endpoints>::new()
        .named("endpointslice-mirroring-controller")
        .workers(5)
        .watches::<EndpointSlice>(mirroring::mirrored)
        .watches::<Service>(|_, service| vec![service.key()])
        .run_in(environment, mirroring::Mirroring)
}

/// Returns the Services that select, or selected, a pod.
fn selecting(caches: &Caches, pod: &Pod) -> Vec<ObjectKey> {
    let services = caches.of::<Service>().in_namespace(pod.namespace());
    let selects =
        |service: &Arc<Service>| selector(service).is_some_and(|s| s.matches(pod.metadata.labels.as_ref()));
    services.iter().filter(|s| selects(s)).map(|s| s.key()).collect()
}

/// Returns a Service's selector; `None` if its endpoints are managed by others.
fn selector(service: &Service) -> Option<LabelSelector> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty()).map(LabelSelector::from_labels)
}

fn pods_behind(caches: &Caches, service: &Service) -> Option<Vec<Arc<Pod>>> {
    let selector = selector(service)?;
    let mut pods = caches.of::<Pod>().in_namespace(service.namespace());
    pods.retain(|pod| selector.matches(pod.metadata.labels.as_ref()));
    Some(pods)
}
