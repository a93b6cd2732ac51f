//! A policy, compiled.

use std::sync::Arc;

use k8s_cel::{Decl, Env, EvalError, Program, Value as Cel};
use serde_json::Value;

use crate::{
    admission::{
        facts::{Conditions, Facts, Variable},
        matching::{Matcher, constraints, expressions},
    },
    expressions::policy_environment,
    value::{array_at, str_at},
};

/// Cost of all expressions of a policy for one binding (upstream's `RuntimeCELCostBudget`).
const BUDGET: u64 = 10_000_000;

/// A policy of either kind.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    /// A policy that fails lets the request through; otherwise it refuses it.
    pub(super) ignores_failures: bool,
    /// `apiVersion` and kind of the parameters.
    pub(super) param_kind: Option<(String, String)>,
    pub(super) matcher: Matcher,
    pub(super) conditions: Conditions,
    pub(super) variables: Variables,
    pub(super) validations: Vec<Validation>,
    /// Key and expression of each audit annotation.
    pub(super) annotations: Vec<(String, Expression)>,
    pub(super) mutations: Vec<Mutation>,
    /// Applied again if the object changes after it.
    pub(super) reinvoked: bool,
}

/// A mutation.
#[derive(Debug)]
pub(super) enum Mutation {
    /// The expression makes a part of the object, which is merged into it.
    Apply(Expression),
    /// The expression makes a list of JSON patch operations.
    Patch(Expression),
}

/// A validation.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) expression: Expression,
    pub(super) message: String,
    pub(super) message_expression: Option<Expression>,
    pub(super) reason: String,
}

impl Policy {
    pub(super) fn new(policy: &Value) -> Self {
        let param_kind = policy.pointer("/spec/paramKind").filter(|kind| kind.is_object());
        let env = policy_environment(param_kind.is_some()).makes_objects();
        let variables = Variables::new(&env, policy);
        let compile = |text: &str| variables.compile(text);
        let validations = array_at(policy, "/spec/validations").iter().map(|one| Validation {
            expression: compile(str_at(one, "/expression")),
            message: str_at(one, "/message").trim().to_owned(),
            message_expression: Some(str_at(one, "/messageExpression"))
                .filter(|text| !text.is_empty())
                .map(compile),
            reason: Some(str_at(one, "/reason")).filter(|r| !r.is_empty()).unwrap_or("Invalid").to_owned(),
        });
        let annotations = array_at(policy, "/spec/auditAnnotations")
            .iter()
            .map(|one| (str_at(one, "/key").to_owned(), compile(str_at(one, "/valueExpression"))));
        let mutations =
            array_at(policy, "/spec/mutations").iter().map(|one| match str_at(one, "/patchType") {
                "JSONPatch" => Mutation::Patch(compile(str_at(one, "/jsonPatch/expression"))),
                _ => Mutation::Apply(compile(str_at(one, "/applyConfiguration/expression"))),
            });
        Policy {
            name: str_at(policy, "/metadata/name").to_owned(),
            ignores_failures: str_at(policy, "/spec/failurePolicy") == "Ignore",
            param_kind: param_kind
                .map(|kind| (str_at(kind, "/apiVersion").to_owned(), str_at(kind, "/kind").to_owned())),
            matcher: Matcher::new(constraints(policy, "matchConstraints")),
            conditions: Conditions::new(expressions(policy, "/spec/matchConditions"), &env),
            validations: validations.collect(),
            annotations: annotations.collect(),
            mutations: mutations.collect(),
            reinvoked: str_at(policy, "/spec/reinvocationPolicy") == "IfNeeded",
            variables,
        }
    }
}

/// An expression, and the variables that it needs, in their order.
#[derive(Debug)]
pub(super) struct Expression {
    pub(super) text: String,
    /// The program, or the reason for which it does not compile.
    pub(super) program: Result<Program, String>,
    needs: Vec<usize>,
}

/// The variables of a policy. Each may use those before it.
#[derive(Debug)]
pub(super) struct Variables {
    env: Env,
    all: Vec<(String, Expression)>,
}

impl Variables {
    fn new(env: &Env, policy: &Value) -> Self {
        let mut variables = Variables { env: env.clone(), all: Vec::new() };
        for (name, text) in expressions(policy, "/spec/variables") {
            let expression = variables.compile(text);
            let ty = expression.program.as_ref().map(|program| program.result_type().clone());
            let name = format!("variables.{name}");
            let decl = ty.map_or_else(|_| Decl::any(), Decl::new);
            variables.env = variables.env.variable(name.clone(), Arc::new(decl));
            variables.all.push((name, expression));
        }
        variables
    }

    fn compile(&self, text: &str) -> Expression {
        let program = self.env.compile(text).map_err(|e| e.to_string());
        let mut needs = Vec::new();
        if let Ok(program) = &program {
            for (i, (name, variable)) in self.all.iter().enumerate() {
                if program.uses(name) {
                    needs.extend(&variable.needs);
                    needs.push(i);
                }
            }
        }
        needs.sort_unstable();
        needs.dedup();
        Expression { text: text.to_owned(), program, needs }
    }
}

/// The evaluation of a policy's expressions for one request and parameter. Variables are evaluated once, when
/// they are needed.
pub(super) struct Evaluation<'f> {
    facts: &'f Facts<'f>,
    params: &'f Value,
    policy: &'f Policy,
    values: Vec<Option<Variable<'f>>>,
    budget: u64,
}

impl<'f> Evaluation<'f> {
    pub(super) fn new(policy: &'f Policy, facts: &'f Facts<'f>, params: &'f Value) -> Self {
        let values = policy.variables.all.iter().map(|_| None).collect();
        Evaluation { facts, params, policy, values, budget: BUDGET }
    }

    /// Evaluates an expression.
    ///
    /// # Errors
    /// Upstream's text for it.
    pub(super) async fn evaluate(&mut self, expression: &'f Expression) -> Result<Cel<'f>, String> {
        let policy = self.policy;
        for i in &expression.needs {
            let Some((name, variable)) = policy.variables.all.get(*i) else { continue };
            if self.values.get(*i).is_some_and(Option::is_some) {
                continue;
            }
            let value = self.value(variable).await;
            if let Some(place) = self.values.get_mut(*i) {
                *place = Some((name.as_str(), value));
            }
        }
        let text = expression.text.trim();
        match self.value(expression).await {
            Ok(value) => Ok(value),
            Err(_) if self.budget == 0 => Err(
                "validation failed due to running out of cost budget, no further validation rules will be run".into(),
            ),
            Err(EvalError::Cost) => Err(format!(
                "validation failed due to running out of cost budget, no further validation rules will be run: expression '{text}'"
            )),
            Err(e) => Err(format!("expression '{text}' resulted in error: {e}")),
        }
    }

    async fn value(&mut self, expression: &'f Expression) -> Result<Cel<'f>, EvalError> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(why) => return Err(EvalError::Failed(format!("compilation error: {why}"))),
        };
        let known: Vec<Variable<'f>> =
            expression.needs.iter().filter_map(|i| self.values.get(*i)?.clone()).collect();
        self.facts.evaluate(program, self.params, &known, &mut self.budget).await
    }
}
