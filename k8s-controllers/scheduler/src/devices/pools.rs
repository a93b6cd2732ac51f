//! Pools of devices as one node sees them: the newest generation, complete or not.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use k8s_core::{
    api::api::{
        core::v1::{Node, NodeSelector},
        resource::v1::{Device, DeviceAttribute, ResourceSlice},
    },
    meta::{ObjectExt, node::NodeTerm},
};

use super::DeviceId;

/// A pool with the devices that a node can use.
pub(super) struct Pool<'a> {
    pub(super) driver: &'a str,
    pub(super) name: &'a str,
    /// Slices of the newest generation are missing: no device is given.
    pub(super) incomplete: bool,
    /// Names of devices are not unique: no device is given.
    pub(super) invalid: bool,
    /// Empty if the pool is incomplete or invalid.
    pub(super) devices: Vec<Candidate<'a>>,
}

/// A device that a node can use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) slice: &'a ResourceSlice,
    pub(super) device: &'a Device,
}

impl<'a> Candidate<'a> {
    pub(super) fn id(&self) -> DeviceId {
        let spec = &self.slice.spec;
        (spec.driver.clone(), spec.pool.name.clone(), self.device.name.clone())
    }

    /// Returns true if the device is of a kind that can be allocated whole.
    pub(super) fn is_supported(&self) -> bool {
        let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
        self.device.consumes_counters.as_ref().is_none_or(Vec::is_empty)
            && self.device.allow_multiple_allocations != Some(true)
            && none(&self.device.binding_conditions)
    }

    /// Returns the name of the only node that can use the device, or the selector of its nodes.
    pub(super) fn place(&self) -> (Option<&'a str>, Option<&'a NodeSelector>) {
        if self.slice.spec.per_device_node_selection == Some(true) {
            (set(&self.device.node_name), self.device.node_selector.as_ref())
        } else {
            (set(&self.slice.spec.node_name), self.slice.spec.node_selector.as_ref())
        }
    }

    /// Returns an attribute by its full name; the driver's own may lack the domain.
    pub(super) fn attribute(&self, name: &str) -> Option<&'a DeviceAttribute> {
        let all = self.device.attributes.as_ref()?;
        let short = || name.split_once('/').filter(|(domain, _)| *domain == self.slice.spec.driver);
        all.get(name).or_else(|| all.get(short()?.1))
    }
}

fn set(name: &Option<String>) -> Option<&str> {
    name.as_deref().filter(|name| !name.is_empty())
}

fn is_on(node: &Node, name: &Option<String>, all: Option<bool>, selector: Option<&NodeSelector>) -> bool {
    match (set(name), selector) {
        (Some(name), _) => name == node.name(),
        (None, _) if all == Some(true) => true,
        (None, Some(selector)) => NodeTerm::of(selector).iter().any(|term| term.matches(node)),
        (None, None) => false,
    }
}

/// Returns the devices of a slice that the node can use. `None`: the slice is not for the node.
fn usable<'a>(slice: &'a ResourceSlice, node: &Node) -> Option<Vec<Candidate<'a>>> {
    let (spec, devices) = (&slice.spec, slice.spec.devices.iter().flatten());
    if spec.shared_counters.as_ref().is_some_and(|counters| !counters.is_empty()) {
        return Some(Vec::new());
    }
    if spec.per_device_node_selection == Some(true) {
        let here = |d: &&Device| is_on(node, &d.node_name, d.all_nodes, d.node_selector.as_ref());
        let all: Vec<_> = devices.filter(here).map(|device| Candidate { slice, device }).collect();
        return (!all.is_empty()).then_some(all);
    }
    is_on(node, &spec.node_name, spec.all_nodes, spec.node_selector.as_ref())
        .then(|| devices.map(|device| Candidate { slice, device }).collect())
}

/// Returns the pools with slices for a node, by driver and name.
pub(super) fn on_node<'a>(slices: &'a [Arc<ResourceSlice>], node: &Node) -> Vec<Pool<'a>> {
    let mut all: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
    for slice in slices {
        all.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default().push(slice);
    }
    let mut pools = Vec::new();
    for ((driver, name), mut slices) in all {
        // Only the newest generation counts, wherever its devices are.
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max().unwrap_or(0);
        slices.retain(|slice| slice.spec.pool.generation == newest);
        slices.sort_by_key(|slice| slice.name());
        let here: Vec<Vec<Candidate<'a>>> = slices.iter().filter_map(|slice| usable(slice, node)).collect();
        let Some(first) = slices.first().filter(|_| !here.is_empty()) else { continue };
        let incomplete = i64::try_from(slices.len()).ok() != Some(first.spec.pool.resource_slice_count);
        let mut devices: Vec<Candidate<'a>> = here.into_iter().flatten().collect();
        let mut seen = HashSet::new();
        let invalid = devices.iter().any(|candidate| !seen.insert(&candidate.device.name));
        if incomplete || invalid {
            devices.clear();
        }
        pools.push(Pool { driver, name, incomplete, invalid, devices });
    }
    pools
}
