//! Extensions of a cluster: admission, resources, controllers, a runtime.

use std::sync::Arc;

use k8s_apiserver::admission::IntoAdmit;
use k8s_builtin::Selection;
use k8s_controllers::{Controller, Manager, Reconcile};
use k8s_core::custom::CustomResource;
use k8s_runtime::Runtime;

type Shape = Arc<dyn Fn(k8s_apiserver::Builder) -> k8s_apiserver::Builder + Send + Sync>;
type Add = Arc<dyn Fn(Manager) -> Manager + Send + Sync>;

/// Extensions of a cluster's control plane and node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Extras {
    shapes: Vec<Shape>,
    controllers: Vec<Add>,
    selection: Option<Selection>,
    pub(crate) runtime: Option<Arc<dyn Runtime>>,
}

impl std::fmt::Debug for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extras").field("selection", &self.selection).finish_non_exhaustive()
    }
}

impl Extras {
    /// Adds an admission function, as [`k8s_apiserver::Builder::admit`].
    #[must_use]
    pub fn admit<M>(mut self, admit: impl IntoAdmit<M>) -> Self {
        let admit = admit.into_admit();
        self.shapes.push(Arc::new(move |server| server.admit_shared(admit.clone())));
        self
    }

    /// Serves a custom resource that is defined by a Rust type.
    #[must_use]
    pub fn resource<T: CustomResource>(mut self) -> Self {
        self.shapes.push(Arc::new(|server| server.resource::<T>()));
        self
    }

    /// Adds a controller. Each start of the control plane clones the reconciler.
    #[must_use]
    pub fn controller<R: Reconcile + Clone>(mut self, controller: Controller<R::Kind>, reconcile: R) -> Self {
        self.controllers
            .push(Arc::new(move |manager| manager.controller(controller.clone(), reconcile.clone())));
        self
    }

    /// Sets the container runtime of the node on this machine. The node then requires neither root nor
    /// images, and its pod network is the runtime's.
    #[must_use]
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.runtime = Some(Arc::new(runtime));
        self
    }

    /// Selects built-in controllers. The command line takes precedence.
    #[must_use]
    pub fn controllers(mut self, selection: Selection) -> Self {
        self.selection = Some(selection);
        self
    }

    pub(crate) fn shape(&self, server: k8s_apiserver::Builder) -> k8s_apiserver::Builder {
        self.shapes.iter().fold(server, |server, shape| shape(server))
    }

    pub(crate) fn manage(&self, manager: Manager) -> Manager {
        self.controllers.iter().fold(manager, |manager, add| add(manager))
    }

    /// Returns the selection of the command line, unless that is the default "all" and the program chose
    /// another.
    pub(crate) fn select(&self, named: Selection, names: &[String]) -> Selection {
        match &self.selection {
            Some(chosen) if names.len() == 1 && names[0] == "*" => chosen.clone(),
            _ => named,
        }
    }
}
