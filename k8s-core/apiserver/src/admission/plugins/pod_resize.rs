//! PodResizeValidator: a pod grows only on a Linux node that has room for it.

use async_trait::async_trait;
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::StatusCause, meta::Quantity, status::ApiStatus};
use k8s_quota::{Amounts, pod::of_pod};
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{same_spec, str_at},
};

pub(super) struct PodResizeValidator {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for PodResizeValidator {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Update && part == "resize" && resource.storage.as_ref() == "pods"
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let pod = &*admission.object;
        let name = str_at(pod, "/spec/nodeName");
        if name.is_empty() || admission.old.is_some_and(|old| same_spec(pod, old)) {
            return Ok(());
        }
        let stored = self.store.get("nodes", name);
        let node: Option<Value> = stored.and_then(|stored| serde_json::from_slice(&stored.json).ok());
        let Some(node) = node else {
            return Err(admission.forbidden(&format!("node {name:?} not found")));
        };
        let os = str_at(&node, "/metadata/labels/kubernetes.io~1os");
        if !matches!(os, "" | "linux") {
            let why = format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
            return Err(cause(admission.forbidden(&why), "UnsupportedPlatform"));
        }
        let requests = pod_requests(pod.get("spec").unwrap_or(&Value::Null));
        let mut short = Vec::new();
        for resource in ["cpu", "memory"] {
            let most = str_at(&node, &format!("/status/allocatable/{resource}")).parse::<Quantity>();
            let (most, wanted) = (most.unwrap_or(Quantity::ZERO), requests.get(resource));
            let number = |amount: Quantity| if resource == "cpu" { amount.milli() } else { amount.units() };
            if let Some(wanted) = wanted.filter(|wanted| *wanted > most) {
                let (wanted, most) = (number(wanted), number(most));
                short.push(format!("{resource}, requested: {wanted}, allocatable: {most}"));
            }
        }
        if !short.is_empty() {
            let short = short.join("; ");
            let why = format!("node didn't have enough allocatable resources: {short}");
            return Err(cause(admission.forbidden(&why), "NodeCapacity"));
        }
        Ok(())
    }
}

/// Returns what a pod requests of its node, overhead included.
fn pod_requests(spec: &Value) -> Amounts {
    let mut requests = of_pod(spec, "requests", |name| matches!(name, "cpu" | "memory"));
    requests.add(&Amounts::of(spec.get("overhead")));
    requests
}

/// Adds a cause to a refusal.
fn cause(refusal: ApiStatus, reason: &str) -> ApiStatus {
    refusal.causes(vec![StatusCause { reason: Some(reason.to_owned()), ..StatusCause::default() }])
}
