//! An API server with its store, its certificates, its listener and the objects that it publishes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{
    ApiServer, User,
    auth::AuthorizationMode,
    limits::Limits,
    listen,
    proxy::{LocalKubelets, RemoteKubelets},
};
use k8s_builtin::Signer;
use k8s_controllers::metrics::counted;
use k8s_core::{
    client::{Client, Kubeconfig},
    clock::Clock,
};
use k8s_metrics_server::{
    MetricsServer,
    adapter::{CustomMetrics, ExternalMetrics, Scraper},
};
use k8s_store::Store;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{objects, open_store};
use crate::{
    addons,
    admission::AdmissionSettings,
    audit::AuditSettings,
    authentication::{self, AuthenticationSettings},
    authorization::AuthorizationFlags,
    encryption::EncryptionSettings,
    error::ClusterError,
    extensions::Serve,
    front_proxy::FrontProxy,
    identities, ingress,
    lifecycle::LifecycleSettings,
    paths::Paths,
    pki::{Identity, Pki, Validity},
    ranges,
    reload::{self, Reloaded},
    renewal::Renewals,
    serving::{ListenerTls, REREAD, ServingSettings},
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
    /// TLS of the listener.
    pub(crate) serving: ServingSettings,
    /// Shutdown and profiles.
    pub(crate) lifecycle: LifecycleSettings,
    /// Settings of authentication.
    pub(crate) authentication: AuthenticationSettings,
    /// Authorizers, in their order.
    pub(crate) authorization: Vec<AuthorizationMode>,
    /// Flags that the authorizers are from; the file that they name is read again while the server runs.
    pub(crate) authorization_flags: AuthorizationFlags,
    /// Settings of encryption at rest.
    pub(crate) encryption: EncryptionSettings,
    /// Admission plugins.
    pub(crate) admission: AdmissionSettings,
    /// Audit policy and log.
    pub(crate) audit: AuditSettings,
    /// Served versions and resources.
    pub(crate) versions: VersionSettings,
    /// Serve the resource metrics API, with readings of at most this age. `None`: not served.
    pub(crate) resource_metrics: Option<Duration>,
    /// Serve custom and external metrics of annotated pods, with readings of at most this age. `None`: not
    /// served.
    pub(crate) custom_metrics: Option<Duration>,
    /// True: make the class `local-path`; false: remove it. `None`: leave it.
    pub(crate) local_storage: Option<bool>,
    /// True: make what the load balancer of Services needs; false: remove it. `None`: leave it.
    pub(crate) service_lb: Option<bool>,
    /// True: make the class and the role of the Ingress controller; false: remove them and its Service.
    /// `None`: leave them.
    pub(crate) ingress: Option<bool>,
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
            serving: ServingSettings::default(),
            lifecycle: LifecycleSettings::default(),
            authentication: AuthenticationSettings::default(),
            authorization: vec![AuthorizationMode::Node, AuthorizationMode::Rbac],
            authorization_flags: AuthorizationFlags::default(),
            encryption: EncryptionSettings::default(),
            admission: AdmissionSettings::default(),
            audit: AuditSettings::default(),
            versions: VersionSettings::default(),
            resource_metrics: None,
            custom_metrics: None,
            local_storage: None,
            service_lb: None,
            ingress: None,
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
    pub(crate) pki: Arc<Pki>,
    /// Kubeconfigs of the cluster.
    pub(crate) kubeconfigs: Kubeconfigs,
    /// The steps that renew certificates while the server runs.
    pub(crate) renewals: Renewals,
    /// Kubelets in this process, which the server calls directly. Others are called over HTTPS.
    pub(crate) kubelets: Arc<LocalKubelets>,
    /// Signer of tokens in Secrets, with the server's key.
    pub(crate) token_signer: Signer,
    /// Time between failing readiness and the listener's end.
    shutdown_delay: Duration,
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
        config.serving.check()?;
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
        let pki = Arc::new(Pki::open(&paths.name, &pki_dir)?);
        let signed = pki.validity();
        let store = match config.memory {
            true => Store::memory(),
            false => open_store(paths, config.forget_state, &config.encryption, &pki_dir).await?,
        };
        let signing_key = match settings.signing_key()? {
            Some(key) => key,
            None => pki.service_account_key()?,
        };
        let token_signer = authentication::token_signer(&signing_key)?;
        let renewals = Renewals::default();
        let kubelets = Arc::new(LocalKubelets::new(Some(Arc::new(remote_kubelets(&pki, &renewals)?))));
        let front_proxy = Arc::new(FrontProxy::open(paths)?);
        let server = config.versions.apply(ApiServer::builder(store));
        let server = config.audit.apply(config.admission.apply(server)?)?;
        let mut builder = added
            .into_iter()
            .fold(server, |builder, add| add(builder))
            .authenticator(authenticator)
            .authorization(config.authorization.clone())
            .warn_unenforced(config.warn_unenforced)
            .serves_ingresses(config.ingress == Some(true))
            .track_token_uses(true)
            .service_account_key(signing_key)
            .service_account_tokens(account_tokens)
            .service_range(config.services)
            .node_ports(config.node_ports.0, config.node_ports.1)
            .nodes(kubelets.clone())
            .front_proxy(front_proxy.identity()?)
            .profiling(config.lifecycle.profiling)
            .limits(config.lifecycle.limits(config.limits.clone()));
        if let Some(pods) = config.pods {
            builder = builder.pod_range(pods);
        }
        if let Some(age) = config.resource_metrics {
            builder = builder.local_api(Arc::new(MetricsServer::new(age, Clock::system())));
        }
        if let Some(age) = config.custom_metrics {
            let scraper = Arc::new(Scraper::new(age, Clock::system()));
            for api in CustomMetrics::versions(&scraper) {
                builder = builder.local_api(Arc::new(api));
            }
            builder = builder.local_api(Arc::new(ExternalMetrics::new(scraper)));
        }
        let server = builder.build().await?;
        let (renewed, identities) = (server.clone(), front_proxy.clone());
        renewals.add("front-proxy-client", move || Ok(renewed.renew_front_proxy(&identities.identity()?)?));
        let kubeconfigs =
            Kubeconfigs { name: paths.name.clone(), address, trust: pki.ca().to_owned(), pki: pki.clone() };
        let stop = CancellationToken::new();
        let mut api = Api {
            server,
            address,
            pki,
            kubeconfigs,
            renewals,
            kubelets,
            token_signer,
            shutdown_delay: config.lifecycle.shutdown_delay_duration,
            stop,
            serving: None,
        };
        match api.open(listener, config, front_proxy).await {
            Ok(()) => {
                api.keep_certificates(signed);
                Ok(api)
            }
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
        config: ApiConfig,
        front_proxy: Arc<FrontProxy>,
    ) -> Result<(), ClusterError> {
        let config = Arc::new(config);
        let mut own = None;
        if let Some(listener) = listener {
            let identity = server_identity(&self.pki, &config)?;
            let files = Arc::new(config.serving.listener(identity.tls(), self.pki.ca())?);
            if let Some(given) = files.given() {
                self.kubeconfigs.trust = format!("{}\n{given}", self.pki.ca());
            }
            let (pki, of, renewed) = (self.pki.clone(), config.clone(), files.clone());
            self.renewals.add("apiserver", move || renewed.renew(server_identity(&pki, &of)?.tls()));
            let tls = files.tls();
            own = Some(files);
            let (server, stop) = (self.server.clone(), self.stop.clone());
            self.serving = Some(tokio::spawn(async move {
                let ended = listen::serve(server, listener, tls, stop).await;
                if let Err(e) = &ended {
                    tracing::error!(error = %e, "the API listener ended");
                }
                ended
            }));
        }
        self.reload_configurations(&config);
        let admin = self.client();
        objects::kubernetes_service(&admin, &config, self.address)
            .await
            .map_err(ClusterError::of("make the kubernetes Service"))?;
        let made = objects::service_range(&admin, &config).await;
        made.map_err(ClusterError::of("make the ServiceCIDR kubernetes"))?;
        let bound = identities::bind(&admin, &self.kubeconfigs.name, &config.authorization).await;
        bound.map_err(ClusterError::of("bind the components' roles"))?;
        let readable = addons::network_policies(&admin).await;
        readable.map_err(ClusterError::of("let service proxies read network policies"))?;
        let readable = addons::corefile(&admin).await;
        readable.map_err(ClusterError::of("let the cluster DNS read its Corefile"))?;
        if config.resource_metrics.is_some() {
            let made = addons::metrics_reader(&admin).await;
            made.map_err(ClusterError::of("let viewers read the metrics"))?;
        }
        let stored = match config.local_storage {
            Some(true) => addons::local_storage(&admin).await,
            Some(false) => addons::without_local_storage(&admin).await,
            None => Ok(()),
        };
        stored.map_err(ClusterError::of("make the class local-path"))?;
        let balanced = match config.service_lb {
            Some(true) => addons::service_lb(&admin).await,
            Some(false) => addons::without_service_lb(&admin).await,
            None => Ok(()),
        };
        balanced.map_err(ClusterError::of("prepare the load balancer of Services"))?;
        let ingress = match config.ingress {
            Some(true) => ingress::prepare(&admin).await,
            Some(false) => ingress::remove(&admin).await,
            None => Ok(()),
        };
        ingress.map_err(ClusterError::of("prepare the Ingress controller"))?;
        let client_cas = own.as_ref().map_or_else(|| self.pki.ca().to_owned(), |files| files.client_cas());
        front_proxy
            .publish(&admin, &client_cas)
            .await
            .map_err(ClusterError::of("publish the front proxy's CA"))?;
        if let Some(files) = own {
            let stop = self.stop.clone();
            tokio::spawn(async move {
                stop.run_until_cancelled(reload_files(&files, &front_proxy, &admin)).await;
            });
        }
        Ok(())
    }

    /// Reads configuration files again each minute until the server stops.
    #[expect(clippy::disallowed_methods, reason = "the tasks end with the server's token")]
    fn reload_configurations(&self, config: &Arc<ApiConfig>) {
        let metrics = self.server.metrics();
        let mut all = Vec::new();
        if let Some(file) = config.authentication.configuration_file() {
            let (server, config) = (self.server.clone(), config.clone());
            let apply = move |text: &str| {
                let configurations = config.authentication.configurations_of(Some(text))?;
                let replaced = server.replace_authentication(configurations);
                replaced.map_err(|why| ClusterError::invalid("--authentication-config", why))
            };
            all.push(Reloaded::new(file, Clock::system(), (reload::AUTHENTICATION, metrics), apply));
        }
        if let Some(file) = config.authorization_flags.configuration_file() {
            let (server, config) = (self.server.clone(), config.clone());
            let apply = move |text: &str| {
                let modes = config.authorization_flags.reconfigured(text, &config.authorization)?;
                server.replace_authorization(&modes);
                Ok(())
            };
            all.push(Reloaded::new(file, Clock::system(), (reload::AUTHORIZATION, metrics), apply));
        }
        for reloaded in all {
            let stop = self.stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(reloaded.run()).await });
        }
    }

    /// Renews certificates, signed for this time, until the server stops.
    #[expect(clippy::disallowed_methods, reason = "the task ends with the server's token")]
    fn keep_certificates(&self, signed: Validity) {
        tokio::spawn(self.renewals.clone().run(self.pki.clone(), signed, self.stop.clone()));
    }

    /// Returns an in-process client of a cluster administrator.
    pub(crate) fn client(&self) -> Client {
        self.client_as(User::admin()).named(&self.kubeconfigs.name)
    }

    /// Returns an in-process client of a user. Its requests are counted in the server's metrics.
    pub(crate) fn client_as(&self, user: User) -> Client {
        counted(&self.server.client_as(user), self.server.metrics())
    }

    /// Returns the administrator's kubeconfig.
    ///
    /// # Errors
    /// As [`Kubeconfigs::of`].
    pub(crate) fn admin_kubeconfig(&self) -> Result<Kubeconfig, ClusterError> {
        self.kubeconfigs.admin()
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

    /// Makes `/readyz` fail, and serves as before for the shutdown delay. Without a socket, or a second time,
    /// there is no delay.
    pub(crate) async fn begin_shutdown(&mut self) {
        self.server.begin_shutdown();
        let delay = std::mem::take(&mut self.shutdown_delay);
        if self.serving.is_some() && !delay.is_zero() {
            tracing::info!(?delay, "not ready any more, and serving until the end of the delay");
            tokio::time::sleep(delay).await;
        }
    }

    /// Closes the listener after [`Api::begin_shutdown`]. Watches end, requests in flight are answered within
    /// a minute. The store keeps its objects.
    pub(crate) async fn shutdown(mut self) {
        self.begin_shutdown().await;
        self.stop.cancel();
        if let Some(task) = self.serving
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the API listener ended");
        }
    }
}

/// The source of a cluster's kubeconfigs, with new certificates.
#[derive(Clone, Debug)]
pub(crate) struct Kubeconfigs {
    /// Name of the distribution: context of kubeconfigs, prefix of its administrator's user.
    name: String,
    address: Option<SocketAddr>,
    /// CAs (PEM) that signed the server's certificate.
    trust: String,
    pki: Arc<Pki>,
}

impl Kubeconfigs {
    /// Returns a user's kubeconfig. The certificate is stored under `file`.
    ///
    /// # Errors
    /// The server has no socket, or the certificate cannot be created.
    pub(crate) fn of(&self, file: &str, user: &str, group: &str) -> Result<Kubeconfig, ClusterError> {
        let address = self.address.ok_or(ClusterError::NoAddress)?;
        let host = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
        let identity = self.pki.client(file, user, group)?;
        let server = format!("https://{}", SocketAddr::new(host, address.port()));
        Ok(Kubeconfig::single(&self.name, &server, &self.trust, &identity.certificate, &identity.key))
    }

    /// Returns the administrator's kubeconfig.
    ///
    /// # Errors
    /// As [`Kubeconfigs::of`].
    pub(crate) fn admin(&self) -> Result<Kubeconfig, ClusterError> {
        self.of("admin", &format!("{}-admin", self.name), "system:masters")
    }

    /// Returns the CAs (PEM) that signed the server's certificate.
    pub(crate) fn trust(&self) -> &str {
        &self.trust
    }
}

/// Reads the listener's files again each minute, and publishes changed client CAs.
async fn reload_files(files: &ListenerTls, front_proxy: &FrontProxy, admin: &Client) {
    loop {
        tokio::time::sleep(REREAD).await;
        if files.reload()
            && let Err(error) = front_proxy.publish(admin, &files.client_cas()).await
        {
            tracing::warn!(%error, "the client CAs are not published");
        }
    }
}

/// Returns a client of kubelets that presents the API server's kubelet client certificate.
fn remote_kubelets(pki: &Arc<Pki>, renewals: &Renewals) -> Result<RemoteKubelets, ClusterError> {
    let invalid = || ClusterError::of("kubelet client TLS");
    let signed = {
        let pki = pki.clone();
        move || pki.client("apiserver-kubelet-client", identities::KUBELET_CLIENT, "").map(|id| id.tls())
    };
    let identity = k8s_tls::ClientIdentity::new(&signed()?).map_err(invalid())?;
    let trust = k8s_tls::Trust::Pem(pki.ca().as_bytes());
    let tls = k8s_tls::client_of(&trust, &identity, &[]).map_err(invalid())?;
    renewals.add("apiserver-kubelet-client", move || identity.replace(&signed()?).map_err(invalid()));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the certificate that a listener serves, to a client with the certificate of a kubeconfig.
    async fn served(address: SocketAddr, config: &Kubeconfig) -> Vec<u8> {
        let tls = Arc::new(config.remote(None).unwrap().tls().unwrap());
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let stream = k8s_tls::connect(tls, "127.0.0.1", tcp).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    #[tokio::test]
    async fn a_renewal_replaces_the_listeners_certificate_and_keeps_clients() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new("shop", directory.path()).unwrap();
        let listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let config = ApiConfig { listen, memory: true, ..ApiConfig::default() };
        let api = Api::start(&paths, config, Vec::new()).await.unwrap();
        let address = api.address.unwrap();
        let old = api.admin_kubeconfig().unwrap();
        let first = served(address, &old).await;
        assert_eq!(served(address, &old).await, first);
        assert!(api.renewals.renew());
        let renewed = served(address, &old).await;
        assert_ne!(renewed, first);
        let new = api.kubeconfigs.admin().unwrap();
        assert_ne!(new.to_yaml(), old.to_yaml());
        assert_eq!(served(address, &new).await, renewed, "both certificates are of the same CA");
        // A step that cannot write its file fails, and the others succeed.
        api.renewals.add("a file", || Err(ClusterError::NoAddress));
        assert!(!api.renewals.renew());
        assert_ne!(served(address, &old).await, renewed);
        api.shutdown().await;
    }
}
