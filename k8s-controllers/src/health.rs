//! HTTP server of a program: `/healthz`, `/livez`, `/readyz`, `/metrics`.
//!
//! It has neither TLS nor authentication, so it belongs on a loopback address.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use k8s_metrics::{CONTENT_TYPE, Registry, encode};

/// Limit of concurrent connections; others wait.
const CONNECTIONS: usize = 64;

/// Serves until it is stopped. `/readyz` answers 503 with the error of `ready`.
///
/// # Examples
/// ```
/// use k8s_controllers::{health, metrics::Registry};
/// # async fn f(stop: tokio_util::sync::CancellationToken) -> std::io::Result<()> {
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// health::serve(listener, Registry::default(), || Ok(()), stop).await;
/// # Ok(())
/// # }
/// ```
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    ready: impl Fn() -> Result<(), String> + Clone + Send + 'static,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::debug!(error = %e, "a connection was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (registry, ready) = (registry.clone(), ready.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &registry, &ready);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new());
            if let Err(e) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(error = %e, "a connection broke");
            }
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    ready: &impl Fn() -> Result<(), String>,
) -> Response<Full<Bytes>> {
    let (code, text) = match request.uri().path() {
        "/healthz" | "/livez" => (StatusCode::OK, "ok".to_owned()),
        "/readyz" => match ready() {
            Ok(()) => (StatusCode::OK, "ok".to_owned()),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        },
        "/metrics" => {
            let mut text = String::new();
            encode(&mut text, registry);
            (StatusCode::OK, text)
        }
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    let text = header::HeaderValue::from_static(CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
