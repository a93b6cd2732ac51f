//! Constraints that a pod's claims put on its node.

use std::{collections::BTreeSet, sync::Arc};

use k8s_core::{
    api::{
        api::{
            core::v1::{
                Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, TopologySelectorTerm, Volume,
            },
            policy::v1::PodDisruptionBudget,
            storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass},
        },
        apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    },
    cache::Cache,
    meta::{LabelSelector, ObjectExt, Quantity, node::NodeTerm},
};

use crate::Reject;

/// Caches of objects that plugins read beside nodes and pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) volumes: Cache<PersistentVolume>,
    pub(crate) classes: Cache<StorageClass>,
    pub(crate) csi_nodes: Cache<CSINode>,
    pub(crate) csi_drivers: Cache<CSIDriver>,
    pub(crate) capacities: Cache<CSIStorageCapacity>,
    pub(crate) budgets: Cache<PodDisruptionBudget>,
    pub(crate) services: Cache<Service>,
    pub(crate) controllers: Controllers,
    pub(crate) devices: Devices,
}

/// Caches of what dynamic resource allocation reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Devices {
    pub(crate) claims: Cache<k8s_core::api::api::resource::v1::ResourceClaim>,
    pub(crate) classes: Cache<k8s_core::api::api::resource::v1::DeviceClass>,
    pub(crate) slices: Cache<k8s_core::api::api::resource::v1::ResourceSlice>,
}

/// Caches of controllers whose selectors say with which pods a pod is spread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Controllers {
    pub(crate) replication: Cache<k8s_core::api::api::core::v1::ReplicationController>,
    pub(crate) replica_sets: Cache<k8s_core::api::api::apps::v1::ReplicaSet>,
    pub(crate) stateful_sets: Cache<k8s_core::api::api::apps::v1::StatefulSet>,
}

/// A pod's claim, reduced to its constraints on nodes.
#[derive(Clone, Debug)]
pub(crate) enum Claim {
    /// Bound; the volume is accessible from nodes that match one of these terms.
    Bound(Option<Vec<NodeTerm>>),
    /// Bound to a volume that does not exist.
    Lost,
    /// Delayed binding: unbound until the pod is placed.
    Waiting(Arc<Waiting>),
}

/// A claim that waits for the node of its pod.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) claim: Arc<PersistentVolumeClaim>,
    /// The volumes that would satisfy it, smallest first.
    pub(crate) candidates: Vec<Candidate>,
    /// A provisioner makes a volume if there is none, on these nodes.
    pub(crate) provisioned: Option<Provisioned>,
    /// Size in bytes; 0 if it has none.
    size: i64,
    /// The node that an earlier attempt has already told the provisioner.
    pub(crate) selected: Option<String>,
}

/// The nodes for which a provisioner can make a volume.
#[derive(Debug)]
pub(crate) struct Provisioned {
    /// Those of these topologies; none: all.
    topologies: Vec<TopologySelectorTerm>,
    /// Those with enough room, by labels. `None`: the driver does not publish its room.
    room: Option<Vec<LabelSelector>>,
}

/// A free volume.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) volume: Arc<PersistentVolume>,
    reach: Option<Vec<NodeTerm>>,
}

/// The way in which a claim gets its volume on a node.
#[derive(Clone, Debug)]
pub(crate) enum Supply {
    /// This free volume.
    Static(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>),
    /// The provisioner makes one.
    Provision(Arc<PersistentVolumeClaim>),
}

fn reaches(terms: Option<&Vec<NodeTerm>>, node: &Node) -> bool {
    terms.is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
}

impl Claim {
    pub(crate) fn depends_on_node(&self) -> bool {
        !matches!(self, Claim::Bound(None))
    }
}

const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";

/// Finds a supply for each waiting claim on a node.
///
/// # Errors
/// The reasons for which the node does not satisfy all claims, as upstream words them.
pub(crate) fn supply(claims: &[Claim], node: &Node) -> Result<Vec<Supply>, Reject> {
    let (mut reasons, mut taken, mut found) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    // Claims whose provisioner knows the node already come first.
    let (mut selected, mut provisioned) = (Vec::new(), Vec::new());
    for claim in claims {
        match claim {
            Claim::Bound(terms) if reaches(terms.as_ref(), node) => {}
            Claim::Bound(_) => {
                reasons.insert("node(s) didn't match PersistentVolume's node affinity");
            }
            Claim::Lost => {
                reasons.insert("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
            }
            Claim::Waiting(waiting) if waiting.selected.is_some() => selected.push(waiting),
            Claim::Waiting(waiting) => match waiting.volume(node, &taken) {
                Some(volume) => {
                    taken.insert(volume.name().to_owned());
                    found.push(Supply::Static(waiting.claim.clone(), volume));
                }
                None => provisioned.push(waiting),
            },
        }
    }
    for waiting in selected.into_iter().chain(provisioned) {
        if let Err(reason) = waiting.provision(node) {
            reasons.insert(reason);
            break;
        }
        found.push(Supply::Provision(waiting.claim.clone()));
    }
    if reasons.is_empty() {
        return Ok(found);
    }
    Err(Reject { reasons: reasons.into_iter().map(Into::into).collect(), resolvable: false })
}

impl Waiting {
    /// Returns a free volume that the node reaches.
    fn volume(&self, node: &Node, taken: &BTreeSet<String>) -> Option<Arc<PersistentVolume>> {
        let free = |c: &&Candidate| !taken.contains(c.volume.name()) && reaches(c.reach.as_ref(), node);
        self.candidates.iter().find(free).map(|candidate| candidate.volume.clone())
    }

    /// Checks that a volume can be made for the node.
    ///
    /// # Errors
    /// The reason against the node.
    fn provision(&self, node: &Node) -> Result<(), &'static str> {
        let elsewhere = self.selected.as_ref().is_some_and(|selected| selected != node.name());
        let Some(Provisioned { topologies, room }) = self.provisioned.as_ref().filter(|_| !elsewhere) else {
            return Err(NO_VOLUME);
        };
        if !topologies.is_empty() && !topologies.iter().any(|topology| is_in(topology, node)) {
            return Err(NO_VOLUME);
        }
        let labels = node.metadata.labels.as_ref();
        match room {
            Some(room) if !room.iter().any(|nodes| nodes.matches(labels)) => {
                Err("node(s) did not have enough free storage")
            }
            _ => Ok(()),
        }
    }
}

/// Returns the nodes, by labels, for which the driver of a class has room for a volume. `None`: it does not
/// publish its room.
fn room(lists: &Lists, class: &StorageClass, claim: &PersistentVolumeClaim) -> Option<Vec<LabelSelector>> {
    let driver = lists.csi_drivers.get("", &class.provisioner)?;
    driver.spec.storage_capacity.filter(|published| *published)?;
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    let size = amount(Some(requests.get("storage")?));
    let fits = |capacity: &Arc<CSIStorageCapacity>| {
        capacity.storage_class_name == class.name() && limit(capacity).is_some_and(|limit| limit >= size)
    };
    let all = lists.capacities.list().into_iter().filter(fits);
    Some(all.filter_map(|c| LabelSelector::from_api(c.node_topology.as_ref()?).ok()).collect())
}

/// Returns the size in bytes of the largest volume that may be made. `None`: unknown, so that none may.
pub(crate) fn limit(capacity: &CSIStorageCapacity) -> Option<i64> {
    capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref()).map(|size| amount(Some(size)))
}

fn is_in(topology: &TopologySelectorTerm, node: &Node) -> bool {
    let all = topology.match_label_expressions.as_deref().unwrap_or_default();
    all.iter().all(|r| node.label(&r.key).is_some_and(|v| r.values.iter().any(|w| w == v)))
}

/// Returns the class of a claim or volume: the legacy annotation wins, as upstream.
pub(crate) fn class<'a>(annotation: Option<&'a str>, field: Option<&'a String>) -> &'a str {
    annotation.or(field.map(String::as_str)).unwrap_or_default()
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Annotation of a claim with the node of its first pod.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Returns the class of a claim.
pub(crate) fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    class(claim.annotation(CLASS_ANNOTATION), field)
}

/// Returns the name of the claim of a pod's volume, and true if the claim is made for the pod.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    match &volume.persistent_volume_claim {
        Some(claim) => Some((claim.claim_name.clone(), false)),
        None => volume.ephemeral.as_ref().map(|_| (format!("{}-{}", pod.name(), volume.name), true)),
    }
}

/// Returns the names of a pod's claims.
pub(crate) fn claim_names(pod: &Pod) -> impl Iterator<Item = (String, bool)> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    volumes.into_iter().flatten().filter_map(|volume| claim_name(pod, volume))
}

fn reach(volume: &PersistentVolume) -> Option<Vec<NodeTerm>> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    Some(NodeTerm::of(affinity))
}

/// Returns a pod's claims. `assumed` has volumes that were promised to claims of other pods.
///
/// # Errors
/// The pod cannot run on any node yet: a claim is missing, or must be bound first.
pub(crate) fn claims_of(pod: &Pod, lists: &Lists, assumed: &[String]) -> Result<Vec<Claim>, Reject> {
    let mut all = Vec::new();
    for (name, ephemeral) in claim_names(pod) {
        let claim = lists.claims.get(pod.namespace(), &name).ok_or_else(|| match ephemeral {
            true => {
                let made = "waiting for ephemeral volume controller to create the persistentvolumeclaim";
                Reject::never(format!("{made} {name:?}"))
            }
            false => Reject::never(format!("persistentvolumeclaim {name:?} not found")),
        })?;
        let spec = claim.spec.as_ref();
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        let volume = spec.and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        if phase == Some("Lost") {
            let gone = "bound to non-existent persistentvolume";
            return Err(Reject::never(format!("persistentvolumeclaim {name:?} {gone} {volume:?}")));
        }
        if claim.is_deleting() {
            return Err(Reject::never(format!("persistentvolumeclaim {name:?} is being deleted")));
        }
        if ephemeral && claim.controller_ref().is_none_or(|owner| owner.uid != pod.uid()) {
            let (namespace, pod) = (pod.namespace(), pod.name());
            return Err(Reject::never(format!(
                "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
            )));
        }
        let bound = claim.annotation("pv.kubernetes.io/bind-completed").is_some() || phase == Some("Bound");
        if bound && !volume.is_empty() {
            all.push(lists.volumes.get("", volume).map_or(Claim::Lost, |v| Claim::Bound(reach(&v))));
            continue;
        }
        let class = lists.classes.get("", class_of(&claim));
        let waits =
            class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let Some(class) = class.filter(|_| waits && volume.is_empty()) else {
            return Err(Reject::never("pod has unbound immediate PersistentVolumeClaims"));
        };
        let mut candidates: Vec<Candidate> = lists
            .volumes
            .list()
            .into_iter()
            .filter(|v| !assumed.iter().any(|name| name == v.name()) && satisfies(v, &claim))
            .map(|volume| Candidate { reach: reach(&volume), volume })
            .collect();
        // A volume that was made for the claim comes first, then the smallest.
        candidates.sort_by_cached_key(|c| {
            (!is_for(&c.volume, &claim), capacity(&c.volume), c.volume.name().to_owned())
        });
        let made = class.provisioner != "kubernetes.io/no-provisioner";
        let provisioned = made.then(|| Provisioned {
            topologies: class.allowed_topologies.clone().unwrap_or_default(),
            room: room(lists, &class, &claim),
        });
        let selected = provisioned.as_ref().and_then(|_| claim.annotation(SELECTED_NODE)).map(str::to_owned);
        let size = size_of(&claim);
        all.push(Claim::Waiting(Arc::new(Waiting { claim, candidates, provisioned, size, selected })));
    }
    // The smallest claim takes the smallest volume.
    all.sort_by_key(|claim| match claim {
        Claim::Waiting(waiting) => waiting.size,
        Claim::Bound(_) | Claim::Lost => 0,
    });
    Ok(all)
}

fn amount(quantity: Option<&ApiQuantity>) -> i64 {
    quantity.and_then(|q| Quantity::try_from(q).ok()).map_or(0, |q| q.units())
}

fn size_of(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    amount(resources.and_then(|resources| resources.requests.as_ref()?.get("storage")))
}

fn capacity(volume: &PersistentVolume) -> i64 {
    amount(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage")))
}

/// Returns true if the volume's `claimRef` names the claim.
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|owner| {
        owner.name.as_deref() == Some(claim.name())
            && owner.namespace.as_deref() == Some(claim.namespace())
            && owner.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid())
    })
}

/// Returns true if a volume is free, or made for the claim, and meets the claim's demands.
fn satisfies(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(have), Some(want)) = (&volume.spec, &claim.spec) else { return false };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    if mode(&have.volume_mode) != mode(&want.volume_mode) {
        return false;
    }
    if capacity(volume) < size_of(claim) {
        return false;
    }
    if have.claim_ref.is_some() {
        return is_for(volume, claim);
    }
    let available = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    let offered = have.access_modes.as_deref().unwrap_or_default();
    let selector = want.selector.as_ref().map(LabelSelector::from_api);
    !volume.is_deleting()
        && available.is_none_or(|phase| phase == "Available" || phase.is_empty())
        && class(volume.annotation(CLASS_ANNOTATION), have.storage_class_name.as_ref()) == class_of(claim)
        && have.volume_attributes_class_name.as_deref().unwrap_or_default()
            == want.volume_attributes_class_name.as_deref().unwrap_or_default()
        && want.access_modes.iter().flatten().all(|mode| offered.contains(mode))
        && selector.is_none_or(|s| s.is_ok_and(|s| s.matches(volume.metadata.labels.as_ref())))
}
