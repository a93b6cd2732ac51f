//! The control plane components as single programs, with upstream's flag names.

#![expect(clippy::disallowed_methods, reason = "the task of signals lives as long as the process")]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::Ipv4Net;
use k8s_controllers::{
    Environment,
    leader::Candidate,
    metrics::{Metrics, Registry, counted},
};
use k8s_core::{
    client::{Client, Kubeconfig, Remote, RemoteConfig},
    clock::Clock,
};
use tokio_util::sync::CancellationToken;

use super::{
    config::ConfigFile,
    exit::{Code, Failure},
    health::Health,
    or_at_once,
    scheduling::SchedulerConfig,
    stop_signal,
};
use crate::{
    admission::AdmissionSettings,
    audit::AuditSettings,
    authentication::{self, AuthenticationSettings},
    authorization::AuthorizationFlags,
    autoscaling::AutoscalingFlags,
    control_plane::{Api, ApiConfig, ControllersConfig, Kubeconfigs, manager},
    encryption::EncryptionSettings,
    error::ClusterError,
    extensions::Extensions,
    identities::{self, ServiceAccounts},
    inflight::InflightSettings,
    lifecycle::LifecycleSettings,
    node_health::NodeHealthFlags,
    paths::{Lock, Paths},
    pki::refresh_private,
    ranges,
    serving::ServingSettings,
    signing::SigningFlags,
    versions::VersionSettings,
};

/// Run the API server alone.
#[derive(Debug, clap::Args)]
pub(super) struct ApiServer {
    #[command(flatten)]
    _config: ConfigFile,
    /// Directory of the embedded store.
    #[arg(long, default_value = "/var/lib/hyperkube")]
    data_dir: PathBuf,
    /// If the state file is empty or of another program, move it aside and start with an empty one.
    #[arg(long)]
    forget_state: bool,
    /// Listen port of the API; 0 picks a free one.
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Listen address of the API.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Address at which pods and nodes reach the API (default: detected).
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Directory of certificates and keys; missing ones are created (default: `pki` in the data directory).
    #[arg(long)]
    cert_dir: Option<PathBuf>,
    /// Name of a node for which a `kubelet-NAME.kubeconfig` is written beside the certificates, in addition
    /// to the `kubelet.kubeconfig` of the node that is named after this host; may be repeated.
    #[arg(long)]
    kubelet_node_name: Vec<String>,
    /// Service CIDR.
    #[arg(long, default_value = ranges::SERVICES, value_parser = ranges::parse)]
    service_cluster_ip_range: Ipv4Net,
    /// Node port range, both ends included.
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    #[command(flatten)]
    authorization: AuthorizationFlags,
    #[command(flatten)]
    encryption: EncryptionSettings,
    #[command(flatten)]
    admission: AdmissionSettings,
    #[command(flatten)]
    audit: AuditSettings,
    #[command(flatten)]
    versions: VersionSettings,
    /// Send warnings for kinds and fields that are stored but have no effect; disable it to compare with an
    /// upstream server.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    warn_unenforced: bool,
    #[command(flatten)]
    serving: ServingSettings,
    #[command(flatten)]
    lifecycle: LifecycleSettings,
    #[command(flatten)]
    authentication: AuthenticationSettings,
    #[command(flatten)]
    inflight: InflightSettings,
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parsed = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parsed {
        Some((first, last)) if first > 0 && first <= last => Ok((first, last)),
        _ => Err(format!("{text:?} is no port range such as 30000-32767")),
    }
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(Failure::because(format!("read {}", path.display())))
}

impl ApiServer {
    pub(super) async fn run(self, name: &str, extensions: Extensions) -> Result<(), Failure> {
        let modes = self.authorization.modes()?;
        let paths = Paths::new(name, &self.data_dir)?;
        let _lock = Lock::take(&paths)?;
        let pki_dir = self.cert_dir.clone().unwrap_or_else(|| paths.pki());
        let config = ApiConfig {
            listen: Some(SocketAddr::new(self.bind_address, self.secure_port)),
            advertise: self
                .advertise_address
                .or_else(crate::network::own_address)
                .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
            services: self.service_cluster_ip_range,
            node_ports: self.service_node_port_range,
            forget_state: self.forget_state,
            pki: Some(pki_dir.clone()),
            serving: self.serving,
            lifecycle: self.lifecycle,
            authentication: self.authentication.clone(),
            authorization: modes,
            authorization_flags: self.authorization,
            encryption: self.encryption,
            admission: self.admission,
            audit: self.audit,
            versions: self.versions,
            warn_unenforced: self.warn_unenforced,
            limits: self.inflight.limits(),
            ..ApiConfig::default()
        };
        let extended = !extensions.controllers.is_empty();
        let mut api = Api::start(&paths, config, extensions.api).await?;
        if extended {
            identities::bind_extensions(&api.client(), name)
                .await
                .map_err(Failure::because("bind the role of the added controllers"))?;
        }
        let files = KubeconfigFiles {
            name: name.to_owned(),
            kubeconfigs: api.kubeconfigs.clone(),
            directory: pki_dir,
            nodes: self.kubelet_node_name,
        };
        files.write()?;
        api.renewals.add("kubeconfigs of the components", move || files.write());
        if let Some(address) = api.address {
            println!("serving on https://{address}");
        }
        tokio::select! {
            ended = api.ended() => return Ok(ended?),
            () = stop_signal() => {}
        }
        or_at_once(api.shutdown()).await;
        Ok(())
    }
}

/// The kubeconfigs beside the certificates.
struct KubeconfigFiles {
    name: String,
    kubeconfigs: Kubeconfigs,
    directory: PathBuf,
    nodes: Vec<String>,
}

impl KubeconfigFiles {
    /// Writes a kubeconfig for the administrator and one for each component.
    fn write(&self) -> Result<(), ClusterError> {
        let name = &self.name;
        let user = |file: &str, user: &str, group| (file.to_owned(), user.to_owned(), group);
        let kubelet = |file: String, node: &str| (file, format!("system:node:{node}"), identities::NODES);
        let mut users = vec![
            user("admin", &format!("{name}-admin"), "system:masters"),
            user("controller-manager", identities::CONTROLLER_MANAGER, ""),
            user("scheduler", identities::SCHEDULER, ""),
            kubelet("kubelet".to_owned(), &crate::host_name()),
        ];
        users.extend(self.nodes.iter().map(|node| kubelet(format!("kubelet-{node}"), node)));
        // The last one: whoever waits for it has all.
        users.push(user("kube-proxy", identities::PROXY, ""));
        for (file, user, group) in users {
            let config = self.kubeconfigs.of(&file, &user, group)?;
            let path = self.directory.join(format!("{file}.kubeconfig"));
            refresh_private(&path, config.to_yaml().as_bytes())
                .map_err(ClusterError::io(format!("write {}", path.display())))?;
        }
        Ok(())
    }
}

/// Connection of a component to the API server.
#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// Path of the kubeconfig.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: PathBuf,
}

impl Connection {
    fn unusable(&self, e: &dyn std::fmt::Display) -> Failure {
        Failure::new(Code::Usage, format!("--kubeconfig {}: {e}", self.kubeconfig.display()))
    }

    fn remote(&self) -> Result<RemoteConfig, Failure> {
        let config = Kubeconfig::read(&self.kubeconfig).map_err(|e| self.unusable(&e))?;
        config.remote(None).map_err(|e| self.unusable(&e))
    }

    /// Checks that a kubelet's client certificate, if it has one, is that of its node.
    pub(super) fn check_node(&self, node: &str) -> Result<(), Failure> {
        let pem = self.remote()?.certificate.unwrap_or_default();
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return Ok(()) };
        let Ok(certificate) = pem.parse_x509() else { return Ok(()) };
        let names: Vec<_> =
            certificate.subject().iter_common_name().filter_map(|n| n.as_str().ok()).collect();
        match names.last().and_then(|name| name.strip_prefix("system:node:")) {
            Some(other) if other != node => Err(self.unusable(&format!(
                "it is for the node {other}, and this one is {node}: choose --hostname-override {other}, or start kube-apiserver with --kubelet-node-name {node} and take its kubelet-{node}.kubeconfig"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns a client whose requests are counted in `registry`.
    pub(super) fn client(&self, name: &str, registry: &Registry) -> Result<Client, Failure> {
        let remote = Remote::new(&self.remote()?).map_err(|e| self.unusable(&e))?;
        Ok(counted(&Client::new(remote), registry).named(name))
    }

    /// Returns clients of the cluster's service accounts; `client` requests their tokens.
    fn accounts(&self, client: &Client) -> Result<ServiceAccounts, Failure> {
        // The API server prefers a client certificate to a token.
        let config = RemoteConfig { certificate: None, key: None, token: None, ..self.remote()? };
        let plain = Remote::new(&config).map_err(|e| self.unusable(&e))?;
        Ok(ServiceAccounts::new(client.clone(), plain))
    }
}

/// Leader election settings.
#[derive(Debug, clap::Args)]
struct Election {
    /// Start working only after acquiring the leader lease.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    /// Namespace of the leader lease.
    #[arg(long, default_value = "kube-system")]
    leader_elect_resource_namespace: String,
}

impl Election {
    /// Runs the work; with leader election only while holding the lease.
    async fn run<F: Future<Output = ()>>(
        &self,
        client: &Client,
        name: &str,
        stop: CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<(), Failure> {
        if !self.leader_elect {
            work(stop).await;
            return Ok(());
        }
        let identity = format!("{}_{}", crate::host_name(), std::process::id());
        let candidate =
            Candidate::new(client, Clock::system(), &self.leader_elect_resource_namespace, name, &identity);
        candidate
            .run(stop, work)
            .await
            .map_err(|e| Failure::new(Code::Failed, format!("leader election: {e}")))
    }
}

/// Returns a token that is cancelled by Ctrl-C or SIGTERM.
pub(super) fn stop_token() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        stop_signal().await;
        told.cancel();
    });
    stop
}

/// Run the controllers alone.
#[derive(Debug, clap::Args)]
pub(super) struct ControllerManager {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    election: Election,
    #[command(flatten)]
    health: Health,
    /// Port of health and metrics; 0 disables it.
    #[arg(long, default_value_t = 10257)]
    secure_port: u16,
    /// Built-in controllers: `*` for all, `-name` to exclude one.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    controllers: Vec<String>,
    /// Pod CIDR of the cluster, from which nodes get theirs.
    #[arg(long, default_value = ranges::PODS, value_parser = ranges::parse)]
    cluster_cidr: Ipv4Net,
    /// Run each controller as its own service account of kube-system, with upstream's role for it. If false,
    /// all use the kubeconfig's user, who then needs the permissions of all of them.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    use_service_account_credentials: bool,
    #[command(flatten)]
    signing: SigningFlags,
    /// CA certificate to publish in every namespace (default: the kubeconfig's).
    #[arg(long)]
    root_ca_file: Option<PathBuf>,
    /// Private key (PEM: RSA, P-256 or P-384) that signs the tokens of Secrets of type
    /// kubernetes.io/service-account-token; kube-apiserver must know its public key (default: none, and such
    /// Secrets stay empty).
    #[arg(long)]
    service_account_private_key_file: Option<PathBuf>,
    /// Time without use after which a Secret with a token that its service account lists is marked as
    /// invalid, and then that until it is deleted.
    #[arg(long, default_value = "8760h", value_parser = crate::duration::parse)]
    legacy_service_account_token_clean_up_period: std::time::Duration,
    #[command(flatten)]
    node_health: NodeHealthFlags,
    #[command(flatten)]
    autoscaling: AutoscalingFlags,
    #[command(flatten)]
    _config: ConfigFile,
}

impl ControllerManager {
    pub(super) async fn run(self, extensions: Extensions) -> Result<(), Failure> {
        let selection = extensions.select(&self.controllers)?;
        let metrics = Metrics::default();
        let client = self.connection.client("kube-controller-manager", metrics.registry())?;
        let root_ca = match &self.root_ca_file {
            Some(file) => read(file)?,
            None => {
                let config = Kubeconfig::read(&self.connection.kubeconfig).and_then(|c| c.remote(None));
                config.ok().and_then(|c| c.ca).unwrap_or_default()
            }
        };
        let token_signer = match &self.service_account_private_key_file {
            Some(file) => Some(authentication::token_signer(&read(file)?)?),
            None => None,
        };
        let config = ControllersConfig {
            selection,
            root_ca: String::from_utf8_lossy(&root_ca).into_owned(),
            cluster_cidr: self.cluster_cidr,
            signing: self.signing.signing()?,
            token_signer,
            legacy_token_clean_up_period: self.legacy_service_account_token_clean_up_period,
            node_health: Some(self.node_health),
            node_grace: None,
            autoscaling: self.autoscaling.options(),
        };
        let added = extensions.controllers.into_iter().map(|c| c.account(identities::EXTENSIONS)).collect();
        let stop = stop_token();
        // A process that waits for the leader lease has no controllers and is ready.
        let ready = {
            let metrics = metrics.clone();
            move || metrics.ready()
        };
        self.health.serve(self.secure_port, metrics.registry(), ready, &stop).await?;
        let mut manager = manager(&client, config, added).measured(metrics.clone());
        if self.use_service_account_credentials {
            let accounts = self.connection.accounts(&client)?;
            manager = manager.accounts(move |account| {
                counted(&accounts.client(account), metrics.registry()).named("kube-controller-manager")
            });
        }
        self.election.run(&client, "kube-controller-manager", stop, |stop| manager.run(stop)).await
    }
}

/// Run the scheduler alone.
#[derive(Debug, clap::Args)]
pub(super) struct KubeScheduler {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    election: Election,
    #[command(flatten)]
    health: Health,
    /// Port of health and metrics; 0 disables it.
    #[arg(long, default_value_t = 10259)]
    secure_port: u16,
    /// Schedules the pods with this `schedulerName`; with several profiles, sets that of the first one
    /// (default: `default-scheduler`).
    #[arg(long)]
    scheduler_name: Option<String>,
    #[command(flatten)]
    profiles: SchedulerConfig,
    #[command(flatten)]
    _config: ConfigFile,
}

impl KubeScheduler {
    pub(super) async fn run(self, extensions: Extensions) -> Result<(), Failure> {
        let metrics = Metrics::default();
        let mut scheduler = self.profiles.apply(extensions.scheduler)?;
        if let Some(name) = &self.scheduler_name {
            scheduler = scheduler.named(name);
        }
        let client = self.connection.client("kube-scheduler", metrics.registry())?;
        let stop = stop_token();
        let mut environment = Environment::new(client.clone());
        environment.metrics = metrics;
        self.health.serve(self.secure_port, environment.metrics.registry(), || Ok(()), &stop).await?;
        let work = |stop| {
            environment.shutdown = stop;
            scheduler.run_in(environment)
        };
        self.election.run(&client, "kube-scheduler", stop, work).await
    }
}
