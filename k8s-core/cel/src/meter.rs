//! How much an evaluation may do.

use super::error::EvalError;

/// How much work a unit of cost pays for: bytes copied or compared, elements visited.
const WORK_PER_COST: u64 = 50;

/// Counts what evaluations cost, and stops them at a limit.
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
    /// A meter that stops at a cost.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let most_work = limit.saturating_add(100).saturating_mul(WORK_PER_COST);
        Meter { cost: 0, limit, work: 0, most_work }
    }

    /// What was spent.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Spends some.
    ///
    /// # Errors
    /// That it ran out.
    pub fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        self.work(cost)?;
        if self.cost > self.limit { Err(EvalError::Cost) } else { Ok(()) }
    }

    /// Counts work that has no cost upstream, before it is done.
    pub(super) fn work(&mut self, amount: u64) -> Result<(), EvalError> {
        self.work = self.work.saturating_add(amount);
        if self.work > self.most_work { Err(EvalError::Cost) } else { Ok(()) }
    }

    /// A tenth for each byte, rounded up.
    pub(super) fn traverse(&mut self, bytes: u64) -> Result<(), EvalError> {
        self.work(bytes)?;
        self.charge(bytes.div_ceil(10))
    }
}
