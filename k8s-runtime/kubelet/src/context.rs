//! The state that all parts of one kubelet share.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_core::{cache::Cache, client::Client, clock::Clock, events::Recorder};
use k8s_net::pod::PodNetwork;
use k8s_runtime::{Runtime, SandboxId};

use crate::{
    config::Config,
    eviction::{Pressure, signals::Signals},
    facts::Facts,
    images::Puller,
    ledger::Ledger,
    metrics::Metrics,
    pod_certificates::PodCertificates,
    resizes::Resizes,
    samples::Samples,
    sources::Sources,
    sysctls::Sysctls,
    tokens::Tokens,
    trust::TrustBundles,
    types::*,
    view::PodView,
};

/// Shared by the pod workers, the node status loop and the kubelet's API.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Puller,
    pub(crate) network: Option<Arc<dyn PodNetwork>>,
    pub(crate) events: Recorder,
    pub(crate) sources: Sources,
    pub(crate) tokens: Tokens,
    pub(crate) trust: TrustBundles,
    pub(crate) certificates: PodCertificates,
    pub(crate) pods: Cache<Pod>,
    pub(crate) services: Cache<Service>,
    /// The Node object of this kubelet.
    pub(crate) node: Cache<Node>,
    pub(crate) ledger: Ledger,
    pub(crate) resizes: Resizes,
    pub(crate) facts: Facts,
    pub(crate) sysctls: Sysctls,
    pub(crate) metrics: Metrics,
    pub(crate) samples: Samples,
    /// Source of the node's free resources.
    pub(crate) signals: Arc<dyn Signals>,
    /// The node's pressure conditions.
    pub(crate) pressure: Pressure,
    /// The pod (uid) that a sandbox belongs to.
    sandboxes: Mutex<HashMap<SandboxId, String>>,
    views: Mutex<HashMap<String, PodView>>,
    view_changes: tokio::sync::watch::Sender<()>,
}

/// Arguments of [`Context::new`].
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Puller,
    pub(crate) network: Option<Arc<dyn PodNetwork>>,
    pub(crate) events: Recorder,
    pub(crate) facts: Facts,
    pub(crate) sysctls: Sysctls,
    pub(crate) metrics: Metrics,
    pub(crate) signals: Arc<dyn Signals>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    pub(crate) fn new(parts: Parts) -> Self {
        Context {
            sources: Sources::new(parts.client.clone()),
            tokens: Tokens::new(parts.client.clone(), parts.clock.clone()),
            trust: TrustBundles::new(parts.client.clone()),
            certificates: PodCertificates::new(
                parts.client.clone(),
                parts.clock.clone(),
                parts.config.node_name.clone(),
            ),
            config: parts.config,
            client: parts.client,
            clock: parts.clock,
            runtime: parts.runtime,
            images: parts.images,
            network: parts.network,
            events: parts.events,
            facts: parts.facts,
            sysctls: parts.sysctls,
            metrics: parts.metrics,
            samples: Samples::default(),
            signals: parts.signals,
            pressure: Pressure::default(),
            pods: Cache::new(),
            services: Cache::new(),
            node: Cache::new(),
            ledger: Ledger::default(),
            resizes: Resizes::default(),
            sandboxes: Mutex::default(),
            views: Mutex::default(),
            view_changes: tokio::sync::watch::channel(()).0,
        }
    }

    /// The node's addresses, the primary one first.
    pub(crate) fn node_ips(&self) -> &[IpAddr] {
        &self.facts.ips
    }

    /// Records the pod of a sandbox, so that the sandbox's events are routed to its worker.
    pub(crate) fn own_sandbox(&self, id: &SandboxId, uid: &str) {
        lock(&self.sandboxes).insert(id.clone(), uid.to_owned());
    }

    /// Forgets a sandbox that was removed.
    pub(crate) fn disown_sandbox(&self, id: &SandboxId) {
        lock(&self.sandboxes).remove(id);
    }

    /// Returns the uid of the sandbox's pod.
    pub(crate) fn owner_of(&self, id: &SandboxId) -> Option<String> {
        lock(&self.sandboxes).get(id).cloned()
    }

    /// Replaces the state of a pod that the kubelet's API reads.
    pub(crate) fn publish(&self, uid: &str, view: PodView) {
        self.metrics.add(&view);
        if let Some(old) = lock(&self.views).insert(uid.to_owned(), view) {
            self.metrics.subtract(&old);
        }
        self.view_changes.send_replace(());
    }

    /// Removes the state of a pod that the kubelet's API reads.
    pub(crate) fn retract(&self, uid: &str) {
        if let Some(old) = lock(&self.views).remove(uid) {
            self.metrics.subtract(&old);
        }
        self.view_changes.send_replace(());
    }

    /// Returns a channel that is notified when any pod's view changes.
    pub(crate) fn view_changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.view_changes.subscribe()
    }

    /// The last published view of a pod.
    pub(crate) fn view(&self, uid: &str) -> Option<PodView> {
        lock(&self.views).get(uid).cloned()
    }
}

impl Drop for Context {
    /// Takes this kubelet's pods out of the sums of the registry.
    fn drop(&mut self) {
        for view in lock(&self.views).values() {
            self.metrics.subtract(view);
        }
    }
}
