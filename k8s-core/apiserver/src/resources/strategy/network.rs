//! Ingresses, NetworkPolicies and EndpointSlices.

use serde_json::{Value, json};

use super::{BASE, Strategy, immutable};
use crate::{
    invalid::{FieldErrors, names},
    value::{child, default_text, list, text},
};

/// Ingresses.
pub static INGRESS: Strategy = Strategy {
    generation: true,
    create: |ingress| ingress["status"] = json!({"loadBalancer": {}}),
    validate: |ingress, errors| {
        if list(ingress, "/spec/rules").is_empty() && ingress.pointer("/spec/defaultBackend").is_none() {
            errors.invalid("spec", json!({}), "either `defaultBackend` or `rules` must be specified");
        }
        if let Some(backend) = ingress.pointer("/spec/defaultBackend") {
            check_backend(backend, "spec.defaultBackend", errors);
        }
        for (i, rule) in list(ingress, "/spec/rules").iter().enumerate() {
            let host = text(rule, "/host");
            if !host.is_empty() && !names::is_subdomain(host.trim_start_matches("*.")) {
                errors.invalid(format!("spec.rules[{i}].host"), host, names::SUBDOMAIN_MESSAGE);
            }
            if rule.get("http").is_some() && list(rule, "/http/paths").is_empty() {
                errors.required(format!("spec.rules[{i}].http.paths"), "");
            }
            for (j, path) in list(rule, "/http/paths").iter().enumerate() {
                let at = format!("spec.rules[{i}].http.paths[{j}]");
                let kind = text(path, "/pathType");
                if kind.is_empty() {
                    errors.required(format!("{at}.pathType"), "pathType must be specified");
                } else if !["Exact", "Prefix", "ImplementationSpecific"].contains(&kind) {
                    errors.not_supported(
                        format!("{at}.pathType"),
                        kind,
                        &["Exact", "ImplementationSpecific", "Prefix"],
                    );
                }
                let value = text(path, "/path");
                if (kind == "Exact" || kind == "Prefix") && !value.starts_with('/') {
                    errors.invalid(format!("{at}.path"), value, "must be an absolute path");
                }
                check_backend(path.get("backend").unwrap_or(&Value::Null), &format!("{at}.backend"), errors);
            }
        }
    },
    ..BASE
};

fn check_backend(backend: &Value, at: &str, errors: &mut FieldErrors) {
    match (backend.get("service"), backend.get("resource")) {
        (Some(_), Some(_)) => errors.invalid(at, "", "cannot set both resource and service backends"),
        (None, Some(_)) => {}
        (None, None) => errors.required(at, "resource or service backend is required"),
        (Some(service), None) => {
            let name = text(service, "/name");
            if name.is_empty() {
                errors.required(format!("{at}.service.name"), "");
            } else if !names::is_label(name) {
                errors.invalid(format!("{at}.service.name"), name, names::LABEL_MESSAGE);
            }
            match (service.pointer("/port/number"), service.pointer("/port/name")) {
                (None, None) => {
                    errors.required(format!("{at}.service.port"), "port name or number is required")
                }
                (Some(number), _) if !number.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => {
                    errors.invalid(
                        format!("{at}.service.port.number"),
                        number.clone(),
                        "must be between 1 and 65535, inclusive",
                    );
                }
                _ => {}
            }
        }
    }
}

/// NetworkPolicies.
pub static NETWORK_POLICY: Strategy = Strategy {
    generation: true,
    default: |policy| {
        let egress = policy.pointer("/spec/egress").is_some();
        if let Some(spec) = child(policy, "spec") {
            child(spec, "podSelector");
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            crate::value::default(spec, "policyTypes", types);
            for direction in ["ingress", "egress"] {
                for rule in spec.get_mut(direction).and_then(Value::as_array_mut).into_iter().flatten() {
                    for port in rule.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                        default_text(port, "protocol", "TCP");
                    }
                }
            }
        }
    },
    ..BASE
};

/// EndpointSlices.
pub static ENDPOINT_SLICE: Strategy = Strategy {
    generation: true,
    default: |slice| {
        for port in slice.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            crate::value::default(port, "name", "");
            default_text(port, "protocol", "TCP");
        }
    },
    validate: |slice, errors| {
        let kind = text(slice, "/addressType");
        if kind.is_empty() {
            errors.required("addressType", "");
        } else if !["IPv4", "IPv6", "FQDN"].contains(&kind) {
            errors.not_supported("addressType", kind, &["FQDN", "IPv4", "IPv6"]);
        }
        if list(slice, "/endpoints").len() > 1000 {
            errors.invalid("endpoints", list(slice, "/endpoints").len(), "must have at most 1000 items");
        }
        for (i, endpoint) in list(slice, "/endpoints").iter().enumerate() {
            if list(endpoint, "/addresses").is_empty() {
                errors.required(format!("endpoints[{i}].addresses"), "must contain at least 1 address");
            }
        }
    },
    validate_update: |new, old, errors| immutable(new, old, "/addressType", errors),
    ..BASE
};
