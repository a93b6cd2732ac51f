//! Requests to a real HTTP server: what it may do wrong.

use std::time::Duration;

use k8s_core::client::RemoteConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// Reads one request; returns its first line and its body.
pub(super) async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some((head.lines().next().unwrap_or_default().to_owned(), body))
}

/// Serves answers by the path of the request; returns the URL.
async fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Some((line, body)) = request(&mut stream).await {
                    let path = line.split(' ').nth(1).unwrap_or_default();
                    let (code, answer) = match path.trim_start_matches("/v1/") {
                        "echo" => ("200 OK", body),
                        "created" => ("201 Created", b"{}".to_vec()),
                        "moved" => ("307 Temporary Redirect\r\nlocation: /v1/echo", Vec::new()),
                        "fails" => ("500 Internal Server Error", b"oops".to_vec()),
                        "long" => {
                            // Without an end: the reader must stop by itself.
                            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                            while stream.write_all(&[b' '; 1 << 16]).await.is_ok() {}
                            return;
                        }
                        "slow" => {
                            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
                            std::future::pending().await
                        }
                        "cut" => {
                            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
                            return;
                        }
                        other => panic!("{other}"),
                    };
                    let head = format!("HTTP/1.1 {code}\r\ncontent-length: {}\r\n\r\n", answer.len());
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    format!("http://{address}/v1")
}

fn http(server: &str, timeout: Duration) -> Http {
    Http::new(&RemoteConfig { server: server.to_owned(), ..RemoteConfig::default() }, timeout).unwrap()
}

async fn posted(server: &str, timeout: u64, verb: &str) -> Result<String, String> {
    let answer = http(server, Duration::from_millis(timeout)).post(verb, b"{\"a\": 1}".to_vec()).await;
    answer.map(|body| String::from_utf8(body).unwrap()).map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_url_is_prefix_and_verb_and_only_200_is_an_answer() {
    let url = serve().await;
    assert_eq!(posted(&url, 5000, "echo").await.unwrap(), "{\"a\": 1}");
    assert_eq!(posted(&format!("{url}//"), 5000, "echo").await.unwrap(), "{\"a\": 1}");
    for (verb, code) in [("created", 201), ("moved", 307), ("fails", 500)] {
        let want = format!("failed {verb} with extender at URL {url}/{verb}, code {code}");
        assert_eq!(posted(&url, 5000, verb).await.unwrap_err(), want);
    }
}

#[tokio::test]
async fn slow_long_and_broken_answers_end() {
    let url = serve().await;
    let error = posted(&url, 100, "slow").await.unwrap_err();
    assert_eq!(error, format!("Post \"{url}/slow\": no answer within 100ms"));
    let error = posted(&url, 30_000, "long").await.unwrap_err();
    assert_eq!(error, format!("Post \"{url}/long\": the answer is longer than 33554432 bytes"));
    let error = posted(&url, 5000, "cut").await.unwrap_err();
    assert!(error.starts_with(&format!("Post \"{url}/cut\": ")), "{error}");
}

#[tokio::test]
async fn a_dead_server_is_named_with_the_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = posted(&url, 5000, "filter").await.unwrap_err();
    assert!(error.starts_with(&format!("Post \"{url}/filter\": ")), "{error}");
    assert!(error.contains("refused"), "{error}");
}
