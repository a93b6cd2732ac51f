//! The zygote: a single-threaded instance of this program that forks the shims.
//!
//! A fork of a process with threads may inherit locks that are never released. A process that has never had a
//! second thread can be forked safely, and its children share its memory. The node process starts the zygote
//! with a socket as standard input and sends one [`Spawn`] per pod. The zygote ends when the socket closes;
//! the shims do not.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{SigHandler, Signal, signal},
    },
};

use super::{
    cgroup::Cgroups,
    protocol::Spawn,
    shim,
    wire::{Inbox, Outbox},
};
use crate::sys;

/// First argument of the zygote's command line. The second is the cgroup of the shims.
const MARKER: &str = "--k8s-runtime-zygote";

/// Call this first in `main`, before any thread is started. It returns at once, unless the embedded runtime
/// has started this process as its zygote: then it runs the zygote and never returns.
pub fn run_if_zygote() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|a| a == MARKER) {
        let cgroup = args.next().and_then(|a| a.into_string().ok()).unwrap_or_default();
        let code = match serve(&cgroup) {
            Ok(()) => 0,
            Err(error) => {
                // Unlike `eprintln`, this does not panic if standard error is closed.
                let _ = writeln!(io::stderr(), "zygote: {error}");
                1
            }
        };
        std::process::exit(code);
    }
}

fn serve(cgroup: &str) -> io::Result<()> {
    // A program executed by its descriptor has the descriptor's number as its name.
    if let Some(name) = std::env::args_os().next().and_then(|name| CString::new(name.as_bytes()).ok()) {
        let _ = sys::prctl(libc::PR_SET_NAME, name.as_ptr() as u64, 0);
    }
    crate::descriptors::restore();
    // Leave the terminal's process group: Ctrl-C is for the node process.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/")?;
    // Pods must not inherit descriptors that the node process itself has inherited.
    sys::close_from(3);
    let socket = sys::take_stdin()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    sys::dup_onto(null.as_fd(), 0)?;
    sys::dup_onto(null.as_fd(), 1)?;
    if !cgroup.is_empty() {
        let cgroups = Cgroups::detect()?;
        cgroups.create(cgroup)?;
        cgroups.join(cgroup)?;
    }
    ignore_children();
    let mut inbox = Inbox::default();
    loop {
        while let Some((spawn, fds)) = inbox.next::<Spawn>()? {
            if let Some(first) = fds.into_iter().next() {
                fork_shim(&spawn.dir, first, &socket);
            }
        }
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match inbox.fill(socket.as_fd()) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Lets the kernel reap exited shims.
#[allow(unsafe_code)]
fn ignore_children() {
    // SAFETY: sets a disposition without a handler.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
}

fn fork_shim(dir: &Path, first: OwnedFd, socket: &OwnedFd) {
    if let Ok(None) = sys::clone3(0, None) {
        // Close the zygote's own end: a shim that kept it would hide the zygote's end from the node process.
        sys::close_raw(socket);
        sys::exit_now(shim::run(dir, first));
    }
    // On failure the connection closes, which the node process detects.
}

/// Returns the name of the shims' processes. Linux shows 15 bytes of it, so a long program name is cut.
fn shim_name(program: &str) -> CString {
    let program = if program.is_empty() { "k8s" } else { program };
    let most = 15 - "-shim".len();
    let cut: String = program.chars().filter(char::is_ascii_graphic).take(most).collect();
    CString::new(format!("{cut}-shim")).unwrap_or_default()
}

/// Returns a sealed copy of this program in memory. A container whose entrypoint is `/proc/self/exe` gets the
/// copy, which is read-only, and never the program on disk.
fn sealed_copy(name: &CStr) -> io::Result<fs::File> {
    // Kernels from 6.3 on need the flag for an executable; older ones reject it.
    const MFD_EXEC: u32 = 0x10;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_EXEC));
    let made = made.or_else(|e| match e {
        nix::errno::Errno::EINVAL => memfd_create(name, flags),
        e => Err(e),
    })?;
    let mut copy = fs::File::from(made);
    io::copy(&mut fs::File::open("/proc/self/exe")?, &mut copy)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    seal(&copy, seals)?;
    Ok(copy)
}

/// Adds seals. The kernel returns `EBUSY` while it still references recently written pages.
fn seal(file: &fs::File, seals: SealFlag) -> io::Result<()> {
    const ATTEMPTS: u32 = 100;
    for _ in 1..ATTEMPTS {
        match fcntl(file, FcntlArg::F_ADD_SEALS(seals)) {
            Err(nix::errno::Errno::EBUSY) => std::thread::sleep(std::time::Duration::from_millis(20)),
            other => return Ok(other.map(drop)?),
        }
    }
    Ok(fcntl(file, FcntlArg::F_ADD_SEALS(seals)).map(drop)?)
}

/// The node process's handle of the zygote.
#[derive(Debug)]
pub(super) struct Zygote {
    child: Child,
    socket: Option<UnixStream>,
}

impl Zygote {
    /// Starts this program as a zygote. `name` is the program's, and part of the shims' names.
    pub(super) fn start(name: &str, cgroup: &str) -> io::Result<Zygote> {
        let (ours, theirs) = UnixStream::pair()?;
        let name = shim_name(name);
        let program =
            sealed_copy(&name).map_err(|e| io::Error::new(e.kind(), format!("copy this program: {e}")))?;
        let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0(OsStr::from_bytes(name.as_bytes()))
            .arg(MARKER)
            .arg(cgroup)
            .env_clear()
            .envs(crate::descriptors::told())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Zygote { child, socket: Some(ours) })
    }

    /// Requests a shim; `first` becomes its first connection.
    pub(super) fn spawn(&self, dir: &Path, first: OwnedFd) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let mut outbox = Outbox::default();
        outbox.push(&Spawn { dir: dir.to_owned() }, vec![first])?;
        loop {
            match outbox.flush(socket.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                other => return other,
            }
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // Closing its input makes the zygote exit.
        self.socket = None;
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shims_name_has_the_programs_and_fits() {
        for (program, wanted) in [
            ("hyperkube", c"hyperkube-shim"),
            ("shopkube", c"shopkube-shim"),
            ("", c"k8s-shim"),
            ("a-distribution-with-a-long-name", c"a-distribu-shim"),
        ] {
            let name = shim_name(program);
            assert_eq!(&*name, wanted);
            assert!(name.as_bytes().len() <= 15, "{name:?}");
        }
    }
}
