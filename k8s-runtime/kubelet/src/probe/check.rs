//! Probe checks: exec, TCP, HTTP, gRPC.

#![expect(clippy::disallowed_methods, reason = "the connection ends with its probe")]

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_runtime::{ContainerId, ExecRequest};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
};

use crate::context::Context;

/// Maximum length of the output (command, HTTP body) in a probe's message.
const LONGEST_OUTPUT: u64 = 10 * 1024;

/// Parameters of an HTTP check.
#[derive(Clone, Debug)]
pub(crate) struct Get {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Get {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

async fn within<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, String>>,
    late: String,
) -> Result<T, String> {
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(late))
}

/// Runs a command in the container. Success: exit code 0.
pub(crate) async fn exec(
    cx: &Context,
    id: &ContainerId,
    command: Vec<String>,
    timeout: Duration,
) -> Result<(), String> {
    let late = format!(
        "command timed out: {:?} timed out after {}",
        command.join(" "),
        crate::duration::go(timeout)
    );
    let request = ExecRequest { command, timeout: Some(timeout), ..ExecRequest::default() };
    let work = async {
        let mut process = cx.runtime.exec(id, &request).await.map_err(|e| e.to_string())?;
        drop(process.stdin.take());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read = async {
            tokio::join!(drain(process.stdout.take(), &mut out), drain(process.stderr.take(), &mut err));
        };
        let (code, ()) = tokio::join!(process.exit, read);
        let code = code.map_err(|e| e.to_string())?;
        out.extend(err);
        let text = String::from_utf8_lossy(&out).into_owned();
        match code {
            0 => Ok(()),
            code if text.is_empty() => Err(format!("command exited with code {code}")),
            _ => Err(text),
        }
    };
    within(timeout, work, late).await
}

/// Reads a stream to its end; `into` gets the first [`LONGEST_OUTPUT`] bytes.
async fn drain(stream: Option<Box<dyn AsyncRead + Send + Unpin>>, into: &mut Vec<u8>) {
    let Some(stream) = stream else { return };
    let mut limited = stream.take(LONGEST_OUTPUT);
    // After an error, the text that was read before is shown.
    let _ = limited.read_to_end(into).await;
    let mut rest = limited.into_inner();
    let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
}

/// Opens a TCP connection. Success: it is established.
pub(crate) async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    let late = format!("dial tcp {host}:{port}: i/o timeout");
    let work = async {
        TcpStream::connect((host, port)).await.map(drop).map_err(|e| format!("dial tcp {host}:{port}: {e}"))
    };
    within(timeout, work, late).await
}

/// Sends a GET request. Success: a status from 200 to 399.
pub(crate) async fn http(get: &Get, timeout: Duration) -> Result<(), String> {
    let scheme = if get.tls { "https" } else { "http" };
    let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    let url = format!("{scheme}://{}{path}", get.authority());
    let late =
        format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    let work = async {
        let failed = |e: &dyn std::fmt::Display| format!("Get {url:?}: {e}");
        let tcp = TcpStream::connect((get.host.as_str(), get.port)).await;
        let tcp = tcp.map_err(|e| failed(&format!("dial tcp {}: {e}", get.authority())))?;
        let (code, text) = if get.tls {
            let tls = unverified().map_err(|e| failed(&e))?;
            let stream = k8s_tls::connect(tls, &get.host, tcp).await.map_err(|e| failed(&e))?;
            ask(stream, get, &path).await.map_err(|e| failed(&e))?
        } else {
            ask(tcp, get, &path).await.map_err(|e| failed(&e))?
        };
        if (200..400).contains(&code) {
            return Ok(());
        }
        let text = if text.is_empty() { String::new() } else { format!(" ({text})") };
        tracing::trace!(url, code, text, "probe failed");
        Err(format!("HTTP probe failed with statuscode: {code}"))
    };
    within(timeout, work, late).await
}

async fn ask<S>(stream: S, get: &Get, path: &str) -> Result<(u16, String), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let mut request = http::Request::get(path);
    let own = |name: &str| get.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !own("host") {
        request = request.header("host", get.authority());
    }
    if !own("user-agent") {
        request = request.header("user-agent", "kube-probe/1.36");
    }
    if !own("accept") {
        request = request.header("accept", "*/*");
    }
    for (name, value) in &get.headers {
        request = request.header(name, value);
    }
    let request =
        request.header("connection", "close").body(Full::new(Bytes::new())).map_err(|e| e.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let code = answer.status().as_u16();
        let mut text = Vec::new();
        let mut body = answer.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data() {
                text.extend_from_slice(&data);
            }
            if text.len() as u64 >= LONGEST_OUTPUT {
                break;
            }
        }
        Ok((code, String::from_utf8_lossy(&text).into_owned()))
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = &mut exchange => result,
        ended = &mut connection => match ended {
            // The connection may end before the response is read to its end.
            Ok(()) => exchange.await,
            Err(e) => Err(e.to_string()),
        },
    }
}

/// Calls `grpc.health.v1.Health/Check`. Success: `SERVING`.
pub(crate) async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let late = format!(
        "timeout: failed to connect service \"{host}:{port}\" within {}",
        crate::duration::go(timeout)
    );
    let work = async {
        let failed =
            |e: &dyn std::fmt::Display| format!("service unhealthy (connection to {host}:{port}: {e})");
        let tcp = TcpStream::connect((host, port)).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
                .await
                .map_err(|e| failed(&e))?;
        let connection = tokio::spawn(connection);
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let request = http::Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.36")
            .body(Full::new(health_request(service)))
            .map_err(|e| failed(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| failed(&e));
        let result = match answer {
            Ok(answer) => health_answer(answer).await,
            Err(e) => Err(e),
        };
        connection.abort();
        result
    };
    within(timeout, work, late).await
}

/// Encodes a length-prefixed `HealthCheckRequest { service }`.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(0));
    framed.put(message);
    framed.freeze()
}

async fn health_answer(answer: http::Response<hyper::body::Incoming>) -> Result<(), String> {
    let collected = answer.into_body().collect().await.map_err(|e| e.to_string())?;
    let status =
        collected.trailers().and_then(|t| t.get("grpc-status")).and_then(|v| v.to_str().ok()).unwrap_or("0");
    if status != "0" {
        return Err(format!("service unhealthy (gRPC status {status})"));
    }
    let body = collected.to_bytes();
    // A prefix of five bytes, then field 1 (status) as a varint; 1 is SERVING.
    match body.get(5..) {
        Some([0x08, 1, ..]) => Ok(()),
        Some([0x08, other, ..]) => Err(format!("service unhealthy (responded with status {other})")),
        _ => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
    }
}

/// TLS without verification: a probe asks whether a server answers, not who it is.
fn unverified() -> Result<Arc<k8s_tls::ClientConfig>, String> {
    static CONFIG: LazyLock<Result<Arc<k8s_tls::ClientConfig>, String>> = LazyLock::new(|| {
        k8s_tls::client(&k8s_tls::Trust::Anyone, None, &[]).map(Arc::new).map_err(|e| e.to_string())
    });
    CONFIG.clone()
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    #[test]
    fn grpc_framing() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }

    #[tokio::test]
    async fn http_statuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for answer in ["200 OK", "302 Found", "500 Internal Server Error"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..n]).to_lowercase();
                assert!(text.starts_with("get /healthz http/1.1"), "{text}");
                assert!(text.contains("x-a: b"), "{text}");
                stream
                    .write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\n\r\nno").as_bytes())
                    .await
                    .unwrap();
            }
        });
        let get = Get {
            tls: false,
            host: "127.0.0.1".into(),
            port,
            path: "/healthz".into(),
            headers: vec![("X-A".into(), "b".into())],
        };
        let patience = Duration::from_secs(5);
        assert_eq!(http(&get, patience).await, Ok(()));
        assert_eq!(http(&get, patience).await, Ok(()));
        assert_eq!(http(&get, patience).await, Err("HTTP probe failed with statuscode: 500".into()));
        server.await.unwrap();
        assert!(tcp("127.0.0.1", port, patience).await.is_err(), "nobody listens any more");
    }
}
