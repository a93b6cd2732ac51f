//! ClusterTrustBundles: names, contents, selectors, both versions.

use k8s_apiserver::User;
use serde_json::{Value, json};

use crate::support::{admin, ask_as, authority, done, server_with};

const PATH: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
const ALPHA: &str = "/apis/certificates.k8s.io/v1alpha1/clustertrustbundles";

#[tokio::test]
async fn bundles_are_validated_and_selected_by_signer() {
    let server =
        server_with(&["certificates.k8s.io/v1beta1=true", "certificates.k8s.io/v1alpha1=true"]).await;
    let post = async |name: &str, spec: Value| {
        let bundle = json!({"metadata": {"name": name, "labels": {"a": "b"}}, "spec": spec});
        admin(&server, "POST", PATH, "application/json", bundle.to_string()).await
    };
    let (one, two) = (authority(), authority());
    let made = post("example.com:s:x", json!({"signerName": "example.com/s", "trustBundle": one})).await;
    assert_eq!(made.status, 201, "{}", made.json());
    assert_eq!(post("plain", json!({"trustBundle": format!("{one}{two}")})).await.status, 201);
    for (name, spec, want) in [
        (
            "plain:x",
            json!({"trustBundle": one}),
            "metadata.name: Invalid value: \"plain:x\": ClusterTrustBundle without signer name must not have \":\" in its name",
        ),
        (
            "x",
            json!({"signerName": "example.com/s", "trustBundle": one}),
            "must be named with prefix example.com:s:",
        ),
        (
            "nodots:s:x",
            json!({"signerName": "nodots/s", "trustBundle": one}),
            "spec.signerName: Invalid value: \"nodots/s\": should be a domain with at least two segments separated by dots",
        ),
        (
            "a",
            json!({"trustBundle": ""}),
            "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
        ),
        ("a", json!({"trustBundle": format!("{one}{one}")}), "duplicate trust anchor (indices [0 1])"),
    ] {
        let refused = post(name, spec).await;
        let told = refused.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(refused.status == 422 && told.contains(want), "{} {told}", refused.status);
    }
    let list = async |query: &str| -> Vec<String> {
        let all = done(&server, "GET", &format!("{PATH}?{query}"), &Value::Null).await;
        let items = all["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(list("fieldSelector=spec.signerName%3Dexample.com/s").await, ["example.com:s:x"]);
    assert_eq!(list("fieldSelector=spec.signerName%3D").await, ["plain"]);
    let alpha = done(&server, "GET", &format!("{ALPHA}/plain"), &Value::Null).await;
    assert_eq!(
        (&alpha["apiVersion"], &alpha["spec"]["trustBundle"]),
        (&json!("certificates.k8s.io/v1alpha1"), &json!(format!("{one}{two}")))
    );
    let new = json!({"spec": {"signerName": "example.com/t"}});
    let refused = admin(
        &server,
        "PATCH",
        &format!("{PATH}/example.com:s:x"),
        "application/merge-patch+json",
        new.to_string(),
    )
    .await;
    assert!(refused.json()["message"].as_str().unwrap().contains("field is immutable"));
    let unversioned = json!({"metadata": {"name": "plain"}, "spec": {"trustBundle": one}});
    let refused =
        admin(&server, "PUT", &format!("{PATH}/plain"), "application/json", unversioned.to_string()).await;
    assert!(refused.json()["message"].as_str().unwrap().contains("must be specified for an update"));
    done(&server, "PATCH", &format!("{PATH}/plain"), &json!({"spec": {"trustBundle": two}})).await;
}

#[tokio::test]
async fn bundles_have_columns_and_are_read_by_accounts_and_nodes() {
    let server = server_with(&["certificates.k8s.io/v1beta1=true"]).await;
    done(&server, "POST", PATH, &json!({"metadata": {"name": "a"}, "spec": {"trustBundle": authority()}}))
        .await;
    let request = http::Request::get(PATH)
        .header("authorization", "Bearer admin")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = crate::support::ask(&server, request.body(Vec::new()).unwrap()).await.json();
    assert_eq!(table["rows"][0]["cells"], json!(["a", "<none>"]));
    assert_eq!(table["columnDefinitions"][1]["name"], "SignerName");
    let account = User::new("system:serviceaccount:default:x", &["system:serviceaccounts"]);
    assert_eq!(ask_as(&server, &account, "GET", PATH, &Value::Null).await.status, 200);
    assert_eq!(ask_as(&server, &User::node("n"), "GET", PATH, &Value::Null).await.status, 200);
    assert_eq!(
        ask_as(&server, &User::node("n"), "DELETE", &format!("{PATH}/a"), &Value::Null).await.status,
        403
    );
    assert_eq!(ask_as(&server, &User::new("u", &[]), "GET", PATH, &Value::Null).await.status, 403);
}
