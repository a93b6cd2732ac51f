//! Forks a process of the shim and executes the container's program in it.
//!
//! Flow: [`spawn`] forks. The child prepares itself and reports "ready" (with its terminal, if any) or an
//! error over a socket pair. If the caller wants that, it waits for permission, and then it executes the
//! program. The socket is close-on-exec: if it closes without a message, the program runs.
//! Guarantee: the child dies with the shim (parent-death signal) and has none of the shim's descriptors.

#![expect(clippy::disallowed_methods, reason = "the kernel runs containers in real time")]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::{Gid, Pid, Uid},
};
use serde::{Deserialize, Serialize};

use super::{identity, rootfs, rootfs::doing, seccomp};
use crate::{
    embedded::{
        cgroup::Cgroups,
        protocol::{ContainerRecord, Failure, SandboxRecord},
        wire,
    },
    sys,
};

/// Timeout for the child's preparation, such as a bind mount from a hanging NFS server.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The child's ends of its standard streams. `None`: `/dev/null`.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// The host's `/dev/null`. The container's may be a link to another file.
    null: fs::File,
}

impl Stdio {
    pub(super) fn new() -> Result<Stdio, Failure> {
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        let null = null.map_err(Failure::other("open /dev/null"))?;
        Ok(Stdio { stdin: None, stdout: None, stderr: None, null })
    }
}

/// A forked child that has reported "ready".
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    /// Controls how the child continues.
    pub(super) sync: Sync,
    /// Master side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
}

#[derive(Serialize, Deserialize)]
enum Stage {
    Ready,
}

/// The shim's end of the socket pair.
#[derive(Debug)]
pub(super) struct Sync(OwnedFd);

impl Sync {
    /// Lets the child execute the program, and waits until it has.
    pub(super) fn go(self) -> Result<(), Failure> {
        nix::unistd::write(&self.0, b"g")
            .map_err(|e| Failure::Other(format!("container process: {}", e.desc())))?;
        self.running()
    }

    /// Waits until a child that needs no permission has executed its program.
    pub(super) fn running(self) -> Result<(), Failure> {
        match receive(self.0.as_fd(), &mut wire::Inbox::default()) {
            Ok(None) => Ok(()),
            Ok(Some((result, _))) => result.map(drop),
            Err(e) => Err(Failure::Other(format!("container process: {e}"))),
        }
    }
}

type Report = (Result<Stage, Failure>, Vec<OwnedFd>);

fn receive(socket: BorrowedFd<'_>, inbox: &mut wire::Inbox) -> io::Result<Option<Report>> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if let Some(report) = inbox.next()? {
            return Ok(Some(report));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "not ready after 60 s"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match inbox.fill(socket) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Namespaces and cgroup of a new child.
#[derive(Debug, Default)]
pub(super) struct Birth<'a> {
    /// Flags `CLONE_NEW*` of the namespaces to create.
    pub(super) flags: u64,
    /// PID namespace to join. `None`: a new one, or the shim's.
    pub(super) pid_namespace: Option<BorrowedFd<'a>>,
    /// Cgroup to join, relative to the root of each hierarchy.
    pub(super) cgroup: &'a str,
}

/// Forks, runs `body` in the child (it returns only on failure) and waits for the child's report.
pub(super) fn spawn(
    birth: &Birth<'_>,
    cgroups: &Cgroups,
    body: impl FnOnce(&OwnedFd) -> Failure,
) -> Result<Child, Failure> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Failure::Other(format!("socketpair: {}", e.desc())))?;
    let place = cgroups.birthplace(birth.cgroup).map_err(Failure::other("open cgroup"))?;
    let own_namespace = match birth.pid_namespace {
        Some(namespace) => {
            let own =
                fs::File::open("/proc/self/ns/pid").map_err(Failure::other("open own process namespace"))?;
            setns(namespace, CloneFlags::CLONE_NEWPID)
                .map_err(|e| Failure::Other(format!("enter process namespace: {}", e.desc())))?;
            Some(own)
        }
        None => None,
    };
    let mut joined = place.is_some();
    let mut forked = sys::clone3(birth.flags, place.as_ref().map(AsFd::as_fd));
    if joined && forked.is_err() {
        joined = false;
        forked = sys::clone3(birth.flags, None);
    }
    if let Ok(None) = forked {
        drop(ours);
        let joined = if joined { Ok(()) } else { cgroups.join(birth.cgroup) };
        let failure = match joined {
            Ok(()) => body(&theirs),
            Err(e) => Failure::Other(e.to_string()),
        };
        report(&theirs, Err(failure), vec![]);
        sys::exit_now(1);
    }
    if let Some(own) = own_namespace {
        setns(own, CloneFlags::CLONE_NEWPID)
            .map_err(|e| Failure::Other(format!("leave process namespace: {}", e.desc())))?;
    }
    let pid = match forked {
        Ok(Some(pid)) => pid,
        Ok(None) => sys::exit_now(1),
        Err(e) => return Err(Failure::Other(format!("fork: {e}"))),
    };
    drop(theirs);
    let failure = match receive(ours.as_fd(), &mut wire::Inbox::default()) {
        Ok(Some((Ok(Stage::Ready), fds))) => {
            return Ok(Child { pid, sync: Sync(ours), terminal: fds.into_iter().next() });
        }
        Ok(Some((Err(failure), _))) => failure,
        Ok(None) => {
            Failure::Other("the container process died while it was set up (memory limit too low?)".into())
        }
        Err(e) => Failure::Other(format!("container process: {e}")),
    };
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(pid, None);
    Err(failure)
}

fn report(socket: &OwnedFd, result: Result<Stage, Failure>, fds: Vec<OwnedFd>) {
    let mut outbox = wire::Outbox::default();
    if outbox.push(&result, fds).is_ok() {
        let _ = outbox.flush(socket.as_fd());
    }
}

/// A program to execute.
#[derive(Debug)]
pub(super) struct Program<'a> {
    pub(super) container: &'a ContainerRecord,
    pub(super) args: &'a [String],
    pub(super) tty: bool,
    pub(super) hostname: &'a str,
    pub(super) stdio: Stdio,
}

/// The child's side for a container's first process, in a new mount namespace.
pub(super) fn container_init(
    sync: &OwnedFd,
    dir: &Path,
    sandbox: &SandboxRecord,
    program: Program<'_>,
    cgroups: &Cgroups,
) -> Failure {
    let container = program.container;
    let prepare = || -> Result<(), String> {
        if let Some(adjustment) = container.spec.resources.oom_score_adj {
            match fs::write("/proc/self/oom_score_adj", adjustment.to_string()) {
                // Lowering it needs CAP_SYS_RESOURCE, which root does not have on every machine. It is not
                // essential.
                Err(e) if e.kind() != io::ErrorKind::PermissionDenied => {
                    return Err(doing("set oom_score_adj")(e));
                }
                _ => {}
            }
        }
        // The process is in its groups now, so they become the root of its cgroup namespace. In version 1 a
        // privileged container sees the host's hierarchies, as it sees the host's devices.
        if matches!(cgroups, Cgroups::V2(_)) || !container.spec.privileged {
            unshare(CloneFlags::CLONE_NEWCGROUP).map_err(doing("new cgroup namespace"))?;
        }
        sys::own_keyring();
        rootfs::enter(dir, sandbox, container, cgroups)
    };
    match prepare() {
        Ok(()) => become_program(sync, program, true),
        Err(message) => Failure::Other(message),
    }
}

/// The child's side for a command in the namespaces of a running container.
pub(super) fn exec_in(sync: &OwnedFd, namespaces: &[OwnedFd], program: Program<'_>) -> Failure {
    for namespace in namespaces {
        if let Err(e) = setns(namespace, CloneFlags::empty()) {
            return Failure::Other(format!("enter the container's namespaces: {}", e.desc()));
        }
    }
    become_program(sync, program, false)
}

fn become_program(sync: &OwnedFd, program: Program<'_>, first: bool) -> Failure {
    match try_become(sync, program, first) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn try_become(
    sync: &OwnedFd,
    program: Program<'_>,
    first: bool,
) -> Result<std::convert::Infallible, Failure> {
    let spec = &program.container.spec;
    let other = Failure::Other;
    let identity = identity::of(spec, &program.container.image_user).map_err(Failure::Start)?;
    let capabilities = identity::capabilities(spec).map_err(Failure::Start)? & identity::available();
    let env = environment(&program, &identity.home);
    let _ = nix::unistd::setsid();
    let terminal = streams(&program, identity.uid)?;
    let cwd = Path::new(&program.container.working_dir);
    if first && !cwd.exists() {
        fs::create_dir_all(cwd)
            .map_err(doing(format!("make working directory {cwd:?}")))
            .map_err(Failure::Start)?;
    }
    nix::unistd::chdir(cwd).map_err(doing(format!("chdir to {cwd:?}"))).map_err(Failure::Start)?;
    if first && spec.readonly_rootfs {
        rootfs::seal().map_err(other)?;
    }
    let path = find_executable(program.args, &env)?;
    let strings = |items: &[String]| items.iter().map(|s| c_string(s)).collect::<Result<Vec<_>, _>>();
    let (args, env) = (strings(program.args)?, strings(&env)?);
    let file = c_string(&path)?;

    report(sync, Ok(Stage::Ready), terminal.into_iter().collect());
    if first {
        let mut word = [0];
        match nix::unistd::read(sync, &mut word) {
            Ok(1) => {}
            _ => sys::exit_now(1),
        }
    }

    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    if spec.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(Failure::other("no_new_privs"))?;
    }
    if !spec.privileged && !spec.seccomp_unconfined {
        let filter = seccomp::filter(capabilities & identity::SYS_ADMIN != 0);
        sys::seccomp(&filter).map_err(Failure::other("install the seccomp filter"))?;
    }
    identity::bound(capabilities).map_err(Failure::other("limit capabilities"))?;
    let groups: Vec<Gid> = identity.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    nix::unistd::setgroups(&groups)
        .and_then(|()| nix::unistd::setresgid(gid, gid, gid))
        .and_then(|()| nix::unistd::setresuid(uid, uid, uid))
        .map_err(|e| Failure::Other(format!("become user {uid} group {gid}: {}", e.desc())))?;
    let kept = if identity.uid == 0 { capabilities } else { 0 };
    sys::capset(kept, kept, 0).map_err(Failure::other("set capabilities"))?;
    // After the change of the user, which resets it.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)
        .map_err(Failure::other("parent-death signal"))?;
    default_signals();
    sys::cloexec_from(3);
    let error = sys::exec(&file, &args, &env);
    Err(Failure::Start(start_message(&program.args[0], &describe(&error))))
}

/// Connects descriptors 0, 1 and 2. Returns the terminal's master side, if there is one.
fn streams(program: &Program<'_>, uid: u32) -> Result<Option<OwnedFd>, Failure> {
    let owner = Some(Uid::from_raw(uid));
    if program.tty {
        let open = fs::OpenOptions::new().read(true).write(true).open("/dev/pts/ptmx");
        let master = OwnedFd::from(open.map_err(Failure::other("open /dev/ptmx"))?);
        let peer = sys::open_terminal_peer(master.as_fd()).map_err(Failure::other("open terminal"))?;
        let _ = nix::unistd::fchown(&peer, owner, None);
        sys::set_controlling_terminal(peer.as_fd()).map_err(Failure::other("set controlling terminal"))?;
        for target in 0..3 {
            sys::dup_onto(peer.as_fd(), target).map_err(Failure::other("connect terminal"))?;
        }
        return Ok(Some(master));
    }
    let ends = [&program.stdio.stdin, &program.stdio.stdout, &program.stdio.stderr];
    for (target, end) in (0..).zip(ends) {
        let end = match end {
            Some(end) => {
                // Allows a program that is not root to open /dev/stdout.
                let _ = nix::unistd::fchown(end, owner, None);
                end.as_fd()
            }
            None => program.stdio.null.as_fd(),
        };
        sys::dup_onto(end, target).map_err(Failure::other("connect streams"))?;
    }
    Ok(None)
}

fn environment(program: &Program<'_>, home: &str) -> Vec<String> {
    let set = &program.container.env;
    let mut defaults = vec![("PATH", DEFAULT_PATH), ("HOSTNAME", program.hostname), ("HOME", home)];
    if program.tty {
        defaults.push(("TERM", "xterm"));
    }
    defaults
        .into_iter()
        .filter(|(name, _)| !set.iter().any(|(known, _)| known == name))
        .map(|(name, value)| format!("{name}={value}"))
        .chain(set.iter().map(|(name, value)| format!("{name}={value}")))
        .collect()
}

fn find_executable(args: &[String], env: &[String]) -> Result<String, Failure> {
    let Some(name) = args.first().filter(|a| !a.is_empty()) else {
        return Err(Failure::Start("no command specified".to_owned()));
    };
    let usable = |path: &str| -> Result<(), String> {
        let meta = fs::metadata(path).map_err(|e| format!("stat {path}: {}", describe(&e)))?;
        if meta.is_dir() {
            return Err("is a directory".to_owned());
        }
        if meta.permissions().mode() & 0o111 == 0 || meta.file_type().is_fifo() {
            return Err("permission denied".to_owned());
        }
        Ok(())
    };
    if name.contains('/') {
        return usable(name).map(|()| name.clone()).map_err(|e| Failure::Start(start_message(name, &e)));
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(
            |directory| {
                if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") }
            },
        )
        .find(|candidate| usable(candidate).is_ok())
        .ok_or_else(|| Failure::Start(start_message(name, "executable file not found in $PATH")))
}

/// Formats a failed start like runc does, for those who search logs.
fn start_message(name: &str, why: &str) -> String {
    format!("unable to start container process: exec: {name:?}: {why}")
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::Start(format!("{text:?} contains a NUL byte")))
}

/// Resets all signals: nothing blocked, default dispositions.
#[allow(unsafe_code)]
fn default_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGPIPE, Signal::SIGHUP, Signal::SIGINT, Signal::SIGCHLD, Signal::SIGTERM] {
        // SAFETY: the default disposition runs no code of ours.
        let _ = unsafe { sigaction(signal, &default) };
    }
    let _ = SigSet::all().thread_unblock();
}
