//! The kubelet over the embedded runtime: real containers (root and a Linux kernel needed), an API server in
//! this process.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(missing_docs, unreachable_pub, dead_code)]

#[path = "../it/cluster.rs"]
mod cluster;
mod with_kubectl;

use std::{
    future::Future,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::Api;
use http::Request;
use http_body_util::BodyExt;
use k8s_core::{api::api::core::v1::Pod, client::DeleteOptions, clock::Clock};
use k8s_kubelet::{Eviction, Kubelet};
use k8s_runtime::{
    Runtime,
    embedded::{Embedded, EmbeddedConfig, preflight, reset},
    images::{ImageBuilder, ImageStore},
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

const IMAGE: &str = "test.local/busybox:1";

fn main() -> ExitCode {
    k8s_runtime::embedded::run_if_zygote();
    let trial =
        |name: &str, test: fn(&'static str) -> Result<(), Failed>, arg| Trial::test(name, move || test(arg));
    let tests = vec![
        trial("a_pods_life", |_| run(a_pods_life), ""),
        trial("a_restart_touches_nothing", |_| run(a_restart_touches_nothing), ""),
        trial("many_pods", |_| run(many_pods), ""),
        trial("kubectl", |_| run(with_kubectl::kubectl), ""),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

struct Node {
    dir: PathBuf,
    api: Api,
    /// Client of the kubelet. Default: one of `api`.
    client: Option<k8s_core::client::Client>,
    config: EmbeddedConfig,
    images: Arc<ImageStore>,
    runtime: Option<Arc<Embedded>>,
    kubelet: Option<Kubelet>,
}

fn run<F: Future<Output = Result<(), Failed>>>(test: fn(Node) -> F) -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let name = dir.path().file_name().map(|n| n.to_string_lossy().replace('.', "")).unwrap_or_default();
    let config = EmbeddedConfig {
        name: "shopkube".into(),
        root: dir.path().join("state"),
        run: dir.path().join("run"),
        cgroup_root: format!("k8s-kubelet-test-{name}"),
    };
    let missing: Vec<String> = preflight(&config).iter().map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(missing.join("; ").into());
    }
    let images = Arc::new(ImageStore::open(dir.path().join("images"))?);
    let mut image = ImageBuilder::new().file("/usr/bin/busybox", "/bin/busybox", 0o755);
    for applet in ["sh", "echo", "cat", "sleep", "id", "hostname", "true", "false", "mount"] {
        image = image.link("busybox", format!("/bin/{applet}"));
    }
    image.import(&images, IMAGE)?;
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let node = Node {
        dir: dir.path().to_owned(),
        api: tokio.block_on(Api::start(Clock::system())),
        client: None,
        config: config.clone(),
        images,
        runtime: None,
        kubelet: None,
    };
    let limit = Duration::from_secs(90);
    let result = tokio.block_on(async { tokio::time::timeout(limit, test(node)).await });
    tokio.shutdown_timeout(Duration::from_secs(5));
    reset(&config.root)?;
    // A failed test may have left tmpfs volumes mounted.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let ours = mounts
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(|m| m.starts_with(&*dir.path().to_string_lossy()));
    let left: Vec<String> = ours.map(str::to_owned).collect();
    for mount in &left {
        nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH)?;
    }
    match result {
        Ok(result) => result?,
        Err(_) => return Err("timed out".into()),
    }
    if left.is_empty() { Ok(()) } else { Err(format!("left mounted: {left:?}").into()) }
}

impl Node {
    async fn start(&mut self) -> Result<(), Failed> {
        let runtime = Arc::new(Embedded::new(self.config.clone(), self.images.clone()).await?);
        let dir = self.dir.clone();
        let kubelet =
            Kubelet::builder(self.client.clone().unwrap_or_else(|| self.api.connection.client()), "n1")
                .configure(|c| {
                    c.root_dir = dir.join("kubelet");
                    c.log_dir = dir.join("logs");
                    c.port = 0;
                    // The machine may be short of disk.
                    c.eviction = Eviction::none();
                })
                .runtime(runtime.clone())
                .images(self.images.clone())
                .start()
                .await?;
        self.runtime = Some(runtime);
        self.kubelet = Some(kubelet);
        Ok(())
    }

    async fn stop(&mut self) {
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.shutdown().await;
        }
        self.runtime = None;
    }

    async fn create(&self, name: &str, mut spec: Value) -> Result<(), Failed> {
        spec["nodeName"] = json!("n1");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
        self.api.client().namespaced("ns").create(&pod).await?;
        Ok(())
    }

    fn pod(&self, name: &str) -> Value {
        self.api.pod(name).unwrap_or_default()
    }

    fn container(&self, pod: &str) -> Value {
        self.pod(pod)["status"]["containerStatuses"][0].clone()
    }

    async fn until(&self, what: &str, test: impl Fn() -> bool) -> Result<(), Failed> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if test() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let events: Vec<Value> = self.api.list("events").into_iter().map(|e| e["message"].clone()).collect();
        Err(format!("not within the time: {what}; {:#?}; {events:#?}", self.api.list("pods")).into())
    }

    async fn until_phase(&self, name: &str, phase: &str) -> Result<(), Failed> {
        self.until(&format!("{name} {phase}"), || self.pod(name)["status"]["phase"] == phase).await
    }

    async fn log(&self, pod: &str, query: &str) -> Result<String, Failed> {
        let api = self.kubelet.as_ref().ok_or("not started")?.api();
        let request = Request::get(format!("/containerLogs/ns/{pod}/c?{query}")).body(())?;
        let bytes =
            api.handle(request).await.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(String::from_utf8(bytes.to_vec())?)
    }

    async fn delete(&self, name: &str, grace: i64) -> Result<(), Failed> {
        let options = DeleteOptions::default().grace(grace);
        self.api.client().namespaced::<Pod>("ns").delete(name, &options).await?;
        self.until("deleted", || self.pod(name).is_null()).await
    }
}

fn shell(script: &str) -> Value {
    json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script]}]})
}

async fn a_pods_life(mut node: Node) -> Result<(), Failed> {
    node.start().await?;
    let map = json!({"metadata": {"name": "m"}, "data": {"key": "from the map"}});
    node.api.create("/api/v1/namespaces/ns/configmaps", map).await;
    let script = "echo $GREETING; cat /config/key; echo; cat /token/token; echo; hostname; cat /etc/hosts; \
        echo scratch > /scratch/f; cat /scratch/f; id -u; echo bye > /dev/termination-log; exit $(cat /scratch/code 2>/dev/null || echo 5)";
    let mut spec = shell(script);
    spec["restartPolicy"] = json!("Never");
    spec["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000});
    spec["containers"][0]["env"] = json!([{"name": "GREETING", "value": "hello"}]);
    spec["volumes"] = json!([
        {"name": "config", "configMap": {"name": "m"}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]);
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    spec["containers"][0]["volumeMounts"] = json!(["config", "token", "scratch"].map(mount));
    node.create("p", spec).await?;
    node.until_phase("p", "Failed").await?;
    let end = node.container("p")["state"]["terminated"].clone();
    if (&end["exitCode"], &end["reason"], &end["message"]) != (&json!(5), &json!("Error"), &json!("bye\n")) {
        return Err(format!("{end}").into());
    }
    let log = node.log("p", "").await?;
    for want in [
        "hello\n",
        "from the map\n",
        // A JSON web token.
        "eyJ",
        "\np\n",
        "# Kubernetes-managed hosts file",
        "scratch\n1000\n",
    ] {
        if !log.contains(want) {
            return Err(format!("{want:?} is not in {log}").into());
        }
    }
    // The end of a pod releases its resources.
    let sandboxes = node.runtime.as_ref().ok_or("no runtime")?.list().await?;
    node.until("taken down", || {
        !node.dir.join("kubelet/pods").join(&sandboxes[0].spec.uid).join("volumes").exists()
    })
    .await?;
    node.delete("p", 30).await?;
    // The object of a pod that has ended goes at once; its sandbox and directory follow.
    let begun = Instant::now();
    let (left, dirs) = loop {
        let left = node.runtime.as_ref().ok_or("no runtime")?.list().await?.len();
        let dirs = std::fs::read_dir(node.dir.join("kubelet/pods"))?.count();
        if (left, dirs) == (0, 0) || begun.elapsed() > Duration::from_secs(20) {
            break (left, dirs);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    node.stop().await;
    if (left, dirs) == (0, 0) {
        Ok(())
    } else {
        Err(format!("{left} sandboxes and {dirs} directories are left").into())
    }
}

async fn a_restart_touches_nothing(mut node: Node) -> Result<(), Failed> {
    node.start().await?;
    node.create("p", shell("trap 'exit 0' TERM; while true; do sleep 0.1; done")).await?;
    node.until_phase("p", "Running").await?;
    let before = node.container("p");
    node.stop().await;
    node.start().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    if node.container("p") != before {
        return Err(format!("{} became {}", before, node.container("p")).into());
    }
    let begun = Instant::now();
    node.delete("p", 30).await?;
    if begun.elapsed() > Duration::from_secs(10) {
        return Err("the stop signal did not end it".into());
    }
    node.stop().await;
    Ok(())
}

/// Prints how long pods take. It asserts only that all of them run and all of them go.
async fn many_pods(mut node: Node) -> Result<(), Failed> {
    let begun = Instant::now();
    node.start().await?;
    node.until("node", || !node.api.list("nodes").is_empty()).await?;
    println!("node registered after {:?}", begun.elapsed());
    let script = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
    let mut times = Vec::new();
    for n in 0..10 {
        let begun = Instant::now();
        node.create(&format!("one-{n}"), shell(script)).await?;
        node.until_phase(&format!("one-{n}"), "Running").await?;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("one at a time: median {:?}, longest {:?}", times[5], times[9]);
    let begun = Instant::now();
    for n in 0..20 {
        node.create(&format!("all-{n}"), shell(script)).await?;
    }
    for n in 0..20 {
        node.until_phase(&format!("all-{n}"), "Running").await?;
    }
    println!("20 at once: {:?}", begun.elapsed());
    let names = (0..10).map(|n| format!("one-{n}")).chain((0..20).map(|n| format!("all-{n}")));
    let options = DeleteOptions::default().grace(5);
    let api = node.api.client().namespaced::<Pod>("ns");
    for name in names {
        api.delete(&name, &options).await?;
    }
    let begun = Instant::now();
    node.until("all gone", || node.api.list("pods").is_empty()).await?;
    println!("30 deleted: {:?}", begun.elapsed());
    node.stop().await;
    Ok(())
}
