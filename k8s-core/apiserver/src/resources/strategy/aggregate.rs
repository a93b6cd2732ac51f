//! APIServices: groups and versions served by another API server.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    BASE, NameRule, Strategy,
    rule::{Check, Rule, check},
};
use crate::value::{default, text, truth};

/// Defaults and validation of APIServices.
pub static API_SERVICE: Strategy = Strategy {
    name: NameRule::Segment,
    generation: true,
    create: |service| service["status"] = json!({}),
    default: |service| {
        if let Some(reference) = service.pointer_mut("/spec/service").filter(|s| s.is_object()) {
            default(reference, "port", 443);
        }
    },
    validate: |service, errors| {
        let (group, version) = (text(service, "/spec/group"), text(service, "/spec/version"));
        let name = text(service, "/metadata/name");
        let want = format!("{version}.{group}");
        if name != want {
            errors.invalid(
                "metadata.name",
                name,
                format!("must be `spec.version+\".\"+spec.group`: \"{want}\""),
            );
        }
        check(service, RULES, errors);
        if group.is_empty() && version != "v1" {
            errors.required("spec.group", "only v1 may have an empty group and it better be legacy kube");
        }
        if service.pointer("/spec/service").is_some_and(|s| s.is_object()) {
            let bundle = text(service, "/spec/caBundle");
            if truth(service, "/spec/insecureSkipTLSVerify") && !bundle.is_empty() {
                errors.invalid("spec.insecureSkipTLSVerify", true, "may not be true if caBundle is present");
            }
        } else {
            if !text(service, "/spec/caBundle").is_empty() {
                let size = STANDARD.decode(text(service, "/spec/caBundle")).map_or(0, |b| b.len());
                errors.invalid(
                    "spec.caBundle",
                    format!("{size} bytes"),
                    "local APIServices may not have a caBundle",
                );
            }
            if truth(service, "/spec/insecureSkipTLSVerify") {
                errors.invalid(
                    "spec.insecureSkipTLSVerify",
                    true,
                    "local APIServices may not have insecureSkipTLSVerify",
                );
            }
        }
    },
    ..BASE
};

const RULES: &[Rule] = &[
    Rule("spec.group", &[Check::Name(NameRule::Subdomain)]),
    Rule("spec.version", &[Check::Required(""), Check::Name(NameRule::Label1035)]),
    Rule(
        "spec.groupPriorityMinimum",
        &[Check::Is(|at, errors| {
            if !(1..=20_000).contains(&at.value.as_i64().unwrap_or(0)) {
                at.invalid(errors, "must be positive and less than 20000");
            }
        })],
    ),
    Rule(
        "spec.versionPriority",
        &[Check::Is(|at, errors| {
            if !(1..=1000).contains(&at.value.as_i64().unwrap_or(0)) {
                at.invalid(errors, "must be positive and less than 1000");
            }
        })],
    ),
    Rule("spec.service.namespace", &[Check::Required("")]),
    Rule("spec.service.name", &[Check::Required("")]),
    Rule("spec.service.port", &[Check::Between(1, 65535)]),
];
