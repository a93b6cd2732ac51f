//! HorizontalPodAutoscalers.

use serde_json::{Value, json};

use super::{
    BASE, NameRule, Strategy,
    rule::{At, Check, Rule, check, quantity},
};
use crate::{
    invalid::FieldErrors,
    value::{child, default, default_text, list},
};

/// Defaults and validation of HorizontalPodAutoscalers (autoscaling/v2).
pub static HORIZONTAL_POD_AUTOSCALER: Strategy = Strategy {
    default: |hpa| {
        let Some(spec) = child(hpa, "spec") else { return };
        default(spec, "minReplicas", 1);
        if list(spec, "/metrics").is_empty() {
            let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
            spec["metrics"] = cpu;
        }
        if let Some(behavior) = spec.get_mut("behavior").filter(|b| b.is_object()) {
            default_rules(behavior, "scaleUp", Some(0), &[("Pods", 4), ("Percent", 100)]);
            default_rules(behavior, "scaleDown", None, &[("Percent", 100)]);
        }
    },
    create: |hpa| {
        hpa["status"] = json!({"desiredReplicas": 0});
    },
    validate: |hpa, errors| check(hpa, RULES, errors),
    validate_status: |new, _, errors| {
        const STATUS: &[Rule] = &[
            Rule("status.currentReplicas", &[Check::AtLeast(0)]),
            Rule("status.desiredReplicas", &[Check::AtLeast(0)]),
        ];
        check(new, STATUS, errors);
    },
    ..BASE
};

/// Sets the defaults of one scaling direction.
fn default_rules(behavior: &mut Value, direction: &str, window: Option<i64>, policies: &[(&str, i64)]) {
    let Some(rules) = child(behavior, direction) else { return };
    if let Some(window) = window {
        default(rules, "stabilizationWindowSeconds", window);
    }
    default_text(rules, "selectPolicy", "Max");
    if list(rules, "/policies").is_empty() {
        let policies: Vec<Value> =
            policies.iter().map(|(kind, n)| json!({"type": kind, "value": n, "periodSeconds": 15})).collect();
        rules["policies"] = policies.into();
    }
}

const RULES: &[Rule] = &[
    Rule("spec.scaleTargetRef", REFERENCE),
    Rule("spec.minReplicas", &[Check::AtLeast(1)]),
    Rule("spec.maxReplicas", &[Check::Above(0)]),
    Rule("spec", &[Check::Is(check_range)]),
    Rule("spec.metrics[*]", &[Check::Has(METRIC)]),
    Rule("spec.behavior.scaleUp", &[Check::Has(SCALING)]),
    Rule("spec.behavior.scaleDown", &[Check::Has(SCALING)]),
];

fn check_range(spec: &At<'_>, errors: &mut FieldErrors) {
    let (least, most) = (spec.integer("minReplicas").unwrap_or(1), spec.integer("maxReplicas").unwrap_or(0));
    if most < least {
        spec.field("maxReplicas").invalid(errors, "must be greater than or equal to `minReplicas`");
    }
}

const REFERENCE: &[Check] = &[Check::Has(&[
    Rule("kind", &[Check::Required(""), Check::Name(NameRule::Segment)]),
    Rule("name", &[Check::Required(""), Check::Name(NameRule::Segment)]),
])];

const IDENTIFIER: &[Check] = &[Check::Has(&[
    Rule("name", &[Check::Required("must specify a metric name"), Check::Name(NameRule::Segment)]),
    Rule("selector", &[Check::Selector]),
])];

/// Metric sources by `type`.
const SOURCES: &[(&str, &str)] = &[
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

const METRIC: &[Rule] = &[
    Rule(
        "type",
        &[
            Check::Required("must specify a metric source type"),
            Check::OneOf(&["ContainerResource", "External", "Object", "Pods", "Resource"]),
        ],
    ),
    Rule(
        "",
        &[Check::Member(
            "type",
            SOURCES,
            "must populate information for the given metric source",
            "must populate the given metric source only",
        )],
    ),
    Rule("object.describedObject", REFERENCE),
    Rule("object.metric", IDENTIFIER),
    Rule("object.target", &[Check::Has(TARGET), Check::Is(check_object_target)]),
    Rule("external.metric", IDENTIFIER),
    Rule("external.target", &[Check::Has(TARGET), Check::Is(check_external_target)]),
    Rule("pods.metric", IDENTIFIER),
    Rule("pods.target", &[Check::Has(TARGET), Check::Is(check_pods_target)]),
    Rule("resource.name", &[Check::Required("must specify a resource name")]),
    Rule("resource.target", &[Check::Has(TARGET), Check::Is(check_resource_target)]),
    Rule("containerResource.name", &[Check::Required("must specify a resource name")]),
    Rule("containerResource.container", &[Check::Required("must specify a container")]),
    Rule("containerResource.target", &[Check::Has(TARGET), Check::Is(check_resource_target)]),
];

const TARGET: &[Rule] = &[
    Rule(
        "type",
        &[
            Check::Required("must specify a metric target type"),
            Check::OneOf(&["Utilization", "Value", "AverageValue"]),
        ],
    ),
    Rule("value", &[Check::Is(positive)]),
    Rule("averageValue", &[Check::Is(positive)]),
    Rule("averageUtilization", &[Check::AtLeast(1)]),
];

fn positive(at: &At<'_>, errors: &mut FieldErrors) {
    if quantity(at.value).is_some_and(|q| q.is_negative() || q.is_zero()) {
        at.invalid(errors, "must be positive");
    }
}

fn has(at: &At<'_>, field: &str) -> bool {
    at.field(field).is_set()
}

fn check_object_target(target: &At<'_>, errors: &mut FieldErrors) {
    if !has(target, "value") && !has(target, "averageValue") {
        errors.required(target.field("averageValue"), "must set either a target value or averageValue");
    }
}

fn check_external_target(target: &At<'_>, errors: &mut FieldErrors) {
    match (has(target, "value"), has(target, "averageValue")) {
        (true, true) => {
            errors.forbidden(target.field("value"), "may not set both a target value and averageValue");
        }
        (false, false) => errors.required(
            target.field("averageValue"),
            "must set either a target value for metric or a per-pod target",
        ),
        _ => {}
    }
}

fn check_pods_target(target: &At<'_>, errors: &mut FieldErrors) {
    if !has(target, "averageValue") {
        errors.required(target.field("averageValue"), "must specify a positive target averageValue");
    }
}

fn check_resource_target(target: &At<'_>, errors: &mut FieldErrors) {
    match (has(target, "averageUtilization"), has(target, "averageValue")) {
        (true, true) => errors.forbidden(
            target.field("averageValue"),
            "may not set both a target raw value and a target utilization",
        ),
        (false, false) => errors.required(
            target.field("averageUtilization"),
            "must set either a target raw value or a target utilization",
        ),
        _ => {}
    }
}

const SCALING: &[Rule] = &[
    Rule("stabilizationWindowSeconds", &[Check::Between(0, 3600)]),
    Rule("selectPolicy", &[Check::OneOf(&["Disabled", "Max", "Min"])]),
    Rule("tolerance", &[Check::NotNegative]),
    Rule("policies", &[Check::Required("must specify at least one Policy")]),
    Rule("policies[*].type", &[Check::Required(""), Check::OneOf(&["Percent", "Pods"])]),
    Rule("policies[*].value", &[Check::Above(0)]),
    Rule("policies[*].periodSeconds", &[Check::Above(0), Check::Between(1, 1800)]),
];
