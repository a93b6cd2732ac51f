//! Small resources of the core group, and those without rules of their own.

use serde_json::{Value, json};

use super::{BASE, NameRule, Strategy, immutable};
use crate::{
    invalid::{FieldErrors, names},
    value::{child, default_text, list, map, text, truth},
};

/// Nothing beyond the schema.
pub static PLAIN: Strategy = Strategy { returns_deleted: true, ..BASE };
/// Counts generations.
pub static GENERATION: Strategy = Strategy { generation: true, ..BASE };

/// Namespaces: `kubernetes` finalizer, phase, the name label.
pub static NAMESPACE: Strategy = Strategy {
    name: NameRule::Label,
    create: |ns| {
        if let Some(spec) = child(ns, "spec") {
            spec["finalizers"] = json!(["kubernetes"]);
        }
        ns["status"] = json!({"phase": "Active"});
    },
    default: |ns| {
        let name = text(ns, "/metadata/name").to_owned();
        if !name.is_empty()
            && let Some(labels) = child(ns, "metadata").and_then(|m| child(m, "labels"))
        {
            labels["kubernetes.io/metadata.name"] = name.into();
        }
    },
    update: |new, old| {
        if let Some(finalizers) = old.pointer("/spec/finalizers")
            && let Some(spec) = child(new, "spec")
        {
            spec["finalizers"] = finalizers.clone();
        }
    },
    ..BASE
};

/// ConfigMaps: keys, `immutable`.
pub static CONFIG_MAP: Strategy = Strategy {
    validate: |cm, errors| {
        for field in ["data", "binaryData"] {
            check_keys(cm, field, errors);
        }
        for key in map(cm, "/binaryData").into_iter().flatten().map(|(k, _)| k) {
            if map(cm, "/data").is_some_and(|d| d.contains_key(key)) {
                errors.invalid(
                    format!("data[{key}]"),
                    key.as_str(),
                    "duplicate of key present in binaryData",
                );
            }
        }
        check_size(cm, errors);
    },
    validate_update: |new, old, errors| {
        if truth(old, "/immutable") {
            if !truth(new, "/immutable") {
                errors.forbidden("immutable", "field is immutable when `immutable` is set");
            }
            for field in ["data", "binaryData"] {
                if new.get(field) != old.get(field) {
                    errors.forbidden(field, "field is immutable when `immutable` is set");
                }
            }
        }
    },
    ..BASE
};

fn check_keys(object: &Value, field: &str, errors: &mut FieldErrors) {
    for key in map(object, &format!("/{field}")).into_iter().flatten().map(|(k, _)| k) {
        if !names::is_config_key(key) {
            errors.invalid(format!("{field}[{key}]"), key.as_str(), names::KEY_MESSAGE);
        }
    }
}

/// Largest sum of values in a ConfigMap or Secret, bytes.
const MOST_DATA: usize = 1 << 20;

fn check_size(object: &Value, errors: &mut FieldErrors) {
    let entries = ["/data", "/binaryData"].into_iter().flat_map(|p| map(object, p).into_iter().flatten());
    let total: usize = entries.map(|(_, v)| v.as_str().map_or(0, str::len)).sum();
    if total > MOST_DATA {
        errors.too_long("", MOST_DATA);
    }
}

/// Secrets: `stringData`, type, keys, `immutable`.
pub static SECRET: Strategy = Strategy {
    default: |secret| {
        default_text(secret, "type", "Opaque");
        merge_string_data(secret);
    },
    validate: |secret, errors| {
        check_keys(secret, "data", errors);
        let required: &[&str] = match text(secret, "/type") {
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            _ => &[],
        };
        for key in required {
            if !map(secret, "/data").is_some_and(|d| d.contains_key(*key)) {
                errors.required(format!("data[{key}]"), "");
            }
        }
        check_size(secret, errors);
    },
    validate_update: |new, old, errors| {
        immutable(new, old, "/type", errors);
        if truth(old, "/immutable") {
            if !truth(new, "/immutable") {
                errors.forbidden("immutable", "field is immutable when `immutable` is set");
            }
            if new.get("data") != old.get("data") {
                errors.forbidden("data", "field is immutable when `immutable` is set");
            }
        }
    },
    ..BASE
};

fn merge_string_data(secret: &mut Value) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let Some(Value::Object(plain)) = secret.as_object_mut().and_then(|s| s.remove("stringData")) else {
        return;
    };
    if let Some(data) = child(secret, "data") {
        for (key, value) in plain {
            data[&key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
        }
    }
}

/// Nodes.
pub static NODE: Strategy = Strategy {
    create: |node| {
        child(node, "spec");
    },
    validate_update: |new, old, errors| {
        let before = text(old, "/spec/podCIDR");
        if !before.is_empty() && text(new, "/spec/podCIDR") != before {
            errors.forbidden("spec.podCIDR", "may not change podCIDR once set");
        }
        let before = text(old, "/spec/providerID");
        if !before.is_empty() && text(new, "/spec/providerID") != before {
            errors.forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            );
        }
    },
    ..BASE
};

/// Endpoints.
pub static ENDPOINTS: Strategy = Strategy {
    default: |endpoints| {
        let subsets = endpoints.get_mut("subsets").and_then(Value::as_array_mut);
        for subset in subsets.into_iter().flatten() {
            let ports = subset.get_mut("ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten() {
                default_text(port, "protocol", "TCP");
            }
        }
    },
    validate: |endpoints, errors| {
        for (i, subset) in list(endpoints, "/subsets").iter().enumerate() {
            let addresses = ["addresses", "notReadyAddresses"];
            for (name, a) in addresses
                .iter()
                .flat_map(|n| list(subset, &format!("/{n}")).iter().enumerate().map(move |a| (n, a)))
            {
                if text(a.1, "/ip").parse::<std::net::IpAddr>().is_err() {
                    errors.invalid(
                        format!("subsets[{i}].{name}[{}].ip", a.0),
                        text(a.1, "/ip"),
                        "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                    );
                }
            }
        }
    },
    ..BASE
};

/// Leases.
pub static LEASE: Strategy = Strategy {
    validate: |lease, errors| {
        for (pointer, field) in [("/spec/leaseDurationSeconds", "spec.leaseDurationSeconds")] {
            if let Some(n) = crate::value::integer(lease, pointer)
                && n <= 0
            {
                errors.invalid(field, n, "must be greater than 0");
            }
        }
        super::not_negative(lease, "/spec/leaseTransitions", errors);
    },
    ..BASE
};

/// Priority classes.
pub static PRIORITY_CLASS: Strategy = Strategy {
    default: |class| default_text(class, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |class, errors| {
        let value = crate::value::integer(class, "/value").unwrap_or(0);
        if value > 1_000_000_000 && !text(class, "/metadata/name").starts_with("system-") {
            errors.forbidden("value", "maximum allowed value of a user defined priority is 1000000000");
        }
    },
    validate_update: |new, old, errors| {
        if crate::value::integer(new, "/value") != crate::value::integer(old, "/value") {
            errors.forbidden("value", "may not be changed in an update.");
        }
    },
    generation: true,
    ..BASE
};
