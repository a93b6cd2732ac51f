//! Extenders over https: which servers are trusted, and the client's certificate.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_tls::{ClientAuth, Identity, TlsAcceptor};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::*;
use crate::Configuration;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn identity(ca: &Ca, name: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, ca).unwrap();
    Identity { certificate: certificate.pem().into_bytes(), key: key.serialize_pem().into_bytes() }
}

/// Serves an extender that passes all nodes, with the certificate of `extender.example`.
async fn serve(ca: &Ca, clients: ClientAuth<'_>) -> String {
    let config = k8s_tls::server(&identity(ca, "extender.example"), &clients, &[b"http/1.1"]).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            while let Some((_, body)) = over_http::request(&mut stream).await {
                let body: Value = serde_json::from_slice(&body).unwrap();
                let answer = json!({"NodeNames": body["NodeNames"]}).to_string();
                let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
                if stream.write_all(text.as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    });
    url
}

/// Returns the node of a decision with the extender, or the message.
async fn decided_with(url: &str, more: Value) -> Result<String, String> {
    let mut extender = json!({"urlPrefix": url, "filterVerb": "filter", "nodeCacheCapable": true});
    for (key, value) in more.as_object().unwrap() {
        extender[key] = value.clone();
    }
    let file = Configuration::deserialize(json!({"extenders": [extender]})).unwrap();
    let extenders = file.extenders().map_err(|e| e.to_string())?;
    place(extenders.iter().cloned().collect(), &cluster(1), &plain()).await
}

#[tokio::test]
async fn a_server_is_trusted_by_its_ca_and_name_unless_all_are() {
    let (ours, other) = (ca(), ca());
    let url = serve(&ours, ClientAuth::Off).await;
    let pem = |ca: &Ca| STANDARD.encode(ca.pem());
    let named = json!({"tlsConfig": {"caData": pem(&ours), "serverName": "extender.example"}});
    assert_eq!(decided_with(&url, named).await.as_deref(), Ok("n0"));
    for unverified in [json!({"enableHTTPS": true}), json!({"tlsConfig": {"insecure": true}})] {
        assert_eq!(decided_with(&url, unverified).await.as_deref(), Ok("n0"));
    }
    for refused in [
        json!({"tlsConfig": {"caData": pem(&ours)}}),
        json!({"tlsConfig": {"caData": pem(&other), "serverName": "extender.example"}}),
        // With a CA, `enableHTTPS` waives nothing.
        json!({"enableHTTPS": true, "tlsConfig": {"caData": pem(&other), "serverName": "extender.example"}}),
    ] {
        let error = decided_with(&url, refused.clone()).await.unwrap_err();
        assert!(error.starts_with(&format!("Post \"{url}/filter\": ")), "{refused}: {error}");
        assert!(error.contains("certificate"), "{refused}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_that_of_the_files() {
    let ours = ca();
    let pem = ours.pem();
    let url = serve(&ours, ClientAuth::Required(pem.as_bytes())).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mine = identity(&ours, "scheduler");
    std::fs::write(path("cert"), &mine.certificate).unwrap();
    std::fs::write(path("key"), &mine.key).unwrap();
    std::fs::write(path("ca"), &pem).unwrap();
    let files = json!({"caFile": path("ca"), "serverName": "extender.example",
        "certFile": path("cert"), "keyFile": path("key")});
    assert_eq!(decided_with(&url, json!({"tlsConfig": files})).await.as_deref(), Ok("n0"));
    let without = json!({"caFile": path("ca"), "serverName": "extender.example"});
    assert!(decided_with(&url, json!({"tlsConfig": without})).await.is_err());
    // Data goes before files.
    let mut both = files.clone();
    both["certData"] = STANDARD.encode("no certificate").into();
    assert!(decided_with(&url, json!({"tlsConfig": both})).await.is_err());
}
