//! Disruption budgets: how many of the pods that a budget selects may be evicted now.
//!
//! Flow: [`plan`] computes a budget's status from the pods that it selects and from the sizes of their
//! controllers. The eviction subresource of the API server takes from `disruptionsAllowed` and notes the pod
//! in `disruptedPods`; the pod counts as gone from then on, for two minutes at most. A second controller
//! resets the condition `DisruptionTarget` of pods that were not deleted in spite of it.
//!
//! Invariants:
//! 1. `disruptionsAllowed` is never more than the healthy pods above the least that the budget asks for.
//! 2. A budget whose status cannot be computed allows nothing.
//! 3. The status is written with the revision that was read as precondition, so that no eviction is lost.

mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use k8s_controllers::{
    Action, Caches, Context, Controller, Environment, Error, EventType, Reconcile, predicates,
};
use k8s_core::{
    api::{
        api::{
            apps::v1::{Deployment, ReplicaSet, StatefulSet},
            core::v1::{Pod, PodCondition, ReplicationController},
            policy::v1::PodDisruptionBudget,
        },
        apimachinery::pkg::apis::meta::v1::OwnerReference,
    },
    meta::{LabelSelector, Object, ObjectExt, ObjectKey},
};
use serde_json::{Value, json};

use self::plan::{Basis, Plan};
use super::{Options, conditions, discovery, dynamic, pods};

/// Condition of a pod that is about to be deleted.
const TARGET: &str = "DisruptionTarget";
/// Time after which a pod that was not deleted is no longer about to be.
const STALE: Duration = Duration::from_secs(120);

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let budgets = Controller::<PodDisruptionBudget>::new()
        .named("disruption-controller")
        .watches::<Pod>(covering)
        .reads::<Deployment>()
        .reads::<ReplicaSet>()
        .reads::<StatefulSet>()
        .reads::<ReplicationController>()
        .run_in(environment.clone(), Budgets);
    let targets = Controller::<Pod>::new()
        .named("disruption-controller-stale-pods")
        .when(predicates::Predicate::new(|_, pod: Option<&Pod>| pod.is_some_and(is_target)))
        .run_in(environment, Targets);
    futures::future::join(budgets, targets).map(drop).boxed()
}

fn selector(budget: &PodDisruptionBudget) -> Option<LabelSelector> {
    LabelSelector::from_api(budget.spec.as_ref()?.selector.as_ref()?).ok()
}

/// Returns the budgets that select a pod.
fn covering(caches: &Caches, pod: &Pod) -> Vec<ObjectKey> {
    let all = caches.of::<PodDisruptionBudget>().in_namespace(pod.namespace());
    let selects = |budget: &&Arc<PodDisruptionBudget>| {
        selector(budget).is_some_and(|s| s.matches(pod.metadata.labels.as_ref()))
    };
    all.iter().filter(selects).map(|budget| budget.key()).collect()
}

struct Budgets;

impl Reconcile for Budgets {
    type Kind = PodDisruptionBudget;

    async fn reconcile(&self, cx: &Context, budget: Arc<PodDisruptionBudget>) -> Result<Action, Error> {
        match self.sync(cx, &budget).await {
            Err(e) if e.is_conflict() => Err(e),
            Err(e) => {
                // Nothing may be evicted by a count that is not known.
                let failed = plan::failed(&budget, &e.to_string(), &cx.clock().time());
                cx.status(&*budget, |next| next.status = Some(failed)).await?;
                Err(e)
            }
            done => done,
        }
    }
}

impl Budgets {
    async fn sync(&self, cx: &Context, budget: &Arc<PodDisruptionBudget>) -> Result<Action, Error> {
        let mut pods = cx.caches().of::<Pod>().in_namespace(budget.namespace());
        let selector = selector(budget);
        // A budget without a selector covers nothing.
        pods.retain(|pod| selector.as_ref().is_some_and(|s| s.matches(pod.metadata.labels.as_ref())));
        if pods.is_empty() {
            cx.event(&**budget, EventType::Normal, "NoPods", "No matching pods found");
        }
        let expected = match plan::basis(budget) {
            Basis::Pods => i32::try_from(pods.len()).unwrap_or(i32::MAX),
            Basis::Scale => self.scale(cx, budget, &pods).await.inspect_err(|e| {
                let why = format!("Failed to calculate the number of expected pods: {e}");
                cx.event(&**budget, EventType::Warning, "CalculateExpectedPodCountFailed", why);
            })?,
        };
        let Plan { status, overdue, after } = plan::plan(budget, &pods, expected, &cx.clock().time());
        for pod in overdue {
            let (namespace, name) = (budget.namespace(), budget.name());
            let why = format!("Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't");
            cx.event(&*pod, EventType::Warning, "NotDeleted", why);
        }
        cx.status(&**budget, |next| next.status = Some(status)).await?;
        Ok(Action::maybe_after(after))
    }

    /// Returns the sum of the sizes of the pods' controllers.
    async fn scale(
        &self,
        cx: &Context,
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
    ) -> Result<i32, Error> {
        let mut sizes = BTreeMap::<String, i32>::new();
        let (mut known, mut unmanaged) = (Vec::new(), false);
        for pod in pods {
            let Some(owner) = pod.controller_ref() else {
                unmanaged = true;
                continue;
            };
            if known.contains(&owner.uid) {
                continue;
            }
            known.push(owner.uid.clone());
            let size = match built_in(cx, owner) {
                Some(found) => Some(found),
                None => served(cx, pod.namespace(), owner).await?,
            };
            let (uid, size) = size.ok_or_else(|| {
                Error::Other(format!("found no controllers for pod {:?}", pod.name()).into())
            })?;
            sizes.insert(uid, size);
        }
        if unmanaged {
            let selector = selector(budget).map(|s| s.to_string()).unwrap_or_default();
            let why = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            cx.event(budget, EventType::Warning, "UnmanagedPods", why);
        }
        Ok(sizes.values().fold(0_i32, |sum, size| sum.saturating_add(*size)))
    }
}

/// Returns the cached object that a reference names, if it is that very one.
fn referred<T: Object>(cx: &Context, owner: &OwnerReference, kind: &str, groups: &[&str]) -> Option<Arc<T>> {
    let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let meant = owner.kind == kind && groups.contains(&group);
    meant.then(|| cx.cached::<T>(&owner.name)).flatten().filter(|found| found.uid() == owner.uid)
}

/// Returns uid and size of a built-in controller of pods; of a Deployment for its ReplicaSets.
fn built_in(cx: &Context, owner: &OwnerReference) -> Option<(String, i32)> {
    const APPS: [&str; 2] = ["apps", "extensions"];
    if let Some(set) = referred::<ReplicaSet>(cx, owner, "ReplicaSet", &APPS) {
        let deployment =
            set.controller_ref().and_then(|o| referred::<Deployment>(cx, o, "Deployment", &APPS));
        return Some(match deployment {
            Some(all) => (all.uid().to_owned(), all.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)),
            None => (set.uid().to_owned(), set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)),
        });
    }
    if let Some(set) = referred::<StatefulSet>(cx, owner, "StatefulSet", &["apps"]) {
        return Some((set.uid().to_owned(), set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)));
    }
    let set = referred::<ReplicationController>(cx, owner, "ReplicationController", &[""])?;
    Some((set.uid().to_owned(), set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)))
}

/// Returns uid and size of another controller by its subresource `scale`; `None` if it does not exist.
async fn served(
    cx: &Context,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<(String, i32)>, Error> {
    let found = discovery::discover(cx.client()).await?;
    let (group, version) = owner.api_version.rsplit_once('/').unwrap_or(("", &owner.api_version));
    let is_kind = |s: &&discovery::Served| s.resource.kind == owner.kind && s.resource.group == group;
    let mut all: Vec<&discovery::Served> = found.served.iter().filter(is_kind).collect();
    all.sort_by_key(|s| s.resource.version != version);
    let Some(kind) = all.first() else {
        return Err(Error::Other(
            format!("no matches for kind {:?} in version {:?}", owner.kind, owner.api_version).into(),
        ));
    };
    let path = kind.resource.path(namespace, &owner.name, "scale");
    match dynamic::get::<Value>(cx.client(), &path).await {
        Ok(scale) => {
            let uid = scale["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            let size = scale["spec"]["replicas"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
            Ok((uid == owner.uid).then_some((uid, size)))
        }
        Err(e) if e.is_not_found() => {
            // Either the object is gone, or its kind has no size.
            match dynamic::get_meta(cx.client(), &kind.resource, namespace, &owner.name).await? {
                None => Ok(None),
                Some(_) => {
                    let plural = &kind.resource.plural;
                    let full =
                        if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
                    Err(Error::Other(format!("{full} does not implement the scale subresource").into()))
                }
            }
        }
        Err(e) => Err(e.into()),
    }
}

/// Returns true for a pod that is said to be deleted soon, and is not being deleted. A kubelet's word stays.
fn is_target(pod: &Pod) -> bool {
    let condition = pods::condition(pod, TARGET).filter(|c| c.status == "True");
    condition.is_some_and(|c| c.reason.as_deref() != Some("TerminationByKubelet"))
        && !pod.is_deleting()
        && !pods::is_terminal(pod)
}

struct Targets;

impl Reconcile for Targets {
    type Kind = Pod;

    async fn reconcile(&self, cx: &Context, pod: Arc<Pod>) -> Result<Action, Error> {
        let Some(condition) = pods::condition(&pod, TARGET).filter(|_| is_target(&pod)) else {
            return Ok(Action::await_change());
        };
        let since = condition.last_transition_time.as_ref().map(|time| time.0);
        let passed = since.and_then(|since| Duration::try_from(cx.clock().now().duration_since(since)).ok());
        let left = STALE.saturating_sub(passed.unwrap_or_default());
        if !left.is_zero() {
            return Ok(Action::maybe_after(Some(left)));
        }
        let now = cx.clock().time();
        let over = <PodCondition as conditions::Condition>::make(TARGET, "False", "", "", &now);
        let patch = json!({"metadata": {"uid": pod.uid(), "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": [over]}});
        let api = cx.api::<Pod>(pod.namespace());
        api.patch_status(pod.name(), &k8s_core::client::Patch::Strategic(&patch)).await?;
        Ok(Action::await_change())
    }
}
