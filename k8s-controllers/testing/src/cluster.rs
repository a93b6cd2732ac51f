//! [`TestCluster`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use k8s_apiserver::{
    ApiServer, User,
    admission::IntoAdmit,
    auth::AuthorizationMode,
    stages::{Audit, Audited},
};
use k8s_builtin as builtin;
use k8s_builtin::{Options, Selection};
use k8s_controllers::{Caches, Controller, Environment, Manager, Reconcile};
use k8s_core::{
    api::api::core::v1::{Pod, ServiceAccount},
    client::{Client, ListParams, WatchEvent},
    clock::Clock,
    custom::CustomResource,
    meta::Object,
};
use k8s_scheduler::Scheduler;
use k8s_simulated::Simulation;
use k8s_store::Store;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    base::{self, epoch},
    connection::Connection,
    error::Error,
    listening::{Listening, Tokens},
    node,
};

/// Builder of a [`TestCluster`].
#[allow(missing_debug_implementations)]
pub struct Builder {
    nodes: usize,
    controllers: Selection,
    options: Options,
    scheduler: bool,
    seed: u64,
    clock: Option<Clock>,
    plugins_off: Vec<String>,
    shapes: Vec<Box<dyn FnOnce(k8s_apiserver::Builder) -> k8s_apiserver::Builder + Send>>,
    others: Vec<Box<dyn FnOnce(Manager) -> Manager + Send>>,
}

/// Counts requests that write.
#[derive(Clone, Debug, Default)]
struct Writes(Arc<AtomicUsize>);

impl Audit for Writes {
    fn record(&self, request: Audited<'_>) {
        let info = request.request;
        let reads = matches!(info.verb.as_str(), "get" | "list" | "watch");
        let beside = matches!(info.resource.as_str(), "events" | "leases")
            || info.resource.ends_with("reviews")
            || info.subresource == "token";
        if info.is_resource && !reads && !beside {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A running control plane with simulated nodes.
///
/// ```
/// use k8s_core::api::Pod;
/// use k8s_testing::TestCluster;
/// use serde_json::json;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = TestCluster::builder().nodes(2).start().await?;
/// let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "web:1"}]}});
/// cluster.create::<Pod>("default", &pod).await?;
/// let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
/// let web = cluster.until::<Pod>("default", "web", |pod| phase(pod).as_deref() == Some("Running")).await?;
/// assert!(web.spec.and_then(|s| s.node_name).is_some_and(|node| node.starts_with("node-")));
/// cluster.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct TestCluster {
    server: ApiServer,
    clock: Clock,
    writes: Writes,
    tokens: Tokens,
    stop: CancellationToken,
    /// Running parts; dropping the set aborts them.
    tasks: JoinSet<()>,
}

impl Builder {
    /// Number of nodes, named from `node-0`. Default: 1.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }
    /// Built-in controllers to run. Default: all.
    #[must_use]
    pub fn controllers(mut self, selection: Selection) -> Self {
        self.controllers = selection;
        self
    }
    /// Options of the built-in controllers. Default: the pod range 10.42.0.0/16.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }
    /// Serves the custom resource of a Rust type.
    #[must_use]
    pub fn resource<T: CustomResource>(mut self) -> Self {
        self.shapes.push(Box::new(|server| server.resource::<T>()));
        self
    }
    /// Adds a controller under test.
    #[must_use]
    pub fn controller<R: Reconcile>(self, controller: Controller<R::Kind>, reconciler: R) -> Self {
        self.with(controller, reconciler)
    }
    /// As [`Builder::controller`].
    #[must_use]
    pub fn with<R: Reconcile>(mut self, controller: Controller<R::Kind>, reconciler: R) -> Self {
        self.others.push(Box::new(move |manager| manager.controller(controller, reconciler)));
        self
    }
    /// Adds an admission function.
    #[must_use]
    pub fn admit<M>(mut self, admit: impl IntoAdmit<M>) -> Self {
        let admit = admit.into_admit();
        self.shapes.push(Box::new(move |server| server.admit_shared(admit)));
        self
    }
    /// Runs no scheduler: the test binds pods itself.
    #[must_use]
    pub fn without_scheduler(mut self) -> Self {
        self.scheduler = false;
        self
    }
    /// Seed of the random generator. Default: 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Clock of the cluster. Default: the wall clock; in virtual time, one that starts in the year 2020.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Turns admission plugins off by upstream's names. Default: none.
    #[must_use]
    pub fn without_plugins<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.plugins_off.extend(names.into_iter().map(Into::into));
        self
    }

    /// Turns versions and resources of the API on or off, as `--runtime-config`. Default: none.
    #[must_use]
    pub fn runtime_config<E: Into<String>>(mut self, entries: impl IntoIterator<Item = E>) -> Self {
        let entries: Vec<String> = entries.into_iter().map(Into::into).collect();
        self.shapes.push(Box::new(move |server| server.runtime_config(entries)));
        self
    }

    /// Starts the cluster. On return the API serves requests and the nodes are ready.
    ///
    /// # Errors
    /// [`Error::Start`], [`Error::Api`].
    pub async fn start(self) -> Result<TestCluster, Error> {
        let clock = self.clock.unwrap_or_else(|| {
            if base::time_is_virtual() { Clock::starting_at(epoch()) } else { Clock::system() }
        });
        let (writes, tokens) = (Writes::default(), Tokens::default());
        let server = ApiServer::builder(Store::memory())
            .clock(clock.clone())
            .audit(writes.clone())
            .authenticate_with(tokens.clone())
            .authorization([AuthorizationMode::Node, AuthorizationMode::Rbac])
            .without_plugins(self.plugins_off);
        // Only this controller takes the taint of new nodes off.
        let server = match self.controllers.rows().any(|row| row.alias == "nodelifecycle") {
            true => server,
            false => server.without_plugins([base::TAINTS]),
        };
        let server = self.shapes.into_iter().fold(server, |server, shape| shape(server));
        let server = server.build().await.map_err(Error::Start)?;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());

        let system = server.client_as(User::admin());
        let reader = server.client_as(User::new("system:kube-controller-manager", &[]));
        let of_accounts = server.clone();
        let caches = Caches::new(reader.named("kube-controller-manager").without_managed_fields());
        let manager = Manager::new(system.named("kube-controller-manager"))
            .caches(caches.clone())
            .accounts(move |account| {
                let user = match account {
                    k8s_builtin::CONTROLLER_MANAGER => User::new(account, &[]),
                    account => User::service_account("kube-system", account),
                };
                of_accounts.client_as(user).named("kube-controller-manager")
            })
            .clock(clock.clone())
            .seed(self.seed);
        let accounts = self.controllers.rows().any(|row| row.alias == "serviceaccount");
        let manager = manager.runnables(self.controllers.runnables(&self.options));
        let manager = self.others.into_iter().fold(manager, |manager, add| add(manager));
        tasks.spawn(manager.run(stop.clone()));
        if self.scheduler {
            let mut environment = Environment::new(
                server.client_as(User::new("system:kube-scheduler", &[])).named("kube-scheduler"),
            );
            environment.clock = clock.clone();
            environment.seed = self.seed;
            environment.shutdown = stop.clone();
            tasks.spawn(Scheduler::builder().run_in(environment));
        }
        let names: Vec<String> = (0..self.nodes).map(|i| format!("node-{i}")).collect();
        let of_nodes = server.clone();
        let kubelet = move |name: &str| of_nodes.client_as(User::node(name)).named("kubelet");
        for name in &names {
            node::register(&kubelet(name), &clock, name).await?;
        }
        if !names.is_empty() {
            let caches = k8s_builtin::trimmed(caches);
            let simulation = Simulation::new(caches.of::<Pod>(), kubelet).clock(clock.clone());
            let run = simulation.heartbeats(node::HEARTBEAT, names).run(stop.clone());
            tasks.spawn(async move {
                run.await;
                // The caches are filled as long as one clone lives.
                drop(caches);
            });
        }
        // Pods are not admitted without the default service account.
        while accounts && system.namespaced::<ServiceAccount>("default").get_opt("default").await?.is_none() {
            clock.sleep(Duration::from_millis(1)).await;
        }
        Ok(TestCluster { server, clock, writes, tokens, stop, tasks })
    }
}

impl TestCluster {
    /// Returns a builder. Defaults: all controllers, the scheduler, one node.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            nodes: 1,
            controllers: builtin::all(),
            options: Options { cluster_cidr: "10.42.0.0/16".parse().ok(), ..Options::default() },
            scheduler: true,
            seed: 0,
            clock: None,
            plugins_off: Vec::new(),
            shapes: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Returns a builder of an API server alone: no controllers, no scheduler, no nodes.
    #[must_use]
    pub fn bare() -> Builder {
        TestCluster::builder().controllers(Selection::none()).without_scheduler().nodes(0)
    }

    /// Starts a cluster with the defaults of [`TestCluster::builder`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start() -> Result<Self, Error> {
        TestCluster::builder().start().await
    }

    /// Returns a client of a cluster administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.server.client_as(User::admin())
    }

    /// Returns a client of a user, with that user's permissions.
    ///
    /// # Examples
    /// ```
    /// use k8s_apiserver::User;
    /// use k8s_core::api::Pod;
    /// use k8s_testing::TestCluster;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = TestCluster::bare().start().await?;
    /// let eve = cluster.client_as(User::new("eve", &[]));
    /// let refused = eve.namespaced::<Pod>("default").get("a").await.unwrap_err();
    /// assert!(refused.to_string().contains("User \"eve\" cannot get resource \"pods\""));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn client_as(&self, user: User) -> Client {
        self.server.client_as(user)
    }

    /// Opens a loopback port for programs that make their own client: see [`Listening`].
    ///
    /// # Errors
    /// [`Error::VirtualTime`], [`Error::Listen`].
    pub async fn listen(&self) -> Result<Listening, Error> {
        if base::time_is_virtual() {
            return Err(Error::VirtualTime);
        }
        Listening::start(self.server.clone(), self.tokens.clone(), &self.stop).await
    }

    /// Applies every document of a YAML text by server-side apply.
    ///
    /// # Examples
    /// ```
    /// use k8s_core::{api::ConfigMap, meta::ObjectExt};
    /// use k8s_testing::TestCluster;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = TestCluster::bare().start().await?;
    /// cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {tea: green}}").await?;
    /// assert!(cluster.client().namespaced::<ConfigMap>("default").get_opt("a").await?.is_some());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Manifest`]: the text is not YAML, or a document is refused. Documents before it are applied.
    pub async fn apply(&self, yaml: impl AsRef<str>) -> Result<(), Error> {
        let client = self.client();
        for manifest in crate::objects::documents(yaml.as_ref()).map_err(Error::Manifest)? {
            crate::objects::apply(&client, &manifest).await.map_err(Error::Manifest)?;
        }
        Ok(())
    }

    /// Returns a connection of a cluster administrator, on which the test counts and disturbs requests.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::new(self.client())
    }

    /// Returns an object as it is stored, without a request. `resource` is the plural name, with a group that
    /// is not the core group (`pods`, `deployments.apps`); `namespace` is empty for cluster-scoped objects.
    #[must_use]
    pub fn stored(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        serde_json::from_slice(&self.server.store().get(resource, &key)?.json).ok()
    }

    /// Returns all objects of a resource as they are stored, without a request.
    #[must_use]
    pub fn all_stored(&self, resource: &str) -> Vec<Value> {
        let all = self.server.store().snapshot(resource);
        all.range("", "").filter_map(|stored| serde_json::from_slice(&stored.json).ok()).collect()
    }

    /// Returns the API as a `tower::Service` of a cluster administrator:
    /// `kube::Client::new(cluster.service(), "default")`.
    #[must_use]
    pub fn service(&self) -> ApiServer {
        self.service_as(User::admin())
    }

    /// As [`TestCluster::service`], for a user with that user's permissions.
    #[must_use]
    pub fn service_as(&self, user: User) -> ApiServer {
        self.server.service_as(user)
    }

    /// Returns the cluster's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the number of requests so far, from all parts and the test, that write something other than
    /// events, leases, reviews and tokens. It stays the same while nothing happens.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.writes.0.load(Ordering::Relaxed)
    }

    /// Creates an object from a manifest.
    ///
    /// # Errors
    /// [`Error::NotOne`], [`Error::Api`].
    pub async fn create<K: Object>(&self, namespace: &str, manifest: &Value) -> Result<K, Error> {
        let object: K = serde_json::from_value(manifest.clone())
            .map_err(|source| Error::NotOne { kind: K::KIND, source })?;
        Ok(self.client().namespaced::<K>(namespace).create(&object).await?)
    }

    /// Waits until an object satisfies `wanted`, for at most ten minutes of the cluster's time.
    ///
    /// # Errors
    /// [`Error::Late`] with the object's last state, [`Error::Api`].
    pub async fn until<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&K) -> bool,
    ) -> Result<K, Error> {
        let within = Duration::from_secs(600);
        let api = self.client().namespaced::<K>(namespace);
        let params = ListParams::default().fields(format!("metadata.name={name}"));
        let watch = async {
            loop {
                let mut events = api.watch(&params).await?;
                while let Some(Ok(event)) = events.next().await {
                    if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
                        && wanted(&object)
                    {
                        return Ok(object);
                    }
                }
            }
        };
        match tokio::time::timeout(within, watch).await {
            Ok(result) => result,
            Err(_) => {
                let last = api.get_opt(name).await?.and_then(|o| serde_json::to_string(&o).ok());
                Err(Error::Late {
                    name: name.to_owned(),
                    within,
                    last: last.unwrap_or_else(|| "nothing".into()),
                })
            }
        }
    }

    /// Stops all parts and waits for them.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        self.tasks.shutdown().await;
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
