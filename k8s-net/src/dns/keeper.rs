//! The node process's side of the [holder](super::holder): finds or starts it, and feeds it.

#![expect(clippy::disallowed_methods, reason = "names are answered in real time")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use k8s_core::meta::ObjectKey;
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Pid,
};
use tokio::{
    io::AsyncReadExt,
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::Mutex,
    time::timeout,
};
use tracing::{info, warn};

use super::{
    DnsError,
    feed::{Entries, Sink, Sources},
    holder::{MARKER, Start, at_socket, command},
    settings::DnsSettings,
    wire::{self, Command, Hello, Program},
};

/// Time for a holder to say who it is, and to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause after a holder was lost.
const PAUSE: Duration = Duration::from_millis(500);

/// A connected holder.
#[derive(Debug)]
pub(super) struct Keeper {
    start: Start,
    stream: UnixStream,
    /// Its process, if it is a child of this one.
    child: Option<Child>,
}

async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let stream = at_socket(directory, |path| std::os::unix::net::UnixStream::connect(path))?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn greeted(directory: &Path) -> io::Result<(UnixStream, Hello)> {
    let mut stream = connect(directory).await?;
    let hello = timeout(PATIENCE, wire::receive(&mut stream)).await??;
    Ok((stream, hello))
}

impl Keeper {
    /// Finds the holder of a directory, or starts one.
    pub(super) async fn find_or_start(start: Start) -> Result<Self, DnsError> {
        let held = |source| DnsError::Holder { source };
        if std::env::args_os().nth(1).is_some_and(|first| first == MARKER) {
            // Or it would start itself for ever.
            return Err(held(io::Error::other("this program does not call run_if_holder first in main")));
        }
        let own = Program::own().map_err(held)?;
        match greeted(&start.directory).await {
            Ok((mut stream, hello)) if hello.address == start.address && hello.domain == start.domain => {
                if hello.program == own {
                    info!(address = %start.address, "cluster DNS has answered meanwhile");
                    return Ok(Keeper { start, stream, child: None });
                }
                // The path stays right even if the program's file was replaced.
                let program = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
                wire::send(&mut stream, &Command::Become(program)).await.map_err(held)?;
                // The socket ends when the program is another one.
                let _ = timeout(PATIENCE, wire::receive::<Hello>(&mut stream)).await;
                if let Ok(stream) = Self::reached(&start, own).await {
                    info!(address = %start.address, "cluster DNS runs this version now");
                    return Ok(Keeper { start, stream, child: None });
                }
                stop(&start.directory).map_err(held)?;
            }
            // One for another address or domain, or one that says nothing.
            Ok(_) => stop(&start.directory).map_err(held)?,
            Err(_) if at_socket(&start.directory, |path| Ok(path.exists())).unwrap_or_default() => {
                stop(&start.directory).map_err(held)?;
            }
            Err(_) => {}
        }
        Self::begin(start, own).await
    }

    /// Waits for a holder that runs this program.
    async fn reached(start: &Start, own: Program) -> io::Result<UnixStream> {
        let attempts = async {
            loop {
                if let Ok((stream, hello)) = greeted(&start.directory).await
                    && hello.program == own
                {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        Ok(timeout(PATIENCE * 2, attempts).await?)
    }

    async fn begin(start: Start, own: Program) -> Result<Self, DnsError> {
        let failed = |protocol| {
            let address = start.address;
            move |source| DnsError::Listen { address, protocol, source }
        };
        let held = |source| DnsError::Holder { source };
        let udp = std::net::UdpSocket::bind(start.address).map_err(failed("UDP"))?;
        let tcp = std::net::TcpListener::bind(start.address).map_err(failed("TCP"))?;
        let mut command = command(Path::new("/proc/self/exe"), &start).map_err(held)?;
        command.stdin(Stdio::from(OwnedFd::from(udp))).stdout(Stdio::from(OwnedFd::from(tcp)));
        let mut child = command.spawn().map_err(held)?;
        // The command has copies of the sockets.
        drop(command);
        match Self::reached(&start, own).await {
            Ok(stream) => Ok(Keeper { start, stream, child: Some(child) }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(held(error))
            }
        }
    }

    /// Feeds the holder for as long as the sources last. A holder that was lost is started anew.
    pub(super) async fn feed(mut self, sources: Sources) {
        loop {
            let Keeper { start, stream, child } = self;
            let (mut heard, said) = stream.into_split();
            let sink = Remote { stream: Mutex::new(said) };
            // A holder says nothing after its greeting: what is heard is its end.
            let lost = tokio::select! {
                fed = sources.clone().follow(&sink) => match fed {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                },
                heard = heard.read_u8() => heard.map_or_else(|e| e.to_string(), |_| "it speaks".to_owned()),
            };
            warn!(error = lost, "cluster DNS was lost and is started anew");
            if let Some(mut child) = child {
                // It has ended, or does not listen to this process any more.
                let _ = child.kill();
                let _ = child.wait();
            }
            self = loop {
                tokio::time::sleep(PAUSE).await;
                match Self::find_or_start(start.clone()).await {
                    Ok(keeper) => break keeper,
                    Err(error) => warn!(%error, "cluster DNS does not start"),
                }
            };
        }
    }
}

/// The holder's state.
struct Remote {
    stream: Mutex<OwnedWriteHalf>,
}

impl Sink for Remote {
    async fn replace(&self, all: Vec<(ObjectKey, Entries)>) -> io::Result<()> {
        let mut stream = self.stream.lock().await;
        wire::send(&mut *stream, &Command::Begin).await?;
        for command in all.into_iter().flat_map(|(key, entries)| Command::set(key, entries)) {
            wire::send(&mut *stream, &command).await?;
        }
        wire::send(&mut *stream, &Command::End).await
    }

    async fn set(&self, key: ObjectKey, entries: Entries) -> io::Result<()> {
        let mut stream = self.stream.lock().await;
        for command in Command::set(key, entries) {
            wire::send(&mut *stream, &command).await?;
        }
        Ok(())
    }

    async fn settings(&self, settings: DnsSettings) -> io::Result<()> {
        wire::send(&mut *self.stream.lock().await, &Command::Settings(settings)).await
    }
}

/// Ends the holder of a directory, if there is one. Blocking and idempotent.
pub(super) fn stop(directory: &Path) -> io::Result<()> {
    let stream = match at_socket(directory, |path| std::os::unix::net::UnixStream::connect(path)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            let _ = at_socket(directory, |path| std::fs::remove_file(path));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // The peer is the process that listens. Nothing is asked of it, so that one that hangs ends, too.
    let Some(peer) = listener(&stream) else {
        return Err(io::Error::other("the DNS holder's process is not visible here"));
    };
    nix::sys::signal::kill(peer, nix::sys::signal::Signal::SIGKILL)?;
    let end = std::time::Instant::now() + PATIENCE;
    while at_socket(directory, |path| std::os::unix::net::UnixStream::connect(path)).is_ok() {
        if std::time::Instant::now() > end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the DNS holder does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = at_socket(directory, |path| std::fs::remove_file(path));
    Ok(())
}

/// Returns the process that listens at the other end; `None` if it is in another PID namespace.
fn listener(stream: &std::os::unix::net::UnixStream) -> Option<Pid> {
    let peer = getsockopt(&stream.as_fd(), PeerCredentials).ok()?;
    (peer.pid() > 0).then(|| Pid::from_raw(peer.pid()))
}

/// Returns the process that holds the DNS server of a directory.
pub(super) fn process(directory: &Path) -> Option<u32> {
    let stream = at_socket(directory, |path| std::os::unix::net::UnixStream::connect(path)).ok()?;
    listener(&stream).and_then(|pid| u32::try_from(pid.as_raw()).ok())
}
