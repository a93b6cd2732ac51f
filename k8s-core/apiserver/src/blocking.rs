//! CPU-heavy work on a thread of the runtime.

/// Runs work. Heavy work runs in `block_in_place`, where the runtime has other threads for the other tasks of this one.
pub(crate) fn run_blocking_if(heavy: bool, work: impl FnOnce()) {
    use tokio::runtime::{Handle, RuntimeFlavor};
    if heavy && Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(work);
    } else {
        work();
    }
}
