//! Addresses and node ports of Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use k8s_apiserver::{ApiServer, User};
use k8s_core::{api::jiff::Timestamp, clock::Clock};
use k8s_store::{Backend, BackendError, Change, Done, Loaded, Local, Opaque, Sink, Store, Write};
use serde_json::{Value, json};

use crate::support::{Answer, ask_as, done};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

async fn server(store: &Store, range: &str) -> ApiServer {
    let admin = User::new("admin", &["system:masters"]);
    let users = std::collections::HashMap::from([("admin".to_owned(), admin)]);
    ApiServer::builder(store.clone())
        .authenticator(k8s_apiserver::auth::Authenticator::new(users, true))
        .service_range(range.parse().unwrap())
        .clock(Clock::starting_at(Timestamp::UNIX_EPOCH))
        .build()
        .await
        .unwrap()
}

async fn try_create(server: &ApiServer, name: &str, spec: Value) -> Answer {
    let mut full = json!({"ports": [{"port": 80}]});
    full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let service = json!({"metadata": {"name": name}, "spec": full});
    ask_as(server, &User::new("admin", &["system:masters"]), "POST", SERVICES, &service).await
}

async fn create(server: &ApiServer, name: &str, spec: Value) -> Value {
    let answer = try_create(server, name, spec).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.json()
}

fn why(answer: &Answer) -> String {
    answer.json()["message"].as_str().unwrap_or_default().to_owned()
}

fn address(service: &Value) -> String {
    service["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

/// Addresses with the Services that have them.
async fn addresses(server: &ApiServer) -> BTreeMap<String, String> {
    let list = done(server, "GET", ADDRESSES, &Value::Null).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = list["items"].as_array().unwrap().iter();
    all.map(|ip| (text(&ip["metadata"]["name"]), text(&ip["spec"]["parentRef"]["name"]))).collect()
}

#[tokio::test]
async fn each_address_of_a_service_is_an_object() {
    let store = Store::memory();
    let server = server(&store, "10.96.0.0/24").await;
    let ip = address(&create(&server, "a", json!({})).await);
    create(&server, "headless", json!({"clusterIP": "None"})).await;
    create(&server, "name", json!({"type": "ExternalName", "externalName": "x.y"})).await;
    assert_eq!(addresses(&server).await, [(ip.clone(), "a".to_owned())].into());
    let object = done(&server, "GET", &format!("{ADDRESSES}/{ip}"), &Value::Null).await;
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    assert_eq!(object["metadata"]["labels"], labels);
    let parent = json!({"resource": "services", "namespace": "default", "name": "a"});
    assert_eq!(object["spec"]["parentRef"], parent);

    // An address in use is claimed again, even if somebody deletes it.
    done(&server, "DELETE", &format!("{ADDRESSES}/{ip}"), &Value::Null).await;
    assert_eq!(addresses(&server).await.get(&ip).map(String::as_str), Some("a"));
    let taken = try_create(&server, "b", json!({"clusterIP": ip})).await;
    let want = format!(
        "spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: provided IP is already allocated"
    );
    assert!(taken.status == 422 && why(&taken).ends_with(&want), "{}", why(&taken));
    let outside = try_create(&server, "b", json!({"clusterIP": "10.97.0.1"})).await;
    assert!(
        why(&outside).ends_with("the provided network does not match the current range"),
        "{}",
        why(&outside)
    );
    let last = try_create(&server, "b", json!({"clusterIP": "10.96.0.255"})).await;
    let want =
        "the provided IP (10.96.0.255) is not in the valid range. The range of valid IPs is 10.96.0.0/24";
    assert!(why(&last).ends_with(want), "{}", why(&last));
    // The address belongs to the creator of the object.
    let claim = json!({"metadata": {"name": "10.96.0.9"},
        "spec": {"parentRef": {"group": "gateway.networking.k8s.io", "resource": "gateways", "name": "g"}}});
    done(&server, "POST", ADDRESSES, &claim).await;
    assert_eq!(try_create(&server, "b", json!({"clusterIP": "10.96.0.9"})).await.status, 422);

    // A change of the type gives the address back, and so does the end.
    let external = json!({"spec": {"type": "ExternalName", "externalName": "x.y", "clusterIP": null, "clusterIPs": null}});
    done(&server, "PATCH", &format!("{SERVICES}/a"), &external).await;
    assert_eq!(addresses(&server).await.len(), 1);
    create(&server, "b", json!({"clusterIP": ip})).await;
    done(&server, "DELETE", &format!("{SERVICES}/b"), &Value::Null).await;
    assert_eq!(addresses(&server).await.into_keys().collect::<Vec<_>>(), ["10.96.0.9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_give_nothing_twice() {
    let store = Store::memory();
    // 30 addresses for 40 Services.
    let servers = [server(&store, "10.96.0.0/27").await, server(&store, "10.96.0.0/27").await];
    let all = join_all((0..40).map(|i| {
        let server = &servers[i % 2];
        async move { try_create(server, &format!("s{i}"), json!({"type": "NodePort"})).await }
    }))
    .await;
    let made: Vec<Value> = all.iter().filter(|a| a.status == 201).map(Answer::json).collect();
    assert_eq!(made.len(), 30);
    let ips: BTreeSet<String> = made.iter().map(address).collect();
    let ports: BTreeSet<i64> =
        made.iter().map(|s| s["spec"]["ports"][0]["nodePort"].as_i64().unwrap()).collect();
    assert_eq!((ips.len(), ports.len()), (30, 30));
    let full = all.iter().find(|a| a.status != 201).unwrap();
    assert!(full.status == 500 && why(full).ends_with("range is full"), "{}", why(full));
    // A Service that was refused left no claim behind, a node port neither.
    assert_eq!(addresses(&servers[0]).await.into_keys().collect::<BTreeSet<_>>(), ips);
    assert_eq!(store.snapshot("ranges.servicenodeports").range("", "").count(), 30);
}

#[tokio::test]
async fn added_ranges_are_used_while_they_are_ready() {
    let store = Store::memory();
    let server = server(&store, "10.96.0.0/30").await;
    let range = async |name: &str, cidr: &str| {
        done(&server, "POST", RANGES, &json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}})).await;
    };
    create(&server, "a", json!({})).await;
    create(&server, "b", json!({})).await;
    assert_eq!(try_create(&server, "c", json!({})).await.status, 500);
    range("more", "10.97.0.0/29").await;
    assert_eq!(try_create(&server, "c", json!({})).await.status, 500, "it is not ready");
    let ready = async |name: &str, status: &str| {
        let condition = json!({"type": "Ready", "status": status, "reason": "r", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"status": {"conditions": [condition]}});
        done(&server, "PATCH", &format!("{RANGES}/{name}/status"), &status).await;
    };
    ready("more", "True").await;
    assert!(address(&create(&server, "c", json!({})).await).starts_with("10.97.0."));
    create(&server, "d", json!({})).await;
    ready("more", "False").await;
    assert_eq!(try_create(&server, "e", json!({})).await.status, 500);
    // An object for the configured range can take it out of use.
    range("kubernetes", "10.96.0.0/30").await;
    done(&server, "DELETE", &format!("{SERVICES}/a"), &Value::Null).await;
    ready("kubernetes", "False").await;
    assert_eq!(try_create(&server, "e", json!({})).await.status, 500);
    ready("kubernetes", "True").await;
    create(&server, "e", json!({})).await;
}

#[tokio::test]
async fn ports_of_one_number_share_a_node_port() {
    let store = Store::memory();
    let server = server(&store, "10.96.0.0/24").await;
    let dns = json!([{"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53, "protocol": "TCP"},
        {"name": "m", "port": 9153}]);
    let service = create(&server, "dns", json!({"type": "NodePort", "ports": dns})).await;
    let ports: Vec<i64> = (0..3).map(|i| service["spec"]["ports"][i]["nodePort"].as_i64().unwrap()).collect();
    assert_eq!(ports[0], ports[1]);
    assert_ne!(ports[0], ports[2]);
    let asked = json!([{"name": "u", "port": 53, "protocol": "UDP"},
        {"name": "t", "port": 53, "protocol": "TCP", "nodePort": 30100}]);
    let service = create(&server, "asked", json!({"type": "NodePort", "ports": asked})).await;
    assert_eq!(service["spec"]["ports"][0]["nodePort"], 30100);
    let taken = json!([{"port": 1, "nodePort": 30100}]);
    let refused = try_create(&server, "c", json!({"type": "NodePort", "ports": taken})).await;
    let want = "spec.ports[0].nodePort: Invalid value: 30100: provided port is already allocated";
    assert!(refused.status == 422 && why(&refused).ends_with(want), "{}", why(&refused));
    let low = json!([{"port": 1, "nodePort": 80}]);
    let refused = try_create(&server, "c", json!({"type": "NodePort", "ports": low})).await;
    assert!(why(&refused).ends_with("The range of valid ports is 30000-32767"), "{}", why(&refused));
    // Neither took an address, nor a port that was right.
    assert_eq!(addresses(&server).await.len(), 2);

    // The health check of a load balancer has a port while it is needed.
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false});
    let service = create(&server, "lb", local).await;
    assert!(service["spec"]["ports"][0].get("nodePort").is_none());
    let port = service["spec"]["healthCheckNodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    let held = || store.get("ranges.servicenodeports", &port.to_string()).is_some();
    assert!(held());
    done(&server, "PATCH", &format!("{SERVICES}/lb"), &json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert!(held());
    let moved = json!({"spec": {"healthCheckNodePort": 22}});
    let admin = User::new("admin", &["system:masters"]);
    let refused = ask_as(&server, &admin, "PATCH", &format!("{SERVICES}/lb"), &moved).await;
    assert!(
        why(&refused).ends_with("spec.healthCheckNodePort: Forbidden: field is immutable"),
        "{}",
        why(&refused)
    );
    // It is no port of the Service's ports.
    let own = json!({"spec": {"ports": [{"port": 80, "nodePort": port}]}});
    let refused = ask_as(&server, &admin, "PATCH", &format!("{SERVICES}/lb"), &own).await;
    assert_eq!(refused.status, 422, "{}", why(&refused));
    done(&server, "PATCH", &format!("{SERVICES}/lb"), &json!({"spec": {"externalTrafficPolicy": "Cluster"}}))
        .await;
    assert!(!held());

    // A dry run takes nothing.
    let before = addresses(&server).await;
    let dry = format!("{SERVICES}?dryRun=All");
    let body = json!({"metadata": {"name": "dry"}, "spec": {"type": "NodePort", "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}});
    for _ in 0..2 {
        let shown = done(&server, "POST", &dry, &body).await;
        assert_eq!(shown["spec"]["clusterIP"], "10.96.0.0");
        assert_eq!(shown["spec"]["ports"][1]["nodePort"], 32770);
    }
    assert_eq!(addresses(&server).await, before);
}

#[tokio::test]
async fn a_store_from_before_is_claimed_at_the_start() {
    let store = Store::memory();
    let first = server(&store, "10.96.0.0/24").await;
    let ip = address(&create(&first, "a", json!({"type": "NodePort"})).await);
    drop(first);
    for resource in ["ipaddresses.networking.k8s.io", "ranges.servicenodeports"] {
        let snapshot = store.snapshot(resource);
        let all: Vec<_> = snapshot.range("", "").collect();
        assert_eq!(all.len(), 1);
        for one in all {
            store.delete(resource, &one.key, one.revision, |_| one.json.clone()).await.unwrap();
        }
    }
    let second = server(&store, "10.96.0.0/24").await;
    assert_eq!(addresses(&second).await, [(ip, "a".to_owned())].into());
    assert_eq!(store.snapshot("ranges.servicenodeports").range("", "").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_over_is_found() {
    let store = Store::memory();
    let server = server(&store, "10.96.0.0/24").await;
    create(&server, "a", json!({"type": "NodePort"})).await;
    let labels = json!({"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    let orphan = |ip: &str, name: &str| {
        json!({"metadata": {"name": ip, "labels": labels},
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": name}}})
    };
    done(&server, "POST", ADDRESSES, &orphan("10.96.0.77", "gone")).await;
    done(&server, "POST", ADDRESSES, &orphan("10.96.0.78", "a")).await;
    let mine = json!({"metadata": {"name": "10.96.0.79"}, "spec": {"parentRef": {"resource": "services",
        "namespace": "default", "name": "gone"}}});
    done(&server, "POST", ADDRESSES, &mine).await;
    assert_eq!(addresses(&server).await.len(), 4);
    tokio::time::sleep(Duration::from_secs(400)).await;
    let left = addresses(&server).await;
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains_key("10.96.0.79"), "somebody else's stays");
    assert_eq!(store.snapshot("ranges.servicenodeports").range("", "").count(), 1);
}

#[tokio::test]
async fn more_ports_than_there_are_take_none() {
    let store = Store::memory();
    let server = server(&store, "10.96.0.0/24").await;
    let ports: Vec<Value> = (1..3000).map(|i| json!({"name": format!("p{i}"), "port": i})).collect();
    let refused = try_create(&server, "many", json!({"type": "NodePort", "ports": ports})).await;
    assert!(refused.status == 500 && why(&refused).ends_with("range is full"), "{}", why(&refused));
    assert!(addresses(&server).await.is_empty());
    assert_eq!(store.snapshot("ranges.servicenodeports").range("", "").count(), 0);
}

#[tokio::test]
async fn a_generated_name_is_that_of_the_claims() {
    let store = Store::memory();
    let server = server(&store, "10.96.0.0/24").await;
    let service = json!({"metadata": {"generateName": "web-"}, "spec": {"ports": [{"port": 80}]}});
    let mut names = BTreeSet::new();
    for _ in 0..5 {
        let made = done(&server, "POST", SERVICES, &service).await;
        names.insert(made["metadata"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(addresses(&server).await.into_values().collect::<BTreeSet<_>>(), names);
}

/// `kubectl create service --tcp=80:8080` names the port `80-8080`, which a slice must be able to have.
#[tokio::test]
async fn a_port_of_an_endpoint_slice_may_have_the_name_of_a_port_of_a_service() {
    let server = server(&Store::memory(), "10.96.0.0/24").await;
    let ports = json!([{"name": "80-8080", "port": 80}]);
    create(&server, "web", json!({"ports": ports})).await;
    let slice =
        json!({"metadata": {"name": "web-1"}, "addressType": "IPv4", "ports": ports, "endpoints": []});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    done(&server, "POST", slices, &slice).await;
    let wrong = json!({"metadata": {"name": "web-2"}, "addressType": "IPv4", "endpoints": [],
        "ports": [{"name": "a.b", "port": 80}]});
    let refused = ask_as(&server, &User::new("admin", &["system:masters"]), "POST", slices, &wrong).await;
    assert!(
        refused.status == 422 && why(&refused).contains("ports[0].name: Invalid value"),
        "{}",
        why(&refused)
    );
}

/// A backend whose writes are visible a second after they began.
struct Slow(Local);

struct Late {
    sink: Arc<dyn Sink>,
    queue: tokio::sync::mpsc::UnboundedSender<Vec<Change>>,
}

impl Backend for Slow {
    fn start(&self, sink: Arc<dyn Sink>) -> Result<u64, BackendError> {
        let (queue, mut queued) = tokio::sync::mpsc::unbounded_channel::<Vec<Change>>();
        let shown = sink.clone();
        tokio::spawn(async move {
            while let Some(changes) = queued.recv().await {
                tokio::time::sleep(Duration::from_secs(1)).await;
                shown.apply(changes);
            }
        });
        self.0.start(Arc::new(Late { sink, queue }))
    }

    fn write(&self, write: Write<'_>, done: Done) {
        self.0.write(write, done);
    }
}

impl Sink for Late {
    fn load(&self, object: Loaded) {
        self.sink.load(object);
    }

    fn apply(&self, changes: Vec<Change>) -> bool {
        self.queue.send(changes).is_ok()
    }

    fn current(&self, resource: &str, key: &str) -> Option<(u64, Bytes)> {
        self.sink.current(resource, key)
    }

    fn ailing(&self, reason: Option<String>) {
        self.sink.ailing(reason);
    }
}

/// A request that ends half-way gives back nothing that its Service has: the write goes on without it.
#[tokio::test(start_paused = true)]
async fn a_service_keeps_its_address_when_its_request_is_dropped() {
    let store = Store::open(Slow(Local::memory(0)), Opaque).unwrap();
    let server = server(&store, "10.96.0.0/24").await;
    let (mut stored, mut gone) = (BTreeSet::new(), 0);
    for i in 0..8 {
        let name = format!("s{i}");
        let request = try_create(&server, &name, json!({"type": "NodePort"}));
        let _ = tokio::time::timeout(Duration::from_millis(500 + 500 * i), request).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let Some(service) = store.get("services", &format!("default/{name}")) else {
            gone += 1;
            continue;
        };
        stored.insert(name.clone());
        let service: Value = serde_json::from_slice(&service.json).unwrap();
        assert_eq!(addresses(&server).await.get(&address(&service)), Some(&name));
        let port = service["spec"]["ports"][0]["nodePort"].to_string();
        let claim = store.get("ranges.servicenodeports", &port).expect("the port is its");
        assert!(String::from_utf8_lossy(&claim.json).contains(&name));
    }
    assert!(stored.len() > 2 && gone > 2, "{stored:?} were stored, {gone} were not");
    // The others' claims are found.
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(addresses(&server).await.into_values().collect::<BTreeSet<_>>(), stored);
    assert_eq!(store.snapshot("ranges.servicenodeports").range("", "").count(), stored.len());
}
