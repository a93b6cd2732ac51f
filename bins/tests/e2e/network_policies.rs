//! Network policies between real pods, as a user applies them.

use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, Namespace, WAIT, deployment, pod, run, until},
};

pub const TESTS: &[crate::Test] = &[("network_policies_hold", hold)];

/// Returns true if a pod gets the page of the web server.
fn gets(n: &Namespace<'_>, from: &str, url: &str) -> Result<bool, Failed> {
    let fetch = format!("busybox timeout 3 busybox wget -q -O- {url}");
    let said = n.run(&["exec", from, "--", "sh", "-c", &fetch], "")?;
    Ok(said.code == 0 && said.out.contains("version 1"))
}

/// Waits until a pod reaches the web server, or no longer does.
fn reaches(n: &Namespace<'_>, from: &str, url: &str, wanted: bool) -> Outcome {
    until(&format!("{from} reaches {url}: {wanted}"), Duration::from_secs(20), || {
        gets(n, from, url).map(|got| got == wanted).map_err(|e| e.message().unwrap_or_default().to_owned())
    })
}

fn policy(version: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": version, "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn hold() -> Outcome {
    const V1: &str = "networking.k8s.io/v1";
    let mut cluster = Cluster::up()?;
    let n = cluster.namespace("closed")?;
    let mut web = deployment("web", 1);
    web["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1});
    n.ok(&["apply", "-f", "-"], &web.to_string())?;
    for name in ["friend", "stranger"] {
        n.ok(&["apply", "-f", "-"], &pod(name, WAIT).to_string())?;
    }
    n.ok(&["expose", "deployment", "web", "--port=80", "--target-port=http"], "")?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    n.ok(&["wait", "--for=condition=Ready", "pod/friend", "pod/stranger", "--timeout=60s"], "")?;
    let ip = n.ok(&["get", "pod", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"], "")?;
    let (service, direct) = ("http://web/", format!("http://{ip}:8080/"));
    for from in ["friend", "stranger"] {
        reaches(&n, from, service, true)?;
        reaches(&n, from, &direct, true)?;
    }

    // Default deny. The kubelet's probes and the node go on.
    n.expect(&["apply", "-f", "-"], &policy(V1, "deny", &json!({"podSelector": {}})), 0, "created")?;
    for url in [service, &direct] {
        reaches(&n, "friend", url, false)?;
        reaches(&n, "stranger", url, false)?;
    }
    std::thread::sleep(Duration::from_secs(3));
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=1s"], "")?;
    let mut fetch = cluster.net.command("/bin/busybox");
    let said = run(fetch.args(["wget", "-q", "-O-", &direct]), "", Duration::from_secs(5))?;
    if !said.out.contains("version 1") {
        return Err(format!("the node does not reach its pod: {said:?}").into());
    }

    // Allowed by label and by the port's name, in the old version of the API. A web server that comes later
    // is closed from its first packet.
    let friends = json!({"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": "http"}]}]});
    n.ok(&["apply", "-f", "-"], &policy("extensions/v1beta1", "friends", &friends))?;
    reaches(&n, "friend", service, true)?;
    reaches(&n, "stranger", service, false)?;
    n.ok(&["rollout", "restart", "deployment/web"], "")?;
    n.ok(&["rollout", "status", "deployment/web", "--timeout=60s"], "")?;
    reaches(&n, "friend", service, true)?;
    reaches(&n, "stranger", service, false)?;

    // Labels of a pod that runs count.
    n.ok(&["label", "pod", "stranger", "app=friend", "--overwrite"], "")?;
    reaches(&n, "stranger", service, true)?;
    n.ok(&["label", "pod", "stranger", "app=stranger", "--overwrite"], "")?;
    reaches(&n, "stranger", service, false)?;

    // Egress: without DNS no name resolves; the usual policy allows it, and one for the pods the page.
    let out = json!({"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"]});
    n.ok(&["apply", "-f", "-"], &policy(V1, "out", &out))?;
    reaches(&n, "friend", service, false)?;
    let out = json!({"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]},
        {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
            "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}]});
    n.ok(&["apply", "-f", "-"], &policy(V1, "out", &out))?;
    reaches(&n, "friend", service, true)?;

    // A name that no pod has: an event, and everything else goes on.
    let unknown =
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": "htpp"}]}]});
    n.ok(&["apply", "-f", "-"], &policy(V1, "unknown", &unknown))?;
    n.until(&["get", "events", "--field-selector=reason=UnknownPortName"], "has a port named htpp", 10)?;
    reaches(&n, "friend", service, true)?;
    reaches(&n, "stranger", service, false)?;

    // kill -9, and `up` again.
    let mut killed = cluster.processes.pop().ok_or("not running")?;
    killed.kill();
    cluster.start_up()?;
    let n = cluster.namespace("closed")?;
    reaches(&n, "friend", service, true)?;
    reaches(&n, "stranger", service, false)?;

    n.ok(&["delete", "networkpolicy", "--all"], "")?;
    reaches(&n, "stranger", service, true)?;
    cluster.take_down()
}
