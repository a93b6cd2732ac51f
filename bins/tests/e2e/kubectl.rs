//! The verbs of an unmodified kubectl, as tables of commands and outputs.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Ipv4Addr,
    process::Stdio,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Outcome,
    harness::{Cluster, IMAGE, IMAGE_2, Namespace, WAIT, deployment, pod, run, until},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] = &[
    ("kubectl_asks_about_the_cluster", cluster_wide),
    ("kubectl_gets_and_describes", get_and_describe),
    ("kubectl_creates", create),
    ("kubectl_applies", apply),
    ("kubectl_defines_resources", define),
    ("kubectl_changes", change),
    ("kubectl_rolls_out", rollout),
    ("kubectl_reads_logs", logs),
    ("kubectl_executes", exec),
    ("kubectl_attaches", attach),
    ("kubectl_copies", copy),
    ("kubectl_forwards_ports", port_forward),
    ("kubectl_proxies", proxy),
    ("kubectl_watches", watch),
    ("kubectl_edits", edit),
    ("kubectl_cordons", cordon),
];

/// Command, input, exit code, and a text of the output.
struct Row(&'static str, &'static str, i32, &'static str);

/// Runs a table; `{image}` and other placeholders are replaced. Reports all failures, not the first only.
fn table(namespace: &Namespace<'_>, rows: &[Row]) -> Outcome {
    let mut problems = Vec::new();
    for Row(command, input, code, want) in rows {
        let filled = command.replace("{image}", IMAGE).replace("{image2}", IMAGE_2);
        let arguments: Vec<&str> = filled.split(' ').collect();
        if let Err(e) = namespace.expect(&arguments, input, *code, want) {
            problems.push(e.message().unwrap_or_default().to_owned());
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n\n").into()) }
}

fn cluster_wide(cluster: &Cluster, name: &str) -> Outcome {
    table(
        &cluster.namespace(name)?,
        &[
            Row("cluster-info", "", 0, "Kubernetes control plane"),
            Row("version", "", 0, "Server Version: v1."),
            Row("api-versions", "", 0, "apps/v1"),
            Row("api-versions", "", 0, "extensions/v1beta1"),
            Row("api-resources", "", 0, "deployments"),
            Row("api-resources --api-group=apps -o wide", "", 0, "statefulsets"),
            Row("get componentstatuses", "", 0, "Healthy"),
            Row("explain pod.spec.containers.image", "", 0, "<string>"),
            Row("explain deployment", "", 0, "GROUP:      apps"),
            Row("auth can-i create pods", "", 0, "yes"),
            Row("auth can-i create pods --as=nobody", "", 1, "no"),
            Row("auth whoami", "", 0, "system:masters"),
            Row("get --raw=/readyz?verbose", "", 0, "ok"),
            Row("get nodes -o wide", "", 0, "node-1"),
            Row("describe node node-1", "", 0, "Allocatable"),
            Row("get namespaces", "", 0, "kube-system"),
            Row("get svc kubernetes -n default", "", 0, "10.43.0.1"),
            Row("get nothings", "", 1, "the server doesn't have a resource type \"nothings\""),
            Row("get pod nothing", "", 1, "pods \"nothing\" not found"),
        ],
    )
}

fn get_and_describe(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 2).to_string())?;
    n.ok(&["expose", "deployment", "web", "--port=80", "--target-port=8080"], "")?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    n.ok(&["apply", "-f", "-"], &pod("single", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/single", "--timeout=60s"], "")?;
    table(
        &n,
        &[
            Row("get all", "", 0, "deployment.apps/web"),
            Row("get all", "", 0, "replicaset.apps/web-"),
            Row("get pods", "", 0, "1/1     Running"),
            Row("get pods -o wide", "", 0, "node-1"),
            Row("get pods -o yaml", "", 0, "kind: List"),
            Row("get pods -o name", "", 0, "pod/single"),
            Row("get pod single -o json", "", 0, "\"kind\": \"Pod\""),
            Row("get pod single -o jsonpath={.status.phase}", "", 0, "Running"),
            Row("get pods -l app=single --no-headers", "", 0, "single"),
            Row("get pods -l app=nobody", "", 0, "No resources found"),
            Row("get pods --field-selector=metadata.name=single", "", 0, "single"),
            Row("get pods --field-selector=status.phase=Failed", "", 0, "No resources found"),
            Row("get pods --sort-by=.metadata.creationTimestamp", "", 0, "single"),
            Row("get pods -A", "", 0, "NAMESPACE"),
            Row("get deploy,rs,svc", "", 0, "service/web"),
            Row("get endpoints web", "", 0, ":8080"),
            Row("get endpointslices", "", 0, "web-"),
            Row("get events", "", 0, "Started"),
            Row("describe pod single", "", 0, "Started container main"),
            Row("describe deployment web", "", 0, "2 desired | 2 updated | 2 total | 2 available"),
            Row("describe service web", "", 0, "Endpoints:"),
        ],
    )
}

fn create(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let file = cluster.dir.path().join(format!("{name}.txt"));
    std::fs::write(&file, "from a file")?;
    n.expect(
        &["create", "configmap", "file", &format!("--from-file=key={}", file.display())],
        "",
        0,
        "created",
    )?;
    table(
        &n,
        &[
            Row("get configmap file -o jsonpath={.data.key}", "", 0, "from a file"),
            Row("create namespace kubectl-creates-this", "", 0, "namespace/kubectl-creates-this created"),
            Row("delete namespace kubectl-creates-this --timeout=30s", "", 0, "deleted"),
            Row("create configmap literal --from-literal=a=b", "", 0, "configmap/literal created"),
            Row("create configmap literal --from-literal=a=b", "", 1, "already exists"),
            Row("create secret generic s --from-literal=p=w", "", 0, "secret/s created"),
            Row("get secret s -o jsonpath={.data.p}", "", 0, "dw=="),
            Row("create deployment d --image={image} --replicas=0", "", 0, "deployment.apps/d created"),
            Row("create job j --image={image} -- echo done", "", 0, "job.batch/j created"),
            Row("wait --for=condition=Complete job/j --timeout=60s", "", 0, "condition met"),
            Row("logs job/j", "", 0, "done"),
            Row("create service clusterip c --tcp=80:8080", "", 0, "service/c created"),
            Row("create service nodeport np --tcp=80:8080", "", 0, "service/np created"),
            Row("create serviceaccount sa", "", 0, "created"),
            Row("create token sa", "", 0, "."),
            Row("create role r --verb=get --resource=pods", "", 0, "created"),
            Row("create rolebinding rb --role=r --user=nobody", "", 0, "created"),
            Row("auth can-i get pods --as=nobody", "", 0, "yes"),
            Row("run r --image={image} --restart=Never -- echo ran", "", 0, "pod/r created"),
            Row("wait --for=jsonpath={.status.phase}=Succeeded pod/r --timeout=60s", "", 0, "condition met"),
            Row("logs r", "", 0, "ran"),
            Row("autoscale deployment d --min=1 --max=3 --cpu-percent=80", "", 0, "autoscaled"),
            Row("get hpa", "", 0, "Deployment/d"),
        ],
    )
}

fn apply(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let map = |value: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": value}})
            .to_string()
    };
    n.expect(&["apply", "-f", "-"], &map("1"), 0, "configmap/m created")?;
    n.expect(&["apply", "-f", "-"], &map("1"), 0, "configmap/m unchanged")?;
    n.expect(&["diff", "-f", "-"], &map("2"), 1, "+  k: \"2\"")?;
    n.expect(&["apply", "--dry-run=server", "-f", "-"], &map("2"), 0, "configured (server dry run)")?;
    n.expect(&["apply", "-f", "-"], &map("2"), 0, "configmap/m configured")?;
    n.expect(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &map("3"), 1, "conflict")?;
    n.expect(
        &["apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-"],
        &map("3"),
        0,
        "serverside-applied",
    )?;
    n.expect(&["get", "configmap", "m", "-o", "jsonpath={.data.k}"], "", 0, "3")?;
    n.expect(&["delete", "-f", "-"], &map("3"), 0, "deleted")?;
    Ok(())
}

/// Life of a custom resource: definition, valid and invalid objects, and the messages that users see.
fn define(cluster: &Cluster, name: &str) -> Outcome {
    const DEFINITION: &str = r#"{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "shops.e2e.example.com"},
        "spec": {"group": "e2e.example.com", "scope": "Namespaced", "names": {"plural": "shops", "kind": "Shop", "shortNames": ["shp"]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.open"}},
                "additionalPrinterColumns": [{"name": "Wanted", "type": "integer", "jsonPath": ".spec.replicas"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "description": "What a shop is.",
                    "x-kubernetes-validations": [{"rule": "self.replicas <= 10", "message": "too many"}],
                    "properties": {"replicas": {"type": "integer", "description": "How many."}}}}}}}]}}"#;
    const SHOP: &str = r#"{"apiVersion": "e2e.example.com/v1", "kind": "Shop", "metadata": {"name": "corner"}, "spec": {"replicas": 3}}"#;
    const INGRESS: &str = r#"{"apiVersion": "extensions/v1beta1", "kind": "Ingress", "metadata": {"name": "old"},
        "spec": {"rules": [{"http": {"paths": [{"path": "/x", "backend": {"serviceName": "s", "servicePort": 80}}]}}]}}"#;
    const UNKNOWN: &str =
        r#"{"apiVersion": "nope.example.com/v1", "kind": "Nope", "metadata": {"name": "x"}}"#;
    table(
        &cluster.namespace(name)?,
        &[
            Row("create -f -", UNKNOWN, 1, "no matches for kind \"Nope\" in version \"nope.example.com/v1\""),
            Row("create -f -", DEFINITION, 0, "shops.e2e.example.com created"),
            Row(
                "wait --for=condition=Established crd/shops.e2e.example.com --timeout=10s",
                "",
                0,
                "condition met",
            ),
            Row("apply -f -", SHOP, 0, "corner created"),
            Row("get shp", "", 0, "WANTED"),
            Row("explain shop.spec.replicas", "", 0, "How many."),
            Row("explain pod.spec.containers.ports --output plaintext-openapiv2", "", 0, "containerPort"),
            Row("scale shp/corner --replicas=5", "", 0, "corner scaled"),
            Row("scale shp/corner --replicas=50", "", 1, "spec: Invalid value: \"object\": too many"),
            Row("delete crd shops.e2e.example.com", "", 0, "deleted"),
            Row("apply -f -", INGRESS, 0, "ingress.extensions/old created"),
            Row("apply -f -", INGRESS, 0, "ingress.extensions/old unchanged"),
            Row("get ingresses.v1.networking.k8s.io old -o yaml", "", 0, "pathType: ImplementationSpecific"),
            Row("get events.events.k8s.io", "", 0, ""),
        ],
    )
}

fn change(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    table(
        &n,
        &[
            Row("label deployment web tier=front", "", 0, "labeled"),
            Row("get deployment -l tier=front", "", 0, "web"),
            Row("label deployment web tier=back", "", 1, "already has a value"),
            Row("label deployment web tier-", "", 0, "unlabeled"),
            Row("annotate deployment web note=it", "", 0, "annotated"),
            Row("patch deployment web -p {\"spec\":{\"replicas\":2}}", "", 0, "patched"),
            Row(
                "patch deployment web --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":1}]",
                "",
                0,
                "patched",
            ),
            Row("patch deployment web --type=merge -p {\"spec\":{\"replicas\":2}}", "", 0, "patched"),
            Row("get deployment web -o jsonpath={.spec.replicas}", "", 0, "2"),
            Row("scale deployment web --replicas=3", "", 0, "scaled"),
            Row(
                "wait --for=jsonpath={.status.readyReplicas}=3 deployment/web --timeout=60s",
                "",
                0,
                "condition met",
            ),
            Row("set env deployment/web A=b", "", 0, "env updated"),
            Row("set resources deployment/web --requests=cpu=10m", "", 0, "resource requirements updated"),
            Row("rollout status deployment/web --timeout=90s", "", 0, "successfully rolled out"),
            Row("delete deployment web", "", 0, "deleted"),
            Row("wait --for=delete pod -l app=web --timeout=60s", "", 0, ""),
        ],
    )
}

fn rollout(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 2).to_string())?;
    table(
        &n,
        &[
            Row("rollout status deployment/web --timeout=60s", "", 0, "successfully rolled out"),
            Row("set image deployment/web main={image2}", "", 0, "image updated"),
            Row("rollout status deployment/web --timeout=60s", "", 0, "successfully rolled out"),
            Row(
                "get deployment web -o jsonpath={.spec.template.spec.containers[0].image}",
                "",
                0,
                "busybox:2",
            ),
            Row("exec deploy/web -- cat /tmp/www/index.html", "", 0, "version 2"),
            Row("rollout history deployment/web", "", 0, "REVISION"),
            Row("rollout history deployment/web --revision=1", "", 0, "busybox:1"),
            Row("rollout undo deployment/web", "", 0, "rolled back"),
            Row("rollout status deployment/web --timeout=60s", "", 0, "successfully rolled out"),
            Row(
                "get deployment web -o jsonpath={.spec.template.spec.containers[0].image}",
                "",
                0,
                "busybox:1",
            ),
            Row("rollout restart deployment/web", "", 0, "restarted"),
            Row("rollout status deployment/web --timeout=60s", "", 0, "successfully rolled out"),
            Row("rollout pause deployment/web", "", 0, "paused"),
            Row("rollout resume deployment/web", "", 0, "resumed"),
        ],
    )
}

fn logs(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let script = "trap 'exit 0' TERM; echo one; echo two; i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.2; done";
    n.ok(&["apply", "-f", "-"], &pod("p", script).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    n.expect(&["logs", "p"], "", 0, "one\ntwo\n")?;
    n.expect(&["logs", "p", "-c", "main", "--tail=1"], "", 0, "tick")?;
    n.expect(&["logs", "p", "--since=1h", "--timestamps"], "", 0, "Z one")?;
    n.expect(&["logs", "p", "-c", "nobody"], "", 1, "container nobody is not valid for pod p")?;
    n.expect(&["logs", "-l", "app=p"], "", 0, "tick")?;
    let mut follow = n.command(&["logs", "-f", "p"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(follow.stdout.take().ok_or("no output")?).lines();
    let begun = Instant::now();
    let seen = lines
        .map_while(Result::ok)
        .take_while(|_| begun.elapsed() < Duration::from_secs(10))
        .filter(|l| l.starts_with("tick"))
        .take(8)
        .count();
    let _ = follow.kill();
    let _ = follow.wait();
    if seen < 8 {
        return Err(format!("logs -f showed {seen} ticks").into());
    }
    // A crashed container: the log of its previous run.
    n.ok(&["apply", "-f", "-"], &pod("q", "echo run at $$ >> /tmp/x; echo crashed; exit 3").to_string())?;
    n.until(&["get", "pod", "q", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], "1", 30)?;
    n.until(&["logs", "-p", "q"], "crashed", 10)
}

fn exec(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &pod("p", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    n.expect(&["exec", "p", "--", "echo", "hello"], "", 0, "hello\n")?;
    n.expect(&["exec", "p", "--", "sh", "-c", "echo bad >&2; exit 7"], "", 7, "bad\n")?;
    n.expect(&["exec", "-i", "p", "--", "cat"], "there and back", 0, "there and back")?;
    n.expect(&["exec", "p", "--", "hostname"], "", 0, "p\n")?;
    n.expect(&["exec", "p", "--", "nothing-here"], "", 1, "nothing-here")?;
    long_exec(&n, "p")?;
    let big = "x".repeat(300_000);
    let said = n.run(&["exec", "-i", "p", "--", "cat"], &big)?;
    if said.out.len() != big.len() {
        return Err(format!("{} bytes went in, {} came back: {}", big.len(), said.out.len(), said.err).into());
    }
    // `script` gives kubectl a terminal.
    let line = n.command(&["exec", "-it", "p", "--", "sh", "-c", "test -t 0 && echo a terminal"]);
    let words: Vec<String> = std::iter::once(line.get_program())
        .chain(line.get_args())
        .map(|w| format!("'{}'", w.to_string_lossy()))
        .collect();
    let said = run(
        std::process::Command::new("script").args(["-qec", &words.join(" "), "/dev/null"]),
        "",
        Duration::from_secs(30),
    )?;
    if said.out.contains("a terminal") { Ok(()) } else { Err(format!("exec -it: {said:?}").into()) }
}

/// A command line of 800 kB, close to the kernel's and upstream's limits.
pub(crate) fn long_exec(n: &Namespace<'_>, pod: &str) -> Outcome {
    let word = "x".repeat(100_000);
    let mut command = vec!["exec", pod, "--", "sh", "-c", "for a; do echo ${#a}; done", "sh"];
    command.extend([&*word; 8]);
    let said = n.run(&command, "")?;
    if said.out == "100000\n".repeat(8) { Ok(()) } else { Err(format!("a long exec: {said:?}").into()) }
}

fn attach(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(
        &["apply", "-f", "-"],
        &pod("p", "trap 'exit 0' TERM; while true; do echo alive; sleep 0.2; done").to_string(),
    )?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    let mut child = n
        .command(&["attach", "p"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let first = lines.next().transpose();
    let _ = child.kill();
    let mut err = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut err);
    }
    let _ = child.wait();
    match first {
        Ok(Some(line)) if line == "alive" => {}
        other => return Err(format!("attach: {other:?}: {err}").into()),
    }
    n.expect(
        &["run", "-i", "--rm", "cat", "--restart=Never", &format!("--image={IMAGE}"), "--", "cat"],
        "through a pod\n",
        0,
        "through a pod",
    )
    .map(|_| ())
}

fn copy(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &pod("p", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    let (there, back) =
        (cluster.dir.path().join(format!("{name}.there")), cluster.dir.path().join(format!("{name}.back")));
    let content: Vec<u8> = (0..200_000_u32).map(|i| i.wrapping_mul(31).to_le_bytes()[1]).collect();
    std::fs::write(&there, &content)?;
    n.ok(&["cp", &there.to_string_lossy(), "p:/tmp/file"], "")?;
    n.ok(&["cp", "p:/tmp/file", &back.to_string_lossy()], "")?;
    if std::fs::read(&back)? == content { Ok(()) } else { Err("the copy differs".into()) }
}

/// Sends an HTTP request from inside the cluster's network namespace.
pub fn http_get(cluster: &Cluster, address: &str) -> Result<String, Failed> {
    let said = run(
        cluster.net.command("/bin/busybox").args(["wget", "-q", "-O", "-", address]),
        "",
        Duration::from_secs(10),
    )?;
    if said.code == 0 { Ok(said.out) } else { Err(format!("GET {address}: {said:?}").into()) }
}

/// Starts a kubectl that listens on a port, requests a page through it, and ends it.
fn through(n: &Namespace<'_>, arguments: &[&str], before: &str, path: &str, want: &str) -> Outcome {
    let mut child =
        n.command(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().ok_or("no output")?);
    out.read_line(&mut line)?;
    let port: Option<u16> = line
        .split(before)
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    let result = match port {
        Some(port) => {
            let address = format!("http://{}:{port}{path}", Ipv4Addr::LOCALHOST);
            (0..3).try_for_each(|_| match http_get(n.cluster, &address)? {
                page if page.contains(want) => Ok(()),
                page => Err(Failed::from(format!("{page:?} has no {want:?}"))),
            })
        }
        None => Err(format!("no port in {line:?}").into()),
    };
    let _ = child.kill();
    let mut err = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut err);
    }
    let _ = child.wait();
    result.map_err(|e| format!("{arguments:?}: {}; {err}", e.message().unwrap_or_default()).into())
}

fn port_forward(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    n.ok(&["expose", "deployment", "web", "--port=80", "--target-port=8080"], "")?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    for target in ["deployment/web", "service/web"] {
        let ports = if target.starts_with("service") { ":80" } else { ":8080" };
        through(&n, &["port-forward", target, ports], "127.0.0.1:", "/", "version 1")?;
    }
    Ok(())
}

fn proxy(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    n.ok(&["expose", "deployment", "web", "--port=80", "--target-port=8080"], "")?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    through(&n, &["proxy", "--port=0"], "127.0.0.1:", "/version", "gitVersion")?;
    let path = format!("/api/v1/namespaces/{name}/services/web:80/proxy/");
    through(&n, &["proxy", "--port=0"], "127.0.0.1:", &path, "version 1")
}

fn watch(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let mut child = n
        .command(&["get", "configmaps", "-w", "--no-headers"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let (sender, seen) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    n.ok(&["create", "configmap", "seen"], "")?;
    let result = until("the new object is seen", Duration::from_secs(10), || {
        Ok(seen.try_iter().any(|l| l.starts_with("seen ")))
    });
    let _ = child.kill();
    let _ = child.wait();
    let _ = reader.join();
    result
}

fn edit(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["create", "configmap", "m", "--from-literal=k=before"], "")?;
    let editor = cluster.dir.path().join(format!("{name}.sh"));
    let mut file = std::fs::File::create(&editor)?;
    file.write_all(b"#!/bin/sh\nexec /bin/busybox sed -i s/before/after/ \"$1\"\n")?;
    drop(file);
    let editor = format!("sh {}", editor.display());
    let said =
        run(n.command(&["edit", "configmap", "m"]).env("KUBE_EDITOR", editor), "", Duration::from_secs(30))?;
    if said.code != 0 {
        return Err(format!("edit: {said:?}").into());
    }
    n.expect(&["get", "configmap", "m", "-o", "jsonpath={.data.k}"], "", 0, "after").map(|_| ())
}

fn cordon(_: &Cluster, _: &str) -> Outcome {
    // A cordoned node would stop the other tests, so this test has its own cluster.
    let cluster = Cluster::up()?;
    let n = cluster.namespace("cordon")?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    table(
        &n,
        &[
            Row("cordon node-1", "", 0, "cordoned"),
            Row("get nodes", "", 0, "SchedulingDisabled"),
            Row(
                "drain node-1 --ignore-daemonsets --delete-emptydir-data --force --timeout=60s",
                "",
                0,
                "drained",
            ),
            Row("get pods", "", 0, "Pending"),
            Row("uncordon node-1", "", 0, "uncordoned"),
            Row("wait --for=condition=Available deployment/web --timeout=60s", "", 0, "condition met"),
            Row("taint node node-1 a=b:NoSchedule", "", 0, "tainted"),
            Row("taint node node-1 a-", "", 0, "untainted"),
        ],
    )
}
