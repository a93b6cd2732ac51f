//! Metrics of the API server, with upstream's names: requests, their durations, stored objects.
//!
//! Guarantee: resources, subresources, verbs and paths that are not served count as `other`, so requests
//! cannot invent label values.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use k8s_core::client::{Body, BoxError};
use k8s_metrics::{
    Counter, Encoder, Family, Gauge, Histogram, MetricType, Registry, encode, exponential_buckets,
};
use tokio::time::Instant;

use crate::{
    auth::metrics::Authentication,
    limits::Class,
    request::{Query, RequestInfo},
    resources::{Resource, SharedRegistry},
};

/// Upper bounds of the duration buckets in seconds, as upstream's.
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Upper bounds of the buckets of durations without waiting, in seconds, as upstream's.
const OWN_SECONDS: [f64; 21] = [
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Names of the labels of a request, except for the code.
const LABELS: [&str; 8] =
    ["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"];
/// Limit of combinations of [`LABELS`]; those that users can add come from definitions of resources.
const LABEL_SETS: usize = 5000;
/// First segments of paths that are no resources.
const PATHS: [&str; 8] =
    ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi", "/readyz", "/version"];
/// Resources that are served and not stored.
const REVIEWS: [(&str, &str); 8] = [
    ("", "componentstatuses"),
    ("", "bindings"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
];
const OTHER: &str = "other";
/// [`LABELS`] without `dry_run`.
const LONG_LABELS: [&str; 7] = ["verb", "group", "version", "resource", "subresource", "scope", "component"];

fn without_dry_run<'a>(labels: &[&'a str; 8]) -> [&'a str; 7] {
    let [verb, _, group, version, resource, subresource, scope, component] = *labels;
    [verb, group, version, resource, subresource, scope, component]
}

/// The metrics of requests with equal labels.
struct Requests {
    by_code: Family<1, Counter>,
    /// Those that were refused because there were too many, or ended because they took too long, by code.
    terminations: Family<1, Counter>,
    duration: Histogram,
    /// Durations without the time that requests waited for others.
    own_duration: Histogram,
    /// Sizes of responses; for reads only, as upstream.
    size: Option<Histogram>,
}

/// The metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<8, Arc<Requests>>,
    reading: Gauge,
    mutating: Gauge,
    /// Authentication of requests.
    pub(crate) authentication: Authentication,
    long_running: Family<7, Gauge>,
    watch_events: Family<3, Counter>,
    watch_sizes: Family<3, Histogram>,
    /// Handshakes that failed.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without TLS there are no handshakes"))]
    pub(crate) handshake_errors: Counter,
}

/// The metrics of one watch.
#[derive(Clone, Debug)]
pub(crate) struct WatchMetrics {
    events: Counter,
    sizes: Histogram,
}

impl WatchMetrics {
    /// Counts an event of a size in bytes.
    pub(crate) fn sent(&self, size: usize) {
        self.events.inc();
        #[expect(clippy::cast_precision_loss, reason = "objects are far below 2^53 bytes")]
        self.sizes.observe(size as f64);
    }
}

/// Counts a long-running request until it is dropped.
#[derive(Debug)]
pub(crate) struct LongRunning(Gauge);

impl LongRunning {
    /// Counts the request until its response is consumed; an upgraded one until its connection takes the
    /// guard out of the extensions and ends.
    pub(crate) fn until_the_end_of(self, mut response: Response<Body>) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            response.extensions_mut().insert(Arc::new(self));
            return response;
        }
        response.map(|body| Counted { body, size: None, _guard: Some(self) }.boxed_unsync())
    }
}

/// Observes the size of a response when it is dropped.
struct Size {
    bytes: u64,
    sizes: Histogram,
}

impl Drop for Size {
    fn drop(&mut self) {
        observe(&self.sizes, self.bytes);
    }
}

#[expect(clippy::cast_precision_loss, reason = "responses are far below 2^53 bytes")]
fn observe(sizes: &Histogram, bytes: u64) {
    sizes.observe(bytes as f64);
}

/// The body of a long-running request, or of a response whose size is not known before its end.
struct Counted {
    body: Body,
    size: Option<Size>,
    _guard: Option<LongRunning>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Some(size), Poll::Ready(Some(Ok(frame)))) = (&mut self.size, &frame)
            && let Some(data) = frame.data_ref()
        {
            size.bytes += data.len() as u64;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn new(registry: Registry) -> Self {
        k8s_metrics::process::register(&registry);
        let [verb, dry, group, version, resource, subresource, scope, component] = LABELS;
        let all = [verb, dry, group, version, resource, subresource, scope, component, "code"];
        let total: Family<9, Counter> = registry.register(
            "apiserver_request_total",
            "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
            Family::new(all).limit(4 * LABEL_SETS),
        );
        let durations: Family<8, Histogram> = registry.register(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
            Family::new_with_constructor(LABELS, |_| Histogram::new(SECONDS)).limit(LABEL_SETS),
        );
        let terminations: Family<8, Counter> = registry.register(
            "apiserver_request_terminations_total",
            "Number of requests which apiserver terminated in self-defense.",
            Family::new([verb, group, version, resource, subresource, scope, component, "code"])
                .limit(LABEL_SETS),
        );
        let own: Family<7, Histogram> = registry.register(
            "apiserver_request_sli_duration_seconds",
            "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.",
            Family::new_with_constructor(LONG_LABELS, |_| Histogram::new(OWN_SECONDS)).limit(LABEL_SETS),
        );
        let inflight: Family<1, Gauge> = registry.register(
            "apiserver_current_inflight_requests",
            "Number of requests that are being answered, without long-running ones, by request kind.",
            Family::new(["request_kind"]),
        );
        let sizes: Family<7, Histogram> = registry.register(
            "apiserver_response_sizes",
            "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.",
            Family::new_with_constructor(LONG_LABELS, |_| Histogram::new(exponential_buckets(1000.0, 10.0, 7)))
                .limit(LABEL_SETS),
        );
        let kinds = ["group", "version", "resource"];
        let requests = move |labels: &[&str; 8]| {
            Arc::new(Requests {
                by_code: by_code(total.clone(), labels.map(Box::from)),
                terminations: terminations_by_code(terminations.clone(), labels.map(Box::from)),
                duration: durations.get_or_create(labels),
                own_duration: own.get_or_create(&without_dry_run(labels)),
                size: matches!(labels[0], "GET" | "LIST")
                    .then(|| sizes.get_or_create(&without_dry_run(labels))),
            })
        };
        Metrics {
            requests: Family::new_with_constructor(LABELS, requests).limit(LABEL_SETS),
            reading: inflight.get_or_create(&["readOnly"]),
            mutating: inflight.get_or_create(&["mutating"]),
            authentication: Authentication::new(&registry),
            long_running: registry.register(
                "apiserver_longrunning_requests",
                "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.",
                Family::new(LONG_LABELS).limit(LABEL_SETS),
            ),
            watch_events: registry.register(
                "apiserver_watch_events_total",
                "Number of events sent in watch clients",
                Family::new(kinds).limit(LABEL_SETS),
            ),
            watch_sizes: registry.register(
                "apiserver_watch_events_sizes",
                "Watch event size distribution in bytes",
                Family::new_with_constructor(kinds, |_| Histogram::new(exponential_buckets(1024.0, 2.0, 8)))
                    .limit(LABEL_SETS),
            ),
            handshake_errors: registry.register(
                "apiserver_tls_handshake_errors_total",
                "Number of requests dropped with 'TLS handshake error from' error",
                Counter::default(),
            ),
            registry,
        }
    }

    /// Returns all metrics of the registry, and the number of stored objects of each kind.
    pub(crate) fn text(&self, stored: &BTreeMap<&str, usize>) -> String {
        let mut out = String::new();
        encode(&mut out, &self.registry);
        let mut encoder = Encoder::new(&mut out);
        let mut objects = encoder.describe(
            "apiserver_storage_objects",
            "Number of stored objects by kind.",
            MetricType::Gauge,
        );
        for (resource, count) in stored {
            objects.sample(&[("resource", resource)], count);
        }
        let mut objects = encoder.describe(
            "apiserver_resource_objects",
            "Number of stored objects by group and resource.",
            MetricType::Gauge,
        );
        for (resource, count) in stored {
            let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
            objects.sample(&[("group", group), ("resource", resource)], count);
        }
        out
    }

    /// Returns the registry that the metrics are in.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the metrics of watches of a resource.
    pub(crate) fn watch(&self, resource: &Resource) -> WatchMetrics {
        let labels = [&*resource.group, &*resource.version, &*resource.plural];
        WatchMetrics {
            events: self.watch_events.get_or_create(&labels),
            sizes: self.watch_sizes.get_or_create(&labels),
        }
    }

    /// Starts to measure a request. The result counts it when it is dropped.
    #[expect(clippy::disallowed_methods, reason = "the duration of a request, in virtual time as well")]
    pub(crate) fn begin(&self, served: &SharedRegistry, info: &RequestInfo, query: &Query) -> Measured {
        let class = Class::of(info);
        let inflight = match class {
            Class::Reading => Some(self.reading.clone()),
            Class::Mutating => Some(self.mutating.clone()),
            Class::LongRunning => None,
        };
        if let Some(gauge) = &inflight {
            gauge.inc();
        }
        let (requests, labels) = self.of(served, info, query);
        let long_running = (class == Class::LongRunning).then(|| {
            let gauge = self.long_running.get_or_create(&without_dry_run(&labels));
            gauge.inc();
            LongRunning(gauge)
        });
        Measured {
            requests,
            begun: Instant::now(),
            waited: Duration::ZERO,
            inflight,
            long_running,
            code: None,
        }
    }

    fn of<'a>(
        &self,
        served: &SharedRegistry,
        info: &'a RequestInfo,
        query: &Query,
    ) -> (Arc<Requests>, [&'a str; 8]) {
        let dry_run = if query.get("dryRun") == "All" { "All" } else { "" };
        let labels = if info.is_resource {
            let (group, version, resource) = (&*info.group, &*info.version, &*info.resource);
            [verb(info), dry_run, group, version, resource, &info.subresource, scope(info), "apiserver"]
        } else {
            [verb(info), "", "", "", "", path(info), "", ""]
        };
        // Known labels cost one lookup. Only unknown ones are checked.
        if let Some(known) = self.requests.get(&labels) {
            return (known, labels);
        }
        if info.is_resource && !is_served(served, info) {
            let labels = [labels[0], dry_run, OTHER, OTHER, OTHER, OTHER, OTHER, "apiserver"];
            return (self.requests.get_or_create(&labels), labels);
        }
        (self.requests.get_or_create(&labels), labels)
    }
}

/// Returns the counters of requests with equal labels, by code.
fn by_code(total: Family<9, Counter>, labels: [Box<str>; 8]) -> Family<1, Counter> {
    Family::new_with_constructor(["code"], move |[code]| {
        let [verb, dry, group, version, resource, subresource, scope, component] =
            labels.each_ref().map(|label| &**label);
        total.get_or_create(&[verb, dry, group, version, resource, subresource, scope, component, code])
    })
}

/// Returns the counters of terminated requests with equal labels, by code.
fn terminations_by_code(total: Family<8, Counter>, labels: [Box<str>; 8]) -> Family<1, Counter> {
    Family::new_with_constructor(["code"], move |[code]| {
        let labels = labels.each_ref().map(|label| &**label);
        let [verb, group, version, resource, subresource, scope, component] = without_dry_run(&labels);
        total.get_or_create(&[verb, group, version, resource, subresource, scope, component, code])
    })
}

/// Returns upstream's label for a verb.
fn verb(info: &RequestInfo) -> &'static str {
    match (info.verb.as_str(), info.subresource.as_str()) {
        (_, "exec" | "attach" | "portforward" | "proxy") => "CONNECT",
        ("get" | "head", _) => "GET",
        ("list", _) => "LIST",
        ("watch", _) => "WATCH",
        ("create" | "post", _) => "POST",
        ("update" | "put", _) => "PUT",
        ("patch", _) => "PATCH",
        ("delete", _) => "DELETE",
        ("deletecollection", _) => "DELETECOLLECTION",
        _ => OTHER,
    }
}

/// Returns upstream's label for the number of objects that a request is about.
fn scope(info: &RequestInfo) -> &'static str {
    if !info.name.is_empty() || info.verb == "create" {
        "resource"
    } else if info.namespace.is_empty() {
        "cluster"
    } else {
        "namespace"
    }
}

/// Returns the first segment of a path, if something is served below it.
fn path(info: &RequestInfo) -> &'static str {
    let begins = |path: &str| {
        info.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    PATHS.into_iter().find(|path| begins(path)).unwrap_or(OTHER)
}

fn is_served(served: &SharedRegistry, info: &RequestInfo) -> bool {
    if REVIEWS.contains(&(&info.group, &info.resource)) {
        return info.version == "v1" && info.subresource.is_empty();
    }
    let registry = served.now();
    registry
        .find(&info.group, &info.version, &info.resource)
        .is_some_and(|r| info.subresource.is_empty() || r.subresource(&info.subresource).is_some())
}

/// A request that is being answered.
pub(crate) struct Measured {
    requests: Arc<Requests>,
    begun: Instant,
    /// Time that the request waited for others.
    waited: Duration,
    /// `None` for a long-running request, whose duration says nothing.
    inflight: Option<Gauge>,
    long_running: Option<LongRunning>,
    code: Option<StatusCode>,
}

impl Measured {
    /// Sets the answer's code. Without it, the client has gone, and the request is not counted. `waited` is
    /// the time that the request waited for others. `terminated`: there were too many requests, or it took
    /// too long.
    pub(crate) fn answered(&mut self, code: StatusCode, waited: Duration, terminated: bool) {
        self.code = Some(code);
        self.waited = waited;
        if terminated {
            self.requests.terminations.get_or_create(&[code.as_str()]).inc();
        }
    }

    /// Observes the size of a response in its final form, now or when it is consumed.
    pub(crate) fn sized(&self, response: Response<Body>) -> Response<Body> {
        let Some(sizes) = &self.requests.size else { return response };
        match http_body::Body::size_hint(response.body()).exact() {
            Some(bytes) => {
                observe(sizes, bytes);
                response
            }
            None => {
                let size = Some(Size { bytes: 0, sizes: sizes.clone() });
                response.map(|body| Counted { body, size, _guard: None }.boxed_unsync())
            }
        }
    }

    /// Returns true for a request that is not long-running.
    pub(crate) fn has_duration(&self) -> bool {
        self.inflight.is_some()
    }

    /// Returns the guard that counts a long-running request; its response keeps it.
    pub(crate) fn long_running(&mut self) -> Option<LongRunning> {
        self.long_running.take()
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if let Some(gauge) = &self.inflight {
            gauge.dec();
        }
        let Some(code) = self.code else { return };
        let requests = &self.requests;
        requests.by_code.get_or_create(&[code.as_str()]).inc();
        if self.inflight.is_some() {
            let took = self.begun.elapsed();
            requests.duration.observe(took.as_secs_f64());
            requests.own_duration.observe(took.saturating_sub(self.waited).as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn labels(method: Method, path: &str) -> String {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query = Query::parse(query);
        let metrics = Metrics::new(Registry::default());
        let info = RequestInfo::parse(&method, path, &query);
        metrics.begin(&SharedRegistry::default(), &info, &query).answered(
            StatusCode::OK,
            Duration::ZERO,
            false,
        );
        let text = metrics.text(&BTreeMap::new());
        let line = text.lines().find(|l| l.starts_with("apiserver_request_total{")).unwrap();
        line.split('"').skip(1).step_by(2).take(8).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_have_upstreams_labels() {
        let check = |method, path: &str, want: &str| assert_eq!(labels(method, path), want, "{path}");
        let pods = "/api/v1/namespaces/default/pods";
        check(Method::GET, "/api/v1/pods", "LIST   v1 pods  cluster apiserver");
        check(Method::GET, pods, "LIST   v1 pods  namespace apiserver");
        check(Method::GET, &format!("{pods}?watch=1"), "WATCH   v1 pods  namespace apiserver");
        check(Method::POST, &format!("{pods}?dryRun=All"), "POST All  v1 pods  resource apiserver");
        check(Method::POST, &format!("{pods}/a/exec"), "CONNECT   v1 pods exec resource apiserver");
        let scale = "/apis/apps/v1/namespaces/default/deployments/a/scale";
        check(Method::PATCH, scale, "PATCH  apps v1 deployments scale resource apiserver");
        let review = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        check(Method::POST, review, "POST  authorization.k8s.io v1 subjectaccessreviews  resource apiserver");
        check(Method::GET, "/livez/ping", "GET     /livez  ");
    }

    #[test]
    fn what_is_not_served_is_other() {
        for path in ["/api/v1/guesses", "/apis/x/v1/pods/a", "/api/v1/namespaces/a/pods/b/guess"] {
            let verb = labels(Method::GET, path);
            assert!(verb.ends_with("other other other other other apiserver"), "{path}: {verb}");
        }
        assert_eq!(labels(Method::GET, "/apisguess/x"), "GET     other  ");
        let guess = Method::from_bytes(b"GUESS").unwrap();
        assert_eq!(labels(guess, "/guess"), "other     other  ");
    }

    #[test]
    fn a_request_is_counted_once_it_is_answered() {
        let metrics = Metrics::new(Registry::default());
        let (served, query) = (SharedRegistry::default(), Query::default());
        let get = RequestInfo::parse(&Method::GET, "/api/v1/nodes/a", &query);
        let total = |code| {
            let requests = metrics.begin(&served, &get, &query).requests.clone();
            requests.by_code.get(&[code]).map(|c| c.get())
        };
        drop(metrics.begin(&served, &get, &query));
        assert_eq!(total("200"), None, "the client has gone");
        for code in [StatusCode::OK, StatusCode::OK, StatusCode::NOT_FOUND] {
            let mut measured = metrics.begin(&served, &get, &query);
            assert_eq!((metrics.reading.get(), metrics.mutating.get()), (1, 0));
            measured.answered(code, Duration::from_secs(3600), code == StatusCode::NOT_FOUND);
        }
        assert_eq!((total("200"), total("404"), metrics.reading.get()), (Some(2), Some(1), 0));
        let requests = metrics.begin(&served, &get, &query).requests.clone();
        assert_eq!((requests.duration.count(), requests.own_duration.count()), (3, 3));
        assert!(requests.own_duration.sum() < 1e-9, "all of the time was waiting");
        assert_eq!(requests.terminations.get_or_create(&["404"]).get(), 1);
        let line =
            "apiserver_request_terminations_total{verb=\"GET\",group=\"\",version=\"v1\",resource=\"nodes\",";
        assert!(metrics.text(&BTreeMap::new()).contains(line));
    }
}
