//! Settings of a cluster, for its builder and for the command line.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use clap::{Args, Command, FromArgMatches};
use ipnet::Ipv4Net;

use crate::{
    addons::Addon, admission::AdmissionSettings, audit::AuditSettings,
    authentication::AuthenticationSettings, authorization::AuthorizationFlags, autoscaling::AutoscalingFlags,
    encryption::EncryptionSettings, inflight::InflightSettings, ingress::IngressFlags,
    lifecycle::LifecycleSettings, ranges, serving::ServingSettings, versions::VersionSettings,
};

/// Settings of a cluster. Each field is a flag of `up` and `server`, a variable of the environment, a key of
/// their `--config` file, and the subject of a method of [`ClusterBuilder`](crate::ClusterBuilder); its
/// default is here.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterSettings {
    /// Data directory of the cluster.
    #[arg(long, default_value = "/var/lib/hyperkube")]
    pub(crate) data_dir: PathBuf,
    /// Listen address of the API.
    #[arg(long, default_value = "0.0.0.0")]
    pub(crate) bind_address: IpAddr,
    /// Listen port of the API; 0 picks a free one.
    #[arg(long, default_value_t = 6443)]
    pub(crate) https_listen_port: u16,
    /// Address at which pods and other nodes reach this machine (default: detected).
    #[arg(long)]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Pod CIDR of the cluster.
    #[arg(long, default_value = ranges::PODS, value_parser = ranges::parse)]
    pub(crate) cluster_cidr: Ipv4Net,
    /// Service CIDR.
    #[arg(long, default_value = ranges::SERVICES, value_parser = ranges::parse)]
    pub(crate) service_cidr: Ipv4Net,
    /// Cluster DNS address (default: the tenth of the service CIDR).
    #[arg(long)]
    pub(crate) cluster_dns: Option<Ipv4Addr>,
    /// Cluster domain.
    #[arg(long, default_value = ranges::DOMAIN)]
    pub(crate) cluster_domain: String,
    /// Additional name or address (SAN) for the server certificate.
    #[arg(long)]
    pub(crate) tls_san: Vec<String>,
    /// Built-in controllers: `*` for all, `-name` to exclude one.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    pub(crate) controllers: Vec<String>,
    /// Parts to leave out.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) disable: Vec<Addon>,
    /// Serve custom.metrics.k8s.io and external.metrics.k8s.io, from running pods with the annotation
    /// `prometheus.io/scrape: "true"` (and `prometheus.io/port`, `prometheus.io/path`).
    #[arg(long)]
    pub(crate) custom_metrics: bool,
    #[command(flatten)]
    pub(crate) ingress: IngressFlags,
    #[command(flatten)]
    pub(crate) autoscaling: AutoscalingFlags,
    #[command(flatten)]
    pub(crate) encryption: EncryptionSettings,
    #[command(flatten)]
    pub(crate) admission: AdmissionSettings,
    #[command(flatten)]
    pub(crate) audit: AuditSettings,
    #[command(flatten)]
    pub(crate) versions: VersionSettings,
    /// If the state file is empty or of another program, move it aside, start with an empty one and remove
    /// the containers of its pods.
    #[arg(long)]
    pub(crate) forget_state: bool,
    #[command(flatten)]
    pub(crate) serving: ServingSettings,
    #[command(flatten)]
    pub(crate) lifecycle: LifecycleSettings,
    #[command(flatten)]
    pub(crate) authentication: AuthenticationSettings,
    #[command(flatten)]
    pub(crate) authorization: AuthorizationFlags,
    #[command(flatten)]
    pub(crate) inflight: InflightSettings,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        let matches = ClusterSettings::augment_args(Command::new("defaults")).get_matches_from(["defaults"]);
        ClusterSettings::from_arg_matches(&matches).expect("every setting is optional or has a valid default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_do_not_overlap() {
        let settings = ClusterSettings::default();
        assert_eq!(settings.https_listen_port, 6443);
        assert_eq!(settings.controllers, ["*"]);
        assert!(!ranges::overlap(settings.cluster_cidr, settings.service_cidr));
        assert_eq!(settings.service_cidr, ranges::services());
    }
}
