//! `exec` and `attach`: a process's streams over a WebSocket (`v4.channel.k8s.io`, `v5.channel.k8s.io`).

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use k8s_core::{client::Body, meta::ObjectExt, status::ApiStatus};
use k8s_runtime::{Attached, ContainerId, ExecRequest};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    channels::{self, Input},
    locate,
    query::Query,
    upgrade::{self, Socket},
};
use crate::context::Context;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Exec,
    Attach,
}

const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const CHUNK: usize = 32 * 1024;

/// Which streams a client wants.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

pub(super) fn serve<B: Send + 'static>(
    cx: &Arc<Context>,
    what: What,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<B>,
) -> Result<Response<Body>, ApiStatus> {
    let (object, view) = locate::pod(cx, namespace, pod)?;
    let id = locate::running(&view, pod, container)?;
    let query = Query::of(request.uri());
    // The kubelet's own names, and those of the API server's clients.
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
    match what {
        What::Exec if command.is_empty() => return Err(ApiStatus::bad_request("you must specify a command")),
        What::Exec => {}
        What::Attach => {
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
    tracing::debug!(pod = %object.key(), container, ?what, "streams");
    let cx = cx.clone();
    upgrade::accept(request, &PROTOCOLS, move |socket, _| async move {
        let process = open(&cx, what, &id, command, wanted).await;
        run(socket, process, wanted).await;
    })
}

async fn open(
    cx: &Context,
    what: What,
    id: &ContainerId,
    command: Vec<String>,
    wanted: Wanted,
) -> Result<Attached, String> {
    let result = match what {
        What::Exec => {
            let request = ExecRequest { command, stdin: wanted.stdin, tty: wanted.tty, timeout: None };
            cx.runtime.exec(id, &request).await
        }
        What::Attach => cx.runtime.attach(id).await,
    };
    result.map_err(|e| {
        let verb = if what == What::Exec { "executing command in" } else { "attaching to" };
        format!("error {verb} container: {e}")
    })
}

/// Carries bytes between a client and a process until the process has ended or the client is gone.
async fn run(socket: Socket, process: Result<Attached, String>, wanted: Wanted) {
    let (mut sink, mut messages) = socket.split();
    let (sender, mut outgoing) = mpsc::channel::<Message>(16);
    let write = async {
        while let Some(message) = outgoing.recv().await {
            sink.send(message).await.ok()?;
        }
        // The client is told that this is the end.
        sink.send(upgrade::farewell()).await.ok()?;
        sink.close().await.ok()
    };
    let work = async {
        let result = match process {
            Ok(process) => streams(process, wanted, &mut messages, &sender).await,
            Err(why) => Some(Err(why)),
        };
        if let Some(result) = result {
            let status = channels::ended(&result).to_string();
            // A client that left needs no status.
            let _ = sender.send(Message::Binary(channels::frame(channels::ERROR, status.as_bytes()))).await;
        }
        drop(sender);
    };
    tokio::join!(write, work);
}

type Messages = futures::stream::SplitStream<Socket>;

/// `None`: the client left first.
async fn streams(
    process: Attached,
    wanted: Wanted,
    messages: &mut Messages,
    sender: &mpsc::Sender<Message>,
) -> Option<Result<i32, String>> {
    let Attached { stdin, stdout, stderr, resize, exit } = process;
    // An empty message tells the client that the streams are there.
    let first = if wanted.stdout { channels::STDOUT } else { channels::STDERR };
    sender.send(Message::Binary(channels::frame(first, b""))).await.ok()?;
    let outputs = async {
        let out = pump(stdout, channels::STDOUT, wanted.stdout, sender);
        let err = pump(stderr, channels::STDERR, wanted.stderr, sender);
        tokio::join!(out, err);
    };
    let (input, pending) = mpsc::channel::<Bytes>(64);
    let feed = feed(stdin.filter(|_| wanted.stdin), pending);
    let listen = async {
        let mut input = Some(input);
        while let Some(Ok(message)) = messages.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
                Message::Close(_) => break,
                _ => continue,
            };
            match channels::parse(&data) {
                Input::Stdin(data) => {
                    if let Some(input) = &input {
                        // A process that no longer reads is no reason to end.
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
    };
    let finish = async {
        // All of the output, then the code.
        let (code, ()) = tokio::join!(exit, outputs);
        code.map_err(|e| e.to_string())
    };
    let feed_forever = async {
        feed.await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        result = finish => Some(result),
        () = listen => None,
        () = feed_forever => None,
    }
}

async fn pump(
    stream: Option<Box<dyn AsyncRead + Send + Unpin>>,
    channel: u8,
    wanted: bool,
    sender: &mpsc::Sender<Message>,
) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) if wanted => {
                let message = Message::Binary(channels::frame(channel, &buffer[..n]));
                if sender.send(message).await.is_err() {
                    return;
                }
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
    // The end of what the client sends is the end of standard input.
    let _ = stdin.shutdown().await;
    drop(stdin);
    while pending.recv().await.is_some() {}
}
