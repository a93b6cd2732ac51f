//! Small resources of the core group, and resources without rules of their own.

use serde_json::{Value, json};

use super::{
    BASE, NameRule, Proxied, Strategy, immutable,
    rule::{Check, QUALIFIED, Rule, check},
};
use crate::{
    invalid::{FieldErrors, names},
    value::{array_at, bool_at, child, default_text, object_at, str_at, take},
};

/// No rules beyond the schema.
pub static PLAIN: Strategy = Strategy { returns_deleted: true, ..BASE };
/// Increments `metadata.generation` with each change of the spec; nothing else.
pub static GENERATION: Strategy = Strategy { generation: true, ..BASE };

/// Strategy of Namespaces: `kubernetes` finalizer, phase, name label.
pub static NAMESPACE: Strategy = Strategy {
    is_deleted_unread: |_| false,
    is_held: |ns| !array_at(ns, "/spec/finalizers").is_empty(),
    mark_deleted: |ns| {
        take(ns, "/metadata", "deletionGracePeriodSeconds");
        if let Some(status) = child(ns, "status") {
            status["phase"] = "Terminating".into();
        }
    },
    name: NameRule::Label,
    create: |ns| {
        if let Some(spec) = child(ns, "spec") {
            spec["finalizers"] = json!(["kubernetes"]);
        }
        ns["status"] = json!({"phase": "Active"});
    },
    default: |ns| {
        let name = str_at(ns, "/metadata/name").to_owned();
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

/// Strategy of ConfigMaps: keys, `immutable`.
pub static CONFIG_MAP: Strategy = Strategy {
    validate: |cm, errors| {
        for field in ["data", "binaryData"] {
            check_keys(cm, field, errors);
        }
        for key in object_at(cm, "/binaryData").into_iter().flatten().map(|(k, _)| k) {
            if object_at(cm, "/data").is_some_and(|d| d.contains_key(key)) {
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
        if bool_at(old, "/immutable") {
            if !bool_at(new, "/immutable") {
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
    for key in object_at(object, &format!("/{field}")).into_iter().flatten().map(|(k, _)| k) {
        if !names::is_config_key(key) {
            errors.invalid(format!("{field}[{key}]"), key.as_str(), names::KEY_MESSAGE);
        }
    }
}

/// Maximum sum of values in a ConfigMap or Secret, in bytes.
const MOST_DATA: usize = 1 << 20;

fn check_size(object: &Value, errors: &mut FieldErrors) {
    let entries =
        ["/data", "/binaryData"].into_iter().flat_map(|p| object_at(object, p).into_iter().flatten());
    let total: usize = entries.map(|(_, v)| v.as_str().map_or(0, str::len)).sum();
    if total > MOST_DATA {
        errors.too_long("", MOST_DATA);
    }
}

/// Strategy of Secrets: `stringData`, type, keys, `immutable`.
pub static SECRET: Strategy = Strategy {
    default: |secret| {
        default_text(secret, "type", "Opaque");
        merge_string_data(secret);
    },
    validate: |secret, errors| {
        check_keys(secret, "data", errors);
        let required: &[&str] = match str_at(secret, "/type") {
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            "kubernetes.io/basic-auth"
                if !["username", "password"].iter().any(|k| secret["data"].get(k).is_some()) =>
            {
                &["username", "password"]
            }
            _ => &[],
        };
        if str_at(secret, "/type") == "kubernetes.io/service-account-token"
            && str_at(secret, "/metadata/annotations/kubernetes.io~1service-account.name").is_empty()
        {
            errors.required("metadata.annotations[kubernetes.io/service-account.name]", "");
        }
        check_registries(secret, errors);
        for key in required {
            if !object_at(secret, "/data").is_some_and(|d| d.contains_key(*key)) {
                errors.required(format!("data[{key}]"), "");
            }
        }
        check_size(secret, errors);
    },
    validate_update: |new, old, errors| {
        immutable(new, old, "/type", errors);
        if bool_at(old, "/immutable") {
            if !bool_at(new, "/immutable") {
                errors.forbidden("immutable", "field is immutable when `immutable` is set");
            }
            if new.get("data") != old.get("data") {
                errors.forbidden("data", "field is immutable when `immutable` is set");
            }
        }
    },
    ..BASE
};

/// Validates registry credentials, which must be JSON.
fn check_registries(secret: &Value, errors: &mut FieldErrors) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let key = match str_at(secret, "/type") {
        "kubernetes.io/dockerconfigjson" => ".dockerconfigjson",
        "kubernetes.io/dockercfg" => ".dockercfg",
        _ => return,
    };
    let Some(data) = secret.get("data").and_then(|d| d.get(key)).and_then(Value::as_str) else { return };
    let json = STANDARD.decode(data).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    if !json.is_some_and(|v| v.is_object()) {
        errors.invalid(format!("data[{key}]"), "<secret contents redacted>", "must be a JSON object");
    }
}

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

/// Defaults and validation of Nodes.
pub static NODE: Strategy = Strategy {
    created_with_status: true,
    proxied: Some(Proxied::Node),
    create: |node| {
        child(node, "spec");
    },
    validate: |node, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.podCIDRs[*]", &[Check::Cidr]),
            Rule("spec.taints[*].key", &[Check::Required(""), Check::Qualified]),
            Rule(
                "spec.taints[*].value",
                &[Check::Is(|at, errors| {
                    if !names::is_label_value(at.as_text()) {
                        at.invalid(errors, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')");
                    }
                })],
            ),
            Rule(
                "spec.taints[*].effect",
                &[Check::Required(""), Check::OneOf(&["NoSchedule", "PreferNoSchedule", "NoExecute"])],
            ),
            Rule("spec.taints", &[Check::UniqueBy(&["effect", "key"])]),
        ];
        check(node, RULES, errors);
    },
    validate_status: |new, _, errors| {
        const RULES: &[Rule] = &[
            Rule("status.capacity", &[Check::NotNegative]),
            Rule("status.allocatable", &[Check::NotNegative]),
            Rule("status.addresses", &[Check::UniqueBy(&["type", "address"])]),
        ];
        check(new, RULES, errors);
    },
    validate_update: |new, old, errors| {
        let before = str_at(old, "/spec/podCIDR");
        if !before.is_empty() && str_at(new, "/spec/podCIDR") != before {
            errors.forbidden("spec.podCIDR", "may not change podCIDR once set");
        }
        let before = str_at(old, "/spec/providerID");
        if !before.is_empty() && str_at(new, "/spec/providerID") != before {
            errors.forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            );
        }
    },
    ..BASE
};

/// Defaults and validation of Endpoints.
pub static ENDPOINTS: Strategy = Strategy {
    allow_create_on_update: true,
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
        check(endpoints, ENDPOINTS_RULES, errors);
    },
    ..BASE
};

const ENDPOINT_ADDRESS: &[Check] = &[Check::Has(&[
    Rule(
        "ip",
        &[Check::Is(|at, errors| match at.as_text().parse() {
            Err(_) => errors.invalid(at, at.as_text(), super::rule::IP),
            Ok(ip) => super::network::check_endpoint_ip(at, ip, errors),
        })],
    ),
    Rule("hostname", &[Check::Name(NameRule::Label)]),
    Rule("nodeName", &[Check::Name(NameRule::Subdomain)]),
])];

const ENDPOINTS_RULES: &[Rule] = &[
    Rule(
        "subsets[*]",
        &[Check::Is(|subset, errors| {
            if !subset.field("addresses").is_set() && !subset.field("notReadyAddresses").is_set() {
                errors.required(subset, "must specify `addresses` or `notReadyAddresses`");
            }
            let ports = subset.field("ports");
            let several = ports.items().count() > 1;
            for port in ports.items().filter(|p| several && p.text("name").is_empty()) {
                errors.required(port.field("name"), "");
            }
        })],
    ),
    Rule("subsets[*].addresses[*]", ENDPOINT_ADDRESS),
    Rule("subsets[*].notReadyAddresses[*]", ENDPOINT_ADDRESS),
    Rule("subsets[*].ports[*].name", &[Check::Name(NameRule::Label)]),
    Rule("subsets[*].ports[*].port", &[Check::Within(1, 65535)]),
    Rule("subsets[*].ports[*].protocol", &[Check::Required(""), Check::OneOf(&["SCTP", "TCP", "UDP"])]),
    Rule("subsets[*].ports[*].appProtocol", &[Check::Qualified]),
];

/// Checks what keeps a namespace: names with a domain, or those of Kubernetes.
pub(crate) fn check_finalizers(namespace: &Value, errors: &mut FieldErrors) {
    for (i, finalizer) in array_at(namespace, "/spec/finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let field = format!("spec.finalizers[{i}]");
        if !names::is_qualified(finalizer) {
            errors.invalid(&field, finalizer, QUALIFIED);
        }
        if !finalizer.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(&field, finalizer, why);
        }
    }
}
