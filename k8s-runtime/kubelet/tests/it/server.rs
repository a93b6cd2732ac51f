//! The kubelet's API over real HTTP connections in memory.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, Bytes};
use flate2::{Compress, Compression, FlushCompress};
use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest, protocol::Role},
};

use crate::{Node, one};

type Connection = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect(node: &Node) -> Connection {
    let (here, there) = tokio::io::duplex(64 * 1024);
    let api = node.kubelet.as_ref().unwrap().api();
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.handle(request).await) }
        });
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(TokioIo::new(there), service).with_upgrades().await;
    });
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(here)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub async fn get(node: &Node, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Empty::new()).unwrap();
    let answer = connect(node).await.send_request(request).await.unwrap();
    let code = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn socket(
    node: &Node,
    path: &str,
    protocol: &str,
) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
    let (mut parts, ()) = format!("ws://x{path}").into_client_request().unwrap().into_parts();
    parts.uri = path.parse().unwrap();
    if !protocol.is_empty() {
        parts.headers.insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let answer = connect(node).await.send_request(Request::from_parts(parts, Empty::new())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS, "{protocol:?}");
    let agreed = answer.headers().get("sec-websocket-protocol").map(|v| v.to_str().unwrap());
    assert_eq!(agreed, protocol.split(',').next().filter(|p| !p.is_empty()));
    let upgraded = hyper::upgrade::on(answer).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

/// Returns channel and data of a message.
fn channel(message: &Message) -> Option<(u8, Vec<u8>)> {
    match message {
        Message::Binary(data) => Some((data[0], data[1..].to_vec())),
        Message::Text(text) => Some((text.as_bytes()[0] - b'0', STANDARD.decode(&text[1..]).unwrap())),
        _ => None,
    }
}

/// Returns all data by channel, and whether the messages were text.
async fn everything(mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) -> (Vec<Vec<u8>>, bool) {
    let (mut channels, mut is_text) = (vec![Vec::new(); 5], false);
    while let Some(Ok(message)) = socket.next().await {
        is_text |= matches!(message, Message::Text(_));
        if let Some((channel, data)) = channel(&message) {
            channels[usize::from(channel)].extend_from_slice(&data);
        }
    }
    (channels, is_text)
}

async fn running(node: &Node) {
    node.create("p", one(&["run"])).await;
    node.until_phase("p", "Running").await;
}

#[tokio::test]
async fn logs_and_their_failures() {
    let node = Node::start().await;
    running(&node).await;
    let log = node.runtime.container("c").unwrap().spec.log_path;
    std::fs::write(&log, "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout F two\n").unwrap();
    assert_eq!(get(&node, "/containerLogs/ns/p/c").await, (StatusCode::OK, "one\ntwo\n".into()));
    assert_eq!(get(&node, "/containerLogs/ns/p/c?tailLines=1").await.1, "two\n");
    for (path, code, message) in [
        (
            "/containerLogs/ns/p/c?previous=true",
            400,
            "previous terminated container \"c\" in pod \"p\" not found",
        ),
        ("/containerLogs/ns/p/c?tailLines=x", 400, "invalid value \"x\" for tailLines"),
        ("/containerLogs/ns/p/d", 404, "container \"d\" not found in pod \"p\""),
        ("/containerLogs/ns/q/c", 404, "pods \"q\" not found"),
        ("/nonsense", 404, "the server could not find the requested resource"),
    ] {
        let (have, text) = get(&node, path).await;
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((have.as_u16(), status["message"].as_str().unwrap()), (code, message), "{path}");
    }
}

#[tokio::test]
async fn following_a_log_ends_with_the_container() {
    use std::io::Write;
    let node = Node::start().await;
    running(&node).await;
    let container = node.runtime.container("c").unwrap();
    let log = container.spec.log_path;
    let mut file = std::fs::File::create(&log).unwrap();
    let request = Request::get("/containerLogs/ns/p/c?follow=true").body(Empty::new()).unwrap();
    let mut body = connect(&node).await.send_request(request).await.unwrap().into_body();
    let next = async |body: &mut hyper::body::Incoming| {
        let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("in time");
        frame.map(|f| String::from_utf8(f.unwrap().into_data().unwrap().to_vec()).unwrap())
    };
    writeln!(file, "2026-01-01T00:00:01Z stdout F one").unwrap();
    assert_eq!(next(&mut body).await.unwrap(), "one\n");
    // The stream continues after a rotation.
    std::fs::rename(&log, log.with_extension("log.20260101-000000")).unwrap();
    writeln!(file, "2026-01-01T00:00:02Z stdout F two").unwrap();
    assert_eq!(next(&mut body).await.unwrap(), "two\n");
    std::fs::write(&log, "2026-01-01T00:00:03Z stdout F three\n").unwrap();
    assert_eq!(next(&mut body).await.unwrap(), "three\n");
    node.runtime.end(&container.id, 0);
    assert_eq!(next(&mut body).await, None);
}

#[tokio::test]
async fn exec_carries_streams_and_the_exit_code() {
    let node = Node::start().await;
    running(&node).await;
    node.runtime.set_exec("false", 7);
    let path = "/exec/ns/p/c?command=false&output=1&error=1";
    let mut socket = socket(&node, path, "v5.channel.k8s.io,v4.channel.k8s.io").await;
    let mut channels = vec![Vec::new(); 4];
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message {
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
    }
    assert_eq!(channels[1], b"false");
    let status: Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "7"}]));
}

#[tokio::test]
async fn exec_takes_input_until_it_is_closed() {
    let node = Node::start().await;
    running(&node).await;
    let path = "/exec/ns/p/c?command=cat&input=1&output=1";
    let mut socket = socket(&node, path, "v5.channel.k8s.io").await;
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(b"\xff\0"))).await.unwrap();
    let mut output = Vec::new();
    let mut status = Value::Null;
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) if data[0] == 1 => output.extend_from_slice(&data[1..]),
            Message::Binary(data) if data[0] == 3 => status = serde_json::from_slice(&data[1..]).unwrap(),
            _ => {}
        }
    }
    assert_eq!(output, b"hello");
    assert_eq!(status["status"], "Success");
}

#[tokio::test]
async fn exec_refuses() {
    let node = Node::start().await;
    running(&node).await;
    for (path, code) in [
        ("/exec/ns/p/nope?command=x&output=1", 404),
        ("/exec/ns/p/c?command=x", 400),
        ("/exec/ns/p/c?output=1", 400),
        ("/exec/ns/p/c?command=x&output=1", 400),
    ] {
        assert_eq!(get(&node, path).await.0.as_u16(), code, "{path}");
    }
}

/// Builds a `SYN_STREAM` frame; header compression is one stream for all frames.
fn syn_stream(zlib: &mut Compress, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut plain = Vec::new();
    plain.put_u32(headers.len() as u32);
    for text in headers.iter().flat_map(|(k, v)| [k, v]) {
        plain.put_u32(text.len() as u32);
        plain.put_slice(text.as_bytes());
    }
    let mut compressed = Vec::with_capacity(1024);
    zlib.compress_vec(&plain, &mut compressed, FlushCompress::Sync).unwrap();
    let mut frame = Vec::new();
    frame.put_u16(0x8003);
    frame.put_u16(1);
    frame.put_u32(compressed.len() as u32 + 10);
    frame.put_u32(id);
    frame.put_u32(0);
    frame.put_u16(0);
    frame.extend(compressed);
    frame
}

#[tokio::test]
async fn port_forward_through_spdy() {
    let node = Node::start().await;
    running(&node).await;
    let mut socket = socket(&node, "/portForward/ns/p", "SPDY/3.1+portforward.k8s.io").await;
    // A zlib stream without the dictionary is valid as well.
    let mut zlib = Compress::new(Compression::fast(), true);
    for (request, first, port) in [("0", 1, "80"), ("1", 5, "1")] {
        for (id, kind) in [(first, "error"), (first + 2, "data")] {
            let headers = [("port", port), ("requestid", request), ("streamtype", kind)];
            let frame = syn_stream(&mut zlib, id, &headers);
            // A frame may be split at any byte.
            let (a, b) = frame.split_at(5);
            socket.send(Message::Binary(Bytes::copy_from_slice(a))).await.unwrap();
            socket.send(Message::Binary(Bytes::copy_from_slice(b))).await.unwrap();
        }
    }
    let mut hello = Vec::new();
    hello.put_u32(3);
    hello.put_u32(5);
    hello.put_slice(b"hello");
    socket.send(Message::Binary(hello.into())).await.unwrap();
    let mut raw = Vec::new();
    let (mut echoed, mut refused) = (Vec::new(), Vec::new());
    while echoed.len() < 5 || refused.is_empty() {
        let message = tokio::time::timeout(Duration::from_secs(5), socket.next()).await.expect("in time");
        let Some(Ok(Message::Binary(data))) = message else { panic!("{message:?}") };
        raw.extend_from_slice(&data);
        while raw.len() >= 8 {
            let length = ((&raw[4..8]).get_u32() & 0xff_ffff) as usize;
            if raw.len() < 8 + length {
                break;
            }
            let frame: Vec<u8> = raw.drain(..8 + length).collect();
            match (&frame[..4]).get_u32() {
                3 => echoed.extend_from_slice(&frame[8..]),
                5 => refused.extend_from_slice(&frame[8..]),
                _ => {}
            }
        }
    }
    assert_eq!(echoed, b"hello");
    let refused = String::from_utf8(refused).unwrap();
    assert!(refused.starts_with("error forwarding port 1 to pod s1"), "{refused}");
}

#[tokio::test]
async fn figures() {
    let node = Node::start().await;
    running(&node).await;
    let (code, text) = get(&node, "/pods").await;
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code.as_u16(), &list["items"][0]["status"]["phase"]), (200, &json!("Running")));
    assert!(get(&node, "/metrics").await.1.contains("kubelet_running_pods 1\n"));
    let (code, text) = get(&node, "/stats/summary").await;
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code.as_u16(), &summary["node"]["nodeName"]), (200, &json!("n1")));
    let whole = 100_i64 << 30;
    for disk in [&summary["node"]["fs"], &summary["node"]["runtime"]["imageFs"]] {
        let figures = ["availableBytes", "capacityBytes", "usedBytes", "inodesFree", "inodes"];
        assert_eq!(figures.map(|name| disk[name].as_i64().unwrap()), [whole, whole, 0, whole, whole]);
    }
    assert_eq!(
        (&summary["node"]["rlimit"]["maxpid"], &summary["node"]["rlimit"]["curproc"]),
        (&json!(whole), &json!(0))
    );
    assert_eq!(get(&node, "/healthz").await.1, "ok");
}

/// The fields that metrics-server and an autoscaler read.
#[tokio::test(start_paused = true)]
async fn usage_of_node_and_pods() {
    let node = Node::start().await;
    running(&node).await;
    let started = node.container("p", "/state/running/startedAt");
    let read = async || serde_json::from_str::<Value>(&get(&node, "/stats/summary").await.1).unwrap();
    // The fake container uses half a CPU and 64 MiB.
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let summary = read().await;
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"]["name"], "p");
        assert_eq!(pod["podRef"]["uid"], node.pod("p").unwrap()["metadata"]["uid"]);
        assert_eq!(pod["startTime"], node.pod("p").unwrap()["status"]["startTime"]);
        let container = &pod["containers"][0];
        assert_eq!((&container["name"], &container["startTime"]), (&json!("c"), &started));
        for of in [pod, container] {
            let rate = of["cpu"]["usageNanoCores"].as_u64().unwrap();
            assert!((490_000_000..=510_000_000).contains(&rate), "{of}");
            assert_eq!(of["memory"]["workingSetBytes"], 64 << 20);
        }
        assert!(summary["node"]["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap() > 0);
        assert!(summary["node"]["memory"]["workingSetBytes"].as_u64().unwrap() > 0);
    }
    // A second caller within a second gets the same sample.
    let before = node.runtime.stats_read();
    assert_eq!(read().await["pods"], read().await["pods"]);
    assert!(node.runtime.stats_read() <= before + 1);
    let text = get(&node, "/metrics/resource").await.1;
    let labels = r#"{container="c",namespace="ns",pod="p"}"#;
    let sample = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let numbers: Vec<f64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        numbers
    };
    let now = node.clock.now().as_millisecond() as f64;
    let [cpu, at] = sample(&format!("container_cpu_usage_seconds_total{labels}"))[..] else {
        panic!("{text}")
    };
    assert!((9.0..=11.0).contains(&cpu) && at <= now && at > now - 2000.0, "{cpu} {at} {now}");
    let [memory, _] = sample(&format!("container_memory_working_set_bytes{labels}"))[..] else {
        panic!("{text}")
    };
    assert_eq!(memory, 67_108_864.0);
    let [start] = sample(&format!("container_start_time_seconds{labels}"))[..] else { panic!("{text}") };
    assert!((1_800_000_000.0..1_800_000_010.0).contains(&start), "{start}");
    for name in ["node_cpu_usage_seconds_total ", "node_memory_working_set_bytes "] {
        assert!(sample(name)[0] > 0.0, "{text}");
    }
    assert!(text.contains("pod_memory_working_set_bytes{namespace=\"ns\",pod=\"p\"} 67108864 "), "{text}");
}

const REMOTE: [&str; 6] = [
    "",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "v5.channel.k8s.io",
];

#[tokio::test]
async fn exec_speaks_every_subprotocol() {
    let node = Node::start().await;
    running(&node).await;
    node.runtime.set_exec("false", 7);
    for protocol in REMOTE {
        let stream = socket(&node, "/exec/ns/p/c?command=false&output=1&error=1", protocol).await;
        let (channels, is_text) = everything(stream).await;
        assert_eq!(channels[1], b"false", "{protocol}");
        assert_eq!(is_text, protocol.contains("base64"), "{protocol}");
        let status = String::from_utf8(channels[3].clone()).unwrap();
        if protocol.starts_with('v') {
            assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["reason"], "NonZeroExitCode");
        } else {
            assert_eq!(status, "command terminated with non-zero exit code: exit status 7", "{protocol}");
        }
        let mut stream = socket(&node, "/exec/ns/p/c?command=cat&input=1&output=1", protocol).await;
        stream.send(message(protocol, 0, b"hello")).await.unwrap();
        let mut output = Vec::new();
        while output.len() < 5 {
            let next = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.expect("in time");
            if let Some((1, data)) = channel(&next.unwrap().unwrap()) {
                output.extend_from_slice(&data);
            }
        }
        assert_eq!(output, b"hello", "{protocol}");
    }
}

fn message(protocol: &str, channel: u8, data: &[u8]) -> Message {
    if protocol.contains("base64") {
        return Message::Text(format!("{channel}{}", STANDARD.encode(data)).into());
    }
    Message::Binary([&[channel], data].concat().into())
}

#[tokio::test]
async fn what_was_sent_before_a_close_arrives_and_the_command_goes_on() {
    let node = Node::start().await;
    running(&node).await;
    for (n, polite) in [(0, true), (1, false)] {
        let path = "/exec/ns/p/c?command=collect&input=1&output=1";
        let mut stream = socket(&node, path, "v4.channel.k8s.io").await;
        let text = format!("hello, this is number {n} and more than fits into the pipe");
        stream.send(message("", 0, text.as_bytes())).await.unwrap();
        if polite {
            stream.close(None).await.unwrap();
        }
        drop(stream);
        let want = format!("collected {text}");
        for _ in 0..500 {
            if node.runtime.log().contains(&want) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(node.runtime.log().contains(&want), "{:?}", node.runtime.log());
    }
}

#[tokio::test]
async fn attach_ends_with_success_whatever_the_exit_code() {
    let node = Node::start().await;
    running(&node).await;
    for protocol in REMOTE {
        let stream = socket(&node, "/attach/ns/p/c?output=1", protocol).await;
        let (channels, _) = everything(stream).await;
        assert_eq!(channels[1], b"attached");
        let want: &[u8] =
            if protocol.starts_with('v') { br#"{"metadata":{},"status":"Success"}"# } else { b"" };
        assert_eq!(channels[3], want, "{protocol}");
    }
}

#[tokio::test]
async fn port_forward_speaks_every_subprotocol() {
    let node = Node::start().await;
    running(&node).await;
    for protocol in ["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let mut stream = socket(&node, "/portForward/ns/p?port=80,1", protocol).await;
        stream.send(message(protocol, 0, b"hello")).await.unwrap();
        let mut channels = vec![Vec::new(); 4];
        while channels[0].len() < 7 || channels[3].len() < 3 {
            let next = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.expect("in time");
            let (channel, data) = channel(&next.unwrap().unwrap()).unwrap();
            channels[usize::from(channel)].extend_from_slice(&data);
        }
        assert_eq!(channels[0], b"\x50\0hello", "{protocol}");
        assert_eq!((&channels[1][..], &channels[2][..]), (&b"\x50\0"[..], &b"\x01\0"[..]));
        assert!(channels[3].starts_with(b"\x01\0error forwarding port 1"), "{protocol}");
    }
    for (query, why) in [
        ("", "query parameter \"port\" is required"),
        ("?port=", "query parameter \"port\" cannot be empty"),
        ("?port=0", "port \"0\" must be > 0"),
        ("?port=x", "unable to parse \"x\" as a port"),
    ] {
        let path = format!("/portForward/ns/p{query}");
        let (mut parts, ()) = format!("ws://x{path}").into_client_request().unwrap().into_parts();
        parts.uri = path.parse().unwrap();
        let request = Request::from_parts(parts, Empty::new());
        let answer = connect(&node).await.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{query}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["message"], why);
    }
}

#[tokio::test]
async fn logs_over_a_websocket() {
    let node = Node::start().await;
    running(&node).await;
    let log = node.runtime.container("c").unwrap().spec.log_path;
    std::fs::write(&log, "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout F two\n").unwrap();
    for protocol in ["", "binary.k8s.io", "base64.binary.k8s.io"] {
        let mut stream = socket(&node, "/containerLogs/ns/p/c", protocol).await;
        let mut all = Vec::new();
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) if !protocol.contains("base64") => all.extend_from_slice(&data),
                Message::Text(text) => all.extend_from_slice(&STANDARD.decode(text.as_bytes()).unwrap()),
                Message::Close(_) => {}
                other => panic!("{protocol}: {other:?}"),
            }
        }
        assert_eq!(String::from_utf8(all).unwrap(), "one\ntwo\n", "{protocol}");
    }
}
