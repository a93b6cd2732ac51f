//! The garbage collector: deletes objects that have lost all their owners.
//!
//! Flow: [`monitor`] watches the metadata of every discovered resource, custom ones included, and maintains
//! the ownership [`graph`]. Objects affected by a change are queued. A worker consults the graph, asks the
//! API server about owners that the graph does not know, and deletes, releases or unblocks. An absent owner
//! is never inferred from the graph alone, unless its deletion was observed.
//!
//! Foreground deletion: the owner stays, with the finalizer `foregroundDeletion`, until all dependents that
//! block it are gone. Orphaning: the finalizer `orphan` is removed from the owner after all its dependents
//! were released.
//!
//! Invariants:
//! 1. An object is deleted only if it has owner references, and the API server or a watch has said of each
//!    owner that it does not exist, or the owner is being deleted in the foreground.
//! 2. A deletion has uid and resourceVersion of the object as preconditions: an owner that it got meanwhile
//!    keeps it.
//! 3. An owner that is deleted in the foreground is not gone before dependents that block it, except those
//!    that it blocks itself: owners in a circle do not wait for each other for ever.
//! 4. An owner in another namespace does not count; an event `OwnerRefInvalidNamespace` says so.

mod graph;
mod monitor;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::{
        apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        apimachinery::pkg::apis::meta::v1::{OwnerReference, Preconditions},
        kube_aggregator::pkg::apis::apiregistration::v1::APIService,
    },
    client::{DeleteOptions, Error as ApiError, Patch, Resource},
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::graph::{Graph, Object, Step};
use super::{
    Options,
    discovery::{self, Discovery, Served},
    dynamic,
};
use k8s_controllers::{Backoff, Environment, EventType, Recorder, WorkQueue};

/// Number of workers. (Upstream: 20.) A deletion waits for its flush to disk, and concurrent deletions share
/// one flush.
const WORKERS: usize = 64;
/// Time after which a changed CustomResourceDefinition or APIService is served, mostly.
const SERVED_AFTER: Duration = Duration::from_millis(200);
/// First interval of discovery, at the start and after a change. Each interval is four times the last one: a
/// server may serve a definition late, and one of several API servers later than the others.
const SOON: Duration = Duration::from_secs(5);
/// Longest interval of discovery, for changes that nothing announces, such as an upgrade of the API server.
const SELDOM: Duration = Duration::from_secs(600);
/// The same while there are aggregated API servers, whose resources change unannounced, and while discovery
/// is incomplete.
const OFTEN: Duration = Duration::from_secs(60);
/// Interval after the first failed attempt. It doubles with each further one.
const RETRY: Duration = Duration::from_millis(200);
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const NAME: &str = "garbage-collector-controller";

pub(super) fn start(mut environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    environment.client = environment.client.named("generic-garbage-collector");
    async move {
        let shared = Arc::new(Shared {
            graph: Mutex::default(),
            queue: WorkQueue::new(Backoff::default(), environment.seed),
            kinds: Mutex::default(),
            recorder: Recorder::new(&environment.client, environment.clock.clone(), NAME),
            environment: environment.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_monitors(shared.clone()));
        for _ in 0..WORKERS {
            tasks.spawn(work(shared.clone()));
        }
        environment.shutdown.cancelled().await;
        shared.queue.close();
        tasks.shutdown().await;
    }
    .boxed()
}

struct Shared {
    graph: Mutex<Graph>,
    /// Uids of objects to process.
    queue: WorkQueue<String>,
    /// Resources by group and kind, to resolve owner references.
    kinds: Mutex<HashMap<(String, String), Resource>>,
    recorder: Recorder,
    environment: Environment,
}

impl Shared {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resource_of(&self, owner: &OwnerReference) -> Option<Resource> {
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.get(&(group.to_owned(), owner.kind.clone())).cloned()
    }
}

/// A running monitor of a resource.
struct Monitor {
    resource: Resource,
    stop: CancellationToken,
}

/// Monitors by group and plural: all versions of a resource have the same objects.
type Monitors = BTreeMap<(String, String), Monitor>;

/// Returns the time until the next discovery. `last` is the time before this one; zero at the start and after
/// a change.
fn interval(last: Duration, is_complete: bool, has_aggregated: bool) -> Duration {
    match (is_complete, has_aggregated) {
        (true, false) => (last * 4).clamp(SOON, SELDOM),
        (true, true) => (last * 4).clamp(SOON, OFTEN),
        (false, _) => (last * 2).clamp(RETRY, OFTEN),
    }
}

/// Maintains one monitor per discovered resource.
async fn keep_monitors(shared: Arc<Shared>) {
    let caches = &shared.environment.caches;
    let (definitions, services) = (caches.of::<CustomResourceDefinition>(), caches.of::<APIService>());
    let (mut changed_definitions, mut changed_services) = (definitions.subscribe(), services.subscribe());
    let mut running = Monitors::new();
    let mut delay = Duration::ZERO;
    loop {
        let failure = match discovery::discover(&shared.environment.client).await {
            Ok(found) => {
                adjust(&shared, &found, &mut running);
                found.failure()
            }
            Err(e) => Some(e.to_string()),
        };
        if let Some(error) = &failure {
            debug!(error, "discovery is incomplete");
        }
        let is_aggregated = |s: &Arc<APIService>| s.spec.as_ref().is_some_and(|s| s.service.is_some());
        delay = interval(delay, failure.is_none(), services.list().iter().any(is_aggregated));
        tokio::select! {
            biased;
            Some(_) = changed_definitions.next() => delay = Duration::ZERO,
            Some(_) = changed_services.next() => delay = Duration::ZERO,
            () = tokio::time::sleep(delay) => {}
        }
        if delay.is_zero() {
            tokio::time::sleep(SERVED_AFTER).await;
            // One discovery serves all changes until now: a cache begins with a change for each object.
            while let Some(Some(_)) = changed_definitions.next().now_or_never() {}
            while let Some(Some(_)) = changed_services.next().now_or_never() {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the monitor ends with its cancellation token")]
fn adjust(shared: &Arc<Shared>, found: &Discovery, running: &mut Monitors) {
    let watched = |s: &&Served| {
        let ignored =
            s.resource.plural == "events" && matches!(s.resource.group.as_str(), "" | "events.k8s.io");
        !ignored && s.can("list") && s.can("watch") && s.can("delete")
    };
    let slot = |resource: &Resource| (resource.group.clone(), resource.plural.clone());
    let wanted: BTreeMap<(String, String), &Resource> =
        found.served.iter().filter(watched).map(|s| (slot(&s.resource), &s.resource)).collect();
    let mut kinds = shared.kinds.lock().unwrap_or_else(PoisonError::into_inner);
    kinds.retain(|(group, _), _| found.is_uncertain(group));
    kinds.extend(
        found
            .served
            .iter()
            .map(|s| ((s.resource.group.clone(), s.resource.kind.clone()), s.resource.clone())),
    );
    drop(kinds);
    running.retain(|slot, Monitor { resource, stop }| {
        match wanted.get(slot) {
            Some(wanted) if *wanted == resource => return true,
            // The monitor of the other version starts with a list, which detects deletions.
            Some(_) => {}
            // A failed discovery does not mean that the resource is gone.
            None if found.is_uncertain(&resource.group) => return true,
            None => {
                let touched = shared.graph().forget_resource(resource);
                touched.into_iter().for_each(|uid| shared.queue.add(uid));
            }
        }
        stop.cancel();
        false
    });
    for (slot, resource) in wanted {
        if running.contains_key(&slot) {
            continue;
        }
        let stop = shared.environment.shutdown.child_token();
        running.insert(slot, Monitor { resource: resource.clone(), stop: stop.clone() });
        let (shared, resource) = (shared.clone(), resource.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = monitor::run(&shared, &resource) => {}
            }
        });
    }
}

async fn work(shared: Arc<Shared>) {
    while let Some(uid) = shared.queue.get().await {
        match look_at(&shared, &uid).await {
            Ok(Looked::Done) => shared.queue.forget(&uid),
            Ok(Looked::Unseen) => drop(shared.queue.retry(uid.clone())),
            Err(e) => {
                let delay = shared.queue.retry(uid.clone());
                // Changed or gone meanwhile, or of a kind that is not served (yet).
                if e.is_conflict() || e.is_not_found() || matches!(e, ApiError::Request(_)) {
                    debug!(uid, ?delay, error = %e, "not collected yet");
                } else {
                    warn!(uid, ?delay, error = %e, "garbage not collected");
                }
            }
        }
        shared.queue.done(&uid);
    }
}

/// Result of processing an object.
enum Looked {
    Done,
    /// The API server has an owner that the graph lacks. It could be deleted before the graph sees it,
    /// without any event, so process the object again.
    Unseen,
}

async fn look_at(shared: &Shared, uid: &str) -> Result<Looked, ApiError> {
    let client = &shared.environment.client;
    let Some(object) = shared.graph().get(uid) else { return Ok(Looked::Done) };
    // Ask the API server about unknown owners.
    let unknown = shared.graph().unknown_owners(&object);
    let mut found = HashMap::new();
    for owner in shared.graph().misplaced_owners(&object) {
        tell_misplaced(shared, &object, &owner);
    }
    for owner in unknown {
        let Some(resource) = shared.resource_of(&owner) else {
            return Err(ApiError::Request(format!(
                "owner {} {} of {} is of a kind that is not served",
                owner.kind, owner.name, object.meta.name
            )));
        };
        let namespace = if resource.namespaced { object.meta.namespace.as_str() } else { "" };
        if resource.namespaced && namespace.is_empty() {
            // The owner is namespaced but the object is not: its namespace is unknown, so the object stays.
            tell_misplaced(shared, &object, &owner);
            return Ok(Looked::Done);
        }
        let live = dynamic::get_meta(client, &resource, namespace, &owner.name).await?;
        found.insert(owner.uid.clone(), live.filter(|live| live.uid == owner.uid));
    }
    let step = shared.graph().step(uid, &found);
    match step {
        Step::Nothing => {}
        Step::Delete(policy) => delete(shared, &object, policy).await?,
        Step::Release(owners) => {
            let keep = |o: &OwnerReference| !owners.contains(&o.uid);
            edit_owners(shared, &object, keep).await?;
        }
        Step::LookAt(dependents) => dependents.into_iter().for_each(|uid| shared.queue.add(uid)),
        Step::Unblock => remove_finalizer(shared, &object, FOREGROUND).await?,
        Step::Orphan(dependents) => {
            for dependent in dependents {
                edit_owners(shared, &dependent, |o| o.uid != uid).await?;
            }
            remove_finalizer(shared, &object, ORPHAN).await?;
        }
    }
    let unseen = found.iter().any(|(owner, live)| live.is_some() && shared.graph().get(owner).is_none());
    Ok(if unseen { Looked::Unseen } else { Looked::Done })
}

/// Reports an owner reference across namespaces, or from a cluster-scoped object to a namespaced owner. Such
/// an owner does not count.
fn tell_misplaced(shared: &Shared, object: &Object, owner: &OwnerReference) {
    let about = object.reference();
    let namespace = object.meta.namespace.as_str();
    let message = format!(
        "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
        owner.api_version, owner.kind, owner.name, owner.uid
    );
    shared.recorder.event(about, EventType::Warning, "OwnerRefInvalidNamespace", message);
}

/// Deletes the object with its known resourceVersion as precondition: it may have got other owners since (or
/// none, if orphaned). A conflict requeues it.
async fn delete(shared: &Shared, object: &Object, policy: &str) -> Result<(), ApiError> {
    let Object { resource, meta } = object;
    let options = DeleteOptions {
        propagation_policy: Some(policy.to_owned()),
        preconditions: Some(Preconditions {
            uid: Some(meta.uid.clone()),
            resource_version: Some(meta.resource_version.clone()),
        }),
        ..DeleteOptions::default()
    };
    debug!(kind = resource.kind, namespace = meta.namespace, name = meta.name, policy, "deleting");
    let api = shared.environment.client.dynamic(resource, &meta.namespace);
    api.delete_if_exists(&meta.name, &options).await
}

/// Removes owner references from the live object, except those that `keep` accepts.
async fn edit_owners(
    shared: &Shared,
    object: &Object,
    keep: impl Fn(&OwnerReference) -> bool,
) -> Result<(), ApiError> {
    let Some(live) = live(shared, object).await? else { return Ok(()) };
    let owners: Vec<&OwnerReference> = live.owner_references.iter().filter(|o| keep(o)).collect();
    if owners.len() == live.owner_references.len() {
        return Ok(());
    }
    patch(shared, object, &live, json!({"ownerReferences": owners})).await
}

async fn remove_finalizer(shared: &Shared, object: &Object, finalizer: &str) -> Result<(), ApiError> {
    let Some(live) = live(shared, object).await? else { return Ok(()) };
    let finalizers: Vec<&String> = live.finalizers.iter().filter(|f| *f != finalizer).collect();
    if finalizers.len() == live.finalizers.len() {
        return Ok(());
    }
    patch(shared, object, &live, json!({"finalizers": finalizers})).await
}

async fn live(shared: &Shared, object: &Object) -> Result<Option<dynamic::Meta>, ApiError> {
    let Object { resource, meta, .. } = object;
    let live = dynamic::get_meta(&shared.environment.client, resource, &meta.namespace, &meta.name).await?;
    Ok(live.filter(|live| live.uid == meta.uid))
}

/// Patches metadata with the resourceVersion that was read as precondition.
async fn patch(
    shared: &Shared,
    object: &Object,
    live: &dynamic::Meta,
    mut metadata: serde_json::Value,
) -> Result<(), ApiError> {
    metadata["uid"] = live.uid.clone().into();
    metadata["resourceVersion"] = live.resource_version.clone().into();
    let api = shared.environment.client.dynamic(&object.resource, &live.namespace);
    match api.patch(&live.name, &Patch::Merge(json!({"metadata": metadata}))).await {
        Err(e) if e.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use k8s_core::{
        client::{Body, BoxError, Client, Transport},
        status::{ApiStatus, Reason},
    };

    use super::*;

    /// A server that never responds.
    struct Silent;

    impl Transport for Silent {
        fn call(&self, _: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            futures::future::pending().boxed()
        }
    }

    #[test]
    fn discovery_becomes_seldom_where_nothing_changes() {
        let seconds = |complete: &[bool], has_aggregated: bool| {
            let next = |last: &mut Duration, complete: &bool| {
                *last = interval(*last, *complete, has_aggregated);
                Some(last.as_secs_f32())
            };
            complete.iter().scan(Duration::ZERO, next).collect::<Vec<f32>>()
        };
        assert_eq!(seconds(&[true; 6], false), [5.0, 20.0, 80.0, 320.0, 600.0, 600.0]);
        assert_eq!(seconds(&[true; 4], true), [5.0, 20.0, 60.0, 60.0]);
        assert_eq!(seconds(&[false, false, true, false], false), [0.2, 0.4, 5.0, 10.0]);
        assert_eq!(seconds(&[true, true, true, true, false], false)[4], 60.0);
    }

    #[tokio::test]
    async fn a_lost_discovery_request_forgets_no_objects() {
        let environment = Environment::new(Client::new(Silent));
        let shared = Arc::new(Shared {
            graph: Mutex::default(),
            queue: WorkQueue::new(Backoff::default(), 0),
            kinds: Mutex::default(),
            recorder: Recorder::new(&environment.client, environment.clock.clone(), NAME),
            environment,
        });
        let resource = |version: &str| Resource {
            group: "apps".into(),
            version: version.into(),
            kind: "Deployment".into(),
            plural: "deployments".into(),
            namespaced: true,
        };
        let verbs: Vec<String> = ["list", "watch", "delete"].map(str::to_owned).into();
        let serving = |version: &str| Discovery {
            served: vec![Served { resource: resource(version), verbs: verbs.clone() }],
            ..Discovery::default()
        };
        let mut lost = Discovery::default();
        lost.failed.insert("apps/v1".into(), ApiStatus::of(Reason::ServiceUnavailable, "").into());
        let mut running = Monitors::new();
        adjust(&shared, &serving("v1"), &mut running);
        let meta = dynamic::Meta { uid: "d".into(), name: "d".into(), ..dynamic::Meta::default() };
        shared.graph().set(&Arc::new(resource("v1")), meta);
        for found in [&lost, &serving("v1beta2"), &serving("v1")] {
            adjust(&shared, found, &mut running);
            assert!(shared.graph().get("d").is_some(), "{found:?}");
            assert_eq!(running.len(), 1);
        }
        adjust(&shared, &Discovery::default(), &mut running);
        assert!(shared.graph().get("d").is_none() && running.is_empty(), "it is not served any more");
        shared.environment.shutdown.cancel();
    }
}
