//! The controller: caches, tables, addresses in the status, events.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use k8s_core::{
    api::api::{
        core::v1::{Secret, Service},
        discovery::v1::EndpointSlice,
        networking::v1::{Ingress, IngressClass, IngressLoadBalancerIngress, IngressLoadBalancerStatus},
    },
    cache::{Cache, Change, Reflector, reflect, reflect_trimmed},
    client::{Client, ListParams, Patch},
    clock::Clock,
    events::{Recorder, involved},
    meta::{Object, ObjectExt, ObjectKey},
    random,
};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    annotations::Problem,
    certificates::Certificate,
    patterns::Patterns,
    plan::{Objects, Plan, plan},
    proxy::Proxy,
};

/// Label of EndpointSlices with their Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Index: EndpointSlices by Service.
const SLICES: &str = "ingress-slices";
/// Time in which changes are collected before a table is made.
const COLLECT: Duration = Duration::from_millis(2);
const MOST_COLLECT: Duration = Duration::from_millis(200);
/// Time between two looks at the dates of certificates.
const LOOK: Duration = Duration::from_secs(3600);
/// Time after which a status that could not be written is written again.
const RETRY: Duration = Duration::from_secs(5);

/// Settings of a controller.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Name of the IngressClass that is always served. Default: `hyperkube`.
    pub class: String,
    /// Namespace and name of the Service whose addresses Ingresses have in their status.
    pub service: (String, String),
    /// Addresses for the status while that Service has none, such as that of the node.
    pub addresses: Vec<String>,
    /// Addresses of the proxy's listeners, which are no endpoints.
    pub listeners: Vec<SocketAddr>,
    /// Source of time.
    pub clock: Clock,
}

/// The caches, and what fills them.
struct Caches {
    ingresses: Cache<Ingress>,
    classes: Cache<IngressClass>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    secrets: Cache<Secret>,
    _reflectors: [Reflector; 5],
}

impl Caches {
    fn start(client: &Client) -> Self {
        fn filled<K: Object>(client: &Client, cache: &Cache<K>) -> Reflector {
            reflect(client.all(), ListParams::default(), cache.clone())
        }
        let (ingresses, classes) = (Cache::new(), Cache::new());
        let (services, slices, secrets) = (Cache::new(), Cache::new(), Cache::new());
        slices.add_index(SLICES, |slice: &EndpointSlice| {
            let name = slice.label(SERVICE_NAME);
            name.map(|name| ObjectKey::new(slice.namespace(), name).to_string()).into_iter().collect()
        });
        // Only certificates are of interest, and no others are kept.
        let trim = |secret: &mut Secret| {
            secret.metadata.annotations = None;
            secret.metadata.labels = None;
            if let Some(data) = &mut secret.data {
                data.retain(|key, _| ["tls.crt", "tls.key"].contains(&&**key));
            }
        };
        let reflectors = [
            filled(client, &ingresses),
            filled(client, &classes),
            filled(client, &services),
            filled(client, &slices),
            reflect_trimmed(client.all(), ListParams::default(), secrets.clone(), trim),
        ];
        Caches { ingresses, classes, services, slices, secrets, _reflectors: reflectors }
    }

    async fn synced(&self) {
        self.ingresses.synced().await;
        self.classes.synced().await;
        self.services.synced().await;
        self.slices.synced().await;
        self.secrets.synced().await;
    }
}

/// Wakes when an object changed that concerns the table.
async fn watch<K: Object>(cache: &Cache<K>, changed: &Notify, concerns: impl Fn(&K) -> bool) {
    let mut changes = cache.subscribe();
    // For changes before the subscription.
    changed.notify_one();
    while let Some(change) = changes.next().await {
        let concerned = match &change {
            Change::Added(object) | Change::Deleted(object) => concerns(object),
            Change::Modified(before, after) => concerns(before) || concerns(after),
            Change::Resync => true,
        };
        if concerned {
            changed.notify_one();
        }
    }
}

/// The Services and Secrets that the table was made of.
#[derive(Default)]
struct Used {
    services: BTreeSet<ObjectKey>,
    secrets: BTreeSet<ObjectKey>,
}

/// Uid and version of a Secret.
type Version = (String, u64);

/// Certificates that were read.
#[derive(Default)]
struct Certificates(Mutex<HashMap<Version, Result<Arc<Certificate>, String>>>);

impl Certificates {
    fn read(&self, secret: &Secret) -> Result<Arc<Certificate>, String> {
        let id = (secret.uid().to_owned(), secret.revision());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(id).or_insert_with(|| Certificate::read(secret).map(Arc::new)).clone()
    }

    /// Forgets those of Secrets that are gone or changed.
    fn retain(&self, secrets: &Cache<Secret>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > 2 * secrets.len() + 16 {
            let there: BTreeSet<_> =
                secrets.list().iter().map(|s| (s.uid().to_owned(), s.revision())).collect();
            known.retain(|id, _| there.contains(id));
        }
    }
}

/// What plans are made of, and what is kept from one to the next.
struct Maker {
    caches: Arc<Caches>,
    certificates: Certificates,
    patterns: Patterns,
}

impl Maker {
    fn plan(&self, config: &ControllerConfig) -> Plan {
        let caches = &self.caches;
        self.certificates.retain(&caches.secrets);
        plan(&Objects {
            class: &config.class,
            ingresses: &caches.ingresses.list(),
            classes: &caches.classes.list(),
            service: &|namespace, name| caches.services.get(namespace, name),
            slices: &|namespace, name| {
                caches.slices.by_index(SLICES, &ObjectKey::new(namespace, name).to_string())
            },
            secret: &|namespace, name| caches.secrets.get(namespace, name),
            certificate: &|secret| self.certificates.read(secret),
            patterns: &self.patterns,
            refused: &config.listeners,
            now: config.clock.now(),
            seed: random::range(0..1024),
        })
    }
}

/// Fills a proxy's table from an API server until `stop`.
pub async fn run(client: Client, config: ControllerConfig, proxy: Proxy, stop: CancellationToken) {
    let recorder = Recorder::new(&client, config.clock.clone(), "ingress-controller");
    let caches = Arc::new(Caches::start(&client));
    tokio::select! {
        () = caches.synced() => {}
        () = stop.cancelled() => return,
    }
    let changed = Notify::new();
    let used = Arc::new(RwLock::new(Used::default()));
    let read = || used.read().unwrap_or_else(PoisonError::into_inner);
    let own = ObjectKey::new(&config.service.0, &config.service.1);
    let of_slice = |slice: &EndpointSlice| {
        ObjectKey::new(slice.namespace(), slice.label(SERVICE_NAME).unwrap_or_default())
    };
    let mut controller = Controller {
        client,
        config,
        proxy,
        recorder,
        maker: Arc::new(Maker {
            caches: caches.clone(),
            certificates: Certificates::default(),
            patterns: Patterns::default(),
        }),
        told: HashMap::new(),
        written: HashMap::new(),
        used: used.clone(),
    };
    tokio::select! {
        () = async {
            tokio::join!(
                watch(&caches.ingresses, &changed, |_| true),
                watch(&caches.classes, &changed, |_| true),
                watch(&caches.services, &changed, |s| s.key() == own || read().services.contains(&s.key())),
                watch(&caches.slices, &changed, |slice| read().services.contains(&of_slice(slice))),
                watch(&caches.secrets, &changed, |secret| read().secrets.contains(&secret.key())),
            );
        } => {}
        () = controller.follow(&caches, &changed) => {}
        () = stop.cancelled() => {}
    }
}

struct Controller {
    client: Client,
    config: ControllerConfig,
    proxy: Proxy,
    recorder: Recorder,
    maker: Arc<Maker>,
    /// Generation and problems of Ingresses, by uid, as told by events.
    told: HashMap<String, (i64, Vec<Problem>)>,
    /// Ingresses with addresses of ours in their status.
    written: HashMap<ObjectKey, String>,
    used: Arc<RwLock<Used>>,
}

impl Controller {
    async fn follow(&mut self, caches: &Caches, changed: &Notify) {
        let (mut again, mut pause) = (LOOK, COLLECT);
        loop {
            let waited = tokio::select! {
                () = changed.notified() => pause,
                () = self.config.clock.sleep(again) => Duration::ZERO,
            };
            self.config.clock.sleep(waited).await;
            let begun = self.config.clock.now();
            let Some(made) = self.plan().await else {
                again = RETRY;
                continue;
            };
            let Plan { table, served, services, secrets } = made;
            self.proxy.replace(table);
            // Many changes of large tables take a third of a processor at most.
            pause = COLLECT.max(self.config.clock.since(begun) * 2).min(MOST_COLLECT);
            {
                let mut used = self.used.write().unwrap_or_else(PoisonError::into_inner);
                if used.services != services || used.secrets != secrets {
                    *used = Used { services, secrets };
                    // One of the new ones may have changed before it counted.
                    changed.notify_one();
                }
            }
            self.tell(&served);
            again = if self.write(caches, &served).await { LOOK } else { RETRY };
        }
    }

    /// Makes a plan on a thread for such work, as large ones take long. `None`: it failed.
    async fn plan(&self) -> Option<Plan> {
        let (maker, config) = (self.maker.clone(), self.config.clone());
        let made = tokio::task::spawn_blocking(move || maker.plan(&config)).await;
        made.inspect_err(|error| tracing::error!(%error, "no routing table is made")).ok()
    }

    /// Tells what is new about the Ingresses.
    fn tell(&mut self, served: &[(Arc<Ingress>, Vec<Problem>)]) {
        let mut told = HashMap::new();
        for (ingress, problems) in served {
            let generation = ingress.metadata.generation.unwrap_or_default();
            let before = self.told.remove(ingress.uid());
            if before.as_ref().is_none_or(|(known, _)| *known != generation) {
                self.recorder.normal(involved(&**ingress), "Sync", "Scheduled for sync");
            }
            let known = before.map(|(_, known)| known).unwrap_or_default();
            for problem in problems.iter().filter(|problem| !known.contains(problem)) {
                self.recorder.warning(involved(&**ingress), problem.reason, problem.message.clone());
            }
            told.insert(ingress.uid().to_owned(), (generation, problems.clone()));
        }
        self.told = told;
    }

    /// Writes the addresses into the status of the Ingresses. Returns false if one could not be written.
    async fn write(&mut self, caches: &Caches, served: &[(Arc<Ingress>, Vec<Problem>)]) -> bool {
        let points = self.points(caches);
        let mut all = true;
        let mut written = HashMap::new();
        for (ingress, _) in served {
            let given = ingress.status.as_ref().and_then(|status| status.load_balancer.clone());
            let given = given.and_then(|balancer| balancer.ingress).unwrap_or_default();
            written.insert(ingress.key(), ingress.uid().to_owned());
            if given != points {
                all &= self.write_one(&ingress.key(), ingress.uid(), &points).await;
            }
        }
        // Those that are no longer served have no address of ours.
        for (key, uid) in std::mem::replace(&mut self.written, written) {
            let there = caches.ingresses.by_key(&key).is_some_and(|ingress| ingress.uid() == uid);
            if there && !self.written.contains_key(&key) {
                all &= self.write_one(&key, &uid, &[]).await;
            }
        }
        all
    }

    async fn write_one(&self, key: &ObjectKey, uid: &str, points: &[IngressLoadBalancerIngress]) -> bool {
        let status = IngressLoadBalancerStatus { ingress: Some(points.to_vec()) };
        let patch = json!({"metadata": {"uid": uid}, "status": {"loadBalancer": status}});
        let api = self.client.namespaced::<Ingress>(&key.namespace);
        match api.patch_status(&key.name, &Patch::Merge(patch)).await {
            Ok(_) => true,
            // Another one, or none, is there now: its own change is on the way.
            Err(error) if error.is_not_found() || error.is_conflict() => true,
            Err(error) => {
                tracing::warn!(ingress = %key, %error, "the status of an Ingress is not written");
                false
            }
        }
    }

    /// Returns the addresses of the Service that leads here, else those of the configuration.
    fn points(&self, caches: &Caches) -> Vec<IngressLoadBalancerIngress> {
        let (namespace, name) = &self.config.service;
        let service = caches.services.get(namespace, name);
        let status = service.as_ref().and_then(|service| service.status.as_ref()?.load_balancer.as_ref());
        let given = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
        let points: Vec<_> = given
            .map(|point| IngressLoadBalancerIngress {
                ip: point.ip.clone(),
                hostname: point.hostname.clone(),
                ports: None,
            })
            .collect();
        if !points.is_empty() {
            return points;
        }
        let own = self.config.addresses.iter();
        own.map(|ip| IngressLoadBalancerIngress { ip: Some(ip.clone()), hostname: None, ports: None })
            .collect()
    }
}

#[cfg(test)]
mod tests;
