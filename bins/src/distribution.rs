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

use std::{ffi::OsString, process::ExitCode};

use crate::{extensions::Builder, program::Program};

/// Builder of a custom distribution's `main`.
pub type Distribution = Builder<Program>;

/// Returns the builder of a distribution. Its name is the context of its kubeconfig, the default data
/// directory `/var/lib/NAME`, the directory `/run/NAME`, the prefix of its environment variables
/// (`NAME_DATA_DIR`) and of its control groups, and the name in its messages. So two distributions can run
/// side by side. 1 to 32 lower-case letters, digits or `-`.
pub fn distribution(name: &'static str) -> Distribution {
    Builder::new(Program { name, when_idle: None })
}

impl Distribution {
    /// Sets a function that idle threads of the async runtime call every few seconds, such as one that
    /// returns allocator memory to the system. Default: none.
    ///
    /// ```
    /// let program = hyperkube::distribution("shopkube").when_idle(|| { /* return memory to the system */ });
    /// ```
    pub fn when_idle(mut self, work: fn()) -> Self {
        self.base.when_idle = Some(work);
        self
    }

    /// Runs the command line. Must be called before any thread is started. The program's signals, limits
    /// (open files, no core dumps) and log are set up here, never by a [`Cluster`](crate::Cluster).
    ///
    /// ```no_run
    /// fn main() -> std::process::ExitCode {
    ///     hyperkube::distribution("shopkube").main()
    /// }
    /// ```
    #[must_use]
    pub fn main(self) -> ExitCode {
        k8s_runtime::embedded::run_if_zygote();
        k8s_net::dns::run_if_holder();
        crate::commands::run(self.base, std::env::args_os().collect(), self.extensions)
    }

    /// Runs a component as a program of its own: as [`Distribution::main`] with the component's name before
    /// the arguments.
    ///
    /// ```no_run
    /// fn main() -> std::process::ExitCode {
    ///     // A program `shop-scheduler` with the flags of `shopkube kube-scheduler`.
    ///     hyperkube::distribution("shopkube").component_main("kube-scheduler")
    /// }
    /// ```
    #[must_use]
    pub fn component_main(self, component: &str) -> ExitCode {
        k8s_runtime::embedded::run_if_zygote();
        k8s_net::dns::run_if_holder();
        let mut args: Vec<OsString> = vec![self.base.name.into(), component.into()];
        args.extend(std::env::args_os().skip(1));
        crate::commands::run(self.base, args, self.extensions)
    }
}
