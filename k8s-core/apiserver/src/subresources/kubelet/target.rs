//! Targets of the proxy subresources: addresses of pods, Services and nodes.
//!
//! Guarantee: a user who may write EndpointSlices or pod statuses cannot make the server call loopback,
//! link-local or foreign addresses.

use std::sync::Arc;

use std::net::{IpAddr, SocketAddr};

use k8s_core::status::{ApiStatus, Reason};
use serde_json::Value;

use crate::{
    call::Call,
    proxy::{endpoints, is_global_unicast},
    resources::Resource,
    state::State,
    storage::current,
    value::{array_at, int_at, str_at},
};

/// The port of a kubelet whose node does not say another.
const KUBELET_PORT: i64 = 10250;

/// The address of a proxied request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The address.
    pub(super) address: SocketAddr,
    /// The request was for `https:NAME`.
    pub(super) tls: bool,
}

/// The target of a proxied request for a node.
pub(super) enum Node {
    /// Its kubelet; the Node object.
    Kubelet(Value),
    /// Another port of it.
    Port(Target),
}

fn not_allowed() -> ApiStatus {
    ApiStatus::bad_request("address not allowed")
}

fn unavailable(why: String) -> ApiStatus {
    ApiStatus::of(Reason::ServiceUnavailable, why)
}

/// The parts of `[scheme:]name[:port]`.
#[derive(Debug, PartialEq, Eq)]
struct Id<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    /// # Errors
    /// 400 for another scheme than http and https, or no name.
    fn parse(id: &'a str, kind: &str) -> Result<Self, ApiStatus> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match *parts.as_slice() {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => ("", "", ""),
        };
        if name.is_empty() || !["", "http", "https"].contains(&scheme) {
            return Err(ApiStatus::bad_request(format!("invalid {kind} request {id:?}")));
        }
        Ok(Id { tls: scheme == "https", name, port })
    }

    /// The port that is reached when none is named.
    fn default_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }
}

/// Target of `pods/ID/proxy`.
pub(super) fn of_pod(state: &Arc<State>, call: &Call, resource: &Resource) -> Result<Target, ApiStatus> {
    let id = Id::parse(&call.info.name, "pod")?;
    let (_, pod) = current(state, resource, &resource.key(&call.info.namespace, id.name), id.name)?;
    let ports = || array_at(&pod, "/spec/containers").iter().flat_map(|c| array_at(c, "/ports"));
    let number = match id.port.parse::<u16>() {
        Ok(number) => Some(number),
        Err(_) => {
            let named = ports().find(|p| id.port.is_empty() || str_at(p, "/name") == id.port);
            named.and_then(|p| int_at(p, "/containerPort")).and_then(|p| u16::try_from(p).ok())
        }
    };
    let ip: IpAddr = str_at(&pod, "/status/podIP").parse().map_err(|_| not_allowed())?;
    if !is_global_unicast(ip) {
        return Err(not_allowed());
    }
    Ok(Target { address: SocketAddr::new(ip, number.unwrap_or(id.default_port())), tls: id.tls })
}

/// Target of `services/ID/proxy`: one of its ready pods.
pub(super) fn of_service(state: &Arc<State>, call: &Call) -> Result<Target, ApiStatus> {
    let id = Id::parse(&call.info.name, "service")?;
    let namespace = &call.info.namespace;
    let stored = state.store.get("services", &format!("{namespace}/{}", id.name));
    let stored = stored.ok_or_else(|| ApiStatus::not_found("", "services", id.name))?;
    let service: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
    let ports = array_at(&service, "/spec/ports");
    let chosen = ports
        .iter()
        .find(|p| {
            str_at(p, "/name") == id.port || int_at(p, "/port").is_some_and(|n| n.to_string() == id.port)
        })
        .or_else(|| ports.first().filter(|_| id.port.is_empty()));
    let Some(chosen) = chosen else {
        return Err(unavailable(format!("no service port {} found for service {:?}", id.port, id.name)));
    };
    let found = endpoints(&state.store, namespace, id.name, str_at(chosen, "/name"))
        .find(|(endpoint, address)| is_pod_of(state, namespace, endpoint, address.ip()));
    let (_, address) = found
        .ok_or_else(|| unavailable(format!("no endpoints available for service {:?}", call.info.name)))?;
    Ok(Target { address, tls: id.tls })
}

/// Returns true if an endpoint's address is that of the pod that it names, in the namespace.
fn is_pod_of(state: &Arc<State>, namespace: &str, endpoint: &Value, ip: IpAddr) -> bool {
    let of = |field: &str| str_at(endpoint, &format!("/targetRef/{field}"));
    if of("kind") != "Pod" || of("namespace") != namespace || !is_global_unicast(ip) {
        return false;
    }
    let stored = state.store.get("pods", &format!("{namespace}/{}", of("name")));
    let Some(pod) = stored.and_then(|s| serde_json::from_slice::<Value>(&s.json).ok()) else { return false };
    let is_it = |text: &str| text.parse::<IpAddr>().is_ok_and(|own| own == ip);
    is_it(str_at(&pod, "/status/podIP"))
        || array_at(&pod, "/status/podIPs").iter().any(|one| is_it(str_at(one, "/ip")))
}

/// Target of `nodes/ID/proxy`.
pub(super) async fn of_node(state: &Arc<State>, call: &Call, resource: &Resource) -> Result<Node, ApiStatus> {
    let id = Id::parse(&call.info.name, "node")?;
    let (_, node) = current(state, resource, id.name, id.name)?;
    let own = int_at(&node, "/status/daemonEndpoints/kubeletEndpoint/Port").unwrap_or(KUBELET_PORT);
    let kubelet = [own, KUBELET_PORT].map(|port| port.to_string());
    if id.port.is_empty() || kubelet.iter().any(|port| port == id.port) {
        return Ok(Node::Kubelet(node));
    }
    let port: u16 = id
        .port
        .parse()
        .map_err(|_| ApiStatus::bad_request(format!("invalid node request {:?}", call.info.name)))?;
    let addresses = array_at(&node, "/status/addresses");
    let address = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| addresses.iter().find(|a| str_at(a, "/type") == *kind))
        .map_or("", |a| str_at(a, "/address"));
    let found = tokio::net::lookup_host((address, port)).await;
    let found: Vec<SocketAddr> = found.map_err(|e| ApiStatus::bad_request(e.to_string()))?.collect();
    if found.iter().any(|a| !is_global_unicast(a.ip())) {
        return Err(not_allowed());
    }
    let address = *found.first().ok_or_else(|| ApiStatus::bad_request("no addresses for hostname"))?;
    Ok(Node::Port(Target { address, tls: id.tls }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id =
            |text| Id::parse(text, "pod").map(|id| (id.tls, id.name.to_owned(), id.port.to_owned())).ok();
        assert_eq!(id("a"), Some((false, "a".into(), String::new())));
        assert_eq!(id("a:80"), Some((false, "a".into(), "80".into())));
        assert_eq!(id("https:a:443"), Some((true, "a".into(), "443".into())));
        assert_eq!(id("http:a:"), Some((false, "a".into(), String::new())));
        for wrong in ["ftp:a:1", ":80", "a:b:c:d", ""] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
    }
}
