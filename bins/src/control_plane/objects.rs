//! Objects that an API server publishes about itself when it starts.

use std::net::SocketAddr;

use k8s_core::client::{Client, Error};
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
