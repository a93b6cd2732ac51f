//! Pulls from a test registry in this process, with token authentication.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::*;
use crate::{
    api::Images,
    images::{ImageBuilder, ImageStore},
};

type Files = Arc<HashMap<String, Vec<u8>>>;

async fn serve(files: Files) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let files = Arc::clone(&files);
            let service = service_fn(move |request| answer(request, Arc::clone(&files), address));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

async fn answer(
    request: Request<Incoming>,
    files: Files,
    address: std::net::SocketAddr,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let authorized = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let reply =
        |status: u16, body: Vec<u8>| Response::builder().status(status).body(Full::new(Bytes::from(body)));
    let agent = request.headers().get(header::USER_AGENT).map(|v| v.as_bytes());
    let response = if files.get("user-agent").is_some_and(|wanted| agent != Some(wanted)) {
        reply(400, vec![])
    } else if path == "/token" {
        // base64 of me:secret
        match authorized == Some("Basic bWU6c2VjcmV0")
            && request.uri().query().is_some_and(|q| q.contains("scope=repository:a/b:pull"))
        {
            true => reply(200, br#"{"token":"t0ken"}"#.to_vec()),
            false => reply(403, vec![]),
        }
    } else if authorized != Some("Bearer t0ken") {
        Response::builder()
            .status(401)
            .header(
                header::WWW_AUTHENTICATE,
                format!(r#"Bearer realm="http://{address}/token",service="x y",scope="repository:a/b:pull""#),
            )
            .body(Full::default())
    } else if let Some(target) = path.strip_prefix("/v2/a/b/blobs/moved-") {
        reply(200, files.get(target).cloned().unwrap_or_default())
    } else {
        match files.get(path) {
            Some(body) => reply(200, body.clone()),
            None => reply(404, vec![]),
        }
    };
    Ok(response.expect("valid parts"))
}

/// Files of a registry with one image behind an index.
fn image(corrupt: bool) -> Files {
    let dir = tempfile::tempdir().expect("tempdir");
    let archive = dir.path().join("image.tar");
    let builder = ImageBuilder::new().content("hello", "/greeting", 0o644).entrypoint(["/greeting"]);
    builder.write_layout(&archive, "a/b:1").expect("layout");
    let mut files = HashMap::new();
    let mut tar = tar::Archive::new(fs::File::open(&archive).expect("open"));
    let mut manifest = Vec::new();
    for entry in tar.entries().expect("entries") {
        let mut entry = entry.expect("entry");
        let path = entry.path().expect("path").to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read");
        let Some(hex) = path.strip_prefix("blobs/sha256/") else { continue };
        if bytes.starts_with(b"{") && String::from_utf8_lossy(&bytes).contains("image.manifest") {
            manifest = bytes.clone();
        } else if corrupt && !bytes.starts_with(b"{") {
            bytes[0] ^= 1;
        }
        files.insert(format!("/v2/a/b/blobs/sha256:{hex}"), bytes.clone());
        files.insert(format!("/v2/a/b/manifests/sha256:{hex}"), bytes);
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |architecture: &str, digest: String| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
            "platform": {"architecture": architecture, "os": "linux"}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        entry("s390x", format!("sha256:{}", "0".repeat(64))),
        entry(architecture, digest_of(Sha256::new().chain_update(&manifest))),
    ]});
    files.insert("/v2/a/b/manifests/1".to_owned(), index.to_string().into_bytes());
    Arc::new(files)
}

fn auth() -> Option<(String, String)> {
    Some(("me".to_owned(), "secret".to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_with_a_token_through_an_index() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = ImageStore::open(dir.path()).expect("open");
    let address = serve(image(false)).await;
    let name = format!("{address}/a/b:1");
    let error = store.pull(&name, None).await.expect_err("no credentials").to_string();
    assert!(error.contains("403"), "{error}");
    let info = store.pull(&name, auth()).await.expect("pulled");
    assert_eq!(info.tags, std::slice::from_ref(&name));
    assert_eq!(info.digests.len(), 1);
    let resolved = store.resolve(&name).expect("there");
    assert_eq!(resolved.entrypoint, ["/greeting"]);
    let greeting = resolved.layers_dir.join(&resolved.layers[0]).join("greeting");
    assert_eq!(fs::read_to_string(greeting).expect("unpacked"), "hello");
    let by_digest = store.find(&info.digests[0]).await.expect("find");
    assert_eq!(by_digest.map(|i| i.id), Some(info.id));

    // The same, through a mirror.
    let yaml = format!(
        "mirrors:\n  reg.example:\n    endpoint: [\"http://{address}\"]\nconfigs:\n  \"{address}\":\n    auth: {{username: me, password: secret}}\n"
    );
    let other = tempfile::tempdir().expect("tempdir");
    let registries = Registries::parse(&yaml).expect("valid");
    let store = ImageStore::open(other.path()).expect("open").with_registries(registries);
    assert_eq!(store.pull("reg.example/a/b:1", None).await.expect("pulled").tags, ["reg.example/a/b:1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_has_the_user_agent() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut files = HashMap::clone(&image(false));
    files.insert("user-agent".to_owned(), b"shopkube/1.0".to_vec());
    let name = format!("{}/a/b:1", serve(Arc::new(files)).await);
    let store = ImageStore::open(dir.path()).expect("open");
    let refused = store.pull(&name, auth()).await.expect_err("another agent").to_string();
    assert!(refused.contains("400"), "{refused}");
    store.with_user_agent("shopkube/1.0\r\n").pull(&name, auth()).await.expect("pulled");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = ImageStore::open(dir.path()).expect("open");
    let address = serve(image(true)).await;
    let check = |error: RuntimeError, want: &str| {
        assert!(matches!(error, RuntimeError::Other(_)));
        assert!(error.to_string().contains(want), "{error}");
    };
    check(store.pull(&format!("{address}/a/b:1"), auth()).await.expect_err("corrupt"), "for layer sha256:");
    check(store.pull(&format!("{address}/a/b:2"), auth()).await.expect_err("absent"), "not found");
    check(store.pull("127.0.0.1:1/a/b", None).await.expect_err("nobody there"), "refused");
    assert!(matches!(store.pull("NOT valid", None).await, Err(RuntimeError::Invalid(_))));
    assert!(store.list().await.expect("list").is_empty());
}

#[test]
fn challenges() {
    let got = parse_parameters(r#"realm="https://a/b?c=d",service=x, scope="s:t,u""#);
    let want = [("realm", "https://a/b?c=d"), ("service", "x"), ("scope", "s:t,u")];
    assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
}
