//! Bootstrap tokens, unused token Secrets, published trust: controllers against an API server.

use std::time::Duration;

use jiff::Timestamp;
use k8s_builtin::{Options, Selection};
use k8s_core::api::api::core::v1::ConfigMap;
use k8s_testing::TestCluster;
use serde_json::{Value, json};

const START: i64 = 1_800_000_000;

async fn cluster(controller: &str, entry: &str, root_ca: &str) -> TestCluster {
    let selection = Selection::none().with(controller);
    assert_eq!(selection.rows().count(), 1, "{controller}");
    let clock = k8s_core::clock::Clock::starting_at(Timestamp::from_second(START).unwrap());
    let three_days = Duration::from_secs(3 * 24 * 3600);
    let options =
        Options { root_ca: root_ca.into(), legacy_token_clean_up_period: three_days, ..Options::default() };
    TestCluster::bare()
        .clock(clock)
        .runtime_config([entry])
        .controllers(selection)
        .options(options)
        .start()
        .await
        .unwrap()
}

async fn post(cluster: &TestCluster, path: &str, object: Value) {
    let body = object.to_string();
    cluster.client().bytes(http::Method::POST, path, "application/json", body).await.unwrap();
}

fn token(id: &str, life: Option<i64>, signs: bool) -> Value {
    let mut data = json!({"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": signs.to_string()});
    if let Some(life) = life {
        data["expiration"] = Timestamp::from_second(START + life).unwrap().to_string().into();
    }
    json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token", "stringData": data})
}

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn expired_bootstrap_tokens_are_deleted() {
    let cluster = cluster("tokencleaner", "api/legacy", "").await;
    post(&cluster, SECRETS, token("aaaaaa", Some(60), true)).await;
    post(&cluster, SECRETS, token("bbbbbb", None, true)).await;
    post(&cluster, SECRETS, token("cccccc", Some(-60), true)).await;
    let mut other = token("dddddd", Some(-60), true);
    other["type"] = "Opaque".into();
    post(&cluster, SECRETS, other).await;
    let names = || {
        let all = cluster.all_stored("secrets").into_iter();
        let mut names: Vec<String> =
            all.map(|s| s["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    seconds(30).await;
    assert_eq!(names(), ["bootstrap-token-aaaaaa", "bootstrap-token-bbbbbb", "bootstrap-token-dddddd"]);
    seconds(60).await;
    assert_eq!(names(), ["bootstrap-token-bbbbbb", "bootstrap-token-dddddd"]);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn cluster_info_is_signed_with_each_token() {
    let cluster = cluster("bootstrapsigner", "api/legacy", "").await;
    for secret in [token("aaaaaa", Some(60), true), token("bbbbbb", None, true), token("cccccc", None, false)]
    {
        post(&cluster, SECRETS, secret).await;
    }
    let info = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "text", "jws-kubeconfig-gone00": "x", "other": "y"}});
    post(&cluster, "/api/v1/namespaces/kube-public/configmaps", info).await;
    let data = async || {
        let info = cluster.client().namespaced::<ConfigMap>("kube-public").get("cluster-info").await.unwrap();
        info.data.unwrap()
    };
    let keys = async || data().await.into_keys().collect::<Vec<_>>();
    seconds(5).await;
    assert_eq!(keys().await, ["jws-kubeconfig-aaaaaa", "jws-kubeconfig-bbbbbb", "kubeconfig", "other"]);
    let first = data().await["jws-kubeconfig-bbbbbb"].clone();
    let parts: Vec<&str> = first.split('.').collect();
    assert!(parts.len() == 3 && parts[1].is_empty(), "{first}");
    // The signature follows the content, and ends with the token.
    let change = json!({"data": {"kubeconfig": "another text"}});
    cluster
        .client()
        .namespaced::<ConfigMap>("kube-public")
        .patch("cluster-info", &k8s_core::client::Patch::Merge(change))
        .await
        .unwrap();
    seconds(5).await;
    assert_ne!(data().await["jws-kubeconfig-bbbbbb"], first);
    seconds(60).await;
    assert_eq!(keys().await, ["jws-kubeconfig-bbbbbb", "kubeconfig", "other"]);
    let writes = cluster.writes();
    seconds(600).await;
    assert_eq!(cluster.writes(), writes, "it does not spin");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_unused_token_secret_is_marked_and_then_deleted() {
    let cluster = cluster("legacy-service-account-token-cleaner", "api/legacy", "").await;
    let base = "/api/v1/namespaces/default";
    let tracking = json!({"metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking"}, "data": {"since": "2027-01-15"}});
    post(&cluster, "/api/v1/namespaces/kube-system/configmaps", tracking).await;
    let listed = json!({"metadata": {"name": "robot"}, "secrets": [{"name": "made"}, {"name": "mounted"}]});
    post(&cluster, &format!("{base}/serviceaccounts"), listed).await;
    for name in ["made", "mounted", "by-hand"] {
        let annotations = json!({"kubernetes.io/service-account.name": "robot"});
        let secret = json!({"metadata": {"name": name, "annotations": annotations}, "type": "kubernetes.io/service-account-token"});
        post(&cluster, &format!("{base}/secrets"), secret).await;
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "robot", "automountServiceAccountToken": false,
        "volumes": [{"name": "v", "secret": {"secretName": "mounted"}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}});
    post(&cluster, &format!("{base}/pods"), pod).await;
    let secret = |name: &str| cluster.stored("secrets", "default", name);
    let invalid = |name: &str| {
        let label = secret(name)
            .and_then(|s| s.pointer("/metadata/labels/kubernetes.io~1legacy-token-invalid-since").cloned());
        label.is_some()
    };
    let days = async |count: u64| seconds(count * 24 * 3600).await;
    days(2).await;
    assert!(!invalid("made"));
    days(3).await;
    assert!(
        invalid("made") && !invalid("mounted") && !invalid("by-hand"),
        "{:#?}",
        cluster.all_stored("secrets")
    );
    days(2).await;
    assert!(secret("made").is_some());
    days(3).await;
    assert!(secret("made").is_none(), "{:?}", secret("made"));
    assert!(secret("mounted").is_some() && secret("by-hand").is_some());
    cluster.shutdown().await;
}

fn authority() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

#[tokio::test(start_paused = true)]
async fn the_api_servers_authority_is_published_where_bundles_are_served() {
    let name = "kube-apiserver-serving-clustertrustbundle-publisher-controller";
    let ca = authority();
    let cluster = cluster(name, "certificates.k8s.io/v1beta1=true", &ca).await;
    let path = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    let old = json!({"metadata": {"name": "kubernetes.io:kube-apiserver-serving:old"},
        "spec": {"signerName": "kubernetes.io/kube-apiserver-serving", "trustBundle": authority()}});
    post(&cluster, path, old).await;
    post(&cluster, path, json!({"metadata": {"name": "mine"}, "spec": {"trustBundle": authority()}})).await;
    let bundles = || cluster.all_stored("clustertrustbundles.certificates.k8s.io");
    let published = || bundles().into_iter().find(|b| b["spec"]["trustBundle"] == ca.as_str());
    seconds(10).await;
    assert_eq!(bundles().len(), 2, "{:#?}", bundles());
    let one = published().unwrap();
    assert_eq!(one["spec"]["signerName"], "kubernetes.io/kube-apiserver-serving");
    // A deleted one comes back.
    let gone = format!("{path}/{}", one["metadata"]["name"].as_str().unwrap());
    cluster.client().bytes(http::Method::DELETE, &gone, "application/json", "").await.unwrap();
    seconds(10).await;
    assert!(published().is_some());
    let writes = cluster.writes();
    seconds(3600).await;
    assert_eq!(cluster.writes(), writes);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn controllers_of_kinds_that_are_not_served_end() {
    for name in [
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "podcertificaterequest-cleaner-controller",
    ] {
        let cluster = cluster(name, "api/legacy", &authority()).await;
        seconds(60).await;
        assert!(cluster.all_stored("clustertrustbundles.certificates.k8s.io").is_empty());
        cluster.shutdown().await;
    }
}

#[test]
fn upstreams_defaults() {
    let on = |name: &str| k8s_builtin::all().rows().any(|row| row.name == name);
    assert!(!on("bootstrap-signer-controller") && !on("token-cleaner-controller"));
    assert!(on("legacy-serviceaccount-token-cleaner-controller"));
}
