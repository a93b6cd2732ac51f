//! The shim: a small single-threaded process per pod.
//!
//! It holds the pod's namespaces and its containers' streams, writes their logs, collects their exit codes,
//! and serves requests on a unix socket in the sandbox's directory. It is a child of the zygote in a session
//! of its own, so it outlives the zygote and the node process. A restarted node process connects to the
//! socket and lists the containers.
//!
//! Flow: [`run`] sets the sandbox up, reports on its first connection, and then polls: signals (exited
//! children), output of containers, connections, attached clients.
//! Guarantees: an exit is on disk before it is reported; the containers die with the shim (parent-death
//! signal).
//! Not here: policy (restarts, grace periods), and blocking calls other than poll and the set-up of a child.

mod container;
mod identity;
mod log;
mod pause;
mod process;
mod rootfs;
mod sandbox;
mod seccomp;
mod server;

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use self::{container::Container, log::StreamName, server::Connection};
use super::{
    cgroup::Cgroups,
    devices::{self, PodRules},
    protocol::{Message, SandboxRecord, read_json},
};

/// A running exec command.
#[derive(Debug)]
struct Exec {
    pid: Pid,
    /// The connection that requested it. The command is killed when it closes.
    connection: u64,
}

/// State of a shim.
#[derive(Debug)]
struct Shim {
    dir: PathBuf,
    sandbox: SandboxRecord,
    cgroups: Cgroups,
    /// Device rules of the pod's group.
    pod_rules: PodRules,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<u64, Exec>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// The PID namespace shared by the containers, and its first process.
    shared_pids: Option<(Pid, OwnedFd)>,
    /// A shutdown was requested.
    done: bool,
}

/// Identifies a descriptor in the poll set.
#[derive(Clone, Debug)]
enum Token {
    Signals,
    Listener,
    Connection(u64),
    Output(String, StreamName),
    /// An attached client's output.
    Client(String, usize),
}

/// Runs a shim in the child that the zygote forked, until the shutdown. `first` is its first connection.
pub(super) fn run(dir: &Path, first: OwnedFd) -> i32 {
    let (mut shim, signals, listener) = match prepare(dir) {
        Ok(parts) => parts,
        Err(message) => {
            let mut connection = Connection::new(first);
            connection.send(&Message::Ready(Err(message)), vec![]);
            return 1;
        }
    };
    shim.accept(first, Some(Message::Ready(Ok(std::process::id() as i32))));
    match shim.serve(&signals, &listener) {
        Ok(()) => 0,
        Err(error) => {
            container::complain("poll", &error);
            1
        }
    }
}

fn prepare(dir: &Path) -> Result<(Shim, SignalFd, UnixListener), String> {
    let text = |context: &str| {
        let context = context.to_owned();
        move |e: io::Error| format!("{context}: {e}")
    };
    nix::unistd::setsid().map_err(|e| format!("setsid: {}", e.desc()))?;
    ignore_signals();
    let log = fs::OpenOptions::new().append(true).create(true).open(dir.join("shim.log"));
    let log = log.map_err(text("open shim.log"))?;
    crate::sys::dup_onto(log.as_fd(), 2).map_err(text("redirect standard error"))?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(|e| format!("block signals: {}", e.desc()))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).map_err(|e| format!("signalfd: {}", e.desc()))?;

    let sandbox: SandboxRecord = read_json(&dir.join("sandbox.json")).map_err(text("read sandbox.json"))?;
    let cgroups = Cgroups::detect().map_err(text("find cgroups"))?;
    let shared_pids = sandbox::set_up(dir, &sandbox, &cgroups)?;
    let pod_rules = devices::restrict_pod(&cgroups, &sandbox.cgroup);
    let listener = bind(dir).map_err(text("bind shim.sock"))?;
    let shim = Shim {
        dir: dir.to_owned(),
        sandbox,
        cgroups,
        pod_rules,
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        connections: BTreeMap::new(),
        next_connection: 0,
        shared_pids,
        done: false,
    };
    Ok((shim, signals, listener))
}

/// Binds through `/proc/self/fd`: the path of a socket is limited to 108 bytes.
fn bind(dir: &Path) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;
    let handle = fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/shim.sock", handle.as_raw_fd());
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[allow(unsafe_code)]
fn ignore_signals() {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        // SAFETY: no code of ours runs in the handler.
        let _ = unsafe { sigaction(signal, &ignore) };
    }
    // The zygote ignores SIGCHLD.
    // SAFETY: as above.
    let _ = unsafe { sigaction(Signal::SIGCHLD, &default) };
}

impl Shim {
    fn serve(&mut self, signals: &SignalFd, listener: &UnixListener) -> io::Result<()> {
        loop {
            let ready = self.wait(signals.as_fd(), listener.as_fd())?;
            for (token, events) in ready {
                match token {
                    Token::Signals => {
                        while let Ok(Some(_)) = signals.read_signal() {}
                        self.reap();
                    }
                    Token::Listener => {
                        while let Ok((stream, _)) = listener.accept() {
                            self.accept(stream.into(), None);
                        }
                    }
                    Token::Connection(id) => self.converse(id, events),
                    Token::Output(id, stream) => {
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.pump(stream);
                        }
                    }
                    Token::Client(id, index) => {
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.flush_client(index, events);
                        }
                    }
                }
            }
            for container in self.containers.values_mut() {
                container.drop_gone_clients();
            }
            let flushed = self.connections.values().all(Connection::flushed);
            if self.done && flushed {
                return Ok(());
            }
        }
    }

    fn wait(&self, signals: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = vec![Token::Signals, Token::Listener];
        let mut fds = vec![PollFd::new(signals, PollFlags::POLLIN), PollFd::new(listener, PollFlags::POLLIN)];
        for (id, connection) in &self.connections {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, !connection.flushed());
            tokens.push(Token::Connection(*id));
            fds.push(PollFd::new(connection.fd(), flags));
        }
        for (id, container) in &self.containers {
            for (stream, fd) in container.outputs() {
                tokens.push(Token::Output(id.clone(), stream));
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
            }
            for (index, fd, flags) in container.clients() {
                tokens.push(Token::Client(id.clone(), index));
                fds.push(PollFd::new(fd, flags));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        let events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(tokens.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
    }

    /// Reaps the exited children.
    fn reap(&mut self) {
        while self.bury_one(WaitPidFlag::WNOHANG).is_some() {}
    }

    /// Waits until `pid` has exited, and reaps every other child in between. The first process of a PID
    /// namespace does not exit before the exec commands in the namespace are reaped, and the shim is their
    /// parent.
    fn wait_for(&mut self, pid: Pid) {
        while self.bury_one(WaitPidFlag::empty()).is_some_and(|buried| buried != pid) {}
    }

    /// Reaps one child. `None`: there is none (with `WNOHANG`: none has exited).
    fn bury_one(&mut self, flags: WaitPidFlag) -> Option<Pid> {
        let (pid, code) = loop {
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) => break (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => break (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) => return None,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return None,
            }
        };
        if let Some(exec) = self.execs.iter().find(|(_, e)| e.pid == pid).map(|(id, _)| *id) {
            self.execs.remove(&exec);
            self.broadcast(&Message::ExecExited { exec, code });
        } else if let Some(id) =
            self.containers.iter().find(|(_, c)| c.pid() == Some(pid)).map(|(id, _)| id.clone())
        {
            self.ended(&id, code);
        }
        Some(pid)
    }

    fn ended(&mut self, id: &str, code: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let told = container.is_live();
        container.ended(code, &self.cgroups);
        if let Err(error) = container.save(&self.dir) {
            container::complain(&format!("save the state of {id}"), &error);
        }
        let state = container.state().clone();
        if told {
            self.broadcast(&Message::Exited { id: id.to_owned(), state });
        }
    }

    fn broadcast(&mut self, message: &Message) {
        for connection in self.connections.values_mut() {
            connection.send(message, vec![]);
        }
    }
}
