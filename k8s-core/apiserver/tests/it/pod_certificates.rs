//! PodCertificateRequests: validation, the rights of kubelets, and statuses of signers.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use k8s_apiserver::{ApiServer, User};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::support::{Answer, admin, ask_as, authority, done, grant, server_with};

const PATH: &str = "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests";

/// A server with a node, an account and a pod on the node; their UIDs.
struct Scene {
    server: ApiServer,
    node: String,
    account: String,
    pod: String,
}

impl Scene {
    async fn new() -> Self {
        let server = server_with(&["certificates.k8s.io/v1beta1=true"]).await;
        let make = async |path: &str, object: Value| {
            let made = done(&server, "POST", path, &object).await;
            made["metadata"]["uid"].as_str().unwrap().to_owned()
        };
        let node = make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
        let account =
            make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "sa"}})).await;
        let spec =
            json!({"nodeName": "n", "serviceAccountName": "sa", "containers": [{"name": "c", "image": "i"}]});
        let pod =
            make("/api/v1/namespaces/default/pods", json!({"metadata": {"name": "p"}, "spec": spec})).await;
        Scene { server, node, account, pod }
    }

    fn request(&self, name: &str, key: &KeyPair) -> Value {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let stub = STANDARD.encode(params.serialize_request(key).unwrap().der());
        json!({"metadata": {"name": name}, "spec": {"signerName": "example.com/s", "podName": "p", "podUID": self.pod,
            "serviceAccountName": "sa", "serviceAccountUID": self.account, "nodeName": "n", "nodeUID": self.node,
            "stubPKCS10Request": stub}})
    }

    async fn post(&self, user: &User, request: &Value) -> Answer {
        ask_as(&self.server, user, "POST", PATH, request).await
    }
}

fn message(answer: &Answer) -> String {
    answer.json()["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn requests_are_validated() {
    let scene = Scene::new().await;
    let key = KeyPair::generate().unwrap();
    let good = scene.request("good", &key);
    let made = scene.post(&User::admin(), &good).await;
    assert_eq!(made.status, 201, "{}", message(&made));
    assert_eq!(made.json()["spec"]["maxExpirationSeconds"], 86_400);
    let forged = {
        let mut stub = STANDARD.decode(good["spec"]["stubPKCS10Request"].as_str().unwrap()).unwrap();
        *stub.last_mut().unwrap() ^= 1;
        STANDARD.encode(stub)
    };
    for (pointer, value, want) in [
        ("/spec/podUID", json!(""), "spec.podUID: Invalid value: \"\": must not be empty"),
        ("/spec/nodeUID", json!("x".repeat(129)), "spec.nodeUID: Too long: may not be more than 128 bytes"),
        ("/spec/maxExpirationSeconds", json!(60), "must be in the range [3600, 7862400]"),
        (
            "/spec/signerName",
            json!("nodots"),
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
        (
            "/spec/stubPKCS10Request",
            json!("AQI="),
            "spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 CSR",
        ),
        (
            "/spec/stubPKCS10Request",
            json!(forged),
            "spec.stubPKCS10Request: Invalid value: invalid signature",
        ),
        (
            "/spec/pkixPublicKey",
            json!("AQI="),
            "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
        ),
        ("/spec/unverifiedUserAnnotations", json!({"plain": "x"}), "must be a domain-prefixed key"),
    ] {
        let mut bad = good.clone();
        bad["metadata"]["name"] = "bad".into();
        let (object, field) = pointer.rsplit_once('/').unwrap();
        bad.pointer_mut(object).unwrap()[field] = value;
        let refused = scene.post(&User::admin(), &bad).await;
        assert!(
            refused.status == 422 && message(&refused).contains(want),
            "{pointer}: {} {}",
            refused.status,
            message(&refused)
        );
    }
    let change = json!({"spec": {"podName": "q"}});
    let refused = admin(
        &scene.server,
        "PATCH",
        &format!("{PATH}/good"),
        "application/merge-patch+json",
        change.to_string(),
    )
    .await;
    assert!(message(&refused).contains("spec: Invalid value"), "{}", message(&refused));
}

#[tokio::test]
async fn a_kubelet_requests_for_pods_of_its_node_only() {
    let scene = Scene::new().await;
    let key = KeyPair::generate().unwrap();
    let (own, other) = (User::node("n"), User::node("other"));
    let request = scene.request("a", &key);
    assert_eq!(scene.post(&own, &request).await.status, 201);
    let refused = scene.post(&other, &scene.request("b", &key)).await;
    assert_eq!(refused.status, 403);
    assert!(
        message(&refused).contains(
            "PodCertificateRequest.Spec.NodeName=\"n\", which is not the requesting node \"other\""
        )
    );
    for (field, value, status, want) in [
        ("podUID", "x", 500, "contains pod UID (\"x\") which differs from running pod"),
        ("podName", "absent", 500, "named in the PodCertificateRequest"),
        (
            "serviceAccountName",
            "default",
            403,
            "contains serviceAccountName (\"default\") that differs from running pod (\"sa\")",
        ),
        ("serviceAccountUID", "x", 500, "names service account UID \"x\""),
        ("nodeUID", "x", 500, "names node UID \"x\""),
    ] {
        let mut bad = scene.request("b", &key);
        bad["spec"][field] = value.into();
        let refused = scene.post(&own, &bad).await;
        assert_eq!(refused.status.as_u16(), status, "{field}: {}", message(&refused));
        assert!(message(&refused).contains(want), "{field}: {}", message(&refused));
    }
    let get = async |user: &User, path: String| {
        ask_as(&scene.server, user, "GET", &path, &Value::Null).await.status.as_u16()
    };
    assert_eq!(get(&own, format!("{PATH}/a")).await, 200);
    assert_eq!(get(&other, format!("{PATH}/a")).await, 403);
    let all = "/apis/certificates.k8s.io/v1beta1/podcertificaterequests";
    assert_eq!(get(&own, format!("{all}?fieldSelector=spec.nodeName%3Dn")).await, 200);
    assert_eq!(get(&other, format!("{all}?fieldSelector=spec.nodeName%3Dn")).await, 403);
    assert_eq!(get(&own, all.into()).await, 403);
    let status = json!({"status": {"conditions": []}});
    assert_eq!(ask_as(&scene.server, &own, "PATCH", &format!("{PATH}/a/status"), &status).await.status, 403);
    assert_eq!(ask_as(&scene.server, &own, "DELETE", &format!("{PATH}/a"), &Value::Null).await.status, 403);
}

/// Issues a certificate for a key, and returns the status that hands it over.
fn issued(key: &KeyPair, from: Timestamp, life: SignedDuration) -> Value {
    let issuer_key = KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::new(CertificateParams::default(), issuer_key);
    let mut params = CertificateParams::default();
    let time = |at: Timestamp| std::time::SystemTime::from(at).into();
    let until = from + life;
    (params.not_before, params.not_after) = (time(from), time(until));
    let chain = params.signed_by(key, &issuer).unwrap().pem();
    json!({"status": {"certificateChain": chain, "notBefore": from.to_string(), "notAfter": until.to_string(),
        "beginRefreshAt": (until - SignedDuration::from_mins(20)).to_string(), "conditions": [condition("Issued")]}})
}

fn condition(kind: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

#[tokio::test]
async fn a_signer_gives_a_status_once() {
    let scene = Scene::new().await;
    let group = json!(["certificates.k8s.io"]);
    for (user, signer) in [("signer", "example.com/*"), ("stranger", "example.com/other")] {
        let rules = json!([{"apiGroups": group, "resources": ["podcertificaterequests/status"], "verbs": ["patch"]},
            {"apiGroups": group, "resources": ["signers"], "resourceNames": [signer], "verbs": ["sign"]}]);
        grant(&scene.server, user, rules).await;
    }
    let key = KeyPair::generate().unwrap();
    for name in ["a", "b"] {
        assert_eq!(scene.post(&User::node("n"), &scene.request(name, &key)).await.status, 201);
    }
    let patch = async |user: &str, name: &str, change: &Value| {
        ask_as(&scene.server, &User::new(user, &[]), "PATCH", &format!("{PATH}/{name}/status"), change).await
    };
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let hours = SignedDuration::from_hours;
    let good = issued(&key, now, hours(2));
    let refused = patch("stranger", "a", &good).await;
    assert_eq!(refused.status, 422);
    assert!(message(&refused).contains("spec.signerName: Forbidden: User \"stranger\" is not permitted to \"sign\" for signer \"example.com/s\""));
    let mut late = good.clone();
    late["status"]["beginRefreshAt"] = (now + hours(2)).to_string().into();
    let mut unknown = good.clone();
    unknown["status"]["conditions"] = json!([condition("Ready")]);
    let mut two = good.clone();
    two["status"]["conditions"] = json!([condition("Issued"), condition("Denied")]);
    let mut chainless = good.clone();
    chainless["status"]["certificateChain"] = "".into();
    let mut with_key = good.clone();
    with_key["status"]["certificateChain"] =
        format!("{}{}", good["status"]["certificateChain"].as_str().unwrap(), key.serialize_pem()).into();
    for (change, want) in [
        (
            &issued(&KeyPair::generate().unwrap(), now, hours(2)),
            "leaf certificate was not issued to the requested public key",
        ),
        (
            &issued(&key, now - hours(1), hours(3)),
            "must be set to within 5 minutes of kube-apiserver's current time",
        ),
        (&issued(&key, now, SignedDuration::from_mins(30)), "leaf certificate lifetime must be >= 1 hour"),
        (
            &issued(&key, now, hours(25)),
            "leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)",
        ),
        (&late, "must be at least 10 minutes before status.notAfter"),
        (&unknown, "supported values: \"Issued\", \"Denied\", \"Failed\""),
        (&two, "There may be at most one condition with type"),
        (&chainless, "must contain at least one certificate"),
        (&with_key, "must consist entirely of CERTIFICATE PEM blocks"),
        (
            &json!({"status": {"notBefore": "2026-01-01T00:00:00Z"}}),
            "status is immutable unless transitioning to",
        ),
        (
            &json!({"status": {"notBefore": "2026-01-01T00:00:00Z", "conditions": [condition("Denied")]}}),
            "non-condition status fields must be empty",
        ),
    ] {
        let refused = patch("signer", "a", change).await;
        assert!(
            refused.status == 422 && message(&refused).contains(want),
            "{want}: {} {}",
            refused.status,
            message(&refused)
        );
    }
    let done = patch("signer", "a", &good).await;
    assert_eq!(done.status, 200, "{}", message(&done));
    let again = patch("signer", "a", &json!({"status": {"conditions": [condition("Failed")]}})).await;
    assert!(message(&again).contains("immutable after PodCertificateRequest is issued, denied, or failed"));
    assert_eq!(
        patch("signer", "b", &json!({"status": {"conditions": [condition("Denied")]}})).await.status,
        200
    );
    // A chain with its intermediate authority is good, too.
    assert_eq!(scene.post(&User::node("n"), &scene.request("c", &key)).await.status, 201);
    let mut long = good.clone();
    long["status"]["certificateChain"] =
        format!("{}{}", good["status"]["certificateChain"].as_str().unwrap(), authority()).into();
    assert_eq!(patch("signer", "c", &long).await.status, 200);
}

#[tokio::test]
async fn projections_in_pods_are_validated() {
    let scene = Scene::new().await;
    let post = async |source: Value| {
        let spec = json!({"serviceAccountName": "sa", "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "projected": {"sources": [source]}}]});
        let pod = json!({"metadata": {"generateName": "q"}, "spec": spec});
        admin(&scene.server, "POST", "/api/v1/namespaces/default/pods", "application/json", pod.to_string())
            .await
    };
    let certificate = |field: &str, value: Value| {
        let mut source = json!({"signerName": "example.com/s", "keyType": "ED25519", "keyPath": "key.pem"});
        source[field] = value;
        json!({"podCertificate": source})
    };
    for good in [
        certificate("maxExpirationSeconds", json!(7_862_400)),
        json!({"clusterTrustBundle": {"name": "a", "path": "ca.pem"}}),
        json!({"clusterTrustBundle": {"signerName": "example.com/s", "labelSelector": {}, "path": "ca.pem"}}),
    ] {
        let answer = post(good.clone()).await;
        assert_eq!(answer.status, 201, "{good}: {}", message(&answer));
    }
    for (bad, want) in [
        (certificate("keyType", json!("RSA1")), "keyType: Unsupported value: \"RSA1\""),
        (certificate("signerName", json!("nope")), "must be a fully qualified domain and path"),
        (certificate("maxExpirationSeconds", json!(60)), "if provided, maxExpirationSeconds must be >= 3600"),
        (
            certificate("maxExpirationSeconds", json!(7_862_401)),
            "if provided, maxExpirationSeconds must be <= 7862400",
        ),
        (
            certificate("keyPath", json!("")),
            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
        ),
        (certificate("certificateChainPath", json!("../x")), "must not contain '..'"),
        (certificate("certificateChainPath", json!("key.pem")), "conflicting duplicate paths"),
        (json!({"clusterTrustBundle": {"path": "ca.pem"}}), "either name or signerName must be specified"),
        (
            json!({"clusterTrustBundle": {"path": "ca.pem", "name": "a", "signerName": "example.com/s"}}),
            "only one of name and signerName may be used",
        ),
        (
            json!({"clusterTrustBundle": {"path": "ca.pem", "name": "a", "labelSelector": {}}}),
            "labelSelector must be unset if name is specified",
        ),
    ] {
        let answer = post(bad.clone()).await;
        let told = message(&answer);
        assert!(answer.status == 422 && told.contains(want), "{bad}: {} {told}", answer.status);
    }
}
