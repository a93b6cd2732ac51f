//! Metrics of the API server, with upstream's names: requests, their durations, stored objects.
//!
//! Guarantee: resources, subresources, verbs and paths that are not served count as `other`, so requests
//! cannot invent label values.

use std::{collections::BTreeMap, sync::Arc};

use http::StatusCode;
use k8s_metrics::{Counter, Encoder, Family, Gauge, Histogram, MetricType, Registry, encode};
use tokio::time::Instant;

use crate::{
    limits::Class,
    request::{Query, RequestInfo},
    resources::SharedRegistry,
};

/// Upper bounds of the duration buckets in seconds, as upstream's.
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
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

/// The metrics of requests with equal labels.
struct Requests {
    by_code: Family<1, Counter>,
    duration: Histogram,
}

/// The metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<8, Arc<Requests>>,
    reading: Gauge,
    mutating: Gauge,
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
        let inflight: Family<1, Gauge> = registry.register(
            "apiserver_current_inflight_requests",
            "Number of requests that are being answered, without long-running ones, by request kind.",
            Family::new(["request_kind"]),
        );
        let requests = move |labels: &[&str; 8]| {
            Arc::new(Requests {
                by_code: by_code(total.clone(), labels.map(Box::from)),
                duration: durations.get_or_create(labels),
            })
        };
        Metrics {
            requests: Family::new_with_constructor(LABELS, requests).limit(LABEL_SETS),
            reading: inflight.get_or_create(&["readOnly"]),
            mutating: inflight.get_or_create(&["mutating"]),
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
        out
    }

    /// Returns the registry that the metrics are in.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
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
        Measured { requests: self.of(served, info, query), begun: Instant::now(), inflight, code: None }
    }

    fn of(&self, served: &SharedRegistry, info: &RequestInfo, query: &Query) -> Arc<Requests> {
        let dry_run = if query.get("dryRun") == "All" { "All" } else { "" };
        let labels = if info.is_resource {
            let (group, version, resource) = (&*info.group, &*info.version, &*info.resource);
            [verb(info), dry_run, group, version, resource, &info.subresource, scope(info), "apiserver"]
        } else {
            [verb(info), "", "", "", "", path(info), "", ""]
        };
        // Known labels cost one lookup. Only unknown ones are checked.
        if let Some(known) = self.requests.get(&labels) {
            return known;
        }
        if info.is_resource && !is_served(served, info) {
            return self.requests.get_or_create(&[
                labels[0],
                dry_run,
                OTHER,
                OTHER,
                OTHER,
                OTHER,
                OTHER,
                "apiserver",
            ]);
        }
        self.requests.get_or_create(&labels)
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
    /// `None` for a long-running request, whose duration says nothing.
    inflight: Option<Gauge>,
    code: Option<StatusCode>,
}

impl Measured {
    /// Sets the answer's code. Without it, the client has gone, and the request is not counted.
    pub(crate) fn answered(&mut self, code: StatusCode) {
        self.code = Some(code);
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
            requests.duration.observe(self.begun.elapsed().as_secs_f64());
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
        metrics.begin(&SharedRegistry::default(), &info, &query).answered(StatusCode::OK);
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
            measured.answered(code);
        }
        assert_eq!((total("200"), total("404"), metrics.reading.get()), (Some(2), Some(1), 0));
        assert_eq!(metrics.begin(&served, &get, &query).requests.duration.count(), 3);
    }
}
