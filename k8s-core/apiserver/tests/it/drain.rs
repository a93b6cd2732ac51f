//! A listener that is told to stop cuts no request: load balancers are told first, watches end, requests in
//! flight are answered.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_apiserver::{
    ApiServer,
    admission::{Admission, Admit},
    auth::Authenticator,
    limits::Limits,
    listen::{self, TlsFiles},
};
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::peer::{authority, signed};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Lets writes of objects named `slow` wait.
struct Slow {
    begun: Arc<Semaphore>,
    go: Arc<Notify>,
}

#[async_trait]
impl Admit for Slow {
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        if admission.name() == "slow" {
            self.begun.add_permits(1);
            self.go.notified().await;
        }
        Ok(())
    }
}

struct Served {
    server: ApiServer,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
    /// Has a permit for each slow request that has begun.
    begun: Arc<Semaphore>,
    /// Lets one slow request go on.
    go: Arc<Notify>,
}

impl Served {
    async fn start(change: impl FnOnce(&mut Limits), tls: Option<k8s_tls::ServerConfig>) -> Self {
        let mut limits = Limits::default();
        change(&mut limits);
        let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
        let admin = k8s_apiserver::User::new("admin", &["system:masters"]);
        let server = ApiServer::builder(Store::memory())
            .authenticator(Authenticator::new([("admin".to_owned(), admin)].into(), true))
            .admit(Slow { begun: begun.clone(), go: go.clone() })
            .limits(limits)
            .build()
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = match tls {
            None => tokio::spawn(listen::serve_plain(server.clone(), listener, stop.clone())),
            Some(tls) => tokio::spawn(listen::serve(server.clone(), listener, Arc::new(tls), stop.clone())),
        };
        Served { server, address, stop, serving, begun, go }
    }

    /// Waits until a slow request has begun.
    async fn slow_has_begun(&self) {
        within(self.begun.acquire()).await.unwrap().forget();
    }

    /// Sends a request over a connection of its own.
    async fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer admin\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        stream
    }
}

fn map(name: &str) -> String {
    serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string()
}

async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it takes too long")
}

/// Reads until a text has come.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut said = String::new();
    while !said.contains(text) {
        let mut buffer = [0; 4096];
        let read = within(stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "no {text:?} in {said}");
        said.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    said
}

async fn rest(mut stream: TcpStream) -> String {
    let mut said = String::new();
    within(stream.read_to_string(&mut said)).await.unwrap();
    said
}

#[tokio::test]
async fn requests_in_flight_are_answered_and_watches_end_whole() {
    let served = Served::start(|_| {}, None).await;
    let mut watch = served.send("GET", &format!("{MAPS}?watch=1"), "").await;
    until(&mut served.send("POST", MAPS, &map("fast")).await, "201 Created").await;
    until(&mut watch, "\"name\":\"fast\"").await;
    let mut idle = served.send("GET", "/version", "").await;
    until(&mut idle, "gitVersion").await;
    let slow = served.send("POST", MAPS, &map("slow")).await;
    served.slow_has_begun().await;
    served.stop.cancel();
    // A watch ends as it does at its deadline: with the last chunk.
    assert!(rest(watch).await.ends_with("0\r\n\r\n"));
    rest(idle).await;
    assert!(!served.serving.is_finished(), "a request is in flight");
    within(async {
        while TcpStream::connect(served.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    served.go.notify_one();
    let said = rest(slow).await;
    assert!(said.starts_with("HTTP/1.1 201 Created\r\n") && said.contains("connection: close\r\n"), "{said}");
    assert!(said.contains("\"name\":\"slow\""), "{said}");
    within(served.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn clients_of_http2_are_told_to_go_away() {
    let authority = authority();
    let identity = signed(&authority, "a");
    let files = TlsFiles {
        certificate: identity.certificate.into_bytes(),
        key: identity.key.into_bytes(),
        client_ca: None,
    };
    let served = Served::start(|_| {}, Some(listen::tls_config(&files).unwrap())).await;
    let config = k8s_tls::client(&k8s_tls::Trust::Anyone, None, &[b"h2"]).unwrap();
    let tcp = TcpStream::connect(served.address).await.unwrap();
    let tls = k8s_tls::connect(Arc::new(config), "a", tcp).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let request = |method: &str, path: &str, body: String| {
        let request = Request::builder().method(method).uri(format!("https://a{path}"));
        let request =
            request.header("authorization", "Bearer admin").header("content-type", "application/json");
        let mut client = client.clone();
        let answer = request.body(Full::new(Bytes::from(body))).unwrap();
        async move { client.send_request(answer).await }
    };
    let watch = within(request("GET", &format!("{MAPS}?watch=1"), String::new())).await.unwrap();
    let slow = tokio::spawn(request("POST", MAPS, map("slow")));
    served.slow_has_begun().await;
    served.stop.cancel();
    // The stream of the watch ends without an error.
    within(watch.into_body().collect()).await.unwrap();
    served.go.notify_one();
    let answer = within(slow).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let body = within(answer.into_body().collect()).await.unwrap().to_bytes();
    assert!(body.windows(6).any(|w| w == b"\"slow\""));
    // After GOAWAY and the last answer the connection ends without an error.
    within(connection).await.unwrap().unwrap();
    within(served.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn readiness_fails_before_the_listener_stops() {
    let served = Served::start(|_| {}, None).await;
    let ask = async |path: &str| until(&mut served.send("GET", path, "").await, "\r\n\r\n").await;
    assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
    served.server.begin_shutdown();
    let said = until(&mut served.send("GET", "/readyz", "").await, "readyz check failed\n").await;
    assert!(
        said.starts_with("HTTP/1.1 500") && said.contains("[-]shutdown failed: reason withheld\n"),
        "{said}"
    );
    let said = until(&mut served.send("GET", "/readyz/shutdown", "").await, "process is shutting down").await;
    assert!(said.starts_with("HTTP/1.1 500"), "{said}");
    for path in ["/livez", "/healthz", MAPS, "/readyz?exclude=shutdown"] {
        assert!(ask(path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    served.stop.cancel();
    within(served.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn new_requests_may_be_answered_with_retry_after() {
    let served = Served::start(|limits| limits.retry_after_on_shutdown = true, None).await;
    let mut known = served.send("GET", "/version", "").await;
    until(&mut known, "gitVersion").await;
    let slow = served.send("POST", MAPS, &map("slow")).await;
    served.slow_has_begun().await;
    served.stop.cancel();
    within(async {
        loop {
            let said = until(&mut served.send("GET", MAPS, "").await, "\r\n\r\n").await;
            if said.starts_with("HTTP/1.1 429") {
                assert!(
                    said.contains("retry-after: 5\r\n") && said.contains("connection: close\r\n"),
                    "{said}"
                );
                return;
            }
        }
    })
    .await;
    known.write_all(b"GET /api HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(rest(known).await.ends_with("The apiserver is shutting down, please try again later.\n"));
    let ready = until(&mut served.send("GET", "/readyz", "").await, "\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    served.go.notify_one();
    assert!(rest(slow).await.starts_with("HTTP/1.1 201"));
    within(served.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_does_not_end_has_a_limit() {
    let limit = Duration::from_millis(200);
    let served = Served::start(|limits| limits.drain_timeout = limit, None).await;
    let _slow = served.send("POST", MAPS, &map("slow")).await;
    served.slow_has_begun().await;
    served.stop.cancel();
    within(served.serving).await.unwrap().unwrap();
}
