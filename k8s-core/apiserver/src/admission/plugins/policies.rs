//! ValidatingAdmissionPolicy: rules in CEL that requests must keep. MutatingAdmissionPolicy: changes in CEL.
//!
//! A policy applies where one of its bindings does. It is compiled once per change, and found by the plural
//! name of the request's resource, so that policies about other resources cost nothing.
//!
//! Guarantees: policies and their bindings are never subject to a policy. The cost of an evaluation is
//! bounded; one that costs more fails, and `failurePolicy` decides.

mod binding;
mod index;
mod merge;
mod mutating;
mod policy;

pub(super) use mutating::Mutating;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use k8s_cel::Value as Cel;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::StatusCause,
    status::{ApiStatus, Reason},
};
use serde_json::{Value, json};

use super::{Parts, webhooks::EXEMPT};
use crate::{
    admission::{
        Admission, Admit, Connection, Deletion, Operation,
        event::Event,
        facts::{Facts, Matched},
        matching::namespace,
    },
    auth::Authorization,
    resources::Resource,
};
use binding::Binding;
use index::Policies;
use policy::{Evaluation, Policy, Validation};

const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";
const BINDINGS: &str = "validatingadmissionpolicybindings.admissionregistration.k8s.io";

/// The largest value of an audit annotation, bytes.
const MOST_ANNOTATION: usize = 10 << 10;
/// The largest result of a message expression, bytes (upstream's `MaxEvaluatedMessageExpressionSizeBytes`).
const MOST_MESSAGE: usize = 5 << 10;

/// The plugin.
pub(super) struct Validating {
    policies: Policies,
    authorization: Arc<Authorization>,
}

/// A request that a policy refuses.
struct Denied {
    message: String,
    reason: String,
}

impl Validating {
    pub(super) fn new(parts: &Parts) -> Self {
        Validating {
            policies: Policies::new(parts.store.clone(), POLICIES, BINDINGS),
            authorization: parts.authorization.clone(),
        }
    }

    async fn check(&self, event: &Event<'_>) -> Result<(), ApiStatus> {
        let Some(index) = self.policies.about(event.resource) else { return Ok(()) };
        let mut denied: Option<Denied> = None;
        for (policy, bindings) in index.about(event.resource) {
            if let Some(refused) = self.apply(policy, bindings, event).await? {
                denied.get_or_insert(refused);
            }
        }
        let Some(Denied { message, reason }) = denied else { return Ok(()) };
        let reason = match reason.as_str() {
            "Forbidden" => Reason::Forbidden,
            "Unauthorized" => Reason::Unauthorized,
            "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
            _ => Reason::Invalid,
        };
        let (resource, name) = (event.resource, event.name);
        let text = event.forbidden(&message).message().to_owned();
        let cause = StatusCause { message: Some(message), ..StatusCause::default() };
        Err(ApiStatus::of(reason, text).about(&resource.group, &resource.plural, name).causes(vec![cause]))
    }

    /// Applies a policy where its bindings do.
    async fn apply(
        &self,
        policy: &Policy,
        bindings: &[Binding],
        event: &Event<'_>,
    ) -> Result<Option<Denied>, ApiStatus> {
        let name = &policy.name;
        let misconfigured = |binding: Option<&Binding>, why: &str| {
            let message = match binding {
                None => format!(
                    "ValidatingAdmissionPolicy '{name}' denied request: failed to configure policy: {why}"
                ),
                Some(binding) => format!(
                    "ValidatingAdmissionPolicy '{name}' with binding '{}' denied request: failed to configure binding: {why}",
                    binding.name
                ),
            };
            (!policy.ignores_failures).then(|| Denied { message, reason: "Invalid".into() })
        };
        let place = match policy.matcher.find(event, &self.policies.store) {
            Ok(Some(place)) => place,
            Ok(None) => return Ok(None),
            Err(e) => return Ok(misconfigured(None, e.message())),
        };
        let store = &self.policies.store;
        let mut facts = match Facts::new(event, place.of(event), &self.authorization, store).await {
            Ok(facts) => facts,
            Err(e) => return Ok(misconfigured(None, e.message())),
        };
        if !event.namespace.is_empty() {
            facts.namespace =
                namespace(&self.policies.store, event.namespace).map(visible).unwrap_or_default();
        }
        let (mut denied, mut annotations) = (None, BTreeMap::<String, Vec<String>>::new());
        for binding in bindings {
            match binding.is_for(event, &self.policies.store) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(e) => {
                    denied = denied.or(misconfigured(Some(binding), e.message()));
                    continue;
                }
            }
            let params = match binding.params(policy, event, &self.policies.store) {
                Ok(params) => params,
                Err(why) => {
                    denied = denied.or(misconfigured(Some(binding), &why));
                    continue;
                }
            };
            for params in &params {
                let found = evaluate(policy, &facts, params).await;
                let with = format!("'{name}' with binding '{}'", binding.name);
                for (i, message, reason) in found.failures {
                    if binding.warns {
                        event.call.warn_once(format!(
                            "Validation failed for ValidatingAdmissionPolicy {with}: {message}"
                        ));
                    }
                    if binding.audits {
                        let failure = json!([{"message": message, "policy": name, "binding": binding.name,
                            "expressionIndex": i, "validationActions": binding.actions}]);
                        let key = "validation.policy.admission.k8s.io/validation_failure";
                        event.call.annotate(key.into(), failure.to_string());
                    }
                    if binding.denies {
                        let message = format!("ValidatingAdmissionPolicy {with} denied request: {message}");
                        denied.get_or_insert(Denied { message, reason });
                    }
                }
                for (key, value) in found.annotations {
                    match value {
                        Ok(value) => {
                            let all = annotations.entry(key).or_default();
                            if !all.contains(&value) {
                                all.push(value);
                            }
                        }
                        Err(why) => {
                            let message = format!("ValidatingAdmissionPolicy {with} denied request: {why}");
                            denied.get_or_insert(Denied { message, reason: "Invalid".into() });
                        }
                    }
                }
            }
        }
        for (key, values) in annotations {
            event.call.annotate(format!("{name}/{key}"), values.join(", "));
        }
        Ok(denied)
    }
}

/// The outcome of a policy for one request and parameter.
#[derive(Default)]
struct Found {
    /// Place, message and reason of each validation that fails.
    failures: Vec<(usize, String, String)>,
    annotations: Vec<(String, Result<String, String>)>,
}

async fn evaluate(policy: &Policy, facts: &Facts<'_>, params: &Value) -> Found {
    let mut found = Found::default();
    let failed = |i: usize, why: String| (i, why, "Invalid".to_owned());
    match policy.conditions.matches(facts, params).await {
        Matched::Yes => {}
        Matched::No => return found,
        Matched::Failed(why) => {
            if !policy.ignores_failures {
                found.failures.push(failed(0, why));
            }
            return found;
        }
    }
    let mut evaluation = Evaluation::new(policy, facts, params);
    for (i, validation) in policy.validations.iter().enumerate() {
        match evaluation.evaluate(&validation.expression).await {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => {
                let message = message(validation, &mut evaluation).await;
                found.failures.push((i, message, validation.reason.clone()));
            }
            Err(_) if policy.ignores_failures => {}
            Err(why) => found.failures.push(failed(i, why)),
        }
    }
    for (key, expression) in &policy.annotations {
        let value = match evaluation.evaluate(expression).await {
            Ok(Cel::Null) => continue,
            Ok(Cel::String(text)) if text.trim().is_empty() => continue,
            Ok(Cel::String(text)) => {
                let text = text.trim();
                let end = (0..=text.len().min(MOST_ANNOTATION)).rev().find(|i| text.is_char_boundary(*i));
                Ok(text[..end.unwrap_or(0)].to_owned())
            }
            Ok(other) => Err(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                expression.text,
                other.type_name()
            )),
            Err(_) if policy.ignores_failures => continue,
            Err(why) => Err(why),
        };
        found.annotations.push((key.clone(), value));
    }
    found
}

/// Returns the message of a validation that fails: of its expression, its own, or a general one.
async fn message<'f>(validation: &'f Validation, evaluation: &mut Evaluation<'f>) -> String {
    if let Some(expression) = &validation.message_expression {
        match evaluation.evaluate(expression).await {
            Ok(Cel::String(text)) => {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MOST_MESSAGE && !text.contains('\n') {
                    return text.to_owned();
                }
            }
            Ok(_) => {}
            Err(why) => tracing::debug!(error = %why, "a message expression fails"),
        }
    }
    match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.expression.text.trim()),
        message => message.to_owned(),
    }
}

/// Returns what of a namespace an expression may see.
fn visible(mut namespace: Value) -> Value {
    const FIELDS: [&str; 12] = [
        "name",
        "generateName",
        "namespace",
        "labels",
        "annotations",
        "uid",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generation",
        "resourceVersion",
        "finalizers",
    ];
    if let Some(metadata) = namespace.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| FIELDS.contains(&name.as_str()));
        if let Some(uid) = metadata.remove("uid") {
            // As upstream's declaration names it.
            metadata.insert("UID".into(), uid);
        }
    }
    namespace
}

#[async_trait]
impl Admit for Validating {
    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        resource.group != EXEMPT
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if self.policies.about(admission.resource).is_none() {
            return Ok(());
        }
        self.check(&Event::of_write(admission)).await
    }

    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        if self.policies.about(deletion.resource).is_none() {
            return Ok(());
        }
        let old = deletion.object()?;
        self.check(&Event::of_deletion(deletion, &old)).await
    }

    async fn connect(&self, connection: &Connection<'_>) -> Result<(), ApiStatus> {
        self.check(&Event::of_connection(connection)).await
    }
}
