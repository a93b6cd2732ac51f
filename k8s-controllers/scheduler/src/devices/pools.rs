//! Pools of devices as one node sees them: the newest generation, complete or not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
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
    if spec.per_device_node_selection == Some(true) {
        let here = |d: &&Device| is_on(node, &d.node_name, d.all_nodes, d.node_selector.as_ref());
        let all: Vec<_> = devices.filter(here).map(|device| Candidate { slice, device }).collect();
        return (!all.is_empty()).then_some(all);
    }
    is_on(node, &spec.node_name, spec.all_nodes, spec.node_selector.as_ref())
        .then(|| devices.map(|device| Candidate { slice, device }).collect())
}

/// All slices by pool, made once for a decision about many nodes.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// By driver and name of the pool.
    pools: Vec<Vec<Arc<ResourceSlice>>>,
    /// Indices of the pools with a slice for one node only, by its name.
    of_node: HashMap<String, Vec<usize>>,
    /// Indices of the pools with a slice that may be for any node.
    anywhere: Vec<usize>,
}

impl Inventory {
    pub(crate) fn new(slices: Vec<Arc<ResourceSlice>>) -> Self {
        let mut all: BTreeMap<(String, String), Vec<Arc<ResourceSlice>>> = BTreeMap::new();
        for slice in slices {
            let key = (slice.spec.driver.clone(), slice.spec.pool.name.clone());
            all.entry(key).or_default().push(slice);
        }
        let mut inventory = Inventory::default();
        for mut slices in all.into_values() {
            slices.sort_by(|a, b| a.name().cmp(b.name()));
            let at = inventory.pools.len();
            let nodes: BTreeSet<Option<&str>> = slices.iter().map(|s| set(&s.spec.node_name)).collect();
            for node in nodes {
                match node {
                    Some(node) => inventory.of_node.entry(node.to_owned()).or_default().push(at),
                    None => inventory.anywhere.push(at),
                }
            }
            inventory.pools.push(slices);
        }
        inventory
    }

    /// Returns the pools with slices for a node, by driver and name.
    pub(super) fn on_node(&self, node: &Node) -> Vec<Pool<'_>> {
        let own = self.of_node.get(node.name()).into_iter().flatten();
        let indices: BTreeSet<usize> = own.chain(&self.anywhere).copied().collect();
        indices.into_iter().filter_map(|at| pool(&self.pools[at], node)).collect()
    }
}

/// Returns a pool as a node sees it. `None`: it has nothing for the node.
///
/// The newest generation is that of the slices for this node: a slice of another node, which that node may
/// have written, takes no devices from it. Only if some are missing, all slices of the pool are looked at.
fn pool<'a>(slices: &'a [Arc<ResourceSlice>], node: &Node) -> Option<Pool<'a>> {
    let mut here: Vec<(&ResourceSlice, Vec<Candidate<'a>>)> =
        slices.iter().filter_map(|slice| Some((&**slice, usable(slice, node)?))).collect();
    let newest = here.iter().map(|(slice, _)| slice.spec.pool.generation).max()?;
    here.retain(|(slice, _)| slice.spec.pool.generation == newest);
    let spec = &here.first()?.0.spec;
    let is_whole = |count: usize| i64::try_from(count).ok() == Some(spec.pool.resource_slice_count);
    let mut incomplete = !is_whole(here.len());
    if incomplete {
        if slices.iter().any(|slice| slice.spec.pool.generation > newest) {
            // The driver replaces the pool, and the new one has nothing here.
            return None;
        }
        incomplete = !is_whole(slices.iter().filter(|s| s.spec.pool.generation == newest).count());
    }
    let mut devices: Vec<Candidate<'a>> = here.into_iter().flat_map(|(_, devices)| devices).collect();
    let mut seen = HashSet::new();
    let invalid = devices.iter().any(|candidate| !seen.insert(&candidate.device.name));
    if incomplete || invalid {
        devices.clear();
    }
    Some(Pool { driver: &spec.driver, name: &spec.pool.name, incomplete, invalid, devices })
}
