//! PodDisruptionBudgets, LimitRanges and ResourceQuotas.

use serde_json::{Value, json};

use super::{
    BASE, Strategy,
    rule::{At, Check, Rule, at_most_all, check, quantity},
};
use crate::{
    invalid::{FieldErrors, names},
    value::list,
};

/// Defaults and validation of PodDisruptionBudgets.
pub static POD_DISRUPTION_BUDGET: Strategy = Strategy {
    generation: true,
    create: |budget| {
        budget["status"] =
            json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
    },
    validate: |budget, errors| {
        const RULES: &[Rule] = &[
            Rule(
                "spec",
                &[Check::Is(|spec, errors| {
                    if spec.field("minAvailable").is_set() && spec.field("maxUnavailable").is_set() {
                        spec.invalid(errors, "minAvailable and maxUnavailable cannot be both set");
                    }
                })],
            ),
            Rule("spec.minAvailable", &[Check::Share, Check::Is(at_most_all)]),
            Rule("spec.maxUnavailable", &[Check::Share, Check::Is(at_most_all)]),
            Rule("spec.selector", &[Check::Selector]),
            Rule("spec.unhealthyPodEvictionPolicy", &[Check::OneOf(&["AlwaysAllow", "IfHealthyBudget"])]),
        ];
        check(budget, RULES, errors);
    },
    validate_status: |new, _, errors| {
        const RULES: &[Rule] = &[
            Rule("status.disruptionsAllowed", &[Check::AtLeast(0)]),
            Rule("status.currentHealthy", &[Check::AtLeast(0)]),
            Rule("status.desiredHealthy", &[Check::AtLeast(0)]),
            Rule("status.expectedPods", &[Check::AtLeast(0)]),
            Rule("status.conditions", &[Check::UniqueBy(&["type"])]),
        ];
        check(new, RULES, errors);
    },
    ..BASE
};

/// Validates a resource name: qualified, with a domain unless it is a system resource.
fn check_resource_name(at: &At<'_>, name: &str, known: &[&str], errors: &mut FieldErrors) {
    if !names::is_qualified(name) {
        errors.invalid(at, name, super::rule::QUALIFIED);
    } else if !name.contains('/') && !known.contains(&name) && !name.starts_with("hugepages-") {
        errors.invalid(at, name, "must be a standard resource type or fully qualified");
    }
}

/// Defaults and validation of LimitRanges.
pub static LIMIT_RANGE: Strategy = Strategy {
    generation: true,
    default: |range| {
        let limits = range.pointer_mut("/spec/limits").and_then(Value::as_array_mut);
        for limit in limits.into_iter().flatten().filter(|l| l["type"] == "Container") {
            default_limit(limit);
        }
    },
    validate: |range, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.limits", &[Check::UniqueBy(&["type"])]),
            Rule("spec.limits[*].type", &[Check::Required(""), Check::Qualified]),
            Rule("spec.limits[*]", &[Check::Is(check_limit)]),
        ];
        check(range, RULES, errors);
    },
    ..BASE
};

/// Defaulting: `default` falls back to `max`; `defaultRequest` falls back to `default`, then `min`.
fn default_limit(limit: &mut Value) {
    let fields =
        |limit: &Value, name: &str| limit.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let (max, min) = (fields(limit, "max"), fields(limit, "min"));
    let (mut usual, mut requested) = (fields(limit, "default"), fields(limit, "defaultRequest"));
    for (name, most) in max {
        usual.entry(name).or_insert(most);
    }
    for (name, value) in usual.iter().chain(&min) {
        requested.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (name, value) in [("default", usual), ("defaultRequest", requested)] {
        if !value.is_empty() {
            limit[name] = value.into();
        }
    }
}

const LIMITED: &[&str] = &["cpu", "memory", "ephemeral-storage", "storage"];

fn check_limit(limit: &At<'_>, errors: &mut FieldErrors) {
    let kind = limit.text("type");
    if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if limit.field(field).is_set() {
                errors.forbidden(limit.field(field), "may not be specified when `type` is 'Pod'");
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let Some(map) = limit.value.get(field).and_then(Value::as_object) else { continue };
        for name in map.keys() {
            let at = limit.field(field);
            check_resource_name(&at.key(name), name, LIMITED, errors);
            if !seen.contains(&name.as_str()) {
                seen.push(name);
            }
        }
    }
    let storage = |field| !limit.field(field).field("storage").value.is_null();
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        errors.required(
            limit.field("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    for name in seen {
        let amount = |field: &str| limit.value.get(field).and_then(|m| m.get(name)).and_then(quantity);
        let (min, max) = (amount("min"), amount("max"));
        let (usual, requested) = (amount("default"), amount("defaultRequest"));
        let mut above = |field: &str, low: &Option<_>, what: &str, high: &Option<_>, than: &str| {
            if let (Some(low), Some(high)) = (low, high)
                && low > high
            {
                let map = limit.field(field);
                let at = map.key(name);
                at.invalid(errors, format!("{what} value {low} is greater than {than} value {high}"));
            }
        };
        above("min", &min, "min", &max, "max");
        above("defaultRequest", &min, "min", &requested, "default request");
        above("defaultRequest", &requested, "default request", &max, "max");
        above("defaultRequest", &requested, "default request", &usual, "default limit");
        above("default", &min, "min", &usual, "default");
        above("default", &usual, "default", &max, "max");
        if let Some(ratio) = amount("maxLimitRequestRatio") {
            let map = limit.field("maxLimitRequestRatio");
            let at = map.key(name);
            if ratio.milli() < 1000 {
                at.invalid(errors, format!("ratio {ratio} is less than 1"));
            }
        }
    }
}

/// Defaults and validation of ResourceQuotas.
pub static RESOURCE_QUOTA: Strategy = Strategy {
    returns_deleted: true,
    create: |quota| quota["status"] = json!({}),
    validate: |quota, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.hard", &[Check::Is(check_amounts)]),
            Rule("spec.scopes", &[Check::Is(check_scopes)]),
            Rule("spec.scopeSelector.matchExpressions[*]", &[Check::Is(check_scope_expression)]),
        ];
        check(quota, RULES, errors);
    },
    validate_update: |new, old, errors| {
        let scopes = |quota: &Value| {
            let mut scopes: Vec<String> = list(quota, "/spec/scopes")
                .iter()
                .filter_map(|s| s.as_str().map(ToOwned::to_owned))
                .collect();
            scopes.sort();
            scopes
        };
        if scopes(new) != scopes(old) {
            errors.invalid("spec.scopes", list(new, "/spec/scopes").to_vec(), "field is immutable");
        }
    },
    validate_status: |new, _, errors| {
        const RULES: &[Rule] = &[
            Rule("status.hard", &[Check::Is(check_amounts)]),
            Rule("status.used", &[Check::Is(check_amounts)]),
        ];
        check(new, RULES, errors);
    },
    ..BASE
};

const COUNTED: &[&str] = &[
    "bindings",
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const MEASURED: &[&str] = &[
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
];

fn check_amounts(amounts: &At<'_>, errors: &mut FieldErrors) {
    for (name, amount) in amounts.entries() {
        if !names::is_qualified(name) {
            errors.invalid(amount, name, super::rule::QUALIFIED);
        } else if !name.contains('/')
            && !COUNTED.contains(&name)
            && !MEASURED.contains(&name)
            && !["hugepages-", "requests.hugepages-", "limits.hugepages-"].iter().any(|p| name.starts_with(p))
        {
            errors.invalid(amount, name, "must be a standard resource for quota");
        }
        let Some(value) = quantity(amount.value) else { continue };
        if value.is_negative() {
            amount.invalid(errors, "must be greater than or equal to 0");
        }
        if (COUNTED.contains(&name) || name.starts_with("count/")) && value.milli() % 1000 != 0 {
            amount.invalid(errors, "must be an integer");
        }
    }
}

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

fn check_scopes(scopes: &At<'_>, errors: &mut FieldErrors) {
    for scope in scopes.items().filter(|s| !SCOPES.contains(&s.as_text())) {
        errors.invalid(scopes, scope.as_text(), "unsupported scope");
    }
    let has = |name| scopes.items().any(|s| s.as_text() == name);
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(one) && has(other) {
            scopes.invalid(errors, "conflicting scopes");
        }
    }
}

fn check_scope_expression(at: &At<'_>, errors: &mut FieldErrors) {
    let (scope, operator, values) = (at.text("scopeName"), at.text("operator"), at.field("values"));
    if !SCOPES.contains(&scope) {
        at.field("scopeName").invalid(errors, "unsupported scope");
    }
    let only_exists = !["PriorityClass", "VolumeAttributesClass"].contains(&scope);
    if only_exists && operator != "Exists" && SCOPES.contains(&scope) {
        at.field("operator").invalid(
            errors,
            "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
        );
    }
    match operator {
        "In" | "NotIn" if !values.is_set() => {
            errors.required(
                values,
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            );
        }
        "Exists" | "DoesNotExist" if values.is_set() => {
            values.invalid(
                errors,
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => at.field("operator").invalid(errors, "not a valid selector operator"),
    }
}
