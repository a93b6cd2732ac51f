//! Objects that an API server publishes about itself when it starts.

use std::net::SocketAddr;

use k8s_core::{
    api::{api::networking::v1::ServiceCIDR, apimachinery::pkg::apis::meta::v1::Time},
    client::{Client, Error},
    clock::Clock,
};
use serde_json::json;

use super::ApiConfig;
use crate::{apply::apply, ranges};

/// Creates or updates the `kubernetes` Service and its EndpointSlice.
///
/// # Errors
/// The API server's error.
pub(super) async fn kubernetes_service(
    client: &Client,
    config: &ApiConfig,
    address: Option<SocketAddr>,
) -> Result<(), Error> {
    let port = address.map_or(6443, |a| a.port());
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": ranges::nth(config.services, 1), "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": config.advertise}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [config.advertise], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    apply(client, "/api/v1/namespaces/default/services/kubernetes", &service).await?;
    if config.advertise.is_loopback() {
        // Pods cannot reach a loopback address.
        tracing::warn!(address = %config.advertise, "the Service kubernetes has no endpoints: pods cannot reach this address");
        return Ok(());
    }
    for (path, object) in [
        ("/api/v1/namespaces/default/endpoints/kubernetes", endpoints),
        ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", slice),
    ] {
        apply(client, path, &object).await?;
    }
    Ok(())
}

/// Creates the ServiceCIDR `kubernetes`, which tells the range of the cluster's addresses. One that is there
/// stays as it is: its ranges cannot change.
///
/// # Errors
/// The API server's error.
pub(super) async fn service_range(client: &Client, config: &ApiConfig) -> Result<(), Error> {
    const PATH: &str = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let range = config.services.to_string();
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [range]},
    });
    if let Some(found) = client.all::<ServiceCIDR>().get_opt("kubernetes").await? {
        let ranges: Vec<_> = found.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        if ranges != [range.as_str()] {
            tracing::warn!(stored = ?ranges, %range, "the ServiceCIDR kubernetes does not match the configured range");
            return Ok(());
        }
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Ready") {
            return Ok(());
        }
    } else {
        match apply(client, PATH, &object).await {
            // `--runtime-config` may switch the resource off.
            Err(error) if error.is_not_found() => return Ok(()),
            made => made?,
        }
    }
    let mut ready = object;
    ready["status"]["conditions"] = json!([{
        "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": Time(Clock::system().now()),
        "message": "Kubernetes default Service CIDR is ready",
    }]);
    apply(client, &format!("{PATH}/status"), &ready).await
}
