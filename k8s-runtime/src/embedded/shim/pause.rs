//! The first process (pause) of a PID namespace that a pod's containers share. It reaps orphans.

use nix::{sys::signal::Signal, unistd::Pid};

use crate::{embedded::protocol::Failure, sys};

/// Forks it in a new PID namespace.
#[allow(unsafe_code)]
pub(super) fn spawn() -> Result<Pid, Failure> {
    match sys::clone3(libc::CLONE_NEWPID as u64, None) {
        Ok(Some(pid)) => Ok(pid),
        Err(e) => Err(Failure::Other(format!("fork the pause process: {e}"))),
        Ok(None) => {
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0);
            let _ = sys::prctl(libc::PR_SET_NAME, c"pause".as_ptr() as u64, 0);
            // With SIGCHLD ignored, the kernel reaps all children, adopted ones too.
            // SAFETY: sets a disposition without a handler.
            let _ =
                unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigIgn) };
            sys::close_from(0);
            loop {
                nix::unistd::pause();
            }
        }
    }
}
