//! Encodings of responses.

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

async fn accepting(server: &k8s_apiserver::ApiServer, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().uri(path).header("authorization", "Bearer admin");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    ask(server, request.body(Vec::new()).unwrap()).await
}

#[tokio::test]
async fn yaml_is_given_to_those_who_ask_and_means_the_same() {
    let server = server().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    // Strings that YAML would read as another type if they were not quoted.
    let tricky = [
        "1",
        "true",
        "null",
        "~",
        "- a",
        "a: b",
        "",
        " x ",
        "1e3",
        "0x1f",
        "2026-01-01",
        "a\nb\n",
        "#c",
        "\u{7f}\t",
        "'",
        "\"",
    ];
    let data: serde_json::Map<String, Value> =
        tricky.iter().enumerate().map(|(i, text)| (format!("k{i}"), Value::from(*text))).collect();
    done(&server, "POST", maps, &json!({"metadata": {"name": "m"}, "data": data})).await;
    for path in [
        maps.to_owned(),
        format!("{maps}/m"),
        format!("{maps}/none"),
        "/apis/apps/v1".into(),
        "/version".into(),
    ] {
        let json = accepting(&server, &path, &[]).await;
        let yaml = accepting(&server, &path, &[("accept", "application/json;q=0.5, application/yaml")]).await;
        assert_eq!(yaml.status, json.status, "{path}");
        assert_eq!(yaml.headers["content-type"], "application/yaml", "{path}");
        let text = std::str::from_utf8(&yaml.bytes).unwrap();
        assert!(!text.starts_with('{'), "{text}");
        assert_eq!(serde_saphyr::from_str::<Value>(text).unwrap(), json.json(), "{path}");
    }
    let watch = accepting(&server, &format!("{maps}?watch=1"), &[("accept", "application/yaml")]).await;
    assert_eq!(watch.status, 406);
}

#[tokio::test]
async fn discovery_and_openapi_are_not_sent_twice() {
    let server = server().await;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for path in ["/apis", "/api", "/openapi/v3/api/v1"] {
        let first = accepting(&server, path, &[("accept", aggregated)]).await;
        let tag = first.headers["etag"].to_str().unwrap().to_owned();
        let again = accepting(&server, path, &[("accept", aggregated), ("if-none-match", &tag)]).await;
        assert_eq!((again.status.as_u16(), again.bytes.len()), (304, 0), "{path}");
        assert_eq!(again.headers["etag"], tag.as_str());
    }
    let tag = accepting(&server, "/apis", &[("accept", aggregated)]).await.headers["etag"].clone();
    let crd = json!({"metadata": {"name": "things.g.example.com"}, "spec": {"group": "g.example.com", "scope": "Cluster",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    done(&server, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await;
    let known = [("accept", aggregated), ("if-none-match", tag.to_str().unwrap())];
    assert_eq!(accepting(&server, "/apis", &known).await.status, 200, "there is more to discover now");
}

#[tokio::test]
async fn every_answer_has_an_id_and_is_nobody_elses() {
    let server = server().await;
    for (path, status) in [("/api/v1/namespaces", 200), ("/api/v1/nonsense", 404), ("/nonsense", 404)] {
        let one = accepting(&server, path, &[]).await;
        let two = accepting(&server, path, &[("audit-id", "mine")]).await;
        assert_eq!(one.status, status, "{path}");
        assert_eq!(one.headers["audit-id"].len(), 36);
        assert_eq!(two.headers["audit-id"], "mine");
        assert_eq!(one.headers["cache-control"], "no-cache, private");
    }
}
