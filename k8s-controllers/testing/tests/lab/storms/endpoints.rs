//! Endpoints and EndpointSlices.

use std::{collections::BTreeMap, time::Duration};

use k8s_builtin::pods;
use k8s_core::{
    api::api::{
        apps::v1::ReplicaSet,
        core::v1::{Endpoints, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    meta::ObjectExt,
    random,
};
use k8s_testing::controllers::{endpoint_slice, endpoints, garbage_collector, named, replica_set};
use serde_json::json;

use super::{storm, template};

#[test]
fn endpoints_of_all_kinds_show_exactly_the_pods() {
    let mirroring = named("endpointslicemirroring").unwrap();
    let controllers = [endpoint_slice(), endpoints(), mirroring, replica_set(), garbage_collector()];
    storm(15).controllers(controllers).run(async |lab| {
        let ports = json!([{"port": 80, "targetPort": 8080}]);
        lab.create_from::<Service>(
            json!({"metadata": {"name": "web"}, "spec": {"ports": ports, "selector": {"app": "web"}}}),
        )
        .await;
        lab.create_from::<Service>(json!({"metadata": {"name": "manual"}, "spec": {"ports": ports}})).await;
        lab.create_from::<Endpoints>(json!({"metadata": {"name": "manual"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]}))
            .await;
        lab.create_from::<ReplicaSet>(json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one"),
        }}))
        .await;
        let mut size = 4;
        for _ in 0..3 {
            lab.sleep(Duration::from_secs(20)).await;
            size = random::range(0..8);
            lab.edit("web", |s: &mut ReplicaSet| s.spec.as_mut().unwrap().replicas = Some(size)).await;
        }
        lab.sleep(Duration::from_secs(30)).await;
        lab.assert_idempotent().await;

        let ready = |p: &Pod| p.label("app") == Some("web") && pods::is_active(p) && pods::is_ready(p);
        let all: Vec<Pod> = lab.list().await;
        let ip = |p: &Pod| p.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default();
        let mut want: Vec<String> = all.iter().filter(|p| ready(p)).map(ip).collect();
        want.sort();
        assert_eq!(want.len(), usize::try_from(size).unwrap());
        let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for slice in lab.list::<EndpointSlice>().await {
            let name = slice.label("kubernetes.io/service-name").unwrap_or_default().to_owned();
            let addresses = slice.endpoints.iter().flatten().flat_map(|e| e.addresses.clone());
            shown.entry(name).or_default().extend(addresses);
        }
        shown.values_mut().for_each(|list| list.sort());
        assert_eq!(shown.get("web"), Some(&want));
        assert_eq!(shown.get("manual"), Some(&vec!["192.0.2.1".to_owned()]));
        let old: Endpoints = lab.get("web").await;
        let addresses = old.subsets.iter().flatten().flat_map(|s| s.addresses.iter().flatten());
        let mut old: Vec<String> = addresses.map(|a| a.ip.clone()).collect();
        old.sort();
        assert_eq!(old, want);

        // Deleting the Services deletes their slices; manually written slices stay.
        lab.delete::<Service>("web").await;
        lab.delete::<Service>("manual").await;
        lab.settle().await;
        assert_eq!(lab.list::<EndpointSlice>().await.len(), 0);
        let left: Vec<Endpoints> = lab.list().await;
        assert_eq!(left.iter().map(ObjectExt::name).collect::<Vec<_>>(), ["manual"]);
    });
}
