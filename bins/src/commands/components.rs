//! The control plane components as single programs, with upstream's flag names.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{
    ApiServer as Server, User,
    auth::{Authenticator, AuthorizationMode},
    listen::{self, TlsFiles},
};
use k8s_builtin as builtin;
use k8s_controllers::{Environment, Manager, leader::Candidate, metrics::Metrics};
use k8s_core::{
    client::{Client, Kubeconfig, Remote, RemoteConfig},
    clock::Clock,
};
use k8s_scheduler::Scheduler;
use tokio_util::sync::CancellationToken;

use super::{health::Health, told_to_stop};
use crate::{
    control_plane::{ControlPlaneConfig, bind, kubernetes_service, open_store},
    exit::{Code, Failure},
    front_proxy::FrontProxy,
    identities::{self, ServiceAccounts},
    paths::{Lock, Paths},
    pki::{Pki, refresh_private},
    ranges,
};

/// Run the API server alone.
#[derive(Debug, clap::Args)]
pub(super) struct ApiServer {
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
    /// Static token file: lines of `token,user,uid[,"group1,group2"]`.
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// CA of client certificates (default: the CA in the certificate directory).
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// Service CIDR.
    #[arg(long, default_value = "10.43.0.0/16", value_parser = ranges::parse)]
    service_cluster_ip_range: Ipv4Net,
    /// Node port range, both ends included.
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    /// Authorization mode: RBAC (also as `Node,RBAC`) or AlwaysAllow.
    #[arg(long, default_value = "RBAC")]
    authorization_mode: String,
    /// Send warnings for kinds and fields that are stored but have no effect; disable it to compare with an
    /// upstream server.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    warn_unenforced: bool,
    /// Accept requests without credentials as system:anonymous; never with AlwaysAllow.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    anonymous_auth: bool,
    /// Maximum number of concurrent read-only requests; 0 means unlimited.
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: usize,
    /// Maximum number of concurrent mutating requests; 0 means unlimited.
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: usize,
    /// Timeout of a request (`60s`, `1m`); 0 means none. Watches and other long-running requests are exempt.
    #[arg(long, default_value = "60s", value_parser = duration)]
    request_timeout: std::time::Duration,
}

/// Parses a Go duration of whole units: `90s`, `1m30s`, `0`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("{text:?} is no duration such as 60s or 1m");
    let (mut seconds, mut rest) = (0u64, text);
    if text == "0" {
        return Ok(std::time::Duration::ZERO);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..end].parse().map_err(|_| bad())?;
        let unit = match rest.as_bytes().get(end) {
            Some(b'h') => 3600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(bad()),
        };
        seconds = number.checked_mul(unit).and_then(|n| n.checked_add(seconds)).ok_or_else(bad)?;
        rest = &rest[end + 1..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(std::time::Duration::from_secs(seconds)) }
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
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mode = match self.authorization_mode.as_str() {
            "AlwaysAllow" => AuthorizationMode::AlwaysAllow,
            list if list.split(',').any(|m| m == "RBAC")
                && list.split(',').all(|m| m == "RBAC" || m == "Node") =>
            {
                AuthorizationMode::Rbac
            }
            other => {
                return Err(Failure::new(
                    Code::Usage,
                    format!("--authorization-mode {other:?}: RBAC or AlwaysAllow is needed"),
                ));
            }
        };
        let paths = Paths::new(&self.data_dir)?;
        let _lock = Lock::take(&paths)?;
        let listener = bind(SocketAddr::new(self.bind_address, self.secure_port)).await?;
        let address = listener.local_addr().map_err(Failure::because("listen"))?;
        let pki_dir = self.cert_dir.clone().unwrap_or_else(|| paths.pki());
        let pki = Pki::open(&pki_dir).map_err(Failure::because("certificates"))?;
        let tokens = match &self.token_auth_file {
            Some(file) => {
                let text = String::from_utf8_lossy(&read(file)?).into_owned();
                Authenticator::parse_token_file(&text)
                    .map_err(|e| Failure::new(Code::Usage, format!("{}: {e}", file.display())))?
            }
            None => HashMap::new(),
        };
        let range = self.service_cluster_ip_range;
        let advertise = self
            .advertise_address
            .or_else(crate::network::own_address)
            .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        let config = ControlPlaneConfig {
            listen: Some(address),
            advertise,
            services: range,
            pods: range,
            domain: "cluster.local".into(),
            memory: false,
            forget_state: self.forget_state,
            tls_names: Vec::new(),
            controllers: Vec::new(),
            extras: crate::Extras::default(),
        };
        let front_proxy = FrontProxy::open(&paths)?;
        let mut limits = crate::control_plane::limits();
        limits.requests = self.max_requests_inflight;
        limits.mutating = self.max_mutating_requests_inflight;
        limits.request_timeout = self.request_timeout;
        let server = Server::builder(open_store(&paths, self.forget_state)?)
            .authenticator(Authenticator::new(tokens, self.anonymous_auth))
            .authorization(mode)
            .warn_unenforced(self.warn_unenforced)
            .service_account_key(pki.service_account_key().map_err(Failure::because("service account key"))?)
            .service_range(range)
            .node_ports(self.service_node_port_range.0, self.service_node_port_range.1)
            .nodes(Arc::new(crate::remote_kubelets(&pki)?))
            .front_proxy(front_proxy.identity())
            .limits(limits)
            .build()
            .await
            .map_err(Failure::because("start the API server"))?;
        let identity = crate::control_plane::server_identity(&pki, &config)?;
        let mut client_ca = pki.ca().as_bytes().to_vec();
        if let Some(file) = &self.client_ca_file {
            client_ca.extend(read(file)?);
        }
        let files = TlsFiles {
            certificate: identity.certificate.into_bytes(),
            key: identity.key.into_bytes(),
            client_ca: Some(client_ca),
        };
        let tls = Arc::new(listen::tls_config(&files).map_err(Failure::because("TLS"))?);
        kubernetes_service(&server.client_as(User::admin()), &config, Some(address))
            .await
            .map_err(Failure::because("make the kubernetes Service"))?;
        identities::bind(&server.client_as(User::admin()))
            .await
            .map_err(Failure::because("bind the components' roles"))?;
        front_proxy
            .publish(&server.client_as(User::admin()), pki.ca())
            .await
            .map_err(Failure::because("publish the front proxy's CA"))?;
        self.write_kubeconfigs(&pki, &pki_dir, address)?;
        println!("serving on https://{address}");
        let stop = CancellationToken::new();
        let serving = listen::serve(server, listener, tls, stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended.map_err(Failure::because("serve")),
            () = told_to_stop() => stop.cancel(),
        }
        serving.await.map_err(Failure::because("serve"))
    }

    /// Writes a kubeconfig for the administrator and one for each component, beside the certificates.
    fn write_kubeconfigs(
        &self,
        pki: &Pki,
        directory: &std::path::Path,
        address: SocketAddr,
    ) -> Result<(), Failure> {
        let host = if address.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { address.ip() };
        let server = format!("https://{}", SocketAddr::new(host, address.port()));
        let kubelet = format!("system:node:{}", crate::host_name());
        let users = [
            ("admin", "hyperkube-admin", "system:masters"),
            ("controller-manager", identities::CONTROLLER_MANAGER, ""),
            ("scheduler", identities::SCHEDULER, ""),
            ("kubelet", &kubelet, identities::NODES),
            ("kube-proxy", identities::PROXY, ""),
        ];
        for (file, user, group) in users {
            let identity =
                pki.client(file, user, group).map_err(Failure::because(format!("certificate of {user}")))?;
            let config =
                Kubeconfig::single("hyperkube", &server, pki.ca(), &identity.certificate, &identity.key);
            let path = directory.join(format!("{file}.kubeconfig"));
            refresh_private(&path, config.to_yaml().as_bytes())
                .map_err(Failure::because(format!("write {}", path.display())))?;
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

    pub(super) fn client(&self, name: &str) -> Result<Client, Failure> {
        let remote = Remote::new(&self.remote()?).map_err(|e| self.unusable(&e))?;
        Ok(Client::new(remote).named(name))
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
        told_to_stop().await;
        told.cancel();
    });
    stop
}

/// Reads a component's configuration file (YAML). Unknown keys are errors.
pub(super) fn config_file<T: serde::de::DeserializeOwned + Default>(
    path: Option<&PathBuf>,
) -> Result<T, Failure> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    serde_saphyr::from_str(&text)
        .map_err(|e| Failure::new(Code::Usage, format!("--config {}: {e}", path.display())))
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
    #[arg(long, default_value = "10.42.0.0/16", value_parser = ranges::parse)]
    cluster_cidr: Ipv4Net,
    /// Run each controller as its own service account of kube-system, with upstream's role for it. If false,
    /// all use the kubeconfig's user, who then needs the permissions of all of them.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    use_service_account_credentials: bool,
    /// CA certificate to publish in every namespace (default: the kubeconfig's).
    #[arg(long)]
    root_ca_file: Option<PathBuf>,
    /// Configuration file (KubeControllerManagerConfiguration: `controllers`).
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Supported fields of a KubeControllerManagerConfiguration.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ControllerManagerFile {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    controllers: Vec<String>,
}

impl ControllerManager {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let file: ControllerManagerFile = config_file(self.config.as_ref())?;
        let names = if file.controllers.is_empty() { &self.controllers } else { &file.controllers };
        let selection = builtin::Selection::parse(names.iter().map(String::as_str))
            .map_err(|e| Failure::new(Code::Usage, e.to_string()))?;
        let client = self.connection.client("kube-controller-manager")?;
        let root_ca = match &self.root_ca_file {
            Some(file) => read(file)?,
            None => {
                let config = Kubeconfig::read(&self.connection.kubeconfig).and_then(|c| c.remote(None));
                config.ok().and_then(|c| c.ca).unwrap_or_default()
            }
        };
        let options = builtin::Options {
            root_ca: String::from_utf8_lossy(&root_ca).into_owned(),
            cluster_cidr: Some(self.cluster_cidr.into()),
            ..builtin::Options::default()
        };
        let accounts =
            self.use_service_account_credentials.then(|| self.connection.accounts(&client)).transpose()?;
        let stop = stop_token();
        let metrics = Metrics::default();
        // A process that waits for the leader lease has no controllers and is ready.
        let ready = {
            let metrics = metrics.clone();
            move || metrics.ready()
        };
        self.health.serve(self.secure_port, metrics.registry(), ready, &stop).await?;
        let work = {
            let client = client.clone();
            move |stop| {
                let mut manager =
                    Manager::new(client).measured(metrics).runnables(selection.runnables(&options));
                if let Some(accounts) = accounts {
                    manager = manager
                        .accounts(move |account| accounts.client(account).named("kube-controller-manager"));
                }
                manager.run(stop)
            }
        };
        self.election.run(&client, "kube-controller-manager", stop, work).await
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
    /// Configuration file (KubeSchedulerConfiguration: `profiles[0].schedulerName`).
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Supported fields of a KubeSchedulerConfiguration.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SchedulerFile {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    profiles: Vec<SchedulerProfile>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SchedulerProfile {
    scheduler_name: String,
}

impl KubeScheduler {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let file: SchedulerFile = config_file(self.config.as_ref())?;
        let client = self.connection.client("kube-scheduler")?;
        let mut builder = Scheduler::builder();
        if let Some(profile) = file.profiles.first().filter(|p| !p.scheduler_name.is_empty()) {
            builder = builder.named(&profile.scheduler_name);
        }
        let stop = stop_token();
        let metrics = Metrics::default();
        self.health.serve(self.secure_port, metrics.registry(), || Ok(()), &stop).await?;
        let work = {
            let environment = Environment { metrics, ..Environment::new(client.clone()) };
            move |stop| builder.start(Environment { shutdown: stop, ..environment })
        };
        self.election.run(&client, "kube-scheduler", stop, work).await
    }
}
