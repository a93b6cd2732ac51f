//! The proxy between real sockets: clients on one side, endpoints on the other.

mod attacks;
mod endpoint;
mod requests;
mod tls;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_core::meta::ObjectKey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{Proxy, ProxyConfig};
use crate::{
    backend::Backend,
    certificates::Certificate,
    paths::Match,
    patterns::pattern,
    settings::{Settings, read},
    table::{Host, Route, Table},
};
use endpoint::Endpoint;

/// A route of a test: host, prefix, endpoints, annotations.
struct To<'a>(&'a str, &'a str, Vec<std::net::SocketAddr>, &'a [(&'a str, &'a str)]);

fn settings(annotations: &[(&str, &str)]) -> Settings {
    let all = annotations.iter().map(|(k, v)| (format!("nginx.ingress.kubernetes.io/{k}"), (*v).to_owned()));
    let (settings, problems) = read(&all.collect::<BTreeMap<_, _>>());
    assert_eq!(problems, []);
    settings
}

fn table(routes: Vec<To<'_>>) -> Table {
    let mut table = Table::default();
    for To(host, path, endpoints, annotations) in routes {
        let settings = settings(annotations);
        let rule = settings.patterns.then(|| pattern(&format!("^{path}")).unwrap());
        let matching = match rule.clone() {
            Some(rule) => Match::Pattern(rule, path.len()),
            None => Match::Prefix(path.to_owned()),
        };
        let backend = Backend::new(ObjectKey::new("ns", "web"), "80".into(), endpoints, 0);
        let route = Route {
            ingress: ObjectKey::new("ns", host),
            settings: Arc::new(settings),
            pattern: rule,
            backend: Arc::new(backend),
            canaries: Vec::new(),
        };
        let entry: &mut Host = table.hosts.entry(host.into()).or_default();
        entry.paths.add(matching, Arc::new(route)).unwrap();
    }
    table
}

/// A proxy that serves.
struct Served {
    proxy: Proxy,
    http: std::net::SocketAddr,
    https: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Served {
    async fn start(config: ProxyConfig, table: Table) -> Self {
        let proxy = Proxy::new(config).unwrap();
        proxy.replace(table);
        let (http, https) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let addresses = (http.local_addr().unwrap(), https.local_addr().unwrap());
        let (again, stop) = (proxy.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { again.serve(http, https, stopped).await });
        Served { proxy, http: addresses.0, https: addresses.1, stop, task }
    }

    async fn of(routes: Vec<To<'_>>) -> Self {
        Self::start(ProxyConfig::default(), table(routes)).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.http).await.unwrap()
    }

    /// Sends a text on a new connection and returns all that comes back until its end.
    async fn raw(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        all(&mut stream).await
    }

    /// GETs a path with further headers, each with its end of line.
    async fn get(&self, host: &str, path: &str, headers: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n")).await
    }
}

async fn all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    // A reset after the answer is an end, too.
    let _ = read.expect("the answer ends");
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn certificate(secret: &k8s_core::api::api::core::v1::Secret) -> Arc<Certificate> {
    Arc::new(Certificate::read(secret).unwrap())
}
