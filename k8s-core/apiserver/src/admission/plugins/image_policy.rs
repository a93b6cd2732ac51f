//! ImagePolicyWebhook: a server decides about the images of a pod.
//!
//! An ImageReview (imagepolicy.k8s.io/v1alpha1) is posted, and its answer is kept for a while. A server that
//! cannot be asked lets pods in or not (`defaultAllow`).

use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use http::{Request, header};
use k8s_core::{
    client::{Body, Kubeconfig, Remote, Transport, body_from_bytes},
    clock::Clock,
    status::ApiStatus,
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, bool_at, int_at, object_at, str_at},
    webhook_client::whole,
};

/// The largest answer, bytes.
const LARGEST: usize = 1 << 20;
/// Number of answers that are kept.
const MOST: usize = 1024;
/// Number of attempts to ask.
const ATTEMPTS: u32 = 5;
/// Time for all attempts.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Prefix of annotations of audit events.
const AUDIT: &str = "imagepolicywebhook.image-policy.k8s.io/";

/// An answer, and the time until which it holds.
type Answers = HashMap<String, (Instant, Value)>;

pub(super) struct ImagePolicyWebhook {
    remote: Remote,
    /// URL path of the server.
    path: String,
    allow: Duration,
    deny: Duration,
    backoff: Duration,
    default_allow: bool,
    answers: Mutex<Answers>,
}

impl ImagePolicyWebhook {
    /// Reads `imagePolicy`.
    ///
    /// # Errors
    /// The path of a field, and its problem.
    pub(super) fn new(configuration: &Value) -> Result<Self, String> {
        let policy =
            configuration.get("imagePolicy").filter(|p| p.is_object()).ok_or("imagePolicy: required")?;
        let file = str_at(policy, "/kubeConfigFile");
        if file.is_empty() {
            return Err("imagePolicy.kubeConfigFile: required".into());
        }
        let unusable = |e: &dyn std::fmt::Display| format!("imagePolicy.kubeConfigFile {file}: {e}");
        let config = Kubeconfig::read(Path::new(file)).map_err(|e| unusable(&e))?;
        let config = config.remote(None).map_err(|e| unusable(&e))?;
        let url: http::Uri = config.server.parse().map_err(|e| unusable(&e))?;
        // Seconds, but for the backoff, which is in milliseconds.
        let number =
            |field: &str, default: i64, most: i64| match int_at(policy, &format!("/{field}")).unwrap_or(0) {
                0 => Ok(default),
                n if (1..=most).contains(&n) => Ok(n),
                n => Err(format!("imagePolicy.{field}: {n} is not between 1 and {most}")),
            };
        let seconds = |n: i64| Duration::from_secs(n.unsigned_abs());
        Ok(ImagePolicyWebhook {
            remote: Remote::new(&config).map_err(|e| unusable(&e))?,
            path: url.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            allow: seconds(number("allowTTL", 300, 1800)?),
            deny: seconds(number("denyTTL", 30, 1800)?),
            backoff: Duration::from_millis(number("retryBackoff", 500, 300_000)?.unsigned_abs()),
            default_allow: bool_at(policy, "/defaultAllow"),
            answers: Mutex::default(),
        })
    }

    /// Returns the status of the answer to a review.
    #[expect(
        clippy::disallowed_methods,
        reason = "the age of answers of another server, in virtual time as well"
    )]
    async fn answer(&self, spec: &Value) -> Result<Value, String> {
        let key = spec.to_string();
        let known = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((_, status)) = known.filter(|(end, _)| Instant::now() < *end) {
            return Ok(status);
        }
        let asked = tokio::time::timeout(TIMEOUT, self.ask(spec)).await;
        let status = asked.map_err(|_| "context deadline exceeded".to_owned())??;
        let ttl = if bool_at(&status, "/allowed") { self.allow } else { self.deny };
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.retain(|_, (end, _)| now < *end);
        }
        if answers.len() >= MOST {
            answers.clear();
        }
        answers.insert(key, (now + ttl, status.clone()));
        Ok(status)
    }

    async fn ask(&self, spec: &Value) -> Result<Value, String> {
        let review = json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1",
            "metadata": {"creationTimestamp": null}, "spec": spec, "status": {"allowed": false}});
        let mut wait = self.backoff;
        let mut failed = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                Clock::system().sleep(wait).await;
                wait = wait * 3 / 2;
            }
            let request: Request<Body> = Request::post(&self.path)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json")
                .body(body_from_bytes(review.to_string()))
                .map_err(|e| e.to_string())?;
            let response = match self.remote.call(request).await {
                Ok(response) => response,
                Err(e) => {
                    failed = e.to_string();
                    continue;
                }
            };
            let code = response.status();
            if code.is_success() {
                let body = whole(response.into_body(), LARGEST).await?;
                let answer: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
                return Ok(answer.get("status").cloned().unwrap_or_default());
            }
            failed = format!("Error contacting webhook: {}", code.as_u16());
            if !code.is_server_error() && code.as_u16() != 429 {
                break;
            }
        }
        Err(failed)
    }
}

/// Returns the question about a pod: its images, and the annotations that are meant for the server.
fn spec(admission: &Admission<'_>) -> Value {
    let pod = &*admission.object;
    let kinds: &[&str] = if admission.request.subresource.is_empty() {
        &["containers", "initContainers"]
    } else {
        &["ephemeralContainers"]
    };
    let containers = kinds.iter().flat_map(|kind| array_at(pod, &format!("/spec/{kind}")));
    let images: Vec<Value> = containers.map(|c| json!({"image": str_at(c, "/image")})).collect();
    let annotations: Map<String, Value> = object_at(pod, "/metadata/annotations")
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.contains(".image-policy.k8s.io/"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut spec = json!({"containers": images, "namespace": admission.request.namespace});
    if !annotations.is_empty() {
        spec["annotations"] = annotations.into();
    }
    spec
}

#[async_trait]
impl Admit for ImagePolicyWebhook {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && resource.storage.as_ref() == "pods"
            && matches!(part, "" | "ephemeralcontainers")
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let status = match self.answer(&spec(admission)).await {
            Ok(status) => status,
            Err(error) if self.default_allow => {
                tracing::warn!(%error, "the image policy's server cannot be asked: the pod is let in");
                admission.annotate(format!("{AUDIT}failed-open"), "true");
                return Ok(());
            }
            Err(error) => return Err(admission.forbidden(&error)),
        };
        for (key, value) in object_at(&status, "/auditAnnotations").into_iter().flatten() {
            admission.annotate(format!("{AUDIT}{key}"), value.as_str().unwrap_or_default());
        }
        if bool_at(&status, "/allowed") {
            return Ok(());
        }
        Err(admission.forbidden(&match str_at(&status, "/reason") {
            "" => "one or more images rejected by webhook backend".to_owned(),
            reason => format!("image policy webhook backend denied one or more images: {reason}"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_configurations_name_the_field() {
        for (policy, problem) in [
            (json!(null), "imagePolicy: required"),
            (json!({}), "imagePolicy.kubeConfigFile: required"),
            (json!({"kubeConfigFile": "/nowhere"}), "imagePolicy.kubeConfigFile /nowhere: "),
        ] {
            let error = ImagePolicyWebhook::new(&json!({"imagePolicy": policy})).err().unwrap();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}
