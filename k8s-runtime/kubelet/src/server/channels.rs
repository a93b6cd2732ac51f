//! Channel framing of exec, attach and port-forward: the first byte of a WebSocket message is the stream's
//! number. In the base64 protocols it is a digit, and the data is base64.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use k8s_runtime::TerminalSize;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::upgrade::Protocol;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// Version 5: closes the channel that the next byte names.
pub(super) const CLOSE: u8 = 255;

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Stdin(Bytes),
    StdinClosed,
    Resize(TerminalSize),
    /// Ping, pong, or an unknown channel: ignored.
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Splits a message into channel and data. `None`: it is not a message of the protocol.
pub(super) fn split(message: &Message, protocol: &Protocol) -> Option<(u8, Bytes)> {
    let raw = match message {
        Message::Binary(data) => data.clone(),
        Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        _ => return None,
    };
    let channel = *raw.first()?;
    if !protocol.base64 {
        return Some((channel, raw.slice(1..)));
    }
    let data = STANDARD.decode(&raw[1..]).ok()?;
    Some((channel.wrapping_sub(b'0'), data.into()))
}

/// Parses a message of exec or attach. `closes`: the protocol has a message that closes a channel.
pub(super) fn parse(message: &Message, protocol: &Protocol, closes: bool) -> Input {
    match split(message, protocol) {
        Some((CLOSE, channel)) if closes && channel[..] == [STDIN] => Input::StdinClosed,
        Some((STDIN, data)) => Input::Stdin(data),
        Some((RESIZE, data)) => match serde_json::from_slice::<Size>(&data) {
            Ok(Size { width, height }) => Input::Resize(TerminalSize { width, height }),
            Err(_) => Input::Other,
        },
        _ => Input::Other,
    }
}

/// Builds a message on a channel.
pub(super) fn frame(channel: u8, data: &[u8], protocol: &Protocol) -> Message {
    if protocol.base64 {
        let mut text = String::with_capacity(data.len() / 3 * 4 + 5);
        text.push(char::from(b'0'.wrapping_add(channel)));
        STANDARD.encode_string(data, &mut text);
        return Message::Text(text.into());
    }
    let mut message = Vec::with_capacity(data.len() + 1);
    message.push(channel);
    message.extend_from_slice(data);
    Message::Binary(message.into())
}

/// The end of a command as the error channel reports it.
pub(super) fn ended(result: &Result<i32, String>) -> Value {
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {why}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": why}]},
            "code": 500,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINARY: Protocol = Protocol { name: "v5.channel.k8s.io", base64: false };
    const BASE64: Protocol = Protocol { name: "base64.channel.k8s.io", base64: true };

    #[test]
    fn messages() {
        for (raw, want) in [
            (&b"\0abc"[..], Input::Stdin(Bytes::from_static(b"abc"))),
            (b"\xff\0", Input::StdinClosed),
            (b"\x04{\"Width\":80,\"Height\":24}", Input::Resize(TerminalSize { width: 80, height: 24 })),
            (b"\x04nonsense", Input::Other),
            (b"\x09x", Input::Other),
            (b"", Input::Other),
        ] {
            let message = Message::Binary(Bytes::copy_from_slice(raw));
            assert_eq!(parse(&message, &BINARY, true), want, "{raw:?}");
        }
        let close = Message::Binary(Bytes::from_static(b"\xff\0"));
        assert_eq!(parse(&close, &BINARY, false), Input::Other);
        assert_eq!(ended(&Ok(3))["details"]["causes"][0]["message"], "3");
    }

    #[test]
    fn base64_messages() {
        let message = Message::Text("0aGVsbG8=".into());
        assert_eq!(parse(&message, &BASE64, false), Input::Stdin(Bytes::from_static(b"hello")));
        assert_eq!(parse(&Message::Text("0!".into()), &BASE64, false), Input::Other);
        assert_eq!(frame(STDOUT, b"hello", &BASE64), Message::Text("1aGVsbG8=".into()));
        assert_eq!(frame(STDOUT, b"", &BASE64), Message::Text("1".into()));
        let (channel, data) = split(&frame(254, b"x", &BASE64), &BASE64).unwrap_or_default();
        assert_eq!((channel, &data[..]), (254, &b"x"[..]));
    }
}
