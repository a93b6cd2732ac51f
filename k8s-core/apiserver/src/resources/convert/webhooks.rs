//! Webhook configurations of admissionregistration.k8s.io/v1beta1: the same structure with other defaults.

use serde_json::{Value, json};

use super::Conversion;
use crate::value::default;

/// Conversion of both kinds.
pub(in crate::resources) static WEBHOOKS: Conversion =
    Conversion { to_storage: old_defaults, from_storage: |_| {}, generate: None };

fn old_defaults(object: &mut Value) {
    let hooks = object.get_mut("webhooks").and_then(Value::as_array_mut);
    for hook in hooks.into_iter().flatten() {
        default(hook, "failurePolicy", "Ignore");
        default(hook, "matchPolicy", "Exact");
        default(hook, "timeoutSeconds", 30);
        default(hook, "sideEffects", "Unknown");
        default(hook, "admissionReviewVersions", json!(["v1beta1"]));
    }
}
