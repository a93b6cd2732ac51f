//! An unmodified kube-rs client over TLS, with the cluster's kubeconfig, as from another machine.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use hyperkube::{Cluster, Node};
use k8s_apiserver::admission::Request;
use k8s_core::{meta::ObjectExt, status::ApiStatus};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_runtime::simulated::{Behavior, Simulated};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::Kubeconfig,
    runtime::{wait, watcher},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_with_the_clusters_kubeconfig() {
    let cluster = Cluster::builder()
        .memory()
        .node(Node::simulated(1))
        .listen("127.0.0.1:0".parse().unwrap())
        .start()
        .await
        .unwrap();
    cluster.ready(Duration::from_secs(30)).await.unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig().unwrap()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    assert_eq!(config.cluster_url.scheme_str(), Some("https"));
    let client = Client::try_from(config).unwrap();

    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    maps.patch("a", &PatchParams::apply("mine"), &Patch::Apply(&map)).await.unwrap();
    let mut seen = watcher::watcher(
        maps.clone(),
        watcher::Config::default().fields("metadata.name=a").streaming_lists(),
    )
    .boxed();
    assert!(matches!(seen.try_next().await.unwrap(), Some(watcher::Event::Init)));
    assert!(matches!(seen.try_next().await.unwrap(), Some(watcher::Event::InitApply(m)) if m.data.is_some()));
    assert!(matches!(seen.try_next().await.unwrap(), Some(watcher::Event::InitDone)));
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(matches!(seen.try_next().await.unwrap(), Some(watcher::Event::Delete(_))));

    // Larger than the compression threshold; kube-rs requests gzip if built with it.
    for i in 0..50 {
        let map = json!({"metadata": {"name": format!("m{i}")}, "data": {"d": "x".repeat(10_000)}});
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    }
    assert_eq!(maps.list(&ListParams::default().fields("metadata.name=m7")).await.unwrap().items.len(), 1);
    assert!(maps.list(&ListParams::default()).await.unwrap().items.len() > 50);

    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let running = wait::await_condition(pods, "p", wait::conditions::is_pod_running());
    tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap();

    // One registry has the metrics of all components.
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let metrics = client.request_text(request).await.unwrap();
    let value = |begin: &str| -> f64 {
        let line = metrics.lines().find_map(|l| l.strip_prefix(begin));
        let number =
            line.and_then(|l| l.rsplit(' ').next()).unwrap_or_else(|| panic!("{begin} in {metrics}"));
        number.parse().unwrap()
    };
    let configmaps =
        r#"dry_run="",group="",version="v1",resource="configmaps",subresource="",scope="resource""#;
    let posts =
        format!(r#"apiserver_request_total{{verb="POST",{configmaps},component="apiserver",code="201"}}"#);
    assert!(value(&posts) >= 50.0);
    assert_eq!(
        value(r#"scheduler_schedule_attempts_total{result="scheduled",profile="default-scheduler"}"#),
        1.0
    );
    assert!(value(r#"workqueue_adds_total{name="deployment-controller"}"#) >= 0.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    cluster.down().await.unwrap();
}

/// A custom distribution's parts in one cluster: a typed admission function, and another runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_runtime_and_an_admission_function_of_its_own() {
    let scripted = Simulated::scripted(|_, container| match container.name.as_str() {
        "ends" => Behavior { exit: Some((Duration::from_millis(1), 3)), ..Behavior::default() },
        _ => Behavior::default(),
    });
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder()
        .memory()
        .data_dir(data.path())
        .node_name("own")
        .runtime(scripted)
        .admit(|r: &mut Request<Pod>| r.object.set_label("team", r.user.group_or("shared")))
        .admit(|r: &mut Request<ConfigMap>| match r.old {
            Some(_) => Err(ApiStatus::forbidden("", "configmaps", r.object.name(), "it is carved in stone")),
            None => Ok(()),
        })
        .start()
        .await
        .unwrap();
    cluster.ready(Duration::from_secs(30)).await.unwrap();
    let client = Client::new(cluster.service(), "default");
    // The service account controller must create it first.
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    wait::await_condition(accounts, "default", |found: Option<&ServiceAccount>| found.is_some())
        .await
        .unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": "Never", "containers": [{"name": "ends", "image": "i"}]}});
    let made = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    assert_eq!(made.label("team"), Some("shared"));
    let failed = wait::await_condition(pods, "p", |pod: Option<&Pod>| {
        pod.and_then(|p| p.status.as_ref()?.phase.as_deref()) == Some("Failed")
    });
    tokio::time::timeout(Duration::from_secs(30), failed).await.unwrap().unwrap();

    // A node with a runtime has a kubelet, whose metrics are among the others.
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    assert!(client.request_text(request).await.unwrap().contains("\nkubelet_running_pods "));

    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    let patch = Patch::Merge(json!({"data": {"a": "b"}}));
    let refused = maps.patch("m", &PatchParams::default(), &patch).await.unwrap_err();
    assert!(refused.to_string().contains("it is carved in stone"), "{refused}");
    cluster.down().await.unwrap();
}
