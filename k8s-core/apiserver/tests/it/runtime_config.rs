//! `--runtime-config`: discovery, OpenAPI and requests agree about what is served.

use std::collections::{BTreeSet, HashMap};

use k8s_apiserver::{ApiServer, User, auth::Authenticator};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::{admin, done, server_with};

async fn get(server: &ApiServer, path: &str) -> Value {
    done(server, "GET", path, &Value::Null).await
}

/// The resources of a version in the three forms that tell of them: both of discovery, and OpenAPI v3.
async fn told(server: &ApiServer, group: &str, version: &str) -> [BTreeSet<String>; 3] {
    let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
    let list = admin(server, "GET", &format!("{root}/{version}"), "", "").await;
    let names = |values: &Value, field: &str| -> BTreeSet<String> {
        let all = values.as_array().into_iter().flatten().filter_map(|v| v[field].as_str());
        all.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    };
    let old = names(&list.json()["resources"], "name");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let request = http::Request::get(if group.is_empty() { "/api" } else { "/apis" })
        .header("authorization", "Bearer admin")
        .header("accept", accept);
    let all = crate::support::ask(server, request.body(Vec::new()).unwrap()).await.json();
    let items = all["items"].as_array().unwrap().iter();
    let own = items.filter(|item| item["metadata"]["name"].as_str().unwrap_or_default() == group);
    let versions = own.flat_map(|item| item["versions"].as_array().unwrap());
    let new = versions.filter(|v| v["version"] == version).flat_map(|v| names(&v["resources"], "resource"));
    let index = get(server, "/openapi/v3").await;
    let path = format!("{root}/{version}").trim_start_matches('/').to_owned();
    let mut described = BTreeSet::new();
    if index["paths"].get(&path).is_some() {
        let document = get(server, &format!("/openapi/v3/{path}")).await;
        let paths = document["paths"].as_object().unwrap().keys().filter(|path| !path.ends_with("/{name}"));
        described.extend(paths.map(|path| path.rsplit('/').next().unwrap().to_owned()));
    }
    [old, new.collect(), described]
}

fn set(names: &str) -> BTreeSet<String> {
    names.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn discovery_openapi_and_requests_agree() {
    let bundles = "certificates.k8s.io/v1beta1 clustertrustbundles podcertificaterequests";
    for (config, expected) in [
        (&[][..], &["certificates.k8s.io/v1beta1", "certificates.k8s.io/v1 certificatesigningrequests"][..]),
        (&["api/beta=true"], &[bundles, "certificates.k8s.io/v1alpha1"]),
        (&["api/all=true"], &[bundles, "certificates.k8s.io/v1alpha1 clustertrustbundles"]),
        (
            &["certificates.k8s.io/v1beta1/clustertrustbundles"],
            &["certificates.k8s.io/v1beta1 clustertrustbundles"],
        ),
        (
            &["api/beta=false"],
            &["policy/v1beta1", "policy/v1 poddisruptionbudgets", "apps/v1beta1", "extensions/v1beta1"],
        ),
        (
            &["apps/v1/replicasets=false"],
            &["apps/v1 controllerrevisions daemonsets deployments statefulsets"],
        ),
        (
            &["resource.k8s.io/v1beta2=true"],
            &["resource.k8s.io/v1beta2 deviceclasses resourceclaims resourceclaimtemplates resourceslices"],
        ),
        (
            &["api/all=false,v1/configmaps=true,v1/namespaces=true"],
            &["/v1 configmaps namespaces", "apps/v1", "certificates.k8s.io/v1"],
        ),
    ] {
        let server = server_with(config).await;
        for line in expected {
            let (name, resources) = line.split_once(' ').unwrap_or((line, ""));
            let (group, version) = name.split_once('/').unwrap();
            let want = set(resources);
            let found = told(&server, group, version).await;
            for (form, found) in ["discovery", "aggregated discovery", "OpenAPI"].iter().zip(found) {
                assert_eq!(found, want, "{config:?}: {form} of {name}");
            }
            let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
            for plural in &want {
                get(&server, &format!("{root}/{version}/{plural}")).await;
            }
        }
    }
}

#[tokio::test]
async fn reviews_and_names_of_the_core_are_turned_off_as_well() {
    let server =
        server_with(&["authorization.k8s.io/v1/subjectaccessreviews=false", "v1/bindings=false"]).await;
    let review = json!({"spec": {"user": "u", "nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let refused = admin(&server, "POST", path, "application/json", review.to_string()).await;
    assert_eq!(refused.status, 404);
    let own = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    done(&server, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &own).await;
    let path = "/api/v1/namespaces/default/bindings";
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(admin(&server, "POST", path, "application/json", binding.to_string()).await.status, 404);
    let listed = told(&server, "", "v1").await;
    assert!(!listed[0].contains("bindings") && !listed[1].contains("bindings"));
    assert!(listed[0].contains("componentstatuses"));
}

#[tokio::test]
async fn objects_wait_while_their_version_is_off() {
    let store = Store::memory();
    let make = |entry: &'static str| {
        let (store, user) = (store.clone(), User::new("admin", &["system:masters"]));
        ApiServer::builder(store)
            .authenticator(Authenticator::new(HashMap::from([("admin".to_owned(), user)]), true))
            .runtime_config([entry])
            .build()
    };
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let on = make("api/legacy=true").await.unwrap();
    done(&on, "POST", path, &json!({"metadata": {"name": "mine"}, "value": 7})).await;
    let off = make("scheduling.k8s.io/v1=false").await.unwrap();
    assert_eq!(admin(&off, "GET", &format!("{path}/mine"), "", "").await.status, 404);
    // The old version of the same objects is still served.
    let old = get(&off, "/apis/scheduling.k8s.io/v1beta1/priorityclasses/mine").await;
    assert_eq!(old["value"], 7);
    let again = make("scheduling.k8s.io/v1beta1=false").await.unwrap();
    assert_eq!(get(&again, &format!("{path}/mine")).await["value"], 7);
}

#[tokio::test]
async fn wrong_entries_stop_the_start() {
    for (entry, want) in [
        ("api/all=false", "--runtime-config: invalid runtime-config with only api/all=false"),
        ("zoo.example.com/v1=true", "--runtime-config: unknown api groups zoo.example.com/v1"),
        ("apps/v3=true", "--runtime-config: group version apps/v3 that has not been registered"),
    ] {
        let refused = ApiServer::builder(Store::memory()).runtime_config([entry]).build().await.unwrap_err();
        assert_eq!(refused.to_string(), want);
        assert!(refused.is_invalid());
    }
}
