//! The TLS listener: authentication by client certificate or bearer token, then authorization of each
//! request.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_core::client::{Body, LongQuery};
use k8s_tls::TlsAcceptor;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{KubeletApi, auth::User};
use crate::{config::Config, error::KubeletError};

/// Maximum time for the headers of a request, as in the API server. It begins with the connection or with
/// the last answer, so it ends idle connections, too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// Bytes of the headers of a client with a certificate: the longest query of the API server, with room for
/// the others.
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
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let local = stream.local_addr().ok().map(|address| address.ip());
                let acceptor = TlsAcceptor::from(tls.at(local));
                connections.spawn(connection(stream, peer, acceptor, api.clone()));
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
    // The verifier has checked the certificate, if there was one. Without one a token is required.
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let user = certificate.and_then(|c| User::of(c));
    let (is_http2, is_known) = (stream.get_ref().1.alpn_protocol() == Some(b"h2"), user.is_some());
    let answer = move |mut request: Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        if let Some(query) = LongQuery::take(request.headers_mut()) {
            request.extensions_mut().insert(query);
        }
        async move {
            let user = match user {
                Some(user) => Some(user),
                None => api.gate.token_user(&api.cx, request.headers()).await.unwrap_or_else(|error| {
                    tracing::warn!(%error, "bearer token not reviewed");
                    None
                }),
            };
            request.headers_mut().remove(http::header::AUTHORIZATION);
            let allowed =
                api.gate.check(&api.cx, user.as_ref(), request.method(), request.uri().path()).await;
            Ok::<_, Infallible>(match allowed {
                Ok(()) => api.handle(request).await,
                Err(answer) => *answer,
            })
        }
    };
    let ended = if is_http2 {
        let server = http2::Builder::new(TokioExecutor::new());
        server.serve_connection(TokioIo::new(stream), service_fn(answer)).await
    } else {
        serve_http1(stream, is_known, answer).await
    };
    if let Err(e) = ended {
        debug!(%peer, error = %e, "connection ended");
    }
}

/// Serves HTTP/1.1. The protocol is not guessed from the first bytes: a client that sends none would have no
/// time limit.
async fn serve_http1<F>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    is_known: bool,
    answer: impl Fn(Request<Incoming>) -> F,
) -> hyper::Result<()>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    if is_known {
        server.max_buf_size(MOST_HEADERS);
    }
    server.serve_connection(TokioIo::new(stream), service_fn(answer)).with_upgrades().await
}

#[cfg(test)]
mod tests {
    use k8s_core::client::body_from_bytes;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::Instant,
    };

    use super::*;

    async fn answer(_: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        Ok(Response::new(body_from_bytes("here")))
    }

    #[tokio::test(start_paused = true)]
    async fn the_headers_of_a_request_have_32_seconds() {
        const WHOLE: &str = "GET / HTTP/1.1\r\nhost: n1\r\n\r\n";
        let (first, second) = WHOLE.split_at(20);
        // The parts that the client sends, 20 seconds apart; the number of answers; the time of the end.
        let cases: [(&[&str], usize, u64); 5] = [
            (&[], 0, 32),
            (&[first], 0, 32),
            (&[first, second], 1, 20 + 32),
            (&[WHOLE, WHOLE, first], 2, 20 + 32),
            (&[WHOLE, first, second], 1, 32),
        ];
        for (parts, answers, end) in cases {
            let (mut client, stream) = tokio::io::duplex(4096);
            let begun = Instant::now();
            let serving = async {
                let _ = serve_http1(stream, true, answer).await;
                begun.elapsed().as_secs()
            };
            let sending = async {
                for part in parts {
                    // Late parts meet a closed connection.
                    let _ = client.write_all(part.as_bytes()).await;
                    tokio::time::sleep(Duration::from_secs(20)).await;
                }
                let mut text = String::new();
                client.read_to_string(&mut text).await.unwrap();
                text
            };
            let (took, text) = tokio::join!(serving, sending);
            assert_eq!((text.matches("\r\n\r\nhere").count(), took), (answers, end), "{parts:?}: {text}");
        }
    }
}
