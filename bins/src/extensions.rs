//! Extensions of a cluster, and the builder methods that add them.

use std::sync::Arc;

use k8s_apiserver::{admission::IntoAdmit, stages::Authenticate};
use k8s_builtin::{
    Selection,
    provisioner::{self, Provisioner},
};
use k8s_controllers::{Controller, Reconcile, Runnable};
use k8s_core::custom::CustomResource;
use k8s_runtime::Runtime;
use k8s_scheduler::{Plugin, Scheduler};

use crate::error::ClusterError;

/// A change of the API server's builder.
pub(crate) type Serve = Box<dyn FnOnce(k8s_apiserver::Builder) -> k8s_apiserver::Builder + Send>;

/// Extensions, by the component that they belong to.
pub(crate) struct Extensions {
    pub(crate) api: Vec<Serve>,
    pub(crate) controllers: Vec<Runnable>,
    pub(crate) selection: Option<Selection>,
    pub(crate) scheduler: k8s_scheduler::Builder,
    pub(crate) runtime: Option<Arc<dyn Runtime>>,
}

impl Default for Extensions {
    fn default() -> Self {
        Extensions {
            api: Vec::new(),
            controllers: Vec::new(),
            selection: None,
            scheduler: Scheduler::builder(),
            runtime: None,
        }
    }
}

impl Extensions {
    /// Returns the built-in controllers that `items` of `--controllers` select. `*` alone is the command
    /// line's default and selects those of [`Builder::controllers`].
    ///
    /// # Errors
    /// An item names no controller.
    pub(crate) fn select(&self, items: &[String]) -> Result<Selection, ClusterError> {
        let named = Selection::parse(items.iter().map(String::as_str))
            .map_err(|e| ClusterError::invalid("--controllers", e))?;
        match &self.selection {
            Some(chosen) if items == ["*"] => Ok(chosen.clone()),
            _ => Ok(named),
        }
    }
}

/// Builder of a [`Cluster`](crate::Cluster) ([`ClusterBuilder`](crate::ClusterBuilder)) or of a program
/// ([`Distribution`](crate::Distribution)). Both take the same extensions.
///
/// # Examples
/// ```
/// use k8s_apiserver::admission::Request;
/// use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};
///
/// let label = |r: &mut Request<Pod>| r.object.set_label("team", r.user.group_or("shared"));
/// let cluster = hyperkube::Cluster::builder().admit(label);
/// let program = hyperkube::distribution("shopkube").admit(label);
/// ```
#[must_use]
pub struct Builder<T> {
    pub(crate) base: T,
    pub(crate) extensions: Extensions,
}

impl<T: std::fmt::Debug> std::fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("base", &self.base).finish_non_exhaustive()
    }
}

impl<T> Builder<T> {
    pub(crate) fn new(base: T) -> Self {
        Builder { base, extensions: Extensions::default() }
    }

    fn api(
        mut self,
        change: impl FnOnce(k8s_apiserver::Builder) -> k8s_apiserver::Builder + Send + 'static,
    ) -> Self {
        self.extensions.api.push(Box::new(change));
        self
    }

    /// Serves a custom resource that is defined by a Rust type.
    ///
    /// ```
    /// use k8s_core::Resource;
    /// use schemars::JsonSchema;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
    /// #[resource(group = "shop.example.com", version = "v1", kind = "Toy", namespaced)]
    /// struct ToySpec { colour: String }
    ///
    /// let cluster = hyperkube::Cluster::builder().resource::<Toy>();
    /// let program = hyperkube::distribution("shopkube").resource::<Toy>();
    /// ```
    pub fn resource<R: CustomResource>(self) -> Self {
        self.api(k8s_apiserver::Builder::resource::<R>)
    }

    /// Adds an admission plugin after the built-in ones: see [`k8s_apiserver::Builder::admit`].
    ///
    /// ```
    /// use k8s_apiserver::admission::Request;
    /// use k8s_core::{api::Pod, meta::ObjectExt};
    /// let cluster = hyperkube::Cluster::builder()
    ///     .admit(|r: &mut Request<Pod>| r.object.set_label("team", r.user.group_or("shared")));
    /// ```
    pub fn admit<M>(self, admit: impl IntoAdmit<M>) -> Self {
        let admit = admit.into_admit();
        self.api(move |server| server.admit_shared(admit))
    }

    /// Adds an authenticator. It is asked after the built-in ones and those added before it; the first that
    /// returns a user or an error decides.
    ///
    /// ```
    /// use k8s_apiserver::{User, stages::{Authenticate, Credentials}};
    /// use k8s_core::status::ApiStatus;
    ///
    /// struct Shopper;
    ///
    /// #[async_trait::async_trait]
    /// impl Authenticate for Shopper {
    ///     async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
    ///         let known = credentials.bearer_token().filter(|token| *token == "of-a-shopper");
    ///         Ok(known.map(|_| User::new("shopper", &["shop"])))
    ///     }
    /// }
    ///
    /// let cluster = hyperkube::Cluster::builder().authenticator(Shopper);
    /// ```
    pub fn authenticator(self, authenticator: impl Authenticate) -> Self {
        self.api(move |server| server.authenticate_with(authenticator))
    }

    /// Adds a controller. It acts as an administrator.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::{ConfigMap, Secret};
    ///
    /// struct Secrets;
    ///
    /// impl Reconcile for Secrets {
    ///     type Kind = ConfigMap;
    ///     async fn reconcile(&self, cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    ///         let mut secret = Secret { string_data: map.data.clone(), ..Secret::default() };
    ///         secret.metadata.name = map.metadata.name.clone();
    ///         cx.apply(&map, &secret).await?;
    ///         Ok(Action::await_change())
    ///     }
    /// }
    ///
    /// let controller = Controller::<ConfigMap>::new().owns::<Secret>();
    /// let cluster = hyperkube::Cluster::builder().controller(controller, Secrets);
    /// ```
    pub fn controller<R: Reconcile>(mut self, controller: Controller<R::Kind>, reconcile: R) -> Self {
        self.extensions.controllers.push(Runnable::controller(controller, reconcile));
        self
    }

    /// Adds a provisioner of volumes. It acts as an administrator; its storage classes are made by its users.
    ///
    /// ```
    /// use k8s_builtin::provisioner::LocalPath;
    /// let cluster = hyperkube::Cluster::builder().provisioner(LocalPath);
    /// ```
    pub fn provisioner(mut self, driver: impl Provisioner) -> Self {
        self.extensions.controllers.extend(provisioner::runnables(driver));
        self
    }

    /// Selects the built-in controllers. The command line's `--controllers` takes precedence. Default: all.
    ///
    /// ```
    /// let cluster = hyperkube::Cluster::builder().controllers(k8s_builtin::all().without("cronjob"));
    /// ```
    pub fn controllers(mut self, selection: Selection) -> Self {
        self.extensions.selection = Some(selection);
        self
    }

    /// Adds a plugin to the scheduler, beside the built-in ones.
    ///
    /// ```
    /// use k8s_scheduler::{Cycle, NodeInfo, PodInfo, Score, ScoreExt};
    ///
    /// struct SameRackAsData;
    ///
    /// impl Score for SameRackAsData {
    ///     fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
    ///         if node.label("rack") == pod.annotation("data-rack") { 100 } else { 0 }
    ///     }
    /// }
    ///
    /// let cluster = hyperkube::Cluster::builder().scheduler_plugin(SameRackAsData.weight(5));
    /// ```
    pub fn scheduler_plugin(mut self, plugin: impl Plugin) -> Self {
        self.extensions.scheduler = self.extensions.scheduler.plugin(plugin);
        self
    }

    /// Sets the container runtime of the node on this machine. The node then requires neither root nor
    /// images, and its pod network is the runtime's. Default: the embedded OCI runtime.
    ///
    /// ```
    /// use k8s_runtime::simulated::Simulated;
    /// let cluster = hyperkube::Cluster::builder().runtime(Simulated::default());
    /// ```
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.extensions.runtime = Some(Arc::new(runtime));
        self
    }
}
