//! Connections to kubelets, pods and other servers, to which requests are forwarded.
//!
//! An upgrade (WebSocket) goes through unchanged: the other side answers the handshake, and bytes are copied
//! both ways afterwards. The handlers of `log`, `exec` and so on are in `subresources::kubelet`.

mod endpoints;
mod links;
#[cfg(feature = "tls")]
mod remote;

pub(crate) use endpoints::{endpoint, endpoints, is_global_unicast};
pub(crate) use links::Links;
#[cfg(feature = "tls")]
pub use remote::RemoteKubelets;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use k8s_core::{
    client::{Body, BoxError, LongQuery, empty_body},
    status::ApiStatus,
};
use serde_json::Value;

use crate::value::str_at;

/// Transport to kubelets, for logs, exec, attach, port-forward and proxy.
#[async_trait]
pub trait NodeConnector: Send + Sync + 'static {
    /// Sends a request to the kubelet of `node` (a Node object). A client's pending upgrade is in the
    /// request's extensions; a connector that gets status 101 must copy the bytes.
    /// A query that is too long for a URI (`exec` of a long command line) is there as well, as [`LongQuery`].
    async fn call(&self, node: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError>;
}

/// Marks a request that must not go to a loopback or link-local address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GlobalOnly;

/// The address is refused for requests of users.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("address not allowed")]
pub(crate) struct NotAllowed;

/// One exchange over a fresh connection, upgrades included.
#[expect(clippy::disallowed_methods, reason = "the tasks end with their connections")]
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

/// Returns a request to another target with this one's method, headers, body and pending upgrade.
pub(crate) fn forwarded(target: &str, request: &mut Request<Body>) -> Result<Request<Body>, ApiStatus> {
    let uri: Uri = target.parse().map_err(|e| ApiStatus::bad_request(format!("path {target:?}: {e}")))?;
    let mut out = Request::new(std::mem::replace(request.body_mut(), empty_body()));
    *out.method_mut() = request.method().clone();
    *out.uri_mut() = uri;
    *out.headers_mut() = request.headers().clone();
    std::mem::swap(out.extensions_mut(), request.extensions_mut());
    // The target must not see the caller's credentials.
    out.headers_mut().remove(header::AUTHORIZATION);
    // Only the connection to a kubelet sets it.
    out.headers_mut().remove(LongQuery::HEADER);
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
        let name = str_at(node, "/metadata/name");
        let local = self.local.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(name).cloned();
        match local.or_else(|| self.remote.clone()) {
            Some(connector) => connector.call(node, request).await,
            None => Err(format!("node {name} is not in this process").into()),
        }
    }
}
