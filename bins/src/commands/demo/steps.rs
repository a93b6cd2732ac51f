//! The steps of the demo.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_core::{
    api::api::{
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::{Pod, Service},
    },
    client::{Client, DeleteOptions, ListParams, Patch},
    meta::ObjectExt,
};
use k8s_runtime::images::ImageBuilder;
use serde_json::{Value, json};

use super::{
    Report,
    workload::{fetch, get, get_as},
};
use crate::{
    Cluster,
    apply::apply,
    commands::exit::{Code, Failure},
};

/// The same manifests that a user would apply.
const NAMESPACE: &str = include_str!("../../../manifests/namespace.yaml");
const CONFIG: &str = include_str!("../../../manifests/config.yaml");
const DEPLOYMENT: &str = include_str!("../../../manifests/deployment.yaml");
const SERVICE: &str = include_str!("../../../manifests/service.yaml");
const INGRESS: &str = include_str!("../../../manifests/ingress.yaml");
const JOB: &str = include_str!("../../../manifests/job.yaml");

/// Timeout of a step.
const PATIENCE: Duration = Duration::from_secs(60);

fn failed(message: impl Into<String>) -> Failure {
    Failure::new(Code::Failed, message)
}

/// Polls until `look` returns a value. On timeout the error has the reasons for which pods are not ready.
async fn until<T, F: Future<Output = Option<T>>>(
    client: &Client,
    what: &str,
    look: impl Fn() -> F,
) -> Result<T, Failure> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(found) => Ok(found),
        Err(_) => {
            let all = client.namespaced::<Pod>("demo").list(&ListParams::default()).await;
            let waiting: String = all.iter().flatten().filter_map(waits_for).collect();
            Err(failed(format!("{what} did not happen within {} s{waiting}", PATIENCE.as_secs())))
        }
    }
}

/// Describes a pod that is not ready: the scheduler's message, or the containers' waiting reasons.
fn waits_for(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref();
    if is_ready(pod) || status.is_some_and(|s| s.phase.as_deref() == Some("Succeeded")) {
        return None;
    }
    let unscheduled = status
        .and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled" && c.status != "True"))
        .and_then(|c| c.message.clone());
    let waiting = || {
        let containers = status?.container_statuses.as_ref()?;
        let state = containers.iter().find_map(|c| c.state.as_ref()?.waiting.clone())?;
        Some(format!("{}: {}", state.reason.unwrap_or_default(), state.message.unwrap_or_default()))
    };
    let why = unscheduled.or_else(waiting).unwrap_or_else(|| "not ready".to_owned());
    Some(format!("\n  pod {}: {why}", pod.name()))
}

/// Applies every document of a manifest.
async fn apply_manifest(client: &Client, text: &str) -> Result<(), Failure> {
    let registry = k8s_apiserver::resources::Registry::new(&[]);
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).map_err(Failure::because("manifest"))?;
        let at =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let version = at("/apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let kind = at("/kind");
        let resource =
            registry.by_kind(group, version, &kind).ok_or_else(|| failed(format!("no kind {kind}")))?;
        let base =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let namespace = if resource.namespaced {
            format!("/namespaces/{}", at("/metadata/namespace"))
        } else {
            String::new()
        };
        let path = format!("{base}{namespace}/{}/{}", resource.plural, at("/metadata/name"));
        apply(client, &path, &object).await.map_err(Failure::because(format!("apply {kind}")))?;
    }
    Ok(())
}

async fn pods(client: &Client) -> Vec<Pod> {
    client.namespaced::<Pod>("demo").list(&ListParams::default().labels("app=web")).await.unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    !pod.is_deleting() && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Returns the ready pods, if there are exactly `count` pods and all are ready.
async fn ready_pods(client: &Client, count: usize) -> Option<Vec<Pod>> {
    let all = pods(client).await;
    (all.len() == count && all.iter().all(is_ready)).then_some(all)
}

/// Sends requests until each of `names` has answered. `version`: all must return it.
async fn reach_all(target: &str, names: &BTreeSet<String>) -> Result<Value, Failure> {
    let mut seen = BTreeSet::new();
    let mut last = Value::Null;
    for _ in 0..400 {
        match fetch(target).await {
            Ok(body) => {
                last =
                    serde_json::from_str(&body).map_err(Failure::because(format!("answer of {target}")))?;
                seen.insert(last["pod"].as_str().unwrap_or_default().to_owned());
                if names.is_subset(&seen) {
                    return Ok(last);
                }
            }
            Err(e) => {
                tracing::debug!(error = %e, target, "not reached yet");
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
    }
    Err(failed(format!("{target} led to {seen:?} only, not to all of {names:?}; last answer {last}")))
}

/// Returns the process ids of a pod's web server on this host.
fn processes(cluster: &Cluster, pod: &Pod) -> Vec<i32> {
    let marker = cluster.paths().cgroup();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            cgroups.contains(&marker)
                && cgroups.contains(pod.uid())
                && command.windows(3).any(|w| w == b"web")
        })
        .collect()
}

pub(super) async fn play(cluster: &Cluster, report: &mut Report) -> Result<(), Failure> {
    let client = cluster.client();
    load_images(cluster, report)?;

    report.begin("creating objects");
    for manifest in [NAMESPACE, CONFIG, DEPLOYMENT, SERVICE] {
        apply_manifest(&client, manifest).await?;
    }
    report.done(
        "created a namespace, a ConfigMap, a Secret, an extensions/v1beta1 Deployment of 3 and a Service",
    );
    report.begin("waiting for 3 pods");
    let running = until(&client, "3 ready pods", || ready_pods(&client, 3)).await?;
    report.done("3 pods ready");

    reach(&client, &running, report).await?;
    close(&client, &running, report).await?;
    recover(cluster, &client, report).await?;
    roll(&client, report).await?;
    job(&client, report).await
}

/// Builds and loads images of this program and its shared libraries.
fn load_images(cluster: &Cluster, report: &mut Report) -> Result<(), Failure> {
    report.begin("building images");
    let store = cluster.images().ok_or_else(|| failed("this cluster has no image store"))?;
    for version in ["v1", "v2"] {
        ImageBuilder::new()
            .binary_with_libs("/proc/self/exe", "/hyperkube")
            .env("DEMO_VERSION", version)
            .entrypoint(["/hyperkube", "demo-workload", "web"])
            .import(&store, &format!("demo/web:{version}"))
            .map_err(Failure::because("build an image"))?;
    }
    report.done("built two images from this program and its shared libraries");
    Ok(())
}

async fn reach(client: &Client, running: &[Pod], report: &mut Report) -> Result<(), Failure> {
    let names: BTreeSet<String> = running.iter().map(|p| p.name().to_owned()).collect();
    let service = client
        .namespaced::<Service>("demo")
        .get("web")
        .await
        .map_err(Failure::because("read the Service"))?;
    let spec = service.spec.unwrap_or_default();
    let address = spec.cluster_ip.unwrap_or_default();
    report.begin("reaching the pods");
    let answer = reach_all(&format!("{address}:8000"), &names).await?;
    let right = answer["env"] == json!({"GREETING": "hello", "PASSWORD": "swordfish"})
        && answer["files"]["config/motd"] == "the sea was angry that day"
        && answer["files"]["secret/PASSWORD"] == "swordfish"
        && answer["version"] == "v1";
    if !right {
        return Err(failed(format!("a pod does not have its environment and files: {answer}")));
    }
    report.done(&format!(
        "all 3 pods reached through the Service's address {address}, with environment and files"
    ));
    report.begin("asking the DNS from inside a pod");
    let inside = running.first().and_then(|p| p.status.as_ref()?.pod_ip.clone()).unwrap_or_default();
    for name in ["web.demo", "web.demo.svc.cluster.local"] {
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            let body =
                get(&format!("{inside}:8080"), &format!("/fetch?{name}:8000")).await.unwrap_or_default();
            if let Ok(answer) = serde_json::from_str::<Value>(&body) {
                seen.insert(answer["pod"].as_str().unwrap_or_default().to_owned());
            } else {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            if names.is_subset(&seen) {
                break;
            }
        }
        if !names.is_subset(&seen) {
            return Err(failed(format!("{name} led from inside a pod to {seen:?} only")));
        }
    }
    report.done("all 3 reached from inside a pod as web.demo and web.demo.svc.cluster.local");
    report.begin("reaching the node port");
    let port = spec.ports.iter().flatten().find_map(|p| p.node_port).unwrap_or_default();
    reach_all(&format!("127.0.0.1:{port}"), &names).await?;
    report.done(&format!("all 3 reached from the host through node port {port}"));
    report.begin("reaching the load balancer's address");
    let external = until(client, "the load balancer's address", || async {
        let service = client.namespaced::<Service>("demo").get("web").await.ok()?;
        service.status?.load_balancer?.ingress?.into_iter().next()?.ip
    })
    .await?;
    reach_all(&format!("{external}:8000"), &names).await?;
    report.done(&format!("all 3 reached through the load balancer's address {external}"));
    report.begin("reaching the Ingress");
    apply_manifest(client, INGRESS).await?;
    until(client, "the Ingress route", || async {
        let answer = get_as(&format!("{external}:80"), "web.example.com", "/").await.ok()?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        names.contains(answer["pod"].as_str()?).then_some(())
    })
    .await?;
    report.done(&format!("a pod reached through the Ingress for web.example.com, at {external}:80"));
    Ok(())
}

async fn recover(cluster: &Cluster, client: &Client, report: &mut Report) -> Result<(), Failure> {
    report.begin("killing a process");
    let victim = pods(client).await.into_iter().find(is_ready).ok_or_else(|| failed("no ready pod"))?;
    let found = processes(cluster, &victim);
    if found.is_empty() {
        return Err(failed(format!("no process of pod {} found", victim.name())));
    }
    for pid in found {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .map_err(Failure::because("kill"))?;
    }
    let name = victim.name().to_owned();
    until(client, "the restart", || async {
        let pod = client.namespaced::<Pod>("demo").get(&name).await.ok()?;
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.clone();
        (status.restart_count > 0 && status.ready && is_ready(&pod)).then_some(())
    })
    .await?;
    report.done("killed a container's process; it was restarted");

    report.begin("deleting a pod");
    client
        .namespaced::<Pod>("demo")
        .delete(&name, &DeleteOptions::default())
        .await
        .map_err(Failure::because("delete a pod"))?;
    until(client, "the replacement", || async {
        let ready = pods(client).await.iter().filter(|p| is_ready(p) && p.name() != name).count();
        (ready == 3).then_some(())
    })
    .await?;
    report.done("deleted a pod; it was replaced");

    report.begin("scaling to 5");
    let deployments = client.namespaced::<Deployment>("demo");
    deployments
        .patch("web", &Patch::Merge(json!({"spec": {"replicas": 5}})))
        .await
        .map_err(Failure::because("scale"))?;
    until(client, "5 ready pods", || ready_pods(client, 5)).await?;
    report.done("scaled to 5");
    Ok(())
}

/// Sends requests to a Service until it is stopped; counts responses and failures.
struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    #[expect(clippy::disallowed_methods, reason = "the step aborts the task")]
    fn start(target: String) -> Self {
        let (stop, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, answered) = (stop.clone(), good.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match fetch(&target).await {
                    Ok(_) => {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(e) => failures.push(e.to_string()),
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            failures
        });
        Load { stop, good, task }
    }

    async fn end(self) -> Result<u64, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.map_err(Failure::because("load"))?;
        let good = self.good.load(Ordering::Relaxed);
        match failures.first() {
            None => Ok(good),
            Some(first) => Err(failed(format!(
                "{} of {} requests failed, the first: {first}",
                failures.len(),
                good + failures.len() as u64
            ))),
        }
    }
}

async fn rolled_out(client: &Client, image: &str) -> Option<()> {
    let deployment = client.namespaced::<Deployment>("demo").get("web").await.ok()?;
    let (spec, status) = (deployment.spec.clone()?, deployment.status.clone()?);
    let wanted = spec.replicas.unwrap_or(1);
    let settled = status.observed_generation == deployment.metadata.generation
        && status.updated_replicas == Some(wanted)
        && status.replicas == Some(wanted)
        && status.available_replicas == Some(wanted);
    let right = spec.template.spec?.containers.first()?.image.as_deref() == Some(image);
    (settled && right && ready_pods(client, 5).await.is_some()).then_some(())
}

async fn roll(client: &Client, report: &mut Report) -> Result<(), Failure> {
    let service = client
        .namespaced::<Service>("demo")
        .get("web")
        .await
        .map_err(Failure::because("read the Service"))?;
    let target = format!("{}:8000", service.spec.and_then(|s| s.cluster_ip).unwrap_or_default());
    for (image, version, what) in
        [("demo/web:v2", "v2", "rolled out version 2"), ("demo/web:v1", "v1", "rolled back to version 1")]
    {
        report.begin(what);
        let load = Load::start(target.clone());
        let patch =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": image}]}}}});
        client
            .namespaced::<Deployment>("demo")
            .patch("web", &Patch::Strategic(patch))
            .await
            .map_err(Failure::because(what))?;
        until(client, what, || rolled_out(client, image)).await?;
        let good = load.end().await?;
        let body = fetch(&target).await.map_err(Failure::because("ask the Service"))?;
        let answer: Value = serde_json::from_str(&body).map_err(Failure::because("answer"))?;
        if answer["version"] != version {
            return Err(failed(format!("after {what} a pod answers {answer}")));
        }
        report.done(&format!("{what}; {good} requests meanwhile, none failed"));
    }
    Ok(())
}

/// Shows that a network policy holds between two pods, and no longer when it is deleted.
async fn close(client: &Client, running: &[Pod], report: &mut Report) -> Result<(), Failure> {
    const PATH: &str = "/apis/networking.k8s.io/v1/namespaces/demo/networkpolicies/closed";
    report.begin("closing the pods by a network policy");
    let ips: Vec<_> = running.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect();
    let [from, to, ..] = &ips[..] else { return Err(failed("two pods have no addresses")) };
    let (inside, ask) = (format!("{from}:8080"), format!("/fetch?{to}:8080"));
    let is_open = || async {
        let answer = tokio::time::timeout(Duration::from_millis(500), get(&inside, &ask)).await;
        matches!(answer, Ok(Ok(body)) if serde_json::from_str::<Value>(&body).is_ok())
    };
    until(client, "a pod reaches another", || async { is_open().await.then_some(()) }).await?;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "demo"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
    });
    apply(client, PATH, &policy).await.map_err(Failure::because("apply a NetworkPolicy"))?;
    until(client, "the policy holds", || async { (!is_open().await).then_some(()) }).await?;
    fetch(&format!("{to}:8080")).await.map_err(Failure::because("reach a closed pod from its node"))?;
    let gone = client.bytes(http::Method::DELETE, PATH, "", "").await;
    gone.map_err(Failure::because("delete the NetworkPolicy"))?;
    until(client, "a pod reaches another again", || async { is_open().await.then_some(()) }).await?;
    report.done("a NetworkPolicy closed the pods to each other, not to their node, until it was deleted");
    Ok(())
}

async fn job(client: &Client, report: &mut Report) -> Result<(), Failure> {
    report.begin("running a job");
    apply_manifest(client, JOB).await?;
    until(client, "the job's end", || async {
        let job = client.namespaced::<Job>("demo").get("countdown").await.ok()?;
        let conditions = job.status.as_ref()?.conditions.as_ref()?.clone();
        conditions.iter().any(|c| c.type_ == "Complete" && c.status == "True").then_some(())
    })
    .await?;
    let params = ListParams::default().labels("job-name=countdown");
    let all = client.namespaced::<Pod>("demo").list(&params).await.map_err(Failure::because("list pods"))?;
    let pod = all.first().ok_or_else(|| failed("the job has no pod"))?;
    let path = format!("/api/v1/namespaces/demo/pods/{}/log", pod.name());
    let log = client
        .bytes(http::Method::GET, &path, "application/json", "")
        .await
        .map_err(Failure::because("read the job's log"))?;
    let log = String::from_utf8_lossy(&log);
    if log.lines().collect::<Vec<_>>() != ["3", "2", "1", "lift-off"] {
        return Err(failed(format!("the job's log is {log:?}")));
    }
    report.done(&format!("ran a Job to completion; its log: {}", log.trim().replace('\n', " ")));
    Ok(())
}
