//! Runs many controllers in one process: one client, one set of caches, one shutdown.

use futures::future::BoxFuture;
use k8s_core::{client::Client, clock::Clock};
#[cfg(feature = "serve")]
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "serve")]
use crate::health;
use crate::{
    Caches, Controller, Environment, Handle, Reconcile, Runnable, metrics::Metrics, runnable::Accounts,
};

/// Runs controllers over shared caches.
///
/// # Examples
/// ```
/// use k8s_controllers::{Manager, Runnable};
/// # async fn f(client: k8s_core::client::Client, rows: Vec<Runnable>) {
/// let shutdown = tokio_util::sync::CancellationToken::new();
/// Manager::new(client).runnables(rows).run(shutdown.clone()).await;
/// # }
/// ```
pub struct Manager {
    environment: Environment,
    accounts: Option<Accounts>,
    runnables: Vec<Runnable>,
    #[cfg(feature = "serve")]
    listener: Option<TcpListener>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("runnables", &self.runnables).finish_non_exhaustive()
    }
}

impl Manager {
    /// Creates a manager without controllers, with wall time.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Manager {
            environment: Environment::new(client),
            accounts: None,
            runnables: Vec::new(),
            #[cfg(feature = "serve")]
            listener: None,
        }
    }

    /// Sets the clock. Default: wall time.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.environment.clock = clock;
        self
    }

    /// Sets the seed of all randomness. Default: a random one.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.environment.seed = seed;
        self
    }

    /// Shares caches with others in the process. Default: caches of its own.
    #[must_use]
    pub fn caches(mut self, caches: Caches) -> Self {
        self.environment.caches = caches;
        self
    }

    /// Gives each [`Runnable`] with a service account a client of that account. Default: all use the
    /// manager's client. Shared caches always read through their own client.
    #[must_use]
    pub fn accounts(mut self, client: impl Fn(&'static str) -> Client + Send + 'static) -> Self {
        self.accounts = Some(Box::new(client));
        self
    }

    /// Adds a controller.
    #[must_use]
    pub fn controller<R: Reconcile>(self, controller: Controller<R::Kind>, reconciler: R) -> Self {
        self.runnables([Runnable::controller(controller, reconciler)])
    }

    /// Adds controllers, such as those of `k8s_builtin::Selection::runnables`.
    #[must_use]
    pub fn runnables(mut self, runnables: impl IntoIterator<Item = Runnable>) -> Self {
        self.runnables.extend(runnables);
        self
    }

    /// Serves `/healthz`, `/livez`, `/readyz` and `/metrics` on this listener while it runs.
    #[cfg(feature = "serve")]
    #[must_use]
    pub fn serve(mut self, listener: TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Shares metrics with others in the process. Default: metrics of its own. The requests of the manager's
    /// client are counted there only if it is [`counted`](crate::metrics::counted) in them.
    #[must_use]
    pub fn measured(mut self, metrics: Metrics) -> Self {
        self.environment.metrics = metrics;
        self
    }

    /// Returns the metrics of its controllers.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.environment.metrics.clone()
    }

    /// Runs until `shutdown` is cancelled; returns after all reconciles in progress have ended.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(self.run_here(shutdown))
    }

    /// Starts in a task. The handle's `shutdown` finishes reconciles in progress.
    ///
    /// # Panics
    /// Called outside of a tokio runtime.
    ///
    /// # Examples
    /// ```
    /// use k8s_controllers::{Manager, Runnable, Stopped};
    /// # async fn f(client: k8s_core::client::Client, rows: Vec<Runnable>) -> Result<(), Stopped> {
    /// let running = Manager::new(client).runnables(rows).start();
    /// // ... the rest of the program
    /// running.shutdown().await
    /// # }
    /// ```
    pub fn start(self) -> Handle {
        Handle::start(|stop| self.run(stop))
    }

    async fn run_here(mut self, shutdown: CancellationToken) {
        self.environment.shutdown = shutdown;
        let mut running = JoinSet::new();
        #[cfg(feature = "serve")]
        if let Some(listener) = self.listener {
            let metrics = self.environment.metrics.clone();
            let registry = metrics.registry().clone();
            let ready = move || metrics.ready();
            running.spawn(health::serve(listener, registry, ready, self.environment.shutdown.clone()));
        }
        for runnable in self.runnables {
            running.spawn(runnable.start(self.environment.clone(), self.accounts.as_ref()));
        }
        while let Some(ended) = running.join_next().await {
            if let Err(e) = ended
                && e.is_panic()
            {
                tracing::error!(error = %e, "a controller ended");
            }
        }
    }
}
