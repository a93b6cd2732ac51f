//! The listener: TLS, and a client certificate of the cluster.

use std::{net::SocketAddr, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{KubeletApi, refuse};
use crate::{config::Config, kubelet::KubeletError};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a failed accept (no more file descriptors), so that it does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens the listener, where one is configured.
pub(crate) async fn bind(config: &Config) -> Result<Option<TcpListener>, KubeletError> {
    if config.tls.is_none() || config.port == 0 {
        return Ok(None);
    }
    let address = SocketAddr::new(config.bind_address, config.port);
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| KubeletError::Listen { address, source })
}

/// Serves until `stop`.
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
    // The verifier has checked what there is; here it must be there.
    let known = stream.get_ref().1.peer_certificates().is_some_and(|c| !c.is_empty());
    let service = hyper::service::service_fn(move |request| {
        let api = api.clone();
        async move {
            if !known {
                return Ok::<_, std::convert::Infallible>(refuse(
                    &k8s_core::status::ApiStatus::unauthorized(),
                ));
            }
            Ok(api.handle(request).await)
        }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    if let Err(e) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        debug!(%peer, error = %e, "connection ended");
    }
}
