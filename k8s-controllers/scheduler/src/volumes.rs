//! Constraints that a pod's volumes put on its node.

use k8s_core::{
    api::api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    cache::Cache,
    meta::{ObjectExt, node::NodeTerm},
};

use crate::Reject;

/// Caches of claims, volumes and storage classes.
#[derive(Clone, Debug)]
pub(crate) struct VolumeCaches {
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) volumes: Cache<PersistentVolume>,
    pub(crate) classes: Cache<StorageClass>,
}

/// A pod's claim, reduced to its constraints on nodes.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Bound; the volume is accessible from nodes that match one of these terms.
    Bound(Option<Vec<NodeTerm>>),
    /// Delayed binding: unbound until the pod is placed. `candidates` has the node terms of each free volume
    /// of its class (`None`: any node).
    Waiting { name: String, candidates: Vec<Option<Vec<NodeTerm>>>, provisioned: bool },
}

impl Claim {
    pub(crate) fn depends_on_node(&self) -> bool {
        !matches!(self, Claim::Bound(None))
    }

    pub(crate) fn fits(&self, node: &Node) -> Result<(), Reject> {
        let reaches = |terms: &Option<Vec<NodeTerm>>| {
            terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
        };
        match self {
            Claim::Bound(terms) if reaches(terms) => Ok(()),
            Claim::Bound(_) => Err(Reject::never("node(s) had volume node affinity conflict")),
            Claim::Waiting { provisioned: true, .. } => Ok(()),
            Claim::Waiting { candidates, .. } if candidates.iter().any(reaches) => Ok(()),
            Claim::Waiting { .. } => {
                Err(Reject::never("node(s) didn't find available persistent volumes to bind"))
            }
        }
    }
}

/// Returns the class of a claim or volume: the legacy annotation wins, as upstream.
pub(crate) fn class<'a>(annotation: Option<&'a str>, field: Option<&'a String>) -> &'a str {
    annotation.or(field.map(String::as_str)).unwrap_or_default()
}

pub(crate) const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Returns the names of a pod's claims.
fn claim_names(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let name = |volume: &k8s_core::api::api::core::v1::Volume| match &volume.persistent_volume_claim {
        Some(claim) => Some(claim.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name(), volume.name)),
    };
    volumes.into_iter().flatten().filter_map(name).collect()
}

fn reach(volume: &PersistentVolume) -> Option<Vec<NodeTerm>> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    Some(NodeTerm::of(affinity))
}

/// Returns a pod's claims.
///
/// # Errors
/// The pod cannot run on any node yet: a claim is missing, or must be bound first.
pub(crate) fn claims_of(pod: &Pod, caches: &VolumeCaches) -> Result<Vec<Claim>, Reject> {
    let mut all = Vec::new();
    for name in claim_names(pod) {
        let claim = caches
            .claims
            .get(pod.namespace(), &name)
            .ok_or_else(|| Reject::never(format!("persistentvolumeclaim \"{name}\" not found")))?;
        if claim.is_deleting() {
            return Err(Reject::never(format!("persistentvolumeclaim \"{name}\" is being deleted")));
        }
        let spec = claim.spec.clone().unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase == Some("Lost") {
            let volume = spec.volume_name.unwrap_or_default();
            let reason = format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            );
            return Err(Reject::never(reason));
        }
        let bound = claim.annotation("pv.kubernetes.io/bind-completed").is_some() || phase == Some("Bound");
        if let Some(volume) = spec.volume_name.as_ref().filter(|v| bound && !v.is_empty()) {
            let volume = caches.volumes.get("", volume);
            all.push(Claim::Bound(volume.and_then(|v| reach(&v))));
            continue;
        }
        let class_name =
            class(claim.annotation(CLASS_ANNOTATION), spec.storage_class_name.as_ref()).to_owned();
        let class = caches.classes.get("", &class_name);
        let waits =
            class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        if !waits {
            return Err(Reject::never("pod has unbound immediate PersistentVolumeClaims"));
        }
        let free = |v: &PersistentVolume| {
            let spec = v.spec.as_ref();
            self::class(v.annotation(CLASS_ANNOTATION), spec.and_then(|s| s.storage_class_name.as_ref()))
                == class_name
                && spec.is_some_and(|s| s.claim_ref.is_none())
        };
        let volumes = caches.volumes.list();
        let candidates = volumes.iter().filter(|v| free(v)).map(|v| reach(v)).collect();
        let provisioned = class.is_some_and(|c| c.provisioner != "kubernetes.io/no-provisioner");
        all.push(Claim::Waiting { name, candidates, provisioned });
    }
    Ok(all)
}

/// Returns the names of claims with delayed binding.
pub(crate) fn waiting_claims(pod: &Pod, caches: &VolumeCaches) -> Vec<String> {
    let all = claims_of(pod, caches).unwrap_or_default();
    let waiting = |claim| match claim {
        Claim::Waiting { name, .. } => Some(name),
        Claim::Bound(_) => None,
    };
    all.into_iter().filter_map(waiting).collect()
}
