//! The process that holds the cluster DNS, with real processes and sockets on loopback.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(unreachable_pub)] // a test program has no face

use std::{
    error::Error,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use k8s_core::{
    api::api::{core::v1::Service, discovery::v1::EndpointSlice},
    cache::Cache,
};
use k8s_net::dns::{Corefile, Dns, DnsConfig, run_if_holder};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;

/// First argument of this program when it is a node process of its own: the second is the directory, the
/// third the address.
const NODE: &str = "--node";
const WAIT: Duration = Duration::from_secs(10);

type Outcome = Result<(), Box<dyn Error>>;

fn main() {
    run_if_holder();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, first, directory, address] = &arguments[..]
        && first == NODE
    {
        let runtime = runtime().expect("a runtime");
        runtime.block_on(node(Path::new(directory), address.parse().expect("an address"))).expect("holds");
        return;
    }
    let trial = |name: &str, test: fn() -> Outcome| {
        Trial::test(name, move || test().map_err(|error| Failed::from(error.to_string())))
    };
    let trials = vec![
        trial("names_are_answered_without_the_node_process", answers_alone),
        trial("a_killed_holder_is_started_anew", killed),
        trial("another_version_takes_over_and_no_query_is_lost", upgraded),
        trial("an_address_in_use_is_said", in_use),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn free_address() -> std::io::Result<SocketAddr> {
    UdpSocket::bind("127.0.0.1:0")?.local_addr()
}

/// Caches with these services, by name and address.
fn caches(services: &[(&str, &str)]) -> (Cache<Service>, Cache<EndpointSlice>) {
    let cache = Cache::<Service>::new();
    for (name, address) in services {
        let service =
            json!({"metadata": {"name": name, "namespace": "demo"}, "spec": {"clusterIP": address}});
        cache.upsert(serde_json::from_value(service).expect("a service"));
    }
    cache.advance(1);
    let slices = Cache::new();
    slices.advance(1);
    (cache, slices)
}

async fn hold(
    directory: &Path,
    address: SocketAddr,
    (services, slices): (Cache<Service>, Cache<EndpointSlice>),
) -> Result<Dns, Box<dyn Error>> {
    let config = DnsConfig {
        listen: address,
        cluster_domain: "cluster.local".into(),
        ranges: Vec::new(),
        resolv_conf: None,
    };
    Ok(Dns::hold((config, directory, "test-dns"), services, slices, Corefile::Standard).await?)
}

/// A node process that ends when its records are there.
async fn node(directory: &Path, address: SocketAddr) -> Outcome {
    let dns = hold(directory, address, caches(&[("web", "10.43.0.7")])).await?;
    becomes(address, "web", "10.43.0.7").await?;
    dns.shutdown().await;
    Ok(())
}

/// Returns the address of a name, or the response code.
fn ask(server: SocketAddr, name: &str) -> Result<String, Box<dyn Error>> {
    let mut question = Message::query();
    let name = Name::from_ascii(format!("{name}.demo.svc.cluster.local."))?;
    question.add_query(Query::query(name, RecordType::A));
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.connect(server)?;
    socket.send(&question.to_vec()?)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    let answer = Message::from_vec(&buffer[..length])?;
    let code = || answer.metadata.response_code.to_string();
    Ok(answer.answers.first().map_or_else(code, |record| record.data.to_string()))
}

fn until(server: SocketAddr, name: &str, wanted: &str) -> Outcome {
    let end = Instant::now() + WAIT;
    loop {
        let said = ask(server, name).unwrap_or_else(|error| error.to_string());
        if said == wanted {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{name}: {said} instead of {wanted}").into());
        }
        // Asked from outside of the runtime: the feed needs its thread.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits while the runtime's tasks go on.
async fn becomes(server: SocketAddr, name: &'static str, wanted: &'static str) -> Outcome {
    let asked = tokio::task::spawn_blocking(move || until(server, name, wanted).map_err(|e| e.to_string()));
    Ok(asked.await??)
}

/// Ends the holder whatever the test has come to.
struct Released<'a>(&'a Path);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        let _ = Dns::release(self.0);
    }
}

fn answers_alone() -> Outcome {
    let directory = tempfile::tempdir()?;
    // Longer than the address of a Unix socket may be.
    let deep = directory.path().join("d".repeat(120));
    std::fs::create_dir(&deep)?;
    let (_released, address) = (Released(&deep), free_address()?);
    runtime()?.block_on(async {
        let dns = hold(&deep, address, caches(&[("web", "10.43.0.7"), ("old", "10.43.0.8")])).await?;
        becomes(address, "old", "10.43.0.8").await?;
        dns.shutdown().await;
        Ok::<_, Box<dyn Error>>(())
    })?;
    let process = Dns::holder(&deep);
    assert!(process.is_some(), "it is there");
    // The runtime of the node process is gone.
    assert_eq!(ask(address, "web")?, "10.43.0.7");
    assert_eq!(ask(address, "new")?, "Non-Existent Domain");
    runtime()?.block_on(async {
        let (services, slices) = caches(&[("web", "10.43.0.9")]);
        let dns = hold(&deep, address, (services.clone(), slices)).await?;
        becomes(address, "web", "10.43.0.9").await?;
        becomes(address, "old", "Non-Existent Domain").await?;
        let service =
            json!({"metadata": {"name": "new", "namespace": "demo"}, "spec": {"clusterIP": "10.43.0.1"}});
        services.upsert(serde_json::from_value(service)?);
        becomes(address, "new", "10.43.0.1").await?;
        dns.shutdown().await;
        Ok::<_, Box<dyn Error>>(())
    })?;
    assert_eq!(Dns::holder(&deep), process, "it is the same");
    Dns::release(&deep)?;
    Dns::release(&deep)?;
    assert_eq!(Dns::holder(&deep), None);
    let _free = UdpSocket::bind(address)?;
    Ok(())
}

fn killed() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (_released, address) = (Released(directory.path()), free_address()?);
    runtime()?.block_on(async {
        let dns = hold(directory.path(), address, caches(&[("web", "10.43.0.7")])).await?;
        becomes(address, "web", "10.43.0.7").await?;
        let process = Dns::holder(directory.path()).ok_or("no holder")?;
        let killed = nix::unistd::Pid::from_raw(i32::try_from(process)?);
        nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL)?;
        becomes(address, "web", "10.43.0.7").await?;
        assert_ne!(Dns::holder(directory.path()), Some(process));
        dns.shutdown().await;
        Ok(())
    })
}

fn upgraded() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (_released, address) = (Released(directory.path()), free_address()?);
    let another = directory.path().join("another");
    std::fs::copy(std::env::current_exe()?, &another)?;
    let start = |program: &Path| {
        let mut command = Command::new(program);
        command.arg(NODE).arg(directory.path()).arg(address.to_string()).spawn()
    };
    let ended = start(&std::env::current_exe()?)?.wait()?;
    assert!(ended.success(), "{ended}");
    let process = Dns::holder(directory.path()).ok_or("no holder")?;
    let program = || std::fs::read_link(format!("/proc/{process}/exe"));
    assert_eq!(program()?, std::env::current_exe()?);
    let mut upgrade = start(&another)?;
    let mut answers = 0;
    let end = Instant::now() + WAIT;
    let ended = loop {
        assert_eq!(ask(address, "web")?, "10.43.0.7", "after {answers} answers");
        answers += 1;
        if let Some(ended) = upgrade.try_wait()? {
            break ended;
        }
        assert!(Instant::now() < end, "it does not end");
    };
    assert!(ended.success(), "{ended}");
    assert!(answers > 1);
    assert_eq!(program()?, another, "the process runs the other file");
    assert_eq!(ask(address, "web")?, "10.43.0.7");
    Ok(())
}

fn in_use() -> Outcome {
    let directory = tempfile::tempdir()?;
    let taken = UdpSocket::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let failed = runtime()?.block_on(hold(directory.path(), address, caches(&[])));
    let error = failed.err().ok_or("it holds")?.to_string();
    assert!(error.starts_with(&format!("listen on {address} (UDP): ")), "{error}");
    assert_eq!(Dns::holder(directory.path()), None);
    Ok(())
}
