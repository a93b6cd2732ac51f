//! `exec` and `attach`: the standard streams of a process over a WebSocket.
//!
//! Guarantees:
//! 1. Data sent before the client disconnects is delivered to the process.
//! 2. A command continues when its client disconnects; with a terminal it gets a hangup.
//! 3. A successful attach ends with `Success`, whatever the container's exit code.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use http::{Request, Response};
use k8s_core::{client::Body, meta::ObjectExt, status::ApiStatus};
use k8s_runtime::{Attached, ContainerId, ExecRequest};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{
    channels::{self, Input},
    locate,
    query::Query,
    upgrade::{self, Protocol, Socket},
};
use crate::context::Context;

/// Kind of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subresource {
    Exec,
    Attach,
}

const V5: &str = "v5.channel.k8s.io";
/// Subprotocols. From v4 on, the error channel carries a JSON `Status`, also on success.
const PROTOCOLS: [Protocol; 6] = [
    Protocol { name: V5, base64: false },
    Protocol { name: "v4.channel.k8s.io", base64: false },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true },
    Protocol { name: "channel.k8s.io", base64: false },
    Protocol { name: "base64.channel.k8s.io", base64: true },
    Protocol { name: "", base64: false },
];
const CHUNK: usize = 32 * 1024;
/// Time for the process to read the data of a client that has disconnected.
const LAST_INPUT: Duration = Duration::from_secs(30);

/// Streams of the request.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

pub(super) fn serve<B: Send + 'static>(
    cx: &Arc<Context>,
    subresource: Subresource,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<B>,
) -> Result<Response<Body>, ApiStatus> {
    let (object, view) = locate::pod(cx, namespace, pod)?;
    let id = locate::running(&view, pod, container)?;
    let query = Query::of(&request);
    // Names of the kubelet's parameters and of the API server's (`PodExecOptions`).
    let mut wanted = Wanted {
        stdin: query.flag(&["input", "stdin"]),
        stdout: query.flag(&["output", "stdout"]),
        stderr: query.flag(&["error", "stderr"]),
        tty: query.flag(&["tty"]),
    };
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(ApiStatus::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    match subresource {
        Subresource::Exec if command.is_empty() => {
            return Err(ApiStatus::bad_request("you must specify a command"));
        }
        Subresource::Exec => {}
        Subresource::Attach => {
            let spec = object.spec.as_ref();
            let all = spec.into_iter().flat_map(|s| {
                let main = s.containers.iter().chain(s.init_containers.iter().flatten());
                let main = main.map(|c| (c.name.as_str(), c.stdin, c.tty));
                main.chain(s.ephemeral_containers.iter().flatten().map(|c| (c.name.as_str(), c.stdin, c.tty)))
            });
            let own = all.into_iter().find(|(name, ..)| *name == container);
            wanted.stdin &= own.is_some_and(|(_, stdin, _)| stdin == Some(true));
            wanted.tty = own.is_some_and(|(.., tty)| tty == Some(true));
        }
    }
    tracing::debug!(pod = %object.key(), container, ?subresource, "streams");
    let cx = cx.clone();
    upgrade::accept(request, &PROTOCOLS, move |socket, protocol| async move {
        let process = open(&cx, subresource, &id, command, wanted).await;
        run(socket, Session { subresource, wanted, protocol }, process).await;
    })
}

async fn open(
    cx: &Context,
    subresource: Subresource,
    id: &ContainerId,
    command: Vec<String>,
    wanted: Wanted,
) -> Result<Attached, String> {
    let result = match subresource {
        Subresource::Exec => {
            let request = ExecRequest { command, stdin: wanted.stdin, tty: wanted.tty, timeout: None };
            cx.runtime.exec(id, &request).await
        }
        Subresource::Attach => cx.runtime.attach(id).await,
    };
    result.map_err(|e| {
        let verb = if subresource == Subresource::Exec { "executing command in" } else { "attaching to" };
        format!("error {verb} container: {e}")
    })
}

/// Request and negotiated protocol.
#[derive(Clone, Copy, Debug)]
struct Session {
    subresource: Subresource,
    wanted: Wanted,
    protocol: &'static Protocol,
}

impl Session {
    /// Builds the final message on the error channel, if the protocol has one.
    fn status(&self, result: &Result<i32, String>) -> Option<Message> {
        let result = match (self.subresource, result) {
            // The client reads the exit code from the pod's status.
            (Subresource::Attach, Ok(_)) => &Ok(0),
            (_, result) => result,
        };
        let status = channels::ended(result);
        let text = if self.protocol.name.starts_with('v') {
            status.to_string()
        } else if *result == Ok(0) {
            return None;
        } else {
            status["message"].as_str().unwrap_or_default().to_owned()
        };
        Some(channels::frame(channels::ERROR, text.as_bytes(), self.protocol))
    }
}

/// Copies data between client and process.
async fn run(socket: Socket, session: Session, process: Result<Attached, String>) {
    let (mut sink, mut messages) = socket.split();
    let (sender, mut outgoing) = mpsc::channel::<Message>(16);
    let gone = CancellationToken::new();
    let until_gone = gone.clone();
    let write = async move {
        let write = async {
            while let Some(message) = outgoing.recv().await {
                sink.send(message).await.ok()?;
            }
            // Close the WebSocket; fails if the client has disconnected.
            sink.send(upgrade::close_frame()).await.ok()?;
            sink.close().await.ok()
        };
        tokio::select! {
            _ = write => {}
            // Dropping the receiver makes later sends fail.
            () = until_gone.cancelled() => {}
        }
    };
    let work = async {
        let result = match process {
            Ok(process) => streams(session, process, &mut messages, &sender, &gone).await,
            Err(why) => Some(Err(why)),
        };
        if let Some(status) = result.and_then(|result| session.status(&result)) {
            // Fails if the client has disconnected; it needs no status then.
            let _ = sender.send(status).await;
        }
        drop(sender);
    };
    tokio::join!(write, work);
}

type Messages = futures::stream::SplitStream<Socket>;

/// Copies the streams until the process ends. `None`: the client disconnected first.
async fn streams(
    session: Session,
    process: Attached,
    messages: &mut Messages,
    sender: &mpsc::Sender<Message>,
    gone: &CancellationToken,
) -> Option<Result<i32, String>> {
    let Session { subresource, wanted, protocol } = session;
    let Attached { stdin, stdout, stderr, resize, mut exit } = process;
    // An empty first message tells the client that the streams are open.
    let first = match (wanted.stdout, wanted.stderr) {
        (true, _) => channels::STDOUT,
        (false, true) => channels::STDERR,
        (false, false) => channels::ERROR,
    };
    // A disconnected client is detected below.
    let _ = sender.send(channels::frame(first, b"", protocol)).await;
    let outputs = async {
        let out = pump(stdout, channels::STDOUT, wanted.stdout, protocol, sender);
        let err = pump(stderr, channels::STDERR, wanted.stderr, protocol, sender);
        tokio::join!(out, err);
    };
    let mut outputs: Option<BoxFuture<'_, ()>> = Some(outputs.boxed());
    let (input, pending) = mpsc::channel::<Bytes>(16);
    let mut feed = feed(stdin.filter(|_| wanted.stdin), pending).boxed();
    let mut listen = listen(messages, protocol, input, resize).boxed();
    let (mut left, mut fed, mut code) = (false, false, None);
    loop {
        match code.take() {
            // The client has disconnected: nobody receives the result.
            Some(_) if left => return None,
            // The output is complete; now the exit code.
            Some(result) if outputs.is_none() => return Some(result),
            other => code = other,
        }
        tokio::select! {
            result = &mut exit, if code.is_none() => code = Some(result.map_err(|e| e.to_string())),
            () = ended(&mut outputs) => outputs = None,
            () = &mut feed, if !fed => fed = true,
            () = &mut listen, if !left => {
                left = true;
                gone.cancel();
                match subresource {
                    Subresource::Attach => {
                        drop(outputs);
                        if !fed {
                            let _ = tokio::time::timeout(LAST_INPUT, feed).await;
                        }
                        return None;
                    }
                    // Dropping the terminal makes the kernel send SIGHUP.
                    Subresource::Exec if wanted.tty => outputs = None,
                    Subresource::Exec => {}
                }
            }
        }
    }
}

/// Waits for the optional task `work`; never resolves without one.
async fn ended(work: &mut Option<BoxFuture<'_, ()>>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// Reads the client's messages until it disconnects.
async fn listen(
    messages: &mut Messages,
    protocol: &'static Protocol,
    input: mpsc::Sender<Bytes>,
    resize: Option<mpsc::Sender<k8s_runtime::TerminalSize>>,
) {
    let mut input = Some(input);
    while let Some(Ok(message)) = messages.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
        match channels::parse(&message, protocol, protocol.name == V5) {
            Input::Stdin(data) => {
                if let Some(input) = &input {
                    // The process may have closed its standard input; that is not an error.
                    let _ = input.send(data).await;
                }
            }
            Input::StdinClosed => input = None,
            Input::Resize(size) => {
                if let Some(resize) = &resize {
                    let _ = resize.send(size).await;
                }
            }
            Input::Other => {}
        }
    }
}

/// Sends an output to the client. After the client has disconnected, the output is read and discarded, so
/// that the process does not block.
async fn pump(
    stream: Option<Box<dyn AsyncRead + Send + Unpin>>,
    channel: u8,
    wanted: bool,
    protocol: &'static Protocol,
    sender: &mpsc::Sender<Message>,
) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; CHUNK];
    let mut taken = wanted;
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) if taken => {
                let message = channels::frame(channel, &buffer[..n], protocol);
                taken = sender.send(message).await.is_ok();
            }
            Ok(_) => {}
        }
    }
}

async fn feed(stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>, mut pending: mpsc::Receiver<Bytes>) {
    let Some(mut stdin) = stdin else {
        while pending.recv().await.is_some() {}
        return;
    };
    while let Some(data) = pending.recv().await {
        if stdin.write_all(&data).await.is_err() || stdin.flush().await.is_err() {
            break;
        }
    }
    // The end of the client's data closes standard input.
    let _ = stdin.shutdown().await;
    drop(stdin);
    while pending.recv().await.is_some() {}
}
