//! The record of a request: metrics, and a line of the access log when the answer has ended.

#![expect(clippy::disallowed_methods, reason = "durations of requests are in real time")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, Method, Request, Version, header};
use k8s_metrics::{Counter, Family, Gauge, Histogram, Registry, exponential_buckets};
use tokio::time::Instant;

use super::{limit::Slot, rest::Busy};
use crate::table::Route;

/// Target of the access log's lines.
const LOG: &str = "k8s_ingress::access";
/// Characters of a header in the access log.
const MOST_CHARACTERS: usize = 1024;

/// The metrics of a proxy.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<4, Counter>,
    durations: Family<2, Histogram>,
    bytes: Family<2, Counter>,
    pub(crate) connections: Gauge,
    pub(crate) resting: Gauge,
    pub(crate) reloads: Counter,
    pub(crate) handshake_failures: Counter,
    pub(crate) retries: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let buckets = |_: &[&str; 2]| Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Metrics {
            requests: registry.register(
                "ingress_requests_total",
                "Number of requests by Ingress, method class and status code.",
                Family::new(["namespace", "ingress", "service", "code"]),
            ),
            durations: registry.register(
                "ingress_request_duration_seconds",
                "Time from a request to the end of its answer.",
                Family::new_with_constructor(["namespace", "ingress"], buckets),
            ),
            bytes: registry.register(
                "ingress_response_bytes_total",
                "Bytes of the bodies of answers.",
                Family::new(["namespace", "ingress"]),
            ),
            connections: registry.register(
                "ingress_connections",
                "Number of open connections of clients.",
                Gauge::default(),
            ),
            resting: registry.register(
                "ingress_connections_resting",
                "Number of connections of silent clients, without buffers.",
                Gauge::default(),
            ),
            reloads: registry.register(
                "ingress_routing_tables_total",
                "Number of routing tables so far.",
                Counter::default(),
            ),
            handshake_failures: registry.register(
                "ingress_tls_handshake_failures_total",
                "Number of TLS handshakes with clients that failed.",
                Counter::default(),
            ),
            retries: registry.register(
                "ingress_upstream_retries_total",
                "Number of requests that were sent to an endpoint again.",
                Counter::default(),
            ),
        }
    }
}

/// A request as the access log tells it.
#[derive(Debug)]
struct Line {
    client: IpAddr,
    method: Method,
    uri: String,
    version: Version,
    host: String,
    referer: String,
    agent: String,
}

/// A request in progress. Dropped, it counts and is logged.
#[derive(Debug)]
pub(crate) struct Record {
    metrics: Arc<Metrics>,
    started: Instant,
    line: Option<Box<Line>>,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Counts as one of the client's requests in flight.
    pub(crate) slot: Option<Slot>,
    /// Keeps the client's connection from resting.
    pub(crate) busy: Option<Busy>,
}

fn shortened(text: &str) -> String {
    text.chars().take(MOST_CHARACTERS).collect()
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> String {
    headers.get(name).map(|value| shortened(&String::from_utf8_lossy(value.as_bytes()))).unwrap_or_default()
}

impl Record {
    pub(crate) fn new<B>(metrics: Arc<Metrics>, client: IpAddr, request: &Request<B>) -> Box<Self> {
        let line = tracing::enabled!(target: LOG, tracing::Level::DEBUG).then(|| {
            let headers = request.headers();
            Box::new(Line {
                client,
                method: request.method().clone(),
                uri: shortened(&request.uri().to_string()),
                version: request.version(),
                host: text(headers, &header::HOST),
                referer: text(headers, &header::REFERER),
                agent: text(headers, &header::USER_AGENT),
            })
        });
        Box::new(Record {
            metrics,
            started: Instant::now(),
            line,
            route: None,
            status: 0,
            bytes: 0,
            endpoint: None,
            slot: None,
            busy: None,
        })
    }

    pub(crate) fn retried(&self) {
        self.metrics.retries.inc();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let route = self.route.as_deref();
        let ingress = route.map_or(("", ""), |r| (&*r.ingress.namespace, &*r.ingress.name));
        let service = route.map(|r| &*r.backend.service.name).unwrap_or_default();
        let took = self.started.elapsed().as_secs_f64();
        // 499: the client was gone before the answer began.
        let status = if self.status == 0 { 499 } else { self.status };
        let (mut digits, code) = ([0; 3], status.clamp(100, 999));
        for (digit, place) in digits.iter_mut().zip([100, 10, 1]) {
            *digit = b'0' + u8::try_from(code / place % 10).unwrap_or_default();
        }
        let code = std::str::from_utf8(&digits).unwrap_or_default();
        self.metrics.requests.get_or_create(&[ingress.0, ingress.1, service, code]).inc();
        self.metrics.durations.get_or_create(&[ingress.0, ingress.1]).observe(took);
        self.metrics.bytes.get_or_create(&[ingress.0, ingress.1]).inc_by(self.bytes);
        if let Some(line) = &self.line {
            tracing::debug!(
                target: LOG,
                client = %line.client, method = %line.method, host = ?line.host, uri = ?line.uri,
                version = ?line.version, status, bytes = self.bytes, seconds = took,
                ingress = %format_args!("{}/{}", ingress.0, ingress.1), service,
                endpoint = ?self.endpoint, referer = ?line.referer, agent = ?line.agent,
                "request"
            );
        }
    }
}
