//! An unmodified kube-rs controller under test, and a resource made by kube's derive.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_core::api::api::core::v1::ConfigMap;
use k8s_testing::{Faults, Lab, Life};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{Controller, controller::Action, watcher},
};
use serde_json::json;

use crate::counters::original;

async fn reconcile(map: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let name = format!("{}-copy", map.name_any());
    let copy = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": map.data});
    let maps: Api<ConfigMap> = Api::default_namespaced((*client).clone());
    maps.patch(&name, &PatchParams::apply("kube-copier").force(), &Patch::Apply(copy)).await?;
    Ok(Action::await_change())
}

async fn copier(life: Life) {
    let client = Client::new(life.service(), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let again = |_: Arc<ConfigMap>, _: &kube::Error, _: Arc<Client>| Action::requeue(Duration::from_secs(1));
    let wanted = watcher::Config::default().labels("copy");
    Controller::new(maps, wanted).run(reconcile, again, Arc::new(client)).for_each(|_| async {}).await;
}

#[test]
fn a_kube_rs_controller_is_tested_as_ours_are() {
    let report = Lab::new().program("kube-copier", copier).seeds(0..20).faults(Faults::all()).run(async |lab| {
        for name in ["a", "b"] {
            lab.create(&original(name, "x")).await;
        }
        lab.settle().await;
        lab.edit("b", |map: &mut ConfigMap| map.data = None).await;
        lab.settle().await;
        assert_eq!(lab.get::<ConfigMap>("a-copy").await.data, original("a", "x").data);
        assert_eq!(lab.get::<ConfigMap>("b-copy").await.data, None);
        lab.assert_quiet_for(Duration::from_secs(3600)).await;
        let client = Client::new(lab.service(), "default");
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        assert_eq!(maps.list(&Default::default()).await.unwrap().items.len(), 4);
    });
    assert!(report.faults > 10, "{}", report.faults);
    let rule = &report.needed_role.rules[0];
    assert!(rule.verbs.contains(&"patch".to_owned()) && rule.verbs.contains(&"watch".to_owned()), "{rule:?}");
}
