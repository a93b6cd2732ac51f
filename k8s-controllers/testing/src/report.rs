//! The outcome of a lab.

use crate::role::NeededRole;

/// Summary of all runs of a lab.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Number of runs.
    pub runs: usize,
    /// Number of injected faults in all runs.
    pub faults: usize,
    /// The smallest sufficient role for all runs, including paths that only faults lead to.
    pub needed_role: NeededRole,
}
