//! Events live for an hour.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;

use crate::{server::Inner, value::text};

/// How long an event is kept after it last happened.
const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// Starts to sweep, until the server is gone.
pub(crate) fn start(inner: &Arc<Inner>) {
    let (weak, every) = (Arc::downgrade(inner), inner.pace.sweep_every);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(inner) = weak.upgrade() else { return };
            sweep(&inner).await;
        }
    });
}

async fn sweep(inner: &Inner) {
    let now = inner.clock.now();
    for stored in inner.store.snapshot("events").range("", "") {
        let Ok(event) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        let last =
            ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
                .iter()
                .find_map(|p| text(&event, p).parse::<Timestamp>().ok());
        let old = last.is_some_and(|t| now.duration_since(t).as_secs() > EVENT_LIFE.as_secs().cast_signed());
        if old {
            let json = stored.json.clone();
            // Somebody who changed it meanwhile keeps it.
            let _ = inner.store.delete("events", &stored.key, stored.revision, |_| json).await;
        }
    }
}
