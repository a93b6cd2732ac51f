//! Metrics of authentication and authorization, with upstream's names.

use std::time::Duration;

use k8s_metrics::{Counter, Family, Gauge, Histogram, Registry, exponential_buckets};

use crate::{stages::Decision, user::User};

/// User names that are labels; of other users only the kind is.
const NAMES: [&str; 5] =
    ["admin", "client", "kube_proxy", "kubelet", "system:serviceaccount:kube-system:default"];

/// Upper bounds of the buckets of a client certificate's remaining time, in seconds.
const REMAINING: [f64; 14] = [
    0.0,
    1800.0,
    3600.0,
    7200.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    345_600.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
];

/// Upper bounds of the buckets of a webhook's duration, in seconds: the defaults of Prometheus.
const WEBHOOK: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Outcome of the authentication of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authenticated<'a> {
    Success(&'a User),
    /// No credentials.
    Failure,
    /// Credentials that were rejected.
    Error,
}

/// Counter and duration of one result.
#[derive(Debug)]
struct Measure {
    count: Counter,
    duration: Histogram,
}

impl Measure {
    fn take(&self, elapsed: Duration) {
        self.count.inc();
        self.duration.observe(elapsed.as_secs_f64());
    }
}

/// Counters and durations of results.
fn measures<const N: usize>(
    count: &Family<1, Counter>,
    duration: &Family<1, Histogram>,
    results: [&str; N],
) -> [Measure; N] {
    results.map(|result| Measure {
        count: count.get_or_create(&[result]),
        duration: duration.get_or_create(&[result]),
    })
}

/// Durations by result: 1 ms to 16 s.
fn durations() -> Family<1, Histogram> {
    Family::new_with_constructor(["result"], |_| Histogram::new(exponential_buckets(0.001, 2.0, 15)))
}

/// The metrics of the authentication of requests.
#[derive(Debug)]
pub(crate) struct Authentication {
    users: Family<1, Counter>,
    /// Success, failure, error.
    results: [Measure; 3],
}

impl Authentication {
    pub(crate) fn new(registry: &Registry) -> Self {
        let attempts = registry.register(
            "authentication_attempts",
            "Counter of authenticated attempts.",
            Family::new(["result"]),
        );
        let duration = registry.register(
            "authentication_duration_seconds",
            "Authentication duration in seconds broken out by result.",
            durations(),
        );
        Authentication {
            users: registry.register(
                "authenticated_user_requests",
                "Counter of authenticated requests broken out by username.",
                Family::new(["username"]),
            ),
            results: measures(&attempts, &duration, ["success", "failure", "error"]),
        }
    }

    /// Counts the authentication of one request.
    pub(crate) fn take(&self, outcome: Authenticated<'_>, elapsed: Duration) {
        let [success, failure, error] = &self.results;
        match outcome {
            Authenticated::Success(user) => {
                self.users.get_or_create(&[kind_of(&user.name)]).inc();
                success.take(elapsed);
            }
            Authenticated::Failure => failure.take(elapsed),
            Authenticated::Error => error.take(elapsed),
        }
    }
}

/// Returns the label of a user: names themselves would be without end, and are nobody's business.
fn kind_of(name: &str) -> &'static str {
    match NAMES.iter().find(|known| **known == name) {
        Some(known) => known,
        None if name.contains('@') => "email_id",
        None => "other",
    }
}

/// The metrics of the authorization of requests.
#[derive(Debug)]
pub(crate) struct Authorizations {
    /// Allowed, denied, no opinion, error.
    results: [Measure; 4],
    decisions: Family<3, Counter>,
}

impl Authorizations {
    pub(crate) fn new(registry: &Registry) -> Self {
        let attempts = registry.register(
            "authorization_attempts_total",
            "Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'.",
            Family::new(["result"]),
        );
        let duration = registry.register(
            "authorization_duration_seconds",
            "Authorization duration in seconds broken out by result.",
            durations(),
        );
        Authorizations {
            results: measures(&attempts, &duration, ["allowed", "denied", "no-opinion", "error"]),
            decisions: registry.register(
                "apiserver_authorization_decisions_total",
                "Total number of terminal decisions made by an authorizer split by authorizer type, name, and decision.",
                Family::new(["type", "name", "decision"]),
            ),
        }
    }

    /// Counts the authorization of one request.
    pub(crate) fn take(&self, decision: &Decision, failed: bool, elapsed: Duration) {
        let [allowed, denied, no_opinion, error] = &self.results;
        let measure = match decision {
            Decision::Allow => allowed,
            _ if failed => error,
            Decision::Deny(_) => denied,
            Decision::NoOpinion => no_opinion,
        };
        measure.take(elapsed);
    }

    /// Returns the counters of an authorizer that allow and deny.
    pub(crate) fn decisions(&self, kind: &str, name: &str) -> [Counter; 2] {
        ["allowed", "denied"].map(|decision| self.decisions.get_or_create(&[kind, name, decision]))
    }
}

/// Returns the histogram of the remaining time of client certificates.
pub(crate) fn certificate_expiration(registry: &Registry) -> Histogram {
    registry.register(
        "apiserver_client_certificate_expiration_seconds",
        "Distribution of the remaining lifetime on the certificate used to authenticate a request.",
        Histogram::new(REMAINING),
    )
}

/// The metrics of the token webhook's cache.
#[derive(Clone, Debug)]
pub(crate) struct TokenCache {
    requests: Family<1, Counter>,
    durations: Family<1, Histogram>,
    fetches: Family<1, Counter>,
    active: Family<1, Gauge>,
}

impl TokenCache {
    pub(crate) fn new(registry: &Registry) -> Self {
        TokenCache {
            requests: registry.register(
                "authentication_token_cache_request_total",
                "Number of tokens that were looked up in the cache, by hit and miss.",
                Family::new(["status"]),
            ),
            durations: registry.register(
                "authentication_token_cache_request_duration_seconds",
                "Duration of a token's authentication in seconds, by hit and miss.",
                Family::new_with_constructor(["status"], |_| Histogram::new(WEBHOOK)),
            ),
            fetches: registry.register(
                "authentication_token_cache_fetch_total",
                "Number of calls about tokens that are not in the cache, by result.",
                Family::new(["status"]),
            ),
            active: registry.register(
                "authentication_token_cache_active_fetch_count",
                "Number of calls about tokens that are under way.",
                Family::new(["status"]),
            ),
        }
    }

    /// Counts a token that was looked up.
    pub(crate) fn looked_up(&self, hit: bool, elapsed: Duration) {
        let status = [if hit { "hit" } else { "miss" }];
        self.requests.get_or_create(&status).inc();
        self.durations.get_or_create(&status).observe(elapsed.as_secs_f64());
    }

    /// Counts a call that waits for its turn (`blocked`) or is under way (`in_flight`), until the result is
    /// dropped.
    pub(crate) fn active(&self, status: &str) -> Active {
        let gauge = self.active.get_or_create(&[status]);
        gauge.inc();
        Active(gauge)
    }

    /// Counts a call that ended.
    pub(crate) fn fetched(&self, is_answered: bool) {
        self.fetches.get_or_create(&[if is_answered { "ok" } else { "error" }]).inc();
    }
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct Active(Gauge);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics of authorization webhooks.
#[derive(Clone, Debug)]
pub(crate) struct AccessWebhooks {
    evaluations: Family<2, Counter>,
    durations: Family<2, Histogram>,
    failed_open: Family<2, Counter>,
}

impl AccessWebhooks {
    pub(crate) fn new(registry: &Registry) -> Self {
        AccessWebhooks {
            evaluations: registry.register(
                "apiserver_authorization_webhook_evaluations_total",
                "Round-trips to authorization webhooks.",
                Family::new(["name", "result"]),
            ),
            durations: registry.register(
                "apiserver_authorization_webhook_duration_seconds",
                "Request latency in seconds.",
                Family::new_with_constructor(["name", "result"], |_| Histogram::new(WEBHOOK)),
            ),
            failed_open: registry.register(
                "apiserver_authorization_webhook_evaluations_fail_open_total",
                "NoOpinion results due to webhook timeout or error.",
                Family::new(["name", "result"]),
            ),
        }
    }

    /// Counts a round trip. `result`: `success`, `timeout` or `error`.
    pub(crate) fn asked(&self, name: &str, result: &str, elapsed: Duration) {
        self.evaluations.get_or_create(&[name, result]).inc();
        self.durations.get_or_create(&[name, result]).observe(elapsed.as_secs_f64());
    }

    /// Counts a failure that left the decision to the next authorizer.
    pub(crate) fn failed_open(&self, name: &str, result: &str) {
        self.failed_open.get_or_create(&[name, result]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_counted_by_kind_and_requests_by_result() {
        let registry = Registry::default();
        let metrics = Authentication::new(&registry);
        for (name, want) in [
            ("kubelet", "kubelet"),
            ("jane@example.com", "email_id"),
            ("jane", "other"),
            ("system:serviceaccount:kube-system:default", "system:serviceaccount:kube-system:default"),
            ("system:serviceaccount:shop:default", "other"),
        ] {
            assert_eq!(kind_of(name), want);
            metrics.take(Authenticated::Success(&User::new(name, &[])), Duration::from_millis(3));
        }
        metrics.take(Authenticated::Failure, Duration::ZERO);
        metrics.take(Authenticated::Error, Duration::ZERO);
        let mut text = String::new();
        k8s_metrics::encode(&mut text, &registry);
        for line in [
            r#"authenticated_user_requests{username="other"} 2"#,
            r#"authentication_attempts{result="success"} 5"#,
            r#"authentication_attempts{result="failure"} 1"#,
            r#"authentication_attempts{result="error"} 1"#,
            r#"authentication_duration_seconds_bucket{result="success",le="0.002"} 0"#,
            r#"authentication_duration_seconds_bucket{result="success",le="0.004"} 5"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn an_allowed_request_with_a_problem_is_allowed() {
        let registry = Registry::default();
        let metrics = Authorizations::new(&registry);
        let deny = Decision::Deny(String::new());
        for (decision, failed) in [
            (&Decision::Allow, true),
            (&deny, true),
            (&deny, false),
            (&Decision::NoOpinion, false),
            (&Decision::NoOpinion, true),
        ] {
            metrics.take(decision, failed, Duration::ZERO);
        }
        let counts = metrics.results.each_ref().map(|measure| measure.count.get());
        assert_eq!(counts, [1, 1, 1, 2]);
    }
}
