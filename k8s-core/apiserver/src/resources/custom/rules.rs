//! Validation of custom resources: schema limits and CEL rules (`x-kubernetes-validations`).
//!
//! Rules are compiled when a definition is created ([`compile`]), and run at every level of an object that
//! has some ([`run`]), with a cost budget. Ratcheting as upstream: unchanged invalid values of an update are
//! accepted, so that a definition may become stricter without freezing its objects. Transition rules (with
//! `oldSelf`) are always evaluated.

mod compile;
mod paths;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_cel::{Program, RUNTIME_BUDGET};
use serde_json::{Map, Value};

use super::check::Check;
use crate::invalid::FieldErrors;

/// Cost from which rules run outside of the async worker threads.
const HEAVY: u64 = 20_000;

/// Compiled validation of a definition's version.
#[derive(Debug)]
pub(crate) struct Rules {
    check: Check,
    root: Option<Node>,
    /// Number of rules, and maximum number of names bound by one.
    count: u64,
    nesting: u32,
}

/// A schema node with rules, or with rules below it.
#[derive(Debug, Default)]
struct Node {
    /// Type name for messages.
    kind: String,
    rules: Vec<Rule>,
    fields: BTreeMap<String, Node>,
    items: Option<Box<Node>>,
    rest: Option<Box<Node>>,
    all_of: Vec<Node>,
    /// Keys that identify list elements, with their defaults.
    keys: Option<Vec<(String, Option<Value>)>>,
}

/// A compiled entry of `x-kubernetes-validations`.
#[derive(Debug)]
struct Rule {
    program: Program,
    /// CEL source without surrounding blanks, for messages.
    text: String,
    message: Option<String>,
    message_expression: Option<(Program, String)>,
    reason: String,
    field_path: String,
    uses_old: bool,
    optional_old: bool,
}

/// Parses a CEL expression; returns the error message on failure.
pub(crate) fn compiles(expression: &str) -> Result<(), String> {
    k8s_cel::format(expression).map(|_| ()).map_err(|errors| errors.to_string())
}

impl Rules {
    /// Compiles a schema; errors are reported below `path`.
    pub(crate) fn new(schema: &Value, path: &str, errors: &mut FieldErrors) -> Self {
        let check = Check::new(schema, path, errors);
        check.defaults(schema, path, errors, 0);
        let mut found = compile::Found::default();
        let root = compile::root(schema, path, &mut found, errors);
        Rules { check, root, count: found.count, nesting: found.nesting }
    }

    /// Returns true if validating an object may take so long that it must not run on an async worker thread.
    pub(crate) fn is_heavy(&self, object: &Value, old: Option<&Value>) -> bool {
        if self.root.is_none() {
            return false;
        }
        let size = nodes(object, HEAVY) + old.map_or(0, |old| nodes(old, HEAVY));
        let steps = (0..=self.nesting).fold(self.count.max(1), |steps, _| steps.saturating_mul(size));
        steps > HEAVY
    }

    /// Validates an object, or an update of `old`.
    pub(crate) fn check(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let mut found = FieldErrors::default();
        self.check.object(object, &mut found);
        if let Some(old) = old {
            found.retain(|path| !is_unchanged(object, old, path));
        }
        let broken = !found.is_empty();
        errors.append(found);
        let Some(root) = &self.root else { return };
        if broken {
            errors.invalid(
                "<nil>",
                Value::Null,
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            );
        } else {
            let mut budget = RUNTIME_BUDGET;
            run::run(root, object, old, "", &mut budget, errors);
        }
    }
}

/// Counts the values of an object, up to `most`.
fn nodes(value: &Value, most: u64) -> u64 {
    let below: &mut dyn Iterator<Item = &Value> = match value {
        Value::Array(items) => &mut items.iter(),
        Value::Object(map) => &mut map.values(),
        _ => return 1,
    };
    let mut count = 1;
    for value in below {
        if count >= most {
            break;
        }
        count += nodes(value, most - count);
    }
    count
}

/// Returns true if the value at an error's path is unchanged. For a missing field, if its parent is
/// unchanged.
fn is_unchanged(object: &Value, old: &Value, path: &str) -> bool {
    match (lookup(object, path), lookup(old, path)) {
        (Some(new), Some(old)) => new == old,
        (None, None) => {
            let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
            !path.is_empty() && is_unchanged(object, old, parent)
        }
        _ => false,
    }
}

/// Returns the value at a field path (`spec.items[0].name`).
fn lookup<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = object;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let mut pieces = part.split('[');
        let name = pieces.next().unwrap_or_default();
        if !name.is_empty() {
            at = at.as_object().map(|map: &Map<String, Value>| map.get(name))??;
        }
        for index in pieces {
            let index = index.trim_end_matches(']').trim_matches('"');
            at = match (at, index.parse::<usize>()) {
                (Value::Array(items), Ok(i)) => items.get(i)?,
                (Value::Object(map), _) => map.get(index)?,
                _ => return None,
            };
        }
    }
    Some(at)
}
