//! Upstream's component configuration files, as entries of ours.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use k8s_kubelet::EvictionSettings;
use serde::{Deserialize, de::DeserializeOwned};

type Entries = Vec<(String, Vec<String>)>;

/// Supported fields of a KubeletConfiguration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Kubelet {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<Ipv4Addr>,
    cluster_domain: Option<String>,
    port: Option<u16>,
    address: Option<IpAddr>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    allowed_unsafe_sysctls: Vec<String>,
    eviction_hard: Option<BTreeMap<String, String>>,
    eviction_soft: BTreeMap<String, String>,
    eviction_soft_grace_period: BTreeMap<String, String>,
    eviction_minimum_reclaim: BTreeMap<String, String>,
    eviction_max_pod_grace_period: Option<i32>,
    eviction_pressure_transition_period: Option<String>,
    merge_default_eviction_settings: bool,
    tls_cipher_suites: Vec<String>,
    tls_min_version: Option<String>,
}

/// Supported fields of a KubeProxyConfiguration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Proxy {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
}

/// Supported fields of a KubeControllerManagerConfiguration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ControllerManager {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    controllers: Vec<String>,
}

/// Parses the file of a component, by the command's name. `file` is its path: the scheduler reads it again.
pub(super) fn entries(text: &str, command: &str, file: &Path) -> Result<Entries, String> {
    let mut all = Entries::new();
    let mut add = |flag: &str, values: Vec<String>| {
        if !values.is_empty() {
            all.push((flag.to_owned(), values));
        }
    };
    let one = |value: Option<String>| value.into_iter().collect::<Vec<_>>();
    match command {
        "kubelet" => {
            let file: Kubelet = read(text)?;
            add("cluster-dns", one(file.cluster_dns.first().map(ToString::to_string)));
            add("cluster-domain", one(file.cluster_domain));
            add("port", one(file.port.map(|p| p.to_string())));
            add("address", one(file.address.map(|a| a.to_string())));
            add("pod-cidr", one(file.pod_cidr));
            add("allowed-unsafe-sysctls", file.allowed_unsafe_sysctls);
            if let Some(mut hard) = file.eviction_hard {
                if file.merge_default_eviction_settings {
                    for (signal, amount) in EvictionSettings::DEFAULT_HARD {
                        hard.entry(signal.to_owned()).or_insert_with(|| amount.to_owned());
                    }
                }
                let texts = pairs(hard, '<');
                // An empty map is no threshold.
                add("eviction-hard", if texts.is_empty() { vec![String::new()] } else { texts });
            }
            add("eviction-soft", pairs(file.eviction_soft, '<'));
            add("eviction-soft-grace-period", pairs(file.eviction_soft_grace_period, '='));
            add("eviction-minimum-reclaim", pairs(file.eviction_minimum_reclaim, '='));
            add(
                "eviction-max-pod-grace-period",
                one(file.eviction_max_pod_grace_period.map(|n| n.to_string())),
            );
            // As upstream, zero means the default.
            let transition = file.eviction_pressure_transition_period;
            let is_zero = |text: &str| matches!(crate::duration::parse(text), Ok(Duration::ZERO));
            add("eviction-pressure-transition-period", one(transition.filter(|text| !is_zero(text))));
            add("tls-cipher-suites", file.tls_cipher_suites);
            add("tls-min-version", one(file.tls_min_version));
        }
        "kube-proxy" => add("cluster-cidr", one(read::<Proxy>(text)?.cluster_cidr)),
        "kube-controller-manager" => add("controllers", read::<ControllerManager>(text)?.controllers),
        "kube-scheduler" => {
            let config: k8s_scheduler::Configuration = read(text)?;
            add("scheduler-config", one(Some(file.display().to_string())));
            add("leader-elect", one(config.leader_election.leader_elect.map(|on| on.to_string())));
            add("kubeconfig", one(config.client_connection.kubeconfig.filter(|path| !path.is_empty())));
        }
        other => return Err(format!("{other} has no `kind` of configuration; the keys are its flags")),
    }
    Ok(all)
}

/// Pairs as flags have them.
fn pairs(map: BTreeMap<String, String>, separator: char) -> Vec<String> {
    map.into_iter().map(|(key, value)| format!("{key}{separator}{value}")).collect()
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|e| e.to_string())
}
