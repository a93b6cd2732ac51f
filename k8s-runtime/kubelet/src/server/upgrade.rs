//! Taking a connection over as a WebSocket.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_core::{
    client::{Body, empty_body},
    status::ApiStatus,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};
use tracing::debug;

/// A WebSocket to a client.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The regular end. Go's clients take a close without a code for an error.
pub(super) fn farewell() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// The first protocol of `ours` that the client offers.
fn choose<'a>(headers: &HeaderMap, ours: &[&'a str]) -> Option<&'a str> {
    ours.iter().copied().find(|p| has_token(headers, header::SEC_WEBSOCKET_PROTOCOL, p))
}

/// Answers a WebSocket handshake and runs `serve` on the connection, with the protocol that was agreed on.
pub(super) fn accept<B, F>(
    mut request: Request<B>,
    protocols: &[&'static str],
    serve: impl FnOnce(Socket, &'static str) -> F + Send + 'static,
) -> Result<Response<Body>, ApiStatus>
where
    F: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    if !has_token(headers, header::CONNECTION, "upgrade") || !has_token(headers, header::UPGRADE, "websocket")
    {
        return Err(ApiStatus::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr, and upgrade to websocket",
        ));
    }
    let Some(protocol) = choose(headers, protocols) else {
        let message = format!("unable to upgrade: the client offers none of the protocols {protocols:?}");
        return Err(ApiStatus::new(403, "Forbidden", message));
    };
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| ApiStatus::bad_request("no Sec-WebSocket-Key"))?;
    let accepted = derive_accept_key(key.as_bytes());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) => {
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, None).await;
                serve(socket, protocol).await;
            }
            Err(e) => debug!(error = %e, "connection not taken over"),
        }
    });
    let mut response = Response::new(empty_body());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    let accepted = HeaderValue::from_str(&accepted).map_err(ApiStatus::internal)?;
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    Ok(response)
}
