//! The times of a request's stages, for the log of slow requests.

use std::time::Duration;

use tokio::time::Instant;

/// Requests that take longer are logged, as with upstream's traces.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// A stage that a request has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The user is known.
    Authenticated,
    /// It has its place among the requests in flight.
    Admitted,
    /// It is allowed.
    Authorized,
    /// Its handler has answered.
    Handled,
}

/// Number of stages.
const STAGES: usize = 4;

/// The end of each stage since the request came.
#[derive(Debug)]
pub(super) struct Times {
    begun: Instant,
    ends: [Option<Duration>; STAGES],
    /// Time spent waiting for others: a place among the requests in flight, webhooks.
    waited: Duration,
}

impl Times {
    #[expect(clippy::disallowed_methods, reason = "the duration of a request, in virtual time as well")]
    pub(super) fn begin() -> Self {
        Times { begun: Instant::now(), ends: [None; STAGES], waited: Duration::ZERO }
    }

    /// Notes the end of a stage.
    pub(super) fn end(&mut self, stage: Stage) {
        self.ends[stage as usize] = Some(self.begun.elapsed());
    }

    /// Adds to the time that the request waited for others.
    pub(super) fn wait(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Adds the time since the end of a stage to the time that the request waited for others.
    pub(super) fn wait_since(&mut self, stage: Stage) {
        let since = self.ends[stage as usize].unwrap_or_default();
        self.waited += self.begun.elapsed().saturating_sub(since);
    }

    /// Returns the time that the request waited for others.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// Returns the time since the request came.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns the durations of the stages that the request has passed, in milliseconds, and of the rest
    /// (encoding the answer, or the stage at which it ended).
    pub(super) fn text(&self) -> String {
        use std::fmt::Write;
        let names = ["authenticate", "wait", "authorize", "handle"];
        let (mut text, mut before) = (String::new(), Duration::ZERO);
        for (name, end) in names.iter().zip(self.ends) {
            if let Some(end) = end {
                let _ = write!(text, "{name} {} ms, ", end.saturating_sub(before).as_millis());
                before = end;
            }
        }
        let _ = write!(text, "rest {} ms", self.elapsed().saturating_sub(before).as_millis());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_stage_has_its_own_time() {
        let mut times = Times::begin();
        let ms = |n| tokio::time::sleep(Duration::from_millis(n));
        ms(5).await;
        times.end(Stage::Authenticated);
        ms(20).await;
        times.wait_since(Stage::Authenticated);
        times.end(Stage::Authorized);
        ms(3).await;
        assert_eq!(times.text(), "authenticate 5 ms, authorize 20 ms, rest 3 ms");
        times.wait(Duration::from_millis(7));
        assert_eq!(times.waited(), Duration::from_millis(27));
    }
}
