//! [`Running`]: one run of a lab.

#![expect(clippy::disallowed_methods, reason = "the lab is the owner of virtual time")]

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use k8s_apiserver::{ApiServer, User};
use k8s_core::{
    api::api::core::v1::Pod,
    client::{Api, Client, DeleteOptions, ListParams, Resource, WatchEvent},
    clock::Clock,
    meta::{Object, ObjectExt},
    random,
};
use k8s_store::Store;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    actor::{Kind, Process},
    base,
    hub::{Hub, Plan, Written},
    listed::Listed,
    node, objects,
    process::{self, Supervised, World},
    role::{NeededRole, Recorded},
    setup::Setup,
    trace::Trace,
    wire::Service,
};

/// Time without write attempts after which a real cluster counts as settled.
const REAL_CALM: Duration = Duration::from_secs(5);
/// Time after which faults stop in a cluster that does not settle under them.
const STORM: Duration = Duration::from_secs(300);

/// A cluster with the lab's controllers. Cheap to clone. Its methods panic to fail the test.
#[derive(Clone, Debug)]
pub struct Running {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    setup: Arc<Setup>,
    world: World,
    server: Option<ApiServer>,
    service: Service,
    programs: Vec<Supervised>,
    tasks: Mutex<JoinSet<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.world.stop.cancel();
    }
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("default", name))
}

impl Running {
    /// Begins a run in a cluster of its own.
    pub(crate) async fn begin(setup: Arc<Setup>, store: Store, plan: Plan, clock: Clock) -> Self {
        let server = base::server(store, clock.clone(), &setup.shapes).await;
        let upstream = server.client_as(User::admin());
        let store = Some(server.store().clone());
        Self::start(setup, Some(server), upstream, store, plan, clock)
    }

    /// Begins a run in an existing cluster.
    pub(crate) async fn join(setup: Arc<Setup>, upstream: Client, seed: u64) -> Self {
        for manifest in setup.definitions.iter().chain(&setup.manifests) {
            // A CustomResourceDefinition is served with a delay.
            let mut tries = 0;
            while let Err(e) = objects::apply(&upstream, manifest).await {
                tries += 1;
                assert!(tries < 20, "{e}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        let plan = Plan { seed, ..Plan::default() };
        Self::start(setup, None, upstream, None, plan, Clock::system())
    }

    fn start(
        setup: Arc<Setup>,
        server: Option<ApiServer>,
        upstream: Client,
        store: Option<Store>,
        plan: Plan,
        clock: Clock,
    ) -> Self {
        let (seed, whole) = (plan.seed, setup.record.is_some() || setup.whole_trace);
        let hub = Arc::new(Hub::new(plan, whole));
        let stop = CancellationToken::new();
        let world = World { upstream, store, hub: hub.clone(), clock: clock.clone(), seed, stop };
        let mut tasks = JoinSet::new();
        let mut programs = Vec::new();
        for program in &setup.programs {
            // An existing cluster has its own controllers and scheduler.
            if server.is_some() || program.kind == Kind::Tested {
                programs.push(process::supervise(program, &world, &mut tasks));
            }
        }
        if server.is_some() && setup.nodes > 0 {
            let kubelet = Arc::new(Process::new("kubelet", Kind::Node, None));
            let client = world.service(&kubelet).client().named("kubelet");
            let beats = setup.heartbeats.then(|| (0..setup.nodes).map(|i| format!("node-{i}")).collect());
            tasks.spawn(node::follow(client, clock.clone(), setup.director.clone(), hub, beats));
        }
        let service = world.service(&Arc::new(Process::new("test", Kind::Test, None)));
        Running {
            inner: Arc::new(Inner { setup, world, server, service, programs, tasks: Mutex::new(tasks) }),
        }
    }

    /// Stops all parts. Resumes the panic of any part.
    ///
    /// # Panics
    /// Also if a chosen fault did not strike.
    pub(crate) async fn finish(self) {
        self.raise();
        let missed = self.hub().missed();
        assert!(missed.is_empty(), "there was no such request to inject a fault into:\n{}", lines(&missed));
        self.inner.world.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resumes the panic of any part of the run.
    ///
    /// # Panics
    /// Also if a program's role does not allow one of its requests.
    fn raise(&self) {
        if let Some(forbidden) = self.hub().state().forbidden.take() {
            panic!("{forbidden}");
        }
        let mut tasks = self.tasks();
        while let Some(ended) = tasks.try_join_next() {
            if let Err(e) = ended
                && e.is_panic()
            {
                drop(tasks);
                std::panic::resume_unwind(e.into_panic());
            }
        }
    }

    pub(crate) fn hub(&self) -> Arc<Hub> {
        self.inner.world.hub.clone()
    }

    fn is_real(&self) -> bool {
        self.inner.server.is_none()
    }

    /// Returns a client of a cluster administrator, for the test itself: no faults are injected.
    #[must_use]
    pub fn client(&self) -> Client {
        self.inner.service.client().named("lab")
    }

    /// Returns the API server as a `tower::Service` of a cluster administrator:
    /// `kube::Client::new(lab.service(), "default")`.
    #[must_use]
    pub fn service(&self) -> Service {
        self.inner.service.clone()
    }

    /// As [`Running::service`], for a user with that user's permissions.
    #[must_use]
    pub fn service_as(&self, user: &str) -> Service {
        self.inner.service.acting_as(user)
    }

    /// As [`Running::client`], for a user with that user's permissions.
    ///
    /// ```
    /// use k8s_core::api::Pod;
    /// k8s_testing::Lab::new().run(async |lab| {
    ///     let eve = lab.client_as("eve").namespaced::<Pod>("default");
    ///     assert!(eve.get("a").await.unwrap_err().to_string().contains("User \"eve\" cannot get"));
    /// });
    /// ```
    #[must_use]
    pub fn client_as(&self, user: &str) -> Client {
        self.service_as(user).client().named("lab")
    }

    /// Returns the cluster's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.world.clock
    }

    /// Returns the seed of this run.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.inner.world.seed
    }

    /// Returns the API of a type: in the namespace `default` if it is namespaced.
    #[must_use]
    pub fn api<K: Object>(&self) -> Api<K> {
        self.api_in("default")
    }

    fn api_in<K: Object>(&self, namespace: &str) -> Api<K> {
        let namespaced = Resource::of::<K>().namespaced;
        self.client().namespaced(if namespaced { namespace } else { "" })
    }

    /// Applies every document of a YAML text by server-side apply. Enables faults until the cluster has
    /// settled.
    pub async fn apply(&self, yaml: impl AsRef<str>) {
        let all = objects::documents(yaml.as_ref()).unwrap_or_else(|e| panic!("{e}"));
        for manifest in &all {
            objects::apply(&self.client(), manifest).await.unwrap_or_else(|e| panic!("{e}"));
        }
    }

    /// Creates an object; its namespace defaults to `default`.
    pub async fn create<K: Object>(&self, object: &K) -> K {
        let namespace = Some(object.namespace()).filter(|n| !n.is_empty()).unwrap_or("default");
        let made = self.api_in(namespace).create(object).await;
        made.unwrap_or_else(|e| panic!("create {} {:?}: {e}", K::KIND, object.name()))
    }

    /// Creates an object from a manifest.
    pub async fn create_from<K: Object>(&self, manifest: Value) -> K {
        let object: K = serde_json::from_value(manifest).unwrap_or_else(|e| panic!("not a {}: {e}", K::KIND));
        self.create(&object).await
    }

    /// Returns an object, which must exist. `name` or `namespace/name`.
    pub async fn get<K: Object>(&self, name: &str) -> K {
        self.find(name).await.unwrap_or_else(|| panic!("there is no {} {name:?}", K::KIND))
    }

    /// Returns an object, if it exists. `name` or `namespace/name`.
    pub async fn find<K: Object>(&self, name: &str) -> Option<K> {
        let (namespace, name) = split(name);
        let found = self.api_in(namespace).get_opt(name).await;
        found.unwrap_or_else(|e| panic!("get {} {name:?}: {e}", K::KIND))
    }

    /// Returns an object, which must exist, as any type that deserializes: for types of kube-rs of any
    /// version. `resource` is `PLURAL.GROUP/VERSION` (`documents.kube.rs/v1`), for the core group `pods/v1`;
    /// `name` is `name` or `namespace/name`.
    ///
    /// ```
    /// use k8s_testing::Lab;
    /// use serde::Deserialize;
    /// use serde_json::json;
    ///
    /// #[derive(Deserialize)]
    /// struct Map { data: std::collections::BTreeMap<String, String> }
    ///
    /// Lab::new().run(async |lab| {
    ///     let metadata = json!({"name": "a"});
    ///     let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"tea": "green"}});
    ///     lab.create_any(&map).await;
    ///     assert_eq!(lab.get_as::<Map>("configmaps/v1", "a").await.data["tea"], "green");
    ///     assert_eq!(lab.list_as::<Map>("configmaps/v1").await.len(), 1);
    /// });
    /// ```
    pub async fn get_as<T: DeserializeOwned>(&self, resource: &str, name: &str) -> T {
        self.find_as(resource, name).await.unwrap_or_else(|| panic!("there is no {resource} {name:?}"))
    }

    /// As [`Running::get_as`], if the object exists.
    pub async fn find_as<T: DeserializeOwned>(&self, resource: &str, name: &str) -> Option<T> {
        let (namespace, name) = split(name);
        let found = objects::named(&self.client(), resource, namespace).await;
        let found = found.unwrap_or_else(|e| panic!("{e}")).get_opt(name).await;
        let found = found.unwrap_or_else(|e| panic!("get {resource} {name:?}: {e}"))?;
        Some(read_as(resource, found))
    }

    /// Returns all objects of a resource, in all namespaces: see [`Running::get_as`].
    pub async fn list_as<T: DeserializeOwned>(&self, resource: &str) -> Vec<T> {
        let all = objects::named(&self.client(), resource, "").await;
        let all = all.unwrap_or_else(|e| panic!("{e}")).list(&ListParams::default()).await;
        let all = all.unwrap_or_else(|e| panic!("list {resource}: {e}"));
        all.into_iter().map(|object| read_as(resource, object)).collect()
    }

    /// Creates an object of any type that serializes with its `apiVersion` and `kind`. Its namespace defaults
    /// to `default`.
    pub async fn create_any(&self, object: impl Serialize) {
        let object = serde_json::to_value(object).unwrap_or_else(|e| panic!("serialize an object: {e}"));
        objects::create(&self.client(), &object).await.unwrap_or_else(|e| panic!("{e}"));
    }

    /// Returns all objects of a type, in all namespaces.
    pub async fn list<K: Object>(&self) -> Vec<K> {
        let all = self.client().all::<K>().list(&ListParams::default()).await;
        all.unwrap_or_else(|e| panic!("list {}: {e}", K::PLURAL))
    }

    /// Changes an object; on a conflict reads it and changes it again.
    ///
    /// ```
    /// use k8s_core::api::Deployment;
    /// use k8s_testing::{Lab, controllers::{deployment, replica_set}};
    /// use serde_json::json;
    ///
    ///
    /// Lab::new().controllers([deployment(), replica_set()]).nodes(1).run(async |lab| {
    ///     lab.create_from::<Deployment>(json!({"metadata": {"name": "web"}, "spec": {
    ///         "replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
    ///             "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    ///         },
    ///     }})).await;
    ///     lab.edit::<Deployment>("web", |web| web.spec.as_mut().unwrap().replicas = Some(3)).await;
    ///     lab.settle().await;
    ///     assert_eq!(lab.pods_in("Running").await, 3);
    /// });
    /// ```
    pub async fn edit<K: Object>(&self, name: &str, change: impl Fn(&mut K)) -> K {
        let (namespace, bare) = split(name);
        loop {
            let mut live: K = self.get(name).await;
            change(&mut live);
            match self.api_in(namespace).replace(bare, &live).await {
                Err(e) if e.is_conflict() => {}
                Err(e) => panic!("change {} {name:?}: {e}", K::KIND),
                Ok(live) => return live,
            }
        }
    }

    /// Deletes an object, which must exist. Its dependents are left to the garbage collector.
    pub async fn delete<K: Object>(&self, name: &str) {
        let (namespace, bare) = split(name);
        let done = self.api_in::<K>(namespace).delete(bare, &DeleteOptions::background()).await;
        done.unwrap_or_else(|e| panic!("delete {} {name:?}: {e}", K::KIND));
    }

    /// Waits until an object satisfies `wanted`, for at most an hour of the cluster's time.
    ///
    /// ```
    /// use std::time::Duration;
    /// use k8s_core::api::Pod;
    /// use k8s_testing::{Lab, Script};
    ///
    /// let slow = |_: &Pod| Script::runs().starts_after(Duration::from_secs(30));
    /// Lab::new().nodes(1).pods(slow).run(async |lab| {
    ///     let spec = serde_json::json!({"containers": [{"name": "c", "image": "i"}]});
    ///     lab.create_from::<Pod>(serde_json::json!({"metadata": {"name": "a"}, "spec": spec})).await;
    ///     let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
    ///     let begun = lab.clock().now();
    ///     lab.until::<Pod>("a", |pod| phase(pod).as_deref() == Some("Running")).await;
    ///     assert!(lab.clock().since(begun) >= Duration::from_secs(30)); // of virtual time
    /// });
    /// ```
    pub async fn until<K: Object>(&self, name: &str, wanted: impl Fn(&K) -> bool) -> K {
        let (namespace, bare) = split(name);
        let params = ListParams::default().fields(format!("metadata.name={bare}"));
        let api = self.api_in::<K>(namespace);
        let watch = async {
            loop {
                if let Ok(mut events) = api.watch(&params).await {
                    while let Some(Ok(event)) = events.next().await {
                        if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
                            && wanted(&object)
                        {
                            return object;
                        }
                    }
                }
            }
        };
        let limit = if self.is_real() { Duration::from_secs(120) } else { Duration::from_secs(3600) };
        match tokio::time::timeout(limit, watch).await {
            Ok(object) => object,
            Err(_) => {
                let last = self.find::<K>(name).await.and_then(|o| serde_json::to_string(&o).ok());
                panic!(
                    "{} {name:?} was not as wanted within {limit:?}; it is {}",
                    K::KIND,
                    last.unwrap_or_default()
                )
            }
        }
    }

    /// Checks an invariant: calls `check` with all objects of a type now and after every single change, until
    /// the run ends. If `check` panics, the test fails at the end of the next [`Running::sleep`] or
    /// [`Running::settle`], or of the run.
    ///
    /// ```
    /// # use k8s_core::api::api::core::v1::Pod;
    /// # k8s_testing::Lab::new().run(async |lab| {
    /// lab.always(|pods: &[&Pod]| assert!(pods.len() <= 4, "no more than surge allows")).await;
    /// # });
    /// ```
    ///
    /// # Panics
    /// The first call of `check` panics, or the list request fails.
    pub async fn always<K: Object>(&self, mut check: impl FnMut(&[&K]) + Send + 'static) {
        let api = self.client().all::<K>();
        let mut listed = Listed::of(&api).await;
        listed.look(&mut check);
        self.tasks().spawn(async move {
            loop {
                listed.follow(&api, &mut check).await;
                // 410 Gone: list again.
                listed = Listed::of(&api).await;
                listed.look(&mut check);
            }
        });
    }

    /// Lets time pass. In an existing cluster: ten seconds at most.
    pub async fn sleep(&self, how_long: Duration) {
        let longest = if self.is_real() { Duration::from_secs(10) } else { how_long };
        tokio::time::sleep(how_long.min(longest)).await;
        self.raise();
    }

    /// Waits until the cluster has settled: no write was attempted for 45 seconds of its time
    /// ([`Lab::calm`](crate::Lab::calm)), no scripted pod is about to start, become ready or end, and no
    /// program under test is about to repeat a request that a fault hit
    /// ([`Lab::retries`](crate::Lab::retries): ten minutes at most). Later timers of controllers (the next
    /// run of a CronJob) are not waited for.
    ///
    /// Faults continue until the cluster has settled under them, for five minutes, or until their limit is
    /// reached. Then they stop, so that convergence can be judged.
    ///
    /// # Panics
    /// The cluster does not settle within the lab's timeout. The message has the last writes.
    pub async fn settle(&self) {
        let hub = &self.inner.world.hub;
        let calm = if self.is_real() { REAL_CALM } else { self.inner.setup.calm };
        let patience = if self.is_real() { Duration::from_secs(120) } else { self.inner.setup.patience };
        let begun = Instant::now();
        let mut from = begun;
        loop {
            let (last, expected) = hub.calm_since(self.inner.setup.retries);
            let now = Instant::now();
            let rests_at = expected.unwrap_or(now).max(last.max(from) + calm);
            // Work delayed by faults (a watch to reopen, a program to restart) resumes after their end.
            if hub.is_armed() && (rests_at <= now || now.duration_since(begun) > STORM) {
                hub.disarm();
                from = now;
                continue;
            }
            if rests_at <= now {
                break;
            }
            assert!(now.duration_since(begun) < patience, "{}", self.restless(patience));
            self.raise();
            // What is expected may happen early.
            tokio::time::sleep_until(rests_at.min(begun + patience).min(now + calm)).await;
        }
        hub.disarm();
        hub.state().written.clear();
        self.raise();
    }

    fn restless(&self, patience: Duration) -> String {
        let state = self.inner.world.hub.state();
        let mut text = format!(
            "the cluster does not settle: after {patience:?} there are still writes, the last ones being\n"
        );
        for written in state.written.iter().rev().take(10).rev() {
            text += &format!("  {written}\n");
        }
        text
    }

    /// Returns the number of effective writes by controllers since the cluster last settled.
    #[must_use]
    pub fn writes_since_settled(&self) -> usize {
        self.inner.world.hub.state().written.len()
    }

    /// Returns the effective writes by controllers since the cluster last settled.
    ///
    /// ```
    /// use k8s_core::api::Deployment;
    /// use k8s_testing::{Lab, controllers::{deployment, replica_set}};
    /// use serde_json::json;
    ///
    ///
    /// Lab::new().controllers([deployment(), replica_set()]).nodes(1).run(async |lab| {
    ///     lab.create_from::<Deployment>(json!({"metadata": {"name": "web"}, "spec": {
    ///         "replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
    ///             "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    ///         },
    ///     }})).await;
    ///     lab.settle().await;
    ///     assert!(lab.written().is_empty(), "nothing was written after it settled");
    ///     lab.assert_idempotent().await;
    /// });
    /// ```
    #[must_use]
    pub fn written(&self) -> Vec<Written> {
        self.inner.world.hub.state().written.clone()
    }

    /// Returns the smallest role with which this run's controllers under test would have done the same.
    ///
    /// ```
    /// use k8s_core::api::Deployment;
    /// use k8s_testing::{Lab, controllers::{deployment, replica_set}};
    /// use serde_json::json;
    ///
    ///
    /// let report = Lab::new().controllers([deployment(), replica_set()]).nodes(1).run(async |lab| {
    ///     lab.create_from::<Deployment>(json!({"metadata": {"name": "web"}, "spec": {
    ///         "replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
    ///             "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    ///         },
    ///     }})).await;
    ///     lab.settle().await;
    ///     println!("{}", lab.needed_role()); // as YAML; empty without a controller under test
    /// });
    /// assert!(report.needed_role.rules.is_empty());
    /// ```
    #[must_use]
    pub fn needed_role(&self) -> NeededRole {
        let (recorded, name) = self.recorded();
        recorded.role(&name, false)
    }

    /// As [`Running::needed_role`], but with rules restricted to the used names if these are few: for a
    /// controller of fixed objects.
    #[must_use]
    pub fn needed_role_by_name(&self) -> NeededRole {
        let (recorded, name) = self.recorded();
        recorded.role(&name, true)
    }

    pub(crate) fn recorded(&self) -> (Recorded, String) {
        let mut all = Recorded::default();
        let tested = self.inner.programs.iter().filter(|p| p.process.kind() == Kind::Tested);
        let mut name = String::new();
        for program in tested {
            all.merge(&program.process.recorded());
            if name.is_empty() {
                name = program.process.name().to_string();
            }
        }
        (all, name)
    }

    /// Returns the trace up to now.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.inner.world.hub.state().trace.clone()
    }

    /// Kills every controller and restarts it with empty caches.
    pub async fn restart_controllers(&self) {
        for program in self.inner.programs.iter().filter(|p| p.process.suffers()) {
            program.restart().await;
        }
    }

    /// Settles, then restarts all controllers with empty caches, so that they reconcile everything.
    ///
    /// # Panics
    /// A controller writes, although everything is in its desired state.
    pub async fn assert_idempotent(&self) {
        self.settle().await;
        self.restart_controllers().await;
        self.sleep(self.inner.setup.calm).await;
        let written = self.written();
        assert!(written.is_empty(), "a second reconcile wrote again:\n{}", lines(&written));
    }

    /// Settles, then lets time pass.
    ///
    /// # Panics
    /// A controller writes although nothing changed.
    pub async fn assert_quiet_for(&self, how_long: Duration) {
        self.settle().await;
        self.sleep(how_long).await;
        let written = self.written();
        assert!(written.is_empty(), "controllers write although nothing happens:\n{}", lines(&written));
    }

    /// Checks that no controller under test acted on a stale cache.
    ///
    /// # Panics
    /// A controller under test wrote an object based on an older revision than its own last write of it.
    pub fn assert_never_stale(&self) {
        let stale = self.inner.world.hub.state().stale.clone();
        assert!(stale.is_empty(), "stale reads after own writes:\n{}", lines(&stale));
    }

    /// Forks the cluster: the same objects, with controllers of its own. Objects are copied on write, so the
    /// cost does not depend on the cluster's size. Only in virtual time.
    ///
    /// ```
    /// use k8s_core::api::Deployment;
    /// use k8s_testing::{Lab, controllers::{deployment, replica_set}};
    /// use serde_json::json;
    ///
    ///
    /// Lab::new().controllers([deployment(), replica_set()]).nodes(1).run(async |lab| {
    ///     lab.create_from::<Deployment>(json!({"metadata": {"name": "web"}, "spec": {
    ///         "replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
    ///             "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    ///         },
    ///     }})).await;
    ///     lab.settle().await;
    ///     // Each case starts from the same cluster.
    ///     for replicas in [0, 1, 5] {
    ///         let case = lab.fork().await;
    ///         let scale = |web: &mut Deployment| web.spec.as_mut().unwrap().replicas = Some(replicas);
    ///         case.edit("web", scale).await;
    ///         case.settle().await;
    ///         assert_eq!(case.pods_in("Running").await, replicas as usize);
    ///     }
    ///     assert_eq!(lab.pods_in("Running").await, 2);
    /// });
    /// ```
    pub async fn fork(&self) -> Running {
        let Some(server) = &self.inner.server else { panic!("a cluster that exists cannot be forked") };
        let mut plan = self.inner.world.hub.plan.clone();
        plan.seed = plan.seed.wrapping_add(random::number() >> 32);
        Running::begin(self.inner.setup.clone(), server.store().fork(), plan, self.clock().clone()).await
    }

    /// Returns the number of pods in a phase.
    pub async fn pods_in(&self, phase: &str) -> usize {
        let pods = self.list::<Pod>().await;
        pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)).count()
    }
}

fn read_as<T: DeserializeOwned>(resource: &str, object: impl Serialize) -> T {
    let read = serde_json::to_value(object).and_then(serde_json::from_value);
    read.unwrap_or_else(|e| panic!("{resource} is not of the wanted type: {e}"))
}

fn lines<T: ToString>(all: &[T]) -> String {
    all.iter().map(|line| format!("  {}\n", line.to_string())).collect()
}
