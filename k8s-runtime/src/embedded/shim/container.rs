//! A container in its shim: process, streams, log, attached clients.

#![expect(clippy::disallowed_methods, reason = "the kernel runs containers in real time")]

use std::{
    collections::VecDeque,
    fs, io,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::SystemTime,
};

use jiff::Timestamp;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::PollFlags,
    unistd::{Pid, pipe2},
};

use super::{
    identity,
    log::{Limit, Log, StreamName},
    process::{self, Birth, Program, Stdio, Sync},
};
use crate::{
    api::ContainerState,
    embedded::{
        cgroup::Cgroups,
        devices::{self, PodRules},
        protocol::{ContainerRecord, Failure, SandboxRecord, Streams, write_json},
    },
};

/// Maximum number of bytes that an attached client may lag behind; then the container's output is not read.
const MAX_BEHIND: usize = 256 << 10;

/// An attached client's copy of an output stream.
#[derive(Debug)]
struct Client {
    stream: StreamName,
    fd: OwnedFd,
    behind: VecDeque<u8>,
    /// The output has ended; only the buffered bytes remain.
    ended: bool,
    gone: bool,
}

/// A container with its process, streams, log and attached clients.
#[derive(Debug)]
pub(super) struct Container {
    record: ContainerRecord,
    state: ContainerState,
    pid: Option<Pid>,
    /// The first process before [`Container::start`].
    waiting: Option<Sync>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// No process has the other side of the terminal open; polling it would be a busy loop.
    hung_up: bool,
    log: Log,
    clients: Vec<Client>,
}

fn cloexec_pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe2(OFlag::O_CLOEXEC).map_err(|e| Failure::Other(format!("pipe: {}", e.desc())))
}

fn nonblocking(fd: &OwnedFd) -> Result<(), Failure> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|e| Failure::Other(format!("set non-blocking: {}", e.desc())))
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Failure> {
    fd.try_clone().map_err(Failure::other("duplicate a descriptor"))
}

impl Container {
    /// Creates the container and its first process, which waits for [`Container::start`].
    pub(super) fn create(
        dir: &Path,
        sandbox: &SandboxRecord,
        record: ContainerRecord,
        cgroups: &Cgroups,
        pod_rules: &mut PodRules,
        shared_pids: Option<BorrowedFd<'_>>,
    ) -> Result<Container, Failure> {
        let own = dir.join("c").join(&record.id);
        for name in ["upper", "work", "rootfs"] {
            fs::create_dir_all(own.join(name))
                .map_err(Failure::other(&format!("make {:?}", own.join(name))))?;
        }
        let limit = Limit { bytes: record.spec.log_max_bytes, files: record.spec.log_max_files };
        let log = Log::open(&sandbox.spec.log_directory, &record.spec.log_path, limit)
            .map_err(|e| Failure::Other(e.to_string()))?;
        if record.spec.privileged {
            // Before the container's group is created: a version 1 group inherits the rules of its parent.
            pod_rules.lift().map_err(Failure::other("allow a privileged container all devices"))?;
        }
        cgroups
            .create(&record.cgroup)
            .map_err(Failure::other(&format!("make cgroup {:?}", record.cgroup)))?;
        cgroups.limit(&record.cgroup, &record.spec.resources).map_err(|e| Failure::Other(e.to_string()))?;
        if !record.spec.privileged {
            restrict_devices(&record, cgroups, pod_rules)?;
        }

        let spec = &record.spec;
        let mut stdio = Stdio::new()?;
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        if !spec.tty {
            if spec.stdin {
                let (read, write) = cloexec_pipe()?;
                (stdio.stdin, stdin) = (Some(read), Some(write));
            }
            for (theirs, ours) in [(&mut stdio.stdout, &mut stdout), (&mut stdio.stderr, &mut stderr)] {
                let (read, write) = cloexec_pipe()?;
                nonblocking(&read)?;
                (*theirs, *ours) = (Some(write), Some(read));
            }
        }
        let new_pids = !sandbox.spec.host_pid && shared_pids.is_none();
        let flags = libc::CLONE_NEWNS | if new_pids { libc::CLONE_NEWPID } else { 0 };
        let birth = Birth { flags: flags as u64, pid_namespace: shared_pids, cgroup: &record.cgroup };
        let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let child = process::spawn(&birth, cgroups, |sync| {
            let program =
                Program { container: &record, args: &record.args, tty: spec.tty, hostname: &hostname, stdio };
            process::container_init(sync, dir, sandbox, program, cgroups)
        })?;
        if let Some(terminal) = &child.terminal {
            nonblocking(terminal)?;
        }
        Ok(Container {
            record,
            state: ContainerState::Created,
            pid: Some(child.pid),
            waiting: Some(child.sync),
            stdin,
            stdout,
            stderr,
            terminal: child.terminal,
            hung_up: false,
            log,
            clients: Vec::new(),
        })
    }

    pub(super) fn record(&self) -> &ContainerRecord {
        &self.record
    }

    pub(super) fn state(&self) -> &ContainerState {
        &self.state
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Returns `true` if its exit has not been reported yet. (A failed start is reported at once.)
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.state, ContainerState::Exited { .. })
    }

    /// Lets the waiting process execute the program.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let Some(waiting) = self.waiting.take() else {
            return Err(Failure::Other(format!(
                "container {} cannot be started: it is not in state created",
                self.record.id
            )));
        };
        let pid = self.pid.map_or(0, Pid::as_raw);
        let started_at = SystemTime::now();
        match waiting.go() {
            Ok(()) => {
                self.state = ContainerState::Running { started_at, pid };
                Ok(())
            }
            Err(failure) => {
                let message = match &failure {
                    Failure::Start(message) | Failure::Other(message) => message.clone(),
                    Failure::NotFound => "not found".to_owned(),
                };
                let finished_at = SystemTime::now();
                self.state = ContainerState::Exited {
                    started_at: None,
                    finished_at,
                    code: 128,
                    oom_killed: false,
                    message,
                };
                Err(failure)
            }
        }
    }

    /// Writes the state to disk.
    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        write_json(&dir.join("c").join(&self.record.id).join("state.json"), &self.state)
    }

    /// Handles the exit of the first process: kills the rest of the container.
    pub(super) fn ended(&mut self, code: i32, cgroups: &Cgroups) {
        self.pid = None;
        self.waiting = None;
        // With a shared PID namespace, the container's other processes survive the first one.
        cgroups.signal(&self.record.cgroup, libc::SIGKILL);
        for stream in [StreamName::Stdout, StreamName::Stderr] {
            self.drain(stream);
        }
        (self.stdin, self.stdout, self.stderr, self.terminal) = (None, None, None, None);
        let started_at = match &self.state {
            ContainerState::Running { started_at, .. } => Some(*started_at),
            ContainerState::Created => None,
            ContainerState::Exited { .. } => return,
        };
        let oom_killed = code != 0 && cgroups.oom_kills(&self.record.cgroup) > 0;
        self.state = ContainerState::Exited {
            started_at,
            finished_at: SystemTime::now(),
            code,
            oom_killed,
            message: String::new(),
        };
    }

    /// Returns the outputs to poll: none while a client lags too far behind.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (StreamName, BorrowedFd<'_>)> {
        let held_back = self.clients.iter().any(|c| c.behind.len() > MAX_BEHIND);
        let terminal = self.terminal.as_ref().filter(|_| !self.hung_up);
        let stdout = self.stdout.as_ref().or(terminal).filter(|_| self.waiting.is_none());
        [(StreamName::Stdout, stdout), (StreamName::Stderr, self.stderr.as_ref())]
            .into_iter()
            .filter(move |_| !held_back)
            .filter_map(|(name, fd)| Some((name, fd?.as_fd())))
    }

    /// Returns the clients to poll: all for a disconnect, and those with buffered output for writability.
    pub(super) fn clients(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, PollFlags)> {
        self.clients.iter().enumerate().map(|(index, client)| {
            let flags = if client.behind.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            (index, client.fd.as_fd(), flags)
        })
    }

    /// Reads once from an output, and passes the bytes to the log and the clients. Returns `false` if there
    /// is no more for now.
    pub(super) fn pump(&mut self, stream: StreamName) -> bool {
        let mut chunk = [0; 16 << 10];
        let source = match stream {
            StreamName::Stdout => self.stdout.as_ref().or(self.terminal.as_ref()),
            StreamName::Stderr => self.stderr.as_ref(),
        };
        let Some(source) = source else { return false };
        match nix::unistd::read(source, &mut chunk) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => false,
            // A terminal returns EIO if no process has the other side open.
            Ok(0) | Err(_) => {
                self.close(stream);
                false
            }
            Ok(length) => {
                let bytes = &chunk[..length];
                if let Err(error) = self.log.write(stream, bytes, Timestamp::now()) {
                    complain(&format!("log of {}", self.record.id), &error);
                }
                for client in self.clients.iter_mut().filter(|c| c.stream == stream && !c.gone) {
                    client.behind.extend(bytes);
                    client.flush();
                }
                true
            }
        }
    }

    fn drain(&mut self, stream: StreamName) {
        while self.pump(stream) {}
        self.close(stream);
    }

    fn close(&mut self, stream: StreamName) {
        let _ = self.log.finish(stream, Timestamp::now());
        match stream {
            StreamName::Stdout => (self.stdout, self.hung_up) = (None, true),
            StreamName::Stderr => self.stderr = None,
        }
        for client in self.clients.iter_mut().filter(|c| c.stream == stream) {
            client.ended = true;
        }
    }

    pub(super) fn flush_client(&mut self, index: usize, events: PollFlags) {
        if let Some(client) = self.clients.get_mut(index) {
            client.flush();
            client.gone |= events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL);
        }
    }

    pub(super) fn drop_gone_clients(&mut self) {
        self.clients.retain(|c| !(c.gone || c.ended && c.behind.is_empty()));
    }

    pub(super) fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// Adds a client and returns its ends of the streams, in the order of the protocol.
    pub(super) fn attach(&mut self) -> Result<(Streams, Vec<OwnedFd>), Failure> {
        if self.pid.is_none() {
            return Err(Failure::Other(format!("container {} is not running", self.record.id)));
        }
        let mut streams = Streams { stdout: true, ..Streams::default() };
        let mut fds = Vec::new();
        let spec = &self.record.spec;
        if spec.stdin {
            let writer = match &self.terminal {
                Some(terminal) => Some(duplicate(terminal)?),
                // The client gets the only descriptor, so that standard input closes when it disconnects.
                None if spec.stdin_once => self.stdin.take(),
                None => self.stdin.as_ref().map(duplicate).transpose()?,
            };
            streams.stdin = writer.is_some();
            fds.extend(writer);
        }
        fds.push(self.add_client(StreamName::Stdout)?);
        if let Some(terminal) = &self.terminal {
            streams.terminal = true;
            fds.push(duplicate(terminal)?);
        } else {
            streams.stderr = true;
            fds.push(self.add_client(StreamName::Stderr)?);
        }
        Ok((streams, fds))
    }

    fn add_client(&mut self, stream: StreamName) -> Result<OwnedFd, Failure> {
        let (read, write) = cloexec_pipe()?;
        nonblocking(&write)?;
        self.clients.push(Client { stream, fd: write, behind: VecDeque::new(), ended: false, gone: false });
        Ok(read)
    }
}

impl Client {
    fn flush(&mut self) {
        while !self.behind.is_empty() {
            let (head, _) = self.behind.as_slices();
            match nix::unistd::write(&self.fd, head) {
                Ok(written) => drop(self.behind.drain(..written)),
                Err(nix::errno::Errno::EAGAIN) => return,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => {
                    self.gone = true;
                    self.behind.clear();
                }
            }
        }
    }
}

/// Restricts device access of a container. If the machine does not permit that, a container with SYS_ADMIN is
/// refused, since it could mount. The mounts of other containers are `nodev`.
fn restrict_devices(
    record: &ContainerRecord,
    cgroups: &Cgroups,
    pod_rules: &PodRules,
) -> Result<(), Failure> {
    let own = devices::restrict(cgroups, &record.cgroup).err();
    let error = match (&own, pod_rules) {
        (Some(error), _) | (None, PodRules::Failed(error)) => error,
        (None, _) => return Ok(()),
    };
    let capabilities = identity::capabilities(&record.spec).unwrap_or(0) & identity::available();
    if capabilities & identity::SYS_ADMIN == 0 {
        complain("restrict devices", error);
        return Ok(());
    }
    Err(Failure::Other(format!("restrict the devices of a container with SYS_ADMIN: {error}")))
}

/// Executes a command in a running container.
pub(super) fn exec(
    container: &Container,
    cgroups: &Cgroups,
    host_pid: bool,
    command: &[String],
    stdin: bool,
    tty: bool,
) -> Result<(Pid, Streams, Vec<OwnedFd>), Failure> {
    let (Some(pid), ContainerState::Running { .. }) = (container.pid, &container.state) else {
        return Err(Failure::Other(format!("container {} is not running", container.record.id)));
    };
    let open = |name: &str| {
        fs::File::open(format!("/proc/{pid}/ns/{name}"))
            .map(OwnedFd::from)
            .map_err(Failure::other("open the container's namespaces"))
    };
    let pids = open("pid")?;
    let namespaces = [open("cgroup")?, open("mnt")?];
    let mut streams = Streams::default();
    let mut stdio = Stdio::new()?;
    let mut fds = Vec::new();
    if !tty {
        if stdin {
            let (read, write) = cloexec_pipe()?;
            stdio.stdin = Some(read);
            fds.push(write);
            streams.stdin = true;
        }
        for theirs in [&mut stdio.stdout, &mut stdio.stderr] {
            let (read, write) = cloexec_pipe()?;
            *theirs = Some(write);
            fds.push(read);
        }
        (streams.stdout, streams.stderr) = (true, true);
    }
    let birth = Birth {
        flags: 0,
        pid_namespace: (!host_pid).then(|| pids.as_fd()),
        cgroup: &container.record.cgroup,
    };
    let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let child = process::spawn(&birth, cgroups, |sync| {
        let program =
            Program { container: &container.record, args: command, tty, hostname: &hostname, stdio };
        process::exec_in(sync, &namespaces, program)
    })?;
    if let Some(terminal) = child.terminal {
        nonblocking(&terminal)?;
        streams.terminal = true;
        fds.push(terminal);
    }
    child.sync.running()?;
    Ok((child.pid, streams, fds))
}

/// Writes a line to the shim's log. Unlike `eprintln`, it does not panic if the disk is full.
pub(super) fn complain(context: &str, error: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "shim: {context}: {error}");
}
