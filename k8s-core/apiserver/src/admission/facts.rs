//! The values of CEL expressions over one request, and their evaluation.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_cel::{
    Access, AccessAnswer, AccessCheck, Activation, Authority, Env, EvalError, Meter, PER_CALL_LIMIT, Program,
    Value as Cel,
};
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::Value;

use super::event::Event;
use crate::{auth::Authorization, request::Attributes, resources::Resource, stages::Decision, user::User};

/// Cost of all match conditions of a webhook or policy (upstream's `RuntimeCELCostBudgetMatchConditions`).
const CONDITIONS_BUDGET: u64 = 2_500_000;

/// Answers of an authorizer that one expression may ask for.
const MOST_QUESTIONS: usize = 64;

/// The values of the variables for one request.
pub(crate) struct Facts<'a> {
    object: Value,
    old: Value,
    request: Value,
    /// The namespace, as far as an expression may see it; null for an object of the whole cluster.
    pub(crate) namespace: Value,
    rights: Rights<'a>,
}

/// A variable of a policy: its full name, and its value once it was needed.
pub(crate) type Variable<'f> = (&'f str, Result<Cel<'f>, EvalError>);

impl<'a> Facts<'a> {
    /// The values for an event, presented as one of `resource`.
    ///
    /// # Errors
    /// 500 if the webhook that converts an object fails.
    pub(crate) async fn new(
        event: &Event<'a>,
        resource: &Resource,
        authorization: &'a Authorization,
        store: &Store,
    ) -> Result<Self, ApiStatus> {
        let request = AccessCheck {
            group: resource.group.clone(),
            resource: resource.plural.clone(),
            subresource: event.part.to_owned(),
            namespace: event.namespace.to_owned(),
            name: event.name.to_owned(),
            ..AccessCheck::default()
        };
        Ok(Facts {
            object: event.served(resource, event.object, store).await?,
            old: event.served(resource, event.old, store).await?,
            request: event.request(resource),
            namespace: Value::Null,
            rights: Rights { user: &event.call.user, authorization, request, answers: Arc::default() },
        })
    }

    /// Returns the object after the request, null if there is none.
    pub(crate) fn object(&self) -> &Value {
        &self.object
    }

    /// Sets the object after the request, as a policy has changed it.
    pub(crate) fn set_object(&mut self, object: Value) {
        self.object = object;
    }

    /// Evaluates an expression. `budget` is reduced by its cost.
    ///
    /// # Errors
    /// Those of the expression, and a budget that is used up.
    pub(crate) async fn evaluate<'f>(
        &'f self,
        program: &'f Program,
        params: &'f Value,
        variables: &[Variable<'f>],
        budget: &mut u64,
    ) -> Result<Cel<'f>, EvalError> {
        for _ in 0..MOST_QUESTIONS {
            let mut meter = Meter::new(PER_CALL_LIMIT.min(*budget));
            let result = self.run(program, params, variables, &mut meter);
            let asked = self.rights.answers.take_asked();
            match (result, asked) {
                (Err(EvalError::Pending), Some(check)) => self.rights.find(check).await,
                (result, _) => {
                    *budget = budget.saturating_sub(meter.cost());
                    return result;
                }
            }
        }
        Err(EvalError::Cost)
    }

    fn run<'f>(
        &'f self,
        program: &'f Program,
        params: &'f Value,
        variables: &[Variable<'f>],
        meter: &mut Meter,
    ) -> Result<Cel<'f>, EvalError> {
        let authority: Arc<dyn Authority> = self.rights.answers.clone();
        let resource = Access::resource(authority.clone(), self.rights.request.clone());
        let mut values = Activation::new()
            .json("object", &self.object)
            .json("oldObject", &self.old)
            .json("request", &self.request)
            .json("namespaceObject", &self.namespace)
            .json("params", params)
            .value("authorizer", Cel::Access(Access::authorizer(authority).into()))
            .value("authorizer.requestResource", Cel::Access(resource.into()));
        for (name, value) in variables {
            values = match value {
                Ok(value) => values.value(name, value.clone()),
                Err(error) => values.failed(name, error.clone()),
            };
        }
        program.evaluate(&values, meter)
    }
}

/// The rights of a request's user, as far as expressions asked for them.
struct Rights<'a> {
    user: &'a User,
    authorization: &'a Authorization,
    /// What `authorizer.requestResource` asks about.
    request: AccessCheck,
    answers: Arc<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    known: Mutex<HashMap<AccessCheck, AccessAnswer>>,
    /// The last question without an answer.
    asked: Mutex<Option<AccessCheck>>,
}

impl Answers {
    fn take_asked(&self) -> Option<AccessCheck> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Authority for Answers {
    fn decide(&self, check: &AccessCheck) -> Option<AccessAnswer> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(check).cloned();
        if known.is_none() {
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(check.clone());
        }
        known
    }
}

impl Rights<'_> {
    /// Asks the authorizers, and keeps the answer.
    async fn find(&self, check: AccessCheck) {
        let account = check.service_account.as_ref();
        let account = account.map(|(namespace, name)| User::service_account(namespace, name));
        // Selectors that are not understood ask for more.
        let fields = Some(&check.field_selector).filter(|text| !text.is_empty()).and_then(|t| t.parse().ok());
        let labels = Some(&check.label_selector).filter(|text| !text.is_empty()).and_then(|t| t.parse().ok());
        let wanted = Attributes {
            verb: &check.verb,
            group: &check.group,
            resource: &check.resource,
            subresource: &check.subresource,
            namespace: &check.namespace,
            name: &check.name,
            path: &check.path,
            version: if check.path.is_empty() { "*" } else { "" },
            fields: fields.as_ref(),
            labels: labels.as_ref(),
        };
        let outcome = self.authorization.decide(account.as_ref().unwrap_or(self.user), &wanted).await;
        let allowed = outcome.decision == Decision::Allow;
        let answer = AccessAnswer { allowed, reason: outcome.reason, error: outcome.error };
        self.answers.known.lock().unwrap_or_else(PoisonError::into_inner).insert(check, answer);
    }
}

/// Match conditions: all must hold.
#[derive(Debug, Default)]
pub(crate) struct Conditions(Vec<Condition>);

#[derive(Debug)]
struct Condition {
    name: String,
    /// The program, or the reason for which it does not compile.
    program: Result<Program, String>,
}

/// The outcome of match conditions.
#[derive(Debug, PartialEq)]
pub(crate) enum Matched {
    Yes,
    No,
    /// None is false, and one failed.
    Failed(String),
}

impl Conditions {
    /// Compiles `matchConditions`.
    pub(crate) fn new<'a>(conditions: impl Iterator<Item = (&'a str, &'a str)>, env: &Env) -> Self {
        let compiled = conditions.map(|(name, text)| Condition {
            name: name.to_owned(),
            program: env.compile(text).map_err(|e| e.to_string()),
        });
        Conditions(compiled.collect())
    }

    /// Returns true if there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Evaluates them in their order until one is false.
    pub(crate) async fn matches(&self, facts: &Facts<'_>, params: &Value) -> Matched {
        let mut budget = CONDITIONS_BUDGET;
        let mut failed = Vec::new();
        for condition in &self.0 {
            let name = &condition.name;
            let program = match &condition.program {
                Ok(program) => program,
                Err(why) => {
                    failed.push(format!("{name}: {why}"));
                    continue;
                }
            };
            match facts.evaluate(program, params, &[], &mut budget).await {
                Ok(Cel::Bool(true)) => {}
                Ok(Cel::Bool(false)) => return Matched::No,
                Ok(_) => failed.push(format!("match condition {name:?} is no boolean")),
                Err(e) => failed.push(format!("expression '{name}' resulted in error: {e}")),
            }
        }
        if failed.is_empty() { Matched::Yes } else { Matched::Failed(failed.join(", ")) }
    }
}
