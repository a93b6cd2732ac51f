//! AdmissionReview (admission.k8s.io v1 and v1beta1): the question and the answer.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::Status, json, status::ApiStatus};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::{
    admission::event::Event,
    resources::Resource,
    value::{array_at, object_at, str_at},
};

/// A version of AdmissionReview.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V1beta1,
}

impl Version {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "v1" => Some(Version::V1),
            "v1beta1" => Some(Version::V1beta1),
            _ => None,
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Version::V1 => "admission.k8s.io/v1",
            Version::V1beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// An answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    allowed: bool,
    /// The reason of a refusal.
    result: Option<Value>,
    /// A JSON patch with at least one operation.
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// Returns the question about an event, whose objects are in the version of `resource`.
///
/// # Errors
/// 500 if the webhook that converts an object fails.
pub(super) async fn request(
    event: &Event<'_>,
    resource: &Resource,
    version: Version,
    uid: &str,
    store: &Store,
) -> Result<Value, ApiStatus> {
    let mut request = event.request(resource);
    request["uid"] = uid.into();
    request["object"] = event.served(resource, event.object, store).await?;
    request["oldObject"] = event.served(resource, event.old, store).await?;
    Ok(json!({"kind": "AdmissionReview", "apiVersion": version.api_version(), "request": request}))
}

/// Reads an answer.
///
/// # Errors
/// The reason for which it is none.
pub(super) fn answer(body: &[u8], version: Version, uid: &str) -> Result<Answer, String> {
    let review: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let response = review.get("response").filter(|r| r.is_object()).ok_or("webhook response was absent")?;
    if version == Version::V1 {
        let have = str_at(response, "/uid");
        if have != uid {
            return Err(format!("expected response.uid={uid:?}, got {have:?}"));
        }
        let (api_version, kind) = (str_at(&review, "/apiVersion"), str_at(&review, "/kind"));
        if (api_version, kind) != (version.api_version(), "AdmissionReview") {
            let want = version.api_version();
            return Err(format!(
                "expected webhook response of {want}, Kind=AdmissionReview, got {api_version}, Kind={kind}"
            ));
        }
    }
    let (patch, kind) = (str_at(response, "/patch"), response.get("patchType").and_then(Value::as_str));
    match (patch.is_empty(), kind, version) {
        (false, None, Version::V1) => {
            return Err("webhook returned response.patch but not response.patchType".into());
        }
        (true, Some(_), Version::V1) => {
            return Err("webhook returned response.patchType but not response.patch".into());
        }
        (false, Some(kind), Version::V1) if kind != "JSONPatch" => {
            return Err(format!("unsupported patch type {kind:?}"));
        }
        _ => {}
    }
    let patch = match patch {
        "" => None,
        text => {
            let bytes = STANDARD.decode(text).map_err(|e| format!("response.patch: {e}"))?;
            let patch: Value = serde_json::from_slice(&bytes)
                .map_err(|e| format!("received undecodable patch in webhook response: {e}"))?;
            Some(patch).filter(|patch| patch.as_array().is_none_or(|operations| !operations.is_empty()))
        }
    };
    let texts = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    Ok(Answer {
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
        result: response.get("status").or_else(|| response.get("result")).filter(|r| r.is_object()).cloned(),
        patch,
        warnings: array_at(response, "/warnings")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        annotations: object_at(response, "/auditAnnotations")
            .into_iter()
            .flatten()
            .filter_map(texts)
            .collect(),
    })
}

impl Answer {
    /// Returns true if the answer has a patch.
    pub(super) fn changes(&self) -> bool {
        self.patch.is_some()
    }

    /// Returns the status for the client, if the webhook refuses the request.
    pub(super) fn refusal(&self, webhook: &str) -> Option<ApiStatus> {
        if self.allowed {
            return None;
        }
        let given = self.result.as_ref().and_then(|result| json::from_value::<Status>(result).ok());
        let mut status = given.unwrap_or_default();
        let denied = format!("admission webhook {webhook:?} denied the request");
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        status.message = Some(match text(&status.message).or_else(|| text(&status.reason)) {
            Some(why) => format!("{denied}: {why}"),
            None => format!("{denied} without explanation"),
        });
        status.code = Some(status.code.filter(|code| (400..600).contains(code)).unwrap_or(400));
        status.status = Some("Failure".into());
        Some(ApiStatus::from_status(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(response: Value) -> Result<Answer, String> {
        let review =
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        answer(review.to_string().as_bytes(), Version::V1, "1")
    }

    #[test]
    fn answers_are_verified() {
        let patch = STANDARD.encode("[{\"op\": \"remove\", \"path\": \"/a\"}]");
        for (response, problem) in [
            (json!(null), "webhook response was absent"),
            (json!({"uid": "2"}), "expected response.uid=\"1\", got \"2\""),
            (json!({"uid": "1", "patch": patch}), "response.patch but not response.patchType"),
            (json!({"uid": "1", "patchType": "JSONPatch"}), "response.patchType but not response.patch"),
            (json!({"uid": "1", "patch": patch, "patchType": "Merge"}), "unsupported patch type"),
            (json!({"uid": "1", "patch": "!", "patchType": "JSONPatch"}), "response.patch"),
            (
                json!({"uid": "1", "patch": STANDARD.encode("x"), "patchType": "JSONPatch"}),
                "undecodable patch",
            ),
        ] {
            let error = read(response).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        assert!(
            read(json!({"uid": "1", "allowed": true, "patch": patch, "patchType": "JSONPatch"}))
                .unwrap()
                .changes()
        );
        let other = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"allowed": true}});
        assert!(answer(other.to_string().as_bytes(), Version::V1, "1").is_err());
        assert!(answer(other.to_string().as_bytes(), Version::V1beta1, "1").unwrap().refusal("x").is_none());
    }

    #[test]
    fn refusals_have_upstreams_texts() {
        for (result, code, message) in [
            (json!(null), 400, "admission webhook \"w\" denied the request without explanation"),
            (json!({"message": "no", "code": 418}), 418, "admission webhook \"w\" denied the request: no"),
            (json!({"reason": "Full", "code": 200}), 400, "admission webhook \"w\" denied the request: Full"),
        ] {
            let refusal = read(json!({"uid": "1", "status": result})).unwrap().refusal("w").unwrap();
            assert_eq!((refusal.code(), refusal.to_string().as_str()), (code, message));
        }
    }
}
