//! Dynamic resource allocation: DeviceClasses, ResourceClaims, ResourceClaimTemplates and ResourceSlices.

use serde_json::{Value, json};

use super::{
    BASE, METADATA_OF_CLIENTS, NameRule, Strategy,
    rule::{At, Check, Rule, check, frozen},
};
use crate::{
    invalid::{FieldErrors, names},
    value::{child, default, default_text},
};

/// Maximum number of selectors, requests, constraints, configurations and results.
const MANY: u64 = 32;

const DRIVER: &[Check] = &[Check::Required(""), Check::Longest(63), Check::Name(NameRule::Subdomain)];

const SELECTORS: &[Check] = &[
    Check::Most(MANY),
    Check::Has(&[
        Rule("[*].cel", &[Check::Required("")]),
        Rule("[*].cel.expression", &[Check::Required(""), Check::Longest(10 << 10), Check::Is(check_syntax)]),
    ]),
];

/// Checks that a CEL expression can be parsed.
fn check_syntax(at: &At<'_>, errors: &mut FieldErrors) {
    if at.as_text().trim().is_empty() {
        errors.required(at, "");
    } else if let Err(why) = crate::resources::custom::compiles(at.as_text()) {
        at.invalid(errors, format!("compilation failed: {why}"));
    }
}

/// Opaque driver parameters of at most 10 KiB.
const OPAQUE: &[Check] = &[Check::Has(&[
    Rule("driver", DRIVER),
    Rule(
        "parameters",
        &[
            Check::Required(""),
            Check::Is(|at, errors| {
                if at.value.is_object() {
                    if at.value.to_string().len() > 10 << 10 {
                        errors.too_long(at, 10 << 10);
                    }
                } else {
                    at.invalid(errors, "must be a valid JSON object");
                }
            }),
        ],
    ),
])];

/// Defaults and validation of DeviceClasses.
pub static DEVICE_CLASS: Strategy = Strategy {
    generation: true,
    validate: |class, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.selectors", SELECTORS),
            Rule("spec.config", &[Check::Most(MANY)]),
            Rule("spec.config[*].opaque", &[Check::Required("")]),
            Rule("spec.config[*].opaque", OPAQUE),
            Rule(
                "spec.extendedResourceName",
                &[Check::Is(|at, errors| {
                    if !at.as_text().contains('/') || !names::is_qualified(at.as_text()) {
                        at.invalid(errors, "must be a domain-prefixed name of an extended resource");
                    }
                })],
            ),
        ];
        check(class, RULES, errors);
    },
    ..BASE
};

/// Defaults and validation of ResourceClaims.
pub static RESOURCE_CLAIM: Strategy = Strategy {
    fixed_by_status: &METADATA_OF_CLIENTS,
    generation: true,
    returns_deleted: true,
    default: |claim| {
        if let Some(spec) = child(claim, "spec") {
            default_claim(spec);
        }
    },
    create: |claim| claim["status"] = json!({}),
    validate: |claim, errors| check(claim, CLAIM, errors),
    validate_update: |new, old, errors| frozen(new, old, &["/spec"], errors),
    validate_status: |new, old, errors| {
        const RULES: &[Rule] = &[
            Rule("status.reservedFor", &[Check::Most(256), Check::UniqueBy(&["uid"])]),
            Rule("status.reservedFor[*].resource", &[Check::Required("")]),
            Rule("status.reservedFor[*].name", &[Check::Required("")]),
            Rule("status.reservedFor[*].uid", &[Check::Required("")]),
            Rule("status.allocation.devices.results", &[Check::Most(MANY)]),
            Rule("status.allocation.devices.results[*].driver", DRIVER),
            Rule("status.allocation.devices.results[*].pool", POOL),
            Rule(
                "status.allocation.devices.results[*].device",
                &[Check::Required(""), Check::Name(NameRule::Label)],
            ),
            Rule(
                "status",
                &[Check::Is(|status, errors| {
                    let reserved = status.field("reservedFor");
                    if reserved.is_set() && status.field("allocation").value.is_null() {
                        errors.forbidden(reserved, "may not be specified when `allocated` is not set");
                    }
                })],
            ),
        ];
        check(new, RULES, errors);
        let allocation = |claim: &Value| claim.pointer("/status/allocation").cloned();
        if let (Some(before), Some(now)) = (allocation(old), allocation(new))
            && before != now
        {
            errors.invalid("status.allocation", now, "field is immutable");
        }
    },
    ..BASE
};

const CLAIM: &[Rule] = &[Rule("spec.devices", &[Check::Has(DEVICES)])];

fn default_claim(spec: &mut Value) {
    let requests = spec.pointer_mut("/devices/requests").and_then(Value::as_array_mut);
    for request in requests.into_iter().flatten() {
        if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
            default_request(exactly);
        }
        for sub in request.get_mut("firstAvailable").and_then(Value::as_array_mut).into_iter().flatten() {
            default_request(sub);
        }
    }
}

fn default_request(request: &mut Value) {
    default_text(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" {
        default(request, "count", 1);
    }
    for toleration in request.get_mut("tolerations").and_then(Value::as_array_mut).into_iter().flatten() {
        default_text(toleration, "operator", "Equal");
    }
}

const DEVICES: &[Rule] = &[
    Rule("requests", &[Check::Most(MANY), Check::UniqueBy(&["name"])]),
    Rule("requests[*].name", &[Check::Required(""), Check::Name(NameRule::Label)]),
    Rule(
        "requests[*]",
        &[Check::Is(|at, errors| {
            match (at.field("exactly").is_set(), at.field("firstAvailable").is_set()) {
                (false, false) => {
                    errors.required(at, "exactly one of `exactly` or `firstAvailable` is required")
                }
                (true, true) => at.invalid(
                    errors,
                    "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
                ),
                _ => {}
            }
        })],
    ),
    Rule("requests[*].exactly", &[Check::Has(REQUEST)]),
    Rule("requests[*].firstAvailable", &[Check::Most(8), Check::UniqueBy(&["name"])]),
    Rule("requests[*].firstAvailable[*].name", &[Check::Required(""), Check::Name(NameRule::Label)]),
    Rule("requests[*].firstAvailable[*]", &[Check::Has(REQUEST)]),
    Rule("constraints", &[Check::Most(MANY)]),
    Rule(
        "constraints[*]",
        &[Check::Is(|at, errors| {
            let there = |name| !at.field(name).value.is_null();
            match (there("matchAttribute"), there("distinctAttribute")) {
                (false, false) => errors.required(at.field("matchAttribute"), ""),
                (true, true) => at
                    .field("distinctAttribute")
                    .invalid(errors, "only one of matchAttribute and distinctAttribute may be set"),
                _ => {}
            }
        })],
    ),
    Rule("constraints[*].matchAttribute", &[Check::Is(check_full_name)]),
    Rule("constraints[*].distinctAttribute", &[Check::Is(check_full_name)]),
    Rule("constraints[*].requests", &[Check::Most(MANY), Check::Unique]),
    Rule("config", &[Check::Most(MANY)]),
    Rule("config[*].requests", &[Check::Most(MANY), Check::Unique]),
    Rule("config[*].opaque", &[Check::Required("")]),
    Rule("config[*].opaque", OPAQUE),
    Rule("", &[Check::Is(check_request_names)]),
];

/// Validates a qualified name with a domain.
fn check_full_name(at: &At<'_>, errors: &mut FieldErrors) {
    let good = at.as_text().split_once('/').is_some_and(|(domain, name)| {
        names::is_subdomain(domain) && domain.len() <= 63 && is_identifier(name)
    });
    if !good {
        at.invalid(
            errors,
            "must include a domain and a name that is a C identifier of at most 32 characters",
        );
    }
}

fn is_identifier(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .enumerate()
            .all(|(i, b)| b == b'_' || b.is_ascii_alphabetic() || (i > 0 && b.is_ascii_digit()))
}

/// Requires that constraints and configurations refer to existing requests.
fn check_request_names(devices: &At<'_>, errors: &mut FieldErrors) {
    let mut known: Vec<String> = Vec::new();
    for request in devices.field("requests").items() {
        let name = request.text("name");
        known.push(name.to_owned());
        known.extend(
            request.field("firstAvailable").items().map(|sub| format!("{name}/{}", sub.text("name"))),
        );
    }
    for list in ["constraints", "config"] {
        for entry in devices.field(list).items() {
            for named in entry.field("requests").items().filter(|n| !known.iter().any(|k| k == n.as_text())) {
                named.invalid(errors, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'");
            }
        }
    }
}

const REQUEST: &[Rule] = &[
    Rule("deviceClassName", &[Check::Required(""), Check::Name(NameRule::Subdomain)]),
    Rule("selectors", SELECTORS),
    Rule("allocationMode", &[Check::OneOf(&["All", "ExactCount"])]),
    Rule(
        "",
        &[Check::Is(|at, errors| {
            let count = at.field("count");
            match (at.text("allocationMode"), count.value.as_i64().unwrap_or(0)) {
                ("All", n) if n != 0 => {
                    count.invalid(errors, "must not be specified when allocationMode is 'All'")
                }
                ("ExactCount", n) if n <= 0 => errors.invalid(count, n, "must be greater than zero"),
                _ => {}
            }
        })],
    ),
    Rule("tolerations", &[Check::Most(16)]),
    Rule("tolerations[*].key", &[Check::Qualified]),
    Rule("tolerations[*].operator", &[Check::Required(""), Check::OneOf(&["Equal", "Exists"])]),
    Rule("tolerations[*].effect", &[Check::OneOf(TAINT_EFFECTS)]),
    Rule(
        "tolerations[*]",
        &[Check::Is(|at, errors| {
            if at.text("operator") == "Exists" && !at.text("value").is_empty() {
                at.field("value").invalid(errors, "must be empty for operator `Exists`");
            }
            if at.text("operator") == "Equal" && at.text("key").is_empty() {
                errors.required(at.field("key"), "");
            }
        })],
    ),
];

const TAINT_EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// Defaults and validation of ResourceClaimTemplates.
pub static RESOURCE_CLAIM_TEMPLATE: Strategy = Strategy {
    generation: true,
    returns_deleted: true,
    default: |template| {
        if let Some(spec) = child(template, "spec").and_then(|s| child(s, "spec")) {
            default_claim(spec);
        }
    },
    validate: |template, errors| {
        check(template, &[Rule("spec.spec.devices", &[Check::Has(DEVICES)])], errors);
    },
    validate_update: |new, old, errors| frozen(new, old, &["/spec"], errors),
    ..BASE
};

const POOL: &[Check] = &[
    Check::Required(""),
    Check::Longest(253),
    Check::Is(|at, errors| {
        for part in at.as_text().split('/') {
            if !names::is_subdomain(part) {
                at.invalid(errors, names::SUBDOMAIN_MESSAGE);
            }
        }
    }),
];

/// Defaults and validation of ResourceSlices.
pub static RESOURCE_SLICE: Strategy = Strategy {
    generation: true,
    returns_deleted: true,
    validate: |slice, errors| check(slice, SLICE, errors),
    validate_update: |new, old, errors| {
        frozen(new, old, &["/spec/pool/name", "/spec/driver", "/spec/nodeName"], errors);
    },
    ..BASE
};

const SLICE: &[Rule] = &[
    Rule("spec.driver", DRIVER),
    Rule("spec.pool.name", POOL),
    Rule("spec.pool.generation", &[Check::AtLeast(0)]),
    Rule("spec.pool.resourceSliceCount", &[Check::Within(1, i64::MAX)]),
    Rule(
        "spec",
        &[Check::Is(|spec, errors| {
            let places = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
            let set = places
                .iter()
                .filter(|p| spec.field(p).is_set() && spec.field(p).value != &Value::Bool(false));
            match set.count() {
            0 => errors.required(spec, "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"),
            1 => {}
            _ => spec.invalid(errors, "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"),
        }
        })],
    ),
    Rule("spec.nodeName", &[Check::Name(NameRule::Subdomain)]),
    Rule("spec.devices", &[Check::Most(128), Check::UniqueBy(&["name"])]),
    Rule("spec.devices[*].name", &[Check::Required(""), Check::Name(NameRule::Label)]),
    Rule(
        "spec.devices[*]",
        &[Check::Is(|device, errors| {
            let count =
                device.field("attributes").entries().count() + device.field("capacity").entries().count();
            if count > 32 {
                device.invalid(errors, "the total number of attributes and capacities must not exceed 32");
            }
            for map in ["attributes", "capacity"] {
                for (key, value) in device.field(map).entries() {
                    let (domain, name) = key.split_once('/').map_or(("a", key), |(d, n)| (d, n));
                    if !names::is_subdomain(domain) || !is_identifier(name) {
                        errors.invalid(device.field(map), key, "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')");
                    }
                    if map == "attributes" {
                        check_attribute(&value, errors);
                    }
                }
            }
        })],
    ),
    Rule("spec.devices[*].taints", &[Check::Most(16)]),
    Rule("spec.devices[*].taints[*].key", &[Check::Required(""), Check::Qualified]),
    Rule("spec.devices[*].taints[*].effect", &[Check::Required(""), Check::OneOf(TAINT_EFFECTS)]),
    Rule("spec.sharedCounters", &[Check::Most(8), Check::UniqueBy(&["name"])]),
    Rule("spec.sharedCounters[*].name", &[Check::Required(""), Check::Name(NameRule::Label)]),
    Rule("spec.sharedCounters[*].counters", &[Check::Required("")]),
    Rule("spec.devices[*].consumesCounters", &[Check::UniqueBy(&["counterSet"])]),
    Rule("spec.devices[*].consumesCounters[*].counterSet", &[Check::Required("")]),
    Rule("spec.devices[*].consumesCounters[*].counters", &[Check::Required("")]),
];

fn check_attribute(at: &At<'_>, errors: &mut FieldErrors) {
    match at.entries().count() {
        0 => errors.required(at, "exactly one value must be specified"),
        1 => {}
        _ => at.invalid(errors, "exactly one value must be specified"),
    }
    for field in ["string", "version"] {
        if at.text(field).len() > 64 {
            errors.too_long(at.field(field), 64);
        }
    }
    let version = at.field("version");
    let is_there = at.entries().any(|(name, _)| name == "version");
    if is_there && k8s_cel::Value::semver(at.text("version")).is_none() {
        version.invalid(errors, "must be a string compatible with semver.org spec 2.0.0");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn versions_of_devices_are_semantic() {
        let said = |attribute: Value| {
            let devices = json!([{"name": "a", "attributes": {"fw": attribute}}]);
            let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
            let spec = json!({"driver": "d.example.com", "nodeName": "n", "pool": pool, "devices": devices});
            let mut errors = FieldErrors::default();
            (RESOURCE_SLICE.validate)(&json!({"metadata": {"name": "s"}, "spec": spec}), &mut errors);
            if errors.is_empty() {
                return String::new();
            }
            errors.into_status("resource.k8s.io", "ResourceSlice", "s").to_string()
        };
        assert_eq!(said(json!({"version": "1.2.3-rc.1+b"})), "");
        assert_eq!(said(json!({"string": "v1"})), "");
        for bad in ["v1", "1.2", "01.2.3", ""] {
            let said = said(json!({"version": bad}));
            assert!(said.contains("must be a string compatible with semver.org spec 2.0.0"), "{bad}: {said}");
        }
    }
}
