//! Counters, gauges and histograms. A clone is the same metric.

use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// A type of values that fits into an atomic: `u64`, `i64` or `f64`.
pub trait Number: Copy + fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// Zero, which metrics start with, and one.
    const UNITS: (Self, Self);
    /// Returns the value as bits.
    fn bits(self) -> u64;
    /// Returns the value of bits.
    fn of(bits: u64) -> Self;
    /// Adds atomically. Integers wrap around.
    fn add(to: &AtomicU64, by: Self);
    /// Returns the additive inverse; of a `u64`, the number that wraps around to it.
    fn negated(self) -> Self;
}

impl Number for u64 {
    const UNITS: (Self, Self) = (0, 1);
    fn bits(self) -> u64 {
        self
    }
    fn of(bits: u64) -> Self {
        bits
    }
    fn add(to: &AtomicU64, by: Self) {
        to.fetch_add(by, Relaxed);
    }
    fn negated(self) -> Self {
        self.wrapping_neg()
    }
}

impl Number for i64 {
    const UNITS: (Self, Self) = (0, 1);
    fn bits(self) -> u64 {
        self.cast_unsigned()
    }
    fn of(bits: u64) -> Self {
        bits.cast_signed()
    }
    fn add(to: &AtomicU64, by: Self) {
        to.fetch_add(by.cast_unsigned(), Relaxed);
    }
    fn negated(self) -> Self {
        self.wrapping_neg()
    }
}

impl Number for f64 {
    const UNITS: (Self, Self) = (0.0, 1.0);
    fn bits(self) -> u64 {
        self.to_bits()
    }
    fn of(bits: u64) -> Self {
        f64::from_bits(bits)
    }
    fn add(to: &AtomicU64, by: Self) {
        let sum = |bits| Some((f64::from_bits(bits) + by).to_bits());
        // The function never returns `None`, so the update succeeds.
        let _ = to.fetch_update(Relaxed, Relaxed, sum);
    }
    fn negated(self) -> Self {
        -self
    }
}

/// A value that only grows.
pub struct Counter<N = u64>(Arc<AtomicU64>, PhantomData<N>);

/// A value that grows and shrinks.
pub struct Gauge<N = i64>(Arc<AtomicU64>, PhantomData<N>);

macro_rules! a_value {
    ($name:ident) => {
        impl<N> Clone for $name<N> {
            fn clone(&self) -> Self {
                $name(self.0.clone(), PhantomData)
            }
        }

        impl<N: Number> Default for $name<N> {
            fn default() -> Self {
                $name(Arc::new(AtomicU64::new(N::UNITS.0.bits())), PhantomData)
            }
        }

        impl<N: Number> fmt::Debug for $name<N> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.get()).finish()
            }
        }

        impl<N: Number> $name<N> {
            /// Adds one. An integer wraps around at its limit.
            pub fn inc(&self) {
                self.inc_by(N::UNITS.1);
            }

            /// Adds `by`, in the unit of the metric. An integer wraps around at its limit.
            pub fn inc_by(&self, by: N) {
                N::add(&self.0, by);
            }

            /// Returns the present value; 0 at first.
            #[must_use]
            pub fn get(&self) -> N {
                N::of(self.0.load(Relaxed))
            }
        }
    };
}

a_value!(Counter);
a_value!(Gauge);

impl<N: Number> Gauge<N> {
    /// Replaces the value, in the unit of the metric.
    pub fn set(&self, value: N) {
        self.0.store(value.bits(), Relaxed);
    }

    /// Subtracts one. An integer wraps around at its limit.
    pub fn dec(&self) {
        self.dec_by(N::UNITS.1);
    }

    /// Subtracts `by`, in the unit of the metric. An integer wraps around at its limit.
    pub fn dec_by(&self, by: N) {
        N::add(&self.0, by.negated());
    }
}

/// Returns `length` bucket bounds: `start`, `start * factor`, `start * factor * factor` and so on.
///
/// # Examples
/// ```
/// assert_eq!(k8s_metrics::exponential_buckets(1.0, 2.0, 3).collect::<Vec<_>>(), [1.0, 2.0, 4.0]);
/// ```
pub fn exponential_buckets(start: f64, factor: f64, length: u16) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(start), move |bound| Some(bound * factor)).take(length.into())
}

/// A distribution of values over buckets. A clone is the same histogram.
#[derive(Clone)]
pub struct Histogram(Arc<Buckets>);

struct Buckets {
    bounds: Box<[f64]>,
    /// One more than bounds: the last counts the values above all of them. Not cumulative.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("count", &self.count()).field("sum", &self.sum()).finish()
    }
}

impl Histogram {
    /// Creates a histogram with these inclusive upper bounds, which are sorted; a bucket without a bound is
    /// added.
    #[must_use]
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let mut bounds: Vec<f64> = bounds.into_iter().filter(|bound| bound.is_finite()).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram(Arc::new(Buckets { bounds: bounds.into(), counts, sum: AtomicU64::new(0.0_f64.to_bits()) }))
    }

    /// Counts a value. Values that are not numbers are ignored.
    pub fn observe(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        // There is a count for each result of `partition_point`.
        self.0.counts[bucket].fetch_add(1, Relaxed);
        f64::add(&self.0.sum, value);
    }

    /// Returns the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|c| c.load(Relaxed)).sum()
    }

    /// Returns the sum of all values.
    #[must_use]
    pub fn sum(&self) -> f64 {
        f64::of(self.0.sum.load(Relaxed))
    }

    /// Returns each bound with the number of values up to it. The last bound is infinite.
    pub(crate) fn cumulative(&self) -> Vec<(f64, u64)> {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let mut total = 0;
        bounds
            .zip(&self.0.counts)
            .map(|(bound, count)| {
                total += count.load(Relaxed);
                (bound, total)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_was_added_to_it() {
        let (count, level, seconds) =
            (Counter::<u64>::default(), Gauge::<i64>::default(), Counter::<f64>::default());
        count.inc();
        count.clone().inc_by(2);
        level.set(1);
        level.dec_by(3);
        level.dec();
        seconds.inc_by(0.25);
        seconds.inc();
        assert_eq!((count.get(), level.get(), seconds.get()), (3, -3, 1.25));
        let free = Gauge::<f64>::default();
        free.dec_by(0.5);
        assert!((free.get() + 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_value_belongs_to_the_first_bucket_that_it_fits_into() {
        let sizes = Histogram::new([10.0, 1.0, 10.0, f64::INFINITY]);
        for value in [0.5, 1.0, 1.5, 10.0, 11.0, f64::NAN] {
            sizes.observe(value);
        }
        assert_eq!(sizes.cumulative(), [(1.0, 2), (10.0, 4), (f64::INFINITY, 5)]);
        assert_eq!((sizes.count(), sizes.sum()), (5, 24.0));
    }

    #[test]
    fn changes_from_many_threads_are_all_counted() {
        let (seconds, sizes) = (Counter::<f64>::default(), Histogram::new([1.0]));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        seconds.inc();
                        sizes.observe(2.0);
                    }
                });
            }
        });
        assert_eq!((seconds.get(), sizes.count(), sizes.sum()), (4000.0, 4000, 8000.0));
    }
}
