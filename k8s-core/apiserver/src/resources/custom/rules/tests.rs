use serde_json::json;

use super::*;

fn rules(schema: &Value) -> (Rules, Vec<String>) {
    let mut errors = FieldErrors::default();
    let rules = Rules::new(schema, "schema", &mut errors);
    (rules, errors.lines())
}

/// Compiles valid rules.
fn good(schema: &Value) -> Rules {
    let (rules, problems) = rules(schema);
    assert!(problems.is_empty(), "{problems:?}");
    rules
}

fn breaches(rules: &Rules, object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut errors = FieldErrors::default();
    rules.check(object, old, &mut errors);
    errors.lines()
}

/// Returns the errors of one rule on an object with some fields.
fn problems_of(rule: Value) -> String {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": [rule],
        "properties": {"a": {"type": "integer"}, "s": {"type": "string", "maxLength": 10},
            "l": {"type": "array", "maxItems": 10, "items": {"type": "object", "properties": {"y": {"type": "array", "maxItems": 10, "items": {"type": "integer"}}}}}}}}});
    let path = "schema.properties[spec].x-kubernetes-validations[0].";
    rules(&schema).1.join("; ").replace(path, "")
}

#[test]
fn rules_hold_and_transitions_are_compared() {
    let rules = good(&json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"},
            "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]}},
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is above max'"},
            {"rule": "!has(self.name) || self.name != 'x'", "reason": "FieldValueForbidden", "message": "not x"}]}}}));
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
    let rules = good(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "old": {"type": "string", "maxLength": 2}, "n": {"type": "integer"},
        "list": {"type": "array", "maxItems": 9, "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]}}}}}}));
    let old = json!({"spec": {"old": "long", "n": 1, "list": ["bad"]}});
    assert_eq!(breaches(&rules, &old, None).len(), 2);
    let mut new = old.clone();
    new["spec"]["n"] = 2.into();
    assert!(breaches(&rules, &new, Some(&old)).is_empty());
    new["spec"]["list"] = json!(["bad", "new"]);
    assert_eq!(
        breaches(&rules, &new, Some(&old)),
        ["spec.list[0]: Invalid value: \"string\": failed rule: self != 'bad'"],
        "elements of a list that has no keys are not known again"
    );
    new["spec"]["old"] = "longer".into();
    assert_eq!(breaches(&rules, &new, Some(&old))[0], "spec.old: Too long: may not be more than 2 bytes");
}

#[test]
fn bad_rules_are_found_when_the_definition_is_made() {
    for (rule, want) in [
        (
            json!({"rule": "self.a >"}),
            "rule: Invalid value: \"self.a >\": compilation failed: ERROR: <input>:1:9: Syntax error: mismatched input '<EOF>' expecting {",
        ),
        (
            json!({"rule": "object.a > 1"}),
            "rule: Invalid value: \"object.a > 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'object' (in container '')\n | object.a > 1\n | ^",
        ),
        (
            json!({"rule": "self.b > 1"}),
            "rule: Invalid value: \"self.b > 1\": compilation failed: ERROR: <input>:1:5: undefined field 'b'\n",
        ),
        (
            json!({"rule": "self.a"}),
            "rule: Invalid value: \"self.a\": cel expression must evaluate to a bool",
        ),
        (
            json!({"rule": "self.a > 'x'"}),
            "rule: Invalid value: \"self.a > 'x'\": compilation failed: ERROR: <input>:1:8: found no matching overload for '_>_' applied to '(int, string)'\n",
        ),
        (json!({"rule": "("}), "rule: Invalid value: \"(\": compilation failed: ERROR: "),
        (json!({"rule": "(".repeat(5000)}), "rule: Invalid value: \"((((("),
        (json!({"rule": " "}), "rule: Required value: rule is not specified"),
        (
            json!({"rule": "true", "message": " "}),
            "message: Invalid value: \" \": message must be non-empty if specified",
        ),
        (
            json!({"rule": "true", "message": "a\nb"}),
            "message: Invalid value: \"a\\nb\": message must not contain line breaks",
        ),
        (json!({"rule": "true\n"}), ""),
        (
            json!({"rule": "true &&\ntrue"}),
            "message: Required value: message must be specified if rule contains line breaks",
        ),
        (
            json!({"rule": "true", "messageExpression": " "}),
            "messageExpression: Required value: messageExpression must be non-empty if specified",
        ),
        (
            json!({"rule": "true", "messageExpression": "1"}),
            "messageExpression: Invalid value: \"1\": messageExpression must evaluate to a string",
        ),
        (
            json!({"rule": "true", "messageExpression": "self.z"}),
            "messageExpression: Invalid value: \"self.z\": compilation failed: ",
        ),
        (
            json!({"rule": "true", "reason": "Because"}),
            "reason: Unsupported value: \"Because\": supported values: \"FieldValueDuplicate\"",
        ),
        (
            json!({"rule": "true", "fieldPath": ".z"}),
            "fieldPath: Invalid value: \".z\": fieldPath must be a valid path",
        ),
        (json!({"rule": "true", "fieldPath": ".a"}), ""),
        (
            json!({"rule": "true", "optionalOldSelf": true}),
            "optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
        ),
        (
            json!({"rule": "self.l.all(x, x.y.exists(z, z > 1)) && quantity('1Gi').isGreaterThan(quantity('1Mi'))"}),
            "",
        ),
    ] {
        let have = problems_of(rule.clone());
        assert!(if want.is_empty() { have.is_empty() } else { have.starts_with(want) }, "{rule}\n{have}");
    }
    let junctor = json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"x-kubernetes-validations": [{"rule": "true"}]}]}}});
    assert_eq!(
        rules(&junctor).1,
        ["schema.properties[a].anyOf[0].x-kubernetes-validations: Forbidden: must be empty to be structural"]
    );
}

#[test]
fn a_rule_that_may_cost_too_much_is_refused() {
    let schema = |bound: Value| {
        json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}, "maxItems": bound}},
        "x-kubernetes-validations": [{"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b > -c)))"}]})
    };
    let advice = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
    let (_, problems) = rules(&schema(Value::Null));
    assert_eq!(
        problems,
        [
            format!("schema.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x {advice}"),
            "schema.x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema".to_owned(),
            format!("schema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x {advice}"),
        ]
    );
    good(&schema(json!(50)));
    // A rule on list elements runs for each element.
    let inner = json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]+$')"}]}});
    let nested = json!({"type": "object", "properties": {"l": inner}});
    assert!(rules(&nested).1[0].contains("estimated rule cost exceeds budget by factor of more than 100x"));
    let mut bounded = nested;
    bounded["properties"]["l"]["maxItems"] = 100.into();
    bounded["properties"]["l"]["items"]["maxLength"] = 64.into();
    good(&bounded);
}

#[test]
fn a_rule_that_would_run_for_hours_is_stopped() {
    // Stored definitions are not validated again, so the meter must stop them.
    let (rules, _) = rules(
        &json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
        "x-kubernetes-validations": [{"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b > -c)))"}, {"rule": "true == false"}]}),
    );
    assert_eq!(breaches(&rules, &json!({"l": vec![1; 20]}), None).len(), 1);
    let refused = breaches(&rules, &json!({"l": vec![1; 100_000]}), None);
    assert_eq!(
        refused,
        [
            "<nil>: Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: self.l.all(a, self.l.all(b, self.l.all(c, a + b > -c)))"
        ]
    );
    assert!(rules.is_heavy(&json!({"l": vec![1; 1000]}), None));
    assert!(!rules.is_heavy(&json!({"l": [1]}), None));
}

#[test]
fn all_rules_of_an_object_share_a_budget() {
    let one = json!({"rule": "self.l.all(a, self.l.all(b, a <= b || true))"});
    let (rules, _) = rules(
        &json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
        "x-kubernetes-validations": vec![one; 40]}),
    );
    assert_eq!(breaches(&rules, &json!({"l": vec![1; 100]}), None), Vec::<String>::new());
    let refused = breaches(&rules, &json!({"l": vec![1; 300]}), None);
    assert_eq!(
        refused,
        [
            "<nil>: Invalid value: \"object\": validation failed due to running out of cost budget, no further validation rules will be run"
        ]
    );
}

#[test]
fn elements_of_keyed_lists_are_compared_with_what_they_were() {
    let list = |kind: &str, rule: &str| {
        json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 10, "x-kubernetes-list-type": kind, "x-kubernetes-list-map-keys": ["name", "port"],
            "items": {"type": "object", "required": ["name"], "x-kubernetes-validations": [{"rule": rule}],
                "properties": {"name": {"type": "string", "maxLength": 9}, "port": {"type": "integer", "default": 80}, "v": {"type": "integer"}}}}}})
    };
    let rules_ = good(&list("map", "self.v >= oldSelf.v"));
    let old = json!({"l": [{"name": "a", "port": 80, "v": 5}, {"name": "b", "port": 80, "v": 7}]});
    let moved = json!({"l": [{"name": "b", "port": 80, "v": 7}, {"name": "new", "port": 80, "v": 0}, {"name": "a", "v": 4}]});
    assert_eq!(
        breaches(&rules_, &moved, Some(&old)),
        ["l[2]: Invalid value: \"object\": failed rule: self.v >= oldSelf.v"]
    );
    assert!(breaches(&rules_, &moved, None).is_empty(), "nothing is compared with nothing");
    for kind in ["set", "atomic"] {
        let problems = rules(&list(kind, "self.v >= oldSelf.v")).1;
        assert_eq!(
            problems,
            [
                "schema.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self.v >= oldSelf.v\": oldSelf cannot be used on the uncorrelatable portion of the schema within schema.properties[l]"
            ]
        );
    }
    // Unchanged elements, matched by key, are exempt.
    let rules = good(&list("map", "self.v > 5"));
    let bad = json!({"l": [{"name": "x", "port": 80, "v": 9}, {"name": "a", "port": 80, "v": 5}]});
    assert!(breaches(&rules, &bad, Some(&old)).is_empty());
    assert_eq!(breaches(&rules, &bad, None).len(), 1);
}

#[test]
fn values_of_maps_are_compared_by_key() {
    let rules = good(&json!({"type": "object", "properties": {"m": {"type": "object", "maxProperties": 5,
        "additionalProperties": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "may not shrink"}]}}}}));
    let old = json!({"m": {"a": 5, "b": 1}});
    assert_eq!(
        breaches(&rules, &json!({"m": {"a": 4, "b": 2, "c": 0}}), Some(&old)),
        ["m[a]: Invalid value: \"integer\": may not shrink"]
    );
}

#[test]
fn an_old_value_may_be_optional() {
    let rules = good(
        &json!({"type": "object", "properties": {"n": {"type": "integer", "x-kubernetes-validations": [
        {"rule": "!oldSelf.hasValue() ? self == 1 : self == oldSelf.value() + 1", "optionalOldSelf": true, "message": "counts up"}]}}}),
    );
    let n = |n: i64| json!({"n": n});
    assert!(breaches(&rules, &n(1), None).is_empty());
    assert_eq!(breaches(&rules, &n(2), None), ["n: Invalid value: \"integer\": counts up"]);
    assert!(breaches(&rules, &n(2), Some(&n(1))).is_empty());
    assert_eq!(breaches(&rules, &n(4), Some(&n(2))).len(), 1);
    assert_eq!(breaches(&rules, &n(2), Some(&json!({}))).len(), 1, "the field is new");
}

#[test]
fn metadata_is_there_in_resources_and_nowhere_else() {
    let rule = |rule: &str| {
        json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}], "properties": {
        "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-validations": [{"rule": "self.kind == 'Pod' && self.metadata.name != ''"}]}}})
    };
    let rules_ = good(&rule(
        "self.metadata.name.startsWith('web') && self.kind == 'Thing' && self.apiVersion.startsWith('g/')",
    ));
    let object = |name: &str| {
        json!({"apiVersion": "g/v1", "kind": "Thing", "metadata": {"name": name, "labels": {"a": "b"}},
        "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}})
    };
    assert!(breaches(&rules_, &object("web-1"), None).is_empty());
    assert_eq!(breaches(&rules_, &object("db"), None).len(), 1);
    assert!(rules(&rule("has(self.metadata.labels)")).1[0].contains("undefined field 'labels'"));
    assert!(rules(&rule("self.template.metadata.uid == ''")).1[0].contains("undefined field 'uid'"));
}

#[test]
fn rules_are_told_at_their_field_path() {
    let rules = good(&json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [{"rule": "self.a.b > 0", "fieldPath": ".a.b", "reason": "FieldValueRequired", "message": "give some"}],
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "integer"}}}}}}}));
    assert_eq!(
        breaches(&rules, &json!({"spec": {"a": {"b": 0}}}), None),
        ["spec.a.b: Required value: give some"]
    );
    assert_eq!(
        breaches(&rules, &json!({"spec": {"a": {}}}), None),
        ["spec: Invalid value: \"object\": no such key: b evaluating rule: give some"]
    );
}

#[test]
fn rules_of_all_of_see_the_whole_value() {
    let rules = good(&json!({"type": "object", "properties": {"n": {"type": "integer", "allOf": [
        {"x-kubernetes-validations": [{"rule": "self > 1"}]}]}}}));
    assert_eq!(
        breaches(&rules, &json!({"n": 1}), None),
        ["n: Invalid value: \"integer\": failed rule: self > 1"]
    );
}

#[test]
fn a_message_that_cannot_be_made_is_replaced() {
    let rules = good(
        &json!({"type": "object", "properties": {"m": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "string", "maxLength": 5},
        "x-kubernetes-validations": [{"rule": "size(self) > 1", "messageExpression": "self['none']", "message": "more"}]}}}),
    );
    assert_eq!(breaches(&rules, &json!({"m": {"a": "b"}}), None), ["m: Invalid value: \"object\": more"]);
    assert_eq!(
        breaches(&rules, &json!({"m": {"none": "more!"}}), None),
        ["m: Invalid value: \"object\": more!"]
    );
}

#[test]
fn null_is_not_asked_and_int_or_string_is_either() {
    let rules = good(&json!({"type": "object", "properties": {
        "s": {"type": "string", "nullable": true, "x-kubernetes-validations": [{"rule": "self != ''"}]},
        "p": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "type(self) == int ? self < 5 : self.endsWith('%')"}]},
        "t": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "self < 5"}]}}}));
    assert!(breaches(&rules, &json!({"s": null, "p": 4}), None).is_empty());
    assert!(breaches(&rules, &json!({"p": "4%"}), None).is_empty());
    assert_eq!(breaches(&rules, &json!({"p": "4"}), None).len(), 1);
    assert_eq!(
        breaches(&rules, &json!({"t": "4"}), None),
        [
            "t: Invalid value: \"string\": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self < 5"
        ]
    );
}

#[test]
fn defaults_are_values_like_others() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "default": {"n": "x"}, "properties": {
        "n": {"type": "integer", "maximum": 5, "default": 9},
        "s": {"type": "string", "default": "bad", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self != 'bad'"}]},
        "good": {"type": "string", "default": "ok", "pattern": "^ok$"}}}}});
    let at = "schema.properties[spec]";
    assert_eq!(
        rules(&schema).1,
        [
            format!(
                "{at}.default.n: Invalid value: \"string\": {at}.default.n in body must be of type integer: \"string\""
            ),
            format!(
                "{at}.properties[n].default: Invalid value: 9: {at}.properties[n].default in body should be less than or equal to 5"
            ),
            format!("{at}.properties[s].default: Invalid value: \"string\": failed rule: self != 'bad'"),
        ]
    );
}
