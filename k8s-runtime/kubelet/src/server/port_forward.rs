//! Port-forward: TCP connections to a pod over a WebSocket.
//!
//! kubectl tunnels SPDY/3.1 through the WebSocket (`SPDY/3.1+portforward.k8s.io`), with an error stream and a
//! data stream of the same `requestid` per connection. Other clients use channels (`v4.channel.k8s.io`,
//! `v4.base64.channel.k8s.io`, or no subprotocol): two per port, data and errors, each of which starts with
//! the port number in little-endian.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use k8s_core::{client::Body, status::ApiStatus};
use k8s_runtime::SandboxId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::{
    channels, locate,
    query::Query,
    spdy::{self, Incoming, Session},
    upgrade::{self, Protocol, Socket},
};
use crate::context::Context;

const SPDY: &str = "SPDY/3.1+portforward.k8s.io";
const PROTOCOLS: [Protocol; 4] = [
    Protocol { name: SPDY, base64: false },
    Protocol { name: "v4.channel.k8s.io", base64: false },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true },
    Protocol { name: "", base64: false },
];
const CHUNK: usize = 32 * 1024;
/// Time for the input of a client that has left to arrive.
const LAST_INPUT: Duration = Duration::from_secs(10);

pub(super) fn serve<B: Send + 'static>(
    cx: &Arc<Context>,
    namespace: &str,
    pod: &str,
    request: Request<B>,
) -> Result<Response<Body>, ApiStatus> {
    let (_, view) = locate::pod(cx, namespace, pod)?;
    let running = view.containers.values().any(|c| c.running);
    let Some(sandbox) = view.sandbox.filter(|_| running) else {
        let message = format!("unable to forward port because pod is not running: {pod}");
        return Err(ApiStatus::bad_request(message));
    };
    let query = Query::of(&request);
    let ports = ports(query.all("port").chain(query.all("ports")));
    if let (Err(why), Some(_)) =
        (&ports, upgrade::agreed(request.headers(), &PROTOCOLS).filter(|p| p.name != SPDY))
    {
        return Err(ApiStatus::bad_request(why));
    }
    let (cx, ports) = (cx.clone(), ports.unwrap_or_default());
    upgrade::accept(request, &PROTOCOLS, move |socket, protocol| async move {
        if protocol.name == SPDY {
            tunnel(cx, sandbox, socket).await;
        } else {
            by_channels(&cx, &sandbox, &ports, socket, protocol).await;
        }
    })
}

/// Parses the ports of the request.
fn ports<'a>(values: impl Iterator<Item = &'a str>) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for value in values {
        if value.is_empty() {
            return Err("query parameter \"port\" cannot be empty".into());
        }
        for port in value.split(',') {
            match port.parse::<u16>() {
                Ok(0) => return Err(format!("port {value:?} must be > 0")),
                Ok(port) => ports.push(port),
                Err(_) => return Err(format!("unable to parse {value:?} as a port")),
            }
        }
    }
    match ports.len() {
        0 => Err("query parameter \"port\" is required".into()),
        // The channel number is one byte.
        n if n > 127 => Err(format!("{n} ports are too many for one connection")),
        _ => Ok(ports),
    }
}

/// Serves SPDY tunnelled through the WebSocket.
async fn tunnel(cx: Arc<Context>, sandbox: SandboxId, socket: Socket) {
    let (mut sink, mut messages) = socket.split();
    let (near, far) = tokio::io::duplex(CHUNK * 2);
    let (read, write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let session = match Session::start(read, write) {
        Ok(session) => session,
        Err(e) => return debug!(error = %e, "no SPDY session"),
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n @ 1..) = far_read.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                break;
            }
        }
        // Fails if the client has disconnected: nothing to do then.
        let _ = sink.send(upgrade::close_frame()).await;
    };
    let inward = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(data) => match far_write.write_all(&data).await {
                    Ok(()) => {}
                    Err(_) => break,
                },
                Message::Close(_) => break,
                _ => {}
            }
        }
    };
    let mut forwarding = std::pin::pin!(forward(cx, sandbox, session));
    let left = tokio::select! {
        () = outward => false,
        () = inward => true,
        () = &mut forwarding => false,
    };
    if left {
        // Bytes from before the end are still to be delivered.
        drop(far_write);
        let _ = tokio::time::timeout(LAST_INPUT, forwarding).await;
    }
}

/// Pairs error and data streams, and forwards each pair.
async fn forward(cx: Arc<Context>, sandbox: SandboxId, mut session: Session) {
    let mut waiting: HashMap<String, spdy::Stream> = HashMap::new();
    let mut pairs = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = session.accept() => stream,
            Some(_) = pairs.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
        if !matches!(kind.as_str(), "error" | "data") {
            debug!(kind, "a stream of an unknown type");
            let _ = stream.writer().reset().await;
            continue;
        }
        // Very old clients send no request id: their streams arrive in pairs.
        let request = stream.headers.get("requestid").cloned().unwrap_or_else(|| match kind.as_str() {
            "error" => stream.id.to_string(),
            _ => stream.id.saturating_sub(2).to_string(),
        });
        let Some(other) = waiting.remove(&request) else {
            waiting.insert(request, stream);
            continue;
        };
        let (error, data) = if kind == "data" { (other, stream) } else { (stream, other) };
        pairs.spawn(pair(cx.clone(), sandbox.clone(), error, data));
    }
    while pairs.join_next().await.is_some() {}
}

/// Copies between one pair of streams and one connection of the pod.
async fn pair(cx: Arc<Context>, sandbox: SandboxId, error: spdy::Stream, mut data: spdy::Stream) {
    let port: Option<u16> = data.headers.get("port").and_then(|p| p.parse().ok());
    let opened = match port {
        Some(port) => cx.runtime.port_forward(&sandbox, port).await.map_err(|e| e.to_string()),
        None => Err(format!("{:?} is not a port", data.headers.get("port"))),
    };
    let (writer, errors) = (data.writer(), error.writer());
    let connection = match opened {
        Ok(connection) => connection,
        Err(e) => {
            let port = port.map(|p| p.to_string()).unwrap_or_default();
            let message = format!("error forwarding port {port} to pod {sandbox}: {e}");
            // Fails only after the session has ended.
            let _ = errors.send(message.as_bytes()).await;
            let _ = errors.finish().await;
            let _ = writer.reset().await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let inward = async {
        let mut finished = false;
        while let Some(incoming) = data.incoming.recv().await {
            match incoming {
                Incoming::Data(bytes) => {
                    if to_pod.write_all(&bytes).await.is_err() || to_pod.flush().await.is_err() {
                        break;
                    }
                }
                Incoming::Fin => {
                    finished = true;
                    let _ = to_pod.shutdown().await;
                }
                Incoming::Reset => return,
            }
        }
        if !finished {
            // Fails only after the session has ended.
            let _ = to_pod.shutdown().await;
            return;
        }
        // The client sends no more data; the pod may still do.
        std::future::pending::<()>().await
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n @ 1..) = from_pod.read(&mut buffer).await {
            if writer.send(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
    let _ = writer.finish().await;
    let _ = errors.finish().await;
}

/// Serves two channels per port.
async fn by_channels(
    cx: &Context,
    sandbox: &SandboxId,
    ports: &[u16],
    socket: Socket,
    protocol: &'static Protocol,
) {
    let (mut sink, mut messages) = socket.split();
    let (sender, mut outgoing) = mpsc::channel::<Message>(16);
    let mut inputs = Vec::new();
    let mut tasks = futures::stream::FuturesUnordered::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let Ok(channel) = u8::try_from(index * 2) else { break };
        let (input, pending) = mpsc::channel::<Bytes>(16);
        inputs.push(input);
        tasks.push(one_port(cx, sandbox, port, channel, protocol, pending, sender.clone()));
    }
    drop(sender);
    let outward = async move {
        while let Some(message) = outgoing.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(upgrade::close_frame()).await;
    };
    let inward = async move {
        while let Some(Ok(message)) = messages.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
            let Some((channel, data)) = channels::split(&message, protocol) else { continue };
            if let Some(input) = inputs.get(usize::from(channel) / 2) {
                let _ = input.send(data).await;
            }
        }
        // Close the inputs, so that the forwarding tasks see the end of the data.
        drop(inputs);
    };
    let work = async { while tasks.next().await.is_some() {} };
    let mut moving = std::pin::pin!(async { tokio::join!(outward, work) });
    tokio::select! {
        ((), ()) = &mut moving => {}
        () = inward => {
            let _ = tokio::time::timeout(LAST_INPUT, moving).await;
        }
    }
}

async fn one_port(
    cx: &Context,
    sandbox: &SandboxId,
    port: u16,
    channel: u8,
    protocol: &'static Protocol,
    mut pending: mpsc::Receiver<Bytes>,
    sender: mpsc::Sender<Message>,
) {
    // If sending fails, the client is gone and the whole connection ends.
    for channel in [channel, channel + 1] {
        let _ = sender.send(channels::frame(channel, &port.to_le_bytes(), protocol)).await;
    }
    let connection = match cx.runtime.port_forward(sandbox, port).await {
        Ok(connection) => connection,
        Err(e) => {
            let message = format!("error forwarding port {port} to pod {sandbox}: {e}");
            let _ = sender.send(channels::frame(channel + 1, message.as_bytes(), protocol)).await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let inward = async {
        while let Some(bytes) = pending.recv().await {
            if to_pod.write_all(&bytes).await.is_err() || to_pod.flush().await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n @ 1..) = from_pod.read(&mut buffer).await {
            if sender.send(channels::frame(channel, &buffer[..n], protocol)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}
