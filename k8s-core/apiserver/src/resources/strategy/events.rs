//! Events of both groups.

use serde_json::Value;

use super::{
    BASE, Strategy,
    rule::{Check, Rule, check},
};
use crate::{invalid::FieldErrors, value::text};

/// Strategy of Events (in the core form).
pub static EVENT: Strategy = Strategy {
    validate: |event, errors| {
        check_namespace(event, errors);
        if event.get("eventTime").is_some_and(|t| !t.is_null()) {
            check(event, NEW_STYLE, errors);
        }
    },
    validate_update: |new, old, errors| {
        // New-style events are immutable, except for the series count.
        if old.get("eventTime").is_none_or(Value::is_null) {
            return;
        }
        for field in [
            "involvedObject",
            "reason",
            "message",
            "source",
            "firstTimestamp",
            "lastTimestamp",
            "count",
            "type",
            "eventTime",
            "action",
            "related",
            "reportingComponent",
            "reportingInstance",
        ] {
            super::immutable(new, old, &format!("/{field}"), errors);
        }
    },
    ..BASE
};

/// Requires that an event is in its object's namespace, or for a cluster-scoped object in `default` or
/// `kube-system`.
fn check_namespace(event: &Value, errors: &mut FieldErrors) {
    let (namespace, about) = (text(event, "/metadata/namespace"), text(event, "/involvedObject/namespace"));
    let good =
        if about.is_empty() { ["default", "kube-system"].contains(&namespace) } else { about == namespace };
    if !good {
        errors.invalid("involvedObject.namespace", about, "does not match event.namespace");
    }
}

const LONGEST: usize = 128;

/// Validation of events with `eventTime`.
const NEW_STYLE: &[Rule] = &[
    Rule("reportingComponent", &[Check::Required(""), Check::Qualified]),
    Rule("reportingInstance", &[Check::Required(""), Check::Longest(LONGEST)]),
    Rule("action", &[Check::Required(""), Check::Longest(LONGEST)]),
    Rule("reason", &[Check::Required(""), Check::Longest(LONGEST)]),
    Rule("message", &[Check::Longest(1024)]),
];
