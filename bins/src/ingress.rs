//! The Ingress controller of the node on this machine.
//!
//! Flow: [`Ingress::start`] listens on the machine's address on the pod network, and publishes the Service
//! [`SERVICE`] of type LoadBalancer, whose only endpoint are the listeners. So the load balancer of Services
//! gives it the ports 80 and 443 of the node, or tells by an event who has them; its node ports work in any
//! case.
//!
//! Guarantee: the proxy has threads of its own, so that its traffic does not delay the control plane.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use http::Method;
use ipnet::IpNet;
use k8s_core::{
    api::api::networking::v1::IngressClass,
    client::{Client, Error},
    clock::Clock,
};
use k8s_ingress::{CONTROLLER, Certificate, ControllerConfig, Proxy, ProxyConfig};
use k8s_metrics::Registry;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{apply::apply, error::ClusterError, pki::Pki, program::idle, renewal::Renewals};

/// Service account of kube-system as which the controller acts, and its role.
pub(crate) const ACCOUNT: &str = "ingress-controller";
/// Namespace and name of the Service that leads to the proxy.
pub(crate) const SERVICE: (&str, &str) = ("kube-system", "ingress");
/// Name of the IngressClass.
const CLASS: &str = "hyperkube";
const START: &str = "start the Ingress controller";
/// Time after which the endpoint is published again, if it could not be.
const RETRY: Duration = Duration::from_secs(1);
/// Time for connections after the stop, beyond that of the proxy itself.
const SHUTDOWN: Duration = Duration::from_secs(12);

fn class_path() -> String {
    format!("/apis/networking.k8s.io/v1/ingressclasses/{CLASS}")
}

fn service_path() -> String {
    format!("/api/v1/namespaces/{}/services/{}", SERVICE.0, SERVICE.1)
}

fn slice_path() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/{}", SERVICE.0, SERVICE.1)
}

fn role_paths() -> [String; 2] {
    ["clusterroles", "clusterrolebindings"]
        .map(|plural| format!("/apis/rbac.authorization.k8s.io/v1/{plural}/system:{ACCOUNT}"))
}

/// Creates the IngressClass `hyperkube`, the default one, and the role of the controller. A class of that
/// name that is there is left as it is.
///
/// # Errors
/// The API server's error.
pub(crate) async fn prepare(client: &Client) -> Result<(), Error> {
    let rbac = "rbac.authorization.k8s.io";
    let name = format!("system:{ACCOUNT}");
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let read = ["get", "list", "watch"];
    let role = json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": name},
        "rules": [
            rule("", &["services", "secrets"], &read),
            rule("discovery.k8s.io", &["endpointslices"], &read),
            rule("networking.k8s.io", &["ingresses", "ingressclasses"], &read),
            rule("networking.k8s.io", &["ingresses/status"], &["patch", "update"]),
            rule("", &["events"], &["create", "patch", "update"]),
        ],
    });
    let binding = json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "kube-system"}],
    });
    for (path, object) in role_paths().iter().zip([role, binding]) {
        apply(client, path, &object).await?;
    }
    let class = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": CLASS, "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": CONTROLLER},
    });
    match client.bytes(Method::GET, &class_path(), "", "").await {
        // A user may have made another class the default one.
        Err(e) if e.is_not_found() => match apply(client, &class_path(), &class).await {
            // `--runtime-config` may switch the resource off.
            Err(e) if e.is_not_found() => Ok(()),
            made => made,
        },
        other => other.map(drop),
    }
}

/// Deletes what an earlier start made, but no class of another controller.
///
/// # Errors
/// The API server's error.
pub(crate) async fn remove(client: &Client) -> Result<(), Error> {
    let mut paths = vec![service_path(), slice_path()];
    paths.extend(role_paths());
    match client.json::<IngressClass>(Method::GET, &class_path(), "", "").await {
        Ok(class) => {
            let is_ours = class.spec.is_some_and(|spec| spec.controller.as_deref() == Some(CONTROLLER));
            paths.extend(is_ours.then(class_path));
        }
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e),
    }
    for path in paths {
        match client.bytes(Method::DELETE, &path, "", "").await {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Flags of the Ingress controller.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct IngressFlags {
    /// Believe the X-Forwarded-For, -Proto, -Host and -Port headers of requests: for a proxy in front that
    /// sets them. Without it, they are replaced.
    #[arg(long)]
    pub(crate) ingress_use_forwarded_headers: bool,
    /// Expect the PROXY protocol (version 1 or 2) at the beginning of connections to the Ingress controller.
    #[arg(long)]
    pub(crate) ingress_use_proxy_protocol: bool,
}

/// Settings of the controller on a node.
pub(crate) struct IngressConfig<'a> {
    /// The cluster's certificates, for names without one of their own.
    pub(crate) pki: &'a Arc<Pki>,
    /// Renewal of those.
    pub(crate) renewals: &'a Renewals,
    /// Client of the service account [`ACCOUNT`].
    pub(crate) client: Client,
    /// Client that publishes the Service.
    pub(crate) admin: Client,
    /// The machine's address on the pod network.
    pub(crate) gateway: IpAddr,
    /// Name and address of the node.
    pub(crate) node: (&'a str, IpAddr),
    /// Addresses that `auth-url` does not lead to.
    pub(crate) refused: Vec<IpNet>,
    /// Flags.
    pub(crate) flags: &'a IngressFlags,
    /// Connections at once.
    pub(crate) connections: usize,
    /// Registry of the metrics.
    pub(crate) metrics: Registry,
}

/// A running controller.
pub(crate) struct Ingress {
    stop: CancellationToken,
    serving: JoinHandle<()>,
    controller: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Ingress {
    /// Starts the proxy and publishes its Service.
    ///
    /// # Errors
    /// [`ClusterError`]. What was started is stopped again.
    #[expect(clippy::disallowed_methods, reason = "shutdown waits for the tasks")]
    pub(crate) async fn start(config: IngressConfig<'_>) -> Result<Self, ClusterError> {
        let pki = config.pki.clone();
        let certificate = move || {
            let identity = pki.server("ingress", &["ingress.local"], &[])?.tls();
            Certificate::from_pem(&identity.certificate, &identity.key)
                .map_err(|why| ClusterError::invalid("ingress TLS", why))
        };
        let proxy = Proxy::new(ProxyConfig {
            trust_forwarded: config.flags.ingress_use_forwarded_headers,
            proxy_protocol: config.flags.ingress_use_proxy_protocol,
            connections: config.connections,
            refused: config.refused,
            certificate: Some(Arc::new(certificate()?)),
            metrics: config.metrics,
            ..ProxyConfig::default()
        })
        .map_err(ClusterError::of(START))?;
        let renewed = proxy.clone();
        config.renewals.add("ingress", move || {
            renewed.replace_certificate(certificate()?);
            Ok(())
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(thread::available_parallelism().map_or(1, usize::from))
            .thread_name("ingress")
            .on_thread_park(idle)
            .enable_all()
            .build()
            .map_err(ClusterError::of(START))?;
        let stop = CancellationToken::new();
        let (serving, listeners) = {
            // Sockets belong to the runtime that they are registered with.
            let _entered = runtime.enter();
            let listen = || -> std::io::Result<(TcpListener, SocketAddr)> {
                let socket = std::net::TcpListener::bind((config.gateway, 0))?;
                socket.set_nonblocking(true)?;
                let address = socket.local_addr()?;
                Ok((TcpListener::from_std(socket)?, address))
            };
            let (http, https) =
                (listen().map_err(ClusterError::of(START))?, listen().map_err(ClusterError::of(START))?);
            let (served, stopped) = (proxy.clone(), stop.clone());
            let serving = runtime.spawn(async move { served.serve(http.0, https.0, stopped).await });
            (serving, [http.1, https.1])
        };
        let controller = ControllerConfig {
            class: CLASS.to_owned(),
            service: (SERVICE.0.to_owned(), SERVICE.1.to_owned()),
            addresses: vec![config.node.1.to_string()],
            listeners: listeners.to_vec(),
            clock: Clock::system(),
        };
        let running = k8s_ingress::run(config.client, controller, proxy.clone(), stop.clone());
        let (admin, node, stopped) = (config.admin.clone(), config.node.0.to_owned(), stop.clone());
        let controller = tokio::spawn(async move {
            let publishing = publish_endpoint(&admin, &proxy, listeners, &node);
            tokio::join!(running, stopped.run_until_cancelled(publishing));
        });
        let ingress = Ingress { stop, serving, controller, runtime: Some(runtime) };
        match publish_service(&config.admin, listeners).await {
            Ok(()) => Ok(ingress),
            Err(e) => {
                ingress.shutdown().await;
                Err(ClusterError::of("publish the Service of the Ingress controller")(e))
            }
        }
    }

    /// Stops the controller. Requests in flight have ten seconds.
    pub(crate) async fn shutdown(mut self) {
        self.stop.cancel();
        let _ =
            tokio::time::timeout(SHUTDOWN, async { tokio::join!(&mut self.serving, &mut self.controller) })
                .await;
        self.serving.abort();
        self.controller.abort();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            // Waiting for its threads would block this one.
            runtime.shutdown_background();
        }
    }
}

/// Returns the metadata of the Service, or with its label of its EndpointSlice.
fn metadata(labels: Value) -> Value {
    let mut metadata = json!({"namespace": SERVICE.0, "name": SERVICE.1, "labels": labels});
    metadata["labels"]["app.kubernetes.io/name"] = SERVICE.1.into();
    metadata
}

/// Publishes the Service that leads to the listeners.
async fn publish_service(client: &Client, [http, https]: [SocketAddr; 2]) -> Result<(), Error> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(json!({})),
        "spec": {
            "type": "LoadBalancer",
            // Keeps the addresses of clients.
            "externalTrafficPolicy": "Local",
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": http.port()},
                {"name": "https", "port": 443, "protocol": "TCP", "targetPort": https.port()},
            ],
        },
    });
    apply(client, &service_path(), &service).await
}

/// Publishes the endpoint of the Service, once the proxy has routes.
async fn publish_endpoint(client: &Client, proxy: &Proxy, [http, https]: [SocketAddr; 2], node: &str) {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata(json!({"kubernetes.io/service-name": SERVICE.1})),
        "addressType": "IPv4",
        "endpoints": [{"addresses": [http.ip()], "conditions": {"ready": true}, "nodeName": node}],
        "ports": [
            {"name": "http", "port": http.port(), "protocol": "TCP"},
            {"name": "https", "port": https.port(), "protocol": "TCP"},
        ],
    });
    proxy.filled().await;
    while let Err(error) = apply(client, &slice_path(), &slice).await {
        tracing::warn!(%error, "the endpoint of the Ingress controller is not published; the next attempt follows");
        tokio::time::sleep(RETRY).await;
    }
}
