//! One webhook of a configuration, and its call.

use std::time::Duration;

use http::StatusCode;
use k8s_core::status::ApiStatus;
use k8s_schema::patch;
use k8s_store::Store;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::review::{self, Answer, Version};
use crate::{
    admission::{
        Operation,
        event::Event,
        facts::{Conditions, Facts, Matched},
        matching::{Matcher, Place, expressions},
    },
    auth::Authorization,
    expressions::environment,
    resources::Resource,
    value::{array_at, int_at, str_at},
    webhook_client::Callee,
};

/// The largest answer, bytes.
const MOST: usize = 16 << 20;
/// Number of concurrent calls of one webhook; further ones wait.
const CONCURRENT: usize = 100;

/// A webhook.
#[derive(Debug)]
pub(super) struct Hook {
    /// Unique in the cluster: configuration, name and its place among equal names.
    pub(super) id: String,
    pub(super) name: String,
    pub(super) configuration: String,
    /// A failed call is left out; otherwise it refuses the request.
    pub(super) ignores_failures: bool,
    /// Called again if the object changes after it.
    pub(super) reinvoked: bool,
    timeout: Duration,
    /// May be called in dry runs.
    harmless: bool,
    version: Option<Version>,
    matcher: Matcher,
    conditions: Conditions,
    callee: Result<Callee, String>,
    places: Semaphore,
}

/// Reason for which there is no answer.
pub(super) enum Failure {
    /// The call failed. `failurePolicy` decides.
    Call(String),
    /// The request is refused, whatever the policy.
    Refused(ApiStatus),
}

impl Hook {
    /// Reads the webhooks of a configuration.
    pub(super) fn of_configuration(configuration: &Value) -> Vec<Hook> {
        let name = str_at(configuration, "/metadata/name");
        array_at(configuration, "/webhooks")
            .iter()
            .enumerate()
            .map(|(i, hook)| Hook::new(name, i, hook))
            .collect()
    }

    fn new(configuration: &str, place: usize, hook: &Value) -> Self {
        let name = str_at(hook, "/name").to_owned();
        let seconds = int_at(hook, "/timeoutSeconds").and_then(|n| u64::try_from(n).ok());
        let versions = array_at(hook, "/admissionReviewVersions").iter().filter_map(Value::as_str);
        Hook {
            id: format!("{configuration}/{name}/{place}"),
            configuration: configuration.to_owned(),
            ignores_failures: str_at(hook, "/failurePolicy") == "Ignore",
            reinvoked: str_at(hook, "/reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(seconds.unwrap_or(10).clamp(1, 30)),
            harmless: matches!(str_at(hook, "/sideEffects"), "None" | "NoneOnDryRun"),
            version: versions.filter_map(Version::parse).next(),
            matcher: Matcher::new(hook),
            conditions: Conditions::new(expressions(hook, "/matchConditions"), &environment()),
            callee: Callee::webhook(hook.get("clientConfig").unwrap_or(&Value::Null)),
            places: Semaphore::new(CONCURRENT),
            name,
        }
    }

    /// Returns the resource in whose version the webhook sees an event; `None` if the event is not for it.
    ///
    /// # Errors
    /// 404 if the namespace is gone, 500 for a match condition that fails where failures refuse a request.
    pub(super) async fn is_for<'a>(
        &self,
        event: &Event<'a>,
        store: &Store,
        authorization: &Authorization,
    ) -> Result<Option<Place>, ApiStatus> {
        let Some(place) = self.matcher.find(event, store)? else { return Ok(None) };
        if self.conditions.is_empty() {
            return Ok(Some(place));
        }
        let facts = Facts::new(event, place.of(event), authorization, store).await?;
        match self.conditions.matches(&facts, &Value::Null).await {
            Matched::Yes => Ok(Some(place)),
            Matched::No => Ok(None),
            Matched::Failed(_) if self.ignores_failures => Ok(None),
            Matched::Failed(why) => Err(event.forbidden(&why)),
        }
    }

    /// Asks the webhook.
    pub(super) async fn call(
        &self,
        event: &Event<'_>,
        resource: &Resource,
        store: &Store,
    ) -> Result<Answer, Failure> {
        if event.dry_run && !self.harmless {
            let why = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Failure::Refused(ApiStatus::bad_request(why)));
        }
        let Some(version) = self.version else {
            let why = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            return Err(Failure::Call(why.into()));
        };
        let callee =
            self.callee.as_ref().map_err(|why| Failure::Call(format!("could not get REST client: {why}")))?;
        let uid = k8s_core::random::uuid().to_string();
        let body = review::request(event, resource, version, &uid, store).await;
        let body = body.map_err(|e| Failure::Call(e.message().to_owned()))?.to_string();
        let path = callee.path();
        let joint = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{joint}timeout={}s", self.timeout.as_secs());
        let failed = |why: &str| {
            let url = callee.url(&path);
            Failure::Call(format!("failed to call webhook: Post {url:?}: {why}"))
        };
        // Never closed: an error would mean no bound, and the call goes on.
        let _place = self.places.acquire().await.ok();
        let exchange = callee.post(store, &path, body.as_bytes(), MOST);
        let (status, body) = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => return Err(failed(&why)),
            Err(_) => return Err(failed("context deadline exceeded")),
        };
        if status != StatusCode::OK {
            return Err(Failure::Call(format!("failed to call webhook: {}", told(status, &body))));
        }
        review::answer(&body, version, &uid)
            .map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))
    }

    /// Returns the object as the answer's patch makes it, in the version of `resource`; `None` if it stays as
    /// it is.
    ///
    /// # Errors
    /// 500 for a patch that cannot be applied, or whose result is no object of the kind.
    pub(super) async fn patched(
        &self,
        answer: &Answer,
        event: &Event<'_>,
        resource: &Resource,
        store: &Store,
    ) -> Result<Option<Value>, ApiStatus> {
        let (Some(changes), Some(_)) = (&answer.patch, event.object) else { return Ok(None) };
        let before = event.served(resource, event.object, store).await?;
        let mut after = before.clone();
        patch::json(&mut after, changes).map_err(|e| ApiStatus::internal(e.to_string()))?;
        if !after.is_object() {
            return Err(ApiStatus::internal(format!("admission webhook {:?} made no object", self.name)));
        }
        if event.is_whole() && event.operation != Operation::Connect {
            for field in ["apiVersion", "kind"] {
                after[field] = before[field].clone();
            }
            let found = resource.request_schema().normalize(&mut after, resource.custom);
            if let Some(wrong) = found.mismatches.first().filter(|_| resource.rules.is_none()) {
                let (name, path, want) = (&self.name, &wrong.path, &wrong.want);
                let why = format!("admission webhook {name:?}: the patched {path} is no {want}");
                return Err(ApiStatus::internal(why));
            }
        }
        Ok((after != before).then_some(after))
    }
}

/// Text for a response that is not 200, as client-go has it.
fn told(status: StatusCode, body: &[u8]) -> String {
    match status.as_u16() {
        404 => "the server could not find the requested resource".into(),
        code @ 500.. => {
            let text: String = String::from_utf8_lossy(body).trim().chars().take(1000).collect();
            let text = if text.is_empty() { "unknown".to_owned() } else { text };
            let _ = code;
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        code => {
            format!("the server responded with the status code {code} but did not return more information")
        }
    }
}
