//! Limits of the sizes of events.

use std::io;

use super::{Event, TRUNCATED};

/// Limits of the sizes of events (`--audit-log-truncate-*`, `--audit-webhook-truncate-*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Largest event, bytes of JSON. A larger one loses its request and response objects, with the annotation
    /// `audit.k8s.io/truncated`. One that is still larger is lost. Default: 100 KiB.
    pub max_event: usize,
    /// Largest sum of the events of one batch, bytes of JSON. Default: 10 MiB.
    pub max_batch: usize,
}

impl Default for Truncation {
    fn default() -> Self {
        Truncation { max_event: 100 << 10, max_batch: 10 << 20 }
    }
}

/// Returns the JSON of an event within the limits.
///
/// # Errors
/// The event is too large even without its objects, or is no JSON.
pub(super) fn fitted(event: &Event, limits: Option<&Truncation>) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(event)?;
    let Some(limits) = limits.filter(|limits| json.len() > limits.max_event) else {
        return Ok(json);
    };
    let mut bare = Event { request_object: None, response_object: None, ..event.clone() };
    bare.annotations.insert(TRUNCATED.0.to_owned(), TRUNCATED.1.to_owned());
    let json = serde_json::to_vec(&bare)?;
    if json.len() > limits.max_event {
        return Err(io::Error::other("the event is too large even without its request and response objects"));
    }
    Ok(json)
}
