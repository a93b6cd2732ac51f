//! The built-in controllers of `kube-controller-manager`: one row each, chosen by name.
//!
//! ```
//! use k8s_builtin::{Options, Selection, all};
//! use k8s_controllers::Manager;
//! # async fn f(client: k8s_core::client::Client) {
//! let selection = all().without("cronjob");
//! let shutdown = tokio_util::sync::CancellationToken::new();
//! Manager::new(client).runnables(selection.runnables(&Options::default())).run(shutdown).await;
//! # }
//! // The same choice, in the words of the flag `--controllers`.
//! assert!(Selection::parse(["*", "-cronjob"]).is_ok());
//! ```
//!
//! Flow: [`ALL`] lists the controllers; a [`Selection`] of them becomes runnables of a
//! [`k8s_controllers::Manager`]. Each controller is a module with a pure part (`plan`: desired and observed
//! state in, actions out) and a part that acts.
//!
//! Guarantees: names, events, conditions, status fields and service accounts are upstream's. A controller
//! reads only the shared caches, whose pods are [`trimmed`].
//!
//! Not here: the reconcile loop (`k8s-controllers`), the scheduler (`k8s-scheduler`).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_controllers::{Environment, Runnable};

pub mod batch;
pub mod claim;
pub mod conditions;
pub mod discovery;
pub mod dynamic;
pub mod hash;
pub mod pods;
pub mod provisioner;

mod autoscaler;
mod bootstrap;
mod certificates;
mod cluster_roles;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod gc;
mod history;
mod job;
mod legacy_tokens;
mod namespace;
mod namespaced;
mod node;
mod quota;
mod replicas;
mod resource_claims;
mod served;
mod service_cidrs;
mod service_lb;
mod statefulset;
mod token_secrets;
mod trim;
mod trust;
mod volumes;

pub use autoscaler::Autoscaling;
pub use certificates::{Authority, AuthorityError, Signing};
pub use service_lb::{CLASS as SERVICE_LB_CLASS, OWN_PORTS};
pub use token_secrets::{Signer, TokenSigner};
pub use trim::trimmed;

/// Options of the built-in controllers.
#[derive(Clone, Debug)]
pub struct Options {
    /// PEM of the cluster's CA certificate, published in every namespace. Empty: not published.
    pub root_ca: String,
    /// CIDR from which nodes' pod CIDRs are allocated. `None`: none are allocated.
    pub cluster_cidr: Option<IpNet>,
    /// Prefix length of a node's pod CIDR.
    pub node_cidr_mask: u8,
    /// Interval at which the ready nodes of zones are counted.
    pub node_monitor_period: std::time::Duration,
    /// Time without heartbeat after which a node's conditions become `Unknown`.
    pub node_monitor_grace: std::time::Duration,
    /// As `node_monitor_grace`, for a node that has never reported its status.
    pub node_startup_grace: std::time::Duration,
    /// Nodes per second that get a taint that evicts their pods, in a zone with few that are not ready.
    pub node_eviction_rate: f64,
    /// As `node_eviction_rate`, in a large zone with many that are not ready. In a small one: none.
    pub secondary_node_eviction_rate: f64,
    /// Number of nodes above which a zone is large.
    pub large_cluster_size_threshold: usize,
    /// Part of a zone's nodes, from 0 to 1, that are many when they are not ready.
    pub unhealthy_zone_threshold: f64,
    /// Signs tokens for Secrets of type `kubernetes.io/service-account-token`. `None`: they stay empty.
    pub token_signer: Option<Signer>,
    /// Number of terminated pods that are kept; the oldest above it are deleted.
    pub terminated_pod_threshold: usize,
    /// Time without use after which a token Secret that an account lists is marked as invalid, and then that
    /// until it is deleted.
    pub legacy_token_clean_up_period: std::time::Duration,
    /// Options of the horizontal autoscaler.
    pub autoscaling: Autoscaling,
    /// CAs that sign certificate requests. Default: none, and no request is signed.
    pub signing: Signing,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            root_ca: String::new(),
            cluster_cidr: None,
            token_signer: None,
            node_cidr_mask: 24,
            node_monitor_period: std::time::Duration::from_secs(5),
            node_monitor_grace: std::time::Duration::from_secs(50),
            node_startup_grace: std::time::Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 0.55,
            terminated_pod_threshold: 12_500,
            legacy_token_clean_up_period: std::time::Duration::from_secs(365 * 24 * 3600),
            autoscaling: Autoscaling::default(),
            signing: Signing::default(),
        }
    }
}

/// User of the controller manager, as which a few controllers act.
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// A built-in controller.
#[derive(Debug)]
pub struct BuiltIn {
    /// Upstream's name (`deployment-controller`).
    pub name: &'static str,
    /// Upstream's alias (`deployment`).
    pub alias: &'static str,
    /// Service account in kube-system that it acts as. Upstream's ClusterRole `system:controller:<account>`
    /// grants its permissions. [`CONTROLLER_MANAGER`]: it acts as that user.
    pub account: &'static str,
    /// True if `*` includes it.
    pub default_on: bool,
    /// Runs it until the environment is shut down.
    pub start: fn(Environment, Options) -> BoxFuture<'static, ()>,
}

const fn row(
    name: &'static str,
    alias: &'static str,
    account: &'static str,
    start: fn(Environment, Options) -> BoxFuture<'static, ()>,
) -> BuiltIn {
    BuiltIn { name, alias, account, default_on: true, start }
}

/// A row that `*` does not include.
const fn off(
    name: &'static str,
    alias: &'static str,
    account: &'static str,
    start: fn(Environment, Options) -> BoxFuture<'static, ()>,
) -> BuiltIn {
    BuiltIn { name, alias, account, default_on: false, start }
}

/// All built-in controllers.
pub static ALL: &[BuiltIn] = &[
    row("deployment-controller", "deployment", "deployment-controller", deployment::start),
    row("replicaset-controller", "replicaset", "replicaset-controller", replicas::replica_sets),
    row(
        "replicationcontroller-controller",
        "replicationcontroller",
        "replication-controller",
        replicas::replication_controllers,
    ),
    row("endpointslice-controller", "endpointslice", "endpointslice-controller", endpoints::slices),
    row(
        "endpointslice-mirroring-controller",
        "endpointslicemirroring",
        "endpointslicemirroring-controller",
        endpoints::mirroring,
    ),
    row("endpoints-controller", "endpoint", "endpoint-controller", endpoints::endpoints),
    row(
        "serviceaccount-controller",
        "serviceaccount",
        "service-account-controller",
        namespaced::service_accounts,
    ),
    row("serviceaccount-token-controller", "serviceaccount-token", CONTROLLER_MANAGER, token_secrets::start),
    row(
        "legacy-serviceaccount-token-cleaner-controller",
        "legacy-service-account-token-cleaner",
        "legacy-service-account-token-cleaner",
        legacy_tokens::start,
    ),
    off("bootstrap-signer-controller", "bootstrapsigner", "bootstrap-signer", bootstrap::signing),
    off("token-cleaner-controller", "tokencleaner", "token-cleaner", bootstrap::cleaning),
    row(
        "root-ca-certificate-publisher-controller",
        "root-ca-cert-publisher",
        "root-ca-cert-publisher",
        namespaced::root_ca,
    ),
    row("namespace-controller", "namespace", "namespace-controller", namespace::start),
    row("garbage-collector-controller", "garbagecollector", "generic-garbage-collector", gc::start),
    row("job-controller", "job", "job-controller", job::start),
    row("ttl-after-finished-controller", "ttl-after-finished", "ttl-after-finished-controller", job::ttl),
    row("node-lifecycle-controller", "nodelifecycle", "node-controller", node::lifecycle),
    row("taint-eviction-controller", "tainteviction", "node-controller", node::eviction),
    row("node-ipam-controller", "nodeipam", "node-controller", node::ipam),
    row("ttl-controller", "ttl", "ttl-controller", node::ttl::start),
    row("pod-garbage-collector-controller", "podgc", "pod-garbage-collector", node::pod_gc),
    row("cronjob-controller", "cronjob", "cronjob-controller", cronjob::start),
    row(
        "clusterrole-aggregation-controller",
        "clusterrole-aggregation",
        "clusterrole-aggregation-controller",
        cluster_roles::start,
    ),
    row(
        "certificatesigningrequest-approving-controller",
        "csrapproving",
        "certificate-controller",
        certificates::approving,
    ),
    row(
        "certificatesigningrequest-signing-controller",
        "csrsigning",
        "certificate-controller",
        certificates::signing,
    ),
    row(
        "certificatesigningrequest-cleaner-controller",
        "csrcleaner",
        "certificate-controller",
        certificates::cleaning,
    ),
    row(
        "podcertificaterequest-cleaner-controller",
        "podcertificaterequest-cleaner-controller",
        "podcertificaterequestcleaner",
        trust::cleaning,
    ),
    row(
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "kube-apiserver-serving-clustertrustbundle-publisher",
        trust::publishing,
    ),
    row(
        "resourceclaim-controller",
        "resourceclaim-controller",
        "resource-claim-controller",
        resource_claims::start,
    ),
    row(
        "service-cidr-controller",
        "service-cidr-controller",
        "service-cidrs-controller",
        service_cidrs::start,
    ),
    // Not part of upstream's controller manager, where it is a cloud's.
    off("service-lb-controller", "service", "service-controller", service_lb::start),
    row("resourcequota-controller", "resourcequota", "resourcequota-controller", quota::start),
    row("disruption-controller", "disruption", "disruption-controller", disruption::start),
    row(
        "horizontal-pod-autoscaler-controller",
        "horizontalpodautoscaling",
        "horizontal-pod-autoscaler",
        autoscaler::start,
    ),
    row("statefulset-controller", "statefulset", "statefulset-controller", statefulset::start),
    row("daemonset-controller", "daemonset", "daemon-set-controller", daemonset::start),
    row(
        "persistentvolume-binder-controller",
        "persistentvolume-binder",
        "persistent-volume-binder",
        volumes::start,
    ),
    row(
        "persistentvolume-attach-detach-controller",
        "attachdetach",
        "attachdetach-controller",
        volumes::attach::start,
    ),
    row(
        "persistentvolume-expander-controller",
        "persistentvolume-expander",
        "expand-controller",
        volumes::expand::start,
    ),
    row(
        "ephemeral-volume-controller",
        "ephemeral-volume",
        "ephemeral-volume-controller",
        volumes::ephemeral::start,
    ),
    row(
        "persistentvolumeclaim-protection-controller",
        "pvc-protection",
        "pvc-protection-controller",
        volumes::protection::claims,
    ),
    row(
        "persistentvolume-protection-controller",
        "pv-protection",
        "pv-protection-controller",
        volumes::protection::volumes,
    ),
];

/// Returns all built-in controllers that are on by default.
#[must_use]
pub fn all() -> Selection {
    Selection(ALL.iter().filter(|r| r.default_on).collect())
}

/// A set of built-in controllers.
///
/// ```
/// let selection = k8s_builtin::all().without("cronjob");
/// assert!(selection.rows().all(|row| row.alias != "cronjob"));
/// assert_eq!(k8s_builtin::Selection::none().with("deployment").rows().count(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct Selection(Vec<&'static BuiltIn>);

/// An item of `--controllers` that names no controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not in the list of known controllers")]
pub struct UnknownController(pub String);

impl Selection {
    /// Selects none.
    #[must_use]
    pub fn none() -> Self {
        Selection(Vec::new())
    }

    /// Parses the items of `--controllers`: `*` selects all that are on by default, `foo` selects foo, `-foo`
    /// excludes it. The first item that names a controller decides.
    ///
    /// ```
    /// use k8s_builtin::Selection;
    /// let selection = Selection::parse(["*", "-job"])?;
    /// assert!(selection.rows().any(|row| row.alias == "deployment"));
    /// assert!(selection.rows().all(|row| row.alias != "job"));
    /// assert_eq!(Selection::parse(["jobs"]).unwrap_err().0, "jobs");
    /// # Ok::<(), k8s_builtin::UnknownController>(())
    /// ```
    ///
    /// # Errors
    /// [`UnknownController`].
    pub fn parse<'a>(items: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownController> {
        let items: Vec<&str> = items.into_iter().map(str::trim).filter(|i| !i.is_empty()).collect();
        for item in &items {
            let name = item.strip_prefix(['-', '+']).unwrap_or(item);
            if name != "*" && find(name).is_none() {
                return Err(UnknownController(name.to_owned()));
            }
        }
        let star = items.contains(&"*");
        let wanted = |row: &&BuiltIn| {
            let decision = items.iter().find_map(|item| {
                let (name, on) = item.strip_prefix('-').map_or((*item, true), |name| (name, false));
                row.is_named(name.trim_start_matches('+')).then_some(on)
            });
            decision.unwrap_or(star && row.default_on)
        };
        Ok(Selection(ALL.iter().filter(wanted).collect()))
    }

    /// Adds a controller by name.
    #[must_use]
    pub fn with(mut self, name: &str) -> Self {
        if let Some(row) = find(name).filter(|row| !self.0.iter().any(|r| r.name == row.name)) {
            self.0.push(row);
        }
        self
    }

    /// Removes a controller by name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|row| !row.is_named(name));
        self
    }

    /// Returns the selected controllers as runnables for a [`k8s_controllers::Manager`]. Each acts as its own
    /// service account.
    ///
    /// ```
    /// use k8s_builtin::Options;
    /// use k8s_controllers::Manager;
    /// use k8s_core::client::Client;
    /// use tokio_util::sync::CancellationToken;
    ///
    /// async fn controller_manager(client: Client, shutdown: CancellationToken) {
    ///     let (selection, options) = (k8s_builtin::all().without("cronjob"), Options::default());
    ///     Manager::new(client).runnables(selection.runnables(&options)).run(shutdown).await;
    /// }
    /// ```
    pub fn runnables(&self, options: &Options) -> impl Iterator<Item = Runnable> {
        self.rows().map(|row| row.runnable(options.clone()))
    }

    /// Iterates over the selected controllers.
    pub fn rows(&self) -> impl Iterator<Item = &'static BuiltIn> {
        self.0.iter().copied()
    }
}

impl BuiltIn {
    /// The controller as a runnable for a [`k8s_controllers::Manager`].
    #[must_use]
    pub fn runnable(&'static self, options: Options) -> Runnable {
        let start = move |mut environment: Environment| {
            environment.caches = trimmed(environment.caches);
            (self.start)(environment, options)
        };
        Runnable::new(self.name, start).account(self.account)
    }

    /// Returns the name of the user that it acts as.
    ///
    /// ```
    /// let row = k8s_builtin::all().with("job").rows().find(|row| row.alias == "job").expect("built in");
    /// assert_eq!(row.user(), "system:serviceaccount:kube-system:job-controller");
    /// ```
    #[must_use]
    pub fn user(&self) -> String {
        match self.account {
            CONTROLLER_MANAGER => CONTROLLER_MANAGER.to_owned(),
            account => format!("system:serviceaccount:kube-system:{account}"),
        }
    }

    fn is_named(&self, name: &str) -> bool {
        self.name == name || self.alias == name
    }
}

fn find(name: &str) -> Option<&'static BuiltIn> {
    ALL.iter().find(|row| row.is_named(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_selections_are_as_upstream_reads_them() {
        for (i, row) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|r| !r.is_named(row.name) && !r.is_named(row.alias)), "{}", row.name);
        }
        let names = |items: &[&str]| -> Vec<&str> {
            Selection::parse(items.iter().copied()).unwrap().rows().map(|r| r.name).collect()
        };
        assert_eq!(names(&["*"]).len(), ALL.iter().filter(|r| r.default_on).count());
        assert_eq!(names(&["replicaset"]), ["replicaset-controller"]);
        assert!(!names(&["*", "-replicaset"]).contains(&"replicaset-controller"));
        assert_eq!(names(&["replicaset", "-replicaset-controller"]), ["replicaset-controller"], "first wins");
        assert_eq!(Selection::parse(["*", "-nonsense"]).unwrap_err().0, "nonsense");
        assert_eq!(all().without("replicaset").with("replicaset").rows().count(), all().rows().count());
    }
}
