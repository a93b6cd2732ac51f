//! Connections to kubelets, pods and other servers, over which requests are passed on.
//!
//! An upgrade (WebSocket) goes through as it is: the other side answers the handshake, and bytes are copied both
//! ways afterwards. The handlers of `log`, `exec` and so on are in `subresources::kubelet`.

mod endpoints;

pub(crate) use endpoints::{endpoint, endpoints, is_global_unicast};

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use k8s_core::{
    client::{Body, BoxError, empty_body},
    status::ApiStatus,
};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::value::{integer, list, text};

/// Reaches kubelets.
#[async_trait]
pub trait NodeConnector: Send + Sync + 'static {
    /// Sends a request to the kubelet of `node` (a Node object). A client's pending upgrade travels in the request's extensions; a connector that
    /// gets status 101 must see to it that the bytes are copied.
    async fn call(&self, node: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError>;
}

/// Marks a request that must not go to a loopback or link-local address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GlobalOnly;

/// An address that requests of users are not sent to.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("address not allowed")]
pub(crate) struct NotAllowed;

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
        let refused = all.iter().any(|a| !is_global_unicast(a.ip()));
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
