//! Flags of the horizontal autoscaler, with upstream's names.

use std::time::Duration;

use clap::Args;
use k8s_builtin::Autoscaling;

/// When and how far Deployments and others are scaled.
#[derive(Clone, Debug, Args)]
pub(crate) struct AutoscalingFlags {
    /// Interval at which autoscalers are looked at.
    #[arg(long, default_value = "15s", value_parser = period)]
    horizontal_pod_autoscaler_sync_period: Duration,
    /// Time for which the largest recommendation holds before the number of pods is reduced.
    #[arg(long, default_value = "5m", value_parser = crate::duration::parse)]
    horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// Part by which use may differ from its target without a change.
    #[arg(long, default_value_t = 0.1, value_parser = tolerance)]
    horizontal_pod_autoscaler_tolerance: f64,
    /// Time after a pod's start in which its CPU counts only while it is ready.
    #[arg(long, default_value = "5m", value_parser = crate::duration::parse)]
    horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// Time after a pod's start in which a change to ready is its first.
    #[arg(long, default_value = "30s", value_parser = crate::duration::parse)]
    horizontal_pod_autoscaler_initial_readiness_delay: Duration,
}

/// Parses an interval; it is longer than nothing.
fn period(text: &str) -> Result<Duration, String> {
    let period = crate::duration::parse(text)?;
    if period.is_zero() { Err("it must be longer than 0".to_owned()) } else { Ok(period) }
}

fn tolerance(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part: &f64| part.is_finite() && *part >= 0.0);
    part.ok_or_else(|| format!("{text:?} is no part such as 0.1"))
}

impl AutoscalingFlags {
    /// Returns the options of the controller.
    pub(crate) fn options(&self) -> Autoscaling {
        Autoscaling {
            sync_period: self.horizontal_pod_autoscaler_sync_period,
            downscale_stabilization: self.horizontal_pod_autoscaler_downscale_stabilization,
            tolerance: self.horizontal_pod_autoscaler_tolerance,
            cpu_initialization_period: self.horizontal_pod_autoscaler_cpu_initialization_period,
            initial_readiness_delay: self.horizontal_pod_autoscaler_initial_readiness_delay,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Autoscaling, String> {
        let all = ["x"].iter().chain(arguments);
        let matches = AutoscalingFlags::augment_args(Command::new("x")).try_get_matches_from(all);
        let flags = AutoscalingFlags::from_arg_matches(&matches.map_err(|e| e.to_string())?);
        Ok(flags.map_err(|e| e.to_string())?.options())
    }

    #[test]
    fn flags_have_upstreams_defaults_and_refuse_nonsense() {
        assert_eq!(parse(&[]), Ok(Autoscaling::default()));
        let short = parse(&["--horizontal-pod-autoscaler-sync-period", "2s"]).unwrap();
        assert_eq!(short.sync_period, Duration::from_secs(2));
        for (flag, value) in [("sync-period", "0s"), ("tolerance", "-1"), ("tolerance", "NaN")] {
            let argument = format!("--horizontal-pod-autoscaler-{flag}={value}");
            assert!(parse(&[&argument]).is_err_and(|e| e.contains(flag)), "{argument}");
        }
    }
}
