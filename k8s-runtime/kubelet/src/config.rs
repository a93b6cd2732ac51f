//! The configuration of a kubelet.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use crate::{eviction::thresholds::Eviction, types::Taint};
use ipnet::IpNet;

/// Configuration. Every field has a default; set only the fields that differ from it.
///
/// ```
/// use k8s_kubelet::Config;
/// let node_labels = [("rack".into(), "a".into())].into();
/// let config = Config { max_pods: 20, node_labels, ..Config::default() };
/// assert_eq!((config.port, config.log_max_files), (10250, 5));
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// Parent of the pods' directories (`<root>/pods/<uid>`).
    pub root_dir: PathBuf,
    /// Directory of the image store, for what is free on its disk. `None`: it is on the disk of `root_dir`.
    pub image_dir: Option<PathBuf>,
    /// Directory of the containers' logs.
    pub log_dir: PathBuf,
    /// IP addresses of the cluster's DNS service, for pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Path of the host's `resolv.conf`.
    pub resolv_conf: PathBuf,
    /// IP addresses of the node, the primary one first. Empty: detected from the interfaces.
    pub node_ips: Vec<IpAddr>,
    /// Labels of the Node object, in addition to the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    /// Taints that the node registers with.
    pub node_taints: Vec<Taint>,
    /// Pod CIDR of the node. `None`: the IPAM controller assigns it.
    pub pod_cidr: Option<IpNet>,
    /// Most pods that may run.
    pub max_pods: u32,
    /// IP address that the kubelet's API listens on.
    pub bind_address: IpAddr,
    /// TCP port of the kubelet's API. 0: no listener; the API is called in this process only.
    pub port: u16,
    /// Keys and client verification for the kubelet's API, which may be replaced. `None`: no listener.
    pub tls: Option<k8s_tls::ServerTls>,
    /// Version that the node reports.
    pub kubelet_version: String,
    /// Size in bytes above which a container's log is rotated.
    pub log_max_size: u64,
    /// Maximum number of log files per container, the current one included.
    pub log_max_files: usize,
    /// Mounts a tmpfs for Secrets and for `medium: Memory`. Set it to `false` only where nothing can be
    /// mounted (tests without root).
    pub tmpfs: bool,
    /// Shortage of memory, disk and process ids of the machine is the node's. Set it to `false` for nodes
    /// that are simulated: their pods use none of the machine's.
    pub machine_pressure: bool,
    /// Thresholds of memory, disk and process ids below which pods are evicted. Default: upstream's. Hard
    /// ones are subtracted from the allocatable resources. Without `machine_pressure` nobody is evicted for
    /// them.
    pub eviction: Eviction,
    /// Unsafe sysctls that pods may set (`--allowed-unsafe-sysctls`): names, or patterns that end in `*`.
    /// Only namespaced sysctls are accepted.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Address and port of the API server for pods: `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`
    /// where no `kubernetes` Service exists yet.
    pub kubernetes_service: Option<(IpAddr, u16)>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node_name: "localhost".into(),
            root_dir: "/var/lib/kubelet".into(),
            image_dir: None,
            log_dir: "/var/log/pods".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            node_ips: Vec::new(),
            node_labels: BTreeMap::new(),
            node_taints: Vec::new(),
            pod_cidr: None,
            max_pods: 110,
            bind_address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            tls: None,
            kubelet_version: "v1.36.0".into(),
            log_max_size: 10 << 20,
            log_max_files: 5,
            tmpfs: true,
            machine_pressure: true,
            eviction: Eviction::default(),
            allowed_unsafe_sysctls: Vec::new(),
            kubernetes_service: None,
        }
    }
}

impl Config {
    /// Directory of a pod (`<root>/pods/<uid>`).
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// Log directory of a pod.
    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
