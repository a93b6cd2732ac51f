//! The settings of a [`Cluster`], and its start.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use ipnet::Ipv4Net;
use k8s_kubelet::Eviction;
use tokio_util::sync::CancellationToken;

use super::{Cluster, ClusterBuilder, Node};
use crate::{
    addons::Addon,
    control_plane::{ApiConfig, ControlPlane},
    error::ClusterError,
    extensions::Builder,
    node,
    paths::{Lock, Paths, default_data_dir},
    ranges, simulated,
};

/// Age of resource metrics, as with metrics-server.
const METRICS_AGE: Duration = Duration::from_secs(15);

/// The controller of the addon [`Addon::ServiceLb`].
const SERVICE_LB: &str = "service-lb-controller";

impl ClusterBuilder {
    /// Leaves out a part of the cluster, to be replaced by another. Default: all are there.
    pub fn disable(mut self, addon: Addon) -> Self {
        self.base.settings.disable.push(addon);
        self
    }

    /// Serves custom and external metrics of running pods with the annotation `prometheus.io/scrape: "true"`,
    /// for autoscalers: see [`k8s_metrics_server::adapter`]. Default: not served.
    pub fn custom_metrics(mut self) -> Self {
        self.base.settings.custom_metrics = true;
        self
    }

    /// Name of the cluster's distribution: context of its kubeconfig, default data directory `/var/lib/NAME`,
    /// directory `/run/NAME`, prefix of its control groups. 1 to 32 lower-case letters, digits or `-`. A data
    /// directory belongs to one name. Default: `hyperkube`.
    ///
    /// ```
    /// // Its data directory is /var/lib/shopkube, and `kubectl config get-contexts` lists shopkube.
    /// let builder = hyperkube::Cluster::builder().name("shopkube");
    /// ```
    pub fn name(mut self, name: &str) -> Self {
        if self.base.settings.data_dir == default_data_dir(&self.base.name) {
            self.base.settings.data_dir = default_data_dir(name);
        }
        self.base.name = name.into();
        self
    }
    /// Data directory. Default: `/var/lib/NAME`.
    ///
    /// ```
    /// let builder = hyperkube::Cluster::builder().data_dir("/srv/shop");
    /// ```
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.base.settings.data_dir = path.as_ref().to_owned();
        self
    }
    /// Keeps objects in memory only; the data directory then holds only keys and containers.
    ///
    /// ```
    /// use hyperkube::{Cluster, Node};
    /// // For a test: fast, and nothing to clean up but the directory.
    /// let directory = std::env::temp_dir().join("shop");
    /// let builder = Cluster::builder().data_dir(directory).memory().node(Node::None);
    /// ```
    pub fn memory(mut self) -> Self {
        self.base.memory = true;
        self
    }
    /// If the store's file is empty or of another program, moves it aside, starts with an empty store, and
    /// removes the containers of its pods. Default: such a file is an error.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use hyperkube::{Cluster, ClusterError};
    /// let builder = || Cluster::builder().data_dir("/var/lib/shop");
    /// let cluster = match builder().start().await {
    ///     // The disk lost the file, and there is no copy.
    ///     Err(ClusterError::StateLost { .. }) => builder().forget_state(true).start().await?,
    ///     started => started?,
    /// };
    /// # Ok(()) }
    /// ```
    pub fn forget_state(mut self, forget: bool) -> Self {
        self.base.settings.forget_state = forget;
        self
    }
    /// Nodes that run in this process. Default: [`Node::Local`].
    ///
    /// ```
    /// use hyperkube::{Cluster, Node};
    /// let control_plane = Cluster::builder().node(Node::None);
    /// let hundred = Cluster::builder().node(Node::simulated(100)); // needs no root
    /// ```
    pub fn node(mut self, node: Node) -> Self {
        self.base.node = node;
        self
    }
    /// Duration of the start of simulated containers, unless their pod's annotation `k8s-testing/start-after`
    /// says otherwise. Default: 0, so that a Deployment is ready within milliseconds. For suites that wait to
    /// see it not ready.
    ///
    /// ```
    /// use std::time::Duration;
    /// use hyperkube::{Cluster, Node};
    /// let slow = Cluster::builder().node(Node::simulated(3)).simulated_start_delay(Duration::from_secs(2));
    /// ```
    pub fn simulated_start_delay(mut self, delay: Duration) -> Self {
        self.base.simulated.start_delay = delay;
        self
    }
    /// Interval in which each simulated node renews its lease, 1 second to 10 minutes. Default: 10 seconds,
    /// as kubelets. A node counts as failed after five of them, and at least 50 seconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use hyperkube::{Cluster, Node};
    /// // 500 renewals a second.
    /// let every = Duration::from_secs(40);
    /// let huge = Cluster::builder().node(Node::simulated(20_000)).simulated_heartbeat(every);
    /// ```
    pub fn simulated_heartbeat(mut self, every: Duration) -> Self {
        self.base.simulated.heartbeat = every;
        self
    }
    /// Serves the API over TLS on this address; port 0 picks a free one. Default: no socket.
    ///
    /// ```
    /// let builder = hyperkube::Cluster::builder().listen("127.0.0.1:6443".parse().expect("an address"));
    /// ```
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.base.listens = true;
        self.base.settings.bind_address = address.ip();
        self.base.settings.https_listen_port = address.port();
        self
    }
    /// Address at which pods and other nodes reach this machine. Default: detected.
    ///
    /// ```
    /// // Of two networks, the one that the other nodes are in.
    /// let builder = hyperkube::Cluster::builder().advertise([10, 0, 0, 5].into());
    /// ```
    pub fn advertise(mut self, address: IpAddr) -> Self {
        self.base.settings.advertise_address = Some(address);
        self
    }
    /// Pod CIDR of the cluster. Default: 10.42.0.0/16.
    ///
    /// ```
    /// // The second cluster of a machine needs ranges of its own.
    /// let builder = hyperkube::Cluster::builder()
    ///     .pods("10.52.0.0/16".parse().expect("a range"))
    ///     .services("10.53.0.0/16".parse().expect("a range"));
    /// ```
    pub fn pods(mut self, range: Ipv4Net) -> Self {
        self.base.settings.cluster_cidr = range.trunc();
        self
    }
    /// Service CIDR. Default: 10.43.0.0/16.
    ///
    /// ```
    /// // The Service `kubernetes` has the first address, cluster DNS the tenth.
    /// let builder = hyperkube::Cluster::builder().services("10.53.0.0/16".parse().expect("a range"));
    /// ```
    pub fn services(mut self, range: Ipv4Net) -> Self {
        self.base.settings.service_cidr = range.trunc();
        self
    }
    /// Cluster DNS address. Default: the tenth of the service CIDR.
    ///
    /// ```
    /// let builder = hyperkube::Cluster::builder().dns([10, 43, 0, 53].into());
    /// ```
    pub fn dns(mut self, address: Ipv4Addr) -> Self {
        self.base.settings.cluster_dns = Some(address);
        self
    }
    /// Cluster domain. Default: `cluster.local`.
    ///
    /// ```
    /// // A Service is then `web.default.svc.shop.internal`.
    /// let builder = hyperkube::Cluster::builder().domain("shop.internal");
    /// ```
    pub fn domain(mut self, domain: &str) -> Self {
        self.base.settings.cluster_domain = domain.into();
        self
    }
    /// Name of the node on this machine. Default: the host name.
    ///
    /// ```
    /// let builder = hyperkube::Cluster::builder().node_name("till-7");
    /// ```
    pub fn node_name(mut self, name: &str) -> Self {
        self.base.node_name = Some(name.into());
        self
    }
    /// Port of the kubelet's API on this machine's address, for clients with a certificate or a token of the
    /// cluster; 0 for none. Nodes that are simulated have none. Default: 0; `hyperkube up` has 10250.
    ///
    /// ```
    /// // As a metrics-server in the cluster needs it.
    /// let builder = hyperkube::Cluster::builder().kubelet_port(10250);
    /// ```
    pub fn kubelet_port(mut self, port: u16) -> Self {
        self.base.kubelet_port = port;
        self
    }
    /// Thresholds of eviction on this machine. Default: upstream's hard thresholds, with at most 1 GiB of
    /// each disk. Limits of local storage count with any.
    ///
    /// ```
    /// let builder = hyperkube::Cluster::builder().eviction(hyperkube::Eviction::none());
    /// ```
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.base.eviction = eviction;
        self
    }
    /// Additional names and addresses (SANs) for the server certificate.
    ///
    /// ```
    /// let names = ["shop.example.com".to_owned(), "192.0.2.7".to_owned()];
    /// let builder = hyperkube::Cluster::builder().tls_names(&names);
    /// ```
    pub fn tls_names(mut self, names: &[String]) -> Self {
        self.base.settings.tls_san = names.to_vec();
        self
    }
    /// Starts the cluster. On return the API serves requests; [`Cluster::ready`] waits for the nodes.
    ///
    /// # Errors
    /// [`ClusterError`]. Everything that was started is stopped again.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, ClusterError, Node};
    /// let builder = || Cluster::builder().data_dir(data).memory().node(Node::None);
    /// let cluster = builder().start().await?;
    /// // A data directory belongs to one running cluster.
    /// assert!(matches!(builder().start().await, Err(ClusterError::DirectoryInUse { .. })));
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn start(self) -> Result<Cluster, ClusterError> {
        let Builder { base: config, mut extensions } = self;
        let settings = &config.settings;
        let paths = Paths::new(&config.name, &settings.data_dir)?;
        let services = settings.service_cidr;
        let (pods, node_grace) = match config.node {
            Node::Simulated(count) => {
                let grace = simulated::grace(config.simulated.heartbeat);
                (simulated::pod_range(settings.cluster_cidr, count)?, Some(grace))
            }
            Node::None | Node::Local => (settings.cluster_cidr, None),
        };
        if ranges::overlap(pods, services) {
            let reason = format!(
                "pod range {pods} and service range {services} overlap; choose others with --cluster-cidr and --service-cidr"
            );
            return Err(ClusterError::invalid("address ranges", reason));
        }
        let runtime = extensions.runtime.take();
        if config.node == Node::Local && runtime.is_none() {
            node::check(&paths)?;
        }
        // Without a node on the pod network there is nothing to route.
        let routes =
            config.node == Node::Local && runtime.is_none() && !settings.disable.contains(&Addon::Ingress);
        let balances = !settings.disable.contains(&Addon::ServiceLb);
        let selection = extensions.select(&settings.controllers)?;
        let selection = if balances { selection.with(SERVICE_LB) } else { selection.without(SERVICE_LB) };
        let lock = Lock::take(&paths)?;
        let gateway = IpAddr::V4(ranges::nth(pods, 1));
        let advertise = settings.advertise_address.or_else(crate::network::own_address).unwrap_or(gateway);
        let dns = settings.cluster_dns.unwrap_or_else(|| ranges::nth(services, 10));
        let listen = SocketAddr::new(settings.bind_address, settings.https_listen_port);
        let api = ApiConfig {
            listen: config.listens.then_some(listen),
            advertise,
            services,
            pods: Some(pods),
            domain: settings.cluster_domain.clone(),
            memory: config.memory,
            forget_state: settings.forget_state,
            tls_names: settings.tls_san.clone(),
            serving: settings.serving.clone(),
            lifecycle: settings.lifecycle.clone(),
            authentication: settings.authentication.clone(),
            encryption: settings.encryption.clone(),
            admission: settings.admission.clone(),
            audit: settings.audit.clone(),
            versions: settings.versions.clone(),
            authorization: settings.authorization.modes()?,
            limits: settings.inflight.limits(),
            // Autoscalers that look more often see something new each time.
            resource_metrics: (!settings.disable.contains(&Addon::MetricsServer))
                .then(|| settings.autoscaling.options().sync_period.min(METRICS_AGE)),
            custom_metrics: settings
                .custom_metrics
                .then(|| settings.autoscaling.options().sync_period.min(METRICS_AGE)),
            local_storage: Some(!settings.disable.contains(&Addon::LocalStorage)),
            service_lb: Some(balances),
            ingress: Some(routes),
            authorization_flags: settings.authorization.clone(),
            ..ApiConfig::default()
        };
        let autoscaling = settings.autoscaling.options();
        let plane =
            ControlPlane::start(&paths, api, selection, pods, autoscaling, node_grace, extensions).await?;
        let mut cluster = Cluster {
            paths,
            plane,
            nodes: Vec::new(),
            simulated: None,
            network: None,
            ingress: None,
            _lock: lock,
        };
        match cluster.add_nodes(&config, runtime, advertise, (pods, dns)).await {
            Ok(()) => Ok(cluster),
            Err(e) => {
                cluster.shutdown().await;
                Err(e)
            }
        }
    }

    /// Runs the cluster until `shutdown` is cancelled, then stops it as [`Cluster::shutdown`] does.
    ///
    /// # Errors
    /// As [`ClusterBuilder::start`] and [`Cluster::ended`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let shutdown = tokio_util::sync::CancellationToken::new();
    /// let cluster = Cluster::builder().data_dir(data).memory().node(Node::None).run(shutdown.clone());
    /// let end = async { shutdown.cancel() }; // on a signal, in a program
    /// let (ended, ()) = tokio::join!(cluster, end);
    /// ended?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ClusterError> {
        let mut cluster = self.start().await?;
        let ended = tokio::select! {
            ended = cluster.ended() => ended,
            () = shutdown.cancelled() => Ok(()),
        };
        cluster.shutdown().await;
        ended
    }
}
