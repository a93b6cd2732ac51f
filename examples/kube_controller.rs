//! An unmodified kube-rs controller, on a cluster in the same process and without a socket: every ConfigMap with the label `greet` gets a greeting.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_testing::TestCluster;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{Controller, controller::Action, watcher},
};
use serde_json::json;

async fn reconcile(map: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let maps: Api<ConfigMap> = Api::default_namespaced((*client).clone());
    let greeting = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "data": {"greeting": format!("hello, {}", map.name_any())},
    });
    maps.patch(&map.name_any(), &PatchParams::apply("greeter"), &Patch::Apply(greeting)).await?;
    Ok(Action::await_change())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::builder().nodes(0).start().await?;
    let client = Client::new(cluster.service(), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());

    let wanted = watcher::Config::default().labels("greet");
    let again = |_: Arc<ConfigMap>, _: &kube::Error, _: Arc<Client>| Action::requeue(Duration::from_secs(1));
    let controller = Controller::new(maps.clone(), wanted).run(reconcile, again, Arc::new(client));
    let running = tokio::spawn(controller.for_each(|_| async {}));

    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "world", "labels": {"greet": ""}}}))?;
    maps.create(&PostParams::default(), &map).await?;
    let greeted = cluster.until::<ConfigMap>("default", "world", |map| map.data.is_some()).await?;
    println!("{}", greeted.data.and_then(|mut data| data.remove("greeting")).unwrap_or_default());
    running.abort();
    Ok(())
}
