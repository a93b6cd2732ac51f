//! The global allocator of the programs. Each program includes this file, because a library must not choose
//! an allocator.

/// About twice as fast as the system allocator for many small JSON pieces, and returns memory to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Frees this thread's memory that other threads have released. An idle thread would do so only at its next
/// allocation.
#[allow(unsafe_code, reason = "the allocator is written in C")]
pub(crate) fn give_back() {
    // SAFETY: takes no pointers, and may be called at any time by a thread that is not allocating at this
    // moment.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
