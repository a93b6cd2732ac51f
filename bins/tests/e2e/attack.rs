//! An API server under attack by clients without permissions: it keeps serving others, and its memory stays
//! bounded.
//!
//! Attackers are pinned to one core, the server to another. All traffic is loopback.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    Outcome,
    harness::{HYPERKUBE, Process, until},
};

pub const TESTS: &[crate::Test] = &[("an_attacked_server_answers_others", attacked)];

/// Duration of each attack.
const LENGTH: Duration = Duration::from_secs(3);
const REVIEW: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
pub const TOKENS: &str = "admin,admin,1,system:masters\nevil,evil,2\ngood,good,3\nworse,worse,4\n";

const SILENT: &str = "1,500 silent connections";
const STALLED: &str = "300 stalled bodies";
const BOMBS: &str = "20 of YAML bombs";
/// Attacks with their number of attackers.
const ATTACKS: [(&str, usize); 5] =
    [("nobody", 0), (SILENT, 1), (STALLED, 300), (BOMBS, 20), ("200 unread YAML lists", 200)];
/// Limit of the 99th percentile of `/readyz`.
const LONGEST: Duration = Duration::from_millis(100);

type Stream = TlsStream<TcpStream>;
pub type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
pub struct Target {
    connector: TlsConnector,
    port: u16,
}

/// Returns the port that an API server printed.
pub fn serving(server: &Process) -> Result<u16, Failed> {
    let mut port = None;
    until("the server serves", Duration::from_secs(20), || {
        let said = server.said();
        let told = said.lines().filter_map(|l| l.strip_prefix("serving on https://127.0.0.1:")).next_back();
        port = told.and_then(|p| p.parse().ok());
        port.map(|_: u16| true).ok_or(said)
    })?;
    Ok(port.unwrap_or_default())
}

/// Formats the head of a request.
fn head(method: &str, path: &str, token: &str, more: &str, length: usize) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n{more}\r\n"
    )
}

impl Target {
    /// Connects to the API server of a data directory.
    pub fn new(data: &Path, port: u16) -> Result<Self, Failed> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(data.join("pki/ca.crt"))?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Target { connector: TlsConnector::from(Arc::new(config)), port })
    }

    async fn connect(&self) -> Result<Stream, Error> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        Ok(self.connector.connect(ServerName::try_from("localhost")?, tcp).await?)
    }

    /// Sends one request on a new connection; returns the status code.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        token: &str,
        kind: &str,
        body: &str,
    ) -> Result<u16, Error> {
        let mut stream = self.connect().await?;
        let more = format!("Content-Type: application/{kind}\r\nConnection: close\r\n");
        let text = head(method, path, token, &more, body.len()) + body;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        // The server may close without TLS close_notify.
        let _ = stream.read_to_end(&mut answer).await;
        code(&answer)
    }
}

fn code(answer: &[u8]) -> Result<u16, Error> {
    let text = String::from_utf8_lossy(answer.get(..16).unwrap_or(answer)).into_owned();
    Ok(text.split(' ').nth(1).ok_or("no answer")?.parse()?)
}

/// Results of the well-behaved clients.
#[derive(Debug, Default)]
struct Seen {
    readyz: Vec<Duration>,
    failed: Vec<String>,
}

impl Seen {
    fn report(&mut self, name: &str, pid: u32) -> String {
        self.readyz.sort_unstable();
        let at = |share: f64| {
            let place = (self.readyz.len() as f64 * share) as usize;
            self.readyz.get(place.min(self.readyz.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        format!(
            "{name}: {} of /readyz, p50 {:?}, p99 {:?}, most {:?}; {} others failed; {} MB",
            self.readyz.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            self.failed.len(),
            memory(pid, "VmRSS:")
        )
    }

    fn p99(&self) -> Duration {
        self.readyz.get(self.readyz.len() * 99 / 100).copied().unwrap_or(Duration::MAX)
    }
}

fn memory(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(what)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Polls `/readyz` over one connection, and sends reviews and writes over new ones.
async fn others(target: &Target) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let mut stream = target.connect().await?;
    let ready = head("GET", "/readyz", "good", "", 0);
    let begun = Instant::now();
    let mut buffer = vec![0; 4096];
    let mut turn = 0;
    while begun.elapsed() < LENGTH {
        let asked = Instant::now();
        stream.write_all(ready.as_bytes()).await?;
        let read = stream.read(&mut buffer).await?;
        match code(&buffer[..read])? {
            200 => seen.readyz.push(asked.elapsed()),
            other => return Err(format!("/readyz says {other}").into()),
        }
        turn += 1;
        if turn % 20 == 0 {
            let review = r#"{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"nonResourceAttributes":{"path":"/a","verb":"get"}}}"#;
            let map = format!(
                r#"{{"metadata":{{"name":"m{}-{turn}"}}}}"#,
                target.port as usize + begun.elapsed().subsec_nanos() as usize
            );
            let maps = "/api/v1/namespaces/default/configmaps";
            for (path, token, body) in [(REVIEW, "good", review), (maps, "admin", map.as_str())] {
                let answer = tokio::time::timeout(
                    Duration::from_secs(2),
                    target.ask("POST", path, token, "json", body),
                )
                .await;
                match answer {
                    Ok(Ok(201)) => {}
                    other => seen.failed.push(format!("{path}: {other:?}")),
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(seen)
}

/// Opens connections and sends nothing.
async fn silent(target: Target) {
    let mut held = Vec::new();
    for _ in 0..1500 {
        held.extend(target.connect().await.ok());
    }
    tokio::time::sleep(LENGTH).await;
    drop(held);
}

/// Sends nearly all of a large body, then stops.
async fn stalled(target: Target, refused: Arc<AtomicUsize>) {
    let Ok(mut stream) = target.connect().await else { return };
    let text = head("POST", REVIEW, "evil", "Content-Type: application/json\r\n", 3_000_000);
    if stream.write_all(text.as_bytes()).await.is_err()
        || stream.write_all(&vec![b' '; 2_900_000]).await.is_err()
    {
        refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut buffer = [0; 64];
    if let Ok(Ok(n)) = tokio::time::timeout(LENGTH, stream.read(&mut buffer)).await
        && code(&buffer[..n]).is_ok_and(|code| code == 429)
    {
        refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends YAML bombs.
async fn bombs(target: Target) {
    let mut merges = "m0: &m0 {k: v}\n".to_owned();
    for i in 1..40 {
        merges += &format!("m{i}: &m{i} {{<<: [*m{0}, *m{0}], k{i}: v}}\n", i - 1);
    }
    let begun = Instant::now();
    while begun.elapsed() < LENGTH {
        let _ = target.ask("POST", REVIEW, "worse", "yaml", &merges).await;
    }
}

/// Requests a large list in YAML and reads little of it.
async fn unread(target: Target) {
    let Ok(mut stream) = target.connect().await else { return };
    let text = head("GET", "/api/v1/configmaps", "admin", "Accept: application/yaml\r\n", 0);
    let _ = stream.write_all(text.as_bytes()).await;
    let mut buffer = [0; 1024];
    let _ = stream.read(&mut buffer).await;
    tokio::time::sleep(LENGTH).await;
}

/// A runtime whose threads are pinned to the first core, away from the server.
fn attackers() -> Result<Runtime, Failed> {
    let first = || {
        let mut cores = CpuSet::new();
        let _ = cores.set(0);
        let _ = sched_setaffinity(Pid::from_raw(0), &cores);
    };
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(first)
        .enable_all()
        .build()?)
}

fn attacked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tokens = dir.path().join("tokens");
    fs::write(&tokens, TOKENS)?;
    let data = dir.path().join("data");
    let mut command = Command::new("prlimit");
    // The usual soft limit of a shell; the server raises it.
    command.args(["--nofile=1024:20000", "taskset", "-c", "1", HYPERKUBE, "kube-apiserver"]);
    command.args(["--secure-port", "0", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"]);
    command.arg("--data-dir").arg(&data).arg("--token-auth-file").arg(&tokens);
    let mut server = Process::start(&mut command, dir.path().join("log"))?;
    let pid = server.id();
    let port = serving(&server)?;
    let target = Target::new(&data, port)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let failed = |e: Error| Failed::from(e.to_string());
    // Creates ten megabytes of objects to list.
    runtime.block_on(async {
        for i in 0..10 {
            let body = format!(
                r#"{{"metadata":{{"name":"large{i}"}},"data":{{"a":"{}"}}}}"#,
                "x\\n".repeat(300_000)
            );
            let path = "/api/v1/namespaces/default/configmaps";
            let code = target.ask("POST", path, "admin", "json", &body).await.map_err(failed)?;
            if code != 201 {
                return Err(Failed::from(format!("create: {code}")));
            }
        }
        Ok(())
    })?;
    let refused = Arc::new(AtomicUsize::new(0));
    let mut told = Vec::new();
    for (attack, count) in ATTACKS {
        // Other load on the machine can spoil one measurement, but hardly three.
        for attempt in 1..=3 {
            let attackers = attackers()?;
            for _ in 0..count {
                let (target, refused) = (target.clone(), refused.clone());
                attackers.spawn(async move {
                    match attack {
                        SILENT => silent(target).await,
                        STALLED => stalled(target, refused).await,
                        BOMBS => bombs(target).await,
                        _ => unread(target).await,
                    }
                });
            }
            let mut seen = runtime.block_on(others(&target)).map_err(|e| format!("{attack}: {e}"))?;
            attackers.shutdown_background();
            told.push(seen.report(attack, pid));
            if seen.p99() <= LONGEST && seen.failed.is_empty() {
                break;
            }
            if attempt == 3 {
                return Err(format!("{attack}: {:?}\n{}", seen.failed, told.join("\n")).into());
            }
        }
    }
    told.push(format!(
        "{} stalled bodies were turned away; the most memory was {} MB",
        refused.load(Ordering::Relaxed),
        memory(pid, "VmHWM:")
    ));
    let most = memory(pid, "VmHWM:");
    let told = told.join("\n");
    println!("{told}");
    server.stop()?;
    if most > 300 { Err(format!("{most} MB\n{told}").into()) } else { Ok(()) }
}
