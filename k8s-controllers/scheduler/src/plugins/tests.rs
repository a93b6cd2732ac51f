//! Tables of the plugins: scores, refusals and hints.

use std::sync::Arc;

use k8s_core::{
    api::api::{
        core::v1::{Node, Pod},
        resource::v1::ResourceClaim,
    },
    cache::Cache,
    meta::Object,
};
use serde_json::{Value, json};

use super::*;
use crate::{Cluster, Cycle, Event, NodeInfo, PodInfo, Reject, WakeOn, volumes::Lists};

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn node(name: &str, more: Value) -> Node {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "10", "memory": "10Gi", "pods": "110"}},
    });
    merge(&mut value, more);
    from(value)
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more,
    }
}

fn pod(name: &str, more: Value) -> Arc<PodInfo> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"containers": [{"name": "c"}]},
    });
    merge(&mut value, more);
    Arc::new(PodInfo::new(Arc::new(from::<Pod>(value))))
}

fn asking(cpu: &str, memory: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
}

fn listed<K: Object>(objects: Vec<Value>) -> Cache<K> {
    let cache = Cache::new();
    cache.replace(objects.into_iter().map(from).collect(), 1);
    cache
}

/// Makes a plugin, and returns its scores for the nodes after normalization, if it has any.
fn scores(name: &str, args: Value, cluster: &Cluster, pod: &PodInfo) -> Option<Vec<i64>> {
    let row = ROWS.iter().find(|row| row.name == name).unwrap();
    let plugin = (row.make)(&args).unwrap();
    let (mut cx, nodes) = (Cycle::new(cluster), cluster.nodes().iter().collect::<Vec<&NodeInfo>>());
    if plugin.pre_score.as_ref().is_some_and(|p| !p.pre_score(&mut cx, pod, &nodes)) {
        return None;
    }
    let score = plugin.score.as_ref().unwrap();
    let mut all: Vec<i64> = nodes.iter().map(|node| score.score(&cx, pod, node)).collect();
    if let Some(normalize) = &plugin.normalize {
        normalize.normalize(&cx, pod, &nodes, &mut all);
    }
    Some(all)
}

/// Returns the refusal of one node, or of all.
fn refusal(plugin: &Points, cluster: &Cluster, pod: &PodInfo, node: &str) -> Option<String> {
    let mut cx = Cycle::new(cluster);
    let said = |reject: Reject| Some(reject.reasons.join(", "));
    match plugin.pre_filter.as_ref().map(|p| p.pre_filter(&mut cx, pod)) {
        Some(Err(reject)) => return said(reject),
        Some(Ok(false)) => return None,
        _ => {}
    }
    let filter = plugin.filter.as_ref().unwrap();
    filter.filter(&cx, pod, cluster.node(node).unwrap()).err().and_then(said)
}

fn made(name: &str) -> Points {
    let row = ROWS.iter().find(|row| row.name == name).unwrap();
    (row.make)(&Value::Null).unwrap()
}

#[test]
fn strategies_of_node_resources_fit() {
    let mut cluster = Cluster::default();
    for name in ["empty", "half"] {
        cluster.set_node(Arc::new(node(name, json!({"status": {"allocatable": {"example.com/gpu": "4"}}}))));
    }
    cluster.set_pod(pod("there", asking("4", "2Gi")), "half");
    let ask = pod("new", asking("1", "1Gi"));
    let strategy =
        |strategy: Value| scores("NodeResourcesFit", json!({"scoringStrategy": strategy}), &cluster, &ask);
    assert_eq!(scores("NodeResourcesFit", Value::Null, &cluster, &ask), Some(vec![90, 60]));
    assert_eq!(strategy(json!({"type": "MostAllocated"})), Some(vec![10, 40]));
    let cpu = json!([{"name": "cpu", "weight": 3}, {"name": "memory", "weight": 1}]);
    assert_eq!(strategy(json!({"type": "MostAllocated", "resources": cpu})), Some(vec![10, 45]));
    // Full score at 40 %, less beside it.
    let shape = json!([{"utilization": 0, "score": 0}, {"utilization": 40, "score": 10}, {"utilization": 100, "score": 5}]);
    let ratio = json!({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": {"shape": shape},
        "resources": [{"name": "cpu"}]});
    assert_eq!(strategy(ratio), Some(vec![25, 92]));
    // An extended resource counts only for pods that ask for it.
    let gpu = json!({"type": "MostAllocated", "resources": [{"name": "example.com/gpu"}]});
    assert_eq!(strategy(gpu.clone()), Some(vec![0, 0]));
    let ask = pod(
        "gpu",
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}}),
    );
    assert_eq!(
        scores("NodeResourcesFit", json!({"scoringStrategy": gpu}), &cluster, &ask),
        Some(vec![25, 25])
    );
}

#[test]
fn requests_of_pods_as_the_node_has_them() {
    let fit = made("NodeResourcesFit");
    let mut cluster = Cluster::default();
    cluster.set_node(Arc::new(node("a", json!({}))));
    for (what, more, free) in [
        ("containers", asking("4", "1Gi"), 6),
        (
            "overhead",
            json!({"spec": {"overhead": {"cpu": "1"}, "containers": [{"name": "c", "resources": {"requests": {"cpu": "4"}}}]}}),
            5,
        ),
        (
            "pod level",
            json!({"spec": {"resources": {"requests": {"cpu": "7"}}, "containers": [{"name": "c", "resources": {"requests": {"cpu": "4"}}}]}}),
            3,
        ),
        (
            "the largest initial one",
            json!({"spec": {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "9"}}}]}}),
            1,
        ),
        // In the course of a resize from 6 to 2: the larger counts.
        (
            "resize",
            json!({"spec": asking("2", "1Gi")["spec"], "status": {"containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "allocatedResources": {"cpu": "6"}},
            ]}}),
            4,
        ),
        (
            "infeasible resize",
            json!({"spec": asking("20", "1Gi")["spec"], "status": {
            "conditions": [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}],
            "containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "allocatedResources": {"cpu": "6", "memory": "1Gi"}},
            ]}}),
            4,
        ),
    ] {
        cluster.set_pod(pod("there", more), "a");
        let asks = |cpu: i64| refusal(&fit, &cluster, &pod("new", asking(&cpu.to_string(), "1Mi")), "a");
        assert_eq!((asks(free), asks(free + 1).as_deref()), (None, Some("Insufficient cpu")), "{what}");
    }
    let ignoring = json!({"ignoredResources": ["example.com/a"], "ignoredResourceGroups": ["free.com"]});
    let row = ROWS.iter().find(|row| row.name == "NodeResourcesFit").unwrap();
    let ignoring = (row.make)(&ignoring).unwrap();
    let ask = |name: &str| {
        pod("x", json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {name: "1"}}}]}}))
    };
    assert_eq!(
        refusal(&fit, &cluster, &ask("example.com/a"), "a").as_deref(),
        Some("Insufficient example.com/a")
    );
    for (name, refused) in [("example.com/a", false), ("free.com/b", false), ("example.com/b", true)] {
        assert_eq!(refusal(&ignoring, &cluster, &ask(name), "a").is_some(), refused, "{name}");
    }
}

#[test]
fn images_count_by_size_and_spread() {
    let mut cluster = Cluster::default();
    let images =
        json!({"status": {"images": [{"names": ["web:latest"], "sizeBytes": 1000 * 1024 * 1024u64}]}});
    cluster.set_node(Arc::new(node("has", images)));
    cluster.set_node(Arc::new(node("lacks", json!({}))));
    let web = pod("web", json!({"spec": {"containers": [{"name": "c", "image": "web"}]}}));
    // On one of two nodes: half its size counts.
    assert_eq!(scores("ImageLocality", Value::Null, &cluster, &web), Some(vec![48, 0]));
    cluster.set_node(Arc::new(node("has", json!({"status": {"images": null}}))));
    assert_eq!(scores("ImageLocality", Value::Null, &cluster, &web), None, "no node has it");
}

fn spread_lists() -> Lists {
    let set = json!({"metadata": {"name": "web-1", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    let lists = Lists::default();
    lists.controllers.replica_sets.replace(vec![from(set)], 1);
    lists
}

#[test]
fn pods_of_a_controller_are_spread_over_hosts_and_zones_by_default() {
    let owned = json!({"metadata": {"labels": {"app": "web"}, "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "u", "controller": true},
    ]}});
    let mut cluster = Cluster::watching(Cache::new(), spread_lists());
    let zone = |zone: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
    for name in ["a1", "a2", "b1"] {
        cluster.set_node(Arc::new(node(name, json!({}))));
    }
    cluster.set_pod(pod("one", owned.clone()), "a1");
    let new = pod("new", owned.clone());
    // One pod beside it: ln(5) * 1 + 2 = 3.6 against 2.
    assert_eq!(scores("PodTopologySpread", Value::Null, &cluster, &new), Some(vec![50, 100, 100]));
    for name in ["a1", "a2", "b1"] {
        cluster.set_node(Arc::new(node(name, zone(&name[..1]))));
    }
    let by_zone = scores("PodTopologySpread", Value::Null, &cluster, &new).unwrap();
    assert!(by_zone[2] > by_zone[1] && by_zone[1] > by_zone[0], "{by_zone:?}");
    assert_eq!(scores("PodTopologySpread", Value::Null, &cluster, &pod("alone", json!({}))), None);
    let list = json!({"defaultingType": "List", "defaultConstraints": []});
    assert_eq!(scores("PodTopologySpread", list, &cluster, &new), None);
}

#[test]
fn affinity_weights_of_placed_pods_are_configured() {
    let mut cluster = Cluster::default();
    for name in ["a", "b"] {
        cluster.set_node(Arc::new(node(name, json!({}))));
    }
    let term =
        json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}});
    let near = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
    cluster.set_pod(pod("cache", near), "b");
    let web = pod("web", json!({"metadata": {"labels": {"app": "web"}}}));
    assert_eq!(scores("InterPodAffinity", Value::Null, &cluster, &web), Some(vec![0, 100]));
    let ignored = json!({"hardPodAffinityWeight": 0});
    assert_eq!(scores("InterPodAffinity", ignored, &cluster, &web), None);
    let ignored = json!({"ignorePreferredTermsOfExistingPods": true});
    assert_eq!(scores("InterPodAffinity", ignored, &cluster, &web), None);
}

#[test]
fn affinity_of_the_configuration_is_added() {
    let mut cluster = Cluster::default();
    cluster.set_node(Arc::new(node("a", json!({"metadata": {"labels": {"pool": "x"}}}))));
    let row = ROWS.iter().find(|row| row.name == "NodeAffinity").unwrap();
    let pool = |value: &str| {
        let terms = json!([{"matchExpressions": [{"key": "pool", "operator": "In", "values": [value]}]}]);
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        (row.make)(&json!({"addedAffinity": required})).unwrap()
    };
    let any = pod("any", json!({}));
    assert_eq!(refusal(&pool("x"), &cluster, &any, "a"), None);
    let wanted = "node(s) didn't match scheduler-enforced node affinity";
    assert_eq!(refusal(&pool("y"), &cluster, &any, "a").as_deref(), Some(wanted));
}

fn with_claim(name: &str, claim: &str) -> Arc<PodInfo> {
    pod(name, json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}}))
}

fn volume(name: &str, size: &str, more: Value) -> Value {
    let mut volume = json!({
        "metadata": {"name": name},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "late"},
        "status": {"phase": "Available"},
    });
    merge(&mut volume, more);
    volume
}

fn on_node(name: &str) -> Value {
    let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]);
    json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}})
}

fn claim(name: &str, more: Value) -> Value {
    let mut claim = json!({
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}")},
        "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    merge(&mut claim, more);
    claim
}

fn storage(claims: Vec<Value>, volumes: Vec<Value>, provisioner: &str) -> Cluster {
    let class = json!({"metadata": {"name": "late"}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"});
    let eager = json!({"metadata": {"name": "eager"}, "provisioner": "x", "volumeBindingMode": "Immediate"});
    let lists = Lists {
        claims: listed(claims),
        volumes: listed(volumes),
        classes: listed(vec![class, eager]),
        ..Lists::default()
    };
    let mut cluster = Cluster::watching(Cache::new(), lists);
    for name in ["a", "b"] {
        cluster.set_node(Arc::new(node(name, json!({}))));
    }
    cluster
}

#[test]
fn volumes_are_made_where_the_driver_has_room() {
    let plugin = made("VolumeBinding");
    let disk = "disk.example.com";
    let big = claim("big", json!({"spec": {"resources": {"requests": {"storage": "9Gi"}}}}));
    let told = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}});
    let claims = || vec![claim("small", json!({})), big.clone(), claim("told", told.clone())];
    let on = |name: &str| json!({"matchLabels": {"kubernetes.io/hostname": name}});
    let room = |name: &str, more: Value| {
        let mut all = json!({"metadata": {"name": name, "namespace": "d"}, "storageClassName": "late"});
        merge(&mut all, more);
        all
    };
    let said = |published: Option<bool>, rooms: &[Value], name: &str| {
        let cluster = storage(claims(), vec![], disk);
        let lists = cluster.lists().unwrap();
        let driver = json!({"metadata": {"name": disk}, "spec": {"storageCapacity": published}});
        lists.csi_drivers.replace(vec![from(driver)], 1);
        lists.capacities.replace(rooms.iter().cloned().map(from).collect(), 1);
        let pod = with_claim("p", name);
        let free = |node| match refusal(&plugin, &cluster, &pod, node).as_deref() {
            None => true,
            Some(reason) => {
                let wanted = [
                    "node(s) did not have enough free storage",
                    "node(s) didn't find available persistent volumes to bind",
                ];
                assert!(wanted.contains(&reason), "{reason}");
                false
            }
        };
        (free("a"), free("b"))
    };
    // A driver that does not publish its room has it everywhere.
    assert_eq!(said(None, &[], "big"), (true, true));
    assert_eq!(said(Some(false), &[], "big"), (true, true));
    assert_eq!(said(Some(true), &[], "small"), (false, false));
    let rooms = [
        room("a", json!({"nodeTopology": on("a"), "capacity": "10Gi"})),
        room("b", json!({"nodeTopology": on("b"), "capacity": "10Gi", "maximumVolumeSize": "2Gi"})),
    ];
    assert_eq!(said(Some(true), &rooms, "small"), (true, true));
    assert_eq!(said(Some(true), &rooms, "big"), (true, false), "volumes of b are smaller");
    assert_eq!(said(Some(true), &rooms, "told"), (true, false));
    assert_eq!(said(Some(true), &rooms[1..], "told"), (false, false), "a has no room any more");
    for (nodes, more) in [
        ((true, true), json!({"nodeTopology": {}, "capacity": "10Gi"})),
        ((false, false), json!({"capacity": "10Gi"})),
        ((false, false), json!({"nodeTopology": {}})),
        ((false, false), json!({"nodeTopology": {}, "capacity": "1023Mi"})),
        ((false, false), json!({"nodeTopology": {}, "capacity": "10Gi", "storageClassName": "other"})),
    ] {
        assert_eq!(said(Some(true), &[room("x", more.clone())], "small"), nodes, "{more}");
    }
}

#[test]
fn claims_are_bound_where_their_volumes_are() {
    let none = "kubernetes.io/no-provisioner";
    let plugin = made("VolumeBinding");
    let bound = |volume: &str| {
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": volume}, "status": {"phase": "Bound"}})
    };
    let cluster = storage(
        vec![
            claim("waits", json!({})),
            claim("large", json!({"spec": {"resources": {"requests": {"storage": "9Gi"}}}})),
            claim("eager", json!({"spec": {"storageClassName": "eager"}})),
            claim("bound", bound("pv-b")),
            claim("orphan", bound("pv-none")),
            claim("lost", json!({"spec": {"volumeName": "pv-x"}, "status": {"phase": "Lost"}})),
        ],
        vec![volume("pv-a", "2Gi", on_node("a")), volume("pv-b", "2Gi", on_node("b"))],
        none,
    );
    let said = |name: &str, node: &str| refusal(&plugin, &cluster, &with_claim("p", name), node);
    assert_eq!((said("waits", "a"), said("waits", "b")), (None, None));
    assert_eq!(said("bound", "b"), None);
    for (name, node, wanted) in [
        ("bound", "a", "node(s) didn't match PersistentVolume's node affinity"),
        ("large", "a", "node(s) didn't find available persistent volumes to bind"),
        ("eager", "a", "pod has unbound immediate PersistentVolumeClaims"),
        ("orphan", "a", "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
        ("lost", "a", "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"pv-x\""),
        ("nothing", "a", "persistentvolumeclaim \"nothing\" not found"),
    ] {
        assert_eq!(said(name, node).as_deref(), Some(wanted), "{name}");
    }
    let ephemeral = pod("p", json!({"spec": {"volumes": [{"name": "v", "ephemeral": {}}]}}));
    let wanted = "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"";
    assert_eq!(refusal(&plugin, &cluster, &ephemeral, "a").as_deref(), Some(wanted));
}

#[test]
fn a_volume_is_promised_to_one_pod_and_given_back() {
    let cluster = storage(
        vec![claim("one", json!({})), claim("two", json!({}))],
        vec![volume("pv-a", "2Gi", on_node("a"))],
        "kubernetes.io/no-provisioner",
    );
    let plugin = made("VolumeBinding");
    let reserve = plugin.reserve.as_ref().unwrap();
    let (first, second) = (with_claim("first", "one"), with_claim("second", "two"));
    reserve.reserve(&cluster, &first, cluster.node("a").unwrap()).unwrap();
    let taken = "node(s) didn't find available persistent volumes to bind";
    assert_eq!(refusal(&plugin, &cluster, &second, "a").as_deref(), Some(taken));
    assert_eq!(refusal(&plugin, &cluster, &first, "a"), None, "its own promise does not count");
    reserve.unreserve(&first, "a");
    assert_eq!(refusal(&plugin, &cluster, &second, "a"), None);
}

#[test]
fn a_claim_that_its_provisioner_has_a_node_for_stays_there() {
    let selected = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}});
    let cluster = storage(vec![claim("one", selected), claim("two", json!({}))], vec![], "example.com/disk");
    let plugin = made("VolumeBinding");
    assert_eq!(refusal(&plugin, &cluster, &with_claim("p", "one"), "a"), None);
    assert!(refusal(&plugin, &cluster, &with_claim("p", "one"), "b").is_some());
    assert_eq!(refusal(&plugin, &cluster, &with_claim("p", "two"), "b"), None);
}

#[test]
fn volumes_restrict_zones_users_and_numbers() {
    let bound = |volume: &str| json!({"spec": {"volumeName": volume, "accessModes": ["ReadWriteOncePod"]}, "status": {"phase": "Bound"}});
    let zoned = json!({"metadata": {"labels": {"failure-domain.beta.kubernetes.io/zone": "x__y"}}});
    let csi = |handle: &str| json!({"spec": {"csi": {"driver": "d", "volumeHandle": handle}}});
    let mut cluster = storage(
        vec![claim("zoned", bound("pv-z")), claim("c1", bound("pv-1")), claim("c2", bound("pv-2"))],
        vec![volume("pv-z", "2Gi", zoned), volume("pv-1", "2Gi", csi("1")), volume("pv-2", "2Gi", csi("2"))],
        "x",
    );
    let limit = json!({"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "d", "nodeID": "a", "allocatable": {"count": 1}}]}});
    cluster.lists().unwrap().csi_nodes.replace(vec![from(limit)], 1);
    let zone = made("VolumeZone");
    assert_eq!(refusal(&zone, &cluster, &with_claim("p", "zoned"), "a"), None, "a node without zones");
    cluster
        .set_node(Arc::new(node("b", json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z"}}}))));
    let wanted = "node(s) had no available volume zone";
    assert_eq!(refusal(&zone, &cluster, &with_claim("p", "zoned"), "b").as_deref(), Some(wanted));
    cluster
        .set_node(Arc::new(node("b", json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "y"}}}))));
    assert_eq!(refusal(&zone, &cluster, &with_claim("p", "zoned"), "b"), None);

    let (limits, restrictions) = (made("NodeVolumeLimits"), made("VolumeRestrictions"));
    assert_eq!(refusal(&limits, &cluster, &with_claim("p", "c1"), "a"), None);
    cluster.set_pod(with_claim("user", "c1"), "a");
    let wanted = "node(s) exceed max volume count";
    assert_eq!(refusal(&limits, &cluster, &with_claim("p", "c2"), "a").as_deref(), Some(wanted));
    assert_eq!(refusal(&limits, &cluster, &with_claim("p", "c1"), "a"), None, "a volume counts once");
    let wanted = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";
    assert_eq!(refusal(&restrictions, &cluster, &with_claim("p", "c1"), "b").as_deref(), Some(wanted));
    assert_eq!(refusal(&restrictions, &cluster, &with_claim("p", "c2"), "b"), None);
    let disk = |name: &str, read_only: bool| {
        pod(
            name,
            json!({"spec": {"volumes": [{"name": "d", "gcePersistentDisk": {"pdName": "x", "readOnly": read_only}}]}}),
        )
    };
    cluster.set_pod(disk("reader", true), "a");
    assert_eq!(refusal(&restrictions, &cluster, &disk("other", true), "a"), None);
    let wanted = "node(s) had no available disk";
    assert_eq!(refusal(&restrictions, &cluster, &disk("writer", false), "a").as_deref(), Some(wanted));
}

/// For a pod that a plugin refused: the changes that wake it, and those that do not.
#[test]
fn hints_wake_the_pods_that_a_change_can_help() {
    let mut cluster = Cluster::default();
    let tainted = |name: &str, taint: bool, cpu: &str| {
        let taints = if taint { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!([]) };
        node(name, json!({"spec": {"taints": taints}, "status": {"allocatable": {"cpu": cpu}}}))
    };
    cluster.set_node(Arc::new(tainted("tainted", true, "4")));
    cluster.set_node(Arc::new(tainted("free", false, "4")));
    cluster.set_node(Arc::new(tainted("small", false, "1")));
    let at = |name: &str| cluster.node(name);
    let before = tainted("free", true, "4");
    let web = pod("web", json!({"metadata": {"labels": {"app": "web"}}}));
    let other = pod("other", json!({"metadata": {"labels": {"app": "other"}}}));
    let far = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}},
    ]}});
    let plain = pod("p", asking("2", "1Gi"));
    let alone = pod("alone", json!({"spec": {"affinity": far}}));
    let porter = |name: &str, port: i32| {
        pod(
            name,
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": port}]}]}}),
        )
    };
    let (shrunk, full) = (pod("s", asking("1", "1Gi")), pod("s", asking("2", "1Gi")));
    let user = with_claim("user", "data");
    let device = |name: &str, namespace: &str, status: Value| -> ResourceClaim {
        from(json!({"metadata": {"name": name, "namespace": namespace, "uid": name}, "status": status}))
    };
    let devices = |name: &str| {
        pod(name, json!({"spec": {"resourceClaims": [{"name": "d", "resourceClaimName": "own"}]}}))
    };
    let (new, given) = (json!(null), json!({"allocation": {"devices": {}}}));
    let reserved = json!({"allocation": {"devices": {}}, "reservedFor": [{"name": "x", "resource": "pods", "uid": "u"}]});
    let (own, mine) = (device("own", "n", new.clone()), device("own", "n", given.clone()));
    let (other_new, other_given) = (device("other", "n", new.clone()), device("other", "n", given.clone()));
    let (shared, far_away) = (device("own", "n", reserved), device("own", "m", given));
    let (driver, mut protected) = (devices("driver"), own.clone());
    protected.metadata.finalizers = Some(vec!["f".into()]);
    for (name, who, event, wakes) in [
        ("DynamicResources", &driver, Event::claim(Some(&own), None), true),
        ("DynamicResources", &driver, Event::claim(Some(&mine), Some(&own)), true),
        ("DynamicResources", &driver, Event::claim(Some(&shared), Some(&mine)), true),
        ("DynamicResources", &driver, Event::claim(Some(&protected), Some(&own)), false),
        ("DynamicResources", &driver, Event::claim(Some(&far_away), None), false),
        ("DynamicResources", &driver, Event::claim(Some(&other_new), None), false),
        ("DynamicResources", &driver, Event::claim(Some(&other_given), Some(&other_new)), false),
        // Devices are free.
        ("DynamicResources", &driver, Event::claim(Some(&other_new), Some(&other_given)), true),
        ("DynamicResources", &driver, Event::claim(None, Some(&other_given)), true),
        ("DynamicResources", &driver, Event::claim(None, Some(&other_new)), false),
        ("DynamicResources", &driver, Event::pod(WakeOn::POD_GONE, &devices("q"), None), true),
        ("DynamicResources", &driver, Event::pod(WakeOn::POD_GONE, &web, None), false),
        ("DynamicResources", &driver, Event::object(WakeOn::RESOURCE_SLICE, "", "s"), true),
        ("TaintToleration", &plain, Event::node(WakeOn::NODE_ADDED, at("free"), None), true),
        ("TaintToleration", &plain, Event::node(WakeOn::NODE_ADDED, at("tainted"), None), false),
        ("TaintToleration", &plain, Event::node(WakeOn::NODE_TAINTS, at("free"), Some(&before)), true),
        ("TaintToleration", &plain, Event::pod(WakeOn::POD_GONE, &web, None), false),
        ("NodeResourcesFit", &plain, Event::node(WakeOn::NODE_ADDED, at("free"), None), true),
        ("NodeResourcesFit", &plain, Event::node(WakeOn::NODE_ADDED, at("small"), None), false),
        ("NodeResourcesFit", &plain, Event::node(WakeOn::NODE_TAINTS, at("free"), Some(&before)), false),
        ("NodeResourcesFit", &plain, Event::pod(WakeOn::POD_GONE, &web, None), true),
        ("NodeResourcesFit", &plain, Event::pod(WakeOn::POD_SCALED_DOWN, &shrunk, Some(&full)), true),
        ("NodeResourcesFit", &plain, Event::pod(WakeOn::POD_SCALED_DOWN, &full, Some(&full)), false),
        ("InterPodAffinity", &alone, Event::pod(WakeOn::POD_GONE, &web, None), true),
        ("InterPodAffinity", &alone, Event::pod(WakeOn::POD_GONE, &other, None), false),
        ("InterPodAffinity", &alone, Event::pod(WakeOn::POD_PLACED, &web, None), false),
        ("InterPodAffinity", &alone, Event::pod(WakeOn::POD_LABELS, &other, Some(&web)), true),
        ("NodePorts", &porter("p", 80), Event::pod(WakeOn::POD_GONE, &porter("q", 80), None), true),
        ("NodePorts", &porter("p", 80), Event::pod(WakeOn::POD_GONE, &porter("q", 81), None), false),
        ("VolumeBinding", &user, Event::object(WakeOn::CLAIM, "n", "data"), true),
        ("VolumeBinding", &user, Event::object(WakeOn::CLAIM, "n", "other"), false),
        ("VolumeBinding", &user, Event::object(WakeOn::CLAIM, "m", "data"), false),
        ("VolumeBinding", &user, Event::object(WakeOn::PERSISTENT_VOLUME, "", "pv"), true),
        ("VolumeBinding", &user, Event::object(WakeOn::STORAGE_CAPACITY, "d", "c"), true),
        ("VolumeBinding", &user, Event::object(WakeOn::CSI_DRIVER, "", "d"), true),
        ("VolumeBinding", &user, Event::object(WakeOn::NOTHING, "d", "c"), false),
        ("VolumeRestrictions", &user, Event::pod(WakeOn::POD_GONE, &with_claim("q", "data"), None), true),
        ("VolumeRestrictions", &user, Event::pod(WakeOn::POD_GONE, &web, None), false),
    ] {
        let plugin = made(name);
        let hinted = plugin.enqueue.as_ref().unwrap().hint(&cluster, who, &event);
        assert_eq!(plugin.wakes_on().meets(event.what) && hinted, wakes, "{name}: {event:?}");
    }
}

#[test]
fn each_row_makes_a_plugin_of_its_name() {
    let names: Vec<String> = all().iter().map(|p| p.name().to_owned()).collect();
    assert_eq!(names, ROWS.iter().map(|row| row.name).collect::<Vec<_>>());
}
