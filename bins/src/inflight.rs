//! Flags that bound requests over sockets.

use std::time::Duration;

use k8s_apiserver::limits::Limits;

use crate::control_plane::limits;

/// Bounds of the number and the time of requests.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InflightSettings {
    /// Maximum number of concurrent read-only requests; 0 means unlimited. With priority and fairness,
    /// its sum with --max-mutating-requests-inflight is the number of seats that priority levels share.
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: usize,
    /// Maximum number of concurrent mutating requests; 0 means unlimited.
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: usize,
    /// Classify and queue requests by FlowSchemas and PriorityLevelConfigurations. It is off as well
    /// while both limits above are 0.
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    enable_priority_and_fairness: bool,
    /// Timeout of a request (`60s`, `1m`); 0 means none. Watches and other long-running requests are exempt.
    #[arg(long, default_value = "60s", value_parser = crate::duration::parse)]
    request_timeout: Duration,
}

impl InflightSettings {
    /// Returns the API's limits with these settings.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = limits();
        limits.requests = self.max_requests_inflight;
        limits.mutating = self.max_mutating_requests_inflight;
        limits.fairness = self.enable_priority_and_fairness;
        limits.request_timeout = self.request_timeout;
        limits
    }
}
