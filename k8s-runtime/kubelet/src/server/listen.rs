//! The TLS listener: client certificate authentication, then authorization of each request.

use std::{net::SocketAddr, time::Duration};

use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use k8s_core::client::LongQuery;
use k8s_tls::TlsAcceptor;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{KubeletApi, auth::User};
use crate::{config::Config, error::KubeletError};

/// Maximum time for a request's headers, as in the API server.
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// Bytes of the headers of a client with a certificate: the longest query of the API server, with room for the
/// others.
const MOST_HEADERS: usize = 2 << 20;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Delay after a failed accept (out of file descriptors), to avoid a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Binds the listener. `None`: none is configured.
pub(crate) async fn bind(config: &Config) -> Result<Option<TcpListener>, KubeletError> {
    if config.tls.is_none() || config.port == 0 {
        return Ok(None);
    }
    let address = SocketAddr::new(config.bind_address, config.port);
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| KubeletError::Listen { address, source })
}

/// Serves connections until `stop` is cancelled.
pub(crate) async fn serve(listener: TcpListener, api: KubeletApi, stop: CancellationToken) {
    let Some(tls) = api.cx.config.tls.clone() else { return };
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(connection(stream, peer, acceptor.clone(), api.clone()));
            }
            Err(e) => {
                debug!(error = %e, "connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    connections.abort_all();
}

async fn connection(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, api: KubeletApi) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return debug!(%peer, error = %e, "handshake failed"),
        Err(_) => return debug!(%peer, "handshake took too long"),
    };
    // The verifier has checked the certificate, if there was one; require it here.
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let user = certificate.and_then(|c| User::of(c));
    let is_known = user.is_some();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        if let Some(query) = LongQuery::take(request.headers_mut()) {
            request.extensions_mut().insert(query);
        }
        async move {
            let allowed =
                api.gate.check(&api.cx, user.as_ref(), request.method(), request.uri().path()).await;
            Ok::<_, std::convert::Infallible>(match allowed {
                Ok(()) => api.handle(request).await,
                Err(answer) => *answer,
            })
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    if is_known {
        server.http1().max_buf_size(MOST_HEADERS);
    }
    if let Err(e) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        debug!(%peer, error = %e, "connection ended");
    }
}
