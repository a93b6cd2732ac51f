//! ResourceQuotas: recounts what the objects of a namespace use.
//!
//! Flow: a pass lists the objects that a quota limits, sums their usage ([`k8s_quota`]) and writes `status`.
//! Passes follow changes of the quota, deletions and other falls of usage that [`monitor`] sees, and time.
//! The admission plugin of the API server charges objects before they are stored; [`charges`] keeps a pass
//! from taking back the charge of an object that is about to be stored.
//!
//! Guarantees: the status is written with the revision that was read as precondition. Usage falls within
//! about a second of a deletion. Resources that no quota limits are neither watched nor listed.

mod charges;
mod monitor;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::Method;
use k8s_core::{
    api::{
        api::core::v1::{ResourceQuota, ResourceQuotaStatus},
        apimachinery::pkg::api::resource::Quantity,
    },
    cache::Change,
    client::{Error as ApiError, Resource},
    meta::{ObjectExt, ObjectKey},
};
use k8s_quota::{Amounts, Quota, resource_of, usage};
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use self::charges::Charges;
use super::{Options, discovery};
use k8s_controllers::{Backoff, Environment, WorkQueue};

/// Number of workers, as upstream's.
const WORKERS: usize = 5;
/// Time after which a quota is counted again without a change. (Upstream: `--resource-quota-sync-period`.)
const RESYNC: Duration = Duration::from_secs(300);
/// Time from a charge to the pass that checks it. One pass checks many.
const CHECK: Duration = Duration::from_secs(5);
/// Time from a fall of usage to a pass: deletions come in groups.
const FALL: Duration = Duration::from_millis(100);
/// Longest time until a failed pass is repeated. While the cache is behind, every pass meets a conflict; what
/// fails after that must not wait for minutes.
const SLOWEST: Duration = Duration::from_secs(10);
/// Least time between two passes of a quota, in times of what a pass takes: large namespaces are counted less
/// often.
const REST: u32 = 10;
/// Time until a quota is counted again that limits a resource that is not served. (Upstream looks as often.)
const UNSERVED: Duration = Duration::from_secs(30);
/// Least time between two discoveries for a resource that is not known.
const DISCOVER: Duration = Duration::from_secs(5);

pub(super) fn start(mut environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    environment.client = environment.client.named("resourcequota-controller");
    async move {
        let shared = Arc::new(Shared {
            queue: WorkQueue::new(Backoff { longest: SLOWEST, ..Backoff::default() }, environment.seed),
            charges: Mutex::default(),
            served: tokio::sync::Mutex::default(),
            tracked: Mutex::default(),
            costs: Mutex::default(),
            environment: environment.clone(),
        });
        let quotas = environment.caches.of::<ResourceQuota>();
        tokio::select! {
            biased;
            () = environment.shutdown.cancelled() => return,
            () = quotas.synced() => {}
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(shared.clone()));
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
    queue: WorkQueue<ObjectKey>,
    /// Charges of late, by quota.
    charges: Mutex<HashMap<ObjectKey, Charges>>,
    /// Resources by their name in quotas, and the time of the discovery.
    served: tokio::sync::Mutex<Option<(jiff::Timestamp, BTreeMap<String, Resource>)>>,
    /// Resources that are monitored.
    tracked: Mutex<BTreeSet<String>>,
    /// Duration of the last pass, by quota.
    costs: Mutex<HashMap<ObjectKey, Duration>>,
    environment: Environment,
}

/// Returns the JSON of a quota.
fn json_of(quota: &ResourceQuota) -> Value {
    // Types of the API have string keys, so this cannot fail.
    serde_json::to_value(quota).unwrap_or_default()
}

/// Returns the resources that a quota limits.
fn resources(quota: &Quota) -> BTreeSet<&str> {
    quota.wanted.names().filter_map(resource_of).collect()
}

impl Shared {
    fn charges(&self) -> MutexGuard<'_, HashMap<ObjectKey, Charges>> {
        self.charges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the charges that a quota shows.
    fn observe(&self, key: &ObjectKey, used: &Amounts) {
        let now = self.environment.clock.now();
        let mut all = self.charges();
        match all.get_mut(key) {
            Some(charges) => charges.observe(used, now),
            None => drop(all.insert(key.clone(), Charges::new(used, now))),
        }
    }

    /// Returns a delay, longer if the last pass took long.
    fn unhurried(&self, key: &ObjectKey, delay: Duration) -> Duration {
        let costs = self.costs.lock().unwrap_or_else(PoisonError::into_inner);
        costs.get(key).map_or(delay, |cost| delay.max(*cost * REST))
    }

    /// Counts the quotas again that limit a resource in a namespace. `None`: in all namespaces. Returns false
    /// if no quota limits the resource in any namespace.
    fn fell(&self, resource: &str, namespace: Option<&str>) -> bool {
        let cache = self.environment.caches.of::<ResourceQuota>();
        let limits = |quota: &Arc<ResourceQuota>| {
            let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
            hard.into_iter().flatten().any(|(name, _)| resource_of(name) == Some(resource))
        };
        let near = namespace.map_or_else(|| cache.list(), |namespace| cache.in_namespace(namespace));
        let mut found = near.into_iter().filter(limits).peekable();
        if found.peek().is_none() {
            return namespace.is_some() && cache.list().iter().any(limits);
        }
        for quota in found {
            let key = quota.key();
            let delay = self.unhurried(&key, FALL);
            self.queue.add_after(key, delay);
        }
        true
    }

    /// Returns a resource by its name in quotas. `None`: it is not served.
    async fn resource(&self, name: &str) -> Result<Option<Resource>, ApiError> {
        let mut served = self.served.lock().await;
        let now = self.environment.clock.now();
        if let Some((at, all)) = &*served {
            let is_fresh = now.duration_since(*at).unsigned_abs() < DISCOVER;
            if is_fresh || all.contains_key(name) {
                return Ok(all.get(name).cloned());
            }
        }
        let found = discovery::discover(&self.environment.client).await?;
        let named = |resource: Resource| {
            let name = match resource.group.as_str() {
                "" => resource.plural.clone(),
                group => format!("{}.{group}", resource.plural),
            };
            (name, resource)
        };
        let usable =
            found.served.into_iter().filter(|s| s.resource.namespaced && s.can("list") && s.can("watch"));
        let all: BTreeMap<String, Resource> = usable.map(|s| named(s.resource)).collect();
        let resource = all.get(name).cloned();
        *served = Some((now, all));
        Ok(resource)
    }
}

/// Queues quotas as they change, and notes their charges.
async fn follow(shared: Arc<Shared>) {
    let cache = shared.environment.caches.of::<ResourceQuota>();
    let mut changes = cache.subscribe();
    let see = |quota: &ResourceQuota, is_new: bool| {
        let (key, read) = (quota.key(), Quota::of(&json_of(quota)));
        shared.observe(&key, &read.used);
        let is_urgent = is_new || read.wanted != read.hard;
        let delay = if is_urgent { Duration::ZERO } else { shared.unhurried(&key, CHECK) };
        shared.queue.add_after(key, delay);
    };
    cache.list().iter().for_each(|quota| see(quota, true));
    while let Some(change) = changes.next().await {
        match change {
            Change::Added(quota) => see(&quota, true),
            Change::Modified(_, quota) => see(&quota, false),
            Change::Deleted(quota) => {
                shared.charges().remove(&quota.key());
                shared.costs.lock().unwrap_or_else(PoisonError::into_inner).remove(&quota.key());
                // Quotas are limited themselves.
                let _ = shared.fell("resourcequotas", Some(quota.namespace()));
            }
            Change::Resync => cache.list().iter().for_each(|quota| see(quota, false)),
        }
    }
}

async fn work(shared: Arc<Shared>) {
    while let Some(key) = shared.queue.get().await {
        let begun = shared.environment.clock.now();
        match pass(&shared, &key).await {
            Ok(next) => {
                shared.queue.forget(&key);
                if let Some(delay) = next {
                    shared.queue.add_after(key.clone(), delay);
                }
            }
            Err(e) => {
                let delay = shared.queue.retry(key.clone());
                if e.is_conflict() || e.is_not_found() {
                    debug!(%key, ?delay, error = %e, "changed meanwhile");
                } else {
                    warn!(%key, ?delay, error = %e, "usage of the quota is not counted");
                }
            }
        }
        let cost = shared.environment.clock.since(begun);
        shared.costs.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), cost);
        shared.queue.done(&key);
    }
}

/// Objects of any kind, whole.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Value>,
}

/// Counts the usage of a quota and writes its status. Returns the time until the next pass.
async fn pass(shared: &Arc<Shared>, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
    let Some(live) = shared.environment.caches.of::<ResourceQuota>().by_key(key) else { return Ok(None) };
    if live.is_deleting() {
        return Ok(None);
    }
    let quota = Quota::of(&json_of(&live));
    shared.observe(key, &quota.used);
    let (mut counted, mut failure, mut next) = (Amounts::default(), None, RESYNC);
    for name in resources(&quota) {
        match count(shared, &quota, &key.namespace, name).await {
            Ok(Some(amounts)) => counted.add(&amounts),
            Ok(None) => next = UNSERVED,
            // The others are counted all the same.
            Err(e) => failure = Some(e),
        }
    }
    let now = shared.environment.clock.now();
    let charges = shared.charges().get(key).cloned().unwrap_or_else(|| Charges::new(&quota.used, now));
    let (settled, wait) = charges.settle(&counted, &quota.used, now);
    // A name that could not be counted keeps its amount.
    let mut used = quota.used.clone();
    settled.iter().for_each(|(name, amount)| used.set(name, amount));
    let used = used.only(|name| quota.wanted.get(name).is_some());
    if used != quota.used || quota.wanted != quota.hard {
        let list = |amounts: &Amounts| {
            amounts.iter().map(|(name, amount)| (name.to_owned(), Quantity(amount.to_string()))).collect()
        };
        let status = ResourceQuotaStatus { hard: Some(list(&quota.wanted)), used: Some(list(&used)) };
        let next = ResourceQuota { status: Some(status), ..(*live).clone() };
        let api = shared.environment.client.namespaced::<ResourceQuota>(&key.namespace);
        api.replace_status(&key.name, &next).await?;
        if let Some(charges) = shared.charges().get_mut(key) {
            charges.wrote(&used);
        }
    }
    match failure {
        Some(e) => Err(e),
        None => Ok(Some(wait.map_or(next, |wait| wait.min(next)))),
    }
}

/// Returns the usage of the objects of a resource, under the names that the quota limits. `None`: the
/// resource is not served.
async fn count(
    shared: &Arc<Shared>,
    quota: &Quota,
    namespace: &str,
    name: &str,
) -> Result<Option<Amounts>, ApiError> {
    let Some(resource) = shared.resource(name).await? else { return Ok(None) };
    monitor::ensure(shared, name, &resource);
    let path = resource.path(namespace, "", "");
    let list: List = shared.environment.client.json(Method::GET, &path, "application/json", "").await?;
    let now = shared.environment.clock.now();
    let limited = |of: &str| quota.wanted.get(of).is_some() && resource_of(of) == Some(name);
    let zero = |of: &str| (of.to_owned(), k8s_core::meta::Quantity::ZERO);
    let mut sum: Amounts = quota.wanted.names().filter(|of| limited(of)).map(zero).collect();
    for object in list.items.iter().filter(|object| quota.selects(name, object)) {
        sum.add(&usage(name, object, now).only(limited));
    }
    Ok(Some(sum))
}
