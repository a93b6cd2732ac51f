//! Ranges of cluster addresses: added, used and removed.

use k8s_core::{
    api::api::{core::v1::Service, networking::v1::ServiceCIDR},
    client::DeleteOptions,
    meta::ObjectExt,
};
use serde_json::json;

use crate::{lab::Lab, runs};

fn ready(range: &ServiceCIDR) -> Option<(&str, &str)> {
    let all = range.status.as_ref()?.conditions.as_ref()?;
    all.iter().find(|c| c.type_ == "Ready").map(|c| (c.status.as_str(), c.reason.as_str()))
}

#[tokio::test(start_paused = true)]
async fn a_range_goes_when_no_service_needs_it() {
    let lab = Lab::start(0, runs).await;
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}});
    lab.create::<ServiceCIDR>(&serde_json::from_value(range).unwrap()).await;
    let state = async || lab.client.all::<ServiceCIDR>().get_opt("more").await.unwrap();
    lab.until("ready", async || state().await.is_some_and(|r| ready(&r) == Some(("True", "")))).await;
    let service = json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.200.0.7", "ports": [{"port": 80}]}});
    lab.create::<Service>(&serde_json::from_value(service).unwrap()).await;
    lab.client.all::<ServiceCIDR>().delete("more", &DeleteOptions::default()).await.unwrap();
    lab.until("told", async || state().await.is_some_and(|r| ready(&r) == Some(("False", "Terminating"))))
        .await;
    lab.is_quiet().await;
    assert!(state().await.is_some_and(|range| range.is_deleting()));
    // No new address comes of it.
    let service = json!({"metadata": {"name": "late", "namespace": "default"},
        "spec": {"clusterIP": "10.200.0.8", "ports": [{"port": 80}]}});
    let late: Service = serde_json::from_value(service).unwrap();
    assert!(lab.client.namespaced::<Service>("default").create(&late).await.is_err());
    lab.delete::<Service>("web", "Background").await;
    lab.until("gone", async || state().await.is_none()).await;
    lab.is_quiet().await;
}
