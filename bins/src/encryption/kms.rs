//! Key services over a socket: version 2 of upstream's interface (`v2.KeyManagementService`, gRPC).
//!
//! The service is asked for its state once a minute, each ten seconds while it fails. After three minutes
//! without an answer nothing is written any more: its key may have been taken away.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_store::sealed::{Envelope, KeyError, KeyService, WrappedKey};
use tokio::net::UnixStream;
use tonic::{Request, client::Grpc};
use tonic_prost::ProstCodec;

/// Intervals of the questions about the service's state: while it answers, and while it does not.
const WELL: Duration = Duration::from_secs(60);
const ILL: Duration = Duration::from_secs(10);
/// Silence after which nothing is written any more, in intervals of [`ILL`].
const SILENT: u32 = 18;
/// How often the service is asked at a start, and the interval.
const ATTEMPTS: u32 = 20;
const AGAIN: Duration = Duration::from_millis(250);

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "3")]
    annotations: HashMap<String, Vec<u8>>,
}

/// A service behind a socket.
#[derive(Debug)]
struct Socket {
    path: PathBuf,
    /// Limit of one call.
    timeout: Duration,
    /// Its end ends the questions about the state.
    _alive: mpsc::Sender<()>,
}

/// Returns the provider of a service, which is asked for its state for as long as the provider is there.
///
/// # Errors
/// The name cannot be used. A service that does not answer at a start is no error yet.
pub(super) fn envelope(name: &str, path: PathBuf, timeout: Duration) -> Result<Arc<Envelope>, KeyError> {
    let (alive, ended) = mpsc::channel();
    let envelope = Arc::new(Envelope::new(name, Socket { path, timeout, _alive: alive })?);
    for _ in 0..ATTEMPTS {
        match envelope.refresh() {
            Ok(()) => break,
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
    let watched = Arc::downgrade(&envelope);
    // The thread ends with the provider. Without it the state would only be asked for at starts.
    std::thread::Builder::new()
        .name("kms-status".into())
        .spawn(move || watch(&watched, &ended))
        .map_err(|error| tracing::warn!(%error, "the state of the key service will not be watched"))
        .ok();
    Ok(envelope)
}

/// Asks for the state until the provider is gone.
fn watch(of: &Weak<Envelope>, ended: &mpsc::Receiver<()>) {
    let mut silent = 0;
    loop {
        let wait = if silent == 0 { WELL } else { ILL };
        if !matches!(ended.recv_timeout(wait), Err(RecvTimeoutError::Timeout)) {
            return;
        }
        let Some(envelope) = of.upgrade() else { return };
        match envelope.refresh() {
            Ok(()) => silent = 0,
            Err(error) => {
                silent += 1;
                tracing::warn!(%error, "the key service cannot be used");
                if silent >= SILENT {
                    envelope.suspend(&error.reason);
                }
            }
        }
    }
}

impl Socket {
    /// Calls a method and waits for the answer, in a thread of its own: the caller may be one of a runtime.
    fn call<Q, A>(&self, method: &'static str, question: Q) -> Result<A, String>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| e.to_string())?;
            // The timer must be made inside the runtime.
            let answer = runtime.block_on(async {
                tokio::time::timeout(self.timeout, call(&self.path, method, question)).await
            });
            answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)))
        };
        std::thread::scope(|scope| scope.spawn(ask).join().unwrap_or_else(|_| Err("the call ended".into())))
    }
}

/// Calls a method over a connection of its own.
async fn call<Q, A>(socket: &Path, method: &'static str, question: Q) -> Result<A, String>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let stream = UnixStream::connect(socket).await.map_err(|e| format!("{}: {e}", socket.display()))?;
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (send, connection) = connected.map_err(|e| e.to_string())?;
    let transport = tower::service_fn(move |request| {
        let mut send = send.clone();
        async move { send.send_request(request).await }
    });
    let mut client = Grpc::with_origin(transport, http::Uri::from_static("http://localhost"));
    let answer = async {
        client.ready().await.map_err(|e| e.to_string())?;
        let path = PathAndQuery::from_static(method);
        let answer = client.unary(Request::new(question), path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|e| e.message().to_owned())
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => Err(ended.map_or_else(|e| e.to_string(), |()| "the connection ended".into())),
    }
}

fn uid() -> Result<String, String> {
    let random = k8s_store::sealed::new_secret().map_err(|e| e.to_string())?;
    Ok(random.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

impl KeyService for Socket {
    fn key_id(&self) -> Result<String, String> {
        let state: StatusResponse = self.call("/v2.KeyManagementService/Status", StatusRequest {})?;
        if !["v2", "v2beta1"].contains(&state.version.as_str()) {
            return Err(format!("its version is {:?}, want \"v2\"", state.version));
        }
        if state.healthz != "ok" {
            return Err(format!("it is not healthy: {}", state.healthz));
        }
        Ok(state.key_id)
    }

    fn encrypt(&self, plain: &[u8]) -> Result<WrappedKey, String> {
        let question = EncryptRequest { plaintext: plain.to_vec(), uid: uid()? };
        let answer: EncryptResponse = self.call("/v2.KeyManagementService/Encrypt", question)?;
        let annotations = answer.annotations.into_iter().collect();
        Ok(WrappedKey { key_id: answer.key_id, bytes: answer.ciphertext, annotations })
    }

    fn decrypt(&self, wrapped: &WrappedKey) -> Result<Vec<u8>, String> {
        let question = DecryptRequest {
            ciphertext: wrapped.bytes.clone(),
            uid: uid()?,
            key_id: wrapped.key_id.clone(),
            annotations: wrapped.annotations.clone().into_iter().collect(),
        };
        let answer: DecryptResponse = self.call("/v2.KeyManagementService/Decrypt", question)?;
        Ok(answer.plaintext)
    }
}

#[cfg(test)]
mod tests;
