//! PodSecurity: the Pod Security Standards, as the labels of a namespace ask for them.
//!
//! Flow: the labels of the namespace and the cluster's defaults make a [`Policy`]; [`controls`] evaluates a
//! pod against its levels. `enforce` refuses pods, `warn` warns and `audit` annotates audit events, both
//! about pod templates, too.
//!
//! A namespace whose `enforce` level becomes stricter is checked for pods that violate it, in the time and
//! number that upstream allows: the client is warned.

mod baseline;
mod configuration;
mod controls;
mod namespace;
mod pod;
mod policy;
mod restricted;

#[cfg(test)]
mod tests;

use async_trait::async_trait;
use k8s_core::{clock::Clock, status::ApiStatus};
use k8s_store::Store;
use serde_json::Value;

use self::{
    configuration::Configuration,
    controls::{details, evaluate},
    pod::Pod,
    policy::{Level, PREFIX, Policy, WrongLabel},
};
use crate::{
    admission::{Admission, Admit, Operation, Parts},
    resources::Resource,
    value::{array_at, str_at},
};

/// Resources with a pod template, and the JSON pointer to it.
const TEMPLATES: [(&str, &str); 8] = [
    ("cronjobs.batch", "/spec/jobTemplate/spec/template"),
    ("daemonsets.apps", "/spec/template"),
    ("deployments.apps", "/spec/template"),
    ("jobs.batch", "/spec/template"),
    ("podtemplates", "/template"),
    ("replicasets.apps", "/spec/template"),
    ("replicationcontrollers", "/spec/template"),
    ("statefulsets.apps", "/spec/template"),
];

/// Subresources of pods that do not change their spec.
const IGNORED: [&str; 8] = ["attach", "binding", "eviction", "exec", "log", "portforward", "proxy", "status"];

pub(super) struct PodSecurity {
    store: Store,
    clock: Clock,
    configuration: Configuration,
}

impl PodSecurity {
    /// # Errors
    /// The field of the configuration, and its problem.
    pub(super) fn new(parts: &Parts, configuration: &Value) -> Result<Self, String> {
        let configuration = Configuration::of(configuration)?;
        Ok(PodSecurity { store: parts.store.clone(), clock: parts.clock.clone(), configuration })
    }

    /// Returns true for exempt namespaces and users, and annotates the request.
    fn is_exempt(&self, admission: &Admission<'_>) -> bool {
        let exempt = &self.configuration.exempt;
        let reason = if exempt.namespaces.contains(&admission.request.namespace) {
            "namespace"
        } else if exempt.usernames.contains(&admission.user.name) {
            "user"
        } else {
            return false;
        };
        annotate(admission, "exempt", reason);
        true
    }

    /// Returns the policy of a request's namespace. `None`: the namespace does not exist.
    fn policy(&self, namespace: &str) -> Option<(Policy, Vec<WrongLabel>)> {
        let stored = self.store.get("namespaces", namespace)?;
        // Most namespaces have none.
        if !stored.labels.iter().any(|(label, _)| label.starts_with(PREFIX)) {
            return Some((self.configuration.defaults, Vec::new()));
        }
        Some(Policy::of_labels(|label| stored.label(label), &self.configuration.defaults))
    }

    fn pod(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if self.is_exempt(admission) {
            return Ok(());
        }
        let namespace = &admission.request.namespace;
        let Some((policy, wrong)) = self.policy(namespace) else {
            let why = format!("failed to lookup namespace {namespace:?}");
            return Err(ApiStatus::internal(why));
        };
        if wrong.is_empty() && policy.is_privileged() {
            annotate(admission, "enforce-policy", policy.enforce);
            return Ok(());
        }
        if admission.old.is_some_and(|old| !is_significant(admission.object, old)) {
            return Ok(());
        }
        let Some(pod) = Pod::of(admission.object) else { return Ok(()) };
        self.evaluate(admission, policy, &wrong, &pod, true)
    }

    fn template(&self, admission: &Admission<'_>, pointer: &str) -> Result<(), ApiStatus> {
        if self.is_exempt(admission) {
            return Ok(());
        }
        let Some((policy, wrong)) = self.policy(&admission.request.namespace) else { return Ok(()) };
        let warns = [policy.warn, policy.audit].iter().any(|mode| mode.level != Level::Privileged);
        if wrong.is_empty() && !warns {
            return Ok(());
        }
        let Some(pod) = admission.object.pointer(pointer).and_then(Pod::of) else { return Ok(()) };
        self.evaluate(admission, policy, &wrong, &pod, false)
    }

    /// Evaluates a pod or template: refuses it if `enforces`, else warns and annotates only.
    fn evaluate(
        &self,
        admission: &Admission<'_>,
        policy: Policy,
        wrong: &[WrongLabel],
        pod: &Pod<'_>,
        enforces: bool,
    ) -> Result<(), ApiStatus> {
        if self
            .configuration
            .exempt
            .runtime_classes
            .iter()
            .any(|c| c == str_at(pod.spec, "/runtimeClassName"))
        {
            annotate(admission, "exempt", "runtimeClass");
            return Ok(());
        }
        if !wrong.is_empty() {
            let problems: Vec<String> = wrong.iter().map(WrongLabel::to_string).collect();
            let problems = match problems.as_slice() {
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            };
            annotate(admission, "error", format!("Failed to parse policy: {problems}"));
        }
        let found = evaluate(policy.audit, pod);
        if !found.is_empty() {
            let text = format!("would violate PodSecurity \"{}\": {}", policy.audit, details(&found));
            annotate(admission, "audit-violations", text);
        }
        if enforces {
            annotate(admission, "enforce-policy", policy.enforce);
            let found = evaluate(policy.enforce, pod);
            if !found.is_empty() {
                let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&found));
                return Err(admission.forbidden(&why));
            }
        }
        let found = evaluate(policy.warn, pod);
        if !found.is_empty() {
            admission.warn(format!("would violate PodSecurity \"{}\": {}", policy.warn, details(&found)));
        }
        Ok(())
    }
}

#[async_trait]
impl Admit for PodSecurity {
    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && match &*resource.storage {
                "pods" => !IGNORED.contains(&subresource),
                "namespaces" => subresource.is_empty(),
                name => subresource.is_empty() && template_of(name).is_some(),
            }
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        match &*admission.resource.storage {
            "pods" => self.pod(admission),
            "namespaces" => self.namespace(admission),
            name => template_of(name).map_or(Ok(()), |pointer| self.template(admission, pointer)),
        }
    }
}

/// Returns the JSON pointer to a resource's pod template.
fn template_of(storage: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|(name, _)| *name == storage).map(|(_, pointer)| *pointer)
}

fn annotate(admission: &Admission<'_>, key: &str, value: impl std::fmt::Display) {
    admission.annotate(format!("{PREFIX}{key}"), value.to_string());
}

/// Returns true if an update of a pod changes what the standards are about: images, and new containers.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let images = |of: &Value, kind: &str| -> Vec<String> {
        array_at(of, kind).iter().map(|container| str_at(container, "/image").to_owned()).collect()
    };
    let changed = |kind| images(pod, kind) != images(old, kind);
    let debuggers = "/spec/ephemeralContainers";
    let known = |container: &Value| {
        let name = str_at(container, "/name");
        let before = array_at(old, debuggers).iter().find(|before| str_at(before, "/name") == name);
        before.is_some_and(|before| str_at(before, "/image") == str_at(container, "/image"))
    };
    changed("/spec/containers")
        || changed("/spec/initContainers")
        || !array_at(pod, debuggers).iter().all(known)
}
