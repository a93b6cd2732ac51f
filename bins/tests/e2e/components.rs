//! A cluster of five processes that communicate over the public API only.

use std::{fs, time::Duration};

use crate::{
    Outcome,
    harness::{Cluster, Process, deployment, until},
    kubectl::http_get,
};

/// A flag for the program `kubelet`, which keeps upstream's shares of a disk: a test machine may well be 85 %
/// full.
pub const ROOM_ON_SMALL_DISKS: &str = "--eviction-hard=nodefs.available<1Gi,imagefs.available<1Gi";

pub const TESTS: &[crate::Test] = &[("five_processes_are_a_cluster", five)];

fn five() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    // The control plane's directory contains files only; `take_down` resets the node's.
    let control = cluster.dir.path().join("control");
    let (control_dir, node_dir) =
        (control.to_string_lossy().into_owned(), cluster.data.to_string_lossy().into_owned());
    let pki = control.join("pki");
    let certificates = pki.to_string_lossy().into_owned();
    let kubeconfig =
        |component: &str| pki.join(format!("{component}.kubeconfig")).to_string_lossy().into_owned();
    let start = |cluster: &mut Cluster, component: &str, more: &[&str]| -> Outcome {
        let mut command = cluster.hyperkube(&["--log", "info", component]);
        command.args(more);
        let process = Process::start(&mut command, cluster.dir.path().join(format!("{component}.log")))?;
        cluster.processes.push(process);
        Ok(())
    };
    start(
        &mut cluster,
        "kube-apiserver",
        &["--data-dir", &control_dir, "--bind-address", "127.0.0.1", "--kubelet-node-name", "node-1"],
    )?;
    until("the API server has written its kubeconfigs", Duration::from_secs(20), || {
        Ok(pki.join("kube-proxy.kubeconfig").exists())
    })?;
    start(
        &mut cluster,
        "kube-controller-manager",
        &[
            "--kubeconfig",
            &kubeconfig("controller-manager"),
            "--leader-elect=true",
            "--service-account-private-key-file",
            &pki.join("service-account.key").to_string_lossy(),
        ],
    )?;
    start(&mut cluster, "kube-scheduler", &["--kubeconfig", &kubeconfig("scheduler")])?;
    // The same images and containers as with `up`.
    cluster.load_images()?;
    start(
        &mut cluster,
        "kubelet",
        &[
            "--kubeconfig",
            &kubeconfig("kubelet-node-1"),
            "--root-dir",
            &node_dir,
            "--cert-dir",
            &certificates,
            "--hostname-override",
            "node-1",
            ROOM_ON_SMALL_DISKS,
        ],
    )?;
    start(
        &mut cluster,
        "kube-proxy",
        &[
            "--kubeconfig",
            &kubeconfig("kube-proxy"),
            "--root-dir",
            &node_dir,
            "--hostname-override",
            "node-1",
        ],
    )?;
    cluster.kubeconfig = pki.join("admin.kubeconfig");
    cluster.wait_ready()?;
    smoke(&cluster)?;
    token_secret(&cluster)?;
    measured(&cluster)?;
    for (component, user) in [
        ("controller-manager", "system:kube-controller-manager"),
        ("scheduler", "system:kube-scheduler"),
        ("kubelet", "system:node:"),
        ("kube-proxy", "system:kube-proxy"),
    ] {
        is_no_master(&cluster, &kubeconfig(component), user)?;
    }
    for component in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"]
    {
        let log = fs::read_to_string(cluster.dir.path().join(format!("{component}.log")))?;
        // The proxy logs that it may not create the Service of the cluster DNS, and continues.
        let refused = component != "kube-proxy" && log.contains("forbidden: User");
        if log.contains("panicked") || refused {
            return Err(format!("{component}: {log}").into());
        }
    }
    cluster.take_down()
}

/// The controller manager fills a token Secret with its own copy of the key, and removes it with the account.
fn token_secret(cluster: &Cluster) -> Outcome {
    let n = cluster.namespace("tokens")?;
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "robot", "annotations": {"kubernetes.io/service-account.name": "robot"}},
    });
    n.ok(&["create", "serviceaccount", "robot"], "")?;
    n.ok(&["apply", "-f", "-"], &secret.to_string())?;
    n.until(
        &["get", "secret", "robot", "-o", "go-template={{.data.namespace | base64decode}}"],
        "tokens",
        20,
    )?;
    let token = n.ok(&["get", "secret", "robot", "-o", "go-template={{.data.token | base64decode}}"], "")?;
    let review = serde_json::json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
    });
    let name = "jsonpath={.status.user.username}";
    let said = n.ok(&["create", "-f", "-", "-o", name], &review.to_string())?;
    if said != "system:serviceaccount:tokens:robot" {
        return Err(format!("the token is of {said:?}").into());
    }
    n.ok(&["delete", "serviceaccount", "robot"], "")?;
    n.ok(&["wait", "--for=delete", "secret/robot", "--timeout=20s"], "")?;
    Ok(())
}

/// Each program without an API serves its health and its metrics, with upstream's ports and names.
fn measured(cluster: &Cluster) -> Outcome {
    const REQUESTS: &str = "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"127.0.0.1:6443\"}";
    for (health, port, names) in [
        (
            10257,
            10257,
            [
                "workqueue_adds_total{name=\"deployment-controller\"}",
                "controller_runtime_reconcile_total{",
                REQUESTS,
            ],
        ),
        (
            10259,
            10259,
            ["scheduler_schedule_attempts_total{result=\"scheduled\"", "scheduler_pending_pods{", REQUESTS],
        ),
        (10256, 10249, ["kubeproxy_sync_proxy_rules_duration_seconds_count", "process_open_fds", REQUESTS]),
    ] {
        for path in ["healthz", "livez", "readyz"] {
            let said = http_get(cluster, &format!("http://127.0.0.1:{health}/{path}"))?;
            if said != "ok" {
                return Err(format!("{health}/{path}: {said}").into());
            }
        }
        let text = http_get(cluster, &format!("http://127.0.0.1:{port}/metrics"))?;
        for name in names {
            let value =
                text.lines().find_map(|l| l.strip_prefix(name)?.rsplit(' ').next()?.parse::<f64>().ok());
            if value.is_none_or(|v| v < 0.0) {
                return Err(format!("{port}/metrics has no {name}: {text}").into());
            }
        }
    }
    let said = cluster.ok(&["get", "--raw", "/metrics"], "")?;
    // The API server is its own client when it publishes its objects.
    for name in ["apiserver_request_total{", "rest_client_requests_total{", "host=\"in-process\""] {
        if !said.contains(name) {
            return Err(format!("/metrics of the API server has no {name}: {said}").into());
        }
    }
    let said = cluster.ok(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"], "")?;
    if said.contains(REQUESTS) { Ok(()) } else { Err(format!("the kubelet's: {said}").into()) }
}

/// A component's kubeconfig has upstream's user for it, who is not in system:masters.
fn is_no_master(cluster: &Cluster, kubeconfig: &str, user: &str) -> Outcome {
    let said = cluster.ok(&["--kubeconfig", kubeconfig, "auth", "whoami", "-o", "json"], "")?;
    let me: serde_json::Value = serde_json::from_str(&said)?;
    let me = &me["status"]["userInfo"];
    let masters = me["groups"].as_array().is_none_or(|g| g.iter().any(|g| g == "system:masters"));
    if me["username"].as_str().is_some_and(|name| name.starts_with(user)) && !masters {
        return Ok(());
    }
    Err(format!("{kubeconfig} is {me}").into())
}

/// Smoke test: a Deployment behind a Service is reached, scaled, updated, inspected and removed.
fn smoke(cluster: &Cluster) -> Outcome {
    let n = cluster.namespace("smoke")?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 2).to_string())?;
    n.ok(&["expose", "deployment", "web", "--port=80", "--target-port=8080"], "")?;
    n.ok(&["rollout", "status", "deployment/web", "--timeout=60s"], "")?;
    n.expect(&["exec", "deploy/web", "--", "cat", "/tmp/www/index.html"], "", 0, "version 1")?;
    crate::kubectl::long_exec(&n, "deploy/web")?;
    n.ok(&["logs", "deploy/web"], "")?;
    let address = n.jsonpath("service/web", "{.spec.clusterIP}")?;
    until("the Service answers", Duration::from_secs(15), || {
        match http_get(cluster, &format!("http://{address}/")) {
            Ok(page) => Ok(page.contains("version 1")),
            Err(e) => Err(e.message().unwrap_or_default().to_owned()),
        }
    })?;
    n.ok(&["scale", "deployment", "web", "--replicas=3"], "")?;
    n.ok(&["wait", "--for=jsonpath={.status.readyReplicas}=3", "deployment/web", "--timeout=60s"], "")?;
    n.ok(&["delete", "deployment", "web"], "")?;
    n.ok(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"], "")?;
    Ok(())
}
