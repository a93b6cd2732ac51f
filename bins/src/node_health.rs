//! Flags of the node controllers, with upstream's names.

use std::time::Duration;

use clap::Args;
use k8s_builtin::Options;

/// When a node counts as failed, how fast pods leave failed nodes, and which pods are collected.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeHealthFlags {
    /// Interval at which the ready nodes of each zone are counted.
    #[arg(long, default_value = "5s", value_parser = crate::duration::parse)]
    node_monitor_period: Duration,
    /// Time without heartbeat after which a node's conditions become Unknown.
    #[arg(long, default_value = "50s", value_parser = crate::duration::parse)]
    node_monitor_grace_period: Duration,
    /// The same for a node that has never reported its status.
    #[arg(long, default_value = "1m", value_parser = crate::duration::parse)]
    node_startup_grace_period: Duration,
    /// Nodes per second and zone that get a NoExecute taint when they are not ready.
    #[arg(long, default_value_t = 0.1, value_parser = rate)]
    node_eviction_rate: f64,
    /// The same in a large zone with many nodes that are not ready. In a small one no node gets it.
    #[arg(long, default_value_t = 0.01, value_parser = rate)]
    secondary_node_eviction_rate: f64,
    /// Number of nodes above which a zone is large.
    #[arg(long, default_value_t = 50)]
    large_cluster_size_threshold: usize,
    /// Part of a zone's nodes (at least three) that are many when they are not ready: 0 to 1.
    #[arg(long, default_value_t = 0.55, value_parser = part)]
    unhealthy_zone_threshold: f64,
    /// Number of terminated pods that are kept; 0 keeps all.
    #[arg(long, default_value_t = 12_500)]
    terminated_pod_gc_threshold: usize,
}

/// Parses a number of nodes per second.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| format!("{text:?} is no number of nodes per second such as 0.1"))
}

/// Parses a part of a whole.
fn part(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part: &f64| (0.0..=1.0).contains(part));
    part.ok_or_else(|| format!("{text:?} is no part from 0 to 1 such as 0.55"))
}

impl NodeHealthFlags {
    /// Sets the options of the built-in controllers.
    pub(crate) fn apply(&self, options: &mut Options) {
        options.node_monitor_period = self.node_monitor_period;
        options.node_monitor_grace = self.node_monitor_grace_period;
        options.node_startup_grace = self.node_startup_grace_period;
        options.node_eviction_rate = self.node_eviction_rate;
        options.secondary_node_eviction_rate = self.secondary_node_eviction_rate;
        options.large_cluster_size_threshold = self.large_cluster_size_threshold;
        options.unhealthy_zone_threshold = self.unhealthy_zone_threshold;
        options.terminated_pod_threshold = self.terminated_pod_gc_threshold;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: NodeHealthFlags,
    }

    fn parse(args: &[&str]) -> Result<Options, String> {
        let line = Line::try_parse_from([&["test"], args].concat()).map_err(|e| e.to_string())?;
        let mut options = Options::default();
        line.flags.apply(&mut options);
        Ok(options)
    }

    #[test]
    fn defaults_are_those_of_the_controllers() {
        let (read, own) = (parse(&[]).unwrap(), Options::default());
        assert_eq!(format!("{read:?}"), format!("{own:?}"));
    }

    #[test]
    fn each_flag_reaches_its_option() {
        let args =
            ["--node-monitor-grace-period=7s", "--node-eviction-rate=2", "--unhealthy-zone-threshold=1"];
        let read = parse(&args).unwrap();
        assert_eq!((read.node_monitor_grace, read.node_eviction_rate), (Duration::from_secs(7), 2.0));
        assert_eq!((read.unhealthy_zone_threshold, read.terminated_pod_threshold), (1.0, 12_500));
        assert!(parse(&["--node-eviction-rate=-1"]).unwrap_err().contains("no number of nodes per second"));
        assert!(parse(&["--unhealthy-zone-threshold=55"]).unwrap_err().contains("no part from 0 to 1"));
    }
}
