//! Measurements of the Ingress controller. They print figures and assert none.
//!
//! - `cargo bench -p k8s-ingress [-- CONNECTIONS]`: time and memory of a table of 1,000 hosts and 10,000
//!   paths; memory of idle connections (default: 10,000, which need 20,100 descriptors).
//! - `cargo bench -p k8s-ingress -- serve ORIGIN:PORT [SECONDS]`: serves `bench.example.com` on ports 8080
//!   and 8443, for a comparison with another proxy by `wrk`. ORIGIN is no address of the loopback range.

#![allow(missing_docs, clippy::disallowed_methods, reason = "a program that measures real time")]

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_core::{
    api::api::{
        core::v1::{Secret, Service},
        discovery::v1::EndpointSlice,
        networking::v1::Ingress,
    },
    meta::ObjectExt,
};
use k8s_ingress::{Certificate, Objects, Patterns, Plan, Proxy, ProxyConfig, plan};
use k8s_metrics::Registry;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Frees this thread's memory that other threads have released, at most once a second.
#[allow(unsafe_code, reason = "the allocator is written in C")]
fn give_back() {
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    if LAST.get().is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
        LAST.set(Some(Instant::now()));
        // SAFETY: takes no pointers, and this thread is not allocating at this moment.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Resident memory in KB.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or_default()
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Result<Arc<T>, serde_json::Error> {
    serde_json::from_value(value).map(Arc::new)
}

/// The objects of a cluster, one Service for all Ingresses.
struct World {
    ingresses: Vec<Arc<Ingress>>,
    service: Arc<Service>,
    slice: Arc<EndpointSlice>,
}

impl World {
    fn new(hosts: &[String], paths: usize, origin: SocketAddr) -> Result<Self, Error> {
        let mut ingresses = Vec::new();
        for host in hosts {
            let paths: Vec<_> = (0..paths)
                .map(|i| {
                    let path = if i == 0 { "/".to_owned() } else { format!("/path/number/{i}") };
                    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
                    json!({"path": path, "pathType": "Prefix", "backend": backend})
                })
                .collect();
            ingresses.push(object(json!({
                "metadata": {"namespace": "bench", "name": host},
                "spec": {"ingressClassName": "hyperkube", "rules": [{"host": host, "http": {"paths": paths}}]},
            }))?);
        }
        let metadata = json!({"namespace": "bench", "name": "web"});
        Ok(World {
            ingresses,
            service: object(json!({"metadata": metadata, "spec": {"ports": [{"port": 80}]}}))?,
            slice: object(json!({
                "metadata": metadata, "addressType": "IPv4",
                "endpoints": [{"addresses": [origin.ip()]}], "ports": [{"name": "", "port": origin.port()}],
            }))?,
        })
    }

    fn plan(&self) -> Plan {
        plan(&Objects {
            class: "hyperkube",
            ingresses: &self.ingresses,
            classes: &[],
            service: &|_, name| (self.service.name() == name).then(|| self.service.clone()),
            slices: &|_, _| vec![self.slice.clone()],
            secret: &|_, _| None,
            certificate: &|secret: &Secret| Certificate::read(secret).map(Arc::new),
            patterns: &Patterns::default(),
            refused: &[],
            now: jiff::Timestamp::UNIX_EPOCH,
            seed: 0,
        })
    }
}

fn proxy(world: &World, metrics: Registry) -> Result<Proxy, Error> {
    let made = rcgen::generate_simple_self_signed(["bench.example.com".to_owned()])?;
    let key = made.signing_key.serialize_pem();
    let certificate = Certificate::from_pem(made.cert.pem().as_bytes(), key.as_bytes())?;
    let proxy = Proxy::new(ProxyConfig {
        certificate: Some(Arc::new(certificate)),
        idle: Duration::from_secs(3600),
        metrics,
        ..ProxyConfig::default()
    })?;
    proxy.replace(world.plan().table);
    Ok(proxy)
}

fn tables() -> Result<(), Error> {
    let hosts: Vec<_> = (0..1000).map(|i| format!("host-{i}.example.com")).collect();
    let world = World::new(&hosts, 10, "192.0.2.2:80".parse()?)?;
    let before = resident();
    let begun = Instant::now();
    let first = world.plan();
    let took = begun.elapsed();
    println!("1,000 hosts, 10,000 paths: first table in {took:?}, {} KB", resident() - before);
    let begun = Instant::now();
    let again = world.plan();
    println!("the next one in {:?}; both together {} KB", begun.elapsed(), resident() - before);
    drop(first);
    let begun = Instant::now();
    let lookups = 1_000_000_u32;
    let mut found = 0;
    for i in 0..lookups {
        let host = &hosts[i as usize % hosts.len()];
        found += usize::from(again.table.route(host, "/path/number/7/and/more").is_some());
    }
    println!("{found} lookups, {:?} each", begun.elapsed() / lookups);
    Ok(())
}

/// Opens connections that each make one request.
async fn idle(count: usize) -> Result<(), Error> {
    let origin = TcpListener::bind("127.0.0.1:0").await?;
    let world = World::new(&["bench.example.com".to_owned()], 1, origin.local_addr()?)?;
    let registry = Registry::default();
    let proxy = proxy(&world, registry.clone())?;
    let (http, https) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let (address, stop) = (http.local_addr()?, CancellationToken::new());
    let (served, stopped) = (proxy.clone(), stop.clone());
    let serving = tokio::spawn(async move { served.serve(http, https, stopped).await });
    let mut open = Vec::new();
    let before = resident();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await?;
        // Its endpoint is refused, so that the answer is 503, as quick as any.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench.example.com\r\n\r\n").await?;
        let mut part = [0; 1024];
        if stream.read(&mut part).await? == 0 {
            return Err("a connection was closed".into());
        }
        open.push(stream);
    }
    let after = resident();
    for _ in 0..80 {
        // Threads wake up, and give memory back.
        tokio::spawn(tokio::time::sleep(Duration::from_millis(100))).await?;
    }
    println!(
        "{count} idle connections: {} KB at once, {} KB at rest, both ends",
        after - before,
        resident() - before
    );
    let mut text = String::new();
    k8s_metrics::encode(&mut text, &registry);
    println!(
        "{}",
        text.lines().filter(|line| line.starts_with("ingress_connections")).collect::<Vec<_>>().join(", ")
    );
    stop.cancel();
    drop(open);
    serving.await?;
    Ok(())
}

async fn serve(origin: SocketAddr, time: Duration) -> Result<(), Error> {
    let proxy = proxy(&World::new(&["bench.example.com".to_owned()], 10, origin)?, Registry::default())?;
    let (http, https) = (TcpListener::bind("0.0.0.0:8080").await?, TcpListener::bind("0.0.0.0:8443").await?);
    println!("serving for {time:?}");
    let stop = CancellationToken::new();
    tokio::select! {
        () = proxy.serve(http, https, stop) => {}
        () = tokio::time::sleep(time) => println!("{} KB", resident()),
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // As the programs do, so that memory that other threads freed goes back.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().on_thread_park(give_back).enable_all().build()?;
    match &arguments[..] {
        [mode, origin, rest @ ..] if mode == "serve" => {
            let seconds = rest.first().map_or(Ok(60), |seconds| seconds.parse())?;
            runtime.block_on(serve(origin.parse()?, Duration::from_secs(seconds)))
        }
        rest => {
            tables()?;
            let count = rest.first().map_or(Ok(10_000), |count| count.parse())?;
            runtime.block_on(idle(count))
        }
    }
}
