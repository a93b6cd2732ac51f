//! Rights for the signers of certificates.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_apiserver::User;
use serde_json::{Value, json};

use crate::support::{ask_as, authority, done, grant, server, server_with};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn request(name: &str, signer: &str) -> Value {
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    json!({"metadata": {"name": name}, "spec": {"request": STANDARD.encode(pem), "signerName": signer, "usages": ["client auth"]}})
}

/// Rules for requests with both subresources, and a verb for a signer.
fn rules(verb: &str, signers: &[&str]) -> Value {
    let parts = ["certificatesigningrequests/approval", "certificatesigningrequests/status"];
    let group = json!(["certificates.k8s.io"]);
    json!([{"apiGroups": group, "resources": parts, "verbs": ["patch", "update"]},
        {"apiGroups": group, "resources": ["signers"], "resourceNames": signers, "verbs": [verb]}])
}

#[tokio::test]
async fn approval_and_signature_need_the_right_for_the_signer() {
    let server = server().await;
    done(&server, "POST", REQUESTS, &request("mine", "example.com/mine")).await;
    done(&server, "POST", REQUESTS, &request("other", "example.com/other")).await;
    grant(&server, "approver", rules("approve", &["example.com/mine"])).await;
    grant(&server, "of-domain", rules("approve", &["example.com/*"])).await;
    grant(&server, "signer", rules("sign", &["example.com/mine"])).await;
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "r", "message": "m"});
    let change = |kind: &str| json!({"status": {"conditions": [condition(kind)]}});
    for (user, path, body, why) in [
        (
            "signer",
            "mine/approval",
            change("Approved"),
            "user not permitted to approve requests with signerName \"example.com/mine\"",
        ),
        (
            "approver",
            "other/approval",
            change("Approved"),
            "user not permitted to approve requests with signerName \"example.com/other\"",
        ),
        // Another signer's name in the body does not help.
        (
            "approver",
            "other/approval",
            json!({"spec": {"signerName": "example.com/mine"}, "status": change("Approved")["status"]}),
            "signerName \"example.com/other\"",
        ),
        ("approver", "mine/approval", change("Approved"), ""),
        ("of-domain", "other/approval", change("Denied"), ""),
        (
            "approver",
            "mine/status",
            json!({"status": {"conditions": [condition("Approved"), condition("Failed")]}}),
            "user not permitted to sign requests with signerName \"example.com/mine\"",
        ),
        ("approver", "mine/status", json!({"metadata": {"annotations": {"a": "b"}}}), ""),
        (
            "signer",
            "other/status",
            json!({"status": {"conditions": [condition("Denied"), condition("Failed")]}}),
            "user not permitted to sign requests with signerName \"example.com/other\"",
        ),
        (
            "signer",
            "mine/status",
            json!({"status": {"conditions": [condition("Approved"), condition("Failed")]}}),
            "",
        ),
    ] {
        let answer =
            ask_as(&server, &User::new(user, &[]), "PATCH", &format!("{REQUESTS}/{path}"), &body).await;
        let told = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        if why.is_empty() {
            assert!(answer.status.is_success(), "{user} {path}: {told}");
        } else {
            assert!(answer.status == 403 && told.ends_with(why), "{user} {path}: {} {told}", answer.status);
        }
    }
}

#[tokio::test]
async fn a_trust_bundle_of_a_signer_needs_the_right_to_attest() {
    let server = server_with(&["certificates.k8s.io/v1beta1/clustertrustbundles=true"]).await;
    let all = json!(["certificates.k8s.io"]);
    let rules = json!([{"apiGroups": all, "resources": ["clustertrustbundles"], "verbs": ["create", "patch"]},
        {"apiGroups": all, "resources": ["signers"], "resourceNames": ["example.com/mine"], "verbs": ["attest"]}]);
    grant(&server, "attester", rules).await;
    let path = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    let post = async |name: &str, signer: &str| {
        let bundle =
            json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": authority()}});
        ask_as(&server, &User::new("attester", &[]), "POST", path, &bundle).await
    };
    assert_eq!(post("example.com:mine:a", "example.com/mine").await.status, 201);
    assert_eq!(post("b", "").await.status, 201);
    let refused = post("example.com:other:c", "example.com/other").await;
    assert!(
        refused.json()["message"]
            .as_str()
            .unwrap()
            .ends_with("user not permitted to attest for signerName \"example.com/other\"")
    );
}
