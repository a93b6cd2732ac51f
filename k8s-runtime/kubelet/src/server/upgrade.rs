//! Upgrades a connection to a WebSocket.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_core::{
    client::{Body, empty_body},
    status::{ApiStatus, Reason},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tracing::debug;

/// Maximum size of a client's message, bytes. Known clients send at most 32 KiB.
const LONGEST_MESSAGE: usize = 4 << 20;

/// A WebSocket connection to a client.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The close message of a normal end. Go clients report a close without a code as an error.
pub(super) fn farewell() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// A WebSocket subprotocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Protocol {
    /// Name. Empty: the client offers no subprotocol.
    pub(super) name: &'static str,
    /// Text messages: the channel as a digit, the data in base64.
    pub(super) base64: bool,
}

/// Negotiates the subprotocol: the first one offered that is in `ours`. A client that offers none gets the
/// entry without a name.
pub(super) fn agreed(headers: &HeaderMap, ours: &'static [Protocol]) -> Option<&'static Protocol> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let offered = values.flat_map(|v| v.to_str().unwrap_or("?").split(',')).map(str::trim);
    let mut offered = offered.filter(|name| !name.is_empty()).peekable();
    if offered.peek().is_none() {
        return ours.iter().find(|p| p.name.is_empty());
    }
    offered.find_map(|name| ours.iter().find(|p| p.name == name))
}

/// Returns `true` if the request is a WebSocket handshake.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    has_token(headers, header::CONNECTION, "upgrade") && has_token(headers, header::UPGRADE, "websocket")
}

/// Answers a WebSocket handshake and runs `serve` on the connection, with the negotiated subprotocol.
pub(super) fn accept<B, F>(
    mut request: Request<B>,
    protocols: &'static [Protocol],
    serve: impl FnOnce(Socket, &'static Protocol) -> F + Send + 'static,
) -> Result<Response<Body>, ApiStatus>
where
    F: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    if !is_asked(headers) {
        return Err(ApiStatus::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr, and upgrade to websocket",
        ));
    }
    let Some(protocol) = agreed(headers, protocols) else {
        let names: Vec<&str> = protocols.iter().map(|p| p.name).collect();
        let message = format!("unable to upgrade: the client offers none of the protocols {names:?}");
        return Err(ApiStatus::of(Reason::Forbidden, message));
    };
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| ApiStatus::bad_request("no Sec-WebSocket-Key"))?;
    let accepted = derive_accept_key(key.as_bytes());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) => {
                let limits = WebSocketConfig::default()
                    .max_message_size(Some(LONGEST_MESSAGE))
                    .max_frame_size(Some(LONGEST_MESSAGE));
                let io = TokioIo::new(connection);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
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
    if !protocol.name.is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name));
    }
    let accepted = HeaderValue::from_str(&accepted).map_err(ApiStatus::internal)?;
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_chosen_in_the_clients_order() {
        static OURS: [Protocol; 3] = [
            Protocol { name: "b", base64: false },
            Protocol { name: "a", base64: true },
            Protocol { name: "", base64: false },
        ];
        let choice = |offers: &[&str]| {
            let mut headers = HeaderMap::new();
            for offer in offers {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(offer).unwrap());
            }
            agreed(&headers, &OURS).map(|p| p.name)
        };
        for (offers, want) in [
            (&[][..], Some("")),
            (&[""], Some("")),
            (&["a, b"], Some("a")),
            (&["x", "b,a"], Some("b")),
            (&["x"], None),
            (&["A"], None),
        ] {
            assert_eq!(choice(offers), want, "{offers:?}");
        }
        assert!(agreed(&HeaderMap::new(), &OURS[..2]).is_none());
    }
}
