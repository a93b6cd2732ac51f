//! Allocation of devices to ResourceClaims on one node. Pure.
//!
//! Flow: [`Inventory::on_node`] collects the devices that the node can use, [`Selectors`] says which a
//! request accepts, and a depth-first search picks them. The first complete choice is the result.
//!
//! Guarantees:
//! 1. No device is given twice, nor one in use, except for admin access.
//! 2. If any choice satisfies all requests and constraints, one is found, unless the search ends with an
//!    error.
//! 3. Bounded: a search makes at most [`MOST_STEPS`] trials, and all searches of a decision share budgets of
//!    trials and of CEL cost.
//! 4. The devices of one request are picked in ascending order: their order among themselves means nothing.
//!
//! Not here: shared counters, devices that several claims can share, binding conditions. Such devices are
//! never given, and a request for all devices that selects one is refused.

mod pools;
mod selector;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_core::{
    api::api::{
        core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
        resource::v1::{
            AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceAttribute,
            DeviceClass, DeviceConstraint, DeviceRequestAllocationResult, DeviceSelector, DeviceTaint,
            DeviceToleration, ResourceClaim,
        },
    },
    meta::ObjectExt,
};

pub(crate) use pools::Inventory;
pub(crate) use selector::Selectors;

use pools::{Candidate, Pool};

/// Maximum number of devices of one claim.
const MOST_RESULTS: usize = 32;
/// Maximum number of trials of devices in one search.
const MOST_STEPS: usize = 50_000;
/// Maximum number of devices that all claims of a pod ask for: the depth of the search.
const MOST_DEVICES: usize = 1024;

/// A device: driver, pool and name.
pub(crate) type DeviceId = (String, String, String);

/// A request, or one of the alternatives of a request.
struct Alternative {
    /// `REQUEST` or `REQUEST/SUBREQUEST`.
    name: String,
    class: Arc<DeviceClass>,
    /// Numbers of the expressions.
    selectors: Vec<usize>,
    tolerations: Vec<DeviceToleration>,
    admin: bool,
    need: Need,
}

enum Need {
    Count(usize),
    /// These devices, by index.
    All(Vec<usize>),
}

impl Alternative {
    fn count(&self) -> usize {
        match &self.need {
            Need::Count(count) => *count,
            Need::All(devices) => devices.len(),
        }
    }
}

struct Picked {
    device: usize,
    request: usize,
    alternative: usize,
}

/// Reason for which a search ended without an answer.
enum Stop {
    Steps,
    Failed(String),
}

struct Search<'a> {
    claims: &'a [Arc<ResourceClaim>],
    /// The alternatives of each request of each claim.
    requests: Vec<Vec<Vec<Alternative>>>,
    devices: &'a [Candidate<'a>],
    /// True if another claim has the device, by its index.
    in_use: Vec<bool>,
    selectors: &'a mut Selectors,
    accepted: HashMap<(usize, usize, usize, usize), bool>,
    picked: Vec<Vec<Picked>>,
    steps: usize,
}

/// Gives devices on a node to claims that have none. `None`: the node does not have them.
///
/// # Errors
/// The claims cannot be allocated on this node, for this reason.
pub(crate) fn allocate(
    node: &Node,
    inventory: &Inventory,
    class: &dyn Fn(&str) -> Option<Arc<DeviceClass>>,
    in_use: &HashSet<DeviceId>,
    claims: &[Arc<ResourceClaim>],
    selectors: &mut Selectors,
) -> Result<Option<Vec<AllocationResult>>, String> {
    let pools = inventory.on_node(node);
    let devices: Vec<Candidate<'_>> = pools.iter().flat_map(|pool| pool.devices.iter().copied()).collect();
    let mut requests = Vec::new();
    for claim in claims {
        requests.push(plan(claim, class, &pools, &devices, selectors)?);
    }
    let least = |request: &Vec<Alternative>| request.iter().map(Alternative::count).min().unwrap_or(0);
    let mut total = 0;
    for (claim, requests) in claims.iter().zip(&requests) {
        let wanted = requests.iter().map(least).fold(0, usize::saturating_add);
        if wanted > MOST_RESULTS {
            return Err(format!(
                "claim {}: number of requested devices {wanted} exceeds the claim limit of {MOST_RESULTS}",
                claim.key()
            ));
        }
        total += wanted;
    }
    if total > MOST_DEVICES {
        return Err(format!(
            "number of requested devices {total} exceeds the limit of {MOST_DEVICES} for a pod"
        ));
    }
    let picked = claims.iter().map(|_| Vec::new()).collect();
    let accepted = HashMap::new();
    let in_use = devices.iter().map(|device| in_use.contains(&device.id())).collect();
    let mut search =
        Search { claims, requests, devices: &devices, in_use, selectors, accepted, picked, steps: 0 };
    let found = match search.is_hopeless() {
        Ok(false) => search.place(0, 0, None, 0, 0),
        Ok(true) => Ok(false),
        Err(stop) => Err(stop),
    };
    match found {
        Ok(true) => Ok(Some((0..claims.len()).map(|at| search.result(at, node)).collect())),
        Ok(false) if pools.iter().any(|pool| pool.invalid) => {
            Err("invalid resource pools were encountered".to_owned())
        }
        Ok(false) => Ok(None),
        Err(Stop::Steps) => Err(format!("node {}: timed out trying to allocate devices", node.name())),
        Err(Stop::Failed(why)) => Err(why),
    }
}

/// Returns the alternatives of each request of a claim.
fn plan(
    claim: &ResourceClaim,
    class: &dyn Fn(&str) -> Option<Arc<DeviceClass>>,
    pools: &[Pool<'_>],
    devices: &[Candidate<'_>],
    selectors: &mut Selectors,
) -> Result<Vec<Vec<Alternative>>, String> {
    let spec = claim.spec.devices.iter();
    for (at, constraint) in spec.clone().flat_map(|d| d.constraints.iter().flatten()).enumerate() {
        if constraint.match_attribute.is_none() {
            let why = "empty constraint (unsupported constraint type?)";
            return Err(format!("claim {}, constraint #{at}: {why}", claim.key()));
        }
    }
    let mut all = Vec::new();
    for request in spec.flat_map(|d| d.requests.iter().flatten()) {
        let mut alternatives = Vec::new();
        let wanted: Vec<Wanted<'_>> = match (&request.exactly, &request.first_available) {
            (Some(exactly), _) => vec![Wanted {
                name: request.name.clone(),
                class: &exactly.device_class_name,
                selectors: exactly.selectors.as_deref(),
                tolerations: exactly.tolerations.as_deref(),
                admin: exactly.admin_access == Some(true),
                mode: exactly.allocation_mode.as_deref(),
                count: exactly.count,
                capacity: exactly.capacity.is_some(),
            }],
            (None, Some(several)) => several
                .iter()
                .map(|sub| Wanted {
                    name: format!("{}/{}", request.name, sub.name),
                    class: &sub.device_class_name,
                    selectors: sub.selectors.as_deref(),
                    tolerations: sub.tolerations.as_deref(),
                    admin: false,
                    mode: sub.allocation_mode.as_deref(),
                    count: sub.count,
                    capacity: sub.capacity.is_some(),
                })
                .collect(),
            (None, None) => {
                return Err(format!("claim {}, request {}: unknown request type", claim.key(), request.name));
            }
        };
        for wanted in wanted {
            let failed = |why: String| format!("claim {}, request {}: {why}", claim.key(), wanted.name);
            alternatives.push(wanted.plan(class, pools, devices, selectors).map_err(failed)?);
        }
        all.push(alternatives);
    }
    Ok(all)
}

/// A request or subrequest as it was written.
struct Wanted<'a> {
    name: String,
    class: &'a str,
    selectors: Option<&'a [DeviceSelector]>,
    tolerations: Option<&'a [DeviceToleration]>,
    admin: bool,
    mode: Option<&'a str>,
    count: Option<i64>,
    capacity: bool,
}

impl Wanted<'_> {
    fn plan(
        &self,
        class: &dyn Fn(&str) -> Option<Arc<DeviceClass>>,
        pools: &[Pool<'_>],
        devices: &[Candidate<'_>],
        selectors: &mut Selectors,
    ) -> Result<Alternative, String> {
        if self.capacity {
            return Err("requests of a device's capacity are not supported".to_owned());
        }
        let class = class(self.class).ok_or_else(|| format!("device class {} does not exist", self.class))?;
        let mut texts = Vec::new();
        for selector in class.spec.selectors.iter().flatten().chain(self.selectors.unwrap_or_default()) {
            let cel = selector.cel.as_ref().ok_or("CEL expression empty (unsupported selector type?)")?;
            texts.push(selectors.number(&cel.expression));
        }
        let mut planned = Alternative {
            name: self.name.clone(),
            class,
            selectors: texts,
            tolerations: self.tolerations.unwrap_or_default().to_vec(),
            admin: self.admin,
            need: Need::Count(0),
        };
        planned.need = match self.mode {
            None | Some("ExactCount") => {
                let count = usize::try_from(self.count.unwrap_or(1)).map_err(|_| "the count is negative")?;
                Need::Count(count)
            }
            Some("All") => {
                if let Some(pool) = pools.iter().find(|pool| pool.incomplete || pool.invalid) {
                    let state = if pool.incomplete { "being updated" } else { "invalid" };
                    let name = format!("{}/{}", pool.driver, pool.name);
                    return Err(format!(
                        "asks for all devices, but resource pool {name} is currently {state}"
                    ));
                }
                let mut all = Vec::new();
                for (at, device) in devices.iter().enumerate() {
                    if selectors.accept(&planned.selectors, device)? {
                        if !device.is_supported() {
                            let name = &device.device.name;
                            return Err(format!(
                                "asks for all devices, but {name} is of an unsupported kind"
                            ));
                        }
                        all.push(at);
                    }
                }
                Need::All(all)
            }
            Some(other) => return Err(format!("unsupported count mode {other}")),
        };
        Ok(planned)
    }
}

impl Search<'_> {
    /// Returns true if some request finds too few devices, whatever the others get. Most searches that would
    /// try all arrangements in vain end here.
    fn is_hopeless(&mut self) -> Result<bool, Stop> {
        for c in 0..self.requests.len() {
            for r in 0..self.requests[c].len() {
                let mut possible = false;
                for a in 0..self.requests[c][r].len() {
                    possible = possible || self.has_enough(c, r, a)?;
                }
                if !possible {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn has_enough(&mut self, c: usize, r: usize, a: usize) -> Result<bool, Stop> {
        let count = match &self.requests[c][r][a].need {
            Need::Count(count) => *count,
            Need::All(devices) => return Ok(!devices.is_empty()),
        };
        let mut found = 0;
        for device in 0..self.devices.len() {
            if found >= count {
                break;
            }
            if self.is_free(c, r, a, device) && self.accepts(c, r, a, device)? {
                found += 1;
            }
        }
        Ok(found >= count)
    }

    /// Places the devices from number `k` of a request on, then the rest. `first` is the lowest index of a
    /// device that may be picked.
    fn place(&mut self, c: usize, r: usize, a: Option<usize>, k: usize, first: usize) -> Result<bool, Stop> {
        let Some(requests) = self.requests.get(c) else { return Ok(true) };
        let Some(request) = requests.get(r) else { return self.place(c + 1, 0, None, 0, 0) };
        let Some(a) = a else {
            for a in 0..request.len() {
                if self.place(c, r, Some(a), 0, 0)? {
                    return Ok(true);
                }
            }
            return Ok(false);
        };
        let alternative = &request[a];
        let count = alternative.count();
        if matches!(&alternative.need, Need::All(devices) if devices.is_empty()) {
            return Ok(false);
        }
        if k >= count {
            return self.place(c, r + 1, None, 0, 0);
        }
        if self.picked[c].len() + count - k > MOST_RESULTS {
            return Ok(false);
        }
        if let Need::All(devices) = &alternative.need {
            let device = devices[k];
            return self.pick(c, r, a, k, device);
        }
        for device in first..self.devices.len() {
            if self.pick(c, r, a, k, device)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Tries one device, and the rest with it.
    fn pick(&mut self, c: usize, r: usize, a: usize, k: usize, device: usize) -> Result<bool, Stop> {
        // Constraints are compared with what is picked already.
        let constraints = self.claims[c].spec.devices.iter().flat_map(|d| d.constraints.iter().flatten());
        let cost = 1 + constraints.count() * self.picked[c].len() / 32;
        self.steps += cost;
        self.selectors.trials = self.selectors.trials.saturating_sub(cost);
        if self.steps > MOST_STEPS || self.selectors.trials == 0 {
            return Err(Stop::Steps);
        }
        if !self.is_free(c, r, a, device) || !self.accepts(c, r, a, device)? {
            return Ok(false);
        }
        self.picked[c].push(Picked { device, request: r, alternative: a });
        let done = self.satisfies_constraints(c) && self.place(c, r, Some(a), k + 1, device + 1)?;
        if !done {
            self.picked[c].pop();
        }
        Ok(done)
    }

    fn is_free(&self, c: usize, r: usize, a: usize, device: usize) -> bool {
        let within = |claim: &Vec<Picked>| claim.iter().any(|picked| picked.device == device);
        if self.requests[c][r][a].admin {
            return !within(&self.picked[c]);
        }
        !self.in_use[device] && !self.picked.iter().any(within)
    }

    fn accepts(&mut self, c: usize, r: usize, a: usize, device: usize) -> Result<bool, Stop> {
        if let Some(known) = self.accepted.get(&(c, r, a, device)) {
            return Ok(*known);
        }
        let (alternative, candidate) = (&self.requests[c][r][a], &self.devices[device]);
        let accepted = candidate.is_supported()
            && self.selectors.accept(&alternative.selectors, candidate).map_err(|why| {
                Stop::Failed(format!("claim {}, request {}: {why}", self.claims[c].key(), alternative.name))
            })?
            && candidate
                .device
                .taints
                .iter()
                .flatten()
                .all(|taint| !keeps_off(taint, &alternative.tolerations));
        self.accepted.insert((c, r, a, device), accepted);
        Ok(accepted)
    }

    /// Checks the constraints of a claim for the device that was picked last.
    fn satisfies_constraints(&self, c: usize) -> bool {
        let spec = self.claims[c].spec.devices.iter();
        spec.flat_map(|devices| devices.constraints.iter().flatten()).all(|constraint| {
            let attribute = constraint.match_attribute.as_deref().unwrap_or_default();
            let mut about =
                self.picked[c].iter().rev().filter(|picked| concerns(constraint, self.name(c, picked)));
            let value = |picked: &Picked| self.devices[picked.device].attribute(attribute);
            // The others agree among themselves: each was compared when it was picked.
            match (about.next(), about.next()) {
                (None, _) => true,
                (Some(last), None) => value(last).is_some(),
                (Some(last), Some(before)) => {
                    value(last).zip(value(before)).is_some_and(|(a, b)| is_same(a, b))
                }
            }
        })
    }

    fn name(&self, c: usize, picked: &Picked) -> &str {
        &self.requests[c][picked.request][picked.alternative].name
    }

    /// Returns the result of a claim after a successful search.
    fn result(&self, c: usize, node: &Node) -> AllocationResult {
        let of = |picked: &Picked| &self.requests[c][picked.request][picked.alternative];
        let results = self.picked[c].iter().map(|picked| {
            let (device, alternative) = (&self.devices[picked.device], of(picked));
            let (driver, pool, name) = device.id();
            DeviceRequestAllocationResult {
                request: alternative.name.clone(),
                driver,
                pool,
                device: name,
                admin_access: alternative.admin.then_some(true),
                tolerations: Some(alternative.tolerations.clone()).filter(|all| !all.is_empty()),
                ..DeviceRequestAllocationResult::default()
            }
        });
        let config = self.config(c);
        AllocationResult {
            allocation_timestamp: None,
            devices: Some(DeviceAllocationResult {
                config: Some(config).filter(|all| !all.is_empty()),
                results: Some(results.collect()),
            }),
            node_selector: selector(self.picked[c].iter().map(|picked| &self.devices[picked.device]), node),
        }
    }

    /// Returns the configurations of the classes, each once, then those of the claim.
    fn config(&self, c: usize) -> Vec<DeviceAllocationConfiguration> {
        let mut chosen: Vec<&Alternative> = Vec::new();
        for picked in &self.picked[c] {
            let alternative = &self.requests[c][picked.request][picked.alternative];
            if !chosen.iter().any(|known| known.name == alternative.name) {
                chosen.push(alternative);
            }
        }
        let mut of_classes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut order: Vec<&Arc<DeviceClass>> = Vec::new();
        for alternative in &chosen {
            let requests = of_classes.entry(alternative.class.name()).or_default();
            if requests.is_empty() {
                order.push(&alternative.class);
            }
            requests.push(alternative.name.clone());
        }
        let mut all = Vec::new();
        for class in order {
            all.extend(class.spec.config.iter().flatten().map(|config| DeviceAllocationConfiguration {
                opaque: config.opaque.clone(),
                requests: of_classes.get(class.name()).cloned(),
                source: "FromClass".into(),
            }));
        }
        let spec = self.claims[c].spec.devices.iter();
        for config in spec.flat_map(|devices| devices.config.iter().flatten()) {
            let requests = config.requests.as_deref().unwrap_or_default();
            if requests.is_empty() || chosen.iter().any(|alternative| names(requests, &alternative.name)) {
                all.push(DeviceAllocationConfiguration {
                    opaque: config.opaque.clone(),
                    requests: config.requests.clone(),
                    source: "FromClaim".into(),
                });
            }
        }
        all
    }
}

/// Returns true if a list of requests has this one, or the request that it is an alternative of.
fn names(requests: &[String], name: &str) -> bool {
    let parent = name.split_once('/').map_or(name, |(parent, _)| parent);
    requests.iter().any(|request| request == name || request == parent)
}

fn concerns(constraint: &DeviceConstraint, name: &str) -> bool {
    let requests = constraint.requests.as_deref().unwrap_or_default();
    requests.is_empty() || names(requests, name)
}

/// Returns true if two attributes have one value of one type. Lists are never the same.
fn is_same(a: &DeviceAttribute, b: &DeviceAttribute) -> bool {
    let scalar = |x: &DeviceAttribute| (x.string.clone(), x.int, x.bool, x.version.clone());
    scalar(a) == scalar(b) && scalar(a) != (None, None, None, None)
}

/// Returns true if a taint prevents the allocation of its device.
fn keeps_off(taint: &DeviceTaint, tolerations: &[DeviceToleration]) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
        && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
            Some(_) => false,
        }
}

/// Returns the nodes on which a choice of devices can be used. `None`: on all.
fn selector<'a>(devices: impl Iterator<Item = &'a Candidate<'a>>, node: &Node) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    let mut add = |fields: bool, requirement: NodeSelectorRequirement| {
        let list = if fields { &mut term.match_fields } else { &mut term.match_expressions };
        let list = list.get_or_insert_default();
        if !list.contains(&requirement) {
            list.push(requirement);
        }
    };
    for device in devices {
        let (name, selector) = device.place();
        if name.is_some() {
            // One local device ties the claim to the node.
            return Some(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm {
                    match_fields: Some(vec![NodeSelectorRequirement {
                        key: "metadata.name".into(),
                        operator: "In".into(),
                        values: Some(vec![node.name().to_owned()]),
                    }]),
                    match_expressions: None,
                }],
            });
        }
        // Validation allows one term.
        for term in selector.iter().flat_map(|selector| selector.node_selector_terms.first()) {
            term.match_expressions.iter().flatten().for_each(|requirement| add(false, requirement.clone()));
            term.match_fields.iter().flatten().for_each(|requirement| add(true, requirement.clone()));
        }
    }
    let empty = term.match_fields.is_none() && term.match_expressions.is_none();
    (!empty).then(|| NodeSelector { node_selector_terms: vec![term] })
}
