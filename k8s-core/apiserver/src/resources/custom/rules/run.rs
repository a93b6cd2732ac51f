//! Evaluation of rules at every level of an object, with the old value of the level if the two can be
//! matched.

use std::{cell::Cell, collections::HashMap};

use k8s_cel as cel;
use k8s_cel::{Activation, EvalError, Meter, PER_CALL_LIMIT};
use serde_json::Value;

use super::{Node, Rule};
use crate::invalid::FieldErrors;

/// Maximum size of a message from an expression, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

/// Evaluates all rules on a value at a path; deducts their cost from the budget.
pub(super) fn run(
    root: &Node,
    object: &Value,
    old: Option<&Value>,
    path: &str,
    budget: &mut u64,
    errors: &mut FieldErrors,
) {
    let place = Place { new: object, old, parent: None, same: Cell::new(None) };
    let mut run = Run { budget, errors };
    // An exceeded budget has been reported.
    let _ = run.node(root, path, &place, true);
}

/// A value and its old value.
struct Place<'p> {
    new: &'p Value,
    /// Old value, if the two can be matched.
    old: Option<&'p Value>,
    parent: Option<&'p Place<'p>>,
    same: Cell<Option<bool>>,
}

impl Place<'_> {
    /// Returns true if the value, or its nearest matched ancestor, is unchanged.
    fn is_unchanged(&self) -> bool {
        if let Some(known) = self.same.get() {
            return known;
        }
        let same = match (self.old, self.parent) {
            (Some(old), _) => old == self.new,
            (None, Some(parent)) => parent.is_unchanged(),
            (None, None) => false,
        };
        self.same.set(Some(same));
        same
    }
}

struct Run<'e> {
    budget: &'e mut u64,
    errors: &'e mut FieldErrors,
}

/// The cost budget is exceeded: no further rule is evaluated.
struct Stopped;

fn shown(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

fn child(path: &str, name: &str) -> String {
    let name = k8s_schema::paths::part(name);
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Run<'_> {
    fn node(&mut self, node: &Node, path: &str, place: &Place<'_>, ratchets: bool) -> Result<(), Stopped> {
        if place.new.is_null() {
            return Ok(());
        }
        for rule in &node.rules {
            self.rule(rule, node, path, place, ratchets)?;
        }
        for inner in &node.all_of {
            // No ratcheting for junctor schemas.
            self.node(inner, path, place, false)?;
        }
        match place.new {
            Value::Array(items) => self.list(node, items, path, place),
            Value::Object(map) => self.map(node, map, path, place),
            _ => Ok(()),
        }
    }

    fn list(&mut self, node: &Node, items: &[Value], path: &str, place: &Place<'_>) -> Result<(), Stopped> {
        let Some(inner) = &node.items else { return Ok(()) };
        let keys = node.keys.as_deref();
        let mut known = HashMap::new();
        if let (Some(keys), Some(Value::Array(old))) = (keys, place.old) {
            for item in old {
                known.entry(key_of(item, keys)).or_insert(item);
            }
        }
        for (i, item) in items.iter().enumerate() {
            let old = keys.and_then(|keys| known.get(&key_of(item, keys)).copied());
            let below = Place { new: item, old, parent: Some(place), same: Cell::new(None) };
            self.node(inner, &format!("{path}[{i}]"), &below, true)?;
        }
        Ok(())
    }

    fn map(
        &mut self,
        node: &Node,
        map: &serde_json::Map<String, Value>,
        path: &str,
        place: &Place<'_>,
    ) -> Result<(), Stopped> {
        let old = |name: &str| place.old.and_then(|old| old.get(name));
        if let Some(rest) = &node.rest {
            for (name, value) in map {
                let below = Place { new: value, old: old(name), parent: Some(place), same: Cell::new(None) };
                self.node(rest, &format!("{path}[{name}]"), &below, true)?;
            }
        }
        for (name, inner) in &node.fields {
            let Some(value) = map.get(name) else { continue };
            let below = Place { new: value, old: old(name), parent: Some(place), same: Cell::new(None) };
            self.node(inner, &child(path, name), &below, true)?;
        }
        Ok(())
    }

    /// Deducts an evaluation's cost from the budget.
    fn pay(&mut self, meter: &Meter) -> Result<(), ()> {
        *self.budget = self.budget.checked_sub(meter.cost()).ok_or(())?;
        Ok(())
    }

    fn rule(
        &mut self,
        rule: &Rule,
        node: &Node,
        path: &str,
        place: &Place<'_>,
        ratchets: bool,
    ) -> Result<(), Stopped> {
        let old = place.old.filter(|old| !old.is_null());
        if rule.uses_old && old.is_none() && !rule.optional_old {
            return Ok(());
        }
        let activation = Activation::new().json("self", place.new);
        let activation = match (rule.optional_old, old) {
            (true, old) => activation.optional_json("oldSelf", old),
            (false, Some(old)) => activation.json("oldSelf", old),
            (false, None) => activation,
        };
        let kind = if node.kind.is_empty() {
            crate::resources::custom::check::type_name(place.new)
        } else {
            node.kind.as_str()
        };
        let mut meter = Meter::new(PER_CALL_LIMIT);
        let result = match rule.program.evaluate(&activation, &mut meter) {
            Ok(cel::Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err(EvalError::NoSuchOverload),
            Err(error) => Err(error),
        };
        if self.pay(&meter).is_err() && result != Err(EvalError::Cost) {
            let what = "validation failed due to running out of cost budget, no further validation rules will be run";
            self.errors.invalid(shown(path), kind, what);
            return Err(Stopped);
        }
        let name = rule.message.as_deref().unwrap_or(&rule.text);
        match result {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(EvalError::NoSuchOverload) => {
                let what = format!(
                    "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {name}"
                );
                self.errors.invalid(shown(path), kind, what);
                return Ok(());
            }
            Err(error @ EvalError::Cost) => {
                let what = format!(
                    "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {name}"
                );
                self.errors.invalid(shown(path), kind, what);
                return Err(Stopped);
            }
            Err(error) => {
                self.errors.invalid(shown(path), kind, format!("{error} evaluating rule: {name}"));
                return Ok(());
            }
        }
        if ratchets && !rule.uses_old && place.is_unchanged() {
            return Ok(());
        }
        let path = match rule.field_path.as_str() {
            "" => path.to_owned(),
            field => child(path, field),
        };
        let message = self.message(rule, &activation).map_err(|what| {
            self.errors.invalid(shown(&path), kind, what);
            Stopped
        })?;
        let message = message.unwrap_or_else(|| match &rule.message {
            Some(message) => message.clone(),
            None => format!("failed rule: {}", rule.text),
        });
        match rule.reason.as_str() {
            "FieldValueRequired" => self.errors.required(shown(&path), &message),
            "FieldValueForbidden" => self.errors.forbidden(shown(&path), &message),
            "FieldValueDuplicate" => self.errors.duplicate(shown(&path), kind),
            _ => self.errors.invalid(shown(&path), kind, message),
        }
        Ok(())
    }

    /// Evaluates a message expression. `None`: no usable message.
    fn message(&mut self, rule: &Rule, activation: &Activation<'_>) -> Result<Option<String>, String> {
        let Some((program, source)) = &rule.message_expression else { return Ok(None) };
        let mut meter = Meter::new(PER_CALL_LIMIT);
        let result = program.evaluate(activation, &mut meter);
        if matches!(result, Err(EvalError::Cost)) {
            return Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {source:?}"
            ));
        }
        if self.pay(&meter).is_err() {
            return Err(
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into(),
            );
        }
        let text = match &result {
            Ok(cel::Value::String(text)) => text.trim(),
            _ => return Ok(None),
        };
        let good = !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
        Ok(good.then(|| text.to_owned()))
    }
}

/// Returns the identity of a list element.
fn key_of(item: &Value, keys: &[(String, Option<Value>)]) -> String {
    let parts = keys.iter().map(|(key, default)| item.get(key).or(default.as_ref()).unwrap_or(&Value::Null));
    parts.fold(String::new(), |all, part| format!("{all}{part}\n"))
}
