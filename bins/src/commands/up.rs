//! `hyperkube up` and `hyperkube server`: a cluster in the foreground.

#![expect(clippy::disallowed_methods, reason = "the time that a start took is printed in real seconds")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use k8s_core::client::Kubeconfig;

use super::{config::ConfigFile, exit::Failure, or_at_once, scheduling::SchedulerConfig, stop_signal};
use crate::{
    Eviction, Node,
    cluster::ClusterConfig,
    error::ClusterError,
    eviction::EvictionFlags,
    extensions::{Builder, Extensions},
    pki::refresh_private,
    settings::ClusterSettings,
    simulated::SimulatedConfig,
    user_kubeconfig::UserKubeconfig,
};

/// Flags of `up` and `server`.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    _config: ConfigFile,
    #[command(flatten)]
    cluster: ClusterSettings,
    #[command(flatten)]
    scheduler: SchedulerConfig,
    /// Also write the administrator's kubeconfig to this path.
    #[arg(long)]
    write_kubeconfig: Option<PathBuf>,
    /// Do not add a context `hyperkube` to ~/.kube/config.
    #[arg(long)]
    no_kubeconfig_merge: bool,
    /// Make `hyperkube` the current context in ~/.kube/config, even if another one is.
    #[arg(long)]
    kubeconfig_current: bool,
}

/// Run a whole cluster on this machine, in the foreground.
#[derive(Debug, clap::Args)]
pub(super) struct Up {
    #[command(flatten)]
    common: Common,
    /// Name of the node (default: the host name).
    #[arg(long)]
    node_name: Option<String>,
    /// Port of the kubelet's API on the node's address, for clients with a certificate or a token of the
    /// cluster (metrics-server); 0 disables it. Simulated nodes have none.
    #[arg(long, default_value_t = 10250)]
    kubelet_port: u16,
    #[command(flatten)]
    eviction: EvictionFlags,
    /// Number of simulated nodes to run instead of this machine; does not require root.
    #[arg(long)]
    simulated_nodes: Option<usize>,
    /// Duration of the start of simulated containers (`2s`, `500ms`). The pod annotations
    /// k8s-testing/start-after, k8s-testing/exit-code and k8s-testing/run-for choose for single pods.
    #[arg(long, default_value = "0s", value_parser = crate::duration::parse)]
    simulated_start_delay: Duration,
    /// Interval in which each simulated node renews its lease, 1s to 10m. With thousands of nodes a longer
    /// one saves CPU time; a node counts as failed after five of them, and at least 50s.
    #[arg(long, default_value = "10s", value_parser = crate::simulated::heartbeat)]
    simulated_heartbeat_interval: Duration,
}

/// Run a control plane without a node, in the foreground.
#[derive(Debug, clap::Args)]
pub(super) struct Server {
    #[command(flatten)]
    common: Common,
}

impl Up {
    pub(super) async fn run(self, name: &str, extensions: Extensions) -> Result<(), Failure> {
        let node = self.simulated_nodes.map_or(Node::Local, Node::Simulated);
        if self.simulated_nodes.is_some() {
            self.eviction.refuse()?;
        }
        let nodes = Nodes {
            node,
            name: self.node_name,
            kubelet_port: self.kubelet_port,
            eviction: self.eviction.shared_machine()?,
            simulated: SimulatedConfig {
                start_delay: self.simulated_start_delay,
                heartbeat: self.simulated_heartbeat_interval,
            },
        };
        self.common.run(name, nodes, extensions).await
    }
}

impl Server {
    pub(super) async fn run(self, name: &str, extensions: Extensions) -> Result<(), Failure> {
        let nodes = Nodes {
            node: Node::None,
            name: None,
            kubelet_port: 0,
            eviction: Eviction::none(),
            simulated: SimulatedConfig::default(),
        };
        self.common.run(name, nodes, extensions).await
    }
}

/// The nodes of the process, as the flags say.
struct Nodes {
    node: Node,
    name: Option<String>,
    kubelet_port: u16,
    eviction: Eviction,
    simulated: SimulatedConfig,
}

impl Common {
    async fn run(self, name: &str, nodes: Nodes, mut extensions: Extensions) -> Result<(), Failure> {
        extensions.scheduler = self.scheduler.apply(extensions.scheduler)?;
        let started = Instant::now();
        let base = ClusterConfig {
            name: name.to_owned(),
            settings: self.cluster,
            node: nodes.node,
            node_name: nodes.name,
            kubelet_port: nodes.kubelet_port,
            eviction: nodes.eviction,
            listens: true,
            memory: false,
            simulated: nodes.simulated,
        };
        let name = base.name.clone();
        let simulated = matches!(base.node, Node::Simulated(_));
        let mut cluster = Builder { base, extensions }.start().await?;
        let took = |what: &str| println!("{:>7.3} s  {what}", started.elapsed().as_secs_f64());
        took(&format!(
            "API server ready on {}",
            cluster.address().map(|a| a.to_string()).unwrap_or_default()
        ));
        let config = cluster.admin_kubeconfig()?;
        let path = cluster.paths().kubeconfig();
        let written: Vec<PathBuf> = std::iter::once(path.clone()).chain(self.write_kubeconfig).collect();
        write(&written, &config)?;
        let merges = !self.no_kubeconfig_merge;
        if merges && let Some(told) = merge(config, self.kubeconfig_current) {
            took(&told);
        }
        let kubeconfigs = cluster.kubeconfigs();
        cluster.renewals().add("kubeconfigs", move || {
            let config = kubeconfigs.admin()?;
            write(&written, &config)?;
            if merges && let Some(told) = merge(config, false) {
                tracing::info!("{told}");
            }
            Ok(())
        });
        let run = async {
            cluster.ready(Duration::from_secs(60)).await?;
            if let Some(told) = told(&cluster.nodes()) {
                took(&told);
            }
            println!("kubectl --kubeconfig {} get nodes", path.display());
            Ok::<(), Failure>(cluster.ended().await?)
        };
        let result = tokio::select! {
            result = run => result,
            () = stop_signal() => Ok(()),
        };
        if simulated {
            println!("stopping; objects stay ({name} reset removes them)");
        } else {
            println!("stopping; containers keep running ({name} reset removes them)");
        }
        or_at_once(cluster.shutdown()).await;
        result
    }
}

/// Returns the line about nodes that are ready: names of a few, else first and last.
fn told(nodes: &[&str]) -> Option<String> {
    match nodes {
        [] => None,
        [first, .., last] if nodes.len() > 3 => {
            Some(format!("{} nodes ready ({first} to {last})", nodes.len()))
        }
        few => Some(format!("node {} ready", few.join(", "))),
    }
}

/// Writes the administrator's kubeconfig.
fn write(files: &[PathBuf], config: &Kubeconfig) -> Result<(), ClusterError> {
    for path in files {
        refresh_private(path, config.to_yaml().as_bytes())
            .map_err(ClusterError::io(format!("write {}", path.display())))?;
    }
    Ok(())
}

/// Adds the context to the user's kubeconfig and returns a message about it. A kubeconfig that cannot be
/// changed never stops the cluster.
fn merge(config: Kubeconfig, take_current: bool) -> Option<String> {
    let name = config.current_context.clone();
    match UserKubeconfig::find()?.merge(config, take_current) {
        Ok(merged) => {
            let mut told = format!("context {name:?} merged into {}", merged.path.display());
            if merged.current != name {
                told += &format!(
                    "; the current context stays {:?} (kubectl config use-context {name}, or start with --kubeconfig-current)",
                    merged.current
                );
            }
            if merged.rewritten {
                told += "; its layout could not be edited in place, so comments in it are gone";
            }
            Some(told)
        }
        Err(e) => Some(format!("kubeconfig not merged (--no-kubeconfig-merge leaves it alone): {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_nodes_are_one_line() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["a", "b"]).as_deref(), Some("node a, b ready"));
        assert_eq!(told(&["n-0", "n-1", "n-2", "n-3"]).as_deref(), Some("4 nodes ready (n-0 to n-3)"));
    }
}
