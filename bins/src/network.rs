//! The network of this machine's node.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::Arc,
};

use k8s_core::client::{Client, Error};
use k8s_net::pod::PodNetwork;
use serde_json::json;

use crate::{control_plane::apply, exit::Failure, paths::Paths, ranges::Range};

/// The address that this machine has on the way to others; `None` when it has no way. No packet is sent.
#[must_use]
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address of the range for documentation: the route decides, nothing is sent.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

/// Makes the Service by which the cluster's DNS is known.
///
/// # Errors
/// When the API server refuses.
pub async fn publish_dns(client: &Client, dns: Ipv4Addr) -> Result<(), Error> {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
    ]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"clusterIP": dns, "ports": ports},
    });
    apply(client, "/api/v1/namespaces/kube-system/services/kube-dns", &service).await
}

pub fn leftovers(_: &Paths) -> Vec<String> { Vec::new() }
pub fn cleanup(_: &Paths) -> std::io::Result<()> { Ok(()) }
