//! FlowSchemas and PriorityLevelConfigurations.

use serde_json::json;

use super::{
    BASE, METADATA_OF_CLIENTS, NameRule, Strategy,
    rule::{At, Check, Rule, check, frozen},
};
use crate::{
    invalid::FieldErrors,
    resources::flow_defaults::{LEVELS, SCHEMAS, mandatory_flow},
    value::{child, default, default_number, str_at},
};

/// Defaults and validation of FlowSchemas.
pub static FLOW_SCHEMA: Strategy = Strategy {
    fixed_by_status: &METADATA_OF_CLIENTS,
    generation: true,
    create: |schema| schema["status"] = json!({}),
    default: |schema| {
        if let Some(spec) = child(schema, "spec") {
            default_number(spec, "matchingPrecedence", 1000);
        }
    },
    validate: |schema, errors| {
        check(schema, FLOW_SCHEMA_RULES, errors);
        let exempt = str_at(schema, "/metadata/name") == "exempt";
        if !exempt && crate::value::int_at(schema, "/spec/matchingPrecedence") == Some(1) {
            errors.invalid(
                "spec.matchingPrecedence",
                1,
                "only the schema named 'exempt' may have matchingPrecedence 1",
            );
        }
        let name = str_at(schema, "/metadata/name");
        if mandatory_flow(SCHEMAS, name).is_some_and(|fixed| !fixed.has_spec_of(schema)) {
            errors.invalid(
                "spec",
                schema["spec"].clone(),
                format!("spec of '{name}' must equal the fixed value"),
            );
        }
    },
    validate_status: |new, _, errors| {
        const RULES: &[Rule] = &[
            Rule("status.conditions", &[Check::UniqueBy(&["type"])]),
            Rule("status.conditions[*].type", &[Check::Required("")]),
        ];
        check(new, RULES, errors);
    },
    ..BASE
};

const FLOW_SCHEMA_RULES: &[Rule] = &[
    Rule("spec.matchingPrecedence", &[Check::Between(1, 10_000)]),
    Rule(
        "spec.priorityLevelConfiguration.name",
        &[Check::Required("must reference a priority level"), Check::Name(NameRule::Subdomain)],
    ),
    Rule("spec.distinguisherMethod.type", &[Check::OneOf(&["ByNamespace", "ByUser"])]),
    Rule("spec.rules[*].subjects", &[Check::Required("subjects must contain at least one value")]),
    Rule("spec.rules[*].subjects[*]", &[Check::Has(SUBJECT)]),
    Rule(
        "spec.rules[*]",
        &[Check::Is(|at, errors| {
            if !at.field("resourceRules").is_set() && !at.field("nonResourceRules").is_set() {
                errors.required(at, "at least one of resourceRules and nonResourceRules has to be non-empty");
            }
        })],
    ),
    Rule("spec.rules[*].resourceRules[*]", &[Check::Has(RESOURCE_RULE)]),
    Rule("spec.rules[*].nonResourceRules[*].verbs", VERBS),
    Rule(
        "spec.rules[*].nonResourceRules[*].nonResourceURLs",
        &[
            Check::Required("nonResourceURLs must contain at least one value"),
            Check::Is(|at, errors| star_alone(at, "non-resource URLs", errors)),
        ],
    ),
    Rule(
        "spec.rules[*].nonResourceRules[*].nonResourceURLs[*]",
        &[Check::Is(|at, errors| {
            let url = at.as_text();
            if url == "*" {
                return;
            }
            let inner = url.strip_suffix("/*").unwrap_or(url);
            for (wrong, detail) in [
                (url.is_empty(), "nonResourceURL must not be empty"),
                (!url.is_empty() && !url.starts_with('/'), "must start with slash"),
                (url.contains(' '), "must not contain white-space"),
                (url.contains("//"), "must not contain double slash"),
                (inner.contains('*'), "wildcard can only do suffix matching"),
            ] {
                if wrong {
                    at.invalid(errors, detail);
                }
            }
        })],
    ),
];

const SUBJECT: &[Rule] = &[
    Rule("kind", &[Check::Required(""), Check::OneOf(&["Group", "ServiceAccount", "User"])]),
    Rule(
        "",
        &[Check::Member(
            "kind",
            &[("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")],
            "is required when subject kind names it",
            "is forbidden when subject kind does not name it",
        )],
    ),
    Rule("user.name", &[Check::Required("")]),
    Rule("group.name", &[Check::Required("")]),
    Rule("serviceAccount.name", &[Check::Required("")]),
    Rule("serviceAccount.namespace", &[Check::Required("must specify namespace for service account")]),
];

const VERBS: &[Check] = &[
    Check::Required("verbs must contain at least one value"),
    Check::Is(|at, errors| star_alone(at, "verbs", errors)),
    Check::Has(&[Rule(
        "[*]",
        &[Check::OneOf(&[
            "*",
            "create",
            "delete",
            "deletecollection",
            "get",
            "head",
            "list",
            "options",
            "patch",
            "post",
            "proxy",
            "put",
            "update",
            "watch",
        ])],
    )]),
];

const RESOURCE_RULE: &[Rule] = &[
    Rule("verbs", VERBS),
    Rule(
        "apiGroups",
        &[
            Check::Required("resource rules must supply at least one api group"),
            Check::Is(|at, errors| star_alone(at, "api groups", errors)),
        ],
    ),
    Rule(
        "resources",
        &[
            Check::Required("resource rules must supply at least one resource"),
            Check::Is(|at, errors| star_alone(at, "resources", errors)),
        ],
    ),
    Rule(
        "",
        &[Check::Is(|at, errors| {
            if !at.field("namespaces").is_set() && !at.truth("clusterScope") {
                errors.required(
                    at.field("namespaces"),
                    "resource rules that are not cluster scoped must supply at least one namespace",
                );
            }
        })],
    ),
    Rule("namespaces", &[Check::Is(|at, errors| star_alone(at, "namespaces", errors))]),
    Rule(
        "namespaces[*]",
        &[Check::Is(|at, errors| {
            if at.as_text() != "*" {
                NameRule::Label.check(&at.to_string(), at.as_text(), errors);
            }
        })],
    ),
];

/// Requires that `*` is the only element of its list.
fn star_alone(at: &At<'_>, what: &str, errors: &mut FieldErrors) {
    if at.items().count() > 1 && at.items().any(|v| v.as_text() == "*") {
        at.invalid(errors, format!("if '*' is present, must not specify other {what}"));
    }
}

/// Defaults and validation of PriorityLevelConfigurations.
pub static PRIORITY_LEVEL: Strategy = Strategy {
    fixed_by_status: &METADATA_OF_CLIENTS,
    generation: true,
    create: |level| level["status"] = json!({}),
    default: |level| {
        let Some(spec) = child(level, "spec") else { return };
        if str_at(spec, "/type") == "Exempt"
            && let Some(exempt) = child(spec, "exempt")
        {
            default(exempt, "nominalConcurrencyShares", 0);
            default(exempt, "lendablePercent", 0);
        }
        let Some(limited) = spec.get_mut("limited").filter(|l| l.is_object()) else { return };
        default(limited, "nominalConcurrencyShares", 30);
        default(limited, "lendablePercent", 0);
        if let Some(queuing) = limited.pointer_mut("/limitResponse/queuing").filter(|q| q.is_object()) {
            default_number(queuing, "queues", 64);
            default_number(queuing, "handSize", 8);
            default_number(queuing, "queueLengthLimit", 50);
        }
    },
    validate: |level, errors| {
        let (name, kind) = (str_at(level, "/metadata/name"), str_at(level, "/spec/type"));
        if (name == "exempt") != (kind == "Exempt") {
            let detail = "must be 'Exempt' if and only if `name` is 'exempt'";
            errors.invalid("spec.type", kind, detail);
        }
        check(level, LEVEL, errors);
        if mandatory_flow(LEVELS, name).is_some_and(|fixed| !fixed.has_spec_of(level)) {
            let but = if name == "exempt" { " except the 'spec.exempt' field" } else { "" };
            let detail = format!("spec of '{name}'{but} must equal the fixed value");
            errors.invalid("spec", level["spec"].clone(), detail);
        }
    },
    validate_update: |new, old, errors| {
        if ["exempt", "catch-all"].contains(&str_at(old, "/metadata/name")) {
            frozen(new, old, &["/spec/type"], errors);
        }
    },
    ..BASE
};

const LEVEL: &[Rule] = &[
    Rule("spec.type", &[Check::Required(""), Check::OneOf(&["Exempt", "Limited"])]),
    Rule(
        "spec",
        &[Check::Is(|spec, errors| {
            let there = |name| !spec.field(name).value.is_null();
            match spec.text("type") {
                "Exempt" if there("limited") => {
                    errors.forbidden(spec.field("limited"), "must be nil if the type is not Limited");
                }
                "Limited" if !there("limited") => {
                    errors.required(spec.field("limited"), "must not be empty when type is Limited");
                }
                "Limited" if there("exempt") => {
                    errors.forbidden(spec.field("exempt"), "must be nil if the type is Limited");
                }
                _ => {}
            }
        })],
    ),
    Rule("spec.limited.nominalConcurrencyShares", &[Check::Is(not_negative)]),
    Rule("spec.exempt.nominalConcurrencyShares", &[Check::Is(not_negative)]),
    Rule("spec.limited.lendablePercent", &[Check::Between(0, 100)]),
    Rule("spec.exempt.lendablePercent", &[Check::Between(0, 100)]),
    Rule(
        "spec.limited.borrowingLimitPercent",
        &[Check::Is(|at, errors| {
            if at.value.as_i64().is_some_and(|n| n < 0) {
                at.invalid(errors, "if specified, must be a non-negative integer");
            }
        })],
    ),
    Rule("spec.limited.limitResponse.type", &[Check::Required(""), Check::OneOf(&["Queue", "Reject"])]),
    Rule(
        "spec.limited.limitResponse",
        &[Check::Is(|at, errors| {
            let queuing = at.field("queuing");
            match at.text("type") {
                "Reject" if !queuing.value.is_null() => {
                    errors.forbidden(queuing, "must be nil if limited.limitResponse.type is not Limited");
                }
                "Queue" if queuing.value.is_null() => {
                    errors.required(queuing, "must not be empty if limited.limitResponse.type is Limited");
                }
                _ => {}
            }
        })],
    ),
    Rule("spec.limited.limitResponse.queuing", &[Check::Is(check_queuing)]),
];

fn not_negative(at: &At<'_>, errors: &mut FieldErrors) {
    if at.value.as_i64().is_some_and(|n| n < 0) {
        at.invalid(errors, "must be a non-negative integer");
    }
}

fn check_queuing(at: &At<'_>, errors: &mut FieldErrors) {
    const MOST_QUEUES: i64 = 10_000_000;
    let number = |name| at.integer(name).unwrap_or(0);
    let (queues, hand) = (number("queues"), number("handSize"));
    if number("queueLengthLimit") <= 0 {
        at.field("queueLengthLimit").invalid(errors, "must be positive");
    }
    if queues <= 0 {
        at.field("queues").invalid(errors, "must be positive");
    } else if queues > MOST_QUEUES {
        at.field("queues").invalid(errors, format!("must not be greater than {MOST_QUEUES}"));
    }
    if hand <= 0 {
        at.field("handSize").invalid(errors, "must be positive");
    } else if hand > queues {
        at.field("handSize").invalid(errors, format!("should not be greater than queues ({queues})"));
    } else if (0..hand)
        .try_fold(1u64, |bits, i| bits.checked_mul((queues - i).max(1) as u64))
        .is_none_or(|n| n > 1 << 60)
    {
        at.field("handSize").invalid(
            errors,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60"
            ),
        );
    }
}
