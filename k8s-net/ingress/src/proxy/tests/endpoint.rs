//! An endpoint of tests: it says what it got.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) name: &'static str,
    pub(super) connections: Arc<AtomicUsize>,
    /// Requests, as text.
    pub(super) seen: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    pub(super) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint {
            address: listener.local_addr().unwrap(),
            name,
            connections: Arc::default(),
            seen: Arc::default(),
        };
        let own = endpoint.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                own.connections.fetch_add(1, Ordering::SeqCst);
                let own = own.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| own.clone().answer(request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        endpoint
    }

    /// An address where nobody listens.
    pub(super) async fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    async fn answer(
        self,
        mut request: Request<Incoming>,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
        let path = request.uri().path().to_owned();
        if request.headers().contains_key("upgrade") {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(stream) = upgraded.await else { return };
                let mut stream = TokioIo::new(stream);
                let mut word = [0; 4];
                while stream.read_exact(&mut word).await.is_ok() {
                    word.make_ascii_uppercase();
                    let _ = stream.write_all(&word).await;
                }
            });
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let response = response.header("connection", "upgrade").header("upgrade", "websocket");
            return Ok(response.body(BoxBody::default()).unwrap());
        }
        let (parts, body) = request.into_parts();
        let mut text = format!("{} {} {} {:?}\n", self.name, parts.method, parts.uri, parts.version);
        let mut names: Vec<_> =
            parts.headers.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        names.sort();
        text += &names.join("\n");
        if path == "/echo" {
            // Each part goes back at once.
            let frames = futures::stream::unfold(body, |mut body| async move {
                let frame = body.frame().await?.ok()?;
                Some((Ok::<_, Infallible>(frame), body))
            });
            return Ok(Response::new(BoxBody::new(StreamBody::new(frames))));
        }
        let length = body.collect().await.map(|body| body.to_bytes().len());
        text += &format!("\nbody of {}\n", length.map_or("?".into(), |length| length.to_string()));
        self.seen.lock().unwrap().push(text.clone());
        if path == "/slow" {
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        let mut response = Response::builder().header("x-endpoint", self.name);
        match &*path {
            "/deny" => response = response.status(401).header("www-authenticate", "Basic"),
            "/allow" => response = response.header("x-user", "me").header("content-length", 0),
            "/login" => response = response.status(401),
            "/hop" => response = response.header("connection", "x-secret").header("x-secret", "1"),
            _ => {}
        }
        if path == "/allow" {
            return Ok(response.body(BoxBody::default()).unwrap());
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let mut frames = vec![Ok::<_, Infallible>(Frame::data(Bytes::from(text)))];
        if parts.version == http::Version::HTTP_2 {
            frames.push(Ok(Frame::trailers(trailers)));
        }
        Ok(response.body(BoxBody::new(StreamBody::new(futures::stream::iter(frames)))).unwrap())
    }
}
