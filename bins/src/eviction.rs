//! Flags of eviction, with upstream's names.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use k8s_kubelet::{Eviction, EvictionSettings};

use crate::error::ClusterError;

/// Most bytes of a disk that the node of [`Cluster`](crate::Cluster) keeps free by default. Upstream's shares
/// alone would evict every pod on a developer's machine with 40 GB free on a disk of 512 GB.
const DISK_CAP: i64 = 1 << 30;

/// Thresholds of eviction.
#[derive(Clone, Debug, Args)]
pub(crate) struct EvictionFlags {
    /// Thresholds at which pods are evicted at once (`memory.available<100Mi,nodefs.available<10%`). Empty:
    /// none.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    eviction_hard: Option<Vec<String>>,
    /// Thresholds at which pods are evicted after a grace period (`memory.available<1Gi`).
    #[arg(long, value_delimiter = ',', num_args = 1)]
    eviction_soft: Vec<String>,
    /// Grace periods of the soft thresholds (`memory.available=1m30s`).
    #[arg(long, value_delimiter = ',', num_args = 1)]
    eviction_soft_grace_period: Vec<String>,
    /// Amounts that are freed beyond a threshold once it is met (`nodefs.available=500Mi`).
    #[arg(long, value_delimiter = ',', num_args = 1)]
    eviction_minimum_reclaim: Vec<String>,
    /// Maximum grace period, seconds, of pods that are evicted for a soft threshold.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    eviction_max_pod_grace_period: i32,
    /// Time for which a pressure condition stays after its threshold was met.
    #[arg(long, default_value = "5m", value_parser = crate::duration::parse)]
    eviction_pressure_transition_period: Duration,
}

/// Parses pairs with a separator. Later ones take the place of earlier ones.
fn pairs(setting: &str, texts: &[String], separator: char) -> Result<BTreeMap<String, String>, ClusterError> {
    let pair = |text: &String| match text.split_once(separator) {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => {
            let reason = format!("malformed pair, expect string{separator}string: {text:?}");
            Err(ClusterError::invalid(setting, reason))
        }
    };
    texts.iter().filter(|text| !text.is_empty()).map(pair).collect()
}

/// Parses a grace period.
fn period(text: &str) -> Result<Duration, ClusterError> {
    let setting = "--eviction-soft-grace-period";
    if text.starts_with('-') {
        let reason = format!("invalid eviction grace period specified: {text}, must be a positive value");
        return Err(ClusterError::invalid(setting, reason));
    }
    crate::duration::parse(text).map_err(|reason| ClusterError::invalid(setting, reason))
}

impl EvictionFlags {
    /// Refuses thresholds of a node that evicts no pods.
    ///
    /// # Errors
    /// A threshold is set.
    pub(crate) fn refuse(&self) -> Result<(), ClusterError> {
        let lists = [&self.eviction_soft, &self.eviction_soft_grace_period, &self.eviction_minimum_reclaim];
        if self.eviction_hard.is_none() && lists.iter().all(|list| list.is_empty()) {
            return Ok(());
        }
        let reason = "simulated nodes evict no pods: leave the thresholds out";
        Err(ClusterError::invalid("--eviction-hard", reason))
    }

    /// Parses the thresholds of the component `kubelet`, whose defaults are upstream's.
    ///
    /// # Errors
    /// A flag is invalid.
    pub(crate) fn upstream(&self) -> Result<Eviction, ClusterError> {
        self.eviction(None)
    }

    /// Parses the thresholds of a whole cluster's node. The default is upstream's with at most 1 GiB of each
    /// disk.
    ///
    /// # Errors
    /// A flag is invalid.
    pub(crate) fn shared_machine(&self) -> Result<Eviction, ClusterError> {
        self.eviction(Some(DISK_CAP))
    }

    fn eviction(&self, default_disk_cap: Option<i64>) -> Result<Eviction, ClusterError> {
        let hard = self.eviction_hard.as_ref();
        let periods = pairs("--eviction-soft-grace-period", &self.eviction_soft_grace_period, '=')?;
        let periods = periods.into_iter().map(|(signal, text)| Ok((signal, period(&text)?)));
        let settings = EvictionSettings {
            hard: hard.map(|texts| pairs("--eviction-hard", texts, '<')).transpose()?,
            default_disk_cap,
            soft: pairs("--eviction-soft", &self.eviction_soft, '<')?,
            soft_grace_period: periods.collect::<Result<_, ClusterError>>()?,
            minimum_reclaim: pairs("--eviction-minimum-reclaim", &self.eviction_minimum_reclaim, '=')?,
            max_pod_grace_period: self.eviction_max_pod_grace_period,
            pressure_transition_period: self.eviction_pressure_transition_period,
        };
        Eviction::new(&settings).map_err(|e| ClusterError::invalid(format!("--{}", e.setting()), e.message()))
    }
}

/// Returns the default thresholds of a whole cluster's node.
pub(crate) fn default() -> Eviction {
    let settings = EvictionSettings { default_disk_cap: Some(DISK_CAP), ..EvictionSettings::default() };
    Eviction::new(&settings).expect("the defaults are valid")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        eviction: EvictionFlags,
    }

    fn parsed(args: &[&str]) -> Result<Eviction, String> {
        let line = Line::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
        line.eviction.upstream().map_err(|e| e.to_string())
    }

    #[test]
    fn flags_are_upstreams() {
        assert_eq!(parsed(&[]), Ok(Eviction::default()));
        assert_eq!(parsed(&["--eviction-hard="]), Ok(Eviction::none()));
        assert_eq!(parsed(&["--eviction-hard", "nodefs.available<0%"]), Ok(Eviction::none()));
        let settings = EvictionSettings {
            hard: Some(
                [("memory.available".into(), "1Gi".into()), ("pid.available".into(), "5%".into())].into(),
            ),
            soft: [("nodefs.available".into(), "20%".into())].into(),
            soft_grace_period: [("nodefs.available".into(), Duration::from_secs(90))].into(),
            minimum_reclaim: [("nodefs.available".into(), "500Mi".into())].into(),
            max_pod_grace_period: 30,
            pressure_transition_period: Duration::from_secs(60),
            ..EvictionSettings::default()
        };
        let all = [
            "--eviction-hard=memory.available<2Gi,pid.available < 5%",
            "--eviction-hard",
            "memory.available<1Gi",
            "--eviction-soft=nodefs.available<20%",
            "--eviction-soft-grace-period=nodefs.available=1m30s",
            "--eviction-minimum-reclaim=nodefs.available=500Mi",
            "--eviction-max-pod-grace-period=30",
            "--eviction-pressure-transition-period=1m0s",
        ];
        assert_eq!(parsed(&all), Ok(Eviction::new(&settings).unwrap()));
        assert_ne!(default(), Eviction::default());
    }

    #[test]
    fn simulated_nodes_have_no_thresholds() {
        let refused = |args: &[&str]| {
            let line = Line::try_parse_from([&["x"], args].concat()).unwrap();
            line.eviction.refuse().is_err()
        };
        assert!(!refused(&[]));
        for flag in ["--eviction-hard=", "--eviction-soft=a<1", "--eviction-minimum-reclaim=a=1"] {
            assert!(refused(&[flag]), "{flag}");
        }
    }

    #[test]
    fn bad_values_are_refused_with_the_flag() {
        for (args, want) in [
            (
                &["--eviction-hard=memory"][..],
                "--eviction-hard: malformed pair, expect string<string: \"memory\"",
            ),
            (&["--eviction-hard=memory<1Gi"], "--eviction-hard: unsupported eviction signal memory"),
            (
                &["--eviction-soft=memory.available<1Gi"],
                "--eviction-soft: grace period must be specified for the soft eviction threshold memory.available",
            ),
            (
                &["--eviction-soft-grace-period=memory.available=-1s"],
                "--eviction-soft-grace-period: invalid eviction grace period specified: -1s, must be a positive value",
            ),
            (
                &["--eviction-soft-grace-period=memory.available=soon"],
                "--eviction-soft-grace-period: \"soon\" is no duration such as 60s or 1m",
            ),
            (
                &["--eviction-minimum-reclaim=memory.available<1Gi"],
                "--eviction-minimum-reclaim: malformed pair, expect string=string: \"memory.available<1Gi\"",
            ),
        ] {
            assert_eq!(parsed(args).unwrap_err(), want, "{args:?}");
        }
        assert!(parsed(&["--eviction-max-pod-grace-period=many"]).is_err());
        assert!(parsed(&["--eviction-pressure-transition-period=5"]).is_err());
    }
}
