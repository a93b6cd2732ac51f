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

use crate::extensions::Builder;

/// A program, by its name.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub(crate) name: &'static str,
}

/// Builder of a custom distribution's `main`.
pub type Distribution = Builder<Program>;

/// Returns the builder of a distribution with this name.
pub fn distribution(name: &'static str) -> Distribution {
    Builder::new(Program { name })
}

impl Distribution {
    /// Runs the command line. Must be called before any thread is started.
    #[must_use]
    pub fn main(self) -> ExitCode {
        k8s_runtime::embedded::run_if_zygote();
        crate::commands::run_as(self.base.name, std::env::args_os().collect(), self.extensions)
    }
}
