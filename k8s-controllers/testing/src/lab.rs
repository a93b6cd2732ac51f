//! [`Lab`]: the configuration of a test's clusters and runs.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use k8s_apiserver::{LocalApi, admission::IntoAdmit, stages::Authenticate};
use k8s_builtin::{BuiltIn, Options};
use k8s_controllers::{Controller, Reconcile};
use k8s_core::{api::api::core::v1::Pod, custom::CustomResource};
use k8s_scheduler::{Plugin, Scheduler};
use k8s_simulated::Script;
use serde::Serialize;

use crate::{
    actor::Kind,
    base,
    faults::{Fault, Faults, Opportunity},
    grants::Grants,
    hub::Chosen,
    objects,
    place::Replay,
    process::{Life, Program, main_of},
    report::Report,
    running::Running,
    seeds::{self, Job},
    setup::Setup,
};

/// Adds a plugin to the scheduler of each run.
type SchedulerShape = Arc<dyn Fn(k8s_scheduler::Builder) -> k8s_scheduler::Builder + Send + Sync>;

/// A test of controllers: the content of its cluster, and the seeds and faults of its runs. See the crate's
/// page.
#[must_use]
pub struct Lab {
    setup: Setup,
    controllers: Vec<&'static BuiltIn>,
    options: Options,
    scheduler: bool,
    plugins: Vec<SchedulerShape>,
    seeds: Range<u64>,
    faults: Faults,
    chosen: Vec<Chosen>,
    replay: Option<Replay>,
    expected: Option<PathBuf>,
    existing: Option<Option<PathBuf>>,
    threads: usize,
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab").field("setup", &self.setup).field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// An API server without controllers and nodes; one run without faults.
    pub fn new() -> Self {
        let existing = std::env::var_os("USE_EXISTING_CLUSTER")
            .filter(|v| !matches!(v.to_str(), Some("" | "0" | "false")));
        let record = std::env::var_os("RECORD").map(PathBuf::from);
        Lab {
            setup: Setup { record, ..Setup::default() },
            controllers: Vec::new(),
            options: Options { cluster_cidr: "10.42.0.0/16".parse().ok(), ..Options::default() },
            scheduler: true,
            plugins: Vec::new(),
            seeds: 0..1,
            faults: Faults::none(),
            chosen: Vec::new(),
            replay: std::env::var("REPLAY").ok().map(|text| Replay::parse(&text)),
            expected: None,
            existing: existing.map(|_| None),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Serves the custom resource of a Rust type. An existing cluster gets its CustomResourceDefinition.
    ///
    /// # Examples
    /// ```
    /// use k8s_core::{Resource, meta::ObjectExt};
    /// use k8s_testing::Lab;
    /// use schemars::JsonSchema;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
    /// #[resource(group = "example.com", version = "v1", kind = "Shop", namespaced)]
    /// struct ShopSpec { sells: String }
    ///
    /// Lab::new().resource::<Shop>().run(async |lab| {
    ///     let shop = "{apiVersion: example.com/v1, kind: Shop, metadata: {name: a}, spec: {sells: tea}}";
    ///     lab.apply(shop).await;
    ///     assert_eq!(lab.get::<Shop>("a").await.spec.sells, "tea");
    /// });
    /// ```
    pub fn resource<T: CustomResource>(mut self) -> Self {
        self.setup.shapes.push(base::serving::<T>());
        self.setup.definitions.push(T::definition());
        self
    }

    /// Serves a group and version from the test, such as `metrics.k8s.io` with the use that an autoscaler
    /// shall see. All runs share it: what differs between them belongs into objects of the cluster.
    pub fn local_api(mut self, api: Arc<dyn LocalApi>) -> Self {
        self.setup.shapes.push(Arc::new(move |server| server.local_api(api.clone())));
        self
    }

    /// As [`Lab::resource`].
    pub fn crd<T: CustomResource>(self) -> Self {
        self.resource::<T>()
    }

    /// Objects in the initial cluster, as YAML; for example CustomResourceDefinitions generated elsewhere.
    ///
    /// # Panics
    /// The text is not valid YAML.
    pub fn manifests(mut self, yaml: &str) -> Self {
        self.setup.manifests.extend(objects::documents(yaml).unwrap_or_else(|e| panic!("{e}")));
        self
    }

    /// An object in the initial cluster, of any type that serializes with its `apiVersion` and `kind`: a
    /// CustomResourceDefinition of `T::crd()` with any version of kube.
    ///
    /// # Examples
    /// ```
    /// use k8s_testing::Lab;
    /// use serde_json::json;
    ///
    /// let metadata = json!({"name": "a"});
    /// let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"tea": "green"}});
    /// Lab::new().manifest(&map).run(async |lab| {
    ///     let found: serde_json::Value = lab.get_as("configmaps/v1", "a").await;
    ///     assert_eq!(found["data"]["tea"], "green");
    /// });
    /// ```
    ///
    /// # Panics
    /// The value does not serialize.
    pub fn manifest(mut self, object: impl Serialize) -> Self {
        let object = serde_json::to_value(object).unwrap_or_else(|e| panic!("serialize an object: {e}"));
        self.setup.manifests.push(object);
        self
    }

    /// Adds built-in controllers: see [`crate::controllers`].
    ///
    /// # Examples
    /// ```
    /// use k8s_core::api::api::apps::v1::ReplicaSet;
    /// use k8s_testing::{Lab, controllers::{deployment, replica_set}};
    /// Lab::new().controllers([deployment(), replica_set()]).run(async |lab| {
    ///     lab.apply("
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: {name: web}
    /// spec:
    ///   selector: {matchLabels: {app: web}}
    ///   template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
    /// ").await;
    ///     lab.settle().await;
    ///     assert_eq!(lab.list::<ReplicaSet>().await.len(), 1);
    /// });
    /// ```
    pub fn controllers(mut self, controllers: impl IntoIterator<Item = &'static BuiltIn>) -> Self {
        self.controllers.extend(controllers);
        self
    }

    /// Sets the options of the built-in controllers.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Adds nodes, named from `node-0`, and the scheduler.
    pub fn nodes(mut self, count: usize) -> Self {
        self.setup.nodes = count;
        self
    }

    /// Runs no scheduler: the test binds pods itself.
    pub fn without_scheduler(mut self) -> Self {
        self.scheduler = false;
        self
    }

    /// Scripts the simulated pods. Default: by their annotations ([`crate::node`]).
    pub fn pods(mut self, script: impl Fn(&Pod) -> Script + Send + Sync + 'static) -> Self {
        self.setup.director = Arc::new(script);
        self
    }

    /// Adds a controller under test. Its reconciler is cloned for each run and after each crash; one with
    /// state that a crash loses is added by [`Lab::with`].
    ///
    /// # Examples
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::api::core::v1::ConfigMap;
    /// use k8s_testing::{Faults, Lab};
    ///
    /// #[derive(Clone)]
    /// struct Marks;
    /// impl Reconcile for Marks {
    ///     type Kind = ConfigMap;
    ///     async fn reconcile(&self, cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    ///         if map.label("seen").is_none() {
    ///             let mut map = (*map).clone();
    ///             map.set_label("seen", "yes");
    ///             cx.api::<ConfigMap>(map.namespace()).replace(map.name(), &map).await?;
    ///         }
    ///         Ok(Action::await_change())
    ///     }
    /// }
    ///
    /// let lab = Lab::new().controller(Controller::<ConfigMap>::new(), Marks);
    /// lab.seeds(0..50).faults(Faults::all()).run(async |lab| {
    ///     lab.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}").await;
    ///     lab.settle().await;
    ///     assert_eq!(lab.get::<ConfigMap>("a").await.label("seen"), Some("yes"));
    /// });
    /// ```
    pub fn controller<R: Reconcile + Clone>(self, controller: Controller<R::Kind>, reconciler: R) -> Self {
        self.with(controller, move || reconciler.clone())
    }

    /// Adds a controller under test. `make` creates its reconciler, again after each crash.
    pub fn with<R: Reconcile>(
        self,
        controller: Controller<R::Kind>,
        make: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        let name = controller.name().to_owned();
        self.add(name, move |life: Life| controller.clone().run_in(life.environment(), make()))
    }

    /// Adds any program under test, for example a kube-rs controller on `kube::Client::new(life.service(),
    /// "default")`. It is created again after each crash; tasks that it spawns must end when its future is
    /// dropped.
    ///
    /// ```
    /// use k8s_core::{api::ConfigMap, meta::ObjectExt};
    /// use k8s_testing::Lab;
    ///
    /// // A program without the framework: it labels the map `settings`.
    /// let program = async |life: k8s_testing::Life| {
    ///     let maps = life.client().namespaced::<ConfigMap>("default");
    ///     if let Ok(mut map) = maps.wait_until("settings", |_| true).await {
    ///         map.set_label("seen", "yes");
    ///         let _ = maps.replace("settings", &map).await;
    ///     }
    ///     std::future::pending().await
    /// };
    /// Lab::new().program("labeller", program).run(async |lab| {
    ///     lab.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}").await;
    ///     lab.settle().await;
    ///     assert_eq!(lab.get::<ConfigMap>("settings").await.label("seen"), Some("yes"));
    /// });
    /// ```
    pub fn program<F: Future<Output = ()> + Send + 'static>(
        self,
        name: &str,
        make: impl Fn(Life) -> F + Send + Sync + 'static,
    ) -> Self {
        self.add(name.to_owned(), make)
    }

    fn add<F: Future<Output = ()> + Send + 'static>(
        mut self,
        name: String,
        make: impl Fn(Life) -> F + Send + Sync + 'static,
    ) -> Self {
        let mains = vec![main_of(make)];
        self.setup.programs.push(Program { name, kind: Kind::Tested, user: None, mains });
        self
    }

    /// Runs the program or controller that was added last with the permissions of a role, as in a cluster.
    /// The YAML has Roles or ClusterRoles, and may have their bindings; other objects, such as those of a
    /// rendered chart, are passed over. Default: a cluster administrator.
    ///
    /// The first request that the role does not allow fails the run, with the rule that is missing.
    /// [`Report::needed_role`] has the whole role.
    ///
    /// # Examples
    /// ```should_panic
    /// use k8s_core::api::ConfigMap;
    /// use k8s_testing::{Lab, Life};
    ///
    /// let program = async |life: Life| {
    ///     let maps = life.client().namespaced::<ConfigMap>("default");
    ///     let _ = maps.delete("a", &Default::default()).await;
    ///     std::future::pending().await
    /// };
    /// let role = "
    /// apiVersion: rbac.authorization.k8s.io/v1
    /// kind: ClusterRole
    /// metadata: {name: reader}
    /// rules: [{apiGroups: [''], resources: [configmaps], verbs: [get, list, watch]}]
    /// ";
    /// // Fails: the role of reader does not allow delete of configmaps.
    /// Lab::new().program("reader", program).role(role).run(async |lab| lab.settle().await);
    /// ```
    ///
    /// # Panics
    /// No program was added, or the text has no role.
    pub fn role(mut self, yaml: &str) -> Self {
        let program = self.setup.programs.last_mut().filter(|program| program.kind == Kind::Tested);
        let program = program.unwrap_or_else(|| panic!("role() follows the program that has the role"));
        let grants = Grants::read(yaml, &program.name);
        let grants = grants.unwrap_or_else(|e| panic!("the role of {}: {e}", program.name));
        program.user = Some(grants.user);
        self.setup.manifests.extend(grants.manifests);
        self
    }

    /// Adds a filter or score to the scheduler, which runs if there are nodes.
    ///
    /// # Examples
    /// ```
    /// use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};
    /// use k8s_scheduler::{Cycle, NodeInfo, PodInfo, Score, ScoreExt};
    /// use k8s_testing::Lab;
    ///
    /// #[derive(Clone)]
    /// struct Last;
    /// impl Score for Last {
    ///     fn score(&self, _: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
    ///         if node.name() == "node-4" { 100 } else { 0 }
    ///     }
    /// }
    ///
    /// Lab::new().nodes(5).scheduler_plugin(Last.weight(50)).run(async |lab| {
    ///     let spec = "{containers: [{name: c, image: i}]}";
    ///     lab.apply(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {spec}}}")).await;
    ///     lab.settle().await;
    ///     assert_eq!(lab.get::<Pod>("a").await.spec.unwrap().node_name.as_deref(), Some("node-4"));
    /// });
    /// ```
    pub fn scheduler_plugin(mut self, plugin: impl Plugin + Clone + Send + Sync + 'static) -> Self {
        self.plugins.push(Arc::new(move |scheduler| scheduler.plugin(plugin.clone())));
        self
    }

    /// Adds an authenticator, asked after the server's own about requests with an `Authorization` header.
    ///
    /// # Examples
    /// ```
    /// use http::Request;
    /// use k8s_apiserver::{User, stages::{Authenticate, Credentials}};
    /// use k8s_core::{client::Body, status::ApiStatus};
    /// use k8s_testing::Lab;
    ///
    /// #[derive(Clone)]
    /// struct Badge;
    /// #[async_trait::async_trait]
    /// impl Authenticate for Badge {
    ///     async fn authenticate(&self, seen: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
    ///         let badge = seen.headers.get("authorization").and_then(|v| v.to_str().ok());
    ///         let name = badge.and_then(|b| b.strip_prefix("Badge "));
    ///         Ok(name.map(|name| User::new(name, &["system:masters"])))
    ///     }
    /// }
    ///
    /// Lab::new().authenticator(Badge).run(async |lab| {
    ///     let request = Request::get("/api/v1/namespaces").header("authorization", "Badge jane");
    ///     let answer = lab.client().send(request.body(Body::default()).unwrap()).await.unwrap();
    ///     assert_eq!(answer.status(), 200);
    /// });
    /// ```
    pub fn authenticator(mut self, authenticator: impl Authenticate + Clone) -> Self {
        self.setup.shapes.push(Arc::new(move |server| server.authenticate_with(authenticator.clone())));
        self
    }

    /// Adds an admission function.
    ///
    /// # Examples
    /// ```
    /// use k8s_apiserver::admission::Request;
    /// use k8s_core::{api::ConfigMap, meta::ObjectExt};
    /// use k8s_testing::Lab;
    ///
    /// Lab::new().admit(|r: &mut Request<ConfigMap>| r.object.set_label("team", "shop")).run(async |lab| {
    ///     lab.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}").await;
    ///     assert_eq!(lab.get::<ConfigMap>("a").await.label("team"), Some("shop"));
    /// });
    /// ```
    pub fn admit<M>(mut self, admit: impl IntoAdmit<M>) -> Self {
        let admit = admit.into_admit();
        self.setup.shapes.push(Arc::new(move |server| server.admit_shared(admit.clone())));
        self
    }

    /// Runs once per seed. The environment variable `SEEDS=n` overrides the number.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// Faults to inject between controllers and API server. Default: none.
    ///
    /// They begin with the test's first write, by whatever client of the lab, and end when the cluster has
    /// settled ([`Running::settle`]), to begin again with the next write.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Injects a fault into the first request of a program or built-in controller with this verb and path, to
    /// keep a failure that was found as a test. `verb` is one of `get`, `list`, `watch`, `create`, `update`,
    /// `patch`, `delete`, `deletecollection`, or `event` for an event of a watch of this path. `path` is the
    /// end of a path; `*` is any text without a slash.
    ///
    /// # Examples
    /// ```
    /// use k8s_core::{api::ConfigMap, meta::ObjectExt};
    /// use k8s_testing::{Fault, Lab, Life};
    ///
    /// let program = async |life: Life| {
    ///     let maps = life.client().namespaced::<ConfigMap>("default");
    ///     let mut map = maps.wait_until("a", |_| true).await.unwrap();
    ///     map.set_label("seen", "yes");
    ///     // A program without a retry.
    ///     let _ = maps.replace("a", &map).await;
    ///     std::future::pending().await
    /// };
    /// Lab::new()
    ///     .program("labeller", program)
    ///     .fail("update", "/configmaps/a", Fault::Conflict)
    ///     .run(async |lab| {
    ///         lab.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}").await;
    ///         lab.settle().await;
    ///         assert_eq!(lab.get::<ConfigMap>("a").await.label("seen"), None);
    ///     });
    /// ```
    ///
    /// # Panics
    /// The fault cannot be injected into such a request. [`Lab::run`] panics if there is no such request.
    pub fn fail(self, verb: &str, path: &str, fault: Fault) -> Self {
        self.fail_nth(1, verb, path, fault)
    }

    /// As [`Lab::fail`], for the n-th of the requests that match, from 1.
    ///
    /// # Panics
    /// As [`Lab::fail`].
    pub fn fail_nth(mut self, n: u32, verb: &str, path: &str, fault: Fault) -> Self {
        let at = Opportunity::of(verb).unwrap_or_else(|| panic!("{verb:?} is no verb of a request"));
        assert!(fault.fits(at), "{fault:?} cannot be injected at {verb}");
        assert!(path.starts_with('/') && n > 0, "{path:?} is no end of a path, or {n} is 0");
        self.chosen.push(Chosen { verb: verb.into(), path: path.into(), n, fault });
        self
    }

    /// Runs once, with a seed and the listed faults only, as printed by a failure. The environment variable
    /// `REPLAY` does the same.
    ///
    /// # Panics
    /// The text is not of the form `seed:3 | PROGRAM VERB PATH #N | ...`. [`Lab::run`] panics if a listed
    /// fault does not strike.
    pub fn replay(mut self, what: &str) -> Self {
        self.replay = Some(Replay::parse(what));
        self
    }

    /// Timeout of [`Running::settle`]. Default: three hours of virtual time.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.setup.patience = patience;
        self
    }

    /// Time without writes after which [`Running::settle`] counts the cluster as settled. Default: 45 seconds
    /// of virtual time. Longer than a program's timers that it should wait for.
    pub fn calm(mut self, calm: Duration) -> Self {
        self.setup.calm = calm;
        self
    }

    /// Longest time that [`Running::settle`] waits for a program under test to repeat a request that a fault
    /// hit: more than the delay of its error policy. Default: ten minutes of virtual time.
    pub fn retries(mut self, retries: Duration) -> Self {
        self.setup.retries = retries;
        self
    }

    /// Lets programs survive panics of their own: one that ends a task only, or is caught, does not fail the
    /// run. Default: it does, because a reconciler that panics is a fault of the program, which the framework
    /// only confines.
    pub fn allow_panics(mut self) -> Self {
        self.setup.panics = true;
        self
    }

    /// Number of threads. Default: the number of processors.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Records the trace of the first seed in a file, as JSON lines. The environment variable `RECORD` does
    /// the same.
    pub fn record(mut self, path: impl AsRef<Path>) -> Self {
        self.setup.record = Some(path.as_ref().to_owned());
        self
    }

    /// Keeps bodies and watch events in traces, too ([`Running::trace`]).
    pub fn whole_trace(mut self) -> Self {
        self.setup.whole_trace = true;
        self
    }

    /// Requires that the trace of the first seed equals a recorded one.
    pub fn replays(mut self, path: impl AsRef<Path>) -> Self {
        self.expected = Some(path.as_ref().to_owned());
        self.setup.whole_trace = true;
        self
    }

    /// Runs once against the cluster of a kubeconfig's current context, in real time and without faults. The
    /// environment variable `USE_EXISTING_CLUSTER` does so with `KUBECONFIG`.
    pub fn existing_cluster(mut self, kubeconfig: impl AsRef<Path>) -> Self {
        self.existing = Some(Some(kubeconfig.as_ref().to_owned()));
        self
    }

    /// Runs the test once per seed, each in a cluster of its own.
    ///
    /// # Panics
    /// Faults were asked for, and none struck in all runs: the test would be green without having tested
    /// anything. Or a run failed. The message has the seed, a minimal set of faults that reproduces the
    /// failure, the last requests and events, and the call that replays it.
    #[allow(clippy::needless_pass_by_value)]
    pub fn run(mut self, test: impl AsyncFn(Running) + Sync) -> Report {
        assert!(
            tokio::runtime::Handle::try_current().is_err(),
            "a lab makes runtimes of its own: run it in a plain #[test]"
        );
        if let Some(count) = std::env::var("SEEDS").ok().and_then(|n| n.parse::<u64>().ok()) {
            self.seeds.end = self.seeds.start.saturating_add(count);
        }
        if let Some(Replay { seed, .. }) = self.replay {
            self.seeds = seed..seed.saturating_add(1);
        }
        self.complete();
        if let Some(path) = self.existing.take() {
            return seeds::run_existing(path, self.setup, self.seeds.start, &test);
        }
        let image = base::image(&self.setup.shapes, self.setup.nodes, &self.setup.manifests);
        let job = Job {
            setup: Arc::new(self.setup),
            image,
            faults: self.faults,
            only: self.replay.map(|replay| replay.places),
            chosen: self.chosen.into(),
            expected: self.expected,
        };
        seeds::run(&job, self.seeds, self.threads, &test)
    }

    /// Turns `.controllers()` and `.nodes()` into programs.
    fn complete(&mut self) {
        self.setup.heartbeats = self.controllers.iter().any(|row| row.alias == "nodelifecycle");
        let mains: Vec<_> = self
            .controllers
            .iter()
            .map(|row| {
                let (start, options) = (row.start, self.options.clone());
                let user = row.user();
                main_of(move |life: Life| start(life.built_in(&user), options.clone()))
            })
            .collect();
        if !mains.is_empty() {
            let name = "kube-controller-manager".to_owned();
            self.setup.programs.push(Program { name, kind: Kind::BuiltIn, user: None, mains });
        }
        if self.scheduler && self.setup.nodes > 0 {
            let plugins = std::mem::take(&mut self.plugins);
            let main = main_of(move |life: Life| {
                let scheduler = plugins.iter().fold(Scheduler::builder(), |builder, add| add(builder));
                scheduler.run_in(life.built_in("system:kube-scheduler")).boxed()
            });
            let name = "kube-scheduler".to_owned();
            self.setup.programs.push(Program { name, kind: Kind::Part, user: None, mains: vec![main] });
        }
    }
}
