//! DefaultTolerationSeconds: pods stay for five minutes on a node that is not ready or unreachable.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::{Value, json};

use super::pods::handles_pods;
use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, child, str_at},
};

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Admit for DefaultTolerationSeconds {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        handles_pods(operation, resource, part)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        tolerations(admission.object);
        Ok(())
    }
}

/// Adds the tolerations that a pod lacks.
fn tolerations(pod: &mut Value) {
    let Some(spec) = child(pod, "spec") else { return };
    let mut all = array_at(spec, "/tolerations").to_vec();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = all.iter().any(|t| {
            let (k, e) = (str_at(t, "/key"), str_at(t, "/effect"));
            (k == key || (k.is_empty() && str_at(t, "/operator") == "Exists"))
                && (e.is_empty() || e == "NoExecute")
        });
        if !tolerated {
            all.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
    spec["tolerations"] = all.into();
}
