//! Limits of socket clients, tested with raw HTTP over TLS.

use std::{sync::Arc, time::Duration};

use k8s_apiserver::{
    ApiServer, User,
    limits::Limits,
    listen::{self, TlsFiles},
    stages::{Authenticate, Credentials},
};
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::peer::{authority, signed};

/// An authenticator that takes the token as the user's name; `root` and `admin` are administrators.
pub(crate) struct Named;

#[async_trait::async_trait]
impl Authenticate for Named {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
        let groups =
            |name: &str| if matches!(name, "root" | "admin") { vec!["system:masters"] } else { Vec::new() };
        Ok(credentials.bearer_token().map(|name| User::new(name, &groups(name))))
    }
}

struct Target {
    connector: TlsConnector,
    port: u16,
    _stop: tokio_util::sync::DropGuard,
}

impl Target {
    async fn start(limits: Limits) -> Self {
        let server = ApiServer::builder(Store::memory())
            .authenticate_with(Named)
            .limits(limits)
            .build()
            .await
            .unwrap();
        let ca = authority();
        let identity = signed(&ca, "localhost");
        let files =
            TlsFiles { certificate: identity.certificate.into(), key: identity.key.into(), client_ca: None };
        let tls = Arc::new(listen::tls_config(&files).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        tokio::spawn(listen::serve(server, listener, tls, stop.clone()));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.0.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Target { connector: TlsConnector::from(Arc::new(config)), port, _stop: stop.drop_guard() }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        self.connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
    }

    /// Starts a review request and sends only a part of its body.
    async fn begin(&self, user: &str, length: usize, sent: usize) -> TlsStream<TcpStream> {
        let body = r#"{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"nonResourceAttributes":{"path":"/a","verb":"get"}}}"#;
        let body = body.to_owned() + &" ".repeat(length - body.len());
        let head = format!(
            "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {user}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = self.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // A server that rejects the request need not read it all.
        let _ = stream.write_all(&body.as_bytes()[..sent]).await;
        stream
    }

    async fn ask(&self, user: &str) -> String {
        answer(&mut self.begin(user, 300, 300).await).await
    }
}

/// Returns the first chunk of a response.
async fn answer(stream: &mut TlsStream<TcpStream>) -> String {
    let mut buffer = vec![0; 4096];
    let read =
        tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

#[tokio::test]
async fn who_has_too_many_requests_is_turned_away_and_others_are_not() {
    let mut limits = Limits::default();
    limits.mutating = 2;
    limits.fairness = false;
    limits.request_timeout = Duration::from_secs(3);
    let target = Target::start(limits).await;
    let mut slow = target.begin("slow", 300, 100).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let refused = target.ask("slow").await;
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after: 1"), "{refused}");
    assert!(refused.contains(r#""message":"Too many requests, please try again later.""#), "{refused}");
    assert!(target.ask("other").await.starts_with("HTTP/1.1 201"));
    let late = answer(&mut slow).await;
    assert!(late.starts_with("HTTP/1.1 504") && late.contains(r#""reason":"Timeout""#), "{late}");
    assert!(target.ask("slow").await.starts_with("HTTP/1.1 201"), "its place is free again");
}

#[tokio::test]
async fn bytes_of_bodies_and_connections_are_limited() {
    let mut limits = Limits::default();
    limits.body_bytes = 1 << 20;
    limits.connections = 8;
    let target = Target::start(limits).await;
    let _slow = target.begin("slow", 500_000, 499_000).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut second = target.begin("slow", 500_000, 499_000).await;
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 429"));
    assert!(target.ask("other").await.starts_with("HTTP/1.1 201"));
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(target.connect().await);
    }
    assert!(target.ask("other").await.starts_with("HTTP/1.1 201"), "those who say nothing make room");
}

#[tokio::test]
async fn connections_that_say_nothing_are_closed() {
    let mut limits = Limits::default();
    limits.header_timeout = Duration::from_millis(300);
    limits.idle_timeout = Duration::from_millis(600);
    let target = Target::start(limits).await;
    let mut silent = target.connect().await;
    assert_eq!(answer(&mut silent).await, "", "no request ever came");
    let mut idle = target.begin("a", 300, 300).await;
    assert!(answer(&mut idle).await.starts_with("HTTP/1.1 201"));
    assert_eq!(answer(&mut idle).await, "", "no other request came");
}

#[tokio::test]
async fn only_the_command_line_of_exec_may_be_longer_than_a_uri() {
    let target = Target::start(Limits::default()).await;
    let ask = async |stream: &mut TlsStream<TcpStream>, path: &str, length: usize| {
        let head = format!(
            "GET /api/v1/namespaces/default/{path}{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer user\r\n\r\n",
            "a".repeat(length)
        );
        // A server that refuses the request need not read it all.
        let _ = stream.write_all(head.as_bytes()).await;
        answer(stream).await
    };
    for (path, length, want) in [
        ("pods/p/exec?command=", 10, r#"pods \"p\" is forbidden"#),
        ("pods/p/exec?command=", 1_000_000, r#"pods \"p\" is forbidden"#),
        ("pods/p/exec?command=", 1_100_000, "HTTP/1.1 431"),
        ("pods?labelSelector=", 60_100, "the URI is longer"),
        ("pods?labelSelector=", 1_000_000, "the URI is longer"),
        ("pods/p/proxy/?a=", 1_000_000, "the URI is longer"),
    ] {
        let mut stream = target.connect().await;
        let said = ask(&mut stream, path, length).await;
        assert!(said.contains(want), "{path} {length}: {said}");
        if length <= 1_000_000 {
            // The next request of the connection is as any other.
            let said = ask(&mut stream, "pods?labelSelector=", 10).await;
            assert!(said.contains("pods is forbidden"), "{said}");
        }
    }
}
