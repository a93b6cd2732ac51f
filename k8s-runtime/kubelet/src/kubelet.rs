//! Assembles the kubelet, and routes pods and events to the pods' workers.

#![expect(clippy::disallowed_methods, reason = "the main task waits for the set of all others")]

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, future::BoxFuture};
use k8s_core::{
    cache::{Change, reflect},
    client::{Client, ListParams},
    clock::Clock,
    events::Recorder,
    meta::ObjectExt,
};
use k8s_metrics::Registry;
use k8s_net::pod::PodNetwork;
use k8s_runtime::{Images, Runtime, RuntimeEvent, SandboxStatus};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    allocation::Allocation,
    config::Config,
    context::{Context, Parts},
    error::KubeletError,
    eviction::signals::Signals,
    evictor::{self, Evictor, Machine},
    facts::Facts,
    images::Puller,
    logs,
    metrics::Metrics,
    node, orphans,
    pod::{
        admit, allocate,
        worker::{self, Handle},
        world::Message,
    },
    server::{self, KubeletApi},
    sysctls::Sysctls,
    types::*,
};

/// Builds a kubelet from its parts.
///
/// ```
/// use std::sync::Arc;
/// use k8s_core::client::Client;
/// use k8s_kubelet::Kubelet;
/// use k8s_runtime::simulated::{Simulated, SimulatedImages};
///
/// async fn run(client: Client) -> Result<(), k8s_kubelet::KubeletError> {
///     let kubelet = Kubelet::builder(client, "node-1")
///         .runtime(Arc::new(Simulated::default()))
///         .images(Arc::new(SimulatedImages))
///         .configure(|config| {
///             config.root_dir = "/var/lib/shop/kubelet".into();
///             config.port = 0; // no listener
///             config.tmpfs = false; // no root
///         })
///         .start()
///         .await?;
///     println!("{} runs", kubelet.node_name());
///     kubelet.shutdown().await; // containers keep running
///     Ok(())
/// }
/// ```
pub struct Builder {
    config: Config,
    client: Client,
    clock: Clock,
    runtime: Option<Arc<dyn Runtime>>,
    images: Option<Arc<dyn Images>>,
    network: Option<Arc<dyn PodNetwork>>,
    signals: Option<Arc<dyn Signals>>,
    metrics: Registry,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Builder {
    /// Replaces the configuration, except for the node's name.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        let name = std::mem::take(&mut self.config.node_name);
        self.config = Config { node_name: name, ..config };
        self
    }

    /// Changes single fields of the configuration.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Sets the clock. Default: the system's clock.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the container runtime. Required.
    #[must_use]
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Sets the image store. Required.
    #[must_use]
    pub fn images(mut self, images: Arc<dyn Images>) -> Self {
        self.images = Some(images);
        self
    }

    /// Sets the pod network. Default: none; pods get the addresses that the runtime assigns.
    #[must_use]
    pub fn network(mut self, network: Arc<dyn PodNetwork>) -> Self {
        self.network = Some(network);
        self
    }

    /// Sets the source of what is free on the node. Default: the machine.
    #[must_use]
    pub fn signals(mut self, signals: Arc<dyn Signals>) -> Self {
        self.signals = Some(signals);
        self
    }

    /// Sets the registry of the kubelet's metrics. Kubelets that share one add up. Default: one of its own.
    #[must_use]
    pub fn metrics(mut self, registry: Registry) -> Self {
        self.metrics = registry;
        self
    }

    /// Starts the kubelet. It runs until [`Kubelet::shutdown`], or until the handle is dropped.
    ///
    /// # Errors
    /// [`KubeletError`]; nothing was started.
    pub fn start(self) -> BoxFuture<'static, Result<Kubelet, KubeletError>> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(self.begin())
    }

    async fn begin(self) -> Result<Kubelet, KubeletError> {
        let (Some(runtime), Some(images)) = (self.runtime, self.images) else {
            return Err(KubeletError::NoRuntime);
        };
        let sysctls = Sysctls::new(&self.config.allowed_unsafe_sysctls).map_err(KubeletError::Sysctls)?;
        let root = &self.config.root_dir;
        k8s_runtime::private_directory(root)
            .map_err(|source| KubeletError::Directory { path: root.clone(), source })?;
        // Subscribe before listing, so that no event is missed in between.
        let events = runtime.events();
        let known = runtime.list().await?;
        let client = self.client.named("kubelet");
        let (recorder, event_writer) =
            Recorder::with_writer(&client, self.clock.clone(), "kubelet", &self.config.node_name);
        let facts = Facts::read(&self.config);
        let signals = self.signals.unwrap_or_else(|| Arc::new(Machine::new(&self.config)));
        let listener = server::bind(&self.config).await?;
        let cx = Arc::new(Context::new(Parts {
            images: Puller::new(images, self.clock.clone(), recorder.clone()),
            config: self.config,
            client,
            clock: self.clock,
            runtime,
            network: self.network,
            events: recorder,
            facts,
            sysctls,
            metrics: Metrics::new(&self.metrics),
            signals,
        }));
        // The first status of the node, and the first admission, have its conditions.
        let mut evictor = Evictor::new(cx.clone());
        evictor.look().await;
        let stop = CancellationToken::new();
        let api = KubeletApi::new(cx.clone());
        let mut tasks = JoinSet::new();
        let until_stop = |work: BoxFuture<'static, ()>| {
            let stop = stop.clone();
            async move {
                tokio::select! {
                    () = work => {}
                    () = stop.cancelled() => {}
                }
            }
        };
        tasks.spawn(until_stop(Box::pin(event_writer)));
        tasks.spawn(until_stop(Box::pin(node::run(cx.clone()))));
        tasks.spawn(until_stop(Box::pin(logs::rotate::run(cx.clone()))));
        tasks.spawn(until_stop(Box::pin(allocate::run(cx.clone()))));
        tasks.spawn(until_stop(Box::pin(evictor.run())));
        tasks.spawn(until_stop(Box::pin(evictor::limits::run(cx.clone()))));
        if let Some(listener) = listener {
            tasks.spawn(server::serve(listener, api.clone(), stop.clone()));
        }
        let mut router = Router {
            cx: cx.clone(),
            workers: HashMap::new(),
            running: JoinSet::new(),
            known,
            services_known: false,
            synced: false,
            shutdown: stop.clone(),
        };
        tasks.spawn(async move { router.run(events).await });
        let main = tokio::spawn(async move { while tasks.join_next().await.is_some() {} });
        Ok(Kubelet { stop, main: Some(main), api, cx })
    }

    /// Runs the kubelet until `shutdown` is cancelled, then stops it as [`Kubelet::shutdown`] does.
    ///
    /// ```
    /// use k8s_kubelet::{Builder, KubeletError};
    /// use tokio_util::sync::CancellationToken;
    ///
    /// async fn until_stopped(kubelet: Builder) -> Result<(), KubeletError> {
    ///     let stop = CancellationToken::new();
    ///     let stop_after_a_minute = async {
    ///         tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    ///         stop.cancel();
    ///     };
    ///     let (ended, ()) = tokio::join!(kubelet.run(stop.clone()), stop_after_a_minute);
    ///     ended
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), KubeletError> {
        let kubelet = self.start().await?;
        shutdown.cancelled().await;
        kubelet.shutdown().await;
        Ok(())
    }
}

/// A running kubelet. Dropping it stops it without waiting for the end; see [`Kubelet::shutdown`].
pub struct Kubelet {
    stop: CancellationToken,
    main: Option<JoinHandle<()>>,
    api: KubeletApi,
    cx: Arc<Context>,
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelet").field("node", &self.cx.config.node_name).finish_non_exhaustive()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Kubelet {
    /// Returns a builder for a node's kubelet.
    #[must_use]
    pub fn builder(client: Client, node_name: &str) -> Builder {
        Builder {
            config: Config { node_name: node_name.to_owned(), ..Config::default() },
            client,
            clock: Clock::system(),
            runtime: None,
            images: None,
            network: None,
            signals: None,
            metrics: Registry::default(),
        }
    }

    /// Returns the kubelet's API for calls within this process.
    #[must_use]
    pub fn api(&self) -> KubeletApi {
        self.api.clone()
    }

    /// Name of the Node object.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.cx.config.node_name
    }

    /// Stops the kubelet. The containers keep running.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(main) = self.main.take() {
            // The runtime (tokio) has already reported a panic of the task.
            let _ = main.await;
        }
    }
}

/// Starts a worker per pod, and sends events to the workers.
struct Router {
    cx: Arc<Context>,
    /// Workers by pod uid.
    workers: HashMap<String, Handle>,
    running: JoinSet<String>,
    /// Sandboxes at the start of the kubelet, until their worker takes them over.
    known: Vec<SandboxStatus>,
    services_known: bool,
    /// All pods that were bound to the node at the start are known.
    synced: bool,
    shutdown: CancellationToken,
}

impl Router {
    async fn run(&mut self, mut events: futures::stream::BoxStream<'static, RuntimeEvent>) {
        let cx = self.cx.clone();
        let mut changes = cx.pods.subscribe();
        let selector = ListParams::default().fields(format!("spec.nodeName={}", cx.config.node_name));
        let _pods = reflect(cx.client.all::<Pod>(), selector, cx.pods.clone());
        let own = ListParams::default().fields(format!("metadata.name={}", cx.config.node_name));
        let _node = reflect(cx.client.all::<Node>(), own, cx.node.clone());
        let _services = reflect(cx.client.all::<Service>(), ListParams::default(), cx.services.clone());
        let mut background = JoinSet::new();
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(change) => self.on_change(change),
                    None => break,
                },
                event = events.next() => match event {
                    Some(event) => self.on_event(event).await,
                    None => {
                        warn!("the runtime's events ended, listening again");
                        cx.clock.sleep(std::time::Duration::from_secs(1)).await;
                        events = cx.runtime.events();
                        self.on_event(RuntimeEvent::Resync).await;
                    }
                },
                Some(done) = self.running.join_next() => self.on_ended(done.ok()),
                () = cx.services.synced(), if !self.services_known => {
                    self.services_known = true;
                    for handle in self.workers.values() {
                        handle.mailbox.send(Message::Services);
                    }
                }
                () = cx.pods.synced(), if !self.synced => {
                    self.synced = true;
                    // After the cache has synced, every pod has its worker, and the workers have taken over
                    // their sandboxes. New pods are admitted in the order of their creation.
                    let mut pods = cx.pods.list();
                    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
                    for pod in pods {
                        self.upsert(pod);
                    }
                    allocate::open(&cx);
                    let known = std::mem::take(&mut self.known);
                    background.spawn(orphans::remove(cx.clone(), known));
                }
                () = shutdown.cancelled() => break,
            }
        }
        while self.running.join_next().await.is_some() {}
    }

    fn on_change(&mut self, change: Change<Pod>) {
        match change {
            Change::Added(pod) => self.upsert(pod),
            Change::Modified(old, pod) => {
                if old.uid() != pod.uid() {
                    self.remove(&old);
                }
                self.upsert(pod);
            }
            Change::Deleted(pod) => self.remove(&pod),
            Change::Resync => {
                let all = self.cx.pods.list();
                let uids: std::collections::HashSet<&str> = all.iter().map(|p| p.uid()).collect();
                let gone = self.workers.values().filter(|h| !uids.contains(h.pod.uid()));
                for handle in gone {
                    handle.mailbox.send(Message::Gone(handle.pod.clone()));
                }
                for pod in all {
                    self.upsert(pod);
                }
            }
        }
    }

    fn upsert(&mut self, pod: Arc<Pod>) {
        if let Some(handle) = self.workers.get_mut(pod.uid()) {
            if pod.revision() > handle.pod.revision() {
                handle.pod = pod.clone();
                handle.mailbox.send(Message::Pod(pod));
            }
            return;
        }
        let uid = pod.uid().to_owned();
        let known: Vec<_> = self.known.iter().filter(|s| s.spec.uid == uid).cloned().collect();
        let mut allocation = None;
        if admit::was_admitted(&pod, !known.is_empty()) {
            // Before any new pod is checked.
            allocation = Allocation::load(&self.cx.config.pod_dir(&uid));
            let allocated = allocation.as_ref().map_or_else(|| pod.clone(), |known| known.apply(&pod));
            self.cx.ledger.hold(&allocated);
        } else if !self.synced {
            return;
        }
        let (handle, work) = worker::start(worker::Start {
            cx: self.cx.clone(),
            pod,
            known,
            allocation,
            services_known: self.services_known,
            shutdown: self.shutdown.clone(),
        });
        self.workers.insert(uid.clone(), handle);
        self.running.spawn(async move {
            work.await;
            uid
        });
    }

    fn remove(&mut self, pod: &Arc<Pod>) {
        if let Some(handle) = self.workers.get(pod.uid()) {
            handle.mailbox.send(Message::Gone(pod.clone()));
        }
    }

    fn on_ended(&mut self, uid: Option<String>) {
        match uid {
            Some(uid) => {
                self.workers.remove(&uid);
            }
            None => warn!("a pod's worker failed"),
        }
    }

    async fn on_event(&mut self, event: RuntimeEvent) {
        if matches!(event, RuntimeEvent::Started(..)) {
            self.cx.metrics.container_started();
        }
        let sandbox = match &event {
            RuntimeEvent::Started(sandbox, _)
            | RuntimeEvent::Exited(sandbox, _)
            | RuntimeEvent::Removed(sandbox, _)
            | RuntimeEvent::SandboxGone(sandbox) => sandbox,
            RuntimeEvent::Resync => return self.resync().await,
            _ => return,
        };
        let owner = self.cx.owner_of(sandbox);
        match owner.and_then(|uid| self.workers.get(&uid)) {
            Some(handle) => handle.mailbox.runtime(event),
            None => debug!(?event, "an event of no pod's"),
        }
    }

    async fn resync(&mut self) {
        match self.cx.runtime.list().await {
            Ok(all) => {
                for (uid, handle) in &self.workers {
                    let own = all.iter().filter(|s| &s.spec.uid == uid).cloned().collect();
                    handle.mailbox.listed(own);
                }
            }
            Err(e) => warn!(error = %e, "runtime not listed"),
        }
    }
}
