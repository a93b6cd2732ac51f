//! The webhook authorizer: another server decides, asked by SubjectAccessReviews.
//!
//! Flow: match conditions decide whether the webhook is asked; its answers are kept for a while. Without an
//! answer after retries, the failure policy decides.

mod conditions;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use http::Method;
use jiff::Timestamp;
use k8s_core::{
    client::{Client, Error},
    clock::Clock,
    meta::{LabelSelector, selector::Operator},
};
use k8s_metrics::Registry;
use serde_json::{Map, Value, json};

pub use self::conditions::ConditionError;
use self::conditions::Conditions;
use super::metrics::AccessWebhooks;
use crate::{
    request::Attributes,
    stages::Decision,
    user::User,
    value::{bool_at, str_at},
};

/// Number of answers that are kept.
const KEPT: usize = 8192;
/// Size in bytes of the parts of a request, above which its answer is not kept.
const MOST_KEPT: usize = 10_000;
/// Delays before further attempts, in milliseconds (upstream's backoff without its jitter).
const RETRIES: [u64; 4] = [500, 750, 1125, 1687];

/// Decision when the webhook gives no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// The next authorizer is asked.
    #[default]
    NoOpinion,
    /// The request is denied.
    Deny,
}

/// Version of the SubjectAccessReviews that are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReviewVersion {
    /// `authorization.k8s.io/v1`.
    #[default]
    V1,
    /// `authorization.k8s.io/v1beta1`, upstream's default for flags.
    V1beta1,
}

/// Settings of a webhook authorizer.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// Name in metrics: that of the authorizer in its configuration.
    pub name: String,
    /// Time for which an answer that allows is kept; 0: not at all.
    pub authorized_ttl: Duration,
    /// Time for which another answer is kept; 0: not at all.
    pub unauthorized_ttl: Duration,
    /// Timeout of one attempt.
    pub timeout: Duration,
    /// Version of the reviews.
    pub version: ReviewVersion,
    /// Decision without an answer.
    pub failure_policy: FailurePolicy,
    /// CEL expressions over `request`, the `spec` of a v1 review. The webhook is asked if all are true.
    pub match_conditions: Vec<String>,
}

impl Default for WebhookSettings {
    /// Upstream's defaults of its flags.
    fn default() -> Self {
        WebhookSettings {
            name: "default".into(),
            authorized_ttl: Duration::from_secs(300),
            unauthorized_ttl: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            version: ReviewVersion::V1beta1,
            failure_policy: FailurePolicy::NoOpinion,
            match_conditions: Vec::new(),
        }
    }
}

/// A webhook authorizer. Clones share their connections and answers.
#[derive(Clone)]
pub struct WebhookAuthorizer(Arc<Webhook>);

struct Webhook {
    client: Client,
    path: String,
    settings: WebhookSettings,
    conditions: Conditions,
    clock: Clock,
    kept: Mutex<HashMap<String, (Timestamp, Answer)>>,
    metrics: OnceLock<AccessWebhooks>,
}

impl std::fmt::Debug for WebhookAuthorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookAuthorizer").field("path", &self.0.path).finish_non_exhaustive()
    }
}

/// The `status` of a review.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) decision: Decision,
    pub(crate) reason: String,
    pub(crate) error: Option<String>,
}

impl WebhookAuthorizer {
    /// Creates an authorizer that posts its reviews to `path` of a client's server.
    ///
    /// # Errors
    /// A match condition is no boolean expression over `request`.
    pub fn new(client: Client, path: &str, settings: WebhookSettings) -> Result<Self, ConditionError> {
        let conditions = Conditions::compile(&settings.match_conditions)?;
        let (path, clock, kept) = (path.to_owned(), Clock::system(), Mutex::default());
        let metrics = OnceLock::new();
        Ok(WebhookAuthorizer(Arc::new(Webhook { client, path, settings, conditions, clock, kept, metrics })))
    }

    /// Returns the name in metrics.
    pub(super) fn name(&self) -> &str {
        &self.0.settings.name
    }

    /// Counts the calls in a server's metrics.
    pub(super) fn measure(&self, registry: &Registry) {
        self.0.metrics.get_or_init(|| AccessWebhooks::new(registry));
    }

    /// Asks the webhook about a request.
    pub(crate) async fn decide(&self, user: &User, wanted: &Attributes<'_>) -> Answer {
        let webhook = &*self.0;
        match webhook.conditions.hold(user, wanted) {
            Ok(true) => {}
            Ok(false) => {
                return Answer { decision: Decision::NoOpinion, reason: String::new(), error: None };
            }
            Err(why) => return webhook.failed(why),
        }
        let spec = spec(user, wanted, webhook.settings.version);
        let key = spec.to_string();
        if let Some(answer) = webhook.kept(&key) {
            return answer;
        }
        match webhook.ask(&spec).await {
            Ok(answer) => {
                webhook.keep(key, &answer, wanted);
                answer
            }
            Err((result, why)) => {
                tracing::warn!(path = webhook.path, error = why, "the authorization webhook gave no answer");
                if let (Some(metrics), FailurePolicy::NoOpinion) =
                    (webhook.metrics.get(), webhook.settings.failure_policy)
                {
                    metrics.failed_open(&webhook.settings.name, result);
                }
                webhook.failed(why)
            }
        }
    }
}

impl Webhook {
    fn failed(&self, why: String) -> Answer {
        let decision = match self.settings.failure_policy {
            FailurePolicy::NoOpinion => Decision::NoOpinion,
            FailurePolicy::Deny => Decision::Deny(String::new()),
        };
        Answer { decision, reason: String::new(), error: Some(why) }
    }

    fn kept(&self, key: &str) -> Option<Answer> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|(until, _)| self.clock.now() < *until).map(|(_, answer)| answer.clone())
    }

    fn keep(&self, key: String, answer: &Answer, wanted: &Attributes<'_>) {
        let ttl = match answer.decision {
            Decision::Allow => self.settings.authorized_ttl,
            Decision::Deny(_) | Decision::NoOpinion => self.settings.unauthorized_ttl,
        };
        // Parts that the caller chooses freely.
        let parts = [wanted.namespace, wanted.verb, wanted.group, wanted.version, wanted.resource];
        let more = [wanted.subresource, wanted.name, wanted.path];
        let size: usize = parts.iter().chain(&more).map(|part| part.len()).sum();
        let until = self.clock.now().checked_add(ttl);
        let (false, true, Ok(until)) = (ttl.is_zero(), size < MOST_KEPT, until) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            let now = self.clock.now();
            kept.retain(|_, (until, _)| now < *until);
            if kept.len() >= KEPT {
                kept.clear();
            }
        }
        kept.insert(key, (until, answer.clone()));
    }

    /// # Errors
    /// The result for metrics, and the reason.
    #[expect(clippy::disallowed_methods, reason = "the duration of a call, in virtual time as well")]
    async fn ask(&self, spec: &Value) -> Result<Answer, (&'static str, String)> {
        let version = match self.settings.version {
            ReviewVersion::V1 => "authorization.k8s.io/v1",
            ReviewVersion::V1beta1 => "authorization.k8s.io/v1beta1",
        };
        let review = json!({"apiVersion": version, "kind": "SubjectAccessReview", "metadata": {"creationTimestamp": null}, "spec": spec});
        let body = review.to_string();
        let mut delays = RETRIES.iter();
        loop {
            let begun = tokio::time::Instant::now();
            let call = self.client.json(Method::POST, &self.path, "application/json", body.clone());
            let asked = tokio::time::timeout(self.settings.timeout, call).await;
            let answered = asked.map(|asked| asked.map(|review| answer(&review)));
            let result = match &answered {
                Ok(Ok(Ok(_))) => "success",
                Ok(_) => "error",
                Err(_) => "timeout",
            };
            if let Some(metrics) = self.metrics.get() {
                metrics.asked(&self.settings.name, result, begun.elapsed());
            }
            let (why, again) = match answered {
                Ok(Ok(answer)) => return answer.map_err(|why| (result, why)),
                Ok(Err(e)) => (describe(&e), e.is_transient()),
                Err(_) => (format!("no answer within {:?}", self.settings.timeout), false),
            };
            match delays.next().filter(|_| again) {
                Some(delay) => self.clock.sleep(Duration::from_millis(*delay)).await,
                None => return Err((result, why)),
            }
        }
    }
}

/// Returns an error with its causes.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let further = next.to_string();
        if !text.contains(&further) {
            text = format!("{text}: {further}");
        }
        cause = next.source();
    }
    text
}

/// Reads the status of an answered review.
fn answer(review: &Value) -> Result<Answer, String> {
    if str_at(review, "/kind") != "SubjectAccessReview" || !review["status"].is_object() {
        return Err("the answer is no SubjectAccessReview with a status".to_owned());
    }
    let reason = str_at(review, "/status/reason").to_owned();
    let (allowed, denied) = (bool_at(review, "/status/allowed"), bool_at(review, "/status/denied"));
    let decision = match (allowed, denied) {
        (_, true) => Decision::Deny(String::new()),
        (true, false) => Decision::Allow,
        (false, false) => Decision::NoOpinion,
    };
    let both = "webhook subject access review returned both allow and deny response";
    Ok(Answer { decision, reason, error: (allowed && denied).then(|| both.to_owned()) })
}

/// Returns the spec of a review; empty fields are left out.
fn spec(user: &User, wanted: &Attributes<'_>, version: ReviewVersion) -> Value {
    let mut spec = Map::new();
    let mut add = |key: &str, value: Value| drop(spec.insert(key.to_owned(), value));
    if wanted.path.is_empty() {
        let mut resource: Map<String, Value> = strings(wanted)
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(key, text)| (key.to_owned(), text.into()))
            .collect();
        for (key, requirements) in
            [("fieldSelector", of_fields(wanted)), ("labelSelector", of_labels(wanted))]
        {
            if !requirements.is_empty() {
                resource.insert(key.to_owned(), json!({"requirements": requirements}));
            }
        }
        add("resourceAttributes", resource.into());
    } else {
        add("nonResourceAttributes", json!({"path": wanted.path, "verb": wanted.verb}));
    }
    if !user.name.is_empty() {
        add("user", user.name.clone().into());
    }
    if !user.groups.is_empty() {
        let key = if version == ReviewVersion::V1 { "groups" } else { "group" };
        add(key, json!(user.groups));
    }
    if !user.extra.is_empty() {
        add("extra", json!(user.extra));
    }
    if !user.uid.is_empty() {
        add("uid", user.uid.clone().into());
    }
    spec.into()
}

/// The textual attributes of a request for a resource.
fn strings<'a>(wanted: &Attributes<'a>) -> [(&'static str, &'a str); 7] {
    [
        ("namespace", wanted.namespace),
        ("verb", wanted.verb),
        ("group", wanted.group),
        ("version", wanted.version),
        ("resource", wanted.resource),
        ("subresource", wanted.subresource),
        ("name", wanted.name),
    ]
}

fn of_fields(wanted: &Attributes<'_>) -> Vec<Value> {
    let terms = wanted.fields.map_or(&[][..], |fields| &fields.terms);
    let requirement = |(key, equal, value): &(String, bool, String)| {
        let operator = if *equal { "In" } else { "NotIn" };
        json!({"key": key, "operator": operator, "values": [value]})
    };
    terms.iter().map(requirement).collect()
}

fn of_labels(wanted: &Attributes<'_>) -> Vec<Value> {
    let none = LabelSelector::default();
    let requirements = &wanted.labels.unwrap_or(&none).requirements;
    let of = |requirement: &k8s_core::meta::selector::Requirement| {
        let key = &requirement.key;
        match &requirement.operator {
            Operator::In(values) => Some(json!({"key": key, "operator": "In", "values": values})),
            Operator::NotIn(values) => Some(json!({"key": key, "operator": "NotIn", "values": values})),
            Operator::Exists => Some(json!({"key": key, "operator": "Exists"})),
            Operator::DoesNotExist => Some(json!({"key": key, "operator": "DoesNotExist"})),
            // A review has no such operators: without one it asks for more.
            Operator::GreaterThan(_) | Operator::LessThan(_) => None,
        }
    };
    requirements.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests;
