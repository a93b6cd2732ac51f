//! The kubelet's API: logs, exec, attach, port-forward, pods, metrics. The API server proxies to it.
//!
//! Flow: [`KubeletApi::handle`] answers a request; streaming requests take over the connection by hyper's
//! upgrade. Callers are the listener (TLS) and, in the same process, the API server.
//!
//! Guarantee: the listener answers only clients with a certificate of the cluster or a token that the API
//! server knows, and only if the API server allows them the node's subresource (see [`auth`]). There is no
//! anonymous access.
//! Not here: SPDY upgrades by old clients (WebSockets only), `/run`, `/configz`.

mod auth;
mod channels;
mod exec;
mod listen;
mod locate;
mod logs;
mod port_forward;
mod query;
mod spdy;
mod stats;
mod upgrade;
mod usage;
mod volumes;

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use k8s_core::{
    client::{Body, body_from_bytes},
    status::ApiStatus,
};

pub(crate) use listen::{bind, serve};

use crate::context::Context;

/// The kubelet's API as a service within the process. Cheap to clone.
#[derive(Clone)]
pub struct KubeletApi {
    cx: Arc<Context>,
    gate: Arc<auth::Gate>,
}

impl std::fmt::Debug for KubeletApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeletApi").field("node", &self.cx.config.node_name).finish_non_exhaustive()
    }
}

/// An answer with a JSON body.
fn json(code: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(body_from_bytes(bytes));
            *response.status_mut() = code;
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
        Err(e) => refuse(&ApiStatus::internal(e)),
    }
}

/// An answer of plain text with code 200.
fn text(text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(body_from_bytes(text));
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// An error response with a `Status` body.
fn refuse(status: &ApiStatus) -> Response<Body> {
    let mut object = status.status().clone();
    object.metadata = Default::default();
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(code, &object)
}

/// Splits a path into percent-decoded segments.
fn path_parts(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|p| !p.is_empty())
        .map(|p| percent_encoding::percent_decode_str(p).decode_utf8_lossy().into_owned())
        .collect()
}

impl KubeletApi {
    pub(crate) fn new(cx: Arc<Context>) -> Self {
        KubeletApi { cx, gate: Arc::default() }
    }

    /// Answers a request. Paths and parameters are upstream's:
    /// `/containerLogs/{namespace}/{pod}/{container}`, `/exec/...`, `/attach/...`,
    /// `/portForward/{namespace}/{pod}`, `/pods`, `/stats/summary`, `/metrics`, `/healthz`. Ours is
    /// `DELETE /localVolumes/{handle}`, which removes the directory of a volume of the class `local-path`.
    ///
    /// A connection is taken over through the request's `hyper::upgrade::OnUpgrade` extension, which hyper's
    /// server puts there.
    pub fn handle<B>(&self, request: Request<B>) -> BoxFuture<'static, Response<Body>> {
        self.clone().answer(request.map(drop))
    }

    fn answer(self, request: Request<()>) -> BoxFuture<'static, Response<Body>> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(async move { self.route(request).await.unwrap_or_else(|status| refuse(&status)) })
    }

    async fn route(&self, request: Request<()>) -> Result<Response<Body>, ApiStatus> {
        let parts = path_parts(request.uri().path());
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let reading = request.method() == Method::GET || request.method() == Method::HEAD;
        let cx = &self.cx;
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz", ..] if reading => Ok(text("ok")),
            ["pods" | "runningpods"] if reading => Ok(stats::pods(cx)),
            ["stats", "summary"] if reading => Ok(stats::summary(cx).await),
            ["metrics"] if reading => Ok(stats::metrics(cx)),
            ["metrics", "resource"] if reading => Ok(stats::resource_metrics(cx).await),
            ["containerLogs", namespace, pod, container] if reading => {
                logs::serve(cx, namespace, pod, container, request)
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                exec::serve(cx, exec::Subresource::Exec, namespace, pod, container, request)
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                exec::serve(cx, exec::Subresource::Attach, namespace, pod, container, request)
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                port_forward::serve(cx, namespace, pod, request)
            }
            ["localVolumes", handle] if request.method() == Method::DELETE => {
                volumes::remove(cx, handle).await
            }
            _ => Err(ApiStatus::no_resource()),
        }
    }
}
