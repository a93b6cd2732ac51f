//! Charges of late: the part of `used` whose objects may not be stored yet.
//!
//! The API server charges a quota and then stores the object. A pass that lists in between does not see the
//! object, and must not take the charge back, or the quota could be exceeded. So `used` falls to no less than
//! what was counted plus the charges of the last moment. Those that were counted already are held twice, for
//! that moment only.
//!
//! Limit: an object that is stored later than that moment after its charge, on a disk that stalls, may not be
//! in `used` until the next pass. (Upstream waits for no moment.)

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use k8s_core::meta::Quantity;
use k8s_quota::Amounts;

/// Time after which the object of a charge is stored, or will not be.
pub(super) const SETTLED: Duration = Duration::from_secs(1);

/// Charges of a quota, as its changes show them.
#[derive(Clone, Debug, Default)]
pub(super) struct Charges {
    used: Amounts,
    recent: VecDeque<(Timestamp, Amounts)>,
}

impl Charges {
    /// All that is used when the quota is first seen may have been charged just now.
    pub(super) fn new(used: &Amounts, now: Timestamp) -> Self {
        Charges { used: used.clone(), recent: [(now, used.clone())].into() }
    }

    /// Notes the growth of `used` since it was last seen.
    pub(super) fn observe(&mut self, used: &Amounts, now: Timestamp) {
        self.recent.retain(|(at, _)| is_recent(*at, now));
        let mut grown = used.clone();
        grown.subtract(&self.used);
        let grown = grown.without_zeros();
        if !grown.is_empty() {
            self.recent.push_back((now, grown));
        }
        self.used = used.clone();
    }

    /// Notes what the controller itself has written: no charge.
    pub(super) fn wrote(&mut self, used: &Amounts) {
        self.used = used.clone();
    }

    /// Returns the amounts to write for those that were `counted`, and the time until recent charges are
    /// settled if they kept an amount from falling.
    pub(super) fn settle(
        &self,
        counted: &Amounts,
        used: &Amounts,
        now: Timestamp,
    ) -> (Amounts, Option<Duration>) {
        let (mut recent, mut newest) = (Amounts::default(), None);
        for (at, charge) in self.recent.iter().filter(|(at, _)| is_recent(*at, now)) {
            recent.add(charge);
            newest = Some(*at);
        }
        let (mut settled, mut is_held) = (counted.clone(), false);
        for (name, count) in counted.iter() {
            let have = used.get(name).unwrap_or(count);
            let least = count + recent.get(name).unwrap_or(Quantity::ZERO);
            if have > count && least > count {
                settled.set(name, have.min(least));
                is_held = true;
            }
        }
        let wait = newest.filter(|_| is_held).map(|at| {
            let passed = now.duration_since(at).unsigned_abs();
            SETTLED.saturating_sub(passed) + Duration::from_millis(10)
        });
        (settled, wait)
    }
}

fn is_recent(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at).unsigned_abs() < SETTLED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(number: i64) -> Amounts {
        [("pods", Quantity::from_units(number))].into_iter().collect()
    }

    fn at(milli: i64) -> Timestamp {
        Timestamp::from_millisecond(milli).unwrap()
    }

    /// Checks the amount that is written, and the wait in milliseconds.
    fn check(charges: &Charges, counted: i64, used: i64, now: i64, want: (i64, Option<u128>)) {
        let (settled, wait) = charges.settle(&pods(counted), &pods(used), at(now));
        assert_eq!((settled, wait.map(|wait| wait.as_millis())), (pods(want.0), want.1));
    }

    #[test]
    fn charges_of_the_last_second_stay() {
        let mut charges = Charges::new(&pods(5), at(0));
        check(&charges, 3, 5, 400, (5, Some(610)));
        check(&charges, 7, 5, 400, (7, None));
        check(&charges, 3, 5, 1000, (3, None));
        charges.observe(&pods(6), at(2000));
        // One of the six may be on its way; the other two are gone.
        check(&charges, 3, 6, 2100, (4, Some(910)));
        charges.wrote(&pods(4));
        charges.observe(&pods(4), at(2150));
        charges.observe(&pods(5), at(2200));
        check(&charges, 3, 5, 2300, (5, Some(910)));
        check(&charges, 3, 5, 3100, (4, Some(110)));
        check(&charges, 3, 5, 3300, (3, None));
    }

    #[test]
    fn steady_charges_do_not_keep_usage_from_falling() {
        let mut charges = Charges::new(&pods(0), at(0));
        let mut used = 0;
        // Each 100 ms a pod is charged, stored and deleted; a pass follows each time.
        for step in 1..100 {
            used += 1;
            charges.observe(&pods(used), at(step * 100));
            let (settled, _) = charges.settle(&pods(0), &pods(used), at(step * 100 + 50));
            used = settled.get("pods").unwrap().units();
            charges.wrote(&settled);
            assert!(used <= 11, "{used}");
        }
    }
}
