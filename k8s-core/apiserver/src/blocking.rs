//! CPU-heavy work on runtime threads.

/// Runs work. Heavy work runs in `block_in_place` on a multi-thread runtime, so that other tasks of the
/// thread go on.
pub(crate) fn run_blocking_if(heavy: bool, work: impl FnOnce()) {
    use tokio::runtime::{Handle, RuntimeFlavor};
    if heavy && Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(work);
    } else {
        work();
    }
}
