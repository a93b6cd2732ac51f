//! A conversion webhook (apiextensions.k8s.io ConversionReview).

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use k8s_core::status::{ApiStatus, Reason};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::{
    resources::Resource,
    value::{array_at, str_at},
    webhook_client::Callee,
};

/// Timeout of a call.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum number of objects in a call.
const BATCH: usize = 500;
/// The largest answer, bytes.
const MOST: usize = 64 << 20;

/// The conversion webhook of a resource, and the stored version.
#[derive(Debug)]
pub(crate) struct Webhook {
    /// Resource in its storage version, the target of conversions.
    pub(crate) stored: Arc<Resource>,
    callee: Result<Callee, String>,
    /// Version of ConversionReview that webhook and server share: `v1` or `v1beta1`.
    review: &'static str,
}

impl Webhook {
    /// Reads `spec.conversion` of a definition.
    pub(crate) fn new(conversion: &Value, stored: Arc<Resource>) -> Self {
        let known =
            array_at(conversion, "/webhook/conversionReviewVersions").iter().find_map(|v| match v.as_str() {
                Some("v1") => Some("v1"),
                Some("v1beta1") => Some("v1beta1"),
                _ => None,
            });
        let callee = Callee::webhook(conversion.pointer("/webhook/clientConfig").unwrap_or(&Value::Null));
        Webhook { stored, callee, review: known.unwrap_or("v1") }
    }

    /// Converts objects to another version, in the same order.
    ///
    /// # Errors
    /// 500 with the failure of the webhook or of its response.
    pub(crate) async fn convert(
        &self,
        store: &Store,
        version: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, ApiStatus> {
        let mut all = objects;
        let others: Vec<usize> =
            (0..all.len()).filter(|i| str_at(&all[*i], "/apiVersion") != version).collect();
        for places in others.chunks(BATCH) {
            let batch: Vec<Value> = places.iter().map(|i| all[*i].take()).collect();
            let converted = self.ask(store, version, &batch).await.map_err(|why| {
                let from = batch.first().map_or("", |o| str_at(o, "/apiVersion"));
                let kind = &self.stored.kind;
                let why = format!("conversion webhook for {from}, Kind={kind} failed: {why}");
                ApiStatus::of(Reason::InternalError, format!("Internal error occurred: {why}"))
            })?;
            for (place, object) in places.iter().zip(converted) {
                all[*place] = object;
            }
        }
        Ok(all)
    }

    async fn ask(&self, store: &Store, version: &str, objects: &[Value]) -> Result<Vec<Value>, String> {
        let callee = self.callee.as_ref().map_err(Clone::clone)?;
        let uid = k8s_core::random::uuid().to_string();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{}", self.review),
            "request": {"uid": uid, "desiredAPIVersion": version, "objects": objects},
        });
        let body = review.to_string();
        let exchange = callee.post(store, callee.path(), body.as_bytes(), MOST);
        let (status, body) =
            tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| "context deadline exceeded")??;
        if status != StatusCode::OK {
            return Err(format!("the server responded with the status code {}", status.as_u16()));
        }
        let answer: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        check(&answer, &uid, version, objects)
    }
}

/// The converted objects of an answer: as many, in the wanted version, and still the same objects.
fn check(answer: &Value, uid: &str, version: &str, objects: &[Value]) -> Result<Vec<Value>, String> {
    let response = answer.get("response").ok_or("no response provided")?;
    if str_at(response, "/uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", str_at(response, "/uid")));
    }
    if str_at(response, "/result/status") != "Success" {
        return Err(match str_at(response, "/result/message") {
            "" => "the webhook did not say why".to_owned(),
            why => why.to_owned(),
        });
    }
    let converted = array_at(response, "/convertedObjects");
    if converted.len() != objects.len() {
        return Err(format!("webhook returned {} objects, expected {}", converted.len(), objects.len()));
    }
    let pairs = converted.iter().zip(objects).enumerate();
    pairs
        .map(|(i, (new, old))| {
            let said = str_at(new, "/apiVersion");
            if said != version {
                return Err(format!("returned object {i} has apiVersion {said:?}, expected {version:?}"));
            }
            for field in ["/kind", "/metadata/name", "/metadata/namespace", "/metadata/uid"] {
                if str_at(new, field) != str_at(old, field) {
                    let field = field.trim_start_matches('/').replace('/', ".");
                    return Err(format!("returned object {i} has another {field}"));
                }
            }
            // A webhook may change labels and annotations, and nothing else of what is not its own.
            let mut new = new.clone();
            let mut metadata = old.get("metadata").cloned().unwrap_or_default();
            for field in ["labels", "annotations"] {
                let value = new.pointer(&format!("/metadata/{field}")).cloned();
                if let Some(map) = metadata.as_object_mut() {
                    match value {
                        Some(value) => map.insert(field.into(), value),
                        None => map.remove(field),
                    };
                }
            }
            new["metadata"] = metadata;
            Ok(new)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_only_about_what_it_may_change() {
        let object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "uid": "u", "finalizers": ["f"], "labels": {"x": "1"}}});
        let answer = |new: Value| json!({"response": {"uid": "1", "result": {"status": "Success"}, "convertedObjects": [new]}});
        let mut new = object.clone();
        new["apiVersion"] = "g/v2".into();
        new["metadata"] = json!({"name": "a", "uid": "u", "labels": {"x": "2"}});
        let good = check(&answer(new.clone()), "1", "g/v2", std::slice::from_ref(&object)).unwrap();
        assert_eq!(
            good[0]["metadata"],
            json!({"name": "a", "uid": "u", "finalizers": ["f"], "labels": {"x": "2"}})
        );
        let refused = |answer: &Value, version: &str| {
            check(answer, "1", version, std::slice::from_ref(&object)).unwrap_err()
        };
        assert!(refused(&answer(new.clone()), "g/v3").contains("apiVersion"));
        new["metadata"]["name"] = "b".into();
        assert!(refused(&answer(new), "g/v2").contains("another metadata.name"));
        assert!(refused(&json!({"response": {"uid": "2"}}), "g/v2").contains("uid"));
        assert!(refused(&json!({}), "g/v2").contains("no response"));
        let failed = json!({"response": {"uid": "1", "result": {"status": "Failure", "message": "because"}}});
        assert_eq!(refused(&failed, "g/v2"), "because");
        let none = json!({"response": {"uid": "1", "result": {"status": "Success"}, "convertedObjects": []}});
        assert!(refused(&none, "g/v2").contains("returned 0 objects"));
    }
}
