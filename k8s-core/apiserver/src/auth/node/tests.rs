use k8s_store::{Expect, Meta};
use serde_json::{Value, json};

use super::*;

async fn put(store: &Store, resource: &str, key: &str, object: &Value) {
    let there = store.get(resource, key).map_or(Expect::Absent, |stored| Expect::Revision(stored.revision));
    let bytes = object.to_string();
    store.put(resource, key, there, Meta::default(), |_| bytes.into()).await.unwrap();
}

async fn delete(store: &Store, resource: &str, key: &str) {
    let revision = store.get(resource, key).unwrap().revision;
    store.delete(resource, key, revision, |_| "{}".into()).await.unwrap();
}

fn pod(node: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"nodeName": node, "serviceAccountName": "sa"}});
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod
}

fn get(resource: &'static str, namespace: &'static str, name: &'static str) -> Attributes<'static> {
    Attributes { verb: "get", resource, namespace, name, ..Attributes::default() }
}

fn allows(authorizer: &NodeAuthorizer, node: &str, wanted: &Attributes<'_>) -> bool {
    authorizer.decide(&User::node(node), wanted).0 == Decision::Allow
}

#[tokio::test]
async fn a_node_reads_what_its_pods_refer_to_while_they_are_there() {
    let store = Store::memory();
    let authorizer = NodeAuthorizer::new(store.clone());
    let everywhere = json!({
        "imagePullSecrets": [{"name": "pull"}],
        "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}, {"valueFrom": {"configMapKeyRef": {"name": "m-env"}}}],
            "envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "m-from"}}]}],
        "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "init"}}}]}],
        "ephemeralContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "debug"}}}]}],
        "volumes": [{"name": "v", "secret": {"secretName": "volume"}}, {"name": "m", "configMap": {"name": "m-volume"}},
            {"name": "e", "ephemeral": {}}, {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "p", "projected": {"sources": [{"secret": {"name": "projected"}}, {"configMap": {"name": "m-projected"}}]}}],
    });
    let secrets = ["pull", "env", "from", "init", "debug", "volume", "projected"];
    let maps = ["m-env", "m-from", "m-volume", "m-projected"];
    let may = |node: &str| {
        let of = |resource, names: &[&'static str]| {
            names.iter().filter(|name| allows(&authorizer, node, &get(resource, "ns", name))).count()
        };
        (of("secrets", &secrets), of("configmaps", &maps), of("persistentvolumeclaims", &["claim", "p-e"]))
    };
    assert_eq!(may("a"), (0, 0, 0));
    put(&store, "pods", "ns/p", &pod("a", everywhere.clone())).await;
    assert_eq!((may("a"), may("b")), ((7, 4, 2), (0, 0, 0)));
    assert!(!allows(&authorizer, "a", &get("secrets", "other", "env")), "another namespace");
    assert!(!allows(&authorizer, "a", &get("configmaps", "ns", "env")), "another kind");
    // A second pod keeps what both refer to.
    put(&store, "pods", "ns/q", &pod("a", json!({"imagePullSecrets": [{"name": "pull"}]}))).await;
    delete(&store, "pods", "ns/p").await;
    assert_eq!(may("a"), (1, 0, 0));
    delete(&store, "pods", "ns/q").await;
    assert_eq!(may("a"), (0, 0, 0));
    // Neither a pod without a node nor one that the node has made itself gives rights.
    put(&store, "pods", "ns/p", &pod("", everywhere.clone())).await;
    assert_eq!(may(""), (0, 0, 0));
    let mut mirror = pod("a", everywhere);
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    put(&store, "pods", "ns/p", &mirror).await;
    assert_eq!(may("a"), (0, 0, 0));
    assert!(allows(&authorizer, "a", &get("pods", "ns", "p")));
}

#[tokio::test]
async fn a_change_of_the_spec_or_of_claims_is_seen_and_the_index_survives_lost_history() {
    let store = Store::memory();
    let authorizer = NodeAuthorizer::new(store.clone());
    let debug = get("secrets", "ns", "debug");
    put(&store, "pods", "ns/p", &pod("a", json!({}))).await;
    assert!(!allows(&authorizer, "a", &debug));
    let debugged =
        pod("a", json!({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "debug"}}]}]}));
    put(&store, "pods", "ns/p", &debugged).await;
    assert!(allows(&authorizer, "a", &debug));
    // More changes than the history keeps.
    for n in 0..9000 {
        put(&store, "pods", "ns/other", &json!({"metadata": {"name": "other"}, "status": {"n": n}})).await;
    }
    delete(&store, "pods", "ns/p").await;
    for n in 0..9000 {
        put(&store, "pods", "ns/other", &json!({"metadata": {"name": "other"}, "status": {"n": n}})).await;
    }
    assert!(!allows(&authorizer, "a", &debug));
}

#[tokio::test]
async fn volumes_and_their_secrets_come_through_the_claim() {
    let store = Store::memory();
    let authorizer = NodeAuthorizer::new(store.clone());
    let volume = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "ns", "name": "claim"},
        "csi": {"nodeStageSecretRef": {"namespace": "ns", "name": "stage"}, "controllerPublishSecretRef": {"namespace": "ns", "name": "control"}}}});
    put(&store, "persistentvolumes", "pv", &volume).await;
    let (pv, stage) = (get("persistentvolumes", "", "pv"), get("secrets", "ns", "stage"));
    assert!(!allows(&authorizer, "a", &pv) && !allows(&authorizer, "a", &stage));
    let claims = json!({"volumes": [{"name": "c", "persistentVolumeClaim": {"claimName": "claim"}}]});
    put(&store, "pods", "ns/p", &pod("a", claims)).await;
    assert!(allows(&authorizer, "a", &pv) && allows(&authorizer, "a", &stage));
    assert!(!allows(&authorizer, "b", &pv) && !allows(&authorizer, "b", &stage));
    assert!(!allows(&authorizer, "a", &get("secrets", "ns", "control")), "not for kubelets");
    delete(&store, "persistentvolumes", "pv").await;
    assert!(!allows(&authorizer, "a", &pv) && !allows(&authorizer, "a", &stage));
    let attachment = Attributes { group: "storage.k8s.io", ..get("volumeattachments", "", "at") };
    put(&store, "volumeattachments.storage.k8s.io", "at", &json!({"spec": {"nodeName": "a"}})).await;
    assert!(allows(&authorizer, "a", &attachment) && !allows(&authorizer, "b", &attachment));
}

#[tokio::test]
async fn requests_are_decided_as_upstream_does() {
    let store = Store::memory();
    let authorizer = NodeAuthorizer::new(store.clone());
    let spec = json!({"imagePullSecrets": [{"name": "s"}]});
    put(&store, "pods", "ns/p", &pod("a", spec)).await;
    let own: FieldSelectors = ("spec.nodeName=a".parse().unwrap(), "spec.nodeName=b".parse().unwrap());
    let of = |verb, resource, subresource, namespace, name| Attributes {
        verb,
        resource,
        subresource,
        namespace,
        name,
        ..Attributes::default()
    };
    let lease = |verb, namespace, name| Attributes {
        group: "coordination.k8s.io",
        ..of(verb, "leases", "", namespace, name)
    };
    let unrelated = "no relationship found between node 'a' and this object";
    for (wanted, why) in [
        (of("get", "secrets", "", "ns", "s"), None),
        (of("watch", "secrets", "", "ns", "s"), None),
        (of("list", "secrets", "", "ns", ""), Some("No Object name found")),
        (of("list", "secrets", "", "", ""), Some("can only read namespaced object of this type")),
        (of("get", "secrets", "", "ns", "t"), Some(unrelated)),
        (of("update", "secrets", "", "ns", "s"), Some("can only read resources of this type")),
        (of("create", "serviceaccounts", "token", "ns", "sa"), None),
        (of("create", "serviceaccounts", "token", "ns", "other"), Some(unrelated)),
        (of("create", "serviceaccounts", "token", "kube-system", "sa"), Some(unrelated)),
        (of("get", "serviceaccounts", "", "ns", "sa"), None),
        (
            of("list", "serviceaccounts", "", "ns", ""),
            Some("can only create tokens for individual service accounts"),
        ),
        (of("get", "nodes", "", "", "a"), None),
        (of("get", "nodes", "", "", "b"), Some("node 'a' cannot read 'b', only its own Node object")),
        (of("list", "nodes", "", "", ""), Some("node 'a' cannot read all nodes, only its own Node object")),
        (of("delete", "nodes", "", "", "a"), Some("")),
        (of("get", "nodes", "proxy", "", "a"), Some("")),
        (of("get", "pods", "", "ns", "p"), None),
        (of("get", "pods", "", "ns", "q"), Some(unrelated)),
        (of("list", "pods", "", "", ""), Some("can only list/watch pods with spec.nodeName field selector")),
        (Attributes { fields: Some(&own.0), ..of("watch", "pods", "", "", "") }, None),
        (
            Attributes { fields: Some(&own.1), ..of("list", "pods", "", "", "") },
            Some("can only list/watch pods with spec.nodeName field selector"),
        ),
        (of("create", "pods", "exec", "ns", "p"), Some("")),
        (of("create", "pods", "binding", "ns", "p"), Some("")),
        (of("create", "pods", "eviction", "ns", "p"), None),
        (lease("update", "kube-node-lease", "a"), None),
        (lease("create", "kube-node-lease", ""), None),
        (
            lease("update", "kube-node-lease", "b"),
            Some("can only access node lease with the same name as the requesting node"),
        ),
        (
            lease("update", "kube-system", "a"),
            Some("can only access leases in the \"kube-node-lease\" system namespace"),
        ),
        (
            lease("list", "kube-node-lease", ""),
            Some("can only get, create, update, patch, or delete a node lease"),
        ),
        (of("list", "services", "", "", ""), None),
        (of("create", "events", "", "ns", ""), None),
        (of("create", "pods", "", "ns", ""), None),
        (of("get", "endpoints", "", "ns", "x"), None),
        (of("list", "namespaces", "", "", ""), Some("")),
        (Attributes { verb: "get", path: "/metrics", ..Attributes::default() }, Some("")),
    ] {
        let (decision, reason) = authorizer.decide(&User::node("a"), &wanted);
        assert_eq!(decision == Decision::Allow, why.is_none(), "{wanted:?}: {reason}");
        assert_eq!(reason, why.unwrap_or_default(), "{wanted:?}");
    }
}

type FieldSelectors = (k8s_core::meta::FieldSelector, k8s_core::meta::FieldSelector);

#[tokio::test]
async fn only_kubelets_of_the_group_are_asked_about() {
    let authorizer = NodeAuthorizer::new(Store::memory());
    let services = Attributes { verb: "list", resource: "services", ..Attributes::default() };
    for user in [
        User::new("system:node:a", &[]),
        User::new("a", &["system:nodes"]),
        User::new("system:node:a", &["system:node"]),
    ] {
        assert_eq!(authorizer.decide(&user, &services), (Decision::NoOpinion, String::new()), "{user:?}");
    }
    let nameless = User::node("");
    let (decision, why) = authorizer.decide(&nameless, &services);
    assert_eq!((decision, why.as_str()), (Decision::NoOpinion, "unknown node for user \"system:node:\""));
}
