//! Servers as an operator's tests use them, by kube-rs over the socket.

#![allow(clippy::disallowed_methods, reason = "tests compare with the wall clock")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use k8s_core::api::{ConfigMap, Namespace, Pod};
use k8s_envtest::{Environment, EnvironmentError, Server, ServerError};
use kube::{
    Api, CustomResource, CustomResourceExt,
    api::{ListParams, PostParams},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[kube(group = "example.com", version = "v1", kind = "Shop", namespaced)]
struct ShopSpec {
    sells: String,
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn server() -> Server {
    Environment::default().create().await.unwrap()
}

/// Sends a request without credentials; returns the response's first line.
fn bare_request(server: &Server, path: &str) -> String {
    let mut tcp = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    write!(tcp, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn definitions_come_from_types_texts_and_directories() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crds");
    let environment = Environment::default().with_crds(Shop::crd()).unwrap();
    let server = environment.with_crds_from_paths(vec![directory.into()]).unwrap().create().await.unwrap();
    let client = server.client().unwrap();
    let shops: Api<Shop> = Api::default_namespaced(client.clone());
    let corner = Shop::new("corner", ShopSpec { sells: "tea".into() });
    assert_eq!(shops.create(&PostParams::default(), &corner).await.unwrap().spec.sells, "tea");
    let listed = client.list_api_group_resources("example.com/v1").await.unwrap();
    let mut plurals: Vec<_> = listed.resources.iter().map(|row| row.name.as_str()).collect();
    plurals.sort_unstable();
    assert_eq!(plurals, ["shops", "teas"]);
    let namespaces: Api<Namespace> = Api::all(client);
    assert!(namespaces.get_opt("not-installed").await.unwrap().is_none(), "it is not a definition");
}

#[tokio::test]
async fn what_is_no_definition_is_refused_by_name() {
    let none = Environment::default().with_crds("shops");
    assert!(matches!(none, Err(EnvironmentError::UnsupportedCrdType)));
    let absent = Environment::default().with_crds_from_paths(vec!["no/such/crds".into()]).unwrap_err();
    assert!(absent.to_string().starts_with("no/such/crds: No such file"), "{absent}");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let other = Environment::default().with_crds(map).unwrap().create().await.unwrap_err();
    assert_eq!(other.to_string(), r#"not a CustomResourceDefinition: "v1" "ConfigMap""#);
    let mut invalid = serde_json::to_value(Shop::crd()).unwrap();
    invalid["spec"]["names"]["plural"] = "others".into();
    let refused = Environment::default().with_crds(vec![invalid]).unwrap().create().await.unwrap_err();
    assert!(
        matches!(&refused, EnvironmentError::DecodeCrd(why) if why.contains("shops.example.com")),
        "{refused}"
    );
}

#[tokio::test]
async fn it_is_an_api_server_alone_with_the_time_of_the_wall() {
    let server = server().await;
    let client = server.client().unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mine = object(json!({"metadata": {"name": "mine"}}));
    let made = namespaces.create(&PostParams::default(), &mine).await.unwrap();
    let created = SystemTime::from(made.metadata.creation_timestamp.unwrap().0);
    assert!(created.elapsed().unwrap_or_default() < Duration::from_secs(60), "{created:?}");
    // No controller makes service accounts, and pods are admitted without one.
    let pods: Api<Pod> = Api::namespaced(client, "mine");
    let pod =
        object(json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn only_the_kubeconfig_opens_it() {
    let server = server().await;
    assert!(bare_request(&server, "/api/v1/namespaces").contains("401"));
    let file = server.kubeconfig_file().to_owned();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), server.kubeconfig_yaml());
    let other = self::server().await;
    assert_ne!(other.kubeconfig_yaml(), server.kubeconfig_yaml(), "each has a token of its own");
}

#[tokio::test]
async fn servers_are_apart_and_leave_nothing() {
    let (one, two) = (server().await, server().await);
    let maps = |server: &Server| Api::<ConfigMap>::default_namespaced(server.client().unwrap());
    let map = object(json!({"metadata": {"name": "a"}}));
    maps(&one).create(&PostParams::default(), &map).await.unwrap();
    assert!(maps(&two).get_opt("a").await.unwrap().is_none());

    let (address, file) =
        (one.url().trim_start_matches("http://").to_owned(), one.kubeconfig_file().to_owned());
    let clone = one.clone();
    one.destroy().await.unwrap();
    assert!(!clone.exist() && two.exist());
    assert!(TcpStream::connect(&address).is_err(), "its port is closed");
    assert!(!file.parent().unwrap().exists());
    assert!(matches!(clone.destroy().await, Err(ServerError::EnvironmentDestroyed)));
    assert!(matches!(clone.client(), Err(ServerError::EnvironmentDestroyed)));

    let file = two.kubeconfig_file().to_owned();
    drop(two);
    assert!(!file.exists(), "dropping the last clone ends it, too");
}

#[tokio::test(start_paused = true)]
async fn virtual_time_and_a_blocked_test_are_no_matter() {
    let server = server().await;
    let answer = tokio::task::spawn_blocking(move || bare_request(&server, "/livez")).await.unwrap();
    assert_eq!(answer, "HTTP/1.1 401 Unauthorized", "it answers");
}
