//! The commit thread's choice between flushing now and waiting for more writes.

use std::time::Duration;

/// Writes that one flush carries at most.
pub(crate) const BATCH: usize = 512;

/// The pause before a flush. A flush costs much more than one more write in it, but a single writer should
/// not wait. So there is a pause only while several write at once, and only as long as pausing brings enough
/// of them.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    window: Duration,
    /// Groups that go by before another attempt.
    rest: u32,
}

impl Pace {
    /// Writes at once from which a pause may pay.
    const MANY: usize = 4;
    const SHORTEST: Duration = Duration::from_micros(250);
    const LONGEST: Duration = Duration::from_millis(2);
    /// Groups without a pause after one that brought nothing.
    const REST: u32 = 32;

    /// The pause before a flush with `waiting` writes.
    pub(crate) fn pause(&mut self, waiting: usize) -> Duration {
        if !(Self::MANY..BATCH / 2).contains(&waiting) {
            return Duration::ZERO;
        }
        if self.window.is_zero() {
            if self.rest > 0 {
                self.rest -= 1;
                return Duration::ZERO;
            }
            self.window = Self::SHORTEST;
        }
        self.window
    }

    /// Takes note of a pause in which `before` writes became `after`.
    pub(crate) fn learn(&mut self, before: usize, after: usize) {
        if after >= before + before / 4 {
            self.window = (self.window * 2).min(Self::LONGEST);
        } else {
            self.window /= 2;
            if self.window < Self::SHORTEST {
                *self = Pace { window: Duration::ZERO, rest: Self::REST };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pause before each of `groups` flushes, with `writers` of whom `returning` come back while the
    /// thread waits.
    fn pauses(writers: usize, returning: usize, groups: usize) -> Vec<Duration> {
        let mut pace = Pace::default();
        let one = |_| {
            let pause = pace.pause(writers);
            if !pause.is_zero() {
                pace.learn(writers, writers + returning);
            }
            pause
        };
        (0..groups).map(one).collect()
    }

    #[test]
    fn a_few_writers_never_wait() {
        for writers in 1..Pace::MANY {
            assert!(pauses(writers, 10, 1000).iter().all(Duration::is_zero));
        }
    }

    #[test]
    fn a_stream_of_writes_gathers_for_longer_and_longer() {
        let all = pauses(8, 8, 50);
        assert!(all.is_sorted());
        assert_eq!(all.last(), Some(&Pace::LONGEST));
    }

    #[test]
    fn pauses_in_vain_stop_soon_and_are_tried_seldom() {
        let all = pauses(8, 0, 1000);
        assert!(all.iter().sum::<Duration>() < Duration::from_millis(10), "of a thousand groups: {all:?}");
        assert!(all[500..].iter().any(|p| !p.is_zero()), "but it does try again");
    }
}
