//! ResourceClaims: a pod runs only where the devices of its claims are, and gets them before it is bound.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::api::{
        core::v1::Pod,
        resource::v1::{
            AllocationResult, DeviceRequestAllocationResult, ResourceClaim, ResourceClaimConsumerReference,
        },
    },
    client::{Api, Client, Error},
    meta::{ObjectExt, node::NodeTerm},
};

use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, Nomination, Placement, Plugin, PodInfo,
    Points, PostFilter, PreBind, PreEnqueue, PreFilter, Reject, Reserve, Search, WakeOn,
    devices::{DeviceId, Inventory, Selectors, allocate},
    volumes::Lists,
};

/// Finalizer of an allocated claim.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Label of namespaces whose claims may have admin access: to devices that others use.
const ADMIN_ACCESS: &str = "resource.kubernetes.io/admin-access";
/// Attempts to write a claim before the pod goes back to the queue.
const MOST_ATTEMPTS: u32 = 6;
/// Maximum number of reservations of a claim.
const MOST_RESERVED: usize = 256;

/// Allocates devices to the claims of a pod, and reserves the claims for it.
///
/// A device is promised from the decision on until the API server has the allocation, so that no other pod
/// gets it. If the binding then fails, claim and reservation stay for the next attempt. When they hold the
/// pod to nodes on which it cannot run, they are given up.
#[derive(Debug, Default)]
pub struct DynamicResources {
    /// By the uid of the claim.
    promised: Mutex<HashMap<String, Promise>>,
}

/// An allocation that the caches do not have yet.
#[derive(Clone, Debug)]
struct Promise {
    namespace: String,
    name: String,
    pod: String,
    allocation: AllocationResult,
    /// The revision with which it was written.
    written: Option<u64>,
}

/// The claims of a pod in one decision.
struct Claims {
    /// Those to allocate.
    open: Vec<Arc<ResourceClaim>>,
    /// The nodes on which allocated ones are available.
    bound: Vec<Vec<NodeTerm>>,
    in_use: HashSet<DeviceId>,
    inventory: Inventory,
    selectors: Mutex<Selectors>,
}

/// Returns the name of each claim of a pod, and whether the pod must control it.
///
/// # Errors
/// A claim is not made from its template yet.
fn names(pod: &Pod) -> Result<Vec<(&str, bool)>, Reject> {
    let mut all = Vec::new();
    for entry in pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()) {
        if let Some(name) = &entry.resource_claim_name {
            all.push((name.as_str(), false));
            continue;
        }
        let mut statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
        let status = statuses.find(|status| status.name == entry.name).ok_or_else(|| {
            let (namespace, name) = (pod.namespace(), pod.name());
            Reject::never(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"))
        })?;
        // Without a name, no claim is needed.
        all.extend(status.resource_claim_name.as_deref().map(|name| (name, true)));
    }
    Ok(all)
}

fn has_claims(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.resource_claims.as_ref().is_some_and(|all| !all.is_empty()))
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

fn reservations(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

fn is_reserved(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    reservations(claim).iter().any(|consumer| consumer.uid == pod.uid())
}

/// Returns the claims of a pod.
///
/// # Errors
/// One is absent, being deleted, or of another pod.
fn claims_of(pod: &PodInfo, lists: &Lists) -> Result<Vec<Arc<ResourceClaim>>, Reject> {
    let mut all: Vec<Arc<ResourceClaim>> = Vec::new();
    for (name, owned) in names(&pod.pod)? {
        let claim = lists.devices.claims.get(&pod.key.namespace, name);
        let missing = || Reject::never(format!("resourceclaim.resource.k8s.io {name:?} not found"));
        let claim = claim.ok_or_else(missing)?;
        if claim.is_deleting() {
            return Err(Reject::never(format!("resourceclaim {name:?} is being deleted")));
        }
        if owned && claim.controller_ref().is_none_or(|owner| owner.uid != pod.uid()) {
            let why = format!(
                "ResourceClaim {} was not created for Pod {} (Pod is not owner)",
                claim.key(),
                pod.key
            );
            return Err(Reject::never(why));
        }
        if !all.iter().any(|known| known.uid() == claim.uid()) {
            all.push(claim);
        }
    }
    Ok(all)
}

/// Adds the devices of an allocation. Admin access leaves a device free for others.
fn add_devices(in_use: &mut HashSet<DeviceId>, allocation: &AllocationResult) {
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    for result in results.filter(|result| result.admin_access != Some(true)) {
        in_use.insert((result.driver.clone(), result.pool.clone(), result.device.clone()));
    }
}

impl DynamicResources {
    /// Returns the promises that the caches do not have yet; the others are dropped.
    fn promised(&self, lists: &Lists) -> std::sync::MutexGuard<'_, HashMap<String, Promise>> {
        let mut promised = self.lock();
        promised.retain(|uid, promise| {
            let Some(written) = promise.written else { return true };
            let live = lists.devices.claims.get(&promise.namespace, &promise.name);
            live.is_some_and(|live| live.uid() == uid && live.revision() < written)
        });
        promised
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Promise>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects what the decisions about a pod need. `None`: the pod has no claims.
    fn claims(&self, pod: &PodInfo, lists: &Lists) -> Result<Option<Claims>, Reject> {
        let devices = &lists.devices;
        // Not awaited at the start: the API server may not serve this group, and most pods have no claims.
        if !devices.claims.is_synced() || !devices.classes.is_synced() || !devices.slices.is_synced() {
            return Err(Reject::never("waiting for the caches of resource.k8s.io/v1"));
        }
        let claims = claims_of(pod, lists)?;
        if claims.is_empty() {
            return Ok(None);
        }
        let promised = self.promised(lists);
        let (mut open, mut bound) = (Vec::new(), Vec::new());
        for claim in claims {
            let promise = promised.get(claim.uid());
            if promise.is_some_and(|promise| promise.written.is_none() && promise.pod != pod.uid()) {
                let why = format!("resource claim {} is in the process of being allocated", claim.key());
                return Err(Reject::never(why));
            }
            match allocation(&claim).or(promise.map(|promise| &promise.allocation)) {
                None => open.push(claim),
                Some(_) if reservations(&claim).len() >= MOST_RESERVED && !is_reserved(&claim, pod) => {
                    return Err(Reject::never("resourceclaim in use"));
                }
                Some(allocation) => bound.extend(allocation.node_selector.as_ref().map(NodeTerm::of)),
            }
        }
        let (mut in_use, mut inventory) = (HashSet::new(), Inventory::default());
        if !open.is_empty() {
            inventory = Inventory::new(lists.devices.slices.list());
            for claim in lists.devices.claims.list() {
                allocation(&claim).into_iter().for_each(|given| add_devices(&mut in_use, given));
            }
            promised.values().for_each(|promise| add_devices(&mut in_use, &promise.allocation));
        }
        Ok(Some(Claims { open, bound, in_use, inventory, selectors: Mutex::default() }))
    }
}

impl Claims {
    fn on(&self, lists: &Lists, node: &NodeInfo) -> Result<Vec<AllocationResult>, Reject> {
        if !self.bound.iter().all(|terms| terms.iter().any(|term| term.matches(&node.node))) {
            return Err(Reject::never("resourceclaim not available on the node"));
        }
        if self.open.is_empty() {
            return Ok(Vec::new());
        }
        let class = |name: &str| lists.devices.classes.get("", name);
        let mut selectors = self.selectors.lock().unwrap_or_else(PoisonError::into_inner);
        let found = allocate(&node.node, &self.inventory, &class, &self.in_use, &self.open, &mut selectors);
        found.map_err(Reject::never)?.ok_or_else(|| Reject::never("cannot allocate all claims"))
    }
}

impl PreEnqueue for DynamicResources {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Reject> {
        names(&pod.pod).map(drop)
    }
}

impl PreFilter for DynamicResources {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        if !has_claims(&pod.pod) {
            return Ok(false);
        }
        let Some(lists) = cx.cluster().lists() else { return Ok(false) };
        let Some(claims) = self.claims(pod, lists)? else { return Ok(false) };
        let labels = cx.cluster().namespace_labels(&pod.key.namespace);
        let trusted = labels.get(ADMIN_ACCESS).is_some_and(|value| value == "true");
        for claim in &claims.open {
            let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
            for request in requests {
                let admin =
                    request.exactly.as_ref().is_some_and(|exactly| exactly.admin_access == Some(true));
                if admin && !trusted {
                    let why = format!(
                        "admin access to devices requires the `{ADMIN_ACCESS}: true` label on the containing namespace"
                    );
                    return Err(Reject::never(why));
                }
                let exactly = request.exactly.iter().map(|exactly| &exactly.device_class_name);
                let subs = request.first_available.iter().flatten().map(|sub| &sub.device_class_name);
                for class in exactly.chain(subs) {
                    if lists.devices.classes.get("", class).is_none() {
                        let name = &request.name;
                        let why = format!("request {name}: device class {class} does not exist");
                        return Err(Reject::never(why));
                    }
                }
            }
        }
        cx.put(claims);
        Ok(true)
    }
}

impl Filter for DynamicResources {
    fn filter(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        match (cx.get::<Claims>(), cx.cluster().lists()) {
            (Some(claims), Some(lists)) => claims.on(lists, node).map(drop),
            _ => Ok(()),
        }
    }
}

impl PostFilter for DynamicResources {
    fn post_filter(&self, _: &mut dyn Search) -> Nomination {
        Nomination::No(String::new())
    }

    /// Takes back the allocation of one claim that keeps the pod from some node and that no other consumer
    /// has: left by a binding that failed, or by a scheduler that ended before it.
    fn release(&self, cluster: &Cluster, pod: &PodInfo, client: &Client) -> Option<BoxFuture<'static, ()>> {
        if !has_claims(&pod.pod) {
            return None;
        }
        let lists = cluster.lists()?;
        let claims = claims_of(pod, lists).ok()?;
        let promised = self.promised(lists);
        let claim = claims.into_iter().find(|claim| {
            let place = allocation(claim).and_then(|given| given.node_selector.as_ref()).map(NodeTerm::of);
            let elsewhere = place.is_some_and(|terms| {
                cluster.nodes().iter().any(|node| !terms.iter().any(|term| term.matches(&node.node)))
            });
            let others = reservations(claim).iter().any(|consumer| consumer.uid != pod.uid());
            elsewhere && !others && !promised.contains_key(claim.uid())
        })?;
        Some(deallocate(client.clone(), claim, pod.pod.clone()).boxed())
    }
}

/// Takes back the allocation of a claim as it was seen, unless the pod has got a node in the meantime.
async fn deallocate(client: Client, claim: Arc<ResourceClaim>, pod: Arc<Pod>) {
    let live = client.namespaced::<Pod>(pod.namespace()).get_opt(pod.name()).await;
    let waits = |live: &Pod| live.spec.as_ref().is_none_or(|spec| spec.node_name.is_none());
    if !matches!(live, Ok(Some(live)) if live.uid() == pod.uid() && waits(&live)) {
        return;
    }
    let mut free = ResourceClaim::clone(&claim);
    free.status = None;
    let done =
        client.namespaced::<ResourceClaim>(claim.namespace()).replace_status(claim.name(), &free).await;
    if let Err(error) = done {
        tracing::debug!(claim = %claim.key(), %error, "allocation not taken back");
    }
}

impl Reserve for DynamicResources {
    fn reserve(&self, cluster: &Cluster, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if !has_claims(&pod.pod) {
            return Ok(());
        }
        let Some(lists) = cluster.lists() else { return Ok(()) };
        let Some(claims) = self.claims(pod, lists)? else { return Ok(()) };
        let allocations = claims.on(lists, node)?;
        let mut promised = self.lock();
        for (claim, allocation) in claims.open.iter().zip(allocations) {
            let promise = Promise {
                namespace: claim.namespace().to_owned(),
                name: claim.name().to_owned(),
                pod: pod.uid().to_owned(),
                allocation,
                written: None,
            };
            promised.insert(claim.uid().to_owned(), promise);
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str) {
        self.lock().retain(|_, promise| promise.pod != pod.uid() || promise.written.is_some());
    }
}

#[async_trait]
impl PreBind for DynamicResources {
    async fn pre_bind(&self, placement: &Placement) -> Result<(), Error> {
        let pod = &placement.pod;
        if !has_claims(&pod.pod) {
            return Ok(());
        }
        let names = names(&pod.pod).map_err(|reject| Error::Request(reject.reasons.join(", ")))?;
        let api = placement.client.namespaced::<ResourceClaim>(&pod.key.namespace);
        for (name, _) in names {
            let promise = {
                let promised = self.lock();
                let of_pod = |(_, p): &(&String, &Promise)| {
                    p.pod == pod.uid() && p.name == name && p.written.is_none()
                };
                promised.iter().find(of_pod).map(|(uid, promise)| (uid.clone(), promise.allocation.clone()))
            };
            let mut attempts = 0;
            let written = loop {
                attempts += 1;
                match bind(&api, name, promise.as_ref(), pod).await {
                    // After a lost answer the claim may be allocated; to give up would free the device.
                    Err(error)
                        if attempts < MOST_ATTEMPTS && (error.is_conflict() || error.is_transient()) =>
                    {
                        tokio::time::sleep(Duration::from_millis(20 << attempts)).await;
                    }
                    other => break other?,
                }
            };
            if let Some((uid, _)) = promise
                && let Some(promise) = self.lock().get_mut(&uid)
            {
                promise.written = Some(written.revision());
            }
        }
        Ok(())
    }
}

/// Returns true if two allocations have the same devices for the same requests.
fn is_same(a: &AllocationResult, b: &AllocationResult) -> bool {
    let devices = |allocation: &AllocationResult| -> Vec<(String, DeviceId)> {
        let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        let device = |r: &DeviceRequestAllocationResult| (r.driver.clone(), r.pool.clone(), r.device.clone());
        results.map(|result| (result.request.clone(), device(result))).collect()
    };
    devices(a) == devices(b)
}

/// Allocates and reserves one claim by a single write of its status, which fails if the claim has changed.
async fn bind(
    api: &Api<ResourceClaim>,
    name: &str,
    promise: Option<&(String, AllocationResult)>,
    pod: &PodInfo,
) -> Result<ResourceClaim, Error> {
    let failed = |why: &str| Error::Request(format!("claim {}/{name} {why}", pod.key.namespace));
    let mut live = api.get(name).await?;
    if live.is_deleting() || promise.is_some_and(|(uid, _)| uid != live.uid()) {
        return Err(failed("got deleted in the meantime"));
    }
    match (promise, allocation(&live)) {
        // An earlier attempt of ours was written, and its answer was lost.
        (Some((_, ours)), Some(theirs)) if is_reserved(&live, pod) && is_same(ours, theirs) => {
            return Ok(live);
        }
        (Some(_), Some(_)) => return Err(failed("got allocated elsewhere in the meantime")),
        (None, None) => return Err(failed("got deallocated elsewhere in the meantime")),
        (Some(_), None) | (None, Some(_)) => {}
    }
    if promise.is_none() && is_reserved(&live, pod) {
        return Ok(live);
    }
    if reservations(&live).len() >= MOST_RESERVED {
        return Err(failed("is in use"));
    }
    if let Some((_, allocation)) = promise {
        // The finalizer comes first: no allocated claim disappears.
        let finalizers = live.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            live = api.replace(name, &live).await?;
        }
        live.status.get_or_insert_default().allocation = Some(allocation.clone());
    }
    let reserved = live.status.get_or_insert_default().reserved_for.get_or_insert_default();
    reserved.push(ResourceClaimConsumerReference {
        api_group: None,
        name: pod.key.name.clone(),
        resource: "pods".to_owned(),
        uid: pod.uid().to_owned(),
    });
    api.replace_status(name, &live).await
}

impl EnqueueExtensions for DynamicResources {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED
            .or(WakeOn::NODE_LABELS)
            .or(WakeOn::NODE_ALLOCATABLE)
            .or(WakeOn::POD_GONE)
            .or(WakeOn::RESOURCE_CLAIM)
            .or(WakeOn::DEVICE_CLASS)
            .or(WakeOn::RESOURCE_SLICE)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        if event.what == WakeOn::POD_GONE {
            // The devices that were promised to it are free.
            return event.pod.is_none_or(|gone| has_claims(&gone.pod));
        }
        if event.what != WakeOn::RESOURCE_CLAIM {
            return true;
        }
        let is_allocated = |claim: Option<&ResourceClaim>| claim.and_then(allocation).is_some();
        if is_allocated(event.old_claim) && !is_allocated(event.claim) {
            // Its devices are free, for any pod.
            return true;
        }
        let Some(claim) = event.claim else { return event.old_claim.is_none() };
        let uses = names(&pod.pod).is_ok_and(|names| names.iter().any(|(name, _)| *name == claim.name()));
        let same = event.old_claim.is_some_and(|old| old.uid() == claim.uid() && old.status == claim.status);
        uses && claim.namespace() == pod.key.namespace && !same
    }
}

impl Plugin for DynamicResources {
    fn points(self) -> Points {
        let points = Points::of(self).pre_enqueues().pre_filters().filters().post_filters();
        points.reserves().pre_binds().wakes().points()
    }
}
