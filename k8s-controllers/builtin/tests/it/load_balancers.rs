//! Addresses of Services of type LoadBalancer.

use std::time::Duration;

use k8s_builtin::{OWN_PORTS, SERVICE_LB_CLASS, Selection};
use k8s_core::{
    api::api::{
        core::v1::{ConfigMap, Event, Node, Service},
        discovery::v1::EndpointSlice,
    },
    client::{Api, Client, ListParams, Patch},
    meta::Object,
};
use k8s_testing::TestCluster;
use serde_json::{Value, json};

struct Lb {
    _cluster: TestCluster,
    client: Client,
}

impl Lb {
    /// Starts the load balancer with the nodes a (192.0.2.1) and b (192.0.2.2).
    async fn start() -> Lb {
        let controllers = Selection::none().with("service");
        let cluster = TestCluster::bare().controllers(controllers).start().await.unwrap();
        let lb = Lb { client: cluster.client(), _cluster: cluster };
        lb.node("a", "192.0.2.1").await;
        lb.node("b", "192.0.2.2").await;
        let map = json!({"metadata": {"namespace": OWN_PORTS.0, "name": OWN_PORTS.1}});
        lb.in_namespace::<ConfigMap>(OWN_PORTS.0).create(&from(map)).await.unwrap();
        lb
    }

    fn in_namespace<K: Object>(&self, namespace: &str) -> Api<K> {
        self.client.namespaced(namespace)
    }

    async fn node(&self, name: &str, address: &str) {
        let node: Node = from(json!({"metadata": {"name": name}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": address}]}}));
        let nodes = self.in_namespace::<Node>("");
        nodes.create(&node).await.unwrap();
        nodes.replace_status(name, &node).await.unwrap();
    }

    async fn ready(&self, name: &str, status: &str) {
        let nodes = self.in_namespace::<Node>("");
        let mut node = nodes.get(name).await.unwrap();
        for condition in node.status.as_mut().unwrap().conditions.iter_mut().flatten() {
            condition.status = status.into();
        }
        nodes.replace_status(name, &node).await.unwrap();
    }

    /// Sets the ports that a node uses itself.
    async fn own_ports(&self, node: &str, ports: &str) {
        let patch = Patch::Merge(json!({"data": {node: ports}}));
        self.in_namespace::<ConfigMap>(OWN_PORTS.0).patch(OWN_PORTS.1, &patch).await.unwrap();
    }

    async fn create(&self, name: &str, port: i32, more: Value) {
        let mut spec = json!({"type": "LoadBalancer", "ports": [{"port": port}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let service = from(json!({"metadata": {"name": name}, "spec": spec}));
        self.services().create(&service).await.unwrap();
    }

    fn services(&self) -> Api<Service> {
        self.in_namespace("default")
    }

    async fn patch(&self, name: &str, patch: Value) {
        self.services().patch(name, &Patch::Merge(patch)).await.unwrap();
    }

    async fn addresses(&self, name: &str) -> Vec<String> {
        let service = self.services().get(name).await.unwrap();
        let ingress = service.status.and_then(|s| s.load_balancer?.ingress).unwrap_or_default();
        assert!(ingress.iter().all(|point| point.ip_mode.as_deref() == Some("VIP")));
        ingress.into_iter().filter_map(|point| point.ip).collect()
    }

    async fn until(&self, what: &str, done: impl AsyncFn() -> bool) {
        for _ in 0..6000 {
            if done().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within a minute: {what}");
    }

    async fn has(&self, name: &str, wanted: &[&str]) {
        self.until(&format!("{name} has {wanted:?}"), async || self.addresses(name).await == wanted).await;
    }

    /// Lets the controller do what it would do.
    async fn rest(&self) {
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    async fn heard(&self, name: &str, reason: &str, part: &str) {
        self.until(&format!("{name}: {reason} {part}"), async || {
            let all = self.in_namespace::<Event>("default").list(&ListParams::default()).await.unwrap();
            all.iter().any(|e| {
                e.involved_object.name.as_deref() == Some(name)
                    && e.reason.as_deref() == Some(reason)
                    && e.message.as_deref().is_some_and(|m| m.contains(part))
            })
        })
        .await;
    }
}

fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

const BOTH: &[&str] = &["192.0.2.1", "192.0.2.2"];

#[tokio::test(start_paused = true)]
async fn services_get_the_addresses_of_ready_nodes_until_their_type_changes() {
    let lb = Lb::start().await;
    lb.create("web", 80, json!({})).await;
    lb.has("web", BOTH).await;
    lb.heard("web", "EnsuringLoadBalancer", "Ensuring load balancer").await;
    lb.heard("web", "EnsuredLoadBalancer", "Ensured load balancer").await;
    lb.create("ours", 81, json!({"loadBalancerClass": SERVICE_LB_CLASS})).await;
    lb.has("ours", BOTH).await;
    lb.create("foreign", 82, json!({"loadBalancerClass": "metallb.io/metallb"})).await;
    lb.create("one", 83, json!({"loadBalancerIP": "192.0.2.2"})).await;
    lb.has("one", &["192.0.2.2"]).await;
    lb.create("none", 84, json!({"loadBalancerIP": "192.0.2.77"})).await;
    lb.heard("none", "SyncLoadBalancerFailed", "no ready node has the address 192.0.2.77").await;

    lb.ready("a", "False").await;
    lb.has("web", &["192.0.2.2"]).await;
    lb.heard("web", "UpdatedLoadBalancer", "Updated load balancer with new hosts").await;
    // Without a ready node the addresses stay.
    lb.ready("b", "Unknown").await;
    lb.heard("web", "UnAvailableLoadBalancer", "There are no available nodes for LoadBalancer").await;
    assert_eq!(lb.addresses("web").await, ["192.0.2.2"]);
    lb.ready("a", "True").await;
    lb.has("web", &["192.0.2.1"]).await;
    lb.ready("b", "True").await;
    lb.has("web", BOTH).await;
    assert_eq!(lb.addresses("foreign").await, Vec::<String>::new());
    assert_eq!(lb.addresses("none").await, Vec::<String>::new());

    lb.patch("web", json!({"spec": {"type": "ClusterIP", "allocateLoadBalancerNodePorts": null, "externalTrafficPolicy": null}})).await;
    lb.has("web", &[]).await;
    lb.heard("web", "DeletedLoadBalancer", "Deleted load balancer").await;
    lb.patch("web", json!({"spec": {"type": "LoadBalancer"}})).await;
    lb.has("web", BOTH).await;
}

#[tokio::test(start_paused = true)]
async fn a_port_of_an_address_has_one_service() {
    let lb = Lb::start().await;
    lb.create("first", 80, json!({})).await;
    lb.has("first", BOTH).await;
    lb.create("second", 80, json!({})).await;
    lb.create("beside", 443, json!({})).await;
    lb.has("beside", BOTH).await;
    lb.create("datagrams", 80, json!({"ports": [{"port": 80, "protocol": "UDP"}]})).await;
    lb.has("datagrams", BOTH).await;
    lb.heard("second", "SyncLoadBalancerFailed", "port 80/TCP of 192.0.2.1 belongs to Service default/first")
        .await;
    assert_eq!(lb.addresses("second").await, Vec::<String>::new());
    // An older Service takes nothing from the one that has it.
    lb.patch("first", json!({"spec": {"ports": [{"port": 443, "protocol": "TCP"}]}})).await;
    lb.heard(
        "first",
        "SyncLoadBalancerFailed",
        "port 443/TCP of 192.0.2.1 belongs to Service default/beside",
    )
    .await;
    lb.has("first", &[]).await;
    lb.has("second", BOTH).await;
    lb.services().delete("beside", &Default::default()).await.unwrap();
    lb.has("first", BOTH).await;
    lb.rest().await;
    assert_eq!(lb.addresses("second").await, BOTH);

    // Node ports and external IPs of others.
    let node_port: Service = from(
        json!({"metadata": {"name": "np"}, "spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30080}]}}),
    );
    lb.services().create(&node_port).await.unwrap();
    let external: Service = from(
        json!({"metadata": {"name": "ext"}, "spec": {"externalIPs": ["192.0.2.2"], "ports": [{"port": 8443}]}}),
    );
    lb.services().create(&external).await.unwrap();
    lb.rest().await;
    lb.create("greedy", 30080, json!({})).await;
    lb.heard("greedy", "SyncLoadBalancerFailed", "port 30080/TCP of 192.0.2.1 belongs to Service default/np")
        .await;
    lb.create("late", 8443, json!({})).await;
    lb.has("late", &["192.0.2.1"]).await;
    lb.heard("late", "SyncLoadBalancerFailed", "port 8443/TCP of 192.0.2.2 belongs to Service default/ext")
        .await;
    lb.services().delete("ext", &Default::default()).await.unwrap();
    lb.has("late", BOTH).await;
    assert_eq!(lb.addresses("greedy").await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn ports_of_the_nodes_themselves_are_not_given() {
    let lb = Lb::start().await;
    lb.own_ports("a", "TCP/22 TCP/6443 UDP/192.0.2.1:53").await;
    lb.own_ports("b", "TCP/22").await;
    lb.create("api", 6443, json!({})).await;
    lb.has("api", &["192.0.2.2"]).await;
    lb.heard("api", "SyncLoadBalancerFailed", "port 6443/TCP of 192.0.2.1 is in use on node a itself").await;
    lb.create("ssh", 22, json!({})).await;
    lb.heard("ssh", "SyncLoadBalancerFailed", "port 22/TCP of 192.0.2.2 is in use on node b itself").await;
    lb.create("dns", 53, json!({"ports": [{"port": 53, "protocol": "UDP"}]})).await;
    lb.has("dns", &["192.0.2.2"]).await;
    // A program starts, and ends.
    lb.own_ports("b", "TCP/22 TCP/6443").await;
    lb.has("api", &[]).await;
    lb.own_ports("a", "").await;
    lb.has("api", &["192.0.2.1"]).await;
    lb.has("ssh", &["192.0.2.1"]).await;
}

#[tokio::test(start_paused = true)]
async fn local_policies_get_the_nodes_with_endpoints() {
    let lb = Lb::start().await;
    lb.create("web", 80, json!({"externalTrafficPolicy": "Local"})).await;
    lb.rest().await;
    assert_eq!(lb.addresses("web").await, Vec::<String>::new());
    let endpoint = |node: &str, ready: bool| json!({"addresses": ["10.42.0.5"], "nodeName": node, "conditions": {"ready": ready}});
    let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [endpoint("b", true), endpoint("a", false)]});
    let slices = lb.in_namespace::<EndpointSlice>("default");
    slices.create(&from(slice)).await.unwrap();
    lb.has("web", &["192.0.2.2"]).await;
    let patch = json!({"endpoints": [endpoint("b", false), endpoint("a", true)]});
    slices.patch("web-1", &Patch::Merge(patch)).await.unwrap();
    lb.has("web", &["192.0.2.1"]).await;
}

/// The owner of an older Service takes no address from a load balancer that has it.
#[tokio::test(start_paused = true)]
async fn an_external_ip_that_comes_later_takes_nothing() {
    let lb = Lb::start().await;
    lb.create("old", 443, json!({"type": "ClusterIP"})).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    lb.create("shop", 443, json!({})).await;
    lb.has("shop", BOTH).await;
    lb.patch("old", json!({"spec": {"externalIPs": ["192.0.2.1"]}})).await;
    lb.rest().await;
    assert_eq!(lb.addresses("shop").await, BOTH);
    // A newer load balancer does not get what is an external IP already.
    lb.patch("old", json!({"spec": {"ports": [{"name": "b", "port": 444}, {"name": "a", "port": 443}]}}))
        .await;
    lb.create("late", 444, json!({})).await;
    lb.has("late", &["192.0.2.2"]).await;
}
