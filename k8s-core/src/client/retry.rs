//! Repetition of requests that the server did not process.

use std::time::Duration;

use http::{Response, StatusCode, header};

use super::Body;

/// Longest `Retry-After` that is waited for; a longer one ends the call with the server's error.
const LONGEST: Duration = Duration::from_secs(30);

/// Marks a 401 response after which the transport has another credential.
#[derive(Clone)]
pub(super) struct Renewed;

/// Remaining repetitions of one request.
pub(super) struct Repeats {
    pub(super) busy: u32,
    pub(super) renewed: bool,
}

impl Repeats {
    /// Returns the time to wait before the request is repeated: after 429 with `Retry-After` in seconds, and
    /// once after 401 with a new credential. `None`: the response is final.
    pub(super) fn after(&mut self, response: &Response<Body>) -> Option<Duration> {
        if response.status() == StatusCode::UNAUTHORIZED
            && response.extensions().get::<Renewed>().is_some()
            && !self.renewed
        {
            self.renewed = true;
            return Some(Duration::ZERO);
        }
        if response.status() != StatusCode::TOO_MANY_REQUESTS || self.busy == 0 {
            return None;
        }
        let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
        let wait = Duration::from_secs(seconds);
        self.busy -= 1;
        (wait <= LONGEST).then_some(wait)
    }
}
