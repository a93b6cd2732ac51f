//! The control plane's parts, and their assembly in one process.
//!
//! Flow: [`Api::start`] opens store and certificates, serves, and publishes its objects; [`manager`] has the
//! controllers; [`ControlPlane::start`] joins both with a scheduler, over shared caches and in-process
//! clients. The single components assemble the same parts over clients of their kubeconfigs.

mod api;
mod objects;
mod store;

use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_apiserver::User;
use k8s_builtin::{self as builtin, Autoscaling, Selection, Signer, Signing, provisioner};
use k8s_controllers::{
    Caches, Environment, Manager, Runnable,
    metrics::{Metrics, counted},
};
use k8s_core::client::Client;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use api::{Api, ApiConfig, Kubeconfigs, bind, limits};
pub(crate) use store::open_store;

use crate::{
    addons, error::ClusterError, extensions::Extensions, identities, node_health::NodeHealthFlags,
    paths::Paths,
};

/// Settings of the controllers.
#[derive(Debug)]
pub(crate) struct ControllersConfig {
    /// The built-in controllers.
    pub(crate) selection: Selection,
    /// CA certificate (PEM) that is published in every namespace.
    pub(crate) root_ca: String,
    /// Pod CIDR of the cluster, from which nodes get theirs.
    pub(crate) cluster_cidr: Ipv4Net,
    /// CAs that sign certificate requests.
    pub(crate) signing: Signing,
    /// Signer of tokens in Secrets. `None`: such Secrets stay empty.
    pub(crate) token_signer: Option<Signer>,
    /// Time without use after which token Secrets are marked and then deleted.
    pub(crate) legacy_token_clean_up_period: Duration,
    /// Health of nodes. `None`: upstream's defaults.
    pub(crate) node_health: Option<NodeHealthFlags>,
    /// Time without heartbeat after which a node is not ready, without such flags. `None`: upstream's.
    pub(crate) node_grace: Option<Duration>,
    /// Options of the horizontal autoscaler.
    pub(crate) autoscaling: Autoscaling,
}

/// Returns a manager of the selected and the added controllers.
pub(crate) fn manager(client: &Client, config: ControllersConfig, added: Vec<Runnable>) -> Manager {
    let mut options = builtin::Options {
        root_ca: config.root_ca,
        cluster_cidr: Some(config.cluster_cidr.into()),
        signing: config.signing,
        token_signer: config.token_signer,
        legacy_token_clean_up_period: config.legacy_token_clean_up_period,
        autoscaling: config.autoscaling,
        ..builtin::Options::default()
    };
    if let Some(grace) = config.node_grace {
        options.node_monitor_grace = grace;
    }
    if let Some(flags) = config.node_health {
        flags.apply(&mut options);
    }
    Manager::new(client.named("kube-controller-manager"))
        .runnables(config.selection.runnables(&options))
        .runnables(added)
}

/// A running control plane: API server, controllers, scheduler.
pub(crate) struct ControlPlane {
    /// The API server.
    pub(crate) api: Api,
    /// The caches of controllers and scheduler.
    pub(crate) caches: Caches,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl ControlPlane {
    /// Starts all components. They are ready on return.
    ///
    /// # Errors
    /// Everything that was started is stopped again.
    #[expect(clippy::disallowed_methods, reason = "shutdown waits for the tasks")]
    pub(crate) async fn start(
        paths: &Paths,
        config: ApiConfig,
        selection: Selection,
        cluster_cidr: Ipv4Net,
        autoscaling: Autoscaling,
        node_grace: Option<Duration>,
        extensions: Extensions,
    ) -> Result<Self, ClusterError> {
        let mut added = extensions.controllers;
        if config.local_storage == Some(true) {
            let provisioner = provisioner::runnables(provisioner::LocalPath);
            added.extend(provisioner.map(|one| one.account(addons::PROVISIONER)));
        }
        let api = Api::start(paths, config, extensions.api).await?;
        let stop = CancellationToken::new();
        let of = |user: &str| api.client_as(User::new(user, &[]));
        // Controllers and scheduler share one process, so they share one set of caches.
        let reader = of(identities::CONTROLLER_MANAGER).named("kube-controller-manager");
        let caches = Caches::new(reader.without_managed_fields());
        let server = api.server.clone();
        let authority = api.pki.authority().map_err(ClusterError::of("the cluster's CA"));
        let signing = match authority {
            Ok(authority) => Signing::all(authority),
            Err(e) => {
                api.shutdown().await;
                return Err(e);
            }
        };
        let config = ControllersConfig {
            selection,
            root_ca: api.kubeconfigs.trust().to_owned(),
            cluster_cidr,
            signing,
            token_signer: Some(api.token_signer.clone()),
            legacy_token_clean_up_period: builtin::Options::default().legacy_token_clean_up_period,
            node_health: None,
            node_grace,
            autoscaling,
        };
        // The embedding program's own controllers act as the administrator.
        let manager = manager(&api.client(), config, added).caches(caches.clone()).accounts(move |account| {
            let user = match account {
                identities::CONTROLLER_MANAGER => User::new(account, &[]),
                account => User::service_account("kube-system", account),
            };
            counted(&server.client_as(user), server.metrics()).named("kube-controller-manager")
        });
        let metrics = Metrics::new(api.server.metrics());
        let manager = manager.measured(metrics.clone());
        let mut environment = Environment::new(of(identities::SCHEDULER).named("kube-scheduler"));
        environment.caches = k8s_builtin::trimmed(caches.clone());
        environment.shutdown = stop.clone();
        environment.metrics = metrics;
        let tasks = vec![
            tokio::spawn(manager.run(stop.clone())),
            tokio::spawn(extensions.scheduler.run_in(environment)),
        ];
        Ok(ControlPlane { api, caches, stop, tasks })
    }

    /// Stops all components. The store keeps its objects.
    pub(crate) async fn shutdown(self) {
        self.stop.cancel();
        for task in self.tasks {
            join(task).await;
        }
        self.api.shutdown().await;
    }
}

/// Waits 5 seconds for the end of a task that was told to stop, then aborts it.
async fn join<T>(mut task: JoinHandle<T>) {
    if tokio::time::timeout(Duration::from_secs(5), &mut task).await.is_err() {
        task.abort();
    }
}
