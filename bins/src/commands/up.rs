//! `hyperkube up` and `hyperkube server`: a cluster in the foreground.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use k8s_core::client::Kubeconfig;

use super::{DataDir, told_to_stop};
use crate::{
    Cluster, Extras, Node, exit::Failure, pki::refresh_private, ranges::Range,
    user_kubeconfig::UserKubeconfig,
};

/// Where the cluster's own files are and how it is reached.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    data: DataDir,
    /// Address that the API listens on.
    #[arg(long, env = "HYPERKUBE_BIND_ADDRESS", default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port that the API listens on; 0 takes a free one.
    #[arg(long, env = "HYPERKUBE_HTTPS_LISTEN_PORT", default_value_t = 6443)]
    https_listen_port: u16,
    /// Address that pods and other nodes reach this machine at (default: found out).
    #[arg(long, env = "HYPERKUBE_ADVERTISE_ADDRESS")]
    advertise_address: Option<IpAddr>,
    /// Pod addresses.
    #[arg(long, env = "HYPERKUBE_CLUSTER_CIDR", default_value = "10.42.0.0/16")]
    cluster_cidr: Range,
    /// Service addresses.
    #[arg(long, env = "HYPERKUBE_SERVICE_CIDR", default_value = "10.43.0.0/16")]
    service_cidr: Range,
    /// The DNS server's address (default: the tenth of the Service range).
    #[arg(long, env = "HYPERKUBE_CLUSTER_DNS")]
    cluster_dns: Option<Ipv4Addr>,
    /// The DNS domain.
    #[arg(long, env = "HYPERKUBE_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// A name or address more for the server's certificate.
    #[arg(long)]
    tls_san: Vec<String>,
    /// Built-in controllers: `*` all, `-name` not this one.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    controllers: Vec<String>,
    /// Set a state file that is empty or of another program aside and begin anew; containers of its pods are removed.
    #[arg(long)]
    forget_state: bool,
    /// Write the administrator's kubeconfig here as well.
    #[arg(long, env = "HYPERKUBE_WRITE_KUBECONFIG")]
    write_kubeconfig: Option<PathBuf>,
    /// Do not add a context `hyperkube` to ~/.kube/config.
    #[arg(long)]
    no_kubeconfig_merge: bool,
    /// Make the context `hyperkube` the current one in ~/.kube/config, also where another is.
    #[arg(long)]
    kubeconfig_current: bool,
}

/// Run a whole cluster on this machine, in the foreground.
#[derive(Debug, clap::Args)]
pub(super) struct Up {
    #[command(flatten)]
    common: Common,
    /// The node's name (default: the host name).
    #[arg(long, env = "HYPERKUBE_NODE_NAME")]
    node_name: Option<String>,
    /// Nodes whose containers are not processes, instead of this machine; needs no root.
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
    pub(super) async fn run(self, extras: &Extras) -> Result<(), Failure> {
        let node = self.simulated_nodes.map_or(Node::Local, Node::Simulated);
        self.common.run(node, self.node_name, extras).await
    }
}

impl Server {
    pub(super) async fn run(self, extras: &Extras) -> Result<(), Failure> {
        self.common.run(Node::None, None, extras).await
    }
}

impl Common {
    async fn run(self, node: Node, node_name: Option<String>, extras: &Extras) -> Result<(), Failure> {
        let started = Instant::now();
        let mut builder = Cluster::builder()
            .data_dir(&self.data.data_dir)
            .node(node)
            .listen(SocketAddr::new(self.bind_address, self.https_listen_port))
            .pods(self.cluster_cidr)
            .services(self.service_cidr)
            .domain(&self.cluster_domain)
            .tls_names(&self.tls_san)
            .controllers(&self.controllers)
            .forget_state(self.forget_state)
            .extras(extras.clone());
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

/// Adds the context to the user's kubeconfig and says what became of it. A kubeconfig that cannot be changed never ends a cluster.
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
