//! Deletes events an hour after they last happened.

#![expect(clippy::disallowed_methods, reason = "the task ends when the server is dropped")]

use std::{borrow::Cow, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

use crate::state::State;

/// Time to live of an event after it last happened.
const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// Starts the task. It ends when the server is dropped.
pub(crate) fn start(state: &Arc<State>) {
    let (weak, every) = (Arc::downgrade(state), state.pace.sweep_every);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(state) = weak.upgrade() else { return };
            sweep(&state).await;
        }
    });
}

/// The times of an event. Only these are decoded, since events are many.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Happened<'a> {
    #[serde(borrow)]
    series: Option<Series<'a>>,
    #[serde(borrow)]
    last_timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event_time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    metadata: Created<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Series<'a> {
    #[serde(borrow)]
    last_observed_time: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Created<'a> {
    #[serde(borrow)]
    creation_timestamp: Option<Cow<'a, str>>,
}

/// Returns the time when an event last happened. `None` without any time.
fn last_time(json: &[u8]) -> Option<Timestamp> {
    let Happened { series, last_timestamp, event_time, metadata } = serde_json::from_slice(json).ok()?;
    let all =
        [series.and_then(|s| s.last_observed_time), last_timestamp, event_time, metadata.creation_timestamp];
    all.into_iter().flatten().find_map(|time| time.parse().ok())
}

async fn sweep(state: &State) {
    let now = state.clock.now();
    for stored in state.store.snapshot("events").range("", "") {
        let old = last_time(&stored.json)
            .is_some_and(|t| now.duration_since(t).as_secs() > EVENT_LIFE.as_secs().cast_signed());
        if old {
            let json = stored.json.clone();
            // An event that changed meanwhile is kept.
            let _ = state.store.delete("events", &stored.key, stored.revision, |_| json).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_as_old_as_the_last_time_it_happened() {
        let mut event = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"time": "x"}]},
            "eventTime": null, "series": null, "message": "say \"hello\"",
        });
        let mut later = |field: &str, value: serde_json::Value, want: &str| {
            if !field.is_empty() {
                event[field] = value;
            }
            assert_eq!(last_time(event.to_string().as_bytes()), Some(want.parse().unwrap()), "{field}");
        };
        later("", json!(null), "2026-01-01T00:00:00Z");
        later("eventTime", json!("2026-01-01T00:01:00.5Z"), "2026-01-01T00:01:00.5Z");
        later("lastTimestamp", json!("2026-01-01T00:02:00Z"), "2026-01-01T00:02:00Z");
        later(
            "series",
            json!({"count": 2, "lastObservedTime": "2026-01-01T00:03:00Z"}),
            "2026-01-01T00:03:00Z",
        );
        assert_eq!(last_time(b"{}"), None);
    }
}
