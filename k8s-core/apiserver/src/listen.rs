//! Serving over TLS.

mod connection;

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::{
    CipherSuite, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{request::PeerCertificate, server::ApiServer};
use connection::{Connection, Wire};

/// Requests at once over one connection of HTTP/2.
const MOST_STREAMS: u32 = 250;
/// Bytes of a request's headers, as in Go.
const MOST_HEADERS: u32 = 1 << 20;

/// Certificates in PEM.
#[derive(Clone)]
pub struct TlsFiles {
    /// The server's chain.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// Who signs client certificates; `None`: none are accepted.
    pub client_ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsFiles")
    }
}

/// The server side of TLS: HTTP/2 and HTTP/1.1, client certificates asked for and not required.
///
/// # Errors
/// The part that is not usable.
pub fn tls_config(files: &TlsFiles) -> Result<ServerConfig, String> {
    let bad = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    let provider = Arc::new(quickest_first(rustls::crypto::ring::default_provider()));
    let chain = CertificateDer::pem_slice_iter(&files.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad("server certificate", &e))?;
    let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|e| bad("server key", &e))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("tls", &e))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|e| bad("client CA", &e))?;
                roots.add(certificate).map_err(|e| bad("client CA", &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|e| bad("client CA", &e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| bad("server certificate", &e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    Ok(config)
}

/// Prefers AES with 128 bits, as Go's servers do: as safe for a connection, and a third less work for both sides of a large list.
fn quickest_first(mut provider: CryptoProvider) -> CryptoProvider {
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

/// Connections that are open.
#[derive(Default)]
struct Open(Mutex<HashMap<u64, Arc<Connection>>>);

impl Open {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more: ends the connection that nobody has asked anything over for longest. Whether there is room.
    fn make_room(&self, most: usize) -> bool {
        let mut all = self.all();
        if all.len() < most {
            return true;
        }
        let idle = all.iter().filter_map(|(number, c)| Some((c.idle_since()?, *number))).min();
        let Some(connection) = idle.and_then(|(_, number)| all.remove(&number)) else { return false };
        connection.close.cancel();
        true
    }
}

/// Serves connections until `stop`; requests under way get a moment to end. The server's [`Limits`](crate::limits::Limits) hold for them.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    server: ApiServer,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    stop: CancellationToken,
) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    let open = Arc::new(Open::default());
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(e) => {
                // Out of descriptors, or the client left: neither ends the server.
                debug!(error = %e, "accept");
                open.make_room(0);
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if !open.make_room(server.state.gate.limits.connections) {
            debug!("too many connections");
            continue;
        }
        let _ = tcp.set_nodelay(true);
        number += 1;
        let serving = Serving { server: server.clone(), open: open.clone(), number };
        tokio::spawn(serving.run(acceptor.clone(), tcp, graceful.watcher()));
    }
    drop(listener);
    // Watches do not end by themselves.
    let _ = tokio::time::timeout(Duration::from_millis(300), graceful.shutdown()).await;
    Ok(())
}

/// The task of one connection.
struct Serving {
    server: ApiServer,
    open: Arc<Open>,
    number: u64,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.open.all().remove(&self.number);
    }
}

impl Serving {
    async fn run(self, acceptor: TlsAcceptor, tcp: TcpStream, watcher: Watcher) {
        let limits = &self.server.state.gate.limits;
        // A handshake counts as a connection that nobody asks anything over.
        let shaking = Arc::new(Connection::new(false));
        self.open.all().insert(self.number, shaking.clone());
        let handshake = tokio::time::timeout(limits.handshake_timeout, acceptor.accept(tcp));
        let stream = tokio::select! {
            done = handshake => match done {
                Ok(Ok(stream)) => stream,
                Ok(Err(e)) => return debug!(error = %e, "tls handshake"),
                Err(_) => return debug!("tls handshake took too long"),
            },
            () = shaking.close.cancelled() => return debug!("tls handshake made room for others"),
        };
        let session = stream.get_ref().1;
        let peer = session.peer_certificates().and_then(|chain| chain.first());
        let peer = peer.map(|c| PeerCertificate(c.as_ref().to_vec()));
        let http2 = session.alpn_protocol() == Some(b"h2");
        let connection = Arc::new(Connection::new(http2));
        if self.open.all().insert(self.number, connection.clone()).is_none() {
            return debug!("tls handshake made room for others");
        }
        let (server, of) = (self.server.clone(), connection.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let active = of.begin();
            let extensions = request.extensions_mut();
            extensions.insert(of.account.clone());
            if let Some(peer) = &peer {
                extensions.insert(peer.clone());
            }
            let answer = server.handle(request);
            async move { Ok::<_, Infallible>(active.answer(answer.await)) }
        });
        let io = TokioIo::new(Wire::new(stream, connection.clone()));
        let ends = async {
            tokio::select! {
                why = connection.overdue(limits) => debug!(why, "connection ended"),
                () = connection.close.cancelled() => debug!("connection made room for others"),
            }
        };
        let builder = protocol(http2);
        let serving = builder.serve_connection_with_upgrades(io, service).into_owned();
        tokio::select! {
            ended = watcher.watch(serving) => if let Err(e) = ended { debug!(error = %e, "connection") },
            () = ends => {}
        }
    }
}

/// The protocol that the client has chosen in the handshake, so that nothing waits for its first bytes but its headers.
fn protocol(http2: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Headers and idleness are measured by the connection itself.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_header_list_size(MOST_HEADERS)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    if http2 { builder.http2_only() } else { builder.http1_only() }
}
