//! PersistentVolumes, PersistentVolumeClaims and StorageClasses.

use serde_json::{Value, json};

use super::{
    BASE, NameRule, Strategy, immutable, pod,
    rule::{At, Check, QUALIFIED, Rule, check, frozen, is_empty, quantity},
};
use crate::{
    invalid::{FieldErrors, names},
    value::{array_at, child, default_text, object_at, str_at},
};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Access modes of a volume or claim.
const ACCESS: &[Check] = &[
    Check::Required("at least 1 access mode is required"),
    Check::Is(|at, errors| {
        for mode in at.items().filter(|m| !MODES.contains(&m.as_text())) {
            errors.not_supported(at, mode.value.clone(), MODES);
        }
        let alone = at.items().any(|m| m.as_text() == "ReadWriteOncePod");
        if alone && at.items().count() > 1 {
            errors.forbidden(at, "may not use ReadWriteOncePod with other access modes");
        }
    }),
];

/// Requires a positive amount.
fn positive(at: &At<'_>, errors: &mut FieldErrors) {
    if quantity(at.value).is_some_and(|q| q.is_negative() || q.is_zero()) {
        at.invalid(errors, "must be greater than zero");
    }
}

/// Defaults and validation of PersistentVolumes.
pub static PERSISTENT_VOLUME: Strategy = Strategy {
    returns_deleted: true,
    default: |volume| {
        let Some(spec) = child(volume, "spec") else { return };
        default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_text(spec, "volumeMode", "Filesystem");
        if let Some(host) = spec.get_mut("hostPath").filter(|h| h.is_object()) {
            crate::value::default(host, "type", "");
        }
        pod::default_old_sources(spec);
    },
    create: |volume| volume["status"] = json!({"phase": "Pending"}),
    validate: |volume, errors| {
        check(volume, VOLUME, errors);
        pod::check_sources(volume.get("spec").unwrap_or(&Value::Null), "spec", NOT_SOURCES, errors);
    },
    validate_update: |new, old, errors| {
        let source = |volume: &Value| -> Vec<(String, Value)> {
            let spec = object_at(volume, "/spec").into_iter().flatten();
            spec.filter(|(k, _)| !NOT_SOURCES.contains(&k.as_str()))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        };
        if source(new) != source(old) {
            errors.forbidden(
                "spec.persistentvolumesource",
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        frozen(new, old, &["/spec/volumeMode"], errors);
        if old.pointer("/spec/nodeAffinity").is_some() {
            frozen(new, old, &["/spec/nodeAffinity"], errors);
        }
    },
    ..BASE
};

/// Fields of a volume's spec that are not volume sources.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

const VOLUME: &[Rule] = &[
    Rule("spec.accessModes", ACCESS),
    Rule(
        "spec.capacity",
        &[
            Check::Required(""),
            Check::Is(|at, errors| {
                let storage = at.field("storage");
                if storage.value.is_null() || at.entries().count() > 1 {
                    errors.not_supported(at, at.value.clone(), &["storage"]);
                }
            }),
        ],
    ),
    Rule(
        "spec.capacity.storage",
        &[Check::Is(|at, errors| {
            // Reported at its key, as in a map of quantities.
            if quantity(at.value).is_some_and(|q| q.is_negative() || q.is_zero()) {
                errors.invalid("spec.capacity[storage]", at.value.clone(), "must be greater than zero");
            }
        })],
    ),
    Rule("spec.persistentVolumeReclaimPolicy", &[Check::OneOf(&["Delete", "Recycle", "Retain"])]),
    Rule("spec.volumeMode", &[Check::OneOf(&["Block", "Filesystem"])]),
    Rule("spec.storageClassName", &[Check::Name(NameRule::Subdomain)]),
    Rule("spec.volumeAttributesClassName", &[Check::Name(NameRule::Subdomain)]),
    Rule("spec.claimRef.name", &[Check::Name(NameRule::Subdomain)]),
    Rule("spec.nodeAffinity.required", &[Check::Required("must specify required node constraints")]),
    Rule("spec.nodeAffinity.required", &[Check::Has(pod::NODE_SELECTOR)]),
    Rule(
        "spec",
        &[Check::Is(|spec, errors| {
            let there = |name| !spec.field(name).value.is_null();
            if there("local") && !there("nodeAffinity") {
                errors.required("spec.nodeAffinity", "Local volume requires node affinity");
            }
            let recycle = spec.text("persistentVolumeReclaimPolicy") == "Recycle";
            if recycle && spec.field("hostPath").text("path") == "/" {
                errors.forbidden(
                    "spec.persistentVolumeReclaimPolicy",
                    "may not be 'recycle' for a hostPath mount of '/'",
                );
            }
        })],
    ),
];

/// Defaults and validation of PersistentVolumeClaims.
pub static PERSISTENT_VOLUME_CLAIM: Strategy = Strategy {
    returns_deleted: true,
    default: |claim| {
        if let Some(spec) = child(claim, "spec") {
            default_text(spec, "volumeMode", "Filesystem");
            // The legacy name of dataSourceRef; both are kept equal unless a namespace is set.
            let (source, reference) = (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned());
            match (source, reference) {
                (Some(source), None) => spec["dataSourceRef"] = source,
                (None, Some(reference)) if str_at(&reference, "/namespace").is_empty() => {
                    spec["dataSource"] = reference;
                }
                _ => {}
            }
        }
    },
    create: |claim| claim["status"] = json!({"phase": "Pending"}),
    validate: |claim, errors| check_claim(claim.get("spec").unwrap_or(&Value::Null), "spec", errors),
    validate_update: |new, old, errors| {
        let frozen = |claim: &Value| {
            let mut spec = claim.get("spec").cloned().unwrap_or_default();
            if let Some(map) = spec.as_object_mut() {
                map.remove("resources");
                map.remove("volumeAttributesClassName");
                if str_at(old, "/spec/volumeName").is_empty() {
                    map.remove("volumeName");
                }
                if old.pointer("/spec/storageClassName").is_none() {
                    map.remove("storageClassName");
                }
            }
            spec
        };
        if frozen(new) != frozen(old) {
            errors.forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
        }
        check_growth(new, old, errors);
    },
    validate_status: |new, _, errors| {
        const RULES: &[Rule] = &[
            Rule("status.accessModes[*]", &[Check::OneOf(MODES)]),
            Rule("status.capacity", &[Check::NotNegative]),
            Rule("status.allocatedResources", &[Check::NotNegative]),
        ];
        check(new, RULES, errors);
        check_allocated(new, errors);
    },
    ..BASE
};

/// States of an expansion (`status.allocatedResourceStatuses`).
const RESIZE_STATES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

/// Validates what a claim's status says of an expansion.
fn check_allocated(claim: &Value, errors: &mut FieldErrors) {
    let keys = |pointer: &str| object_at(claim, pointer).into_iter().flat_map(serde_json::Map::iter);
    for (field, pointer) in [
        ("status.allocatedResourceStatuses", "/status/allocatedResourceStatuses"),
        ("status.allocatedResources", "/status/allocatedResources"),
    ] {
        for (name, state) in keys(pointer) {
            if !names::is_qualified(name) {
                errors.invalid(field, name.as_str(), QUALIFIED);
            } else if (!name.contains('/') || name.contains("kubernetes.io/")) && name != "storage" {
                errors.not_supported(field, name.as_str(), &["storage"]);
            }
            if field.ends_with("Statuses") && !state.as_str().is_some_and(|s| RESIZE_STATES.contains(&s)) {
                let mut all = RESIZE_STATES;
                all.sort_unstable();
                errors.not_supported(field, name.as_str(), &all);
            }
        }
    }
}

/// Permits increasing the size of a bound claim only, never decreasing.
fn check_growth(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let asked = |claim: &Value| claim.pointer("/spec/resources/requests/storage").and_then(quantity);
    let (Some(now), Some(before)) = (asked(new), asked(old)) else { return };
    if now == before {
        return;
    }
    if str_at(old, "/status/phase") != "Bound" {
        errors.forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
    } else if now < before
        && old.pointer("/status/capacity/storage").and_then(quantity).is_none_or(|have| now <= have)
    {
        errors.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
    }
}

/// Validates a claim's spec, in a claim or a template.
pub(super) fn check_claim(spec: &Value, at: &str, errors: &mut FieldErrors) {
    const RULES: &[Rule] = &[
        Rule("selector", &[Check::Selector]),
        Rule("accessModes", ACCESS),
        Rule("storageClassName", &[Check::Name(NameRule::Subdomain)]),
        Rule("volumeMode", &[Check::OneOf(&["Block", "Filesystem"])]),
        Rule("volumeAttributesClassName", &[Check::Name(NameRule::Subdomain)]),
        Rule("dataSource", &[Check::Has(DATA_SOURCE)]),
        Rule("dataSourceRef", &[Check::Has(DATA_SOURCE)]),
    ];
    let root = At::root(spec, at);
    root.check(RULES, errors);
    let resources = root.field("resources");
    let requests = resources.field("requests");
    if requests.field("storage").value.is_null() {
        errors.required(resources.key("storage"), "");
    } else {
        positive(&requests.key("storage"), errors);
    }
    let (old, new) = (root.field("dataSource"), root.field("dataSourceRef"));
    if !new.text("namespace").is_empty() {
        if !is_empty(old.value) {
            errors.invalid(
                root,
                spec.clone(),
                "may not be specified when dataSourceRef.namespace is specified",
            );
        }
    } else if !is_empty(old.value) && !is_empty(new.value) && old.value != new.value {
        errors.invalid(root, spec.clone(), "must match dataSourceRef");
    }
}

const DATA_SOURCE: &[Rule] = &[
    Rule("name", &[Check::Required("")]),
    Rule("kind", &[Check::Required("")]),
    Rule("apiGroup", &[Check::Name(NameRule::Subdomain)]),
    Rule(
        "",
        &[Check::Is(|at, errors| {
            if at.text("apiGroup").is_empty() && at.text("kind") != "PersistentVolumeClaim" {
                at.invalid(errors, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
            }
        })],
    ),
];

/// Defaults and validation of StorageClasses.
pub static STORAGE_CLASS: Strategy = Strategy {
    returns_deleted: true,
    default: |class| {
        default_text(class, "reclaimPolicy", "Delete");
        default_text(class, "volumeBindingMode", "Immediate");
    },
    validate: |class, errors| {
        const RULES: &[Rule] = &[
            Rule(
                "provisioner",
                &[
                    Check::Required(""),
                    Check::Is(|at, errors| {
                        if !crate::invalid::names::is_qualified(&at.as_text().to_ascii_lowercase()) {
                            at.invalid(errors, QUALIFIED);
                        }
                    }),
                ],
            ),
            Rule("parameters", &[Check::Is(super::csi::check_class_parameters)]),
            Rule("reclaimPolicy", &[Check::OneOf(&["Delete", "Retain"])]),
            Rule("volumeBindingMode", &[Check::OneOf(&["Immediate", "WaitForFirstConsumer"])]),
            Rule(
                "allowedTopologies[*].matchLabelExpressions[*].key",
                &[Check::Required(""), Check::Qualified],
            ),
            Rule(
                "allowedTopologies[*].matchLabelExpressions[*].values",
                &[Check::Required(""), Check::Unique],
            ),
            Rule("allowedTopologies[*].matchLabelExpressions", &[Check::UniqueBy(&["key"])]),
        ];
        check(class, RULES, errors);
        let terms = array_at(class, "/allowedTopologies");
        for (i, term) in terms.iter().enumerate() {
            if terms[..i].contains(term) {
                errors.duplicate(format!("allowedTopologies[{i}].matchLabelExpressions"), "");
            }
        }
    },
    validate_update: |new, old, errors| {
        for (pointer, field) in [
            ("/parameters", "parameters"),
            ("/provisioner", "provisioner"),
            ("/reclaimPolicy", "reclaimPolicy"),
        ] {
            if new.pointer(pointer) != old.pointer(pointer) {
                errors.forbidden(field, "updates to this field are forbidden.");
            }
        }
        immutable(new, old, "/volumeBindingMode", errors);
    },
    ..BASE
};
