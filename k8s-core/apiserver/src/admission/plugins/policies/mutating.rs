//! The plugin of policies that change objects.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::StatusCause, status::ApiStatus};
use k8s_schema::patch::{self, PatchError};
use serde_json::Value;

use super::{
    binding::Binding,
    index::Policies,
    merge::merged,
    policy::{Evaluation, Mutation, Policy},
    visible,
};
use crate::{
    admission::{
        Admission, Admit, Operation,
        event::Event,
        facts::{Facts, Matched},
        matching::{Place, namespace},
        plugins::{Parts, webhooks::EXEMPT},
    },
    auth::Authorization,
    resources::Resource,
};

const POLICIES: &str = "mutatingadmissionpolicies.admissionregistration.k8s.io";
const BINDINGS: &str = "mutatingadmissionpolicybindings.admissionregistration.k8s.io";

/// The plugin. Policies are applied one after the other, in the order of their names; each sees the changes
/// of those before.
pub(in crate::admission::plugins) struct Mutating {
    policies: Policies,
    authorization: Arc<Authorization>,
}

/// A policy where a binding applies it.
struct Bound<'p> {
    policy: &'p Policy,
    binding: &'p Binding,
    params: Value,
    place: Place,
}

impl Bound<'_> {
    /// Names the policy, binding and parameters.
    fn id(&self) -> String {
        let (policy, binding) = (&self.policy.name, &self.binding.name);
        let params = crate::value::str_at(&self.params, "/metadata/uid");
        format!("policy/{policy}/{binding}/{params}")
    }
}

impl Mutating {
    pub(in crate::admission::plugins) fn new(parts: &Parts) -> Self {
        Mutating {
            policies: Policies::new(parts.store.clone(), POLICIES, BINDINGS),
            authorization: parts.authorization.clone(),
        }
    }

    /// Returns where a policy applies to an event. Problems go to `failed`.
    fn bound<'p>(
        &self,
        policy: &'p Policy,
        bindings: &'p [Binding],
        event: &Event<'_>,
        failed: &mut Vec<String>,
    ) -> Vec<Bound<'p>> {
        let (store, name) = (&self.policies.store, &policy.name);
        let mut fail = |text: String| {
            if !policy.ignores_failures {
                failed.push(text);
            }
        };
        let place = match policy.matcher.find(event, store) {
            Ok(Some(place)) => place,
            Ok(None) => return Vec::new(),
            Err(e) => {
                fail(format!("policy {name:?} denied request: failed to configure policy: {}", e.message()));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for binding in bindings {
            let params = match binding.is_for(event, store) {
                Ok(true) => binding.params(policy, event, store),
                Ok(false) => continue,
                Err(e) => Err(e.message().to_owned()),
            };
            match params {
                Ok(params) => found.extend(params.into_iter().map(|params| Bound {
                    policy,
                    binding,
                    params,
                    place: place.clone(),
                })),
                Err(why) => fail(format!(
                    "policy '{name}' with binding '{}' denied request: failed to configure binding: {why}",
                    binding.name
                )),
            }
        }
        found
    }

    /// Applies the mutations of a policy. Returns the object if it changes, in the version of the policy's
    /// rule; `None` in the second place if the policy does not apply.
    async fn mutate(
        &self,
        bound: &Bound<'_>,
        event: &Event<'_>,
        failed: &mut Vec<String>,
    ) -> Option<Option<Value>> {
        let resource = bound.place.of(event);
        let facts = match self.facts(event, resource).await {
            Ok(facts) => facts,
            Err(e) => {
                failed.push(e.message().to_owned());
                return None;
            }
        };
        match bound.policy.conditions.matches(&facts, &bound.params).await {
            Matched::Yes => {}
            Matched::No => return None,
            Matched::Failed(why) => {
                failed.push(why);
                return None;
            }
        }
        let before = facts.object().clone();
        let (mut after, mut facts) = (before.clone(), facts);
        for mutation in &bound.policy.mutations {
            // Each mutation sees the changes of those before.
            facts.set_object(after.clone());
            match apply(mutation, bound, &facts, resource, &after).await {
                Ok(changed) => after = changed,
                Err(why) => failed.push(why),
            }
        }
        Some((after != before).then_some(after))
    }

    async fn facts<'e>(&'e self, event: &'e Event<'_>, resource: &Resource) -> Result<Facts<'e>, ApiStatus> {
        let mut facts = Facts::new(event, resource, &self.authorization, &self.policies.store).await?;
        if !event.namespace.is_empty() {
            facts.namespace =
                namespace(&self.policies.store, event.namespace).map(visible).unwrap_or_default();
        }
        Ok(facts)
    }
}

/// Returns the object after one mutation.
///
/// # Errors
/// Upstream's text for the problem.
async fn apply(
    mutation: &Mutation,
    bound: &Bound<'_>,
    facts: &Facts<'_>,
    resource: &Resource,
    object: &Value,
) -> Result<Value, String> {
    let mut evaluation = Evaluation::new(bound.policy, facts, &bound.params);
    let (Mutation::Apply(expression) | Mutation::Patch(expression)) = mutation;
    let made = evaluation.evaluate(expression).await?;
    let made = made.to_json().ok_or("the expression made a value that has no JSON form")?;
    let mut after = match mutation {
        Mutation::Apply(_) => merged(resource, object, made)?,
        Mutation::Patch(_) => {
            let mut after = object.clone();
            match patch::json(&mut after, &made) {
                Ok(()) => after,
                // A test that fails means that nothing is to be changed.
                Err(PatchError::Inapplicable(why)) if why.starts_with("testing value") => {
                    return Ok(object.clone());
                }
                Err(e) => return Err(format!("JSON Patch: {e}")),
            }
        }
    };
    if !after.is_object() {
        return Err("JSON Patch: the result is no object".into());
    }
    for field in ["apiVersion", "kind"] {
        after[field] = object[field].clone();
    }
    let found = resource.request_schema().normalize(&mut after, resource.custom);
    if let Some(unknown) = found.unknown.as_slice().first() {
        return Err(format!("error applying patch: .{unknown}: field not declared in schema"));
    }
    match found.mismatches.first().filter(|_| resource.rules.is_none()) {
        Some(wrong) => Err(format!("error applying patch: .{}: want {}", wrong.path, wrong.want)),
        None => Ok(after),
    }
}

#[async_trait]
impl Admit for Mutating {
    fn handles(&self, operation: Operation, resource: &Resource, _: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update) && resource.group != EXEMPT
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let Some(index) = self.policies.about(admission.resource) else { return Ok(()) };
        if admission.rounds.again && admission.rounds.changed_since(admission.object) {
            admission.rounds.call_again();
        }
        let (mut failed, mut told) = (Vec::new(), Vec::new());
        let event = Event::of_write(admission);
        let all: Vec<Bound<'_>> = index
            .about(event.resource)
            .into_iter()
            .flat_map(|(policy, bindings)| self.bound(policy, bindings, &event, &mut told))
            .collect();
        drop(event);
        for bound in &all {
            let id = bound.id();
            if admission.rounds.again && !admission.rounds.is_due(&id) {
                continue;
            }
            let event = Event::of_write(admission);
            let whole = event.is_whole();
            let changed = self.mutate(bound, &event, &mut failed).await;
            drop(event);
            let with = format!("policy '{}' with binding '{}'", bound.policy.name, bound.binding.name);
            let refusals = failed.drain(..).map(|why| format!("{with} denied request: {why}"));
            if bound.policy.ignores_failures {
                refusals.for_each(|text| tracing::debug!(%text, "a policy that may fail failed"));
            } else {
                told.extend(refusals);
            }
            let Some(changed) = changed else { continue };
            if let Some(mut object) = changed {
                if whole {
                    object = bound.place.stored(admission.resource, object, &self.policies.store).await?;
                    admission.resource.default(&mut object);
                }
                *admission.object = object;
                admission.reset = true;
                admission.rounds.call_again();
                admission.rounds.wanted = true;
            }
            if bound.policy.reinvoked {
                admission.rounds.wait(&id);
            }
        }
        admission.rounds.remember(admission.object);
        let Some(first) = told.first() else { return Ok(()) };
        let resource = admission.resource;
        let causes =
            told.iter().map(|text| StatusCause { message: Some(text.clone()), ..StatusCause::default() });
        let refused = ApiStatus::new(403, "Invalid", first.clone());
        Err(refused.about(&resource.group, &resource.plural, admission.name()).causes(causes.collect()))
    }
}
