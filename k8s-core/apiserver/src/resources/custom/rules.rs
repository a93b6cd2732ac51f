//! Everything that a version of a CustomResourceDefinition demands of its objects: the schema's own limits and its `x-kubernetes-validations`.
//!
//! What an update leaves as it was is not held against it, so that a definition may become stricter without making its objects unchangeable
//! (upstream's ratcheting); rules that compare with `oldSelf` are always asked.

use kube_cel::{
    CompiledSchema, ErrorKind, RootContext, Validator,
    cel::{ParseErrors, Program},
    compile_schema,
};
use serde_json::{Map, Value};

use super::{
    budget::{self, Shape, Size},
    check::Check,
};
use crate::{invalid::FieldErrors, value::text};

/// Rules with more operations are compiled and run on a stack of their own.
const SMALL: usize = 128;
/// Rules with more steps are run where nobody waits for them.
const HEAVY: u64 = 20_000;
/// The stack for large rules, bytes.
const STACK: usize = 16 << 20;

/// What a definition's version demands of its objects.
#[derive(Debug)]
pub(crate) struct Rules {
    check: Check,
    expressions: Option<Expressions>,
}

struct Expressions {
    compiled: CompiledSchema,
    context: RootContext,
    /// Each rule with its shape.
    shapes: Vec<(String, Shape)>,
    large: bool,
}

impl std::fmt::Debug for Expressions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expressions").field("shapes", &self.shapes).finish_non_exhaustive()
    }
}

/// A rule as a schema has it.
struct Found<'a> {
    path: String,
    rule: &'a Value,
    /// How many lists and maps it is inside of: it is run once for each of their elements.
    loops: u32,
}

fn find<'a>(schema: &'a Value, path: &str, loops: u32, out: &mut Vec<Found<'a>>) {
    let Some(map) = schema.as_object() else { return };
    let rules = map.get("x-kubernetes-validations").and_then(Value::as_array);
    for (i, rule) in rules.into_iter().flatten().enumerate() {
        out.push(Found { path: format!("{path}.x-kubernetes-validations[{i}]"), rule, loops });
    }
    for (name, field) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        find(field, &format!("{path}.properties[{name}]"), loops, out);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get(key) {
            find(inner, &format!("{path}.{key}"), loops + 1, out);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in map.get(key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            find(inner, &format!("{path}.{key}[{i}]"), loops, out);
        }
    }
}

/// Runs something with a stack for deep expressions. `None` when it cannot be run, or panics: a dependency's parser is not trusted here.
fn with_large_stack<T: Send>(f: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, f).ok()?.join().ok()
    })
}

/// Whether an expression in CEL can be parsed; else, why not.
pub(crate) fn compiles(expression: &str) -> Result<(), String> {
    match with_large_stack(|| Program::compile(expression).map(|_| ()).map_err(|e| describe(&e))) {
        Some(result) => result,
        None => Err("the expression cannot be parsed".into()),
    }
}

impl Rules {
    /// Compiles what a schema demands; problems are reported below `path`.
    pub(crate) fn new(
        schema: &Value,
        path: &str,
        (group, version, kind): (&str, &str, &str),
        errors: &mut FieldErrors,
    ) -> Self {
        let check = Check::new(schema, path, errors);
        let mut found = Vec::new();
        find(schema, path, 0, &mut found);
        if found.is_empty() {
            return Rules { check, expressions: None };
        }
        let context = RootContext {
            api_version: format!("{group}/{version}"),
            api_group: group.to_owned(),
            kind: kind.to_owned(),
        };
        let compiled = with_large_stack(|| {
            let mut problems = FieldErrors::default();
            let mut shapes = Vec::new();
            for rule in &found {
                rule.compile(&mut shapes, &mut problems);
            }
            let compiled = problems.is_empty().then(|| compile_schema(schema));
            (compiled, shapes, problems)
        });
        let Some((compiled, shapes, problems)) = compiled else {
            errors.invalid(path, "", "the rules in x-kubernetes-validations cannot be compiled");
            return Rules { check, expressions: None };
        };
        errors.append(problems);
        let large = shapes.iter().any(|(_, shape)| shape.is_larger_than(SMALL as u64));
        let expressions = compiled.map(|compiled| Expressions { compiled, context, shapes, large });
        Rules { check, expressions }
    }

    /// Whether checking an object may take so long that others should not wait for it.
    pub(crate) fn is_heavy(&self, object: &Value, old: Option<&Value>) -> bool {
        let Some(expressions) = &self.expressions else { return false };
        let size = Size::of(object, old);
        let steps = expressions.shapes.iter().filter_map(|(_, shape)| shape.steps(size));
        steps.fold(0, u64::saturating_add) > HEAVY
    }

    /// Checks an object, or an update of `old`.
    pub(crate) fn check(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let mut found = FieldErrors::default();
        self.check.object(object, &mut found);
        if let Some(old) = old {
            found.retain(|path| !is_unchanged(object, old, path));
        }
        let broken = !found.is_empty();
        errors.append(found);
        let Some(expressions) = &self.expressions else { return };
        if broken {
            errors.invalid(
                "<nil>",
                Value::Null,
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            );
        } else {
            expressions.check(object, old, errors);
        }
    }
}

impl Found<'_> {
    fn compile(&self, shapes: &mut Vec<(String, Shape)>, errors: &mut FieldErrors) {
        let path = &self.path;
        let rule = text(self.rule, "/rule");
        if rule.trim().is_empty() {
            errors.required(format!("{path}.rule"), "rule is not specified");
            return;
        }
        let (message, message_expression) = (self.rule.get("message"), text(self.rule, "/messageExpression"));
        if self.rule.get("optionalOldSelf").is_some() {
            errors.forbidden(
                format!("{path}.optionalOldSelf"),
                "is not supported by this server: write two rules, one with oldSelf and one without",
            );
        }
        if message.is_some_and(|m| m.as_str().unwrap_or_default().trim().is_empty()) {
            errors.invalid(
                format!("{path}.message"),
                message.cloned().unwrap_or_default(),
                "message must be non-empty if specified",
            );
        }
        let reasons =
            ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];
        let reason = text(self.rule, "/reason");
        if !reason.is_empty() && !reasons.contains(&reason) {
            errors.not_supported(format!("{path}.reason"), reason, &reasons);
        }
        for (field, expression) in [("rule", rule), ("messageExpression", message_expression)] {
            if expression.trim().is_empty() {
                continue;
            }
            let place = format!("{path}.{field}");
            if let Err(why) = budget::check_text(expression) {
                errors.invalid(place, expression, why);
                continue;
            }
            match Program::compile(expression) {
                Ok(program) => {
                    let unknown = unknown_variables(&program);
                    if unknown.is_empty() {
                        let shape = Shape::of(program.expression(), self.loops);
                        shapes.push((expression.to_owned(), shape));
                    } else {
                        let what = format!(
                            "compilation failed: ERROR: undeclared reference to '{}' (in container '')",
                            unknown.join("', '")
                        );
                        errors.invalid(place, expression, what);
                    }
                }
                Err(e) => errors.invalid(place, expression, format!("compilation failed: {}", describe(&e))),
            }
        }
    }
}

/// The variables of a rule that none has a value for.
fn unknown_variables(program: &Program) -> Vec<String> {
    const KNOWN: [&str; 5] = ["self", "oldSelf", "apiVersion", "apiGroup", "kind"];
    /// Names that look like variables: types, and the first parts of functions' names.
    const NAMES: [&str; 20] = [
        "int",
        "uint",
        "double",
        "bool",
        "string",
        "bytes",
        "list",
        "map",
        "type",
        "null_type",
        "timestamp",
        "duration",
        "optional",
        "sets",
        "math",
        "format",
        "lists",
        "strings",
        "base64",
        "jsonpatch",
    ];
    let references = program.references();
    let mut unknown: Vec<String> = references
        .variables()
        .into_iter()
        .filter(|name| !KNOWN.contains(name) && !NAMES.contains(name) && !name.starts_with('@'))
        .filter(|name| !is_bound(program.expression(), name))
        .map(str::to_owned)
        .collect();
    unknown.sort();
    unknown
}

/// Whether a loop somewhere in an expression gives a name its value.
fn is_bound(expression: &kube_cel::cel::common::ast::IdedExpr, name: &str) -> bool {
    use kube_cel::cel::common::ast::Expr;
    let any = |parts: &[kube_cel::cel::common::ast::IdedExpr]| parts.iter().any(|part| is_bound(part, name));
    match &expression.expr {
        Expr::Comprehension(c) => {
            c.iter_var == name
                || c.accu_var == name
                || c.iter_var2.as_deref() == Some(name)
                || [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result]
                    .into_iter()
                    .any(|part| is_bound(part, name))
        }
        Expr::Call(call) => {
            call.target.as_ref().is_some_and(|target| is_bound(target, name)) || any(&call.args)
        }
        Expr::List(list) => any(&list.elements),
        Expr::Select(select) => is_bound(&select.operand, name),
        // What a map or a struct holds is not looked into: better a rule too many than one too few.
        Expr::Map(_) | Expr::Struct(_) => true,
        _ => false,
    }
}

fn describe(errors: &ParseErrors) -> String {
    errors.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Expressions {
    fn check(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let size = Size::of(object, old);
        if let Some((rule, _)) = self.shapes.iter().find(|(_, shape)| !shape.fits(size)) {
            errors.invalid(
                "<nil>",
                Value::Null,
                format!("call cost exceeds limit for rule: {rule}: no further validation rules will be run; make the object smaller, or the rule simpler"),
            );
            return;
        }
        let run = || {
            let validator = Validator::new();
            validator.validate_compiled_with_context(&self.compiled, object, old, Some(&self.context))
        };
        let done = if self.large { with_large_stack(run) } else { Some(run()) };
        let broken = match done {
            Some(Ok(())) => return,
            Some(Err(broken)) => broken.into_vec(),
            None => {
                errors.invalid("<nil>", Value::Null, "the validation rules could not be run");
                return;
            }
        };
        for error in broken {
            let path = error.field_path.as_str();
            let transition = error.rule.contains("oldSelf");
            if !transition && old.is_some_and(|old| is_unchanged(object, old, path)) {
                continue;
            }
            let place = if path.is_empty() { "<nil>" } else { path };
            let value = lookup(object, path);
            let message = match error.kind {
                ErrorKind::ValidationFailure => error.message,
                _ => format!("rule evaluation error: {}: {}", error.rule, error.message),
            };
            match error.reason.as_deref() {
                Some("FieldValueRequired") => errors.required(place, &message),
                Some("FieldValueForbidden") => errors.forbidden(place, &message),
                Some("FieldValueDuplicate") => errors.duplicate(place, value.cloned().unwrap_or_default()),
                _ => errors.invalid(place, value.map_or("object", super::check::type_name), message),
            }
        }
    }
}

/// Whether what an error is about is as it was before. Of a missing field, that is the object that misses it.
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

/// The value at a field path (`spec.items[0].name`).
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(schema: Value) -> (Rules, Vec<String>) {
        let mut errors = FieldErrors::default();
        let rules = Rules::new(&schema, "schema", ("g.example.com", "v1", "Thing"), &mut errors);
        (rules, errors.lines())
    }

    fn breaches(rules: &Rules, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = FieldErrors::default();
        rules.check(object, old, &mut errors);
        errors.lines()
    }

    #[test]
    fn rules_hold_and_transitions_are_compared() {
        let (rules, problems) = rules(json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"min": {"type": "integer"}, "max": {"type": "integer"},
                "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]}},
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is above max'"},
                {"rule": "!has(self.name) || self.name != 'x'", "reason": "FieldValueForbidden", "message": "not x"}]}}}));
        assert!(problems.is_empty(), "{problems:?}");
        let object = |min: i64, max: i64, name: &str| json!({"spec": {"min": min, "max": max, "name": name}});
        assert!(breaches(&rules, &object(1, 2, "a"), None).is_empty());
        assert_eq!(
            breaches(&rules, &object(3, 2, "a"), None),
            ["spec: Invalid value: \"object\": min 3 is above max"]
        );
        assert_eq!(breaches(&rules, &object(1, 2, "x"), None), ["spec: Forbidden: not x"]);
        assert_eq!(
            breaches(&rules, &object(1, 2, "b"), Some(&object(1, 2, "a"))),
            ["spec.name: Invalid value: \"string\": is immutable"]
        );
    }

    #[test]
    fn what_an_update_leaves_is_not_held_against_it() {
        let (rules, _) = rules(
            json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "old": {"type": "string", "maxLength": 2}, "n": {"type": "integer"},
            "list": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]}}}}}}),
        );
        let old = json!({"spec": {"old": "long", "n": 1, "list": ["bad"]}});
        assert_eq!(breaches(&rules, &old, None).len(), 2);
        let mut new = old.clone();
        new["spec"]["n"] = 2.into();
        assert!(breaches(&rules, &new, Some(&old)).is_empty());
        new["spec"]["old"] = "longer".into();
        assert_eq!(
            breaches(&rules, &new, Some(&old)).first().unwrap(),
            "spec.old: Too long: may not be more than 2 bytes"
        );
    }

    #[test]
    fn bad_rules_are_found_when_the_definition_is_made() {
        let bad = |rule: &str| {
            let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}]});
            rules(schema).1.join("; ")
        };
        assert!(bad("self.a >").starts_with(
            "schema.x-kubernetes-validations[0].rule: Invalid value: \"self.a >\": compilation failed: "
        ));
        assert!(bad("object.a > 1").contains("undeclared reference to 'object'"));
        assert!(bad(&"(".repeat(5000)).contains("nested deeper"));
        assert!(bad("").contains("Required value"));
        assert_eq!(
            bad("self.l.all(x, x.y.exists(z, z > 1)) && quantity('1Gi').isGreaterThan(quantity('1Mi'))"),
            ""
        );
    }

    #[test]
    fn a_rule_that_would_run_for_hours_is_not_run() {
        let (rules, problems) = rules(
            json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
            "x-kubernetes-validations": [{"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b > -c)))"}]}),
        );
        assert!(problems.is_empty());
        assert!(breaches(&rules, &json!({"l": vec![1; 20]}), None).is_empty());
        let refused = breaches(&rules, &json!({"l": vec![1; 100_000]}), None);
        assert!(refused[0].contains("call cost exceeds limit for rule"), "{refused:?}");
    }
}
