//! The source of observations.

use super::plan::Observations;

/// Reads the free resources of a node.
///
/// ```
/// use k8s_kubelet::{Observation, Observations, Signal, Signals};
/// /// A node whose memory is nearly used up.
/// struct Short;
/// impl Signals for Short {
///     fn observe(&self) -> Observations {
///         [(Signal::MemoryAvailable, Observation { available: 50 << 20, capacity: 4 << 30 })].into()
///     }
/// }
/// ```
pub trait Signals: Send + Sync + 'static {
    /// Reads what is free. A signal that cannot be read is absent.
    fn observe(&self) -> Observations;

    /// Returns `true` if images are on a disk of their own.
    fn has_image_disk(&self) -> bool {
        false
    }
}
