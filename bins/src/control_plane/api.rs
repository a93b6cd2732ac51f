//! An API server with its store, its certificates, its listener and the objects that it publishes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{
    ApiServer, User,
    auth::AuthorizationMode,
    limits::Limits,
    listen::{self, TlsFiles},
    proxy::{LocalKubelets, RemoteKubelets},
};
use k8s_builtin::Signer;
use k8s_controllers::metrics::counted;
use k8s_core::client::{Client, Kubeconfig};
use k8s_store::Store;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{objects, open_store};
use crate::{
    admission::AdmissionSettings,
    audit::AuditSettings,
    authentication::{self, AuthenticationSettings},
    encryption::EncryptionSettings,
    error::ClusterError,
    extensions::Serve,
    front_proxy::FrontProxy,
    identities,
    paths::Paths,
    pki::{Identity, Pki},
    ranges,
    versions::VersionSettings,
};

/// Settings of an API server.
#[derive(Debug)]
pub(crate) struct ApiConfig {
    /// Listen address of the API over TLS. `None`: no socket. Port 0 picks a free one.
    pub(crate) listen: Option<SocketAddr>,
    /// Address at which pods and other nodes reach the API.
    pub(crate) advertise: IpAddr,
    /// Service CIDR.
    pub(crate) services: Ipv4Net,
    /// Node port range, both ends included.
    pub(crate) node_ports: (u16, u16),
    /// Pod CIDR of the cluster. `None`: the ranges of the nodes.
    pub(crate) pods: Option<Ipv4Net>,
    /// Cluster domain.
    pub(crate) domain: String,
    /// Keep objects in memory only.
    pub(crate) memory: bool,
    /// Move an unusable store aside and start with an empty one.
    pub(crate) forget_state: bool,
    /// Additional names and addresses (SANs) for the server certificate.
    pub(crate) tls_names: Vec<String>,
    /// Directory of certificates and keys. `None`: the data directory's.
    pub(crate) pki: Option<PathBuf>,
    /// Certificates (PEM) of client CAs beside the cluster's.
    pub(crate) client_ca: Vec<u8>,
    /// Settings of authentication.
    pub(crate) authentication: AuthenticationSettings,
    /// Authorizers, in their order.
    pub(crate) authorization: Vec<AuthorizationMode>,
    /// Settings of encryption at rest.
    pub(crate) encryption: EncryptionSettings,
    /// Admission plugins.
    pub(crate) admission: AdmissionSettings,
    /// Audit policy and log.
    pub(crate) audit: AuditSettings,
    /// Served versions and resources.
    pub(crate) versions: VersionSettings,
    /// Send warnings about kinds and fields without effect.
    pub(crate) warn_unenforced: bool,
    /// Limits on clients over the socket.
    pub(crate) limits: Limits,
}

impl Default for ApiConfig {
    /// A server without a socket, with the default ranges, Node and RBAC.
    fn default() -> Self {
        ApiConfig {
            listen: None,
            advertise: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            services: ranges::services(),
            node_ports: (30000, 32767),
            pods: None,
            domain: ranges::DOMAIN.into(),
            memory: false,
            forget_state: false,
            tls_names: Vec::new(),
            pki: None,
            client_ca: Vec::new(),
            authentication: AuthenticationSettings::default(),
            authorization: vec![AuthorizationMode::Node, AuthorizationMode::Rbac],
            encryption: EncryptionSettings::default(),
            admission: AdmissionSettings::default(),
            audit: AuditSettings::default(),
            versions: VersionSettings::default(),
            warn_unenforced: true,
            limits: limits(),
        }
    }
}

/// A running API server.
pub(crate) struct Api {
    /// The server, for calls in this process.
    pub(crate) server: ApiServer,
    /// Listen address; `None` without a socket.
    pub(crate) address: Option<SocketAddr>,
    /// Certificates and keys of the cluster.
    pub(crate) pki: Pki,
    /// Name of the distribution: context of kubeconfigs, prefix of its administrator's user.
    name: String,
    /// Kubelets in this process, which the server calls directly. Others are called over HTTPS.
    pub(crate) kubelets: Arc<LocalKubelets>,
    /// Signer of tokens in Secrets, with the server's key.
    pub(crate) token_signer: Signer,
    stop: CancellationToken,
    serving: Option<JoinHandle<io::Result<()>>>,
}

impl Api {
    /// Starts an API server. On return it serves requests, and its objects are published.
    ///
    /// # Errors
    /// Everything that was started is stopped again.
    pub(crate) async fn start(
        paths: &Paths,
        config: ApiConfig,
        added: Vec<Serve>,
    ) -> Result<Self, ClusterError> {
        let listener = match config.listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let address = listener.as_ref().and_then(|l| l.local_addr().ok());
        let settings = &config.authentication;
        let advertised = address.map(|address| SocketAddr::new(config.advertise, address.port()));
        let authenticator = settings.authenticator()?;
        let account_tokens = settings.service_account_tokens(advertised)?;
        let pki_dir = config.pki.clone().unwrap_or_else(|| paths.pki());
        let pki = Pki::open(&paths.name, &pki_dir)?;
        let store = match config.memory {
            true => Store::memory(),
            false => open_store(paths, config.forget_state, &config.encryption, &pki_dir).await?,
        };
        let signing_key = match settings.signing_key()? {
            Some(key) => key,
            None => pki.service_account_key()?,
        };
        let token_signer = authentication::token_signer(&signing_key)?;
        let kubelets = Arc::new(LocalKubelets::new(Some(Arc::new(remote_kubelets(&pki)?))));
        let front_proxy = FrontProxy::open(paths)?;
        let server = config.versions.apply(ApiServer::builder(store));
        let server = config.audit.apply(config.admission.apply(server)?)?;
        let mut builder = added
            .into_iter()
            .fold(server, |builder, add| add(builder))
            .authenticator(authenticator)
            .authorization(config.authorization.clone())
            .warn_unenforced(config.warn_unenforced)
            .track_token_uses(true)
            .service_account_key(signing_key)
            .service_account_tokens(account_tokens)
            .service_range(config.services)
            .node_ports(config.node_ports.0, config.node_ports.1)
            .nodes(kubelets.clone())
            .front_proxy(front_proxy.identity())
            .limits(config.limits.clone());
        if let Some(pods) = config.pods {
            builder = builder.pod_range(pods);
        }
        let server = builder.build().await?;
        let mut api = Api {
            server,
            address,
            pki,
            name: paths.name.clone(),
            kubelets,
            token_signer,
            stop: CancellationToken::new(),
            serving: None,
        };
        match api.open(listener, &config, &front_proxy).await {
            Ok(()) => Ok(api),
            Err(e) => {
                api.shutdown().await;
                Err(e)
            }
        }
    }

    /// Serves the listener, and publishes the server's objects.
    #[expect(clippy::disallowed_methods, reason = "shutdown waits for the listener")]
    async fn open(
        &mut self,
        listener: Option<TcpListener>,
        config: &ApiConfig,
        front_proxy: &FrontProxy,
    ) -> Result<(), ClusterError> {
        if let Some(listener) = listener {
            let identity = server_identity(&self.pki, config)?;
            let mut client_ca = self.pki.ca().as_bytes().to_vec();
            client_ca.extend(&config.client_ca);
            let files = TlsFiles {
                certificate: identity.certificate.into_bytes(),
                key: identity.key.into_bytes(),
                client_ca: Some(client_ca),
            };
            let tls = Arc::new(listen::tls_config(&files).map_err(ClusterError::of("server TLS"))?);
            let (server, stop) = (self.server.clone(), self.stop.clone());
            self.serving = Some(tokio::spawn(async move {
                let ended = listen::serve(server, listener, tls, stop).await;
                if let Err(e) = &ended {
                    tracing::error!(error = %e, "the API listener ended");
                }
                ended
            }));
        }
        let admin = self.client();
        objects::kubernetes_service(&admin, config, self.address)
            .await
            .map_err(ClusterError::of("make the kubernetes Service"))?;
        let bound = identities::bind(&admin, &self.name, &config.authorization).await;
        bound.map_err(ClusterError::of("bind the components' roles"))?;
        front_proxy
            .publish(&admin, self.pki.ca())
            .await
            .map_err(ClusterError::of("publish the front proxy's CA"))
    }

    /// Returns an in-process client of a cluster administrator.
    pub(crate) fn client(&self) -> Client {
        self.client_as(User::admin()).named(&self.name)
    }

    /// Returns an in-process client of a user. Its requests are counted in the server's metrics.
    pub(crate) fn client_as(&self, user: User) -> Client {
        counted(&self.server.client_as(user), self.server.metrics())
    }

    /// Returns a user's kubeconfig. The certificate is stored under `file`.
    ///
    /// # Errors
    /// The server has no socket, or the certificate cannot be created.
    pub(crate) fn kubeconfig(&self, file: &str, user: &str, group: &str) -> Result<Kubeconfig, ClusterError> {
        let address = self.address.ok_or(ClusterError::NoAddress)?;
        let host = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
        let identity = self.pki.client(file, user, group)?;
        let server = format!("https://{}", SocketAddr::new(host, address.port()));
        Ok(Kubeconfig::single(&self.name, &server, self.pki.ca(), &identity.certificate, &identity.key))
    }

    /// Returns the administrator's kubeconfig.
    ///
    /// # Errors
    /// As [`Api::kubeconfig`].
    pub(crate) fn admin_kubeconfig(&self) -> Result<Kubeconfig, ClusterError> {
        self.kubeconfig("admin", &format!("{}-admin", self.name), "system:masters")
    }

    /// Waits until the listener ends; forever without a socket. May be called again after a cancelled call.
    ///
    /// # Errors
    /// The listener failed.
    pub(crate) async fn ended(&mut self) -> Result<(), ClusterError> {
        let Some(task) = &mut self.serving else { return std::future::pending().await };
        let ended = task.await;
        self.serving = None;
        ended.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(ClusterError::of("serve"))
    }

    /// Closes the listener; requests in progress get 5 seconds. The store keeps its objects.
    pub(crate) async fn shutdown(self) {
        self.stop.cancel();
        if let Some(task) = self.serving {
            super::join(task).await;
        }
    }
}

/// Returns a client of kubelets that presents the API server's kubelet client certificate.
fn remote_kubelets(pki: &Pki) -> Result<RemoteKubelets, ClusterError> {
    let identity = pki.client("apiserver-kubelet-client", identities::KUBELET_CLIENT, "")?;
    let trust = k8s_tls::Trust::Pem(pki.ca().as_bytes());
    let tls = k8s_tls::client(&trust, Some(&identity.tls()), &[])
        .map_err(ClusterError::of("kubelet client TLS"))?;
    Ok(RemoteKubelets::new(tls))
}

/// Returns the API's limits: the defaults, with the number of connections bounded by this process's open
/// files limit.
#[must_use]
pub(crate) fn limits() -> Limits {
    let mut limits = Limits::default();
    let files = usize::try_from(k8s_runtime::descriptors::limit()).unwrap_or(usize::MAX);
    limits.connections = limits.connections.min(files / 4 * 3);
    limits
}

/// Binds a TCP listener.
///
/// # Errors
/// [`ClusterError::AddressInUse`], [`ClusterError::Listen`].
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, ClusterError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ClusterError::AddressInUse { address, source },
        _ => ClusterError::Listen { address, source },
    })
}

/// Returns the API server's certificate, for all names and addresses of the server.
fn server_identity(pki: &Pki, config: &ApiConfig) -> Result<Identity, ClusterError> {
    let hostname = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
    let in_cluster = format!("kubernetes.default.svc.{}", config.domain);
    let mut names =
        vec!["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", &in_cluster];
    if !hostname.is_empty() {
        names.push(&hostname);
    }
    let mut addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        IpAddr::V4(ranges::nth(config.services, 1)),
        config.advertise,
    ];
    for extra in &config.tls_names {
        match extra.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(extra),
        }
    }
    if let Some(listen) = config.listen.filter(|l| !l.ip().is_unspecified()) {
        addresses.push(listen.ip());
    }
    pki.server("apiserver", &names, &addresses).map_err(ClusterError::from)
}
