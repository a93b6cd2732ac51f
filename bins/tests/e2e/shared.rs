//! Pods, Deployments, Jobs and Services in a whole cluster.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    Outcome,
    harness::{Cluster, IMAGE, WAIT, deployment, pod, run, until},
    kubectl::http_get,
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] = &[
    ("deletion_honours_the_grace_period", grace),
    ("a_job_completes", job),
    ("a_crash_backs_off", crash_loop),
    ("a_missing_image_is_told", missing_image),
    ("configuration_reaches_the_container", configuration),
    ("a_dead_container_is_restarted", restarted),
    ("a_deleted_pod_is_replaced", replaced),
    ("a_service_reaches_its_pods", service),
    ("names_resolve_inside_a_pod", names),
    ("a_deleted_namespace_takes_its_contents", namespace),
    ("a_kubelet_answers_tokens_on_its_port", kubelet_port),
];

fn grace(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(
        &["apply", "-f", "-"],
        &pod("polite", "trap 'exit 0' TERM; while true; do sleep 0.1; done").to_string(),
    )?;
    let mut stubborn = pod("stubborn", "trap '' TERM; while true; do sleep 0.1; done");
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(4);
    n.ok(&["apply", "-f", "-"], &stubborn.to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"], "")?;
    let begun = Instant::now();
    n.ok(&["delete", "pod", "polite", "--grace-period=30"], "")?;
    let polite = begun.elapsed();
    let begun = Instant::now();
    n.ok(&["delete", "pod", "stubborn"], "")?;
    let stubborn = begun.elapsed();
    if polite > Duration::from_secs(10) {
        return Err(format!("a pod that obeys TERM took {polite:?}").into());
    }
    if stubborn < Duration::from_secs(3) || stubborn > Duration::from_secs(15) {
        return Err(format!("a pod that ignores TERM with 4 s of grace took {stubborn:?}").into());
    }
    Ok(())
}

fn job(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "pi"},
        "spec": {"completions": 3, "parallelism": 2, "template": {"spec": {"restartPolicy": "Never", "containers": [{
            "name": "pi", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["echo", "3.14159"],
        }]}}},
    });
    n.ok(&["apply", "-f", "-"], &job.to_string())?;
    n.ok(&["wait", "--for=condition=Complete", "job/pi", "--timeout=60s"], "")?;
    n.expect(&["get", "job", "pi"], "", 0, "3/3")?;
    n.expect(&["logs", "job/pi"], "", 0, "3.14159")?;
    n.expect(&["get", "pods"], "", 0, "Completed")?;
    n.ok(&["delete", "job", "pi"], "")?;
    n.until(&["get", "pods", "-o", "name", "--ignore-not-found"], "", 20)
}

/// The node's port for other programs, such as a metrics-server: by token, on the address of the node.
fn kubelet_port(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &pod("busy", "while true; do true; done").to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/busy", "--timeout=60s"], "")?;
    let port = "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}";
    let port = cluster.ok(&["get", "node", "node-1", "-o", port], "")?;
    let address = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    let address = cluster.ok(&["get", "node", "node-1", "-o", address], "")?;
    let (account, role) = (format!("system:serviceaccount:{name}:scraper"), format!("{name}-scraper"));
    n.ok(&["create", "serviceaccount", "scraper"], "")?;
    n.ok(&["create", "clusterrole", &role, "--verb=get", "--resource=nodes/metrics,nodes/stats"], "")?;
    let binding = ["create", "clusterrolebinding", &role, "--clusterrole", &role];
    n.ok(&[&binding[..], &["--serviceaccount", &format!("{name}:scraper")]].concat(), "")?;
    let token = n.ok(&["create", "token", "scraper"], "")?;
    let ca = cluster.data.join("pki/ca.crt").to_string_lossy().into_owned();
    let get = |token: &str, path: &str| {
        let mut command = cluster.net.command("kubectl");
        let server = format!("https://{address}:{port}");
        command.args(["--kubeconfig", "/dev/null", "--server", &server, "--certificate-authority", &ca]);
        command.args(["--token", token, "get", "--raw", path]).env("HOME", cluster.dir.path());
        run(&mut command, "", Duration::from_secs(20))
    };
    let usage = || {
        let said = get(token.trim(), "/stats/summary")?;
        let summary: serde_json::Value =
            serde_json::from_str(&said.out).map_err(|e| format!("{said:?}: {e}"))?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let busy = pods.iter().find(|pod| pod["podRef"]["namespace"] == name).cloned().unwrap_or_default();
        Ok::<_, libtest_mimic::Failed>(busy["containers"][0].clone())
    };
    until("a busy container and its memory", Duration::from_secs(20), || {
        let used = usage().map_err(|e| format!("{e:?}"))?;
        let figure = |pointer: &str| used.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (cores, memory) = (figure("/cpu/usageNanoCores"), figure("/memory/workingSetBytes"));
        if cores > 10_000_000 && memory > 0 { Ok(true) } else { Err(used.to_string()) }
    })?;
    let scraped = get(token.trim(), "/metrics/resource")?;
    let sample =
        format!("container_start_time_seconds{{container=\"main\",namespace=\"{name}\",pod=\"busy\"}} 1");
    if !scraped.out.contains(&sample) {
        return Err(format!("no {sample}: {scraped:?}").into());
    }
    let refused = get(token.trim(), "/pods")?;
    if !refused.err.contains(&account) && !refused.err.to_lowercase().contains("forbidden") {
        return Err(format!("not forbidden: {refused:?}").into());
    }
    let unknown = get("nobody", "/stats/summary")?;
    if !unknown.err.contains("nauthorized") && !unknown.err.contains("logged in") {
        return Err(format!("not unauthorized: {unknown:?}").into());
    }
    cluster.ok(&["delete", "clusterrole,clusterrolebinding", &role], "").map(drop)
}

fn crash_loop(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &pod("p", "echo dying; exit 9").to_string())?;
    n.until(&["get", "pod", "p"], "CrashLoopBackOff", 30)?;
    n.until(&["describe", "pod", "p"], "Back-off restarting failed container main in pod p", 20)?;
    // The second restart follows about ten seconds after the first.
    n.until(&["get", "pod", "p", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], "2", 40)?;
    let last = n.jsonpath("pod/p", "{.status.containerStatuses[0].lastState.terminated.exitCode}")?;
    if last == "9" { Ok(()) } else { Err(format!("last exit code {last:?}").into()) }
}

fn missing_image(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let mut missing = pod("p", WAIT);
    missing["spec"]["containers"][0]["image"] = json!("localhost:1/nobody/nothing:1");
    n.ok(&["apply", "-f", "-"], &missing.to_string())?;
    n.until(&["get", "pod", "p"], "ErrImagePull", 30)?;
    n.until(&["get", "pod", "p"], "ImagePullBackOff", 30)?;
    n.until(&["get", "events"], "Failed to pull image \"localhost:1/nobody/nothing:1\"", 10)?;
    n.until(&["get", "events"], "Back-off pulling image", 30)
}

fn configuration(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["create", "configmap", "m", "--from-literal=key=from-map"], "")?;
    n.ok(&["create", "secret", "generic", "s", "--from-literal=key=from-secret"], "")?;
    let mut p = pod(
        "p",
        "echo env $FROM_MAP $FROM_SECRET $POD_NAME; echo file $(cat /map/key) $(cat /secret/key); id -u; cat /proc/self/limits > /scratch/x && echo wrote",
    );
    let spec = &mut p["spec"];
    spec["restartPolicy"] = json!("Never");
    spec["securityContext"] = json!({"runAsUser": 1234, "fsGroup": 1234});
    spec["volumes"] = json!([{"name": "map", "configMap": {"name": "m"}}, {"name": "secret", "secret": {"secretName": "s"}}, {"name": "scratch", "emptyDir": {}}]);
    let container = &mut spec["containers"][0];
    container["volumeMounts"] = json!([{"name": "map", "mountPath": "/map"}, {"name": "secret", "mountPath": "/secret"}, {"name": "scratch", "mountPath": "/scratch"}]);
    container["env"] = json!([
        {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "key"}}},
        {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]);
    n.ok(&["apply", "-f", "-"], &p.to_string())?;
    n.ok(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/p", "--timeout=60s"], "")?;
    n.expect(&["logs", "p"], "", 0, "env from-map from-secret p\nfile from-map from-secret\n1234\nwrote\n")
        .map(|_| ())
}

fn restarted(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &pod("p", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    let before = n.jsonpath("pod/p", "{.status.containerStatuses[0].containerID}")?;
    // Process 1 of a container receives only signals that it handles; this one handles TERM.
    let _ = n.run(&["exec", "p", "--", "kill", "1"], "")?;
    n.until(&["get", "pod", "p", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], "1", 20)?;
    n.until(&["get", "pod", "p"], "Running", 20)?;
    let after = n.jsonpath("pod/p", "{.status.containerStatuses[0].containerID}")?;
    if after == before { Err(format!("still {after}").into()) } else { Ok(()) }
}

fn replaced(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 2).to_string())?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    let names = n.jsonpath("pods", "{.items[*].metadata.name}")?;
    let first = names.split(' ').next().unwrap_or_default().to_owned();
    n.ok(&["delete", "pod", &first], "")?;
    n.ok(&["wait", "--for=jsonpath={.status.readyReplicas}=2", "deployment/web", "--timeout=60s"], "")?;
    let now = n.jsonpath("pods", "{.items[*].metadata.name}")?;
    if now.contains(&first) || now.split(' ').count() != 2 {
        Err(format!("{names} became {now}").into())
    } else {
        Ok(())
    }
}

fn service(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 2).to_string())?;
    n.ok(&["expose", "deployment", "web", "--port=80", "--target-port=http", "--type=NodePort"], "")?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    let address = n.jsonpath("service/web", "{.spec.clusterIP}")?;
    let port = n.jsonpath("service/web", "{.spec.ports[0].nodePort}")?;
    let node = n.jsonpath("node/node-1", "{.status.addresses[?(@.type==\"InternalIP\")].address}")?;
    for target in [format!("http://{address}/"), format!("http://{node}:{port}/")] {
        until(&format!("{target} answers"), Duration::from_secs(15), || match http_get(cluster, &target) {
            Ok(page) => Ok(page.contains("version 1")),
            Err(e) => Err(e.message().unwrap_or_default().to_owned()),
        })?;
    }
    // From one pod to the Service, and to another pod.
    n.until(
        &["exec", "deploy/web", "--", "wget", "-q", "-O", "-", &format!("http://{address}/")],
        "version 1",
        15,
    )?;
    let pods = n.jsonpath("pods", "{.items[*].status.podIP}")?;
    for pod in pods.split(' ') {
        n.until(
            &["exec", "deploy/web", "--", "wget", "-q", "-O", "-", &format!("http://{pod}:8080/")],
            "version 1",
            15,
        )?;
    }
    Ok(())
}

fn names(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    n.ok(&["expose", "deployment", "web", "--port=80", "--target-port=8080"], "")?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    n.ok(&["apply", "-f", "-"], &pod("p", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    for host in [format!("web.{name}"), format!("web.{name}.svc.cluster.local"), "web".to_owned()] {
        n.until(&["exec", "p", "--", "wget", "-q", "-O", "-", &format!("http://{host}/")], "version 1", 15)?;
    }
    let address = n.jsonpath("service/web", "{.spec.clusterIP}")?;
    n.until(&["exec", "p", "--", "nslookup", &format!("web.{name}.svc.cluster.local")], &address, 15)?;
    n.until(&["exec", "p", "--", "nslookup", "kubernetes.default.svc.cluster.local"], "10.43.0.1", 15)?;
    let range = n.jsonpath("servicecidr/kubernetes", "{.spec.cidrs} {.status.conditions[0].status}")?;
    if range == "[\"10.43.0.0/16\"] True" {
        Ok(())
    } else {
        Err(format!("the service range: {range}").into())
    }
}

fn namespace(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    cluster.ok(&["delete", "namespace", name, "--timeout=60s"], "")?;
    n.expect(&["get", "deployment,pods"], "", 0, "No resources found")?;
    let said = cluster.kubectl(&["get", "namespace", name])?;
    if said.err.contains("not found") { Ok(()) } else { Err(format!("{said:?}").into()) }
}
