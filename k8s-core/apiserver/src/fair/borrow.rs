//! Division of seats among levels: nominal limits from shares, and limits that follow demand within bounds.

/// Shares and percentages of a level, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) shares: u32,
    /// Percentage of the nominal limit that other levels may use.
    pub(super) lendable: u32,
    /// Percentage of the nominal limit that the level may have of others'; `None` for no bound.
    pub(super) borrowing: Option<u32>,
}

/// Bounds of a level's number of seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) nominal: usize,
    pub(super) lower: usize,
    pub(super) upper: usize,
}

impl Bounds {
    /// Returns the bounds of a level in a server of `total` seats, where all levels together have `sum`
    /// shares.
    pub(super) fn of(shares: Shares, total: usize, sum: u32) -> Self {
        let nominal = (total * shares.shares as usize).div_ceil(sum.max(1) as usize);
        let part = |percent: u32| (nominal * percent as usize + 50) / 100;
        let borrowed = shares.borrowing.map_or(total, part);
        Bounds { nominal, lower: nominal.saturating_sub(part(shares.lendable)), upper: nominal + borrowed }
    }

    /// Returns the limit of a level that is new.
    pub(super) fn first(&self) -> usize {
        self.nominal - (self.nominal - self.lower) / 2
    }
}

/// A level that is given seats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wish {
    pub(super) lower: f64,
    pub(super) upper: f64,
    /// Number of seats that it could use, at least `lower`.
    pub(super) target: f64,
}

/// Targets are at least this, so that each level has a place in proportions.
const LEAST: f64 = 0.001;

/// Divides `total` seats in proportion to the targets, within the bounds. Returns each level's seats, and the
/// fraction of its target that a level gets that no bound holds.
///
/// All are at their lower bounds if these exceed `total`, and at their upper ones if these are less.
pub(super) fn divide(total: f64, wishes: &[Wish]) -> (Vec<f64>, f64) {
    let given = |fraction: f64| -> Vec<f64> {
        let one = |wish: &Wish| (fraction * wish.target.max(LEAST)).clamp(wish.lower, wish.upper);
        wishes.iter().map(one).collect()
    };
    let sum = |fraction: f64| given(fraction).iter().sum::<f64>();
    // The sum is linear between the fractions at which a bound begins or ceases to hold.
    let mut corners: Vec<f64> =
        wishes.iter().flat_map(|wish| [wish.lower, wish.upper].map(|b| b / wish.target.max(LEAST))).collect();
    corners.sort_by(f64::total_cmp);
    let mut before = (0.0, sum(0.0));
    for corner in corners {
        let here = (corner, sum(corner));
        if here.1 >= total {
            let rise = here.1 - before.1;
            let part = if rise > 0.0 { ((total - before.1) / rise).clamp(0.0, 1.0) } else { 0.0 };
            let fraction = before.0 + part * (here.0 - before.0);
            return (given(fraction), fraction);
        }
        before = here;
    }
    (given(before.0), before.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_are_upstreams() {
        // The default of upstream: 600 seats, 245 shares.
        let bounds = |shares, lendable, borrowing| {
            let Bounds { nominal, lower, upper } =
                Bounds::of(Shares { shares, lendable, borrowing }, 600, 245);
            (nominal, lower, upper)
        };
        assert_eq!(bounds(30, 33, None), (74, 50, 674), "system");
        assert_eq!(bounds(100, 90, None), (245, 24, 845), "workload-low");
        assert_eq!(bounds(20, 50, Some(40)), (49, 24, 69));
        assert_eq!(bounds(0, 0, None), (0, 0, 600), "exempt");
    }

    #[test]
    fn a_level_in_need_gets_what_others_lend() {
        let wish = |lower: f64, upper: f64, target: f64| Wish { lower, upper, target };
        let quiet = wish(10.0, 1000.0, 10.0);
        let busy = wish(50.0, 1000.0, 400.0);
        let (given, fraction) = divide(110.0, &[quiet, busy]);
        assert_eq!(given, [10.0, 100.0], "the quiet one keeps its lower bound");
        assert!((fraction - 0.25).abs() < 1e-9);
        let (given, _) = divide(110.0, &[quiet, wish(50.0, 60.0, 400.0)]);
        assert_eq!(given, [50.0, 60.0], "no more than it may borrow");
        assert_eq!(divide(5.0, &[quiet, busy]).0, [10.0, 50.0], "lower bounds hold");
    }

    proptest! {
        #[test]
        fn seats_are_divided_within_bounds(
            levels in prop::collection::vec((0u32..100, 0u32..200, 0u32..300), 1..9),
            total in 0u32..1000,
        ) {
            let wishes: Vec<Wish> = levels.iter().map(|(lower, more, want)| Wish {
                lower: f64::from(*lower),
                upper: f64::from(lower + more),
                target: f64::from(*want.max(lower)),
            }).collect();
            let total = f64::from(total);
            let (given, fraction) = divide(total, &wishes);
            let sum: f64 = given.iter().sum();
            let (least, most): (f64, f64) =
                wishes.iter().fold((0.0, 0.0), |(l, u), w| (l + w.lower, u + w.upper));
            prop_assert!((sum - total.clamp(least, most)).abs() < 1e-6, "{} of {}", sum, total);
            for (wish, seats) in wishes.iter().zip(&given) {
                prop_assert!(*seats >= wish.lower && *seats <= wish.upper);
                let fair = fraction * wish.target.max(LEAST);
                prop_assert!((seats - fair.clamp(wish.lower, wish.upper)).abs() < 1e-6);
            }
        }
    }
}
