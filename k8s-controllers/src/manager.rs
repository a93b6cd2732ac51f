//! Runs many controllers in one process: one client, one set of caches, one shutdown.

use futures::future::BoxFuture;
use k8s_core::{client::Client, clock::Clock};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Caches, Controller, Environment, Reconcile,
    builtin::{self, Options, Selection},
    health,
    metrics::Metrics,
};

type Start = Box<dyn FnOnce(Environment) -> BoxFuture<'static, ()> + Send>;
type Accounts = Box<dyn Fn(&'static str) -> Client + Send>;

/// Runs controllers over shared caches.
pub struct Manager {
    environment: Environment,
    options: Options,
    selection: Selection,
    accounts: Option<Accounts>,
    others: Vec<Start>,
    listener: Option<TcpListener>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("selection", &self.selection).finish_non_exhaustive()
    }
}

impl Manager {
    /// Creates a manager without controllers, with wall time.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Manager {
            environment: Environment::new(client),
            options: Options::default(),
            selection: Selection::none(),
            accounts: None,
            others: Vec::new(),
            listener: None,
        }
    }

    /// Sets the clock.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.environment.clock = clock;
        self
    }

    /// Sets the seed of all randomness.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.environment.seed = seed;
        self
    }

    /// Sets caches that are shared with other parts of the process.
    #[must_use]
    pub fn caches(mut self, caches: Caches) -> Self {
        self.environment.caches = caches;
        self
    }

    /// Sets the options of the built-in controllers.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Adds built-in controllers.
    #[must_use]
    pub fn controllers(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// Gives each built-in controller its own client by the name of its service account
    /// ([`builtin::BuiltIn::account`]). Default: all use the manager's client. Shared caches always read
    /// through their own client.
    #[must_use]
    pub fn accounts(mut self, client: impl Fn(&'static str) -> Client + Send + 'static) -> Self {
        self.accounts = Some(Box::new(client));
        self
    }

    /// Adds a controller.
    #[must_use]
    pub fn controller<R: Reconcile>(mut self, controller: Controller<R::Kind>, reconciler: R) -> Self {
        self.others.push(Box::new(move |environment| controller.start(environment, reconciler)));
        self
    }

    /// Serves `/healthz`, `/livez`, `/readyz` and `/metrics` on this listener while it runs.
    #[must_use]
    pub fn serve(mut self, listener: TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Returns the metrics of its controllers.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.environment.metrics.clone()
    }

    /// Runs until `shutdown` is cancelled; returns after all reconciles in progress have ended.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.environment.shutdown = shutdown;
        let mut running = JoinSet::new();
        if let Some(listener) = self.listener {
            running.spawn(health::serve(
                listener,
                self.environment.metrics.clone(),
                self.environment.shutdown.clone(),
            ));
        }
        let mut built_in = self.environment.clone();
        built_in.caches = builtin::trimmed(built_in.caches);
        for row in self.selection.rows() {
            tracing::debug!(controller = row.name, "starting");
            let mut environment = built_in.clone();
            if let Some(client_of) = &self.accounts {
                environment.client = client_of(row.account).lean();
            }
            running.spawn((row.start)(environment, self.options.clone()));
        }
        for start in self.others {
            running.spawn(start(self.environment.clone()));
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
