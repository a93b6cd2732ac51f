//! EndpointSlices and Endpoints: sizes, hints, unready and terminating pods, mirroring.

use std::time::Duration;

use k8s_builtin::pods;
use k8s_core::{
    api::api::{
        apps::v1::Deployment,
        core::v1::{Endpoints, Node, Pod, Service},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    client::DeleteOptions,
    meta::ObjectExt,
};

use crate::{
    deployment,
    lab::{Lab, metadata},
    runs, service,
};

fn is(endpoint: &Endpoint) -> (Option<bool>, Option<bool>, Option<bool>) {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    (conditions.ready, conditions.serving, conditions.terminating)
}

async fn endpoints(lab: &Lab) -> Vec<Endpoint> {
    lab.list::<EndpointSlice>().await.into_iter().flat_map(|s| s.endpoints.unwrap_or_default()).collect()
}

#[tokio::test(start_paused = true)]
async fn no_slice_has_more_than_a_hundred_and_hints_name_zones() {
    let lab = Lab::start(3, runs).await;
    let mut web = service("web");
    web.spec.as_mut().unwrap().traffic_distribution = Some("PreferClose".into());
    lab.create(&web).await;
    lab.until("an empty slice", async || lab.list::<EndpointSlice>().await.len() == 1).await;
    lab.create(&deployment("web", 230)).await;
    lab.until("all ready", async || {
        let all = endpoints(&lab).await;
        all.len() == 230 && all.iter().all(|e| is(e) == (Some(true), Some(true), Some(false)))
    })
    .await;
    let slices: Vec<EndpointSlice> = lab.list().await;
    assert!(slices.iter().all(|s| s.endpoints.as_ref().is_none_or(|e| e.len() <= 100)));
    assert!((3..=5).contains(&slices.len()), "{} slices", slices.len());
    assert!(
        slices.iter().all(|s| s.annotation("endpoints.kubernetes.io/last-change-trigger-time").is_some())
    );
    for endpoint in endpoints(&lab).await {
        let node = endpoint.node_name.unwrap();
        let zone = endpoint.zone.unwrap();
        assert_eq!(zone, node.replace('n', "z"));
        let hints = endpoint.hints.unwrap();
        assert_eq!(hints.for_zones.unwrap()[0].name, zone);
        assert!(hints.for_nodes.is_none());
    }
    lab.is_quiet().await;
    lab.edit("web", |s: &mut Service| {
        s.spec.as_mut().unwrap().traffic_distribution = Some("PreferSameNode".into());
    })
    .await;
    lab.until("hints name nodes", async || {
        endpoints(&lab).await.iter().all(|e| {
            let nodes = e.hints.as_ref().and_then(|h| h.for_nodes.clone()).unwrap_or_default();
            nodes.first().map(|n| n.name.clone()) == e.node_name
        })
    })
    .await;
    // A node's new zone changes its endpoints.
    lab.edit("n1", |node: &mut Node| node.set_label("topology.kubernetes.io/zone", "elsewhere")).await;
    lab.until("they are elsewhere", async || {
        let moved =
            |e: &Endpoint| (e.node_name.as_deref() == Some("n1")) == (e.zone.as_deref() == Some("elsewhere"));
        endpoints(&lab).await.iter().all(moved)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn terminating_pods_serve_and_are_marked_and_headless_services_publish_what_they_should() {
    let lab = Lab::start(1, |pod| if pod.label("app") == Some("slow") { "Pending" } else { "Running" }).await;
    let mut slow = service("slow");
    let spec = slow.spec.as_mut().unwrap();
    spec.cluster_ip = Some("None".into());
    spec.publish_not_ready_addresses = Some(true);
    lab.create(&slow).await;
    lab.create(&deployment("slow", 2)).await;
    lab.until("published", async || {
        let all = endpoints(&lab).await;
        all.len() == 2 && all.iter().all(|e| is(e) == (Some(true), Some(false), Some(false)))
    })
    .await;
    let slice = &lab.list::<EndpointSlice>().await[0];
    assert_eq!(slice.label("service.kubernetes.io/headless"), Some(""));
    let old: Endpoints = lab.get("slow").await;
    assert_eq!(old.label("service.kubernetes.io/headless"), Some(""));
    assert_eq!(old.subsets.unwrap()[0].addresses.as_ref().unwrap().len(), 2);
    lab.delete::<Service>("slow", "Background").await;
    lab.delete::<Deployment>("slow", "Foreground").await;
    lab.until("gone", async || lab.list::<Pod>().await.is_empty() && endpoints(&lab).await.is_empty()).await;

    lab.create(&service("web")).await;
    lab.create(&deployment("web", 1)).await;
    lab.until("ready", async || endpoints(&lab).await.iter().any(|e| is(e).0 == Some(true))).await;
    let pod = lab.list::<Pod>().await.into_iter().find(pods::is_ready).unwrap();
    lab.delete::<Pod>(pod.name(), "Background").await;
    // The kubelet needs a second to end it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let going = endpoints(&lab).await;
    let going =
        going.iter().find(|e| e.target_ref.as_ref().unwrap().name.as_deref() == Some(pod.name())).unwrap();
    assert_eq!(is(going), (Some(false), Some(true), Some(true)));
    let old: Endpoints = lab.get("web").await;
    let ips = old.subsets.unwrap_or_default().into_iter().flat_map(|s| s.addresses.unwrap_or_default());
    assert!(ips.map(|a| a.ip).all(|ip| !going.addresses.contains(&ip)), "no new connections for it");
}

#[tokio::test(start_paused = true)]
async fn endpoints_written_by_hand_are_mirrored() {
    let lab = Lab::start(0, runs).await;
    let mut db = service("db");
    db.spec.as_mut().unwrap().selector = None;
    lab.create(&db).await;
    let subsets = |ip: &str| {
        let subset = serde_json::json!([{"addresses": [{"ip": ip, "hostname": "h"}], "notReadyAddresses": [{"ip": "fd00::1"}], "ports": [{"name": "p", "port": 5432}]}]);
        serde_json::from_value(subset).unwrap()
    };
    let mut manual = Endpoints { metadata: metadata("db"), subsets: subsets("192.0.2.1") };
    manual.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
    lab.create(&manual).await;
    let mirrored = async || {
        let mut all: Vec<EndpointSlice> = lab.list().await;
        all.sort_by(|a, b| a.address_type.cmp(&b.address_type));
        all
    };
    lab.until("two slices", async || mirrored().await.len() == 2).await;
    let all = mirrored().await;
    for slice in &all {
        assert_eq!(
            slice.label("endpointslice.kubernetes.io/managed-by"),
            Some("endpointslicemirroring-controller.k8s.io")
        );
        assert_eq!(slice.label("kubernetes.io/service-name"), Some("db"));
        assert_eq!(slice.label("team"), Some("a"));
        assert!(slice.name().starts_with("db-"));
        assert_eq!(slice.controller_ref().unwrap().kind, "Endpoints");
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(5432));
    }
    assert_eq!(is(&all[0].endpoints.as_ref().unwrap()[0]).0, Some(true));
    assert_eq!(is(&all[1].endpoints.as_ref().unwrap()[0]).0, Some(false));
    lab.is_quiet().await;
    lab.edit("db", |e: &mut Endpoints| e.subsets = subsets("192.0.2.2")).await;
    lab.until("followed", async || {
        mirrored().await[0].endpoints.as_ref().is_some_and(|e| e[0].addresses == ["192.0.2.2"])
    })
    .await;
    // A deleted slice is created again.
    let name = mirrored().await[0].name().to_owned();
    lab.api::<EndpointSlice>().delete(&name, &DeleteOptions::default()).await.unwrap();
    lab.until("back", async || mirrored().await.len() == 2).await;
    lab.edit("db", |e: &mut Endpoints| {
        let labels = e.metadata.labels.get_or_insert_default();
        labels.insert("endpointslice.kubernetes.io/skip-mirror".into(), "true".into());
    })
    .await;
    lab.until("not mirrored", async || mirrored().await.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn with_topology_mode_auto_zones_get_their_share() {
    // Three nodes in three zones with equal CPU.
    let lab = Lab::start(3, runs).await;
    let mut web = service("web");
    let mode = ("service.kubernetes.io/topology-mode".to_owned(), "Auto".to_owned());
    web.metadata.annotations = Some([mode].into());
    lab.create(&web).await;
    lab.create(&deployment("web", 2)).await;
    let zones = async || {
        let all = endpoints(&lab).await;
        let mut zones: Vec<String> = all
            .iter()
            .map(|e| {
                e.hints.iter().flat_map(|h| h.for_zones.iter().flatten()).map(|z| z.name.clone()).collect()
            })
            .collect();
        zones.sort();
        zones
    };
    let reason = "TopologyAwareHintsDisabled";
    lab.until("told", async || lab.heard("Service", reason, "Insufficient number of endpoints").await).await;
    assert_eq!(zones().await, ["", ""]);
    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().replicas = Some(3)).await;
    lab.until("hints", async || zones().await == ["z0", "z1", "z2"]).await;
    lab.until("told", async || lab.heard("Service", "TopologyAwareHintsEnabled", "IPv4").await).await;
    lab.is_quiet().await;
    // A node without a zone disables all hints.
    lab.edit("n2", |n: &mut Node| n.metadata.labels = None).await;
    lab.until("no hints", async || zones().await == ["", "", ""]).await;
    assert!(lab.heard("Service", reason, "Insufficient Node information").await);
}
