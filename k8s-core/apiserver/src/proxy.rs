//! What leads to a kubelet or a pod: logs, exec, attach, port-forward, and the proxy subresources.
//!
//! An upgrade (WebSocket) goes through as it is: the kubelet answers the handshake, and bytes are copied both ways afterwards.

mod log_options;
mod target;

pub(crate) use target::endpoint;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use k8s_core::{
    client::{Body, BoxError, empty_body},
    status::ApiStatus,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    call::Call,
    request::RequestInfo,
    resources::Resource,
    state::State,
    storage::current,
    value::{integer, list, map, text},
};
use target::Target;

/// Reaches kubelets.
#[async_trait]
pub trait NodeConnector: Send + Sync + 'static {
    /// Sends a request to the kubelet of `node` (a Node object). A client's pending upgrade travels in the request's extensions; a connector that
    /// gets status 101 must see to it that the bytes are copied.
    async fn call(&self, node: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError>;
}

/// Marks a request that must not go to a loopback or link-local address.
#[derive(Clone, Copy, Debug)]
struct GlobalOnly;

/// An address that requests of users are not sent to.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("address not allowed")]
struct NotAllowed;

/// Reaches kubelets over TLS, with a client certificate that they trust.
#[derive(Clone)]
pub struct RemoteKubelets {
    tls: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for RemoteKubelets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RemoteKubelets")
    }
}

impl RemoteKubelets {
    /// With TLS settings of one's own.
    #[must_use]
    pub fn new(tls: rustls::ClientConfig) -> Self {
        RemoteKubelets { tls: Arc::new(tls) }
    }
}

#[async_trait]
impl NodeConnector for RemoteKubelets {
    async fn call(&self, node: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let addresses = list(node, "/status/addresses");
        let address = ["InternalIP", "ExternalIP", "Hostname"]
            .iter()
            .find_map(|kind| addresses.iter().find(|a| text(a, "/type") == *kind))
            .map(|a| text(a, "/address"))
            .ok_or("the node has no address")?;
        let port = integer(node, "/status/daemonEndpoints/kubeletEndpoint/Port").unwrap_or(10250);
        let all: Vec<SocketAddr> = tokio::net::lookup_host((address, u16::try_from(port)?)).await?.collect();
        // The addresses that are connected to are those that were looked at: a name may mean another one the next time.
        let refused = all.iter().any(|a| !target::is_global_unicast(a.ip()));
        if refused && request.extensions().get::<GlobalOnly>().is_some() {
            return Err(NotAllowed.into());
        }
        let tcp = TcpStream::connect(all.as_slice()).await?;
        tcp.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from(address.to_owned())?;
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        exchange(TokioIo::new(tls), request).await
    }
}

/// One exchange over a fresh connection, upgrades included.
pub(crate) async fn exchange<I>(io: I, mut request: Request<Body>) -> Result<Response<Body>, BoxError>
where
    I: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection.with_upgrades());
    let client_side =
        request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let mut response = sender.send_request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client_side) = client_side
    {
        let server_side = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            // A client that goes away before the handshake ends leaves nothing to copy.
            if let (Ok(client), Ok(state)) = (client_side.await, server_side.await) {
                let _ =
                    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(state)).await;
            }
        });
    }
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

fn encode(value: &str) -> String {
    utf8_percent_encode(value, NON_ALPHANUMERIC).to_string()
}

/// Answers `log`, `exec`, `attach`, `portforward` and `proxy`.
pub(crate) async fn handle(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let info = &call.info;
    if info.subresource == "proxy" {
        if let Some(redirect) = to_root(info, request) {
            return Ok(redirect);
        }
        let target = match &*resource.storage {
            "pods" => target::of_pod(state, call, resource)?,
            "services" => target::of_service(state, call)?,
            _ => match target::of_node(state, call, resource).await? {
                target::Node::Kubelet(node) => {
                    let path = with_query(if info.rest.is_empty() { "/" } else { &info.rest }, request);
                    // Other than logs and exec, this reaches any path: it must not lead into the server's own machine.
                    request.extensions_mut().insert(GlobalOnly);
                    return to_node(state, &node, &path, request).await;
                }
                target::Node::Port(target) => target,
            },
        };
        return to_address(call, &target, request).await;
    }
    if info.subresource != "log" {
        // A WebSocket begins with a GET: who may only read must not run commands by it.
        state.authorization.may_create(&call.user, &call.info).await?;
    }
    let (_, pod) = current(state, resource, &resource.key(&info.namespace, &info.name), &info.name)?;
    to_pod(state, call, &pod, request).await
}

/// The redirect of a proxied request without a path to the root of what is proxied, so that relative links in its answer hold.
fn to_root(info: &RequestInfo, request: &Request<Body>) -> Option<Response<Body>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !info.rest.is_empty() || !reads || request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let location = HeaderValue::from_str(&with_query(&format!("{}/", info.path), request)).ok()?;
    let mut response = Response::new(empty_body());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Some(response)
}

fn with_query(path: &str, request: &Request<Body>) -> String {
    match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// The container that a request means.
fn container(call: &Call, pod: &Value) -> Result<String, ApiStatus> {
    let names = |field: &str| -> Vec<String> {
        list(pod, &format!("/spec/{field}")).iter().map(|c| text(c, "/name").to_owned()).collect()
    };
    let (mains, inits) = (names("containers"), names("initContainers"));
    let asked = call.query.get("container");
    let all = mains.iter().chain(&inits).cloned().collect::<Vec<_>>();
    if !asked.is_empty() {
        if all.iter().chain(&names("ephemeralContainers")).any(|n| n == asked) {
            return Ok(asked.to_owned());
        }
        return Err(ApiStatus::bad_request(format!(
            "container {asked} is not valid for pod {}",
            call.info.name
        )));
    }
    if let Some(named) = map(pod, "/metadata/annotations")
        .and_then(|a| a.get("kubectl.kubernetes.io/default-container"))
        .and_then(Value::as_str)
        .filter(|n| all.iter().any(|a| a == n))
    {
        return Ok(named.to_owned());
    }
    match mains.as_slice() {
        [one] => Ok(one.clone()),
        _ => {
            let choices = mains.join(" ");
            let mut message = format!(
                "a container name must be specified for pod {}, choose one of: [{choices}]",
                call.info.name
            );
            if !inits.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            Err(ApiStatus::bad_request(message))
        }
    }
}

async fn to_pod(
    state: &Arc<State>,
    call: &Call,
    pod: &Value,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let info = &call.info;
    let (namespace, name) = (encode(&info.namespace), encode(&info.name));
    let target = match info.subresource.as_str() {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        part => {
            if part == "log" {
                log_options::check(&call.query, &info.name)?;
            }
            let container = container(call, pod)?;
            let path = match part {
                "log" => format!("/containerLogs/{namespace}/{name}/{}", encode(&container)),
                other => format!("/{other}/{namespace}/{name}/{}", encode(&container)),
            };
            if part == "log" && text(pod, "/spec/nodeName").is_empty() {
                // Not placed yet: there is nothing to show.
                return Ok(crate::respond::text(StatusCode::OK, ""));
            }
            path
        }
    };
    let node_name = text(pod, "/spec/nodeName");
    if node_name.is_empty() {
        return Err(ApiStatus::bad_request(format!("pod {} does not have a host assigned", info.name)));
    }
    let stored =
        state.store.get("nodes", node_name).ok_or_else(|| ApiStatus::not_found("", "nodes", node_name))?;
    let node: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
    let target = with_query(&target, request);
    to_node(state, &node, &target, request).await
}

/// A request for somebody else, with this one's method, headers, body and pending upgrade.
pub(crate) fn forwarded(target: &str, request: &mut Request<Body>) -> Result<Request<Body>, ApiStatus> {
    let uri: Uri = target.parse().map_err(|e| ApiStatus::bad_request(format!("path {target:?}: {e}")))?;
    let mut out = Request::new(std::mem::replace(request.body_mut(), empty_body()));
    *out.method_mut() = request.method().clone();
    *out.uri_mut() = uri;
    *out.headers_mut() = request.headers().clone();
    std::mem::swap(out.extensions_mut(), request.extensions_mut());
    // Whoever is asked next must not learn the caller's credentials.
    out.headers_mut().remove(header::AUTHORIZATION);
    let said: Vec<header::HeaderName> =
        out.headers().keys().filter(|n| n.as_str().starts_with("impersonate-")).cloned().collect();
    for name in said {
        out.headers_mut().remove(name);
    }
    Ok(out)
}

async fn to_node(
    state: &Arc<State>,
    node: &Value,
    target: &str,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let Some(nodes) = state.nodes.clone() else {
        return Err(ApiStatus::new(503, "ServiceUnavailable", "this server has no way to reach kubelets"));
    };
    let mut out = forwarded(target, request)?;
    out.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("kubelet"));
    nodes.call(node, out).await.map_err(|e| {
        if e.is::<NotAllowed>() {
            return ApiStatus::bad_request(e.to_string());
        }
        let name = text(node, "/metadata/name");
        ApiStatus::internal(format!("error dialing the kubelet of node {name}: {e}"))
    })
}

async fn to_address(
    call: &Call,
    target: &Target,
    request: &mut Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let failed = |e: BoxError| {
        ApiStatus::new(503, "ServiceUnavailable", format!("error trying to reach service: {e}"))
    };
    let path = with_query(if call.info.rest.is_empty() { "/" } else { &call.info.rest }, request);
    let mut out = forwarded(&path, request)?;
    if let Ok(host) = HeaderValue::from_str(&target.address.to_string()) {
        out.headers_mut().insert(header::HOST, host);
    }
    let connect =
        tokio::time::timeout(std::time::Duration::from_secs(10), TcpStream::connect(target.address));
    let tcp = match connect.await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(e)) => return Err(failed(e.into())),
        Err(_) => return Err(failed(format!("dial tcp {}: i/o timeout", target.address).into())),
    };
    if !target.tls {
        return exchange(TokioIo::new(tcp), out).await.map_err(failed);
    }
    // As upstream's: whoever proxies to a pod knows no authority for its certificate.
    let tls = crate::webhook_client::unverified().map_err(|e| failed(e.into()))?;
    let name = rustls::pki_types::ServerName::from(target.address.ip());
    let connecting = tokio_rustls::TlsConnector::from(tls).connect(name, tcp);
    match tokio::time::timeout(std::time::Duration::from_secs(10), connecting).await {
        Ok(Ok(tls)) => exchange(TokioIo::new(tls), out).await.map_err(failed),
        Ok(Err(e)) => Err(failed(e.into())),
        Err(_) => Err(failed("net/http: TLS handshake timeout".into())),
    }
}

/// Kubelets in this process by node name, with another connector for the rest.
#[derive(Default)]
pub struct LocalKubelets {
    local: std::sync::RwLock<HashMap<String, Arc<dyn NodeConnector>>>,
    remote: Option<Arc<dyn NodeConnector>>,
}

impl std::fmt::Debug for LocalKubelets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalKubelets")
    }
}

impl LocalKubelets {
    /// With `remote` for nodes that are not in this process.
    #[must_use]
    pub fn new(remote: Option<Arc<dyn NodeConnector>>) -> Self {
        LocalKubelets { local: Default::default(), remote }
    }

    /// Adds a kubelet of this process.
    pub fn add(&self, node: &str, connector: Arc<dyn NodeConnector>) {
        self.local
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(node.to_owned(), connector);
    }
}

#[async_trait]
impl NodeConnector for LocalKubelets {
    async fn call(&self, node: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let name = text(node, "/metadata/name");
        let local = self.local.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(name).cloned();
        match local.or_else(|| self.remote.clone()) {
            Some(connector) => connector.call(node, request).await,
            None => Err(format!("node {name} is not in this process").into()),
        }
    }
}
