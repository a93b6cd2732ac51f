//! Plugins of volumes: delayed binding and topology, zones, exclusive use, numbers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use k8s_core::{
    api::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume},
    client::{Error, Patch},
    meta::ObjectExt,
};
use serde_json::json;

use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, Placement, Plugin, PodInfo, Points, PreBind,
    PreFilter, Reject, Reserve, WakeOn,
    args::VolumeBindingArgs,
    volumes::{self, Claim, Lists, SELECTED_NODE, Supply, claim_names, claims_of, supply},
};

/// Returns true if an event is about a claim of the pod, or about no claim.
fn concerns(pod: &PodInfo, event: &Event<'_>) -> bool {
    match event.object {
        Some((namespace, name)) if event.what == WakeOn::CLAIM => {
            namespace == pod.key.namespace && claim_names(&pod.pod).any(|(own, _)| own == name)
        }
        _ => true,
    }
}

/// Requires that the pod's claims are bound or bindable, and that their volumes are accessible from the node;
/// binds them before the pod is bound. For a volume that a CSI driver is to make, the node needs room of the
/// driver (CSIStorageCapacity), if the driver publishes that.
#[derive(Debug, Default)]
pub struct VolumeBinding {
    args: VolumeBindingArgs,
    /// The promised volumes, by the uid of the pod.
    promised: Mutex<HashMap<String, Promise>>,
}

#[derive(Debug)]
struct Promise {
    supplies: Vec<Supply>,
    lists: Lists,
}

struct Claims(Vec<Claim>);

impl VolumeBinding {
    pub(crate) fn new(args: VolumeBindingArgs) -> Self {
        VolumeBinding { args, promised: Mutex::default() }
    }

    fn promised(&self) -> std::sync::MutexGuard<'_, HashMap<String, Promise>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the names of volumes that are promised to other pods.
    fn assumed(&self, pod: &PodInfo) -> Vec<String> {
        let promised = self.promised();
        let others = promised.iter().filter(|(uid, _)| *uid != pod.uid());
        let name = |supply: &Supply| match supply {
            Supply::Static(_, volume) => Some(volume.name().to_owned()),
            Supply::Provision(_) => None,
        };
        others.flat_map(|(_, promise)| promise.supplies.iter().filter_map(name)).collect()
    }
}

impl PreFilter for VolumeBinding {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let Some(lists) = cx.cluster().lists() else { return Ok(false) };
        if claim_names(&pod.pod).next().is_none() {
            return Ok(false);
        }
        let claims = claims_of(&pod.pod, lists, &self.assumed(pod))?;
        let concerns = claims.iter().any(Claim::depends_on_node);
        cx.put(Claims(claims));
        Ok(concerns)
    }
}

impl Filter for VolumeBinding {
    fn filter(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(Claims(claims)) = cx.get::<Claims>() else { return Ok(()) };
        supply(claims, &node.node).map(drop)
    }
}

impl Reserve for VolumeBinding {
    fn reserve(&self, cluster: &Cluster, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(lists) = cluster.lists() else { return Ok(()) };
        if claim_names(&pod.pod).next().is_none() {
            return Ok(());
        }
        let claims = claims_of(&pod.pod, lists, &self.assumed(pod))?;
        let supplies = supply(&claims, &node.node)?;
        if !supplies.is_empty() {
            let promise = Promise { supplies, lists: lists.clone() };
            self.promised().insert(pod.uid().to_owned(), promise);
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str) {
        self.promised().remove(pod.uid());
    }
}

#[async_trait]
impl PreBind for VolumeBinding {
    async fn pre_bind(&self, placement: &Placement) -> Result<(), Error> {
        let pod = &placement.pod;
        let promise = self.promised().get(pod.uid()).map(|p| (p.supplies.clone(), p.lists.clone()));
        let Some((supplies, lists)) = promise else { return Ok(()) };
        let api = placement.client.namespaced::<PersistentVolumeClaim>(&pod.key.namespace);
        let mut changes = lists.claims.subscribe();
        let mut awaited = Vec::new();
        for supply in &supplies {
            let (claim, told) = match supply {
                Supply::Static(claim, volume) => {
                    let volumes = placement.client.all::<PersistentVolume>();
                    volumes.patch(volume.name(), &Patch::Merge(claimed(volume, claim))).await?;
                    (claim, None)
                }
                Supply::Provision(claim) => {
                    let patch = json!({"metadata": {"annotations": {SELECTED_NODE: placement.node}}});
                    let told = api.patch(claim.name(), &Patch::Merge(patch)).await?;
                    (claim, Some(told.revision()))
                }
            };
            awaited.push((claim.clone(), told));
        }
        let all = async {
            loop {
                let mut open = false;
                for (claim, told) in &awaited {
                    let live = lists.claims.get(&pod.key.namespace, claim.name());
                    open |= !progress(claim, live.as_deref(), *told, &placement.node)?;
                }
                if !open || changes.next().await.is_none() {
                    return Ok::<(), Error>(());
                }
            }
        };
        let longest = Duration::from_secs(self.args.bind_timeout_seconds);
        let done = tokio::time::timeout(longest, all).await;
        done.map_err(|_| Error::Request(format!("binding volumes: not bound within {longest:?}")))??;
        self.promised().remove(pod.uid());
        Ok(())
    }
}

/// Returns true if a claim is bound. `told` is the revision with which the provisioner was told the node.
///
/// # Errors
/// It will not be bound: it is gone, or the provisioner has refused the node.
fn progress(
    claim: &PersistentVolumeClaim,
    live: Option<&PersistentVolumeClaim>,
    told: Option<u64>,
    node: &str,
) -> Result<bool, Error> {
    let failed = |why: String| Err(Error::Request(format!("binding volumes: {why}")));
    let Some(live) = live.filter(|live| live.uid() == claim.uid()) else {
        return failed(format!("persistentvolumeclaim {:?} not found", claim.name()));
    };
    if live.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") {
        return Ok(true);
    }
    // An older version does not have the node yet.
    let answered = told.is_some_and(|told| live.revision() >= told);
    if answered && live.annotation(SELECTED_NODE) != Some(node) {
        return failed(format!("provisioning failed for PVC {:?}", claim.name()));
    }
    Ok(false)
}

/// Returns the patch that gives a volume to a claim, unless the volume has changed.
fn claimed(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> serde_json::Value {
    let prebound = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
    let mut patch = json!({
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "spec": {"claimRef": {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace(), "name": claim.name(), "uid": claim.uid(),
            "resourceVersion": claim.metadata.resource_version,
        }},
    });
    if !prebound {
        patch["metadata"]["annotations"] = json!({"pv.kubernetes.io/bound-by-controller": "yes"});
    }
    patch
}

impl EnqueueExtensions for VolumeBinding {
    fn wakes_on(&self) -> WakeOn {
        let storage = WakeOn::VOLUME.or(WakeOn::CSI_DRIVER).or(WakeOn::STORAGE_CAPACITY);
        WakeOn::NODE_ADDED.or(WakeOn::NODE_LABELS).or(storage)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        concerns(pod, event)
    }
}

impl Plugin for VolumeBinding {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().reserves().pre_binds().wakes().points()
    }
}

/// Requires nodes in the zone and region of the pod's volumes.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeZone;

const ZONE_LABELS: [&str; 4] = [
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// Label keys with the values that the volumes allow.
struct Zones(Vec<(&'static str, BTreeSet<String>)>);

impl PreFilter for VolumeZone {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let Some(lists) = cx.cluster().lists() else { return Ok(false) };
        let mut zones = Vec::new();
        for (name, _) in claim_names(&pod.pod).filter(|(_, ephemeral)| !ephemeral) {
            let claim = lists.claims.get(&pod.key.namespace, &name);
            let volume = claim.and_then(|c| lists.volumes.get("", c.spec.as_ref()?.volume_name.as_deref()?));
            let Some(volume) = volume else { continue };
            for key in ZONE_LABELS {
                // Several zones are joined by two underscores.
                let values = volume.label(key).map(|v| v.split("__").map(str::to_owned).collect());
                zones.extend(values.map(|values| (key, values)));
            }
        }
        let any = !zones.is_empty();
        cx.put(Zones(zones));
        Ok(any)
    }
}

impl Filter for VolumeZone {
    fn filter(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(Zones(zones)) = cx.get::<Zones>() else { return Ok(()) };
        if ZONE_LABELS.iter().all(|key| node.label(key).is_none()) {
            return Ok(());
        }
        let current = |key: &str| key.replace("failure-domain.beta.kubernetes.io", "topology.kubernetes.io");
        let fits = |(key, values): &(&str, BTreeSet<String>)| {
            let there = node.label(key).or_else(|| node.label(&current(key)));
            there.is_some_and(|v| values.contains(v))
        };
        if zones.iter().all(fits) {
            Ok(())
        } else {
            Err(Reject::never("node(s) had no available volume zone"))
        }
    }
}

impl EnqueueExtensions for VolumeZone {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED
            .or(WakeOn::NODE_LABELS)
            .or(WakeOn::CLAIM)
            .or(WakeOn::PERSISTENT_VOLUME)
            .or(WakeOn::CLASS)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        concerns(pod, event)
    }
}

impl Plugin for VolumeZone {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().wakes().points()
    }
}

/// Refuses a second pod for a claim with the access mode ReadWriteOncePod, and on one node a second pod for a
/// disk that only one may use.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeRestrictions;

/// Claims of the pod that only one pod may use, and the number of their uses by placed pods.
struct Exclusive {
    claims: Vec<String>,
    uses: i64,
}

impl Exclusive {
    fn uses_of(&self, namespace: &str, pod: &PodInfo) -> i64 {
        let own = |name: &String| self.claims.contains(name);
        let named = pod.claims.iter().filter(|name| pod.key.namespace == namespace && own(name)).count();
        i64::try_from(named).unwrap_or(i64::MAX)
    }
}

impl PreFilter for VolumeRestrictions {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        if !pod.has_volumes {
            return Ok(false);
        }
        let Some(lists) = cx.cluster().lists() else { return Ok(false) };
        let mut exclusive = Exclusive { claims: Vec::new(), uses: 0 };
        for name in &pod.claims {
            let claim = lists.claims.get(&pod.key.namespace, name);
            let claim =
                claim.ok_or_else(|| Reject::never(format!("persistentvolumeclaim {name:?} not found")))?;
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
            if modes.iter().any(|mode| mode == "ReadWriteOncePod") {
                exclusive.claims.push(name.clone());
            }
        }
        if !exclusive.claims.is_empty() {
            let placed = cx.cluster().nodes().iter().flat_map(|node| &node.pods);
            exclusive.uses = placed.map(|p| exclusive.uses_of(&pod.key.namespace, p)).sum();
        }
        let needed = exclusive.uses > 0 || volumes_of(pod).any(is_disk);
        cx.put(exclusive);
        Ok(needed)
    }

    fn moved(&self, cx: &mut Cycle<'_>, pod: &PodInfo, other: &PodInfo, _: &NodeInfo, by: i64) {
        if let Some(exclusive) = cx.get_mut::<Exclusive>() {
            exclusive.uses += by * exclusive.uses_of(&pod.key.namespace, other);
        }
    }
}

fn volumes_of(pod: &PodInfo) -> impl Iterator<Item = &Volume> {
    pod.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

fn is_disk(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.iscsi.is_some()
        || volume.rbd.is_some()
}

/// Returns true if two pods on one node cannot both have these volumes.
fn clash(a: &Volume, b: &Volume) -> bool {
    let writes = |a: Option<bool>, b: Option<bool>| !(a.unwrap_or(false) && b.unwrap_or(false));
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk) {
        return a.pd_name == b.pd_name && writes(a.read_only, b.read_only);
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store) {
        return a.volume_id == b.volume_id;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi) {
        return a.iqn == b.iqn && writes(a.read_only, b.read_only);
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        let pool = |pool: &Option<String>| pool.clone().unwrap_or_else(|| "rbd".into());
        return a.monitors.iter().any(|m| b.monitors.contains(m))
            && pool(&a.pool) == pool(&b.pool)
            && a.image == b.image
            && writes(a.read_only, b.read_only);
    }
    false
}

impl Filter for VolumeRestrictions {
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let there = || node.pods.iter().filter(|p| p.has_volumes).flat_map(|p| volumes_of(p));
        if volumes_of(pod).filter(|v| is_disk(v)).any(|own| there().any(|other| clash(own, other))) {
            return Err(Reject::full("node(s) had no available disk"));
        }
        if cx.get::<Exclusive>().is_some_and(|e| e.uses > 0) {
            return Err(Reject::full(
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod",
            ));
        }
        Ok(())
    }
}

impl EnqueueExtensions for VolumeRestrictions {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::POD_GONE.or(WakeOn::NODE_ADDED).or(WakeOn::CLAIM)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        let Some(gone) = event.pod else { return concerns(pod, event) };
        gone.key.namespace == pod.key.namespace && gone.claims.iter().any(|c| pod.claims.contains(c))
            || volumes_of(pod).any(|own| volumes_of(gone).any(|other| clash(own, other)))
    }
}

impl Plugin for VolumeRestrictions {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().wakes().points()
    }
}

/// Refuses nodes on which a CSI driver's maximum number of volumes is in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeVolumeLimits;

/// Returns the drivers of a pod's claims, by the driver's name for the volume.
fn csi_volumes(pod: &PodInfo, lists: &Lists) -> BTreeMap<String, String> {
    let one = |(name, _): (String, bool)| {
        let claim = lists.claims.get(&pod.key.namespace, &name)?;
        let volume = claim.spec.as_ref().and_then(|s| lists.volumes.get("", s.volume_name.as_deref()?));
        match volume {
            Some(volume) => {
                let csi = volume.spec.as_ref()?.csi.as_ref()?;
                Some((format!("{}/{}", csi.driver, csi.volume_handle), csi.driver.clone()))
            }
            None => {
                let class = lists.classes.get("", volumes::class_of(&claim))?;
                Some((
                    format!("{}/{}/{name}", class.provisioner, pod.key.namespace),
                    class.provisioner.clone(),
                ))
            }
        }
    };
    claim_names(&pod.pod).filter_map(one).collect()
}

impl PreFilter for NodeVolumeLimits {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let limited = cx.cluster().lists().is_some_and(|lists| !lists.csi_nodes.is_empty());
        Ok(limited && claim_names(&pod.pod).next().is_some())
    }
}

impl Filter for NodeVolumeLimits {
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(lists) = cx.cluster().lists() else { return Ok(()) };
        let Some(csi) = lists.csi_nodes.get("", node.name()) else { return Ok(()) };
        let mut new = csi_volumes(pod, lists);
        let mut there = BTreeMap::new();
        for other in node.pods.iter().filter(|p| p.has_volumes) {
            there.extend(csi_volumes(other, lists));
        }
        new.retain(|volume, _| !there.contains_key(volume));
        for driver in &csi.spec.drivers {
            let Some(most) = driver.allocatable.as_ref().and_then(|a| a.count) else { continue };
            let of = |all: &BTreeMap<String, String>| all.values().filter(|d| **d == driver.name).count();
            let (more, used) = (of(&new), of(&there));
            if more > 0 && used + more > usize::try_from(most).unwrap_or(0) {
                return Err(Reject::full("node(s) exceed max volume count"));
            }
        }
        Ok(())
    }
}

impl EnqueueExtensions for NodeVolumeLimits {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::CSI_NODE.or(WakeOn::POD_GONE).or(WakeOn::CLAIM).or(WakeOn::NODE_ADDED)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        event.pod.is_none_or(|gone| gone.has_volumes) && concerns(pod, event)
    }
}

impl Plugin for NodeVolumeLimits {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().wakes().points()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(uid: &str, revision: u64, node: &str, phase: &str) -> PersistentVolumeClaim {
        let annotations = if node.is_empty() { json!({}) } else { json!({SELECTED_NODE: node}) };
        let metadata = json!({"name": "c", "namespace": "a", "uid": uid, "resourceVersion": revision.to_string(),
            "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
    }

    #[test]
    fn a_binding_waits_for_its_claim_and_no_longer_than_it_can_come() {
        let asked = claim("u", 1, "", "Pending");
        let check = |live: Option<PersistentVolumeClaim>, told: Option<u64>| {
            progress(&asked, live.as_ref(), told, "n").map_err(|e| e.to_string())
        };
        let failed = |why: &str| Err(format!("invalid request: binding volumes: {why}"));
        assert_eq!(check(Some(claim("u", 9, "n", "Bound")), Some(5)), Ok(true));
        assert_eq!(check(Some(claim("u", 5, "n", "Pending")), Some(5)), Ok(false));
        assert_eq!(check(Some(claim("u", 1, "", "Pending")), Some(5)), Ok(false), "the cache is behind");
        assert_eq!(check(Some(claim("u", 1, "", "Pending")), None), Ok(false), "nobody provisions it");
        let refused = failed("provisioning failed for PVC \"c\"");
        assert_eq!(check(Some(claim("u", 6, "", "Pending")), Some(5)), refused);
        assert_eq!(check(Some(claim("u", 6, "m", "Pending")), Some(5)), refused);
        let gone = failed("persistentvolumeclaim \"c\" not found");
        assert_eq!(check(None, Some(5)), gone);
        assert_eq!(check(Some(claim("v", 9, "n", "Bound")), Some(5)), gone, "made anew");
    }
}
