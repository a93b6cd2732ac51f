use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, service::service_fn};
use k8s_store::sealed::{Provider, Rule, Sealer};
use prost::Message;

use super::*;

/// A key service on a socket of its own. It turns bytes round.
struct Service {
    directory: tempfile::TempDir,
    well: Arc<AtomicBool>,
    decrypted: Arc<AtomicUsize>,
    runtime: tokio::runtime::Runtime,
}

fn turned(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().copied().collect()
}

/// Answers a call: the message of the answer.
fn answer(path: &str, question: &[u8], well: bool, decrypted: &AtomicUsize) -> Vec<u8> {
    match path {
        "/v2.KeyManagementService/Status" => {
            let healthz = if well { "ok" } else { "sealed" };
            StatusResponse { version: "v2".into(), healthz: healthz.into(), key_id: "key-1".into() }
                .encode_to_vec()
        }
        "/v2.KeyManagementService/Encrypt" => {
            let question = EncryptRequest::decode(question).unwrap();
            assert_eq!((question.plaintext.len(), question.uid.len()), (32, 32));
            let annotations = [("round.example.com".to_owned(), b"1".to_vec())].into();
            let ciphertext = turned(&question.plaintext);
            EncryptResponse { ciphertext, key_id: "key-1".into(), annotations }.encode_to_vec()
        }
        "/v2.KeyManagementService/Decrypt" => {
            let question = DecryptRequest::decode(question).unwrap();
            assert_eq!(question.key_id, "key-1");
            assert_eq!(question.annotations["round.example.com"], b"1");
            decrypted.fetch_add(1, Ordering::Relaxed);
            DecryptResponse { plaintext: turned(&question.ciphertext) }.encode_to_vec()
        }
        other => panic!("no method {other}"),
    }
}

impl Service {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let (runtime, well) = (runtime.unwrap(), Arc::new(AtomicBool::new(true)));
        let decrypted = Arc::new(AtomicUsize::new(0));
        let made = Service { directory, well, decrypted, runtime };
        let listener = {
            let _entered = made.runtime.enter();
            tokio::net::UnixListener::bind(made.socket()).unwrap()
        };
        let (well, decrypted) = (made.well.clone(), made.decrypted.clone());
        made.runtime.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (well, decrypted) = (well.clone(), decrypted.clone());
                let serve = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (well, decrypted) = (well.clone(), decrypted.clone());
                    async move {
                        let path = request.uri().path().to_owned();
                        let question = request.into_body().collect().await.unwrap().to_bytes();
                        let message = answer(&path, &question[5..], well.load(Ordering::Relaxed), &decrypted);
                        let mut framed = BytesMut::new();
                        framed.put_u8(0);
                        framed.put_u32(u32::try_from(message.len()).unwrap());
                        framed.extend_from_slice(&message);
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        let frames = [Frame::data(framed.freeze()), Frame::trailers(trailers)];
                        let frames = frames.map(Ok::<Frame<Bytes>, Infallible>);
                        let body = StreamBody::new(futures::stream::iter(frames));
                        let response = Response::builder().header("content-type", "application/grpc");
                        Ok::<_, Infallible>(response.body(body).unwrap())
                    }
                });
                connections.spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), serve),
                );
            }
        });
        made
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("kms.sock")
    }

    fn sealer(&self) -> (Sealer, Arc<Envelope>) {
        let envelope = envelope("vault", self.socket(), Duration::from_secs(3)).unwrap();
        (Sealer::new(vec![Rule::new(["secrets"], vec![Provider::Service(envelope.clone())])]), envelope)
    }
}

#[test]
fn a_service_on_a_socket_keeps_the_keys() {
    let service = Service::start();
    let (sealer, _) = service.sealer();
    let record = sealer.seal("secrets", "a/b", "canary".into()).unwrap();
    let (again, envelope) = service.sealer();
    assert_eq!(again.open("secrets", "a/b", record.clone()).unwrap(), "canary");
    assert_eq!(again.open("secrets", "a/b", record).unwrap(), "canary");
    assert_eq!(service.decrypted.load(Ordering::Relaxed), 1);
    service.well.store(false, Ordering::Relaxed);
    let refused = envelope.refresh().unwrap_err().to_string();
    assert_eq!(refused, "key service \"vault\": it is not healthy: sealed");
    // A caller inside a runtime blocks, but nothing panics.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(async { envelope.refresh() }).is_err());
}

#[test]
fn a_service_that_is_silent_or_not_there_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let (alive, _ended) = mpsc::channel();
    let socket = Socket { path: path.clone(), timeout: Duration::from_millis(50), _alive: alive };
    let missing = socket.key_id().unwrap_err();
    assert!(missing.contains("kms.sock: No such file"), "{missing}");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(socket.key_id().unwrap_err(), "no answer within 50ms");
}
