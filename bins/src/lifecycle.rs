//! Start and end of an API server: flags of profiles and of the shutdown, with upstream's names.

use std::time::Duration;

use clap::{ArgAction, Args, Command, FromArgMatches};
use k8s_apiserver::limits::Limits;

/// Settings of the shutdown, and of what a running server tells of itself.
#[derive(Clone, Debug, Args)]
pub(crate) struct LifecycleSettings {
    /// Time for which the API is served as before after the signal to stop, while /readyz fails, so that load
    /// balancers take this server out.
    #[arg(long, default_value = "0s", value_parser = crate::duration::parse)]
    pub(crate) shutdown_delay_duration: Duration,
    /// After that time, answer new requests with 429 and Retry-After until those in flight have ended,
    /// instead of accepting no connection.
    #[arg(long)]
    pub(crate) shutdown_send_retry_after: bool,
    /// Serve /debug/pprof to those who may read it; there are no profiles, only the command line.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    pub(crate) profiling: bool,
}

impl Default for LifecycleSettings {
    fn default() -> Self {
        let matches = Self::augment_args(Command::new("defaults")).get_matches_from(["defaults"]);
        Self::from_arg_matches(&matches).expect("every setting has a default")
    }
}

impl LifecycleSettings {
    /// Adds the settings to a server's limits.
    pub(crate) fn limits(&self, mut limits: Limits) -> Limits {
        limits.retry_after_on_shutdown = self.shutdown_send_retry_after;
        limits
    }
}
