//! Quotas, limit ranges and the Pod Security Standards with kubectl and real pods.

use serde_json::json;

use crate::{
    Outcome,
    harness::{Cluster, WAIT, deployment, pod},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] = &[
    ("kubectl_meets_quotas", quotas),
    ("kubectl_meets_limit_ranges", limit_ranges),
    ("kubectl_meets_pod_security", pod_security),
];

fn quotas(cluster: &Cluster, name: &str) -> Outcome {
    let namespace = cluster.namespace(name)?;
    namespace.ok(&["create", "quota", "small", "--hard=pods=2,services=1,count/deployments.apps=1"], "")?;
    namespace.until(&["get", "quota", "small"], "pods: 0/2", 10)?;
    namespace.ok(&["apply", "-f", "-"], &deployment("web", 3).to_string())?;
    namespace.until(&["get", "quota", "small"], "pods: 2/2", 30)?;
    namespace.until(
        &["get", "events"],
        "exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2",
        30,
    )?;
    namespace.expect(
        &["create", "deployment", "other", "--image=x"],
        "",
        1,
        "deployments.apps \"other\" is forbidden: exceeded quota: small, requested: count/deployments.apps=1",
    )?;
    namespace.ok(&["expose", "deployment", "web", "--port=80"], "")?;
    namespace.expect(&["create", "service", "clusterip", "b", "--tcp=80"], "", 1, "exceeded quota: small")?;
    namespace.ok(&["delete", "service", "web"], "")?;
    namespace.until(&["get", "quota", "small"], "services: 0/1", 5)?;
    // More room, and the third pod comes up. The controller's delays double: it may wait as long again as it
    // was refused.
    namespace.ok(&["patch", "quota", "small", "-p", r#"{"spec":{"hard":{"pods":"3"}}}"#], "")?;
    namespace.until(&["get", "quota", "small"], "pods: 3/3", 150)?;
    namespace.ok(&["delete", "deployment", "web", "--wait=false"], "")?;
    namespace.until(&["get", "quota", "small"], "pods: 0/3", 60)?;
    namespace.expect(&["describe", "quota", "small"], "", 0, "count/deployments.apps  0     1")?;
    Ok(())
}

fn limit_ranges(cluster: &Cluster, name: &str) -> Outcome {
    let namespace = cluster.namespace(name)?;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": [
        {"type": "Container", "max": {"memory": "256Mi"}, "default": {"memory": "64Mi"}}]}});
    namespace.ok(&["apply", "-f", "-"], &range.to_string())?;
    namespace.ok(&["apply", "-f", "-"], &pod("small", WAIT).to_string())?;
    let limits = namespace.jsonpath("pod/small", "{.spec.containers[0].resources}")?;
    if limits != r#"{"limits":{"memory":"64Mi"},"requests":{"memory":"64Mi"}}"# {
        return Err(limits.into());
    }
    namespace.ok(&["wait", "pod/small", "--for=condition=Ready", "--timeout=60s"], "")?;
    let mut large = pod("large", WAIT);
    large["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "1Gi"}});
    namespace.expect(
        &["apply", "-f", "-"],
        &large.to_string(),
        1,
        "pods \"large\" is forbidden: maximum memory usage per Container is 256Mi, but limit is 1Gi",
    )?;
    Ok(())
}

fn pod_security(cluster: &Cluster, name: &str) -> Outcome {
    let namespace = cluster.namespace(name)?;
    let label = "pod-security.kubernetes.io/enforce=baseline";
    let mut bad = pod("bad", WAIT);
    bad["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    namespace.ok(&["apply", "-f", "-"], &bad.to_string())?;
    let said = namespace.run(&["label", "namespace", &namespace.name, label], "")?;
    if said.code != 0 || !said.err.contains("Warning: bad: privileged") {
        return Err(format!("{said:?}").into());
    }
    bad["metadata"]["name"] = "worse".into();
    namespace.expect(
        &["apply", "-f", "-"],
        &bad.to_string(),
        1,
        r#"pods "worse" is forbidden: violates PodSecurity "baseline:latest": privileged (container "main" must not set securityContext.privileged=true)"#,
    )?;
    namespace
        .ok(&["label", "namespace", &namespace.name, "pod-security.kubernetes.io/warn=restricted"], "")?;
    let said = namespace.run(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    if said.code != 0 || !said.err.contains(r#"Warning: would violate PodSecurity "restricted:latest": "#) {
        return Err(format!("{said:?}").into());
    }
    namespace.ok(&["rollout", "status", "deployment/web", "--timeout=60s"], "")?;
    namespace.expect(
        &["label", "namespace", &namespace.name, "--overwrite", "pod-security.kubernetes.io/enforce=strict"],
        "",
        1,
        "must be one of privileged, baseline, restricted",
    )?;
    Ok(())
}
