//! The builder of a scheduler.

use futures::{FutureExt, future::BoxFuture};
use k8s_controllers::{Environment, Handle};
use k8s_core::client::Client;

use super::Scheduler;
use crate::{
    Plugin, Points,
    config::{ConfigError, Configuration},
    decide::Profile,
    extender::Extenders,
};

/// Builder of a [`Scheduler`].
#[derive(Clone, Debug)]
pub struct Builder {
    name: Option<String>,
    added: Vec<Points>,
    bare: bool,
    configuration: Configuration,
}

impl Builder {
    pub(super) fn new() -> Self {
        Builder { name: None, added: Vec::new(), bare: false, configuration: Configuration::default() }
    }

    /// Sets the `schedulerName` of the pods to schedule; with several profiles, of those of the first one.
    /// Default: `default-scheduler`.
    ///
    /// ```
    /// use k8s_core::client::Client;
    /// use k8s_scheduler::{Scheduler, plugins};
    ///
    /// // A second scheduler, for pods with `schedulerName: packer`, that only looks at resources.
    /// async fn packer(client: Client) {
    ///     let resources = plugins::NodeResourcesFit::default();
    ///     Scheduler::builder().named("packer").bare().plugin(resources).run(client).await;
    /// }
    /// ```
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Adds a plugin to all profiles; it replaces a built-in one of its name.
    ///
    /// # Panics
    /// There are more than 40 plugins.
    #[must_use]
    pub fn plugin(mut self, plugin: impl Plugin) -> Self {
        self.added.push(plugin.points());
        assert!(self.added.len() <= 40, "a scheduler has at most 40 plugins beside the built-in ones");
        self
    }

    /// Removes the built-in plugins, but not those for gates, the order of the queue and the binding.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Sets profiles, plugins and their arguments, and extenders. Plugins of [`Builder::plugin`] must be
    /// added before, if the configuration names them.
    ///
    /// # Errors
    /// The path of the first field that cannot be used, and the reason.
    pub fn configured(mut self, configuration: Configuration) -> Result<Self, ConfigError> {
        configuration.profiles(&self.added, self.bare)?;
        configuration.extenders()?;
        self.configuration = configuration;
        Ok(self)
    }

    pub(super) fn backoff(&self) -> (std::time::Duration, std::time::Duration) {
        self.configuration.backoff()
    }

    /// Makes the profiles; [`Builder::configured`] has checked them.
    pub(crate) fn profiles(&self) -> Result<Vec<Profile>, ConfigError> {
        let mut profiles = self.configuration.profiles(&self.added, self.bare)?;
        if let (Some(name), Some(first)) = (&self.name, profiles.first_mut()) {
            first.name.clone_from(name);
        }
        Ok(profiles)
    }

    /// Makes the extenders; [`Builder::configured`] has checked them.
    pub(crate) fn extenders(&self) -> Result<Extenders, ConfigError> {
        self.configuration.extenders()
    }

    /// Runs with caches of its own until the future is dropped.
    pub async fn run(self, client: Client) {
        self.run_in(Environment::new(client)).await;
    }

    /// Starts in a task, with caches of its own.
    ///
    /// # Panics
    /// Called outside of a tokio runtime.
    ///
    /// ```
    /// use k8s_controllers::Stopped;
    /// use k8s_core::client::Client;
    /// use k8s_scheduler::Scheduler;
    ///
    /// async fn for_a_while(client: Client) -> Result<(), Stopped> {
    ///     let running = Scheduler::builder().start(client);
    ///     tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    ///     running.shutdown().await
    /// }
    /// ```
    pub fn start(self, client: Client) -> Handle {
        let mut environment = Environment::new(client);
        Handle::start(|stop| {
            environment.shutdown = stop;
            self.run_in(environment)
        })
    }

    /// Runs in an environment until that is shut down.
    pub fn run_in(self, environment: Environment) -> BoxFuture<'static, ()> {
        async move {
            let shutdown = environment.shutdown.clone();
            let mut scheduler = match Scheduler::new(&self, environment) {
                Ok(scheduler) => scheduler,
                Err(error) => {
                    tracing::error!(%error, "the scheduler does not start");
                    return;
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = scheduler.run() => {}
            }
        }
        .boxed()
    }
}
