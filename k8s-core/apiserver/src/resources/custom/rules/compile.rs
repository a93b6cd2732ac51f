//! Compilation of rules, with all errors that can be found before they run.

use std::sync::Arc;

use k8s_cel::{Decl, Env, Program, RUNTIME_BUDGET, Type};
use k8s_schema::MAX_DEPTH;
use serde_json::Value;

use super::{Node, Rule, paths, run};
use crate::{
    invalid::FieldErrors,
    value::{list, text},
};

/// Limit of one rule's estimated cost.
const RULE_LIMIT: u64 = 10_000_000;
/// Limit of the estimated costs of all rules of a schema.
const SCHEMA_LIMIT: u64 = 100_000_000;
/// Number of reported rules, most expensive first.
const TOLD: usize = 4;
/// Size limit of a request in bytes, which bounds the number of elements.
const REQUEST: u64 = 3 << 20;

/// Results of compiling a schema.
#[derive(Debug)]
pub(super) struct Found {
    /// Remaining budget for evaluating rules on defaults.
    budget: u64,
    pub(super) count: u64,
    pub(super) nesting: u32,
    /// Path and cost of each expression.
    costs: Vec<(String, u64)>,
}

impl Default for Found {
    fn default() -> Self {
        Found { budget: RUNTIME_BUDGET, count: 0, nesting: 0, costs: Vec::new() }
    }
}

/// Position of a schema.
#[derive(Clone, Copy)]
struct Place<'p> {
    path: &'p str,
    /// Path of the list whose old and new elements cannot be matched.
    uncorrelatable: Option<&'p str>,
    /// Maximum number of such values in an object, if bounded.
    cardinality: Option<u64>,
    resource: bool,
    depth: usize,
}

/// Compiles all rules of a schema.
pub(super) fn root(schema: &Value, path: &str, found: &mut Found, errors: &mut FieldErrors) -> Option<Node> {
    let place = Place { path, uncorrelatable: None, cardinality: Some(1), resource: true, depth: 0 };
    let node = node(schema, schema, place, found, errors);
    let total = found.costs.iter().fold(0u64, |total, (_, cost)| total.saturating_add(*cost));
    if total > SCHEMA_LIMIT {
        found.costs.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (path, _) in found.costs.iter().take(TOLD) {
            errors.forbidden(
                path,
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
            );
        }
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(path, &over(name, total, SCHEMA_LIMIT));
    }
    node
}

#[allow(clippy::cast_precision_loss)] // it is told with one digit
fn over(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

fn is_embedded(schema: &Value) -> bool {
    schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true))
}

/// Compiles the rules of a schema and of all below it. `outer` is the enclosing schema if `schema` is a
/// junctor's.
fn node(
    schema: &Value,
    outer: &Value,
    place: Place<'_>,
    found: &mut Found,
    errors: &mut FieldErrors,
) -> Option<Node> {
    if place.depth > MAX_DEPTH {
        return None;
    }
    let path = place.path;
    let deeper = Place { depth: place.depth + 1, resource: false, ..place };
    let mut node = Node { kind: text(outer, "/type").to_owned(), ..Node::default() };
    let rules = list(schema, "/x-kubernetes-validations");
    if !rules.is_empty() {
        let decl = Arc::new(if place.resource { Decl::of_resource(outer) } else { Decl::of_schema(outer) });
        for (i, rule) in rules.iter().enumerate() {
            let path = format!("{path}.x-kubernetes-validations[{i}]");
            let place = Place { path: &path, ..place };
            node.rules.extend(self::rule(rule, outer, &decl, place, found, errors));
        }
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let outer = outer.get("properties").and_then(|p| p.get(name)).unwrap_or(field);
        let path = format!("{path}.properties[{name}]");
        let place = Place { path: &path, resource: is_embedded(outer), ..deeper };
        if let Some(inner) = self::node(field, outer, place, found, errors) {
            node.fields.insert(name.clone(), inner);
        }
    }
    for key in ["items", "additionalProperties"] {
        let Some(inner) = schema.get(key).filter(|inner| inner.is_object()) else { continue };
        let outer_inner = outer.get(key).filter(|o| o.is_object()).unwrap_or(inner);
        let most = if key == "items" { "maxItems" } else { "maxProperties" };
        let most = outer.get(most).and_then(Value::as_u64);
        let keyed = key != "items" || text(outer, "/x-kubernetes-list-type") == "map";
        let below = format!("{path}.{key}");
        let place = Place {
            path: &below,
            uncorrelatable: place.uncorrelatable.or((!keyed).then_some(path)),
            cardinality: place.cardinality.zip(most).map(|(n, most)| n.saturating_mul(most)),
            resource: is_embedded(outer_inner),
            depth: place.depth + 1,
        };
        let inner = self::node(inner, outer_inner, place, found, errors).map(Box::new);
        if key == "items" {
            node.items = inner;
        } else {
            node.rest = inner;
        }
    }
    for (i, inner) in list(schema, "/allOf").iter().enumerate() {
        let path = format!("{path}.allOf[{i}]");
        let place = Place { path: &path, resource: place.resource, ..deeper };
        node.all_of.extend(self::node(inner, outer, place, found, errors));
    }
    for key in ["anyOf", "oneOf"] {
        for (i, inner) in list(schema, &format!("/{key}")).iter().enumerate() {
            no_rules(inner, &format!("{path}.{key}[{i}]"), place.depth, errors);
        }
    }
    if let Some(inner) = schema.get("not") {
        no_rules(inner, &format!("{path}.not"), place.depth, errors);
    }
    if text(outer, "/x-kubernetes-list-type") == "map" {
        let keys = list(outer, "/x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
        let default = |key: &str| outer.pointer("/items/properties")?.get(key)?.get("default").cloned();
        node.keys = Some(keys.map(|key| (key.to_owned(), default(key))).collect());
    }
    let empty = node.rules.is_empty()
        && node.fields.is_empty()
        && node.items.is_none()
        && node.rest.is_none()
        && node.all_of.is_empty();
    if empty {
        return None;
    }
    // Defaults must satisfy the rules, too.
    if let Some(default) = schema.get("default") {
        run::run(&node, default, None, &format!("{path}.default"), &mut found.budget, errors);
    }
    Some(node)
}

/// Rejects rules in schemas of which only one may match.
fn no_rules(schema: &Value, path: &str, depth: usize, errors: &mut FieldErrors) {
    if depth > MAX_DEPTH {
        return;
    }
    if !list(schema, "/x-kubernetes-validations").is_empty() {
        errors.forbidden(format!("{path}.x-kubernetes-validations"), "must be empty to be structural");
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        no_rules(field, &format!("{path}.properties[{name}]"), depth + 1, errors);
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(inner) = schema.get(key) {
            no_rules(inner, &format!("{path}.{key}"), depth + 1, errors);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in list(schema, &format!("/{key}")).iter().enumerate() {
            no_rules(inner, &format!("{path}.{key}[{i}]"), depth + 1, errors);
        }
    }
}

const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Validates a rule's fields except its expressions.
fn shape(rule: &Value, schema: &Value, path: &str, errors: &mut FieldErrors) {
    let part = |name: &str| rule.get(name).and_then(Value::as_str);
    let (expression, message) = (text(rule, "/rule").trim(), part("message"));
    if expression.is_empty() {
        errors.required(format!("{path}.rule"), "rule is not specified");
    } else if message.is_some_and(|m| !m.is_empty() && m.trim().is_empty()) {
        errors.invalid(format!("{path}.message"), message, "message must be non-empty if specified");
    } else if message.is_some_and(|m| m.trim().contains(['\n', '\r'])) {
        errors.invalid(format!("{path}.message"), message, "message must not contain line breaks");
    } else if expression.contains(['\n', '\r']) && message.is_none_or(|m| m.trim().is_empty()) {
        errors.required(format!("{path}.message"), "message must be specified if rule contains line breaks");
    }
    if part("messageExpression").is_some_and(|e| !e.is_empty() && e.trim().is_empty()) {
        errors.required(
            format!("{path}.messageExpression"),
            "messageExpression must be non-empty if specified",
        );
    }
    if let Some(reason) = part("reason").filter(|reason| !reason.is_empty() && !REASONS.contains(reason)) {
        errors.not_supported(format!("{path}.reason"), reason, &REASONS);
    }
    let Some(field) = part("fieldPath").filter(|field| !field.is_empty()) else { return };
    let at = format!("{path}.fieldPath");
    if field.trim().is_empty() {
        errors.invalid(&at, field, "fieldPath must be non-empty if specified");
    }
    if field.contains(['\n', '\r']) {
        errors.invalid(&at, field, "fieldPath must not contain line breaks");
    }
    if paths::normalize(field, schema).is_err() {
        errors.invalid(&at, field, "fieldPath must be a valid path");
    }
}

/// Compiles an expression with its expected type.
fn expression(
    env: &Env,
    source: &str,
    wanted: &Type,
    wrong: &str,
    path: &str,
    errors: &mut FieldErrors,
) -> Option<Program> {
    match env.compile(source) {
        Ok(program) if std::mem::discriminant(program.result_type()) == std::mem::discriminant(wanted) => {
            Some(program)
        }
        Ok(_) => {
            errors.invalid(path, source, wrong);
            None
        }
        Err(problems) => {
            errors.invalid(path, source, format!("compilation failed: {problems}"));
            None
        }
    }
}

fn rule(
    rule: &Value,
    schema: &Value,
    decl: &Arc<Decl>,
    place: Place<'_>,
    found: &mut Found,
    errors: &mut FieldErrors,
) -> Option<Rule> {
    let path = place.path;
    shape(rule, schema, path, errors);
    let source = text(rule, "/rule");
    if source.trim().is_empty() {
        return None;
    }
    let optional_old = rule.get("optionalOldSelf") == Some(&Value::Bool(true));
    let old = if optional_old { Arc::new(Decl::clone(decl).optional()) } else { decl.clone() };
    let env = Env::new().variable("self", decl.clone()).variable("oldSelf", old);
    let at = format!("{path}.rule");
    let wrong = "cel expression must evaluate to a bool";
    let program = expression(&env, source, &Type::Bool, wrong, &at, errors)?;
    let uses_old = program.uses("oldSelf");
    if let Some(within) = place.uncorrelatable.filter(|_| uses_old) {
        errors.invalid(
            &at,
            source,
            format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"),
        );
    }
    if let Some(value) = rule.get("optionalOldSelf").filter(|value| value.is_boolean() && !uses_old) {
        errors.invalid(
            format!("{path}.optionalOldSelf"),
            value.clone(),
            "may not be set if oldSelf is not used in rule",
        );
    }
    // An unbounded list has at most as many elements as fit into a request.
    let times = place.cardinality.unwrap_or_else(|| (REQUEST - 2) / (decl.min_serialized_size() + 1));
    costs("estimated rule cost", at, program.estimate().max.saturating_mul(times), found, errors);
    let message_source = text(rule, "/messageExpression");
    let mut message_expression = None;
    if !message_source.trim().is_empty() {
        let at = format!("{path}.messageExpression");
        let wrong = "messageExpression must evaluate to a string";
        if let Some(program) = expression(&env, message_source, &Type::String, wrong, &at, errors) {
            costs("estimated messageExpression cost", at, program.estimate().max, found, errors);
            message_expression = Some((program, message_source.to_owned()));
        }
    }
    found.count += 1;
    found.nesting = found.nesting.max(program.bindings());
    let message = rule.get("message").and_then(Value::as_str).map(str::trim).filter(|m| !m.is_empty());
    Some(Rule {
        program,
        text: source.trim().to_owned(),
        message: message.map(str::to_owned),
        message_expression,
        reason: text(rule, "/reason").to_owned(),
        field_path: paths::normalize(text(rule, "/fieldPath"), schema).unwrap_or_default(),
        uses_old,
        optional_old,
    })
}

fn costs(what: &str, path: String, cost: u64, found: &mut Found, errors: &mut FieldErrors) {
    if cost > RULE_LIMIT {
        errors.forbidden(&path, &over(what, cost, RULE_LIMIT));
    }
    found.costs.push((path, cost));
}
