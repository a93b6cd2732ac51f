//! Webhook configurations, admission policies and their bindings.

use std::sync::Arc;

use k8s_cel::{Decl, Env, Program, Type};
use serde_json::{Value, json};

use super::{
    BASE, METADATA_OF_CLIENTS, NameRule, Strategy,
    rule::{At, Check, Rule, check},
};
use crate::{
    expressions::{compile, environment, message_environment, policy_environment},
    invalid::{FieldErrors, names},
    value::{child, default, default_text},
};

const FAILURE_POLICIES: &[Check] = &[Check::OneOf(&["Fail", "Ignore"])];
const MATCH_POLICIES: &[Check] = &[Check::OneOf(&["Equivalent", "Exact"])];

fn default_webhooks(configuration: &mut Value, mutating: bool) {
    for webhook in configuration.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
        default_text(webhook, "failurePolicy", "Fail");
        default_text(webhook, "matchPolicy", "Equivalent");
        default(webhook, "namespaceSelector", json!({}));
        default(webhook, "objectSelector", json!({}));
        default(webhook, "timeoutSeconds", 10);
        if mutating {
            default_text(webhook, "reinvocationPolicy", "Never");
        }
        if let Some(service) = webhook.pointer_mut("/clientConfig/service").filter(|s| s.is_object()) {
            default(service, "port", 443);
        }
        for rule in webhook.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
            default_text(rule, "scope", "*");
        }
    }
}

/// Defaults and validation of MutatingWebhookConfigurations.
pub static MUTATING_WEBHOOKS: Strategy = Strategy {
    allow_unconditional_update: false,
    generation: true,
    default: |configuration| default_webhooks(configuration, true),
    validate: |configuration, errors| check(configuration, WEBHOOKS, errors),
    ..BASE
};

/// Defaults and validation of ValidatingWebhookConfigurations.
pub static VALIDATING_WEBHOOKS: Strategy = Strategy {
    allow_unconditional_update: false,
    generation: true,
    default: |configuration| default_webhooks(configuration, false),
    validate: |configuration, errors| check(configuration, WEBHOOKS, errors),
    ..BASE
};

const WEBHOOKS: &[Rule] = &[
    Rule("webhooks", &[Check::UniqueBy(&["name"])]),
    Rule("webhooks[*].name", &[Check::Required(""), Check::Is(check_webhook_name)]),
    Rule("webhooks[*].rules[*]", RULE),
    Rule("webhooks[*].failurePolicy", FAILURE_POLICIES),
    Rule("webhooks[*].matchPolicy", MATCH_POLICIES),
    Rule(
        "webhooks[*].sideEffects",
        &[Check::Required("must specify one of None, NoneOnDryRun"), Check::OneOf(&["None", "NoneOnDryRun"])],
    ),
    Rule(
        "webhooks[*].timeoutSeconds",
        &[Check::Is(|at, errors| match at.value.as_i64() {
            Some(n) if n < 1 => at.invalid(errors, "the timeout value must be at least 1 second"),
            Some(n) if n > 30 => at.invalid(errors, "the timeout value must be at most 30 seconds"),
            _ => {}
        })],
    ),
    Rule("webhooks[*].reinvocationPolicy", &[Check::OneOf(&["IfNeeded", "Never"])]),
    Rule("webhooks[*].namespaceSelector", &[Check::Selector]),
    Rule("webhooks[*].objectSelector", &[Check::Selector]),
    Rule(
        "webhooks[*].admissionReviewVersions",
        &[Check::Required("must specify one of v1, v1beta1"), Check::Is(check_review_versions)],
    ),
    Rule("webhooks[*].clientConfig", CLIENT),
    Rule("webhooks[*].matchConditions", MATCH_CONDITIONS),
    Rule("webhooks[*]", &[Check::Is(|hook, errors| check_conditions(hook, &environment(), errors))]),
];

/// Requires a name of at least three parts.
fn check_webhook_name(at: &At<'_>, errors: &mut FieldErrors) {
    let name = at.as_text();
    if !names::is_subdomain(name) {
        at.invalid(errors, names::SUBDOMAIN_MESSAGE);
    } else if name.split('.').count() < 3 {
        at.invalid(errors, "should be a domain with at least three segments separated by dots");
    }
}

fn check_review_versions(at: &At<'_>, errors: &mut FieldErrors) {
    let known = |version: &str| ["v1", "v1beta1"].contains(&version);
    if !at.items().any(|v| known(v.as_text())) {
        at.invalid(errors, "must include at least one of v1, v1beta1");
    }
    let mut seen = std::collections::HashSet::new();
    for version in at.items() {
        if !seen.insert(version.as_text()) {
            version.invalid(errors, "duplicate version");
        }
        if !names::is_label_1035(version.as_text()) {
            version.invalid(errors, names::LABEL_1035_MESSAGE);
        }
    }
}

/// Connection to a webhook: exactly one of URL and Service.
pub(super) const CLIENT: &[Check] = &[
    Check::Is(|at, errors| {
        if at.field("url").value.is_null() == at.field("service").value.is_null() {
            errors.required(at, "exactly one of url or service is required");
        }
    }),
    Check::Has(&[
        Rule("url", &[Check::Is(check_url)]),
        Rule("service.name", &[Check::Required("service name is required")]),
        Rule("service.namespace", &[Check::Required("service namespace is required")]),
        Rule("service.port", &[Check::Between(1, 65535)]),
        Rule("service.path", &[Check::Is(check_service_path)]),
    ]),
];

fn check_url(at: &At<'_>, errors: &mut FieldErrors) {
    const FORM: &str = "desired format: https://host[/path]";
    let url = at.as_text();
    let Ok(uri) = url.parse::<http::Uri>() else {
        return errors.required(at, &format!("url must be a valid URL: cannot parse; {FORM}"));
    };
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    for (wrong, detail) in [
        (uri.scheme_str() != Some("https"), "'https' is the only allowed URL scheme"),
        (uri.host().unwrap_or_default().is_empty(), "host must be specified"),
        (authority.contains('@'), "user information is not permitted in the URL"),
        (url.contains('#'), "fragments are not permitted in the URL"),
        (path.contains('?') || authority.contains('?'), "query parameters are not permitted in the URL"),
    ] {
        if wrong {
            errors.invalid(at, url, format!("{detail}; {FORM}"));
        }
    }
}

fn check_service_path(at: &At<'_>, errors: &mut FieldErrors) {
    let path = at.as_text();
    if path.is_empty() || path == "/" {
        return;
    }
    if path == "//" {
        return at.invalid(errors, "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        at.invalid(errors, "must start with a '/'");
    }
    let whole = path.strip_prefix('/').unwrap_or(path);
    let whole = whole.strip_suffix('/').unwrap_or(whole);
    for (i, segment) in whole.split('/').enumerate() {
        if segment.is_empty() {
            at.invalid(errors, format!("segment[{i}] may not be empty"));
        } else if !names::is_subdomain(segment) {
            at.invalid(errors, format!("segment[{i}]: {}", names::SUBDOMAIN_MESSAGE));
        }
    }
}

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// Requires that `*` is the only element of its list.
fn star_alone(at: &At<'_>, what: &str, errors: &mut FieldErrors) {
    if at.items().count() > 1 && at.items().any(|v| v.as_text() == "*") {
        at.invalid(errors, format!("if '*' is present, must not specify other {what}"));
    }
}

/// Rules that select the requests of a webhook or policy.
const RULE: &[Check] = &[Check::Has(&[
    Rule("operations", &[Check::Required(""), Check::Is(|at, errors| star_alone(at, "operations", errors))]),
    Rule("operations[*]", &[Check::OneOf(OPERATIONS)]),
    Rule("apiGroups", &[Check::Required(""), Check::Is(|at, errors| star_alone(at, "API groups", errors))]),
    Rule(
        "apiVersions",
        &[Check::Required(""), Check::Is(|at, errors| star_alone(at, "API versions", errors))],
    ),
    Rule("apiVersions[*]", &[Check::Required("")]),
    Rule("resources", &[Check::Required(""), Check::Is(check_resources)]),
    Rule("scope", &[Check::OneOf(&["*", "Cluster", "Namespaced"])]),
])];

fn check_resources(at: &At<'_>, errors: &mut FieldErrors) {
    let (mut whole, mut subresources) = (false, std::collections::HashSet::new());
    for item in at.items() {
        let text = item.as_text();
        if text.is_empty() {
            errors.required(item, "");
            continue;
        }
        whole |= text == "*/*";
        let (resource, subresource) = text.split_once('/').unwrap_or((text, ""));
        if !subresource.is_empty() && subresource != "*" {
            subresources.insert(resource.to_owned());
        }
    }
    if whole && at.items().count() > 1 {
        at.invalid(errors, "if '*/*' is present, must not specify other resources");
    }
    for item in at.items() {
        let Some((resource, "*")) = item.as_text().split_once('/') else { continue };
        if subresources.contains(resource) {
            item.invalid(errors, format!("if '{resource}/*' is present, must not specify {resource}/x"));
        }
    }
}

/// Checks of `matchConditions`: at most 64, unique names.
const MATCH_CONDITIONS: &[Check] = &[
    Check::Most(64),
    Check::UniqueBy(&["name"]),
    Check::Has(&[
        Rule("[*].name", &[Check::Required(""), Check::Qualified]),
        Rule("[*].expression", EXPRESSION),
    ]),
];

/// A CEL expression, which is compiled with those that it depends on.
const EXPRESSION: &[Check] = &[Check::Required(""), Check::Is(check_blank)];

fn check_blank(at: &At<'_>, errors: &mut FieldErrors) {
    if at.as_text().trim().is_empty() {
        errors.required(at, "");
    }
}

/// Checks that an expression compiles, and that its result has one of these types.
fn check_type(env: &Env, at: &At<'_>, results: &[Type], errors: &mut FieldErrors) -> Option<Program> {
    let text = at.as_text();
    if text.trim().is_empty() {
        return None;
    }
    compile(env, text, results).map_err(|why| at.invalid(errors, why)).ok()
}

fn check_conditions(of: &At<'_>, env: &Env, errors: &mut FieldErrors) {
    for condition in of.field("matchConditions").items() {
        check_type(env, &condition.field("expression"), &[Type::Bool], errors);
    }
}

/// Compiles all expressions of a policy, each with the variables that it may use.
fn check_policy(spec: &At<'_>, errors: &mut FieldErrors) {
    let has_params = spec.field("paramKind").is_set();
    let (mut env, mut messages) = (policy_environment(has_params), message_environment(has_params));
    check_conditions(spec, &env, errors);
    if spec.field("mutations").is_set() {
        env = env.makes_objects();
    }
    for variable in spec.field("variables").items() {
        let program = check_type(&env, &variable.field("expression"), &[], errors);
        let ty = program.map_or(Type::Dyn, |program| program.result_type().clone());
        let (name, decl) = (format!("variables.{}", variable.text("name")), Arc::new(Decl::new(ty)));
        env = env.variable(name.clone(), decl.clone());
        messages = messages.variable(name, decl);
    }
    for validation in spec.field("validations").items() {
        check_type(&env, &validation.field("expression"), &[Type::Bool], errors);
        check_type(&messages, &validation.field("messageExpression"), &[Type::String], errors);
    }
    for mutation in spec.field("mutations").items() {
        for (field, wanted) in [("applyConfiguration", "Object"), ("jsonPatch", "list(JSONPatch)")] {
            let place = mutation.field(field);
            let expression = place.field("expression");
            let Some(program) = check_type(&env, &expression, &[], errors) else { continue };
            let result = program.result_type().to_string();
            // An empty list has no type of elements.
            if result != wanted && !(wanted.starts_with("list") && result == "list(dyn)") {
                expression.invalid(errors, format!("must evaluate to {wanted}"));
            }
        }
    }
    for annotation in spec.field("auditAnnotations").items() {
        check_type(&messages, &annotation.field("valueExpression"), &[Type::String, Type::Null], errors);
    }
}

fn default_constraints(constraints: &mut Value) {
    default_text(constraints, "matchPolicy", "Equivalent");
    default(constraints, "namespaceSelector", json!({}));
    default(constraints, "objectSelector", json!({}));
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in constraints.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            default_text(rule, "scope", "*");
        }
    }
}

fn default_policy(policy: &mut Value) {
    let Some(spec) = child(policy, "spec") else { return };
    default_text(spec, "failurePolicy", "Fail");
    if let Some(constraints) = spec.get_mut("matchConstraints").filter(|c| c.is_object()) {
        default_constraints(constraints);
    }
}

/// Constraints on the requests of a policy or binding.
const MATCH: &[Check] = &[Check::Has(&[
    Rule("matchPolicy", MATCH_POLICIES),
    Rule("namespaceSelector", &[Check::Selector]),
    Rule("objectSelector", &[Check::Selector]),
    Rule("resourceRules[*]", RULE),
    Rule("excludeResourceRules[*]", RULE),
])];

const PARAM_KIND: &[Check] =
    &[Check::Has(&[Rule("apiVersion", &[Check::Required("")]), Rule("kind", &[Check::Required("")])])];

const VARIABLES: &[Check] = &[
    Check::UniqueBy(&["name"]),
    Check::Has(&[
        Rule(
            "[*].name",
            &[
                Check::Required(""),
                Check::Is(|at, errors| {
                    let good =
                        at.as_text().bytes().enumerate().all(|(i, b)| {
                            b == b'_' || b.is_ascii_alphabetic() || (i > 0 && b.is_ascii_digit())
                        });
                    if !good {
                        at.invalid(errors, "name is not a valid CEL identifier");
                    }
                }),
            ],
        ),
        Rule("[*].expression", EXPRESSION),
    ]),
];

/// Fields that both kinds of policies have.
const POLICY: &[Rule] = &[
    Rule("spec.failurePolicy", &[Check::Required(""), Check::OneOf(&["Fail", "Ignore"])]),
    Rule("spec.paramKind", PARAM_KIND),
    Rule(
        "spec.matchConstraints",
        &[Check::Required(""), Check::Has(&[Rule("resourceRules", &[Check::Required("")])])],
    ),
    Rule("spec.matchConstraints", MATCH),
    Rule("spec.matchConditions", MATCH_CONDITIONS),
    Rule("spec.variables", VARIABLES),
];

/// Defaults and validation of ValidatingAdmissionPolicies.
pub static VALIDATING_POLICY: Strategy = Strategy {
    allow_unconditional_update: false,
    fixed_by_status: &METADATA_OF_CLIENTS,
    generation: true,
    default: default_policy,
    validate: |policy, errors| {
        const RULES: &[Rule] = &[
            Rule(
                "spec",
                &[Check::Is(|spec, errors| {
                    if !spec.field("validations").is_set() && !spec.field("auditAnnotations").is_set() {
                        errors.required(
                            spec.field("validations"),
                            "validations or auditAnnotations must be specified",
                        );
                        errors.required(
                            spec.field("auditAnnotations"),
                            "validations or auditAnnotations must be specified",
                        );
                    }
                })],
            ),
            Rule("spec.validations[*].expression", EXPRESSION),
            Rule("spec", &[Check::Is(check_policy)]),
            Rule(
                "spec.validations[*].message",
                &[Check::Is(|at, errors| {
                    if at.as_text().contains('\n') {
                        at.invalid(errors, "message must not contain line breaks");
                    }
                })],
            ),
            Rule(
                "spec.validations[*].reason",
                &[Check::OneOf(&["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"])],
            ),
            Rule("spec.auditAnnotations", &[Check::Most(20), Check::UniqueBy(&["key"])]),
            Rule("spec.auditAnnotations[*].key", &[Check::Required(""), Check::Qualified]),
            Rule("spec.auditAnnotations[*].valueExpression", EXPRESSION),
        ];
        check(policy, POLICY, errors);
        check(policy, RULES, errors);
    },
    ..BASE
};

/// Defaults and validation of MutatingAdmissionPolicies.
pub static MUTATING_POLICY: Strategy = Strategy {
    generation: true,
    default: |policy| {
        default_policy(policy);
        if let Some(spec) = child(policy, "spec") {
            default_text(spec, "reinvocationPolicy", "Never");
        }
    },
    validate: |policy, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.mutations", &[Check::Required("mutations must contain at least one item")]),
            Rule(
                "spec.mutations[*].patchType",
                &[Check::Required(""), Check::OneOf(&["ApplyConfiguration", "JSONPatch"])],
            ),
            Rule(
                "spec.mutations[*]",
                &[Check::Member(
                    "patchType",
                    &[("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")],
                    "must be specified for the patch type",
                    "must not be specified for the patch type",
                )],
            ),
            Rule("spec.mutations[*].applyConfiguration.expression", EXPRESSION),
            Rule("spec.mutations[*].jsonPatch.expression", EXPRESSION),
            Rule("spec.reinvocationPolicy", &[Check::Required(""), Check::OneOf(&["IfNeeded", "Never"])]),
            Rule("spec", &[Check::Is(check_policy)]),
        ];
        check(policy, POLICY, errors);
        check(policy, RULES, errors);
    },
    ..BASE
};

fn default_binding(binding: &mut Value) {
    let Some(spec) = child(binding, "spec") else { return };
    if let Some(constraints) = spec.get_mut("matchResources").filter(|c| c.is_object()) {
        default_constraints(constraints);
    }
}

const PARAM_REF: &[Check] = &[
    Check::Is(|at, errors| match (at.text("name").is_empty(), at.field("selector").value.is_null()) {
        (true, true) => errors.required(at, "one of name or selector must be specified"),
        (false, false) => at.field("name").invalid(errors, "name and selector are mutually exclusive"),
        _ => {}
    }),
    Check::Has(&[
        Rule("name", &[Check::Name(NameRule::Segment)]),
        Rule("selector", &[Check::Selector]),
        Rule("namespace", &[Check::Name(NameRule::Label)]),
        Rule("parameterNotFoundAction", &[Check::Required(""), Check::OneOf(&["Allow", "Deny"])]),
    ]),
];

/// Defaults and validation of ValidatingAdmissionPolicyBindings.
pub static VALIDATING_BINDING: Strategy = Strategy {
    allow_unconditional_update: false,
    generation: true,
    default: default_binding,
    validate: |binding, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.policyName", &[Check::Required(""), Check::Name(NameRule::Subdomain)]),
            Rule("spec.paramRef", PARAM_REF),
            Rule("spec.matchResources", MATCH),
            Rule(
                "spec.validationActions",
                &[
                    Check::Required(""),
                    Check::Unique,
                    Check::Is(|at, errors| {
                        let has = |action| at.items().any(|a| a.as_text() == action);
                        if has("Deny") && has("Warn") {
                            at.invalid(errors, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
                        }
                    }),
                ],
            ),
            Rule("spec.validationActions[*]", &[Check::OneOf(&["Audit", "Deny", "Warn"])]),
        ];
        check(binding, RULES, errors);
    },
    ..BASE
};

/// Defaults and validation of MutatingAdmissionPolicyBindings.
pub static MUTATING_BINDING: Strategy = Strategy {
    generation: true,
    default: default_binding,
    validate: |binding, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.policyName", &[Check::Required(""), Check::Name(NameRule::Subdomain)]),
            Rule("spec.paramRef", PARAM_REF),
            Rule("spec.matchResources", MATCH),
        ];
        check(binding, RULES, errors);
    },
    ..BASE
};
