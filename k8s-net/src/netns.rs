//! Runs code in another network namespace without moving the caller.

use std::{fs::File, io, path::Path};

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a new thread inside the network namespace in `file`, and waits for it.
///
/// The thread ends with the call, so no pooled thread is left in a foreign namespace.
pub(crate) fn inside<T: Send>(file: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(file)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("worker panicked")))
    })
}
