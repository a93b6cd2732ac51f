//! PodTolerationRestriction: tolerations that pods of a namespace have by default, and may have.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::{Value, json};

use super::pods::{CONTAINERS, add_tolerations, handles_pods, includes};
use crate::{
    admission::{Admission, Admit, Operation, matching::namespace},
    resources::Resource,
    value::{array_at, object_at},
};

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const WHITELIST: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

pub(super) struct PodTolerationRestriction {
    store: Store,
    defaults: Vec<Value>,
    whitelist: Vec<Value>,
}

impl PodTolerationRestriction {
    /// Reads `default` and `whitelist`.
    ///
    /// # Errors
    /// A configuration of another kind.
    pub(super) fn new(store: Store, configuration: &Value) -> Result<Self, String> {
        if !configuration.is_null() && configuration["kind"] != "Configuration" {
            return Err(format!("kind: want Configuration, not {}", configuration["kind"]));
        }
        let list = |field: &str| array_at(configuration, field).to_vec();
        Ok(PodTolerationRestriction { store, defaults: list("/default"), whitelist: list("/whitelist") })
    }

    /// Returns the tolerations in an annotation of the request's namespace, if it has that annotation.
    fn annotated(
        &self,
        admission: &Admission<'_>,
        annotation: &str,
    ) -> Result<Option<Vec<Value>>, ApiStatus> {
        let name = admission.request.namespace.as_str();
        let namespace =
            namespace(&self.store, name).ok_or_else(|| ApiStatus::not_found("", "namespaces", name))?;
        let text =
            object_at(&namespace, "/metadata/annotations").and_then(|all| all.get(annotation)?.as_str());
        match text {
            None => Ok(None),
            Some("") => Ok(Some(Vec::new())),
            Some(text) => serde_json::from_str(text)
                .map(Some)
                .map_err(|e| ApiStatus::internal(format!("namespace {name}, annotation {annotation}: {e}"))),
        }
    }
}

/// Returns true if no container asks for or limits a resource.
fn is_best_effort(pod: &Value) -> bool {
    let mut containers = CONTAINERS.iter().flat_map(|kind| array_at(pod, &format!("/spec/{kind}")));
    let pod_level = ["requests", "limits"]
        .iter()
        .any(|field| object_at(pod, &format!("/spec/resources/{field}")).is_some_and(|all| !all.is_empty()));
    let set = |container: &Value| {
        ["requests", "limits"].iter().any(|field| {
            object_at(container, &format!("/resources/{field}"))
                .is_some_and(|all| all.keys().any(|name| name == "cpu" || name == "memory"))
        })
    };
    !pod_level && !containers.any(set)
}

#[async_trait]
impl Admit for PodTolerationRestriction {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        handles_pods(operation, resource, part)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let mut more = Vec::new();
        if admission.operation == Operation::Create {
            more = self.annotated(admission, DEFAULTS)?.unwrap_or_else(|| self.defaults.clone());
        }
        if !is_best_effort(admission.object) {
            more.push(json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}));
        }
        add_tolerations(admission.object, &more);
        Ok(())
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let own = array_at(admission.object, "/spec/tolerations");
        if own.is_empty() {
            return Ok(());
        }
        let (allowed, scope) = match self.annotated(admission, WHITELIST)? {
            Some(of_namespace) => (of_namespace, "namespace"),
            None => (self.whitelist.clone(), "cluster"),
        };
        if allowed.is_empty() || own.iter().all(|one| allowed.iter().any(|other| includes(other, one))) {
            return Ok(());
        }
        let why = format!(
            "pod tolerations (possibly merged with namespace default tolerations) conflict with its {scope} whitelist"
        );
        Err(admission.forbidden(&why))
    }
}
