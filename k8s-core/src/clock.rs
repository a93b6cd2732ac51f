//! The only source of time.
//!
//! [`Clock::system`] is wall time. [`Clock::starting_at`] follows tokio's timer, so that with tokio's paused
//! time a test runs hours of cluster time in milliseconds. Both wait with `tokio::time`.

#![expect(clippy::disallowed_methods, reason = "this module is the source of time")]

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// A source of time. Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use k8s_core::{api::jiff::Timestamp, clock::Clock};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// tokio::time::pause(); // a test's time
/// let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
/// clock.sleep(Duration::from_secs(3600)).await; // at once
/// assert_eq!(clock.now().as_second(), 3600);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Tokio { epoch: Timestamp, origin: tokio::time::Instant },
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}

impl Clock {
    /// Returns the wall clock.
    #[must_use]
    pub fn system() -> Self {
        Clock(Source::System)
    }

    /// Returns a clock that is at `epoch` now and follows tokio's (pausable) timer. Must be called inside a
    /// tokio runtime.
    #[must_use]
    pub fn starting_at(epoch: Timestamp) -> Self {
        Clock(Source::Tokio { epoch, origin: tokio::time::Instant::now() })
    }

    /// Returns the current time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Tokio { epoch, origin } => {
                let elapsed = tokio::time::Instant::now().saturating_duration_since(*origin);
                epoch.saturating_add(elapsed).unwrap_or(*epoch)
            }
        }
    }

    /// Returns the current time in whole seconds, as in `metav1.Time` fields.
    #[must_use]
    pub fn time(&self) -> Time {
        let now = self.now();
        Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
    }

    /// Returns the current time in microseconds, as in Lease and Event fields.
    #[must_use]
    pub fn micro_time(&self) -> MicroTime {
        let now = self.now();
        MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
    }

    /// Waits for a duration.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Returns the duration until `when`; zero if it has passed.
    #[must_use]
    pub fn until(&self, when: Timestamp) -> Duration {
        Duration::try_from(when.duration_since(self.now())).unwrap_or(Duration::ZERO)
    }

    /// Returns the duration since `when`; zero if it is in the future.
    #[must_use]
    pub fn since(&self, when: Timestamp) -> Duration {
        Duration::try_from(self.now().duration_since(when)).unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_tokio() {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().as_second(), 3600);
        assert_eq!(clock.until(Timestamp::from_second(3700).unwrap()), Duration::from_secs(100));
        assert_eq!(clock.since(Timestamp::UNIX_EPOCH), Duration::from_secs(3600));
    }
}
