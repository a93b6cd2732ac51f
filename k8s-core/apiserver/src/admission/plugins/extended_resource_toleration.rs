//! ExtendedResourceToleration: a pod that asks for a device tolerates the taint of the nodes that have it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::{Value, json};

use super::pods::handles_pods;
use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, child, object_at, str_at},
};

pub(super) struct ExtendedResourceToleration;

/// Returns true for the name of an extended resource: `domain/name`, not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io") && !name.starts_with("requests."))
}

#[async_trait]
impl Admit for ExtendedResourceToleration {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        handles_pods(operation, resource, part)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let pod = &*admission.object;
        let containers = ["containers", "initContainers"].map(|kind| array_at(pod, &format!("/spec/{kind}")));
        let requests = containers.into_iter().flatten().filter_map(|c| object_at(c, "/resources/requests"));
        let names: BTreeSet<String> =
            requests.flat_map(|all| all.keys()).filter(|name| is_extended(name)).cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut tolerations = array_at(pod, "/spec/tolerations").to_vec();
        for name in names {
            let wanted = json!({"key": name, "operator": "Exists", "effect": "NoSchedule"});
            let same = |one: &&mut Value| {
                ["key", "operator", "effect", "value"].iter().all(|field| {
                    let field = format!("/{field}");
                    str_at(one, &field) == str_at(&wanted, &field)
                })
            };
            match tolerations.iter_mut().find(same) {
                Some(known) => *known = wanted,
                None => tolerations.push(wanted),
            }
        }
        if let Some(spec) = child(admission.object, "spec") {
            spec["tolerations"] = tolerations.into();
        }
        Ok(())
    }
}
