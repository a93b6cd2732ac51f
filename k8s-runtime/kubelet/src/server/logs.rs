//! `GET /containerLogs/{namespace}/{pod}/{container}`, as a response body or as WebSocket messages.

#![expect(clippy::disallowed_methods, reason = "the task ends with the reader of its response")]

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use k8s_core::{
    client::{Body, BoxError},
    meta::ObjectExt,
    status::ApiStatus,
};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::{
    locate,
    query::Query,
    text,
    upgrade::{self, Protocol, Socket},
};
use crate::{
    context::Context,
    logs::{
        LogFile,
        read::{self, Options, Whose},
    },
    types::Timestamp,
};

fn number<T: std::str::FromStr>(query: &Query, name: &str) -> Result<Option<T>, ApiStatus> {
    query
        .get(name)
        .filter(|v| !v.is_empty())
        .map(|v| v.parse().map_err(|_| ApiStatus::bad_request(format!("invalid value {v:?} for {name}"))))
        .transpose()
}

fn options(query: &Query, now: Timestamp) -> Result<Options, ApiStatus> {
    let since_time: Option<Timestamp> = number(query, "sinceTime")?;
    let since_seconds: Option<i64> = number(query, "sinceSeconds")?;
    let ago = since_seconds.and_then(|s| now.saturating_add(jiff::SignedDuration::from_secs(-s)).ok());
    let stream = match query.get("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some("stdout".to_owned()),
        Some("Stderr") => Some("stderr".to_owned()),
        Some(other) => return Err(ApiStatus::bad_request(format!("invalid value {other:?} for stream"))),
    };
    Ok(Options {
        follow: query.flag(&["follow"]),
        tail: number(query, "tailLines")?,
        since: since_time.or(ago),
        timestamps: query.flag(&["timestamps"]),
        limit: number(query, "limitBytes")?,
        stream,
    })
}

/// Subprotocols. A message contains log bytes without a channel number.
const PROTOCOLS: [Protocol; 3] = [
    Protocol { name: "binary.k8s.io", base64: false },
    Protocol { name: "base64.binary.k8s.io", base64: true },
    Protocol { name: "", base64: false },
];

pub(super) fn serve<B: Send + 'static>(
    cx: &Arc<Context>,
    namespace: &str,
    pod_name: &str,
    name: &str,
    request: Request<B>,
) -> Result<Response<Body>, ApiStatus> {
    let (pod, view) = locate::pod(cx, namespace, pod_name)?;
    let container = locate::container(&view, pod_name, name)?;
    let query = Query::of(&request);
    let options = options(&query, cx.clock.now())?;
    let previous = query.flag(&["previous"]);
    let log = if previous { container.previous_log.clone() } else { container.log.clone() };
    let Some(log) = log.filter(|l| !l.as_os_str().is_empty()) else {
        return Err(ApiStatus::bad_request(if previous {
            format!("previous terminated container {name:?} in pod {pod_name:?} not found")
        } else {
            let why = container.waiting.as_deref().unwrap_or("ContainerCreating");
            format!("container {name:?} in pod {pod_name:?} is waiting to start: {why}")
        }));
    };
    let whose = match &container.id {
        Some(id) if !previous => Some(Whose {
            cx: cx.clone(),
            pod_uid: pod.uid().to_owned(),
            container: name.to_owned(),
            id: id.clone(),
        }),
        _ => None,
    };
    let log = LogFile::new(&cx.config.log_dir, &log);
    if upgrade::is_asked(request.headers()) {
        return upgrade::accept(request, &PROTOCOLS, move |socket, protocol| async move {
            by_messages(socket, protocol, log, options, whose).await;
        });
    }
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(read::send(log, options, whose, sender));
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let item = receiver.recv().await?;
        Some((item.map(http_body::Frame::data).map_err(|e| Box::new(e) as BoxError), receiver))
    });
    let mut response = text("");
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

/// Sends a log over a WebSocket until it ends or the client disconnects. Messages of the client are ignored.
async fn by_messages(
    socket: Socket,
    protocol: &'static Protocol,
    log: LogFile,
    options: Options,
    whose: Option<Whose>,
) {
    let message = |bytes: Bytes| match protocol.base64 {
        true => Message::Text(STANDARD.encode(&bytes).into()),
        false => Message::Binary(bytes),
    };
    let (mut sink, mut messages) = socket.split();
    let (sender, mut receiver) = mpsc::channel(16);
    let write = async move {
        // An empty first message, as upstream's WebSocket reader sends it.
        sink.send(message(Bytes::new())).await.ok()?;
        while let Some(Ok(bytes)) = receiver.recv().await {
            sink.send(message(bytes)).await.ok()?;
        }
        sink.send(upgrade::close_frame()).await.ok()?;
        sink.close().await.ok()
    };
    let listen = async {
        while let Some(Ok(message)) = messages.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
        }
    };
    let send = async {
        // The receiver is dropped when the client disconnects.
        let ((), sent) = tokio::join!(read::send(log, options, whose, sender), write);
        sent
    };
    tokio::select! {
        _ = send => {}
        () = listen => {}
    }
}
