//! Match conditions of a webhook authorizer: CEL expressions over the `spec` of a review.

use k8s_cel::{Activation, Decl, Env, Meter, ObjectType, PER_CALL_LIMIT, Program, Type};
use serde_json::{Map, Value, json};

use super::{of_fields, of_labels, strings};
use crate::{request::Attributes, user::User};

/// Number of conditions that a webhook may have.
const MOST: usize = 64;

/// A match condition that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("matchConditions[{index}].expression: {why}")]
pub struct ConditionError {
    /// Place in the list, from 0.
    pub index: usize,
    /// The problem.
    pub why: String,
}

/// Compiled conditions. All must be true; without any, every request matches.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<Program>);

/// Declares `request`: the `spec` of a v1 SubjectAccessReview.
fn declaration() -> Decl {
    let (text, texts) = (|| Decl::new(Type::String), || Decl::new(Type::list(Type::String)));
    let object = |name: &str, fields: Vec<(&str, Decl)>| {
        let fields = fields.into_iter().map(|(field, decl)| (field.to_owned(), decl.into()));
        Decl::object(ObjectType::plain(name, fields))
    };
    let requirement = object("requirement", vec![("key", text()), ("operator", text()), ("values", texts())]);
    let requirements = Decl::new(Type::list(requirement.ty().clone()));
    let selector = object("selector", vec![("rawSelector", text()), ("requirements", requirements)]);
    let names = ["namespace", "verb", "group", "version", "resource", "subresource", "name"];
    let mut resource: Vec<(&str, Decl)> = names.map(|name| (name, text())).into();
    resource.extend([("fieldSelector", selector.clone()), ("labelSelector", selector)]);
    object(
        "request",
        vec![
            ("user", text()),
            ("groups", texts()),
            ("uid", text()),
            ("extra", Decl::new(Type::map(Type::list(Type::String)))),
            ("resourceAttributes", object("resourceAttributes", resource)),
            (
                "nonResourceAttributes",
                object("nonResourceAttributes", vec![("path", text()), ("verb", text())]),
            ),
        ],
    )
}

impl Conditions {
    /// Compiles conditions.
    ///
    /// # Errors
    /// The first that is empty, repeated, no boolean or not understood.
    pub(super) fn compile(texts: &[String]) -> Result<Self, ConditionError> {
        let env = Env::new().variable("request", declaration());
        let mut programs = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let refused = |why: String| Err(ConditionError { index, why });
            if index >= MOST {
                return refused(format!("a webhook may have at most {MOST} conditions"));
            }
            if text.trim().is_empty() {
                return refused("an expression is required".to_owned());
            }
            if texts[..index].contains(text) {
                return refused(format!("{text:?} is there twice"));
            }
            match env.compile(text) {
                Err(problems) => return refused(problems.to_string()),
                Ok(program) if !matches!(program.result_type(), Type::Bool) => {
                    return refused(format!("{text:?} must evaluate to bool"));
                }
                Ok(program) => programs.push(program),
            }
        }
        Ok(Conditions(programs))
    }

    /// Returns true if all conditions hold.
    ///
    /// # Errors
    /// One cannot be evaluated, and none is false.
    pub(super) fn hold(&self, user: &User, wanted: &Attributes<'_>) -> Result<bool, String> {
        if self.0.is_empty() {
            return Ok(true);
        }
        let request = review(user, wanted);
        let (activation, mut error) = (Activation::new().json("request", &request), None);
        for program in &self.0 {
            match program.evaluate(&activation, &mut Meter::new(PER_CALL_LIMIT)) {
                Ok(k8s_cel::Value::Bool(true)) => {}
                Ok(k8s_cel::Value::Bool(false)) => return Ok(false),
                Ok(other) => error = Some(format!("a match condition is a {}", other.type_name())),
                Err(e) => error = Some(format!("match condition: {e}")),
            }
        }
        error.map_or(Ok(true), Err)
    }
}

/// The spec of a review with all its texts, also empty ones, so that conditions need not test for them.
fn review(user: &User, wanted: &Attributes<'_>) -> Value {
    let mut request = json!({"user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra});
    if !wanted.path.is_empty() {
        request["nonResourceAttributes"] = json!({"path": wanted.path, "verb": wanted.verb});
        return request;
    }
    let mut resource: Map<String, Value> =
        strings(wanted).into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect();
    for (key, requirements) in [("fieldSelector", of_fields(wanted)), ("labelSelector", of_labels(wanted))] {
        if !requirements.is_empty() {
            resource.insert(key.to_owned(), json!({"rawSelector": "", "requirements": requirements}));
        }
    }
    request["resourceAttributes"] = resource.into();
    request
}
