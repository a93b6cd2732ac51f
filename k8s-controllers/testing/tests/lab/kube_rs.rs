//! An unmodified kube-rs controller under test, and a resource of kube's derive macro.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_controllers::{Context, Error, Reconcile};
use k8s_core::api::api::core::v1::ConfigMap;
use k8s_testing::{Faults, Lab, Life};
use kube::{
    Api, Client, CustomResource, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{Controller, controller::Action, watcher},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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
    let report =
        Lab::new().program("kube-copier", copier).seeds(0..40).faults(Faults::all()).run(async |lab| {
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

#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "example.com", version = "v1", kind = "Shop", namespaced, status = "ShopStatus")]
#[kube(crates(k8s_openapi = "k8s_core::api"))]
struct ShopSpec {
    shelves: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
struct ShopStatus {
    open: bool,
}

k8s_core::adopt_kube_type!(
    OurShop(Shop),
    group = "example.com",
    version = "v1",
    plural = "shops",
    namespaced
);

struct Opens;

impl Reconcile for Opens {
    type Kind = OurShop;

    async fn reconcile(&self, cx: &Context, shop: Arc<OurShop>) -> Result<k8s_controllers::Action, Error> {
        let open = shop.spec.shelves > 0;
        cx.status(&shop, |shop| shop.status.get_or_insert_default().open = open).await?;
        Ok(k8s_controllers::Action::await_change())
    }
}

#[test]
fn a_type_of_kubes_derive_is_as_good_as_ours() {
    use k8s_core::api::Resource as Ours;
    assert_eq!(
        (Shop::group(&()).as_ref(), Shop::plural(&()).as_ref()),
        (<OurShop as Ours>::GROUP, <OurShop as Ours>::URL_PATH_SEGMENT)
    );
    let shops = k8s_controllers::Controller::<OurShop>::new();
    Lab::new().crd::<OurShop>().with(shops, || Opens).seeds(0..5).faults(Faults::all()).run(async |lab| {
        lab.create(&OurShop(Shop::new("corner", ShopSpec { shelves: 3 }))).await;
        lab.settle().await;
        let shop: OurShop = lab.get("corner").await;
        assert!(shop.status.as_ref().is_some_and(|s| s.open));
    });
}
