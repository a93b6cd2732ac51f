//! Custom distributions: the `hyperkube` command line with extensions.
//!
//! ```no_run
//! use k8s_apiserver::admission::Request;
//! use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};
//!
//! fn main() -> std::process::ExitCode {
//!     hyperkube::distribution("shopkube")
//!         .admit(|r: &mut Request<Pod>| r.object.set_label("team", r.user.group_or("shared")))
//!         .main()
//! }
//! ```

use std::process::ExitCode;

use k8s_apiserver::admission::IntoAdmit;
use k8s_builtin::Selection;
use k8s_controllers::{Controller, Reconcile};
use k8s_core::custom::CustomResource;
use k8s_runtime::Runtime;

use crate::Extras;

/// Builder of a custom distribution's `main`.
#[derive(Debug)]
#[must_use]
pub struct Distribution {
    name: &'static str,
    extras: Extras,
}

/// Returns the builder of a distribution with this name.
pub fn distribution(name: &'static str) -> Distribution {
    Distribution { name, extras: Extras::default() }
}

impl Distribution {
    /// Adds an admission function: see [`Extras::admit`].
    pub fn admit<M>(mut self, admit: impl IntoAdmit<M>) -> Self {
        self.extras = self.extras.admit(admit);
        self
    }

    /// Serves a custom resource: see [`Extras::resource`].
    pub fn resource<T: CustomResource>(mut self) -> Self {
        self.extras = self.extras.resource::<T>();
        self
    }

    /// Adds a controller: see [`Extras::controller`].
    pub fn controller<R: Reconcile + Clone>(mut self, controller: Controller<R::Kind>, reconcile: R) -> Self {
        self.extras = self.extras.controller(controller, reconcile);
        self
    }

    /// Sets the container runtime: see [`Extras::runtime`].
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.extras = self.extras.runtime(runtime);
        self
    }

    /// Selects built-in controllers: see [`Extras::controllers`].
    pub fn controllers(mut self, selection: Selection) -> Self {
        self.extras = self.extras.controllers(selection);
        self
    }

    /// Runs the command line. Must be called before any thread is started.
    #[must_use]
    pub fn main(self) -> ExitCode {
        k8s_runtime::embedded::run_if_zygote();
        crate::commands::run_as(self.name, std::env::args_os().collect(), &self.extras)
    }
}
