//! Kinds of faults, and the seeded decision where they are injected.
//!
//! Every request and every watch event of a controller has a [`Place`]. The seed and the place alone decide
//! whether a fault is injected there, and which. So a seed reproduces a run, and a seed with a list of places
//! reproduces a smaller one.

use std::time::Duration;

use crate::place::Place;

/// A fault injected between a controller and the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// A write gets 409, as after a concurrent write.
    Conflict,
    /// A request gets 500 or 503 and has no effect.
    ServerError,
    /// A request gets 429 with `Retry-After`.
    TooManyRequests,
    /// A request is lost: no response and no effect.
    TimeoutBefore,
    /// A response is lost: the write took effect, but the client does not know.
    TimeoutAfter,
    /// A watch connection breaks.
    WatchBroken,
    /// A watch event, and all that follow it, are delivered a few seconds late.
    WatchDelayed,
    /// A watch is delayed so long that caches are stale while other clients write.
    Stale,
    /// A watch event is delivered twice.
    WatchDuplicated,
    /// A watch ends with 410 Gone, as after compaction.
    Gone,
    /// The controller is killed before or after a write and restarts with empty caches.
    Crash,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 11] = [
        Fault::Conflict,
        Fault::ServerError,
        Fault::TooManyRequests,
        Fault::TimeoutBefore,
        Fault::TimeoutAfter,
        Fault::WatchBroken,
        Fault::WatchDelayed,
        Fault::Stale,
        Fault::WatchDuplicated,
        Fault::Gone,
        Fault::Crash,
    ];

    /// Returns true if the fault can be injected at this kind of opportunity.
    pub(crate) fn fits(self, at: Opportunity) -> bool {
        use Opportunity::{Create, Event, Read, Watch, Write};
        match self {
            Fault::Conflict => at == Write,
            Fault::ServerError | Fault::TooManyRequests => at != Event,
            Fault::TimeoutBefore => matches!(at, Create | Write | Read),
            Fault::TimeoutAfter | Fault::Crash => matches!(at, Create | Write),
            Fault::WatchBroken | Fault::WatchDelayed | Fault::Stale | Fault::WatchDuplicated => at == Event,
            Fault::Gone => matches!(at, Watch | Event),
        }
    }
}

/// Kind of a request or event at which a fault can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opportunity {
    /// A POST request.
    Create,
    /// Any other write.
    Write,
    /// A get or list request.
    Read,
    /// The start of a watch.
    Watch,
    /// An event of a watch.
    Event,
}

impl Opportunity {
    /// Returns the kind of requests with a verb. `event`: of an event of a watch.
    pub(crate) fn of(verb: &str) -> Option<Self> {
        Some(match verb {
            "create" => Opportunity::Create,
            "update" | "patch" | "delete" | "deletecollection" => Opportunity::Write,
            "get" | "list" => Opportunity::Read,
            "watch" => Opportunity::Watch,
            "event" => Opportunity::Event,
            _ => return None,
        })
    }
}

/// Kinds and number of the faults that a lab injects.
///
/// ```
/// use k8s_testing::{Fault, Faults, Lab};
/// // A controller that cannot resume after a crash yet.
/// let faults = Faults::all().without(Fault::Crash).at_most(20);
/// let lab = Lab::new().seeds(0..100).faults(faults);
/// assert_eq!(Faults::only([]), Faults::none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    kinds: Vec<Fault>,
    most: usize,
    before_first_list: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self::none()
    }
}

impl Faults {
    /// Enables every kind.
    #[must_use]
    pub fn all() -> Self {
        Self::only(Fault::ALL)
    }

    /// Injects no faults.
    #[must_use]
    pub fn none() -> Self {
        Self::only([])
    }

    /// Enables these kinds only.
    #[must_use]
    pub fn only(kinds: impl IntoIterator<Item = Fault>) -> Self {
        Faults { kinds: kinds.into_iter().collect(), most: 60, before_first_list: false }
    }

    /// Disables a kind.
    #[must_use]
    pub fn without(mut self, kind: Fault) -> Self {
        self.kinds.retain(|k| *k != kind);
        self
    }

    /// Limits the number of faults in a run. Default: 60.
    #[must_use]
    pub fn at_most(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Also hits a program's requests before its first successful list. Default: not, because many programs
    /// end their process when they cannot list at their start.
    ///
    /// Without it, each life of a program under test begins without faults, until it has listed or watched
    /// successfully, or writes.
    #[must_use]
    pub fn before_first_list(mut self) -> Self {
        self.before_first_list = true;
        self
    }

    /// Returns true if faults strike from a program's first request on.
    pub(crate) fn strike_at_start(&self) -> bool {
        self.before_first_list
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn is_none(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Decides whether a fault is injected at a place. Each seed has its own rate and leaves some kinds out,
    /// so that a set of seeds covers few faults, many faults, and single kinds.
    pub(crate) fn strike(&self, seed: u64, place: &Place, at: Opportunity) -> Option<Strike> {
        let character = mix(seed ^ 0x6c61_6273);
        let per_mille = [15, 40, 90, 180][(character % 4) as usize];
        let chosen = mix(character);
        let dice = dice(seed, place);
        if dice % 1000 >= per_mille {
            return None;
        }
        let in_play = |kind: &Fault| kind.fits(at) && chosen >> (2 * (*kind as u64)) & 3 != 0;
        let candidates: Vec<Fault> = self.kinds.iter().copied().filter(in_play).collect();
        let detail = mix(dice);
        let len = u64::try_from(candidates.len()).unwrap_or(0);
        let kind = *candidates.get(usize::try_from(detail.checked_rem(len)?).ok()?)?;
        Some(Strike { kind, detail: mix(detail) })
    }
}

fn dice(seed: u64, place: &Place) -> u64 {
    mix(mix(seed).wrapping_add(place.hash().wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// A fault to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) kind: Fault,
    detail: u64,
}

impl Strike {
    /// Returns a fault of a chosen kind, in the variant that the seed has at this place.
    pub(crate) fn chosen(kind: Fault, seed: u64, place: &Place) -> Self {
        Strike { kind, detail: mix(mix(dice(seed, place))) }
    }

    /// Selects one of two variants of the fault.
    pub(crate) fn other_way(self) -> bool {
        self.detail & 1 == 1
    }

    /// Returns the delay of a delayed request or event.
    pub(crate) fn delay(self) -> Duration {
        let of = |from: u64, to: u64| Duration::from_millis(from + (self.detail >> 1) % (to - from));
        match self.kind {
            Fault::Stale => of(8_000, 25_000),
            Fault::WatchDelayed => of(50, 4_000),
            _ => of(200, 3_000),
        }
    }
}

/// Spreads the bits of a number (the finalizer of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_strikes_where_it_fits_and_nowhere_else() {
        use Opportunity::{Create, Event, Read, Watch, Write};
        let faults = Faults::all();
        let mut seen = HashSet::new();
        let place = |n| Place { who: "a".into(), verb: "patch".into(), path: "/x".into(), n };
        for seed in 0..200 {
            for n in 0..100 {
                for at in [Create, Write, Read, Watch, Event] {
                    if let Some(strike) = faults.strike(seed, &place(n), at) {
                        assert!(strike.kind.fits(at));
                        assert_eq!(Some(strike), faults.strike(seed, &place(n), at));
                        assert_eq!(strike, Strike::chosen(strike.kind, seed, &place(n)));
                        seen.insert(strike.kind);
                    }
                }
            }
        }
        assert_eq!(seen.len(), Fault::ALL.len());
        assert_eq!(Faults::none().strike(1, &place(1), Write), None);
        let only = Faults::only([Fault::Crash]);
        assert!((0..9999).filter_map(|n| only.strike(7, &place(n), Write)).all(|s| s.kind == Fault::Crash));
    }
}
