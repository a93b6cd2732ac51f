//! How answers are encoded.

use std::io::Read;

use serde_json::{Value, json};

use crate::support::{Answer, ask, done, server};

async fn get(server: &k8s_apiserver::ApiServer, path: &str, encoding: &str) -> (Option<String>, Answer) {
    let request = http::Request::builder()
        .uri(path)
        .header("authorization", "Bearer admin")
        .header("accept-encoding", encoding)
        .body(Vec::new())
        .unwrap();
    let answer = ask(server, request).await;
    (answer.headers.get("content-encoding").map(|v| v.to_str().unwrap().to_owned()), answer)
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_ask() {
    let server = server().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for i in 0..100 {
        let object =
            json!({"metadata": {"name": format!("m{i:03}")}, "data": {"d": "lorem ipsum ".repeat(300)}});
        done(&server, "POST", maps, &object).await;
    }
    let (plain, whole) = get(&server, maps, "identity").await;
    assert_eq!(plain, None);
    let (gzip, packed) = get(&server, maps, "br, gzip;q=0.8").await;
    assert_eq!(gzip.as_deref(), Some("gzip"));
    assert!(packed.bytes.len() * 4 < whole.bytes.len(), "{} of {}", packed.bytes.len(), whole.bytes.len());
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&packed.bytes[..]).read_to_end(&mut text).unwrap();
    assert_eq!(text, whole.bytes);
    assert_eq!(get(&server, &format!("{maps}/m000"), "gzip").await.0, None, "too small to be worth it");
    assert_eq!(get(&server, maps, "gzip;q=0").await.0, None);
    let (watch, events) = get(&server, &format!("{maps}?watch=1&timeoutSeconds=1"), "gzip").await;
    assert_eq!(watch, None);
    assert_eq!(events.json().as_array().map(Vec::len), Some(100));
    let first: Value = events.json()[0].clone();
    assert_eq!(first["type"], "ADDED");
}
