//! Health checks of Services with `externalTrafficPolicy: Local`: a load balancer in front of the nodes asks
//! each one on the Service's health check node port.
//!
//! The answer is 200 if the node has a ready endpoint, else 503. Its body and headers are upstream's.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_core::meta::ObjectKey;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

/// Limit of concurrent connections per Service; others wait.
const CONNECTIONS: usize = 64;
/// Time within which a client must have sent its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// A Service that is asked about.
#[derive(Debug)]
struct Check {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    /// `None`: its port could not be opened.
    task: Option<AbortHandle>,
}

/// The health check servers of a node. Dropping it closes them.
#[derive(Debug)]
pub(super) struct Checks {
    checks: HashMap<ObjectKey, Check>,
    /// Services whose port could not be opened.
    closed: HashSet<ObjectKey>,
    healthy: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Checks {
    pub(super) fn new() -> Self {
        let healthy = Arc::new(AtomicBool::new(true));
        Checks { checks: HashMap::new(), closed: HashSet::new(), healthy, tasks: JoinSet::new() }
    }

    /// Sets the proxy's own health: false while the kernel refuses its rules.
    pub(super) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Returns the Services whose port could not be opened.
    pub(super) fn closed(&self) -> Vec<ObjectKey> {
        self.closed.iter().cloned().collect()
    }

    /// Brings a Service's check up to date: its health check node port and the number of its ready endpoints
    /// on this node, or `None`. A port that could not be opened before is tried again. An error is returned
    /// for the first attempt only.
    pub(super) fn set(&mut self, service: &ObjectKey, wanted: Option<(u16, usize)>) -> io::Result<()> {
        while self.tasks.try_join_next().is_some() {}
        let Some((port, endpoints)) = wanted else {
            self.remove(service);
            return Ok(());
        };
        if let Some(check) = self.checks.get(service).filter(|c| c.port == port && c.task.is_some()) {
            check.endpoints.store(endpoints, Ordering::Relaxed);
            return Ok(());
        }
        let tried = self.checks.get(service).is_some_and(|check| check.port == port);
        self.remove(service);
        let endpoints = Arc::new(AtomicUsize::new(endpoints));
        let listener = listen(port);
        let (task, outcome) = match listener {
            Ok(listener) => {
                let served = serve(listener, service.clone(), endpoints.clone(), self.healthy.clone());
                (Some(self.tasks.spawn(served)), Ok(()))
            }
            Err(_) if tried => (None, Ok(())),
            Err(e) => (None, Err(e)),
        };
        if task.is_none() {
            self.closed.insert(service.clone());
        }
        self.checks.insert(service.clone(), Check { port, endpoints, task });
        outcome
    }

    fn remove(&mut self, service: &ObjectKey) {
        self.closed.remove(service);
        if let Some(task) = self.checks.remove(service).and_then(|check| check.task) {
            task.abort();
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve(
    listener: TcpListener,
    service: ObjectKey,
    endpoints: Arc<AtomicUsize>,
    healthy: Arc<AtomicBool>,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, %service, "a health check was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (service, endpoints, healthy) = (service.clone(), endpoints.clone(), healthy.clone());
        connections.spawn(async move {
            let answering = service_fn(move |_: http::Request<Incoming>| {
                let count = endpoints.load(Ordering::Relaxed);
                let response = answer(&service, count, healthy.load(Ordering::Relaxed));
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // The client went away, or was too slow.
            let _ = server.serve_connection(TokioIo::new(stream), answering).await;
        });
    }
}

fn answer(service: &ObjectKey, endpoints: usize, healthy: bool) -> Response<Full<Bytes>> {
    // Names of Services and namespaces need no escapes.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace, service.name
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    if endpoints == 0 || !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_upstreams() {
        let key = ObjectKey::new("demo", "web");
        let told = |endpoints, healthy| {
            let response = answer(&key, endpoints, healthy);
            let weight = response.headers()["x-load-balancing-endpoint-weight"].to_str().unwrap().to_owned();
            (response.status().as_u16(), weight)
        };
        assert_eq!(told(2, true), (200, "2".to_owned()));
        assert_eq!(told(0, true), (503, "0".to_owned()));
        assert_eq!(told(2, false), (503, "2".to_owned()));
    }

    #[tokio::test]
    async fn a_taken_port_is_told_once_and_tried_again() {
        let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let key = ObjectKey::new("demo", "web");
        let mut checks = Checks::new();
        assert!(checks.set(&key, Some((port, 1))).is_err());
        assert!(checks.set(&key, Some((port, 1))).is_ok(), "told before");
        assert_eq!(checks.closed(), std::slice::from_ref(&key));
        drop(taken);
        checks.set(&key, Some((port, 1))).unwrap();
        assert!(checks.closed().is_empty());
        checks.set(&key, None).unwrap();
        assert!(checks.checks.is_empty());
    }
}
