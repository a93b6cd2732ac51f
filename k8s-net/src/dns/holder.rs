//! A process that holds the DNS server: it answers while the program that feeds it is stopped, restarted or
//! killed.
//!
//! Flow: the node process binds the sockets and starts this program again with them as standard input and
//! output. The holder has one thread. It listens on a control socket in the node's directory, on which the
//! node process feeds it. A node process that starts later finds the holder there and feeds it anew; one of
//! another version lets it become that version, with the same sockets.
//! Guarantees:
//! 1. Queries that arrive while the holder has no records wait in the socket for up to two seconds; then they
//!    get SERVFAIL. So a new holder, or one that becomes another version, denies no name.
//! 2. Only a process of the same user is obeyed. The newest one is; earlier ones are not heard any more.

#![expect(clippy::disallowed_methods, reason = "names are answered in real time")]

use std::{
    collections::HashMap,
    io::{self, Write},
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_core::meta::ObjectKey;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket, UnixListener, UnixStream};

use super::{
    answer::Zone,
    feed::{Entries, Sink},
    settings::DnsSettings,
    state::State,
    tcp, udp,
    wire::{self, Command, Hello, Program},
};

/// First argument of the holder's command line. The second is a [`Start`] in JSON.
pub(super) const MARKER: &str = "--k8s-dns-holder";
/// Name of the control socket.
const SOCKET: &str = "dns.sock";
/// Time for which queries wait for the first records.
const GRACE: Duration = Duration::from_secs(2);

/// Settings of a new holder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// Name of the process; Linux shows 15 bytes.
    pub(super) name: String,
    /// Directory of the control socket.
    pub(super) directory: PathBuf,
    pub(super) domain: String,
    pub(super) address: SocketAddr,
    /// CIDRs.
    pub(super) ranges: Vec<String>,
    pub(super) settings: DnsSettings,
}

/// Call this first in `main`, before any thread is started. It returns at once, unless a node's network has
/// started this process as the holder of its DNS server: then it serves and never returns.
pub fn run_if_holder() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|a| a == MARKER) {
        let start = args.next().and_then(|a| serde_json::from_str(a.to_str()?).ok());
        let served = match start {
            Some(start) => serve(start),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "no settings")),
        };
        if let Err(error) = served {
            // Unlike `eprintln`, this does not panic if standard error is closed.
            let _ = writeln!(io::stderr(), "cluster DNS: {error}");
            std::process::exit(1);
        }
        std::process::exit(0);
    }
}

/// Runs `work` with a path of the control socket that is short enough for a socket's address.
pub(super) fn at_socket<T>(directory: &Path, work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd;
    let directory = std::fs::File::open(directory)?;
    work(Path::new(&format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())))
}

/// Closes what the process has inherited beyond its standard streams.
fn close_inherited() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The directory's own is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// The sockets, kept for the program that this one becomes.
struct Sockets {
    udp: OwnedFd,
    tcp: OwnedFd,
}

struct Holder {
    start: Start,
    sockets: Sockets,
    state: Arc<State>,
    program: Program,
    /// Number of the newest connection.
    newest: AtomicU64,
}

fn serve(start: Start) -> io::Result<()> {
    close_inherited()?;
    let _ = std::fs::write("/proc/self/comm", &start.name);
    // Ctrl-C is for the node process.
    let _ = nix::unistd::setsid();
    let sockets = Sockets {
        udp: io::stdin().as_fd().try_clone_to_owned()?,
        tcp: io::stdout().as_fd().try_clone_to_owned()?,
    };
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(hold(start, sockets))
}

async fn hold(start: Start, sockets: Sockets) -> io::Result<()> {
    let udp_socket = std::net::UdpSocket::from(sockets.udp.try_clone()?);
    let tcp_socket = std::net::TcpListener::from(sockets.tcp.try_clone()?);
    udp_socket.set_nonblocking(true)?;
    tcp_socket.set_nonblocking(true)?;
    let (udp_socket, tcp_socket) = (UdpSocket::from_std(udp_socket)?, TcpListener::from_std(tcp_socket)?);
    let control = at_socket(&start.directory, |path| {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let control = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(control)
    })?;
    let zone = Zone {
        name: start.domain.trim_matches('.').to_lowercase(),
        address: start.address.ip(),
        ranges: start.ranges.iter().filter_map(|range| range.parse().ok()).collect(),
    };
    let state = State::new(zone, start.settings.clone());
    let program = Program::own()?;
    let holder =
        Arc::new(Holder { start, sockets, state: state.clone(), program, newest: AtomicU64::new(0) });
    let answers = async {
        let end = tokio::time::Instant::now() + GRACE;
        while !state.is_complete() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::join!(udp::serve(state.clone(), Arc::new(udp_socket)), tcp::serve(state.clone(), tcp_socket))
    };
    let commands = async {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = control.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let own = nix::unistd::geteuid().as_raw();
            if stream.peer_cred().is_ok_and(|peer| peer.uid() == own) {
                let number = holder.newest.fetch_add(1, Ordering::Relaxed) + 1;
                connections.spawn(obey(holder.clone(), stream, number));
            }
        }
    };
    tokio::select! {
        _ = answers => Ok(()),
        () = commands => Ok(()),
    }
}

/// Obeys a node process until it disconnects, or until a newer one connects.
async fn obey(holder: Arc<Holder>, mut stream: UnixStream, number: u64) -> io::Result<()> {
    let hello =
        Hello { program: holder.program, address: holder.start.address, domain: holder.start.domain.clone() };
    wire::send(&mut stream, &hello).await?;
    let mut stream = tokio::io::BufReader::new(stream);
    let mut staged: Option<HashMap<ObjectKey, Entries>> = None;
    let mut parts = Entries::new();
    loop {
        let command = wire::receive(&mut stream).await?;
        if holder.newest.load(Ordering::Relaxed) != number {
            return Ok(());
        }
        match command {
            Command::Settings(settings) => holder.state.settings(settings).await?,
            Command::Begin => staged = Some(HashMap::new()),
            Command::Part(entries) => parts.extend(entries),
            Command::Set { namespace, name, entries } => {
                let key = ObjectKey { namespace, name };
                let mut all = std::mem::take(&mut parts);
                all.extend(entries);
                let entries = all;
                match &mut staged {
                    Some(staged) => drop(staged.insert(key, entries)),
                    None => holder.state.set(key, entries).await?,
                }
            }
            Command::End => {
                if let Some(all) = staged.take() {
                    holder.state.replace(all.into_iter().collect()).await?;
                }
            }
            Command::Become(program) => return Err(holder.turn_into(&program)?),
            Command::Stop => {
                let _ = at_socket(&holder.start.directory, |path| std::fs::remove_file(path));
                std::process::exit(0);
            }
        }
    }
}

impl Holder {
    /// Executes another program in this process; returns only on failure.
    fn turn_into(&self, program: &Path) -> io::Result<io::Error> {
        let mut next = command(program, &self.start)?;
        let (udp, tcp) = (self.sockets.udp.try_clone()?, self.sockets.tcp.try_clone()?);
        Ok(next.stdin(Stdio::from(udp)).stdout(Stdio::from(tcp)).exec())
    }
}

/// Returns the command that starts a holder, without its sockets.
pub(super) fn command(program: &Path, start: &Start) -> io::Result<std::process::Command> {
    let mut command = std::process::Command::new(program);
    command.arg0(&start.name).arg(MARKER).arg(serde_json::to_string(start)?);
    command.env_clear().current_dir("/").stderr(Stdio::null());
    Ok(command)
}
