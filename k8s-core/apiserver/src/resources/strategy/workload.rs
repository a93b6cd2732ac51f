//! ReplicationControllers, ReplicaSets, Deployments, StatefulSets, DaemonSets and PodTemplates.

use k8s_core::{json, meta::LabelSelector};
use serde_json::{Value, json};

use super::{
    BASE, NameRule, Strategy, not_negative, pod,
    rule::{At, Check, Rule, at_most_all, check},
    storage,
};
use crate::{
    invalid::FieldErrors,
    value::{array_at, child, default, default_text, object_at, str_at},
};

fn default_template(object: &mut Value) {
    if let Some(template) = object.pointer_mut("/spec/template").filter(|t| t.is_object()) {
        child(template, "metadata");
        if let Some(spec) = child(template, "spec") {
            pod::default_spec(spec);
        }
    }
}

/// Validates a structured selector, and that the template matches it.
fn check_selector(object: &Value, errors: &mut FieldErrors) {
    let selector = object.pointer("/spec/selector");
    let empty = selector.is_none_or(|s| {
        s.as_object().is_none_or(|m| {
            m.values().all(|v| {
                v.as_object().is_none_or(serde_json::Map::is_empty) && v.as_array().is_none_or(Vec::is_empty)
            })
        })
    });
    if selector.is_none() {
        errors.required("spec.selector", "");
    } else if empty {
        errors.invalid(
            "spec.selector",
            selector.cloned().unwrap_or_default(),
            "empty selector is invalid for deployment",
        );
    }
    let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    let parsed = selector.and_then(|s| json::from_value(s).ok()).map(|s| LabelSelector::from_api(&s));
    match parsed {
        Some(Err(e)) => errors.invalid("spec.selector", selector.cloned().unwrap_or_default(), e.0),
        Some(Ok(parsed)) if !empty && parsed.matches_with(|k| labels.get(k).and_then(Value::as_str)) => {}
        _ => errors.invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        ),
    }
}

fn check_template(object: &Value, restart: &[&str], errors: &mut FieldErrors) {
    match object.pointer("/spec/template") {
        None => errors.required("spec.template", ""),
        Some(template) => {
            pod::template_errors(template, "spec.template", errors);
            let policy = str_at(template, "/spec/restartPolicy");
            if ["Always", "OnFailure", "Never"].contains(&policy) && !restart.contains(&policy) {
                errors.not_supported("spec.template.spec.restartPolicy", policy, restart);
            }
        }
    }
}

/// Counters that must not be negative.
const COUNTS: &[Rule] = &[
    Rule("spec.replicas", &[Check::AtLeast(0)]),
    Rule("spec.minReadySeconds", &[Check::AtLeast(0)]),
    Rule("spec.revisionHistoryLimit", &[Check::AtLeast(0)]),
    Rule("spec.progressDeadlineSeconds", &[Check::AtLeast(0)]),
];

/// Validates status counters: not negative, and none larger than `total`.
fn check_status(new: &Value, total: &str, parts: &[&str], errors: &mut FieldErrors) {
    let root = At::root(new, "");
    let status = root.field("status");
    let number = |field: &str| status.integer(field).unwrap_or(0);
    for field in parts.iter().chain([&total, &"observedGeneration", &"collisionCount"]) {
        if number(field) < 0 {
            status.field(field).invalid(errors, "must be greater than or equal to 0");
        }
    }
    if total.is_empty() {
        return;
    }
    for part in parts.iter().filter(|p| number(p) > number(total)) {
        status.field(part).invalid(errors, format!("cannot be greater than status.{total}"));
    }
    if parts.contains(&"readyReplicas") && number("availableReplicas") > number("readyReplicas") {
        status.field("availableReplicas").invalid(errors, "cannot be greater than readyReplicas");
    }
}

/// Defaults and validation of PodTemplates.
pub static POD_TEMPLATE: Strategy = Strategy {
    generation: true,
    returns_deleted: true,
    default: |object| {
        if let Some(spec) = object.pointer_mut("/template/spec") {
            pod::default_spec(spec);
        }
    },
    validate: |object, errors| {
        let template = object.get("template").unwrap_or(&Value::Null);
        pod::template_errors(template, "template", errors);
    },
    ..BASE
};

/// Strategy of ReplicationControllers: the selector is a map and defaults to the template's labels.
pub static REPLICATION_CONTROLLER: Strategy = Strategy {
    generation: true,
    default: |object| {
        default_template(object);
        let labels = object.pointer("/spec/template/metadata/labels").cloned();
        if let Some(spec) = child(object, "spec") {
            default(spec, "replicas", 1);
            default(spec, "minReadySeconds", 0);
            if let Some(labels) =
                labels.clone().filter(|_| object_at(spec, "/selector").is_none_or(serde_json::Map::is_empty))
            {
                spec["selector"] = labels;
            }
        }
        if let (Some(labels), Some(metadata)) = (labels, child(object, "metadata")) {
            default(metadata, "labels", labels);
        }
    },
    create: |object| object["status"] = json!({"replicas": 0}),
    validate: |object, errors| {
        not_negative(object, "/spec/replicas", errors);
        not_negative(object, "/spec/minReadySeconds", errors);
        let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_else(|| json!({}));
        match object_at(object, "/spec/selector") {
            Some(selector) if !selector.is_empty() => {
                if selector.iter().any(|(k, v)| labels.get(k) != Some(v)) {
                    errors.invalid(
                        "spec.template.metadata.labels",
                        labels,
                        "`selector` does not match template `labels`",
                    );
                }
            }
            _ => errors.required("spec.selector", ""),
        }
        check_template(object, &["Always"], errors);
    },
    validate_status: |new, _, errors| check_status(new, "replicas", REPLICAS, errors),
    ..BASE
};

/// Status counters of replica controllers.
const REPLICAS: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];

/// Defaults and validation of ReplicaSets.
pub static REPLICA_SET: Strategy = Strategy {
    generation: true,
    default: |object| {
        default_template(object);
        if let Some(spec) = child(object, "spec") {
            default(spec, "replicas", 1);
        }
    },
    create: |object| object["status"] = json!({"replicas": 0}),
    validate: |object, errors| {
        check(object, COUNTS, errors);
        check_selector(object, errors);
        check_template(object, &["Always"], errors);
    },
    fixed: &["/spec/selector"],
    validate_status: |new, _, errors| check_status(new, "replicas", REPLICAS, errors),
    ..BASE
};

/// Defaults and validation of Deployments.
pub static DEPLOYMENT: Strategy = Strategy {
    fixed_by_status: &["labels"],
    generation: true,
    default: |object| {
        default_template(object);
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", 10);
        default(spec, "progressDeadlineSeconds", 600);
        if let Some(strategy) = child(spec, "strategy") {
            default_text(strategy, "type", "RollingUpdate");
            if str_at(strategy, "/type") == "RollingUpdate"
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                default(rolling, "maxUnavailable", "25%");
                default(rolling, "maxSurge", "25%");
            }
        }
    },
    create: |object| object["status"] = json!({}),
    validate: |object, errors| {
        check(object, COUNTS, errors);
        check_selector(object, errors);
        check_template(object, &["Always"], errors);
        let root = At::root(object, "");
        let spec = root.field("spec");
        if let (Some(deadline), Some(ready)) =
            (spec.integer("progressDeadlineSeconds"), spec.integer("minReadySeconds"))
            && deadline <= ready
        {
            spec.field("progressDeadlineSeconds").invalid(errors, "must be greater than minReadySeconds");
        }
        match str_at(object, "/spec/strategy/type") {
            "Recreate" => {
                if object.pointer("/spec/strategy/rollingUpdate").is_some() {
                    errors.forbidden(
                        "spec.strategy.rollingUpdate",
                        "may not be specified when strategy `type` is 'Recreate'",
                    );
                }
            }
            "RollingUpdate" => check_rolling(object, errors),
            other => errors.not_supported("spec.strategy.type", other, &["Recreate", "RollingUpdate"]),
        }
    },
    fixed: &["/spec/selector"],
    validate_status: |new, _, errors| {
        let parts = ["updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"];
        check_status(new, "replicas", &parts[..3], errors);
        check_status(new, "", &parts, errors);
    },
    ..BASE
};

/// Parses a number or percentage; `None` if it is neither.
fn share(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => s.strip_suffix('%')?.parse().ok(),
        _ => None,
    }
}

fn check_rolling(object: &Value, errors: &mut FieldErrors) {
    let mut zero = 0;
    for name in ["maxUnavailable", "maxSurge"] {
        let Some(value) = object.pointer(&format!("/spec/strategy/rollingUpdate/{name}")) else { continue };
        let field = format!("spec.strategy.rollingUpdate.{name}");
        match share(value) {
            None => errors.invalid(field, value.clone(), "must be an integer or percentage (e.g '5%')"),
            Some(n) if n < 0 => errors.invalid(field, value.clone(), "must be greater than or equal to 0"),
            Some(n) if n > 100 && value.is_string() && name == "maxUnavailable" => {
                errors.invalid(field, value.clone(), "must not be greater than 100%");
            }
            Some(0) => zero += 1,
            Some(_) => {}
        }
    }
    if zero == 2 {
        let value =
            object.pointer("/spec/strategy/rollingUpdate/maxUnavailable").cloned().unwrap_or_default();
        errors.invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            value,
            "may not be 0 when `maxSurge` is 0",
        );
    }
}

const RETENTION: &[Check] = &[Check::Required(""), Check::OneOf(&["Delete", "Retain"])];

const STATEFUL: &[Rule] = &[
    Rule(
        "spec.podManagementPolicy",
        &[Check::Is(|at, errors| {
            if !["OrderedReady", "Parallel"].contains(&at.as_text()) {
                at.invalid(errors, "must be 'OrderedReady' or 'Parallel'");
            }
        })],
    ),
    Rule(
        "spec.updateStrategy",
        &[Check::Is(|at, errors| {
            let rolling = at.field("rollingUpdate");
            match at.text("type") {
                "OnDelete" if !rolling.value.is_null() => {
                    rolling.invalid(errors, "only allowed for updateStrategy 'RollingUpdate'");
                }
                "OnDelete" | "RollingUpdate" => {}
                _ => at.invalid(errors, "must be 'RollingUpdate' or 'OnDelete'"),
            }
        })],
    ),
    Rule("spec.updateStrategy.rollingUpdate.partition", &[Check::AtLeast(0)]),
    Rule(
        "spec.updateStrategy.rollingUpdate.maxUnavailable",
        &[
            Check::Share,
            Check::Is(|at, errors| {
                if at.value == &json!(0) || at.value == &json!("0%") {
                    at.invalid(errors, "cannot be 0");
                }
            }),
            Check::Is(at_most_all),
        ],
    ),
    Rule("spec.ordinals.start", &[Check::AtLeast(0)]),
    Rule("spec.serviceName", &[Check::Name(NameRule::Subdomain)]),
    Rule("spec.persistentVolumeClaimRetentionPolicy.whenDeleted", RETENTION),
    Rule("spec.persistentVolumeClaimRetentionPolicy.whenScaled", RETENTION),
];

/// Returns a StatefulSet whose template has the volumes and host name of its pods: each claim template
/// replaces the volume of its name.
fn with_claims_as_volumes(object: &Value) -> Value {
    let mut object = object.clone();
    let name = |claim: &Value| str_at(claim, "/metadata/name").to_owned();
    let mut names: Vec<String> = array_at(&object, "/spec/volumeClaimTemplates").iter().map(name).collect();
    names.sort();
    names.dedup();
    let Some(spec) = object.pointer_mut("/spec/template/spec").filter(|spec| spec.is_object()) else {
        return object;
    };
    if let Some(map) = spec.as_object_mut() {
        map.remove("hostname");
    }
    if !names.is_empty() {
        let others =
            array_at(spec, "/volumes").iter().filter(|v| !names.iter().any(|n| n == str_at(v, "/name")));
        let claims = names.iter().map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}}));
        spec["volumes"] = claims.chain(others.cloned()).collect();
    }
    object
}

/// Defaults and validation of StatefulSets.
pub static STATEFUL_SET: Strategy = Strategy {
    generation: true,
    default: |object| {
        default_template(object);
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", 10);
        default_text(spec, "podManagementPolicy", "OrderedReady");
        default(
            spec,
            "persistentVolumeClaimRetentionPolicy",
            json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
        );
        if let Some(strategy) = child(spec, "updateStrategy") {
            default_text(strategy, "type", "RollingUpdate");
            if str_at(strategy, "/type") == "RollingUpdate"
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                default(rolling, "partition", 0);
            }
        }
        for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten()
        {
            claim["apiVersion"] = "v1".into();
            claim["kind"] = "PersistentVolumeClaim".into();
            if let Some(spec) = child(claim, "spec") {
                default_text(spec, "volumeMode", "Filesystem");
            }
            claim["status"] = json!({"phase": "Pending"});
        }
    },
    create: |object| object["status"] = json!({"replicas": 0, "availableReplicas": 0}),
    validate: |object, errors| {
        check(object, COUNTS, errors);
        check(object, STATEFUL, errors);
        check_selector(object, errors);
        check_template(&with_claims_as_volumes(object), &["Always"], errors);
        let claims = object.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array);
        for (i, claim) in claims.into_iter().flatten().enumerate() {
            let at = format!("spec.volumeClaimTemplates[{i}].spec");
            storage::check_claim(claim.get("spec").unwrap_or(&Value::Null), &at, errors);
        }
    },
    validate_status: |new, _, errors| {
        check_status(
            new,
            "replicas",
            &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
            errors,
        );
    },
    validate_update: |new, old, errors| {
        let frozen = |object: &Value| {
            let mut spec = object.get("spec").cloned().unwrap_or_default();
            if let Some(map) = spec.as_object_mut() {
                for field in [
                    "replicas",
                    "template",
                    "updateStrategy",
                    "revisionHistoryLimit",
                    "persistentVolumeClaimRetentionPolicy",
                    "minReadySeconds",
                    "ordinals",
                ] {
                    map.remove(field);
                }
            }
            spec
        };
        if frozen(new) != frozen(old) {
            errors.forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
    },
    ..BASE
};

/// Defaults and validation of DaemonSets.
pub static DAEMON_SET: Strategy = Strategy {
    generation: true,
    default: |object| {
        default_template(object);
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "revisionHistoryLimit", 10);
        if let Some(strategy) = child(spec, "updateStrategy") {
            default_text(strategy, "type", "RollingUpdate");
            if str_at(strategy, "/type") == "RollingUpdate"
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                default(rolling, "maxUnavailable", 1);
                default(rolling, "maxSurge", 0);
            }
        }
    },
    create: |object| {
        object["status"] = json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0});
    },
    validate: |object, errors| {
        check(object, COUNTS, errors);
        check(object, DAEMON, errors);
        check_selector(object, errors);
        check_template(object, &["Always"], errors);
    },
    fixed: &["/spec/selector"],
    validate_status: |new, _, errors| {
        let parts = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ];
        check_status(new, "", &parts, errors);
    },
    ..BASE
};

const DAEMON: &[Rule] = &[
    Rule(
        "spec.template.spec.activeDeadlineSeconds",
        &[Check::Never("activeDeadlineSeconds in DaemonSet is not Supported")],
    ),
    Rule("spec.updateStrategy.type", &[Check::OneOf(&["OnDelete", "RollingUpdate"])]),
    Rule("spec.updateStrategy.rollingUpdate.maxUnavailable", &[Check::Share, Check::Is(at_most_all)]),
    Rule("spec.updateStrategy.rollingUpdate.maxSurge", &[Check::Share, Check::Is(at_most_all)]),
    Rule(
        "spec.updateStrategy.rollingUpdate",
        &[Check::Is(|at, errors| {
            let some = |field: &str| share(at.field(field).value).unwrap_or(0) > 0;
            match (some("maxUnavailable"), some("maxSurge")) {
                (true, true) => {
                    at.field("maxSurge").invalid(errors, "may not be set when maxUnavailable is non-zero")
                }
                (false, false) => {
                    errors.required(at.field("maxUnavailable"), "cannot be 0 when maxSurge is 0")
                }
                _ => {}
            }
        })],
    ),
];
