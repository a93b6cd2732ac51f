//! Writes to subresources that are views of the whole object, and what a PUT and a body may say.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{admin, done, server};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

fn request() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    STANDARD.encode(pem)
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array().unwrap();
    all.iter().find(|c| c["type"] == kind).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn approvals_are_stored_with_custom_conditions_and_metadata() {
    let server = server().await;
    let base = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    for name in ["approved", "denied"] {
        let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": request(), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
        let made = admin(&server, "POST", base, JSON, object.to_string()).await;
        assert_eq!(made.status, 201, "{}", made.json());
    }

    // As `kubectl certificate approve` does: the whole object, with a condition without times.
    let path = format!("{base}/approved");
    let mut object = admin(&server, "GET", &path, JSON, "").await.json();
    object["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "KubectlApprove", "message": "m"}]);
    object["status"]["certificate"] = STANDARD.encode("forged").into();
    object["spec"]["usages"] = json!(["any"]);
    let put = admin(&server, "PUT", &format!("{path}/approval"), JSON, object.to_string()).await;
    assert_eq!(put.status, 200, "{}", put.json());
    let object = admin(&server, "GET", &path, JSON, "").await.json();
    let approved = condition(&object, "Approved");
    assert_eq!(approved["reason"], "KubectlApprove");
    assert!(approved["lastUpdateTime"].is_string() && approved["lastTransitionTime"].is_string());
    assert!(object["status"].get("certificate").is_none(), "an approval sets no certificate");
    assert_eq!(object["spec"]["usages"], json!(["client auth"]), "nor the specification");

    // A patch with a condition of somebody's own and an annotation; the approval stays.
    let patch = json!({"metadata": {"annotations": {"a": "b"}}, "status": {"conditions": [
        {"type": "Approved", "status": "True", "reason": "KubectlApprove"}, {"type": "Checked", "status": "False", "reason": "Custom"}]}});
    let patched = admin(&server, "PATCH", &format!("{path}/approval"), MERGE, patch.to_string()).await;
    assert_eq!(patched.status, 200, "{}", patched.json());
    let object = patched.json();
    assert_eq!(object["metadata"]["annotations"]["a"], "b");
    assert_eq!(condition(&object, "Checked")["reason"], "Custom");
    assert_eq!(condition(&object, "Approved")["lastTransitionTime"], approved["lastTransitionTime"]);

    let none =
        admin(&server, "PATCH", &format!("{path}/approval"), MERGE, r#"{"status":{"conditions":[]}}"#).await;
    assert_eq!(none.status, 422, "an approval is not taken back");

    let deny = r#"{"status":{"conditions":[{"type":"Denied","status":"True","reason":"no"}]}}"#;
    let denied = admin(&server, "PATCH", &format!("{base}/denied/approval"), MERGE, deny).await;
    assert_eq!(condition(&denied.json(), "Denied")["reason"], "no");
    assert_eq!(admin(&server, "PATCH", &format!("{path}/approval"), MERGE, deny).await.status, 422);
}

#[tokio::test]
async fn a_status_write_approves_no_certificate() {
    let server = server().await;
    let base = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "u"},
        "spec": {"request": request(), "signerName": "example.com/x", "usages": ["client auth"]}});
    admin(&server, "POST", base, JSON, object.to_string()).await;
    let approve = r#"{"status":{"conditions":[{"type":"Approved","status":"True","reason":"R"}]}}"#;
    let refused = admin(&server, "PATCH", &format!("{base}/u/status"), MERGE, approve).await;
    assert_eq!(refused.status, 422, "{}", refused.json());
    let failed = r#"{"status":{"conditions":[{"type":"Failed","status":"True","reason":"R"}]}}"#;
    let stored = admin(&server, "PATCH", &format!("{base}/u/status"), MERGE, failed).await;
    assert!(condition(&stored.json(), "Failed")["lastUpdateTime"].is_string());
}

async fn pod(server: &k8s_apiserver::ApiServer) -> Value {
    let account = r#"{"metadata":{"name":"default"}}"#;
    admin(server, "POST", "/api/v1/namespaces/default/serviceaccounts", JSON, account).await;
    let object = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    let made = admin(server, "POST", "/api/v1/namespaces/default/pods", JSON, object.to_string()).await;
    assert_eq!(made.status, 201, "{}", made.json());
    made.json()
}

#[tokio::test]
async fn ephemeral_containers_are_written_alone_and_only_there() {
    let server = server().await;
    pod(&server).await;
    let path = "/api/v1/namespaces/default/pods/p";
    let debugger = json!({"name": "d", "image": "busybox:1"});

    // The minimal body of kube-rs, with other fields that must be passed over.
    let body = json!({"metadata": {"name": "p", "labels": {"x": "y"}},
        "spec": {"nodeName": "elsewhere", "ephemeralContainers": [debugger]}});
    let put = admin(&server, "PUT", &format!("{path}/ephemeralcontainers"), JSON, body.to_string()).await;
    assert_eq!(put.status, 200, "{}", put.json());
    let now = put.json();
    assert_eq!(now["metadata"]["generation"], 2);
    assert!(now["metadata"].get("labels").is_none() && now["spec"].get("nodeName").is_none());
    assert_eq!(now["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"], "File", "defaults");
    assert_eq!(now["spec"]["containers"][0]["name"], "c");

    let second = json!({"spec": {"ephemeralContainers": [now["spec"]["ephemeralContainers"][0], {"name": "e", "image": "i:2"}]}});
    let patched =
        admin(&server, "PATCH", &format!("{path}/ephemeralcontainers"), MERGE, second.to_string()).await;
    assert_eq!((patched.status.as_u16(), &patched.json()["metadata"]["generation"]), (200, &json!(3)));

    // Those that are there neither go nor change.
    for bad in [json!([]), json!([{"name": "d", "image": "evil:1"}, {"name": "e", "image": "i:2"}])] {
        let bad = json!({"spec": {"ephemeralContainers": bad}}).to_string();
        let refused = admin(&server, "PATCH", &format!("{path}/ephemeralcontainers"), MERGE, bad).await;
        assert_eq!(refused.status, 422, "{}", refused.json());
    }

    // A plain update of the pod does not need the right to `pods/ephemeralcontainers`, so it cannot add any.
    let smuggled = json!({"spec": {"ephemeralContainers": [{"name": "f", "image": "i:3"}]}}).to_string();
    assert_eq!(admin(&server, "PATCH", path, MERGE, smuggled).await.status, 422);
}

#[tokio::test]
async fn a_put_with_resource_version_zero_is_unconditional() {
    let server = server().await;
    let base = "/api/v1/namespaces/default/configmaps";
    let map = |version: &str, value: &str| {
        json!({"metadata": {"name": "m", "resourceVersion": version}, "data": {"k": value}}).to_string()
    };
    let made = admin(&server, "POST", base, JSON, r#"{"metadata":{"name":"m"}}"#).await.json();
    let path = format!("{base}/m");
    assert_eq!(admin(&server, "PUT", &path, JSON, map("0", "a")).await.json()["data"]["k"], "a");
    let first = made["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(admin(&server, "PUT", &path, JSON, map(first, "b")).await.status, 409, "a stale version");

    // For a conditional PUT, 0 is no version.
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    admin(&server, "POST", leases, JSON, r#"{"metadata":{"name":"l"}}"#).await;
    let lease = r#"{"metadata":{"name":"l","resourceVersion":"0"},"spec":{}}"#;
    assert_eq!(admin(&server, "PUT", &format!("{leases}/l"), JSON, lease).await.status, 422);
}

#[tokio::test]
async fn base64_may_have_line_breaks() {
    let server = server().await;
    let text = STANDARD.encode("0123456789".repeat(12));
    let broken: String =
        text.as_bytes().chunks(76).map(|c| format!("{}\r\n", String::from_utf8_lossy(c))).collect();
    let secret = json!({"metadata": {"name": "s"}, "data": {"k": broken}});
    let made = admin(&server, "POST", "/api/v1/namespaces/default/secrets", JSON, secret.to_string()).await;
    assert_eq!((made.status.as_u16(), &made.json()["data"]["k"]), (201, &json!(text)));
    let bad = r#"{"metadata":{"name":"t"},"data":{"k":"ab\n!d"}}"#;
    let refused = admin(&server, "POST", "/api/v1/namespaces/default/secrets", JSON, bad).await;
    assert!(refused.json()["message"].as_str().unwrap().contains("illegal base64 data at input byte 3"));
}

#[tokio::test]
async fn a_gated_pod_is_not_bound() {
    let server = server().await;
    pod(&server).await;
    let gated = json!({"metadata": {"name": "g"},
        "spec": {"schedulingGates": [{"name": "a.b/wait"}], "containers": [{"name": "c", "image": "i:1"}]}});
    admin(&server, "POST", "/api/v1/namespaces/default/pods", JSON, gated.to_string()).await;
    let binding = r#"{"target":{"kind":"Node","name":"n"}}"#;
    for (name, want) in [("g", 409), ("p", 201)] {
        let path = format!("/api/v1/namespaces/default/pods/{name}/binding");
        let answer = admin(&server, "POST", &path, JSON, binding).await;
        assert_eq!(answer.status, want, "{}", answer.json());
    }
}

#[tokio::test]
async fn a_binding_may_be_posted_to_its_collection() {
    let server = server().await;
    pod(&server).await;
    let pods = "/api/v1/namespaces/default/pods";
    let bindings = "/api/v1/namespaces/default/bindings";
    let binding = |name: &str| json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n"}});
    for (body, code) in [
        (json!({"target": {"name": "n"}}), 400),
        (json!({"metadata": {"name": "p", "namespace": "other"}, "target": {"name": "n"}}), 400),
        (json!({"metadata": {"name": "p"}, "target": {}}), 422),
        (binding("absent"), 404),
        (binding("p"), 201),
        (binding("p"), 409),
    ] {
        let answer = admin(&server, "POST", bindings, "application/json", body.to_string()).await;
        assert_eq!(answer.status, code, "{body}: {}", answer.json());
    }
    let pod = done(&server, "GET", &format!("{pods}/p"), &Value::Null).await;
    assert_eq!(pod["spec"]["nodeName"], "n");
    assert_eq!(admin(&server, "GET", bindings, "application/json", "").await.status, 405);
}

#[tokio::test]
async fn a_pods_status_is_refused_with_a_wrong_address_or_count() {
    let server = server().await;
    pod(&server).await;
    let pods = "/api/v1/namespaces/default/pods";
    let counts =
        |n: i64| json!([{"name": "c", "image": "x", "imageID": "", "ready": true, "restartCount": n}]);
    for (status, code) in [
        (json!({"podIP": "127.1"}), 422),
        (json!({"podIPs": [{"ip": "10.0.0.01"}]}), 422),
        (json!({"containerStatuses": counts(-1)}), 422),
        (json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": counts(1)}), 200),
    ] {
        let body = json!({"status": status}).to_string();
        let answer =
            admin(&server, "PATCH", &format!("{pods}/p/status"), "application/merge-patch+json", body).await;
        assert_eq!(answer.status, code, "{status}: {}", answer.json());
    }
}
