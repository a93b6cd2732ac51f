//! Connections of a shim and the handlers of its requests.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    poll::PollFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Exec, Shim,
    container::{self, Container, complain},
};
use crate::{
    embedded::{
        protocol::{Call, ContainerRecord, Failure, Message, Reply, Request, read_json},
        sandbox_files,
        wire::{Inbox, Outbox},
    },
    sys,
};

/// A client connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    inbox: Inbox,
    outbox: Outbox,
    gone: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Connection {
        Connection { socket, inbox: Inbox::default(), outbox: Outbox::default(), gone: false }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns `true` if all messages are sent or the client is gone.
    pub(super) fn flushed(&self) -> bool {
        self.gone || self.outbox.is_empty()
    }

    pub(super) fn send(&mut self, message: &Message, fds: Vec<OwnedFd>) {
        if let Err(error) = self.outbox.push(message, fds) {
            complain("encode a message", &error);
        }
        self.flush();
    }

    fn flush(&mut self) {
        match self.outbox.flush(self.socket.as_fd()) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock && e.kind() != io::ErrorKind::Interrupted => {
                self.gone = true;
            }
            _ => {}
        }
    }

    /// Reads from the socket and returns the complete requests.
    fn receive(&mut self) -> VecDeque<Call> {
        let mut calls = VecDeque::new();
        match self.inbox.fill(self.socket.as_fd()) {
            Ok(true) => {}
            Ok(false) => self.gone = true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.gone = true,
        }
        loop {
            match self.inbox.next() {
                Ok(Some((call, _))) => calls.push_back(call),
                Ok(None) => return calls,
                Err(error) => {
                    complain("a client's message", &error);
                    self.gone = true;
                    return calls;
                }
            }
        }
    }
}

type Answer = Result<(Reply, Vec<OwnedFd>), Failure>;

impl Shim {
    pub(super) fn accept(&mut self, socket: OwnedFd, greeting: Option<Message>) {
        let mut connection = Connection::new(socket);
        if let Some(greeting) = greeting {
            connection.send(&greeting, vec![]);
        }
        self.connections.insert(self.next_connection, connection);
        self.next_connection += 1;
    }

    pub(super) fn converse(&mut self, id: u64, events: PollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if events.contains(PollFlags::POLLOUT) {
            connection.flush();
        }
        for Call { seq, request } in connection.receive() {
            let (result, fds) = match self.answer(id, request) {
                Ok((reply, fds)) => (Ok(reply), fds),
                Err(failure) => (Err(failure), vec![]),
            };
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.send(&Message::Reply { seq, result }, fds);
            }
        }
        if self.connections.get(&id).is_some_and(|c| c.gone) {
            self.connections.remove(&id);
            for exec in self.execs.values().filter(|e| e.connection == id) {
                let _ = kill(exec.pid, Signal::SIGKILL);
            }
        }
    }

    fn answer(&mut self, connection: u64, request: Request) -> Answer {
        let done = || Ok((Reply::Done, vec![]));
        match request {
            Request::List => Ok((self.states(), vec![])),
            Request::Create { id } => self.create(id),
            Request::Start { id } => {
                let dir = self.dir.clone();
                let container = self.container(&id)?;
                let result = container.start();
                container.save(&dir).map_err(Failure::other("save the container's state"))?;
                let state = container.state().clone();
                result?;
                // Before any message about its exit, which may follow at once.
                self.broadcast(&Message::Started { id, state });
                done()
            }
            Request::Signal { id, signal, all } => {
                let container = self.container(&id)?;
                let (pid, cgroup) = (container.pid(), container.record().cgroup.clone());
                if let (Some(pid), Ok(signal)) = (pid, Signal::try_from(signal)) {
                    let _ = kill(pid, signal);
                }
                if all {
                    self.cgroups.signal(&cgroup, signal);
                }
                done()
            }
            Request::Remove { id } => self.remove(&id).map(|()| (Reply::Done, vec![])),
            Request::Exec { id, exec, command, stdin, tty } => {
                let host_pid = self.sandbox.spec.host_pid;
                let container = self.containers.get(&id).ok_or(Failure::NotFound)?;
                let (pid, streams, fds) =
                    container::exec(container, &self.cgroups, host_pid, &command, stdin, tty)?;
                self.execs.insert(exec, Exec { pid, connection });
                Ok((Reply::Streams(streams), fds))
            }
            Request::KillExec { exec } => {
                if let Some(exec) = self.execs.get(&exec) {
                    // The command leads its own session and process group.
                    let _ = kill(Pid::from_raw(-exec.pid.as_raw()), Signal::SIGKILL);
                    let _ = kill(exec.pid, Signal::SIGKILL);
                }
                done()
            }
            Request::Attach { id } => {
                let (streams, fds) = self.container(&id)?.attach()?;
                Ok((Reply::Streams(streams), fds))
            }
            Request::PortForward { port, v6 } => {
                let socket = sys::connect_loopback(port, v6)
                    .map_err(Failure::other(&format!("connect to port {port}")))?;
                Ok((Reply::Done, vec![socket]))
            }
            Request::ReopenLog { id } => {
                self.container(&id)?.reopen_log().map_err(|e| Failure::Other(e.to_string()))?;
                done()
            }
            Request::Shutdown => {
                self.shut_down()?;
                Ok((self.states(), vec![]))
            }
        }
    }

    fn states(&self) -> Reply {
        Reply::States(self.containers.iter().map(|(id, c)| (id.clone(), c.state().clone())).collect())
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or(Failure::NotFound)
    }

    fn create(&mut self, id: String) -> Answer {
        if self.containers.contains_key(&id) {
            return Err(Failure::Other(format!("container {id} exists")));
        }
        let path = self.dir.join("c").join(&id).join("container.json");
        let record: ContainerRecord = read_json(&path).map_err(Failure::other(&format!("read {path:?}")))?;
        let cgroup = record.cgroup.clone();
        let pids = self.shared_pids.as_ref().map(|(_, fd)| fd.as_fd());
        let made =
            Container::create(&self.dir, &self.sandbox, record, &self.cgroups, &mut self.pod_rules, pids);
        let container = match made {
            Ok(container) => container,
            Err(failure) => {
                let _ = self.cgroups.remove(&cgroup, Duration::from_secs(2));
                return Err(failure);
            }
        };
        container.save(&self.dir).map_err(Failure::other("save the container's state"))?;
        self.containers.insert(id, container);
        Ok((Reply::Done, vec![]))
    }

    /// Kills the container and removes its cgroup. The caller removes the files, since it has threads for
    /// blocking work.
    fn remove(&mut self, id: &str) -> Result<(), Failure> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let cgroup = container.record().cgroup.clone();
        self.kill_and_wait(id);
        self.cgroups.remove(&cgroup, Duration::from_secs(5)).map_err(|e| Failure::Other(e.to_string()))?;
        self.containers.remove(id);
        Ok(())
    }

    fn kill_and_wait(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        if let Some(pid) = container.pid() {
            let _ = kill(pid, Signal::SIGKILL);
            self.cgroups.signal(&container.record().cgroup, libc::SIGKILL);
            self.wait_for(pid);
        }
    }

    /// Ends all containers. Their states and files stay.
    fn shut_down(&mut self) -> Result<(), Failure> {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in &ids {
            self.kill_and_wait(id);
        }
        if let Some((pid, _)) = self.shared_pids.take() {
            let _ = kill(pid, Signal::SIGKILL);
            self.wait_for(pid);
        }
        for container in self.containers.values() {
            let cgroup = &container.record().cgroup;
            self.cgroups.remove(cgroup, Duration::from_secs(5)).map_err(|e| Failure::Other(e.to_string()))?;
        }
        sandbox_files::release(&self.sandbox, &self.cgroups).map_err(|e| Failure::Other(e.to_string()))?;
        self.done = true;
        Ok(())
    }
}
