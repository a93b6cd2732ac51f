//! The Common Expression Language (CEL) as in Kubernetes: validation rules of custom resources and admission
//! policies.
//!
//! Flow: an [`Env`] declares variables and their types. [`Env::compile`] parses an expression, checks its
//! types and estimates its maximum cost; it reports all errors with their positions. [`Program::evaluate`]
//! runs it on values, which borrow from JSON if possible.
//!
//! Guarantees:
//! 1. Total: no text and no value makes parsing, checking or evaluation panic, overflow the stack or run
//!    without bound. Texts are limited in length and nesting. A [`Meter`] counts every evaluation step before
//!    it is executed, including the memory that it allocates.
//! 2. Costs are counted as upstream does (`interpreter/runtimecost.go`, `library/cost.go`), so that limits
//!    have the same meaning. Operations without upstream cost (copies, deep comparisons, compiling patterns)
//!    are counted separately, as work.
//! 3. Objects are not copied, except for the values that an expression builds from them.
//!
//! Ours, because the crates that exist check no types before evaluation and count no costs as upstream does:
//! an expression which upstream refuses would be accepted, and one that never ends would run.
//!
//! Not here: protocol buffer messages.
//!
//! ```
//! use k8s_cel::{Activation, Decl, Env, Meter, Value};
//! use serde_json::json;
//!
//! let schema = json!({"type": "object", "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}}});
//! let env = Env::new().variable("self", Decl::of_schema(&schema));
//! let program = env.compile("self.min <= self.max && self.max < 10").unwrap();
//! let object = json!({"min": 1, "max": 3});
//! let result = program.evaluate(&Activation::new().json("self", &object), &mut Meter::new(1_000_000));
//! assert!(matches!(result, Ok(Value::Bool(true))));
//! let problems = env.compile("self.least > 0").unwrap_err();
//! assert_eq!(problems.to_string(), "ERROR: <input>:1:5: undefined field 'least'\n | self.least > 0\n | ....^");
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod ast;
mod check;
mod cost;
mod error;
mod eval;
mod lexer;
mod library;
mod meter;
mod names;
mod parser;
mod plan;
mod print;
mod schema;
#[cfg(test)]
mod tests;
mod types;
mod value;

pub use cost::{Estimate, Size};
pub use error::{CompileError, CompileErrors, EvalError};
pub use meter::Meter;
pub use names::{escape, unescape};
pub use types::declared::{Decl, Field, ObjectType};
pub use types::{Opaque, Type};
pub use value::access::{Access, AccessAnswer, AccessCheck, Authority};
pub use value::{List, Map, Text, Value};

use std::sync::Arc;

use plan::Plan;

/// Cost limit of one evaluation (upstream's `PerCallLimit`).
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// Cost limit of all rules of one object together (upstream's `RuntimeCELCostBudget`).
pub const RUNTIME_BUDGET: u64 = 10_000_000;

/// Declarations of the variables that an expression may use.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: Vec<(String, Arc<Decl>)>,
    /// Objects can be made: `Object{...}` and `JSONPatch{...}`.
    makes_objects: bool,
}

impl Env {
    /// Creates an environment with the standard and Kubernetes functions and no variables.
    #[must_use]
    pub fn new() -> Self {
        Env::default()
    }

    /// Declares a variable of this name and type.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, decl: impl Into<Arc<Decl>>) -> Self {
        self.variables.push((name.into(), decl.into()));
        self
    }

    /// Lets expressions make objects, for the mutations of admission policies: `Object{...}`, whose parts are
    /// named by their place (`Object.spec.template{...}`), and `JSONPatch{op: ..., path: ..., value: ...}`.
    ///
    /// ```
    /// use k8s_cel::{Activation, Env, Meter};
    /// let env = Env::new().makes_objects();
    /// let program = env.compile("Object{spec: Object.spec{replicas: 1 + 2}}").unwrap();
    /// assert_eq!(program.result_type().to_string(), "Object");
    /// let made = program.evaluate(&Activation::new(), &mut Meter::new(1000)).unwrap();
    /// assert_eq!(made.to_json(), Some(serde_json::json!({"spec": {"replicas": 3}})));
    /// assert!(env.compile("Object{spec: Object.status{}}").is_err());
    /// ```
    #[must_use]
    pub fn makes_objects(mut self) -> Self {
        self.makes_objects = true;
        self
    }

    /// Parses and checks an expression.
    ///
    /// # Errors
    /// All syntax and type errors.
    pub fn compile(&self, text: &str) -> Result<Program, CompileErrors> {
        let ast = parser::parse(text)?;
        let checked = check::check(&ast, text, &self.variables, self.makes_objects)?;
        Ok(Program { plan: checked.plan, result: checked.ty, estimate: checked.estimate })
    }
}

/// Parses an expression and prints it in its canonical form.
///
/// # Errors
/// The syntax errors.
///
/// ```
/// assert_eq!(k8s_cel::format("a&&(b)"), Ok("a && b".to_owned()));
/// ```
pub fn format(text: &str) -> Result<String, CompileErrors> {
    parser::parse(text).map(|ast| print::print(&ast))
}

/// A compiled expression. Immutable, and shared by threads.
#[derive(Clone, Debug)]
pub struct Program {
    plan: Plan,
    result: Type,
    estimate: Estimate,
}

impl Program {
    /// Returns the type of the result.
    ///
    /// ```
    /// use k8s_cel::{Decl, Env, Type};
    /// let env = Env::new().variable("count", Decl::new(Type::Int));
    /// let program = env.compile("count * 2 > 10").unwrap();
    /// assert!(matches!(program.result_type(), Type::Bool));
    /// assert!(program.uses("count") && !program.uses("self"));
    /// ```
    #[must_use]
    pub fn result_type(&self) -> &Type {
        &self.result
    }

    /// Returns the minimum and maximum cost for values within the bounds of their declarations.
    ///
    /// ```
    /// use k8s_cel::{Decl, Env, PER_CALL_LIMIT};
    /// use serde_json::json;
    ///
    /// let name = json!({"type": "string", "maxLength": 10});
    /// let names = |max| json!({"type": "array", "maxItems": max, "items": name});
    /// let cost = |max| {
    ///     let env = Env::new().variable("self", Decl::of_schema(&names(max)));
    ///     env.compile("self.all(a, self.exists_one(b, a == b))").unwrap().estimate().max
    /// };
    /// assert!(cost(10) < PER_CALL_LIMIT && cost(10_000) > PER_CALL_LIMIT); // a quadratic rule needs a bound
    /// ```
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        self.estimate
    }

    /// Returns true if the expression uses a variable.
    #[must_use]
    pub fn uses(&self, variable: &str) -> bool {
        self.plan.variables.iter().any(|(name, _)| name == variable)
    }

    /// Returns the maximum number of simultaneously bound names: an upper bound on the nesting of loops.
    #[must_use]
    pub fn bindings(&self) -> u32 {
        u32::try_from(self.plan.locals).unwrap_or(u32::MAX)
    }

    /// Evaluates the expression. The meter continues from its current cost.
    ///
    /// # Errors
    /// CEL errors (a missing key, an overflow), or the meter's limit.
    pub fn evaluate<'a>(
        &'a self,
        activation: &Activation<'a>,
        meter: &mut Meter,
    ) -> Result<Value<'a>, EvalError> {
        eval::run(&self.plan, activation, meter)
    }
}

#[derive(Clone, Debug)]
enum Binding<'a> {
    Json(&'a serde_json::Value),
    OptionalJson(Option<&'a serde_json::Value>),
    Value(Value<'a>),
    Failed(EvalError),
}

/// Values of the variables for an evaluation.
///
/// ```
/// use k8s_cel::{Activation, Decl, Env, Meter, Type, Value};
/// let env = Env::new().variable("self", Decl::any()).variable("limit", Decl::new(Type::Int));
/// let program = env.compile("self.replicas <= limit").unwrap();
/// let object = serde_json::json!({"replicas": 5});
/// let values = Activation::new().json("self", &object).value("limit", Value::Int(3));
/// assert!(matches!(program.evaluate(&values, &mut Meter::new(1000)), Ok(Value::Bool(false))));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Activation<'a> {
    bindings: Vec<(&'a str, Binding<'a>)>,
}

impl<'a> Activation<'a> {
    /// Creates an activation without variables.
    #[must_use]
    pub fn new() -> Self {
        Activation::default()
    }

    /// Sets a variable to a JSON value of its declared type.
    #[must_use]
    pub fn json(mut self, name: &'a str, value: &'a serde_json::Value) -> Self {
        self.bindings.push((name, Binding::Json(value)));
        self
    }

    /// Sets an optional variable (see [`Decl::optional`]) to a JSON value or to none.
    #[must_use]
    pub fn optional_json(mut self, name: &'a str, value: Option<&'a serde_json::Value>) -> Self {
        self.bindings.push((name, Binding::OptionalJson(value)));
        self
    }

    /// Sets a variable whose own evaluation failed: the error is raised where the variable is used.
    #[must_use]
    pub fn failed(mut self, name: &'a str, error: EvalError) -> Self {
        self.bindings.push((name, Binding::Failed(error)));
        self
    }

    /// Sets a variable to a value.
    #[must_use]
    pub fn value(mut self, name: &'a str, value: Value<'a>) -> Self {
        self.bindings.push((name, Binding::Value(value)));
        self
    }
}
