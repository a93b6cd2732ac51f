//! Cost limits of evaluations.

use super::error::EvalError;

/// Work (bytes copied or compared, elements visited) that counts as one unit of cost.
const WORK_PER_COST: u64 = 50;

/// Counts the cost of evaluations and stops them at a limit.
///
/// ```
/// use k8s_cel::{Activation, Env, EvalError, Meter};
/// let program = Env::new().compile("[1, 2, 3].map(x, [1, 2, 3].map(y, x * y)).size()").unwrap();
/// let mut meter = Meter::new(1000);
/// assert!(program.evaluate(&Activation::new(), &mut meter).is_ok());
/// assert!(meter.cost() > 100);
/// assert_eq!(program.evaluate(&Activation::new(), &mut Meter::new(20)).unwrap_err(), EvalError::Cost);
/// ```
#[derive(Clone, Debug)]
pub struct Meter {
    cost: u64,
    limit: u64,
    work: u64,
    most_work: u64,
}

impl Meter {
    /// Creates a meter with a cost limit.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let most_work = limit.saturating_add(100).saturating_mul(WORK_PER_COST);
        Meter { cost: 0, limit, work: 0, most_work }
    }

    /// Returns the cost so far.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Adds to the cost.
    ///
    /// # Errors
    /// The limit is exceeded.
    pub fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        self.work(cost)?;
        if self.cost > self.limit { Err(EvalError::Cost) } else { Ok(()) }
    }

    /// Counts work without upstream cost, before it is done.
    pub(super) fn work(&mut self, amount: u64) -> Result<(), EvalError> {
        self.work = self.work.saturating_add(amount);
        if self.work > self.most_work { Err(EvalError::Cost) } else { Ok(()) }
    }

    /// Charges a tenth of a unit per byte, rounded up.
    pub(super) fn traverse(&mut self, bytes: u64) -> Result<(), EvalError> {
        self.work(bytes)?;
        self.charge(bytes.div_ceil(10))
    }
}
