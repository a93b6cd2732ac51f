//! TaintNodesByCondition: a new node takes no pods until it is ready.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::json;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, child, str_at},
};

pub(super) struct TaintNodesByCondition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

#[async_trait]
impl Admit for TaintNodesByCondition {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create && part.is_empty() && resource.storage.as_ref() == "nodes"
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let mut taints = array_at(admission.object, "/spec/taints").to_vec();
        let is = |key: &str, effect: &str| key == NOT_READY && effect == "NoSchedule";
        if taints.iter().any(|taint| is(str_at(taint, "/key"), str_at(taint, "/effect"))) {
            return Ok(());
        }
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        if let Some(spec) = child(admission.object, "spec") {
            spec["taints"] = taints.into();
        }
        Ok(())
    }
}
