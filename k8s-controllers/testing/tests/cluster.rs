//! Tests of [`TestCluster`] through its public API.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_apiserver::User;
use k8s_core::{
    api::{
        api::{
            apps::v1::Deployment,
            batch::v1::Job,
            core::v1::{ConfigMap, Namespace, Pod},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::{ListParams, WatchEvent},
    status::ApiStatus,
};
use k8s_testing::{TestCluster, node::EXIT};
use serde_json::json;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn web(replicas: i32) -> serde_json::Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    })
}

fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_deployment_becomes_ready_and_a_deleted_pod_is_replaced() -> Outcome {
    // The first start compiles the schemas of all built-in types; further ones show the cost per test.
    for which in ["first", "second"] {
        let begun = Instant::now();
        let cluster = TestCluster::builder().nodes(3).start().await?;
        println!("{which} start: {:?}", begun.elapsed());
        cluster.shutdown().await;
    }
    let cluster = TestCluster::builder().nodes(3).start().await?;
    cluster.create::<Deployment>("default", &web(3)).await?;
    cluster.until::<Deployment>("default", "web", |d| ready(d) == 3).await?;
    let pods = cluster.client().namespaced::<Pod>("default");
    let before = pods.list(&Default::default()).await?;
    let mut nodes: Vec<_> = before.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect();
    nodes.sort();
    assert_eq!(nodes, ["node-0", "node-1", "node-2"], "the scheduler spreads them");
    let name = before[0].metadata.name.clone().unwrap_or_default();
    pods.delete(&name, &Default::default()).await?;
    cluster.clock().sleep(Duration::from_secs(60)).await;
    let after = pods.list(&Default::default()).await?;
    assert!(after.iter().all(|p| p.metadata.name.as_ref() != Some(&name)));
    assert_eq!(
        after
            .iter()
            .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"))
            .count(),
        3
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_job_completes_and_hours_take_no_time() -> Outcome {
    let cluster = TestCluster::start().await?;
    let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 2, "ttlSecondsAfterFinished": 7200, "template": {
        "metadata": {"annotations": {EXIT: "0"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
    }}});
    cluster.create::<Job>("default", &job).await?;
    cluster.until::<Job>("default", "j", |j| j.status.as_ref().and_then(|s| s.succeeded) == Some(2)).await?;
    let begun = Instant::now();
    cluster.clock().sleep(Duration::from_secs(3 * 3600)).await;
    println!("three hours took {:?}", begun.elapsed());
    assert!(
        cluster.client().namespaced::<Job>("default").get_opt("j").await?.is_none(),
        "its time to live is over"
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn kube_rs_runs_on_it_without_a_socket() -> Outcome {
    let cluster = TestCluster::start().await?;
    cluster.create::<Deployment>("default", &web(2)).await?;
    cluster.until::<Deployment>("default", "web", |d| ready(d) == 2).await?;
    let client = kube::Client::new(cluster.service(), "default");
    let pods: kube::Api<Pod> = kube::Api::default_namespaced(client);
    let list = pods.list(&kube::api::ListParams::default().labels("app=web")).await?;
    assert_eq!(list.items.len(), 2);
    assert!(list.items.iter().all(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn admission_has_its_say() -> Outcome {
    let cluster = TestCluster::builder()
        .nodes(0)
        .admit(|admission: &mut k8s_apiserver::admission::Admission<'_>| {
            if admission.resource.kind != "Pod" {
                return Ok(());
            }
            admission.object["metadata"]["labels"]["team"] = json!(admission.user.name.replace(':', "-"));
            Ok(())
        })
        .start()
        .await?;
    let pod: Pod = cluster
        .create(
            "default",
            &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        )
        .await?;
    assert!(pod.metadata.labels.is_some_and(|l| l.contains_key("team")));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_counted_delayed_and_cut() -> Outcome {
    let cluster = TestCluster::bare().start().await?;
    let connection = cluster.connection();
    let maps = connection.client().namespaced::<ConfigMap>("default");
    let map = |name: &str| ConfigMap {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    let before = cluster.writes();
    connection.fail("create", "configmaps", 1, ApiStatus::internal("on purpose"));
    assert!(maps.create(&map("a")).await.unwrap_err().to_string().contains("on purpose"));
    assert!(cluster.stored("configmaps", "default", "a").is_none(), "it did not reach the server");
    maps.create(&map("a")).await?;
    assert_eq!((connection.count("create", "configmaps"), connection.writes()), (2, 2));
    assert_eq!(cluster.writes(), before + 1);
    assert_eq!(connection.sent("create", "configmaps")[1]["metadata"]["name"], "a");
    assert_eq!(cluster.stored("configmaps", "default", "a").unwrap_or_default()["metadata"]["name"], "a");
    assert_eq!(cluster.all_stored("configmaps").len(), 1);

    // Every event is a minute late.
    connection.delay("watch", "configmaps", Duration::from_secs(60));
    let mut events = maps.watch(&ListParams::default()).await?;
    let begun = cluster.clock().now();
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Added(_)))));
    assert_eq!(begun.duration_until(cluster.clock().now()).as_secs(), 60);

    connection.cut();
    let rest = tokio::time::timeout(Duration::from_secs(300), events.collect::<Vec<_>>()).await?;
    assert!(rest.iter().all(Result::is_err), "the watch ends: {rest:?}");
    assert!(maps.get_opt("a").await.is_err());
    assert!(cluster.client().namespaced::<ConfigMap>("default").get_opt("a").await?.is_some());
    connection.mend();
    assert!(maps.get_opt("a").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_listening_cluster_serves_each_user_with_that_users_permissions() {
    let cluster = TestCluster::bare().start().await.unwrap();
    let listening = cluster.listen().await.unwrap();
    let client = async |yaml: String| {
        let config = kube::config::Kubeconfig::from_yaml(&yaml).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    };
    let admin = client(listening.kubeconfig()).await;
    assert_eq!(admin.apiserver_version().await.unwrap().minor, "36");
    let namespaces: kube::Api<Namespace> = kube::Api::all(admin);
    assert!(namespaces.get("default").await.is_ok());
    let eve = client(listening.kubeconfig_of(User::new("eve", &[])).unwrap()).await;
    let namespaces: kube::Api<Namespace> = kube::Api::all(eve);
    let refused = namespaces.get("default").await.unwrap_err();
    assert!(refused.to_string().contains("User \"eve\" cannot get"), "{refused}");
    let file = listening.kubeconfig_file();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), listening.kubeconfig());
    drop(listening);
    assert!(!file.exists());
    assert!(
        namespaces.get("default").await.is_err_and(|e| !matches!(e, kube::Error::Api(_))),
        "it has ended"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cluster_in_virtual_time_does_not_listen() {
    let cluster = TestCluster::bare().start().await.unwrap();
    assert!(matches!(cluster.listen().await, Err(k8s_testing::Error::VirtualTime)));
    assert!(cluster.clock().now().as_second() < 1_600_000_000, "it begins in 2019");
}
