//! Projected trust anchors and certificates of pods.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{Node, one};

#[tokio::test(start_paused = true)]
async fn trust_anchors_follow_their_bundles() {
    let node = Node::start().await;
    let bundles = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    let anchor = || {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().replace("\r\n", "\n")
    };
    let (one_anchor, two, three) = (anchor(), anchor(), anchor());
    let bundle = |name: &str, text: &str| {
        json!({"metadata": {"name": format!("example.com:s:{name}"), "labels": {"live": "yes"}},
            "spec": {"signerName": "example.com/s", "trustBundle": text}})
    };
    let mut spec = one(&["run"]);
    let live = json!({"matchLabels": {"live": "yes"}});
    spec["volumes"] = json!([{"name": "v", "projected": {"sources": [
        {"clusterTrustBundle": {"signerName": "example.com/s", "labelSelector": live, "path": "all.pem"}},
        {"clusterTrustBundle": {"name": "absent", "optional": true, "path": "none.pem"}},
    ]}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    node.create("p", spec).await;
    let why = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
    node.until("mount fails", || node.has_event("p", "FailedMount", why)).await;
    node.api.create(bundles, bundle("a", &format!("{one_anchor}words\n{two}"))).await;
    node.until_phase("p", "Running").await;
    let mounts = node.runtime.container("c").unwrap().spec.mounts;
    let path = mounts.iter().find(|m| m.container_path.to_str() == Some("/v")).unwrap().host_path.clone();
    let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
    let has = |anchors: &[&String]| {
        let text = read("all.pem");
        anchors.iter().all(|anchor| text.contains(anchor.as_str()))
            && text.matches("BEGIN").count() == anchors.len()
            && !text.contains("words")
    };
    assert!(has(&[&one_anchor, &two]), "{}", read("all.pem"));
    assert_eq!(read("none.pem"), "");
    // An anchor of two bundles is in the file once, and the running container sees it.
    node.api.create(bundles, bundle("b", &format!("{two}{three}"))).await;
    node.until("update", || has(&[&one_anchor, &two, &three])).await;
    let gone = format!("{bundles}/example.com:s:a");
    node.api.client().bytes(http::Method::DELETE, &gone, "application/json", "").await.unwrap();
    node.until("removal", || has(&[&two, &three])).await;
    assert_eq!(node.container("p", "/restartCount"), 0);
}

/// Answers a request as its signer, with a certificate of two hours that is renewed after one.
async fn sign(node: &Node, request: &Value) {
    let stub = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        request["spec"]["stubPKCS10Request"].as_str().unwrap(),
    );
    let stub = rustls_pki_types::CertificateSigningRequestDer::from(stub.unwrap());
    let mut params = rcgen::CertificateSigningRequestParams::from_der(&stub).unwrap();
    let now = node.clock.now();
    let at = |hours: i64| jiff::Timestamp::from_second(now.as_second() + hours * 3600).unwrap();
    let time = |at: jiff::Timestamp| std::time::SystemTime::from(at).into();
    (params.params.not_before, params.params.not_after) = (time(at(0)), time(at(2)));
    let issuer = rcgen::Issuer::new(rcgen::CertificateParams::default(), rcgen::KeyPair::generate().unwrap());
    let chain = params.signed_by(&issuer).unwrap().pem();
    let condition = json!({"type": "Issued", "status": "True", "reason": "r", "message": "", "lastTransitionTime": at(0).to_string()});
    let status = json!({"status": {"certificateChain": chain, "notBefore": at(0).to_string(), "notAfter": at(2).to_string(),
        "beginRefreshAt": at(1).to_string(), "conditions": [condition]}});
    answer(node, request, status).await;
}

async fn answer(node: &Node, request: &Value, status: Value) {
    let name = request["metadata"]["name"].as_str().unwrap();
    let path =
        format!("/apis/certificates.k8s.io/v1beta1/namespaces/ns/podcertificaterequests/{name}/status");
    let kind = "application/merge-patch+json";
    node.api.client().bytes(http::Method::PATCH, &path, kind, status.to_string()).await.unwrap();
}

fn with_certificate(key_type: &str) -> Value {
    let mut spec = one(&["run"]);
    spec["volumes"] = json!([{"name": "v", "projected": {"sources": [{"podCertificate": {"signerName": "example.com/s",
        "keyType": key_type, "credentialBundlePath": "bundle.pem", "keyPath": "key.pem", "certificateChainPath": "chain.pem"}}]}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    spec
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_a_certificate_and_a_new_one_before_it_ends() {
    let node = Node::start().await;
    let requests = || node.api.list("podcertificaterequests.certificates.k8s.io");
    node.create("p", with_certificate("ED25519")).await;
    node.until("request", || requests().len() == 1).await;
    let first = requests().remove(0);
    let spec = &first["spec"];
    assert_eq!(
        (&spec["podName"], &spec["nodeName"], &spec["serviceAccountName"]),
        (&json!("p"), &json!("n1"), &json!("default"))
    );
    // A signer that takes its time.
    node.until("event", || node.has_event("p", "FailedMount", "has no answer of its signer yet")).await;
    assert_eq!(requests().len(), 1, "the same request is waited for");
    sign(&node, &first).await;
    node.until_phase("p", "Running").await;
    let mounts = node.runtime.container("c").unwrap().spec.mounts;
    let path = mounts.iter().find(|m| m.container_path.to_str() == Some("/v")).unwrap().host_path.clone();
    let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
    assert!(read("key.pem").starts_with("-----BEGIN PRIVATE KEY-----"));
    assert!(read("chain.pem").starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(read("bundle.pem"), read("key.pem") + &read("chain.pem"));
    let old = read("bundle.pem");
    tokio::time::sleep(Duration::from_secs(3500)).await;
    assert_eq!(requests().len(), 1);
    node.until("renewal", || requests().len() == 2).await;
    assert_eq!(read("bundle.pem"), old, "it is used until the new one is there");
    let second = requests().into_iter().find(|r| r["metadata"]["name"] != first["metadata"]["name"]).unwrap();
    sign(&node, &second).await;
    node.until("new files", || read("bundle.pem") != old).await;
    assert_eq!(read("bundle.pem"), read("key.pem") + &read("chain.pem"));
    assert_eq!(node.container("p", "/restartCount"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_denied_certificate_is_final_and_told() {
    let node = Node::start().await;
    let requests = || node.api.list("podcertificaterequests.certificates.k8s.io");
    node.create("p", with_certificate("ECDSAP256")).await;
    node.until("request", || requests().len() == 1).await;
    let condition = json!({"type": "Denied", "status": "True", "reason": "NotYou", "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    answer(&node, &requests()[0], json!({"status": {"conditions": [condition]}})).await;
    node.until("event", || {
        node.has_event("p", "FailedMount", "was denied, reason=\"NotYou\", message=\"no\"")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(requests().len(), 1);
    node.create("q", with_certificate("RSA4096")).await;
    node.until("event", || {
        node.has_event("q", "FailedMount", "key type \"RSA4096\" is not supported by this kubelet")
    })
    .await;
}
