//! Usage, scopes and charges.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Amounts, Quota, Refusal, resource_of, usage};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn check(resource: &str, object: &Value, want: &str) {
    assert_eq!(usage(resource, object, NOW).without_zeros().to_string(), want, "{object}");
}

fn pod(requests: &Value, limits: &Value) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}})
}

#[test]
fn pods_use_requests_and_limits() {
    check("pods", &pod(&json!({}), &json!({})), "count/pods=1,pods=1");
    check(
        "pods",
        &pod(
            &json!({"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1G", "hugepages-2Mi": "4Mi", "example.com/gpu": "2", "pods": "9"}),
            &json!({"cpu": "1", "memory": "2Gi", "ephemeral-storage": "2G", "hugepages-2Mi": "4Mi", "example.com/gpu": "2"}),
        ),
        "count/pods=1,cpu=500m,ephemeral-storage=1G,hugepages-2Mi=4Mi,limits.cpu=1,limits.ephemeral-storage=2G,limits.memory=2Gi,memory=1Gi,pods=1,requests.cpu=500m,requests.ephemeral-storage=1G,requests.example.com/gpu=2,requests.hugepages-2Mi=4Mi,requests.memory=1Gi",
    );
}

#[test]
fn init_containers_sidecars_pod_level_and_overhead_count() {
    let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    let mut sidecar = container("100m");
    sidecar["restartPolicy"] = "Always".into();
    let mut spec = json!({"containers": [container("200m"), container("300m")],
        "initContainers": [container("450m"), sidecar, container("550m")]});
    let cpu = |spec: &Value| usage("pods", &json!({"spec": spec}), NOW).get("cpu").unwrap().to_string();
    assert_eq!(cpu(&spec), "650m", "an init container beside the sidecar");
    spec["initContainers"][2] = container("1m");
    assert_eq!(cpu(&spec), "600m", "the containers beside the sidecar");
    spec["initContainers"][0] = container("700m");
    assert_eq!(cpu(&spec), "700m", "an init container before the sidecar");
    spec["overhead"] = json!({"cpu": "50m", "memory": "1Mi"});
    assert_eq!(cpu(&spec), "750m");
    spec["resources"] = json!({"requests": {"cpu": "2", "example.com/gpu": "1"}, "limits": {"cpu": "3"}});
    check(
        "pods",
        &json!({"spec": spec}),
        "count/pods=1,cpu=2050m,limits.cpu=3050m,memory=1Mi,pods=1,requests.cpu=2050m,requests.memory=1Mi",
    );
}

#[test]
fn a_pod_in_resize_uses_the_larger_of_asked_for_and_applied() {
    let list = |cpu: &str| json!({"cpu": cpu});
    let mut object = pod(&list("1"), &list("1"));
    let mut set = |status: Value, conditions: Value| {
        object["status"] = json!({"containerStatuses": [status], "conditions": conditions});
        let used = usage("pods", &object, NOW);
        ["requests.cpu", "limits.cpu"].map(|name| used.get(name).unwrap().to_string())
    };
    let status = |actual: &str, allocated: &str| {
        json!({"name": "c", "resources": {"requests": list(actual), "limits": list(actual)},
            "allocatedResources": list(allocated)})
    };
    assert_eq!(set(status("1", "1"), json!([])), ["1", "1"]);
    assert_eq!(set(status("500m", "500m"), json!([])), ["1", "1"], "it grows");
    assert_eq!(set(status("2", "1"), json!([])), ["2", "2"], "it shrinks");
    assert_eq!(set(status("500m", "2"), json!([])), ["2", "1"]);
    let infeasible = json!([{"type": "PodResizePending", "reason": "Infeasible"}]);
    assert_eq!(set(status("500m", "500m"), infeasible), ["500m", "500m"]);
}

#[test]
fn finished_and_overdue_pods_only_count_as_objects() {
    let mut object = pod(&json!({"cpu": "1"}), &json!({}));
    for (phase, over) in [("Running", false), ("Failed", true), ("Succeeded", true)] {
        object["status"] = json!({"phase": phase});
        assert_eq!(usage("pods", &object, NOW).get("pods").is_none(), over, "{phase}");
    }
    object["status"] = Value::Null;
    object["metadata"] =
        json!({"deletionTimestamp": "1970-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30});
    let at = |second| Timestamp::from_second(second).unwrap();
    assert!(usage("pods", &object, at(60)).get("cpu").is_some());
    assert_eq!(usage("pods", &object, at(61)).to_string(), "count/pods=1");
}

#[test]
fn services_use_ports_and_balancers() {
    let service = |spec: Value| json!({"spec": spec});
    let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
    check("services", &service(json!({"ports": ports})), "count/services=1,services=1");
    check(
        "services",
        &service(json!({"type": "LoadBalancer", "ports": ports})),
        "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2",
    );
    check(
        "services",
        &service(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports})),
        "count/services=1,services=1,services.loadbalancers=1,services.nodeports=1",
    );
}

#[test]
fn claims_use_storage_of_their_class() {
    let mut claim =
        json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
    check(
        "persistentvolumeclaims",
        &claim,
        "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi",
    );
    claim["status"] = json!({"allocatedResources": {"storage": "2Gi"}});
    claim["metadata"] = json!({"annotations": {"volume.beta.kubernetes.io/storage-class": ""}});
    check(
        "persistentvolumeclaims",
        &claim,
        "count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=2Gi",
    );
    let tiny = json!({"spec": {"resources": {"requests": {"storage": "1500m"}}}});
    check(
        "persistentvolumeclaims",
        &tiny,
        "count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=2",
    );
}

#[test]
fn everything_else_is_counted() {
    check("deployments.apps", &json!({}), "count/deployments.apps=1");
    check("secrets", &json!({}), "count/secrets=1,secrets=1");
    check("widgets.example.com", &json!({}), "count/widgets.example.com=1");
    check("events", &json!({}), "");
}

#[test]
fn every_name_of_usage_leads_back_to_its_resource() {
    let full = pod(
        &json!({"cpu": "1", "memory": "1", "ephemeral-storage": "1", "hugepages-1Gi": "1", "a.b/c": "1", "deviceclass.resource.kubernetes.io/x": "1"}),
        &json!({"cpu": "1", "memory": "1", "ephemeral-storage": "1"}),
    );
    let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1"}}}});
    for (resource, object) in [
        ("pods", full),
        ("persistentvolumeclaims", claim),
        ("services", json!({})),
        ("replicationcontrollers", json!({})),
        ("jobs.batch", json!({})),
    ] {
        for name in usage(resource, &object, NOW).names() {
            assert_eq!(resource_of(name), Some(resource), "{name}");
        }
    }
    for name in
        ["bindings", "count/events", "limits.hugepages-2Mi", "requests.kubernetes.io/x", "a.b/c", "odd"]
    {
        assert_eq!(resource_of(name), None, "{name}");
    }
}

fn quota(spec: Value, hard: Value, used: Value) -> Quota {
    Quota::of(&json!({"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": used}}))
}

#[test]
fn scopes_choose_objects() {
    let scoped = |scope: &str| quota(json!({"scopes": [scope]}), json!({}), json!({}));
    let chosen = |operator: &str, values: Value| {
        let term = json!({"scopeName": "PriorityClass", "operator": operator, "values": values});
        quota(json!({"scopeSelector": {"matchExpressions": [term]}}), json!({}), json!({}))
    };
    let plain = pod(&json!({}), &json!({}));
    let with = |field: &str, value: Value| {
        let mut pod = plain.clone();
        pod["spec"][field] = value;
        pod
    };
    let (deadline, high) =
        (with("activeDeadlineSeconds", 0.into()), with("priorityClassName", "high".into()));
    let burstable = pod(&json!({"cpu": "1m"}), &json!({}));
    let far = |kind: &str, term: Value| {
        with(
            "affinity",
            json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}}),
        )
    };
    for (quota, pod, want) in [
        (scoped("Terminating"), &deadline, true),
        (scoped("Terminating"), &plain, false),
        (scoped("NotTerminating"), &plain, true),
        (scoped("BestEffort"), &plain, true),
        (scoped("BestEffort"), &burstable, false),
        (scoped("NotBestEffort"), &burstable, true),
        (scoped("NotBestEffort"), &with("resources", json!({"limits": {"memory": "1"}})), true),
        (scoped("PriorityClass"), &high, true),
        (scoped("PriorityClass"), &plain, false),
        (chosen("In", json!(["low", "high"])), &high, true),
        (chosen("In", json!(["low"])), &high, false),
        (chosen("NotIn", json!(["low"])), &high, true),
        (chosen("NotIn", json!(["low"])), &plain, true),
        (chosen("NotIn", json!(["high"])), &high, false),
        (chosen("DoesNotExist", json!([])), &plain, true),
        (chosen("DoesNotExist", json!([])), &high, false),
        (scoped("CrossNamespacePodAffinity"), &far("podAffinity", json!({"namespaces": ["x"]})), true),
        (
            scoped("CrossNamespacePodAffinity"),
            &far("podAntiAffinity", json!({"namespaceSelector": {}})),
            true,
        ),
        (scoped("CrossNamespacePodAffinity"), &far("podAffinity", json!({"topologyKey": "x"})), false),
        (scoped("VolumeAttributesClass"), &plain, false),
        (quota(json!({"scopes": ["BestEffort", "Terminating"]}), json!({}), json!({})), &plain, false),
        (quota(json!({}), json!({}), json!({})), &plain, true),
    ] {
        assert_eq!(quota.selects("pods", pod), want, "{quota:?} {pod}");
    }
    let claim = json!({"spec": {"volumeAttributesClassName": "silver"}, "status": {"currentVolumeAttributesClassName": "gold"}});
    let of_class = |name: &str| {
        let term = json!({"scopeName": "VolumeAttributesClass", "operator": "In", "values": [name]});
        quota(json!({"scopeSelector": {"matchExpressions": [term]}}), json!({}), json!({}))
    };
    assert!(of_class("gold").selects("persistentvolumeclaims", &claim));
    assert!(of_class("silver").selects("persistentvolumeclaims", &claim));
    assert!(!of_class("bronze").selects("persistentvolumeclaims", &claim));
    assert!(
        !scoped("Terminating").selects("services", &json!({})),
        "a quota with scopes is about pods and claims only"
    );
}

#[test]
fn charges_fit_or_are_refused() {
    let hard = json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "1"});
    let quota = quota(json!({}), hard, json!({"pods": "1", "requests.cpu": "1", "count/configmaps": "0"}));
    let refused = |object: &Value| quota.charge("pods", object, None, NOW).unwrap_err().to_string();
    assert_eq!(refused(&pod(&json!({}), &json!({}))), "failed quota: q: must specify requests.cpu for: c");
    assert_eq!(
        refused(&pod(&json!({"cpu": "1m"}), &json!({}))),
        "exceeded quota: q, requested: requests.cpu=1m, used: requests.cpu=1, limited: requests.cpu=1"
    );
    assert_eq!(
        refused(&pod(&json!({"cpu": "-1"}), &json!({}))),
        "quota usage is negative for resource(s): cpu,requests.cpu"
    );
    let zero = pod(&json!({"cpu": "0"}), &json!({}));
    assert_eq!(quota.charge("pods", &zero, None, NOW).unwrap().to_string(), "pods=1", "0 fits a full quota");
    assert_eq!(quota.charge("configmaps", &json!({}), None, NOW).unwrap().to_string(), "count/configmaps=1");
    assert_eq!(quota.charge("secrets", &json!({}), None, NOW), Ok(Amounts::default()));
    let whole = json!({"spec": {"resources": {"requests": {"cpu": "0"}}, "containers": [{"name": "c"}]}});
    assert!(quota.charge("pods", &whole, None, NOW).is_ok(), "amounts of the pod are enough");
}

#[test]
fn all_missing_amounts_are_named_once() {
    let names = json!({"limits.memory": "1", "cpu": "1", "memory": "1", "ephemeral-storage": "1"});
    let quota = quota(json!({}), names.clone(), names);
    let object = json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"memory": "1"}}}],
        "initContainers": [{"name": "i", "resources": {"limits": {"memory": "1"}}}]}});
    assert_eq!(
        quota.charge("pods", &object, None, NOW).unwrap_err().to_string(),
        "failed quota: q: must specify cpu for: a,b,i; limits.memory for: a,b; memory for: b,i"
    );
}

#[test]
fn a_quota_that_is_not_counted_yet_refuses() {
    let quota =
        quota(json!({}), json!({"pods": "2", "count/pods": "3", "secrets": "1"}), json!({"pods": "1"}));
    let refusal = quota.charge("pods", &pod(&json!({}), &json!({})), None, NOW).unwrap_err();
    assert!(matches!(refusal, Refusal::Unknown { .. }));
    assert_eq!(refusal.to_string(), "status unknown for quota: q, resources: count/pods,pods");
}

#[test]
fn updates_are_charged_their_difference() {
    let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    let quota = quota(
        json!({}),
        json!({"requests.storage": "10Gi", "persistentvolumeclaims": "1"}),
        json!({"requests.storage": "4Gi", "persistentvolumeclaims": "1"}),
    );
    let charge =
        |new: &str, old: &str| quota.charge("persistentvolumeclaims", &claim(new), Some(&claim(old)), NOW);
    assert_eq!(charge("6Gi", "4Gi").unwrap().to_string(), "requests.storage=2Gi");
    assert!(charge("2Gi", "4Gi").unwrap().is_empty(), "less is given back by the controller");
    assert!(charge("11Gi", "4Gi").is_err());
    // A pod that comes into the scope is charged whole.
    let scoped = self::quota(json!({"scopes": ["Terminating"]}), json!({"pods": "1"}), json!({"pods": "0"}));
    let (old, mut new) = (pod(&json!({}), &json!({})), pod(&json!({}), &json!({})));
    new["spec"]["activeDeadlineSeconds"] = 5.into();
    assert_eq!(scoped.charge("pods", &new, Some(&old), NOW).unwrap().to_string(), "pods=1");
    assert!(scoped.charge("pods", &new, Some(&new), NOW).unwrap().is_empty());
    assert!(scoped.charge("pods", &old, Some(&new), NOW).unwrap().is_empty());
}

#[test]
fn a_resize_is_charged_and_other_updates_of_pods_are_not() {
    let sized = |cpu: &str| pod(&json!({"cpu": cpu}), &json!({}));
    let of = |hard: &str| quota(json!({}), json!({"requests.cpu": hard}), json!({"requests.cpu": "1"}));
    let charge = |hard: &str, new: &Value| {
        of(hard).charge("pods", new, Some(&sized("1")), NOW).map(|charge| charge.to_string())
    };
    assert_eq!(charge("3", &sized("2")).unwrap(), "requests.cpu=1");
    assert_eq!(
        charge("1500m", &sized("2")).unwrap_err().to_string(),
        "exceeded quota: q, requested: requests.cpu=1, used: requests.cpu=1, limited: requests.cpu=1500m"
    );
    let mut other = sized("1");
    other["spec"]["containers"][0]["image"] = "other".into();
    assert_eq!(charge("500m", &other).unwrap(), "", "a full quota does not stop other updates");
}
