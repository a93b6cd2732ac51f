//! The control plane in this process: store, API server, controllers, scheduler.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{
    ApiServer, User,
    auth::{Authenticator, AuthorizationMode},
    limits::Limits,
    listen::{self, TlsFiles},
    proxy::LocalKubelets,
};
use k8s_builtin as builtin;
use k8s_controllers::{Caches, Environment, Manager, metrics::Metrics};
use k8s_core::client::{Client, Kubeconfig};
use k8s_scheduler::Scheduler;
use k8s_store::{Embedded, Local, OpenError, Store};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    apply::apply,
    exit::{Code, Failure},
    extras::Extras,
    front_proxy::FrontProxy,
    identities,
    paths::Paths,
    pki::Pki,
    ranges,
};

/// Settings of a control plane.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    /// Listen address of the API over TLS. `None`: no socket. Port 0 picks a free one.
    pub listen: Option<SocketAddr>,
    /// Address at which pods and other nodes reach the API.
    pub advertise: IpAddr,
    /// Service CIDR.
    pub services: Ipv4Net,
    /// Pod CIDR of the cluster.
    pub pods: Ipv4Net,
    /// Cluster domain.
    pub domain: String,
    /// Keep objects in memory only.
    pub memory: bool,
    /// Move an unusable store aside and start with an empty one.
    pub forget_state: bool,
    /// Additional names and addresses (SANs) for the server certificate.
    pub tls_names: Vec<String>,
    /// Selection of built-in controllers (`*`, `-name`).
    pub controllers: Vec<String>,
    /// Extensions of the embedding program.
    pub extras: Extras,
}

/// A running control plane.
pub struct ControlPlane {
    /// The in-process API server.
    pub server: ApiServer,
    /// Listen address of the API; `None` without a socket.
    pub address: Option<SocketAddr>,
    /// Certificates and keys of the cluster.
    pub pki: Pki,
    /// Kubelets in this process; the API server calls them directly.
    pub kubelets: Arc<LocalKubelets>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Opens the store in a data directory. `forget` moves an unusable file aside and starts with an empty store.
///
/// # Errors
/// In use (4); written by a newer program, empty, of another program, or missing beside containers (3);
/// damaged or not accessible (1).
pub fn open_store(paths: &Paths, forget: bool) -> Result<Store, Failure> {
    let file = paths.store();
    let opened = Embedded::open_existing(&file);
    let lost = match &opened {
        Err(OpenError::Empty { .. }) => Some("it is empty"),
        Err(OpenError::Foreign { .. }) => Some("it is no store of this program"),
        Err(OpenError::Missing { .. }) if k8s_runtime::embedded::has_sandboxes(&paths.containers()) => {
            Some("it is missing, and there are containers of a cluster")
        }
        _ => None,
    };
    let opened = match lost {
        Some(why) if !forget => {
            let shown = file.display();
            return Err(Failure::new(
                Code::Preflight,
                format!(
                    "the cluster's state {shown} cannot be used: {why}. Put a copy of it back, or start with --forget-state: the file is set aside, and the containers of its pods are removed"
                ),
            ));
        }
        Some(_) if file.exists() => {
            let aside = file.with_extension(format!("forgotten-{}", jiff::Timestamp::now().as_second()));
            std::fs::rename(&file, &aside).map_err(Failure::io(format!("set {} aside", file.display())))?;
            Embedded::open(&file)
        }
        _ if matches!(opened, Err(OpenError::Missing { .. })) => Embedded::open(&file),
        _ => opened,
    };
    let backend = opened.map_err(|e| {
        let code = match e {
            OpenError::InUse { .. } => Code::InUse,
            OpenError::Newer { .. } => Code::Preflight,
            _ => Code::Failed,
        };
        Failure::new(code, e.to_string())
    })?;
    Store::open(Local::new(backend), k8s_apiserver::format::Json).map_err(Failure::because("read the store"))
}

/// Returns the API's limits: the defaults, with the number of connections bounded by this process's open
/// files limit.
#[must_use]
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    let files = usize::try_from(k8s_runtime::descriptors::raise()).unwrap_or(usize::MAX);
    limits.connections = limits.connections.min(files / 4 * 3);
    limits
}

/// Binds a TCP listener.
///
/// # Errors
/// Address in use (4), not permitted (7).
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|e| {
        let code = match e.kind() {
            std::io::ErrorKind::AddrInUse => Code::InUse,
            std::io::ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::Failed,
        };
        let mend = if code == Code::InUse { "; stop what uses it or choose another port" } else { "" };
        Failure::new(code, format!("listen on {address}: {e}{mend}"))
    })
}

impl ControlPlane {
    /// Starts all components. They are ready on return.
    ///
    /// # Errors
    /// A one-line message and an exit code.
    pub async fn start(paths: &Paths, config: &ControlPlaneConfig) -> Result<Self, Failure> {
        let listener = match config.listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let address = listener.as_ref().and_then(|l| l.local_addr().ok());
        let pki = Pki::open(&paths.pki()).map_err(Failure::because("certificates"))?;
        let store = if config.memory { Store::memory() } else { open_store(paths, config.forget_state)? };
        let kubelets = Arc::new(LocalKubelets::new(Some(Arc::new(crate::remote_kubelets(&pki)?))));
        let front_proxy = FrontProxy::open(paths)?;
        let server = config
            .extras
            .shape(ApiServer::builder(store))
            .authenticator(Authenticator::new(std::collections::HashMap::new(), true))
            .authorization(AuthorizationMode::Rbac)
            .service_account_key(pki.service_account_key().map_err(Failure::because("service account key"))?)
            .service_range(config.services)
            .pod_range(config.pods)
            .nodes(kubelets.clone())
            .front_proxy(front_proxy.identity())
            .limits(limits())
            .build()
            .await
            .map_err(Failure::because("start the API server"))?;
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        if let Some(listener) = listener {
            let identity = server_identity(&pki, config)?;
            let files = TlsFiles {
                certificate: identity.certificate.into_bytes(),
                key: identity.key.into_bytes(),
                client_ca: Some(pki.ca().as_bytes().to_vec()),
            };
            let tls = Arc::new(listen::tls_config(&files).map_err(Failure::because("TLS"))?);
            let (server, stop) = (server.clone(), stop.clone());
            tasks.push(tokio::spawn(async move {
                if let Err(e) = listen::serve(server, listener, tls, stop).await {
                    tracing::error!(error = %e, "the API listener ended");
                }
            }));
        }
        let admin = server.client_as(User::admin());
        kubernetes_service(&admin, config, address)
            .await
            .map_err(Failure::because("make the kubernetes Service"))?;
        identities::bind(&admin).await.map_err(Failure::because("bind the components' roles"))?;
        front_proxy
            .publish(&admin, pki.ca())
            .await
            .map_err(Failure::because("publish the front proxy's CA"))?;
        let plane = ControlPlane { server, address, pki, kubelets, stop, tasks };
        plane.start_controllers(config)
    }

    fn start_controllers(mut self, config: &ControlPlaneConfig) -> Result<Self, Failure> {
        let reader = self.server.client_as(User::new(identities::CONTROLLER_MANAGER, &[]));
        let selection = builtin::Selection::parse(config.controllers.iter().map(String::as_str))
            .map_err(|e| Failure::new(Code::Usage, e.to_string()))?;
        let selection = config.extras.select(selection, &config.controllers);
        let options = builtin::Options {
            root_ca: self.pki.ca().to_owned(),
            cluster_cidr: Some(config.pods.into()),
            ..builtin::Options::default()
        };
        // Controllers and scheduler share one process, so they share one set of caches.
        let caches = Caches::new(reader.named("kube-controller-manager").lean());
        let server = self.server.clone();
        let metrics = Metrics::new(server.metrics());
        // The embedding program's own controllers act as the administrator.
        let manager = Manager::new(self.client().named("kube-controller-manager"))
            .caches(caches.clone())
            .measured(metrics.clone())
            .runnables(selection.runnables(&options))
            .accounts(move |account| {
                server
                    .client_as(User::service_account("kube-system", account))
                    .named("kube-controller-manager")
            });
        let manager = config.extras.manage(manager);
        self.tasks.push(tokio::spawn(manager.run(self.stop.clone())));
        let user = User::new(identities::SCHEDULER, &[]);
        let mut environment = Environment::new(self.server.client_as(user).named("kube-scheduler"));
        environment.caches = k8s_builtin::trimmed(caches);
        environment.shutdown = self.stop.clone();
        environment.metrics = metrics;
        self.tasks.push(tokio::spawn(Scheduler::builder().start(environment)));
        Ok(self)
    }

    /// Returns an in-process client of a cluster administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.server.client_as(User::admin()).named("hyperkube")
    }

    /// Returns the administrator's kubeconfig with the context `name`.
    ///
    /// # Errors
    /// The cluster has no socket, or the certificate cannot be created.
    pub fn kubeconfig(&self, name: &str) -> Result<Kubeconfig, Failure> {
        let Some(address) = self.address else {
            return Err(Failure::new(
                Code::Failed,
                "this cluster listens on no address, so there is no kubeconfig for it",
            ));
        };
        let host = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
        let identity = self
            .pki
            .client("admin", "hyperkube-admin", "system:masters")
            .map_err(Failure::because("admin certificate"))?;
        let server = format!("https://{}", SocketAddr::new(host, address.port()));
        Ok(Kubeconfig::single(name, &server, self.pki.ca(), &identity.certificate, &identity.key))
    }

    /// Stops all components. The store keeps its objects.
    pub async fn shutdown(self) {
        self.stop.cancel();
        for task in self.tasks {
            let mut task = task;
            if tokio::time::timeout(Duration::from_secs(5), &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// Returns the API server's certificate, for all names and addresses of the server.
pub(crate) fn server_identity(
    pki: &Pki,
    config: &ControlPlaneConfig,
) -> Result<crate::pki::Identity, Failure> {
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
    pki.server("apiserver", &names, &addresses).map_err(Failure::because("server certificate"))
}

/// Creates or updates the `kubernetes` Service and its EndpointSlice.
///
/// # Errors
/// The API server's error.
pub async fn kubernetes_service(
    client: &Client,
    config: &ControlPlaneConfig,
    address: Option<SocketAddr>,
) -> Result<(), k8s_core::client::Error> {
    let port = address.map_or(6443, |a| a.port());
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": ranges::nth(config.services, 1), "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": config.advertise}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [config.advertise], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    apply(client, "/api/v1/namespaces/default/services/kubernetes", &service).await?;
    if config.advertise.is_loopback() {
        // Pods cannot reach a loopback address.
        tracing::warn!(address = %config.advertise, "the Service kubernetes has no endpoints: pods cannot reach this address");
        return Ok(());
    }
    for (path, object) in [
        ("/api/v1/namespaces/default/endpoints/kubernetes", endpoints),
        ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", slice),
    ] {
        apply(client, path, &object).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// As [`open_store`], after waiting until the previous store has released the file.
    fn open(paths: &Paths, forget: bool) -> Result<Store, Failure> {
        for _ in 0..500 {
            match open_store(paths, forget) {
                Err(e) if e.code == Code::InUse => std::thread::sleep(Duration::from_millis(10)),
                other => return other,
            }
        }
        open_store(paths, forget)
    }

    #[test]
    fn a_store_that_lost_its_content_is_never_taken_for_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path()).unwrap();
        drop(open(&paths, false).unwrap());
        drop(open(&paths, false).unwrap());
        for content in [&b""[..], b"not a store at all, but some other file\n"] {
            // The file is removed first: a store that is still closing writes to the old inode.
            fs::remove_file(paths.store()).unwrap();
            fs::write(paths.store(), content).unwrap();
            let refused = open(&paths, false).unwrap_err();
            assert_eq!(refused.code, Code::Preflight);
            for part in [&*paths.store().to_string_lossy(), "--forget-state"] {
                assert!(refused.message.contains(part), "{}", refused.message);
            }
            assert!(fs::read(paths.store()).unwrap() == content, "it is left as it is");
        }
        drop(open(&paths, true).unwrap());
        let aside = fs::read_dir(directory.path()).unwrap().flatten();
        assert!(aside.into_iter().any(|e| e.file_name().to_string_lossy().contains("forgotten")));

        // A missing file means a first start only if there are no containers.
        fs::remove_file(paths.store()).unwrap();
        fs::create_dir_all(paths.containers().join("sandboxes/abc")).unwrap();
        assert_eq!(open(&paths, false).unwrap_err().code, Code::Preflight);
        drop(open(&paths, true).unwrap());
    }
}
