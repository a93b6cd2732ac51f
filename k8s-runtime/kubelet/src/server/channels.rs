//! The channel framing of remote commands: each WebSocket message begins with a byte that says which stream it belongs to.

use bytes::Bytes;
use k8s_runtime::TerminalSize;
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// Version 5: the named channel is closed.
pub(super) const CLOSE: u8 = 255;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Stdin(Bytes),
    StdinClosed,
    Resize(TerminalSize),
    /// Nothing that matters here.
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads a client's message.
pub(super) fn parse(message: &Bytes) -> Input {
    match message.first() {
        Some(&STDIN) => Input::Stdin(message.slice(1..)),
        Some(&CLOSE) if message.get(1) == Some(&STDIN) => Input::StdinClosed,
        Some(&RESIZE) => match serde_json::from_slice::<Size>(&message[1..]) {
            Ok(Size { width, height }) => Input::Resize(TerminalSize { width, height }),
            Err(_) => Input::Other,
        },
        _ => Input::Other,
    }
}

/// A message on a channel.
pub(super) fn frame(channel: u8, data: &[u8]) -> Bytes {
    let mut message = Vec::with_capacity(data.len() + 1);
    message.push(channel);
    message.extend_from_slice(data);
    message.into()
}

/// How a command ended, as the error channel says it.
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
            assert_eq!(parse(&Bytes::copy_from_slice(raw)), want, "{raw:?}");
        }
        assert_eq!(ended(&Ok(3))["details"]["causes"][0]["message"], "3");
    }
}
