//! Events, under both of their groups.

use serde_json::Value;

use super::{
    BASE, Strategy,
    rule::{Check, Rule, check},
};
use crate::{invalid::FieldErrors, value::str_at};

/// Events (as core has them).
pub static EVENT: Strategy = Strategy {
    allow_create_on_update: true,
    validate: |event, errors| {
        check_namespace(event, errors);
        if event.get("eventTime").is_some_and(|t| !t.is_null()) {
            check(event, NEW_STYLE, errors);
        }
    },
    validate_update: |new, old, errors| {
        // Those of the new style say what happened once and for all; only how often goes on.
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

/// An event is in the namespace of what it is about; what has none is spoken of in `default` or `kube-system`.
fn check_namespace(event: &Value, errors: &mut FieldErrors) {
    let (namespace, about) =
        (str_at(event, "/metadata/namespace"), str_at(event, "/involvedObject/namespace"));
    let good =
        if about.is_empty() { ["default", "kube-system"].contains(&namespace) } else { about == namespace };
    if !good {
        errors.invalid("involvedObject.namespace", about, "does not match event.namespace");
    }
}

const LONGEST: usize = 128;

/// What an event with `eventTime` has.
const NEW_STYLE: &[Rule] = &[
    Rule("reportingComponent", &[Check::Required(""), Check::Qualified]),
    Rule("reportingInstance", &[Check::Required(""), Check::Longest(LONGEST)]),
    Rule("action", &[Check::Required(""), Check::Longest(LONGEST)]),
    Rule("reason", &[Check::Required(""), Check::Longest(LONGEST)]),
    Rule("message", &[Check::Longest(1024)]),
];
