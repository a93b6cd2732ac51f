//! RuntimeClasses, PriorityClasses, ControllerRevisions and Leases.

use super::{
    BASE, NameRule, Strategy, pod,
    rule::{At, Check, Rule, check, frozen},
};
use crate::{
    invalid::FieldErrors,
    value::{default_text, integer, text},
};

/// Defaults and validation of RuntimeClasses.
pub static RUNTIME_CLASS: Strategy = Strategy {
    validate: |class, errors| {
        const RULES: &[Rule] = &[
            Rule("handler", &[Check::Required(""), Check::Name(NameRule::Label)]),
            Rule("overhead.podFixed", &[Check::NotNegative]),
            Rule("scheduling.nodeSelector", &[Check::Labels]),
            Rule("scheduling.tolerations[*]", &[Check::Has(pod::TOLERATION)]),
        ];
        check(class, RULES, errors);
    },
    validate_update: |new, old, errors| frozen(new, old, &["/handler"], errors),
    ..BASE
};

/// System priority classes and their values.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Defaults and validation of PriorityClasses.
pub static PRIORITY_CLASS: Strategy = Strategy {
    generation: true,
    default: |class| default_text(class, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |class, errors| {
        let (name, value) = (text(class, "/metadata/name"), integer(class, "/value").unwrap_or(0));
        if name.starts_with("system-") {
            if !SYSTEM_CLASSES.contains(&(name, value)) {
                errors.forbidden("metadata.name", "priority class names with 'system-' prefix are reserved for system use only. error: only system priority classes are allowed to start with 'system-'");
            }
        } else if value > 1_000_000_000 {
            errors.forbidden("value", "maximum allowed value of a user defined priority is 1000000000");
        }
        const RULES: &[Rule] =
            &[Rule("preemptionPolicy", &[Check::OneOf(&["Never", "PreemptLowerPriority"])])];
        check(class, RULES, errors);
    },
    validate_update: |new, old, errors| {
        if integer(new, "/value").unwrap_or(0) != integer(old, "/value").unwrap_or(0) {
            errors.forbidden("value", "may not be changed in an update.");
        }
        frozen(new, old, &["/preemptionPolicy"], errors);
    },
    ..BASE
};

/// Defaults and validation of ControllerRevisions.
pub static CONTROLLER_REVISION: Strategy = Strategy {
    validate: |revision, errors| {
        const RULES: &[Rule] = &[
            Rule("revision", &[Check::AtLeast(0)]),
            Rule(
                "",
                &[Check::Is(|at, errors| {
                    if at.field("data").value.is_null() {
                        errors.required("data", "data is mandatory");
                    }
                })],
            ),
        ];
        check(revision, RULES, errors);
    },
    validate_update: |new, old, errors| frozen(new, old, &["/data"], errors),
    ..BASE
};

/// Defaults and validation of Leases.
pub static LEASE: Strategy = Strategy {
    validate: |lease, errors| {
        const RULES: &[Rule] = &[
            Rule(
                "spec.leaseDurationSeconds",
                &[Check::Is(|at, errors| {
                    if at.value.as_i64().is_some_and(|n| n <= 0) {
                        at.invalid(errors, "must be greater than 0");
                    }
                })],
            ),
            Rule("spec.leaseTransitions", &[Check::AtLeast(0)]),
            Rule("spec.strategy", &[Check::Name(NameRule::Segment)]),
            Rule("spec", &[Check::Is(check_preferred)]),
        ];
        check(lease, RULES, errors);
    },
    ..BASE
};

fn check_preferred(spec: &At<'_>, errors: &mut FieldErrors) {
    let preferred = spec.field("preferredHolder");
    if preferred.is_set() && spec.text("strategy").is_empty() {
        errors.forbidden(preferred, "may only be specified when `strategy` is defined");
    }
}
