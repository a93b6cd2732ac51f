//! Events of events.k8s.io: core Events with other field names.

use crate::resources::types::generate;
use k8s_core::api::api::events::v1::Event;
use serde_json::Value;

use super::Conversion;

/// Conversion of events.k8s.io/v1 and v1beta1.
pub(in crate::resources) static EVENT: Conversion = Conversion {
    to_storage: |event| rename(event, |(new, old)| (new, old)),
    from_storage: |event| {
        rename(event, |(new, old)| (old, new));
        // The core form always has these fields, so zero values are removed.
        if let Some(map) = event.as_object_mut() {
            map.retain(|key, value| !(key.starts_with("deprecated") && (value.is_null() || is_empty(value))));
        }
    },
    generate: Some(generate::<Event>),
};

/// Selectable fields, in the order of the core form's.
pub(in crate::resources) const FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "deprecatedSource.component",
    "type",
];

/// Field names in events.k8s.io and in the core group.
const NAMES: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(event: &mut Value, way: fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(map) = event.as_object_mut() else { return };
    for (from, to) in NAMES.map(way) {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::tests::round_trip, *};

    #[test]
    fn events_survive() {
        round_trip(
            &EVENT,
            json!({"note": "n", "regarding": {"kind": "Pod"}, "reportingController": "c", "reportingInstance": "i", "action": "a",
                "eventTime": "2026-01-01T00:00:00.000000Z", "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"},
                "deprecatedSource": {"component": "x"}, "deprecatedCount": 3, "deprecatedLastTimestamp": "2026-01-01T00:00:00Z"}),
        );
    }
}
