//! A controller that waits for its manager.

use futures::future::BoxFuture;

use crate::{Controller, Environment, Reconcile};

/// Clients by the name of a service account in kube-system.
pub(crate) type Accounts = Box<dyn Fn(&'static str) -> k8s_core::client::Client + Send>;
type Start = Box<dyn FnOnce(Environment) -> BoxFuture<'static, ()> + Send>;

/// A controller that a [`Manager`](crate::Manager) starts.
///
/// # Examples
/// ```
/// use k8s_controllers::Runnable;
/// let beat = Runnable::new("beat", |environment| {
///     Box::pin(async move { environment.shutdown.cancelled().await })
/// });
/// assert_eq!(beat.name(), "beat");
/// ```
pub struct Runnable {
    name: String,
    account: Option<&'static str>,
    start: Start,
}

impl std::fmt::Debug for Runnable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runnable").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Runnable {
    /// Takes a function that runs until the environment's `shutdown` is cancelled. `name` is for logs.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        start: impl FnOnce(Environment) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> Self {
        Runnable { name: name.into(), account: None, start: Box::new(start) }
    }

    /// Takes a controller and its reconciler.
    #[must_use]
    pub fn controller<R: Reconcile>(controller: Controller<R::Kind>, reconciler: R) -> Self {
        Runnable::new(std::any::type_name::<R>(), move |environment| {
            controller.run_in(environment, reconciler)
        })
    }

    /// Acts as this service account of kube-system, where the manager has clients for accounts
    /// ([`Manager::accounts`](crate::Manager::accounts)). Default: as the manager's own client.
    #[must_use]
    pub fn account(mut self, account: &'static str) -> Self {
        self.account = Some(account);
        self
    }

    /// The name in logs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it with the client of its account, if it names one.
    pub(crate) fn start(
        self,
        mut environment: Environment,
        accounts: Option<&Accounts>,
    ) -> BoxFuture<'static, ()> {
        tracing::debug!(controller = self.name, "starting");
        if let Some((account, client_of)) = self.account.zip(accounts) {
            environment.client = client_of(account).without_managed_fields();
        }
        (self.start)(environment)
    }
}
