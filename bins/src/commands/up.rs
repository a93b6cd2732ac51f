//! `hyperkube up` and `hyperkube server`: a cluster in the foreground.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use k8s_core::client::Kubeconfig;

use super::{DataDir, told_to_stop};
use crate::{
    Cluster, Node, exit::Failure, extensions::Extensions, pki::refresh_private, ranges,
    user_kubeconfig::UserKubeconfig,
};

/// Flags of `up` and `server`.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    data: DataDir,
    /// Listen address of the API.
    #[arg(long, env = "HYPERKUBE_BIND_ADDRESS", default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Listen port of the API; 0 picks a free one.
    #[arg(long, env = "HYPERKUBE_HTTPS_LISTEN_PORT", default_value_t = 6443)]
    https_listen_port: u16,
    /// Address at which pods and other nodes reach this machine (default: detected).
    #[arg(long, env = "HYPERKUBE_ADVERTISE_ADDRESS")]
    advertise_address: Option<IpAddr>,
    /// Pod CIDR of the cluster.
    #[arg(long, env = "HYPERKUBE_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_parser = ranges::parse)]
    cluster_cidr: Ipv4Net,
    /// Service CIDR.
    #[arg(long, env = "HYPERKUBE_SERVICE_CIDR", default_value = "10.43.0.0/16", value_parser = ranges::parse)]
    service_cidr: Ipv4Net,
    /// Cluster DNS address (default: the tenth of the service CIDR).
    #[arg(long, env = "HYPERKUBE_CLUSTER_DNS")]
    cluster_dns: Option<Ipv4Addr>,
    /// Cluster domain.
    #[arg(long, env = "HYPERKUBE_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Additional name or address (SAN) for the server certificate.
    #[arg(long)]
    tls_san: Vec<String>,
    /// Built-in controllers: `*` for all, `-name` to exclude one.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    controllers: Vec<String>,
    /// If the state file is empty or of another program, move it aside, start with an empty one and remove
    /// the containers of its pods.
    #[arg(long)]
    forget_state: bool,
    /// Also write the administrator's kubeconfig to this path.
    #[arg(long, env = "HYPERKUBE_WRITE_KUBECONFIG")]
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
    #[arg(long, env = "HYPERKUBE_NODE_NAME")]
    node_name: Option<String>,
    /// Number of simulated nodes to run instead of this machine; does not require root.
    #[arg(long)]
    simulated_nodes: Option<usize>,
}

/// Run a control plane without a node, in the foreground.
#[derive(Debug, clap::Args)]
pub(super) struct Server {
    #[command(flatten)]
    common: Common,
}

impl Up {
    pub(super) async fn run(self, extensions: Extensions) -> Result<(), Failure> {
        let node = self.simulated_nodes.map_or(Node::Local, Node::Simulated);
        self.common.run(node, self.node_name, extensions).await
    }
}

impl Server {
    pub(super) async fn run(self, extensions: Extensions) -> Result<(), Failure> {
        self.common.run(Node::None, None, extensions).await
    }
}

impl Common {
    async fn run(self, node: Node, node_name: Option<String>, extensions: Extensions) -> Result<(), Failure> {
        let started = Instant::now();
        let mut builder = Cluster::builder()
            .data_dir(&self.data.data_dir)
            .node(node)
            .listen(SocketAddr::new(self.bind_address, self.https_listen_port))
            .pods(self.cluster_cidr)
            .services(self.service_cidr)
            .domain(&self.cluster_domain)
            .tls_names(&self.tls_san)
            .controller_items(&self.controllers)
            .forget_state(self.forget_state);
        builder.extensions = extensions;
        if let Some(address) = self.advertise_address {
            builder = builder.advertise(address);
        }
        if let Some(dns) = self.cluster_dns {
            builder = builder.dns(dns);
        }
        if let Some(name) = &node_name {
            builder = builder.node_name(name);
        }
        let cluster = builder.start().await?;
        let took = |what: &str| println!("{:>7.3} s  {what}", started.elapsed().as_secs_f64());
        took(&format!(
            "API server ready on {}",
            cluster.address().map(|a| a.to_string()).unwrap_or_default()
        ));
        let config = cluster.kubeconfig_named(super::CONTEXT)?;
        let path = cluster.paths().kubeconfig();
        for path in [Some(&path), self.write_kubeconfig.as_ref()].into_iter().flatten() {
            refresh_private(path, config.to_yaml().as_bytes())
                .map_err(Failure::because(format!("write {}", path.display())))?;
        }
        if !self.no_kubeconfig_merge
            && let Some(told) = merge(config, self.kubeconfig_current)
        {
            took(&told);
        }
        let ready = async {
            cluster.ready(Duration::from_secs(60)).await?;
            if !cluster.nodes().is_empty() {
                took(&format!("node {} ready", cluster.nodes().join(", ")));
            }
            println!("kubectl --kubeconfig {} get nodes", path.display());
            Ok::<(), Failure>(())
        };
        let result = tokio::select! {
            result = async { ready.await?; std::future::pending().await } => result,
            () = told_to_stop() => Ok(()),
        };
        println!("stopping; containers keep running (hyperkube reset removes them)");
        cluster.shutdown().await;
        result
    }
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
