//! An API server and a whole cluster on a full disk: a small tmpfs, unmounted after the test.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    time::Duration,
};

use libtest_mimic::Failed;

use crate::{
    Outcome,
    attack::{TOKENS, Target, serving},
    harness::{Cluster, HYPERKUBE, Process, WAIT, pod, until},
};

pub const TESTS: &[crate::Test] = &[
    ("a_server_outlives_a_full_disk", outlives),
    ("a_cluster_starts_read_only_on_a_full_disk", starts_read_only),
];

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A small tmpfs, with a file that fills it.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(path: &'a Path, size: &str) -> Result<Self, Failed> {
        fs::create_dir(path)?;
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "hk-e2e"]).arg(path).status()?;
        if mounted.success() { Ok(Disk(path)) } else { Err("mount a tmpfs".into()) }
    }
}

/// Appends to a file until the disk has no byte left.
fn fill(file: &mut File) {
    for size in [64 << 10, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn start(data: &Path, tokens: &Path, log: &Path) -> Result<(Process, Target), Failed> {
    let mut command = Command::new(HYPERKUBE);
    command.args(["kube-apiserver", "--secure-port", "0", "--bind-address", "127.0.0.1"]);
    command.args(["--advertise-address", "127.0.0.1", "--token-auth-file"]).arg(tokens);
    command.arg("--data-dir").arg(data);
    let server = Process::start(&mut command, log.to_owned())?;
    let port = serving(&server)?;
    Ok((server, Target::new(data, port)?))
}

fn outlives() -> Outcome {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk");
    let _disk = Disk::mount(&disk, "24m")?;
    let tokens = dir.path().join("tokens");
    fs::write(&tokens, TOKENS)?;
    let (data, filler) = (disk.join("data"), disk.join("filler"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ask = |target: &Target, method: &str, path: &str, body: &str| {
        runtime.block_on(target.ask(method, path, "admin", "json", body)).unwrap_or(0)
    };
    let create = |target: &Target, name: &str| {
        let text = "x".repeat(50_000);
        let map = serde_json::json!({"metadata": {"name": name}, "data": {"a": text}});
        ask(target, "POST", MAPS, &map.to_string())
    };
    let want = |what: &str, have: u16, want: u16| match have == want {
        true => Ok(()),
        false => Err(Failed::from(format!("{what}: {have} instead of {want}"))),
    };

    let log = |n: u8| dir.path().join(format!("log-{n}"));
    let (mut server, target) = start(&data, &tokens, &log(1))?;
    want("create", create(&target, "first"), 201)?;
    let mut file = File::create(&filler)?;
    fill(&mut file);
    let mut last = 201;
    for i in 0..400 {
        last = create(&target, &format!("m{i}"));
        if last != 201 {
            break;
        }
    }
    want("create on a full disk", last, 503)?;
    want("readyz", ask(&target, "GET", "/readyz", ""), 500)?;
    want("livez", ask(&target, "GET", "/livez", ""), 200)?;
    want("read", ask(&target, "GET", &format!("{MAPS}/first"), ""), 200)?;
    if !server.said().contains("the store cannot write") {
        return Err(format!("the log says nothing of it: {}", server.said()).into());
    }

    // It starts read-only.
    server.stop()?;
    fill(&mut file);
    let (mut server, target) = start(&data, &tokens, &log(2))?;
    want("read after a restart", ask(&target, "GET", &format!("{MAPS}/first"), ""), 200)?;
    want("readyz after a restart", ask(&target, "GET", "/readyz", ""), 500)?;
    want("create after a restart", create(&target, "no"), 503)?;

    fs::remove_file(&filler)?;
    drop(file);
    until("the server writes again", Duration::from_secs(10), || Ok(create(&target, "after") == 201))?;
    want("readyz in the end", ask(&target, "GET", "/readyz", ""), 200)?;
    server.stop()?;
    Ok(())
}

fn starts_read_only() -> Outcome {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk");
    let _disk = Disk::mount(&disk, "64m")?;
    let mut cluster = Cluster::prepare()?;
    cluster.data = disk.join("data");
    cluster.kubeconfig = cluster.data.join("kubeconfig");
    cluster.load_images()?;
    cluster.start_up()?;
    let n = cluster.namespace("kept")?;
    n.ok(&["apply", "-f", "-"], &pod("p", WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    for mut process in cluster.processes.drain(..) {
        process.stop()?;
    }

    let filler = disk.join("filler");
    let mut file = File::create(&filler)?;
    fill(&mut file);
    // The pod would be evicted. What is shown here is the store.
    cluster.start_up_short_of_disk(&["--eviction-hard="])?;
    let n = crate::harness::Namespace { cluster: &cluster, name: "kept".into() };
    let log = || format!("the cluster's log: {}", cluster.log());
    n.expect(&["get", "pod", "p"], "", 0, "Running").map_err(|e| format!("{e:?}; {}", log()))?;
    n.until(&["exec", "p", "--", "echo", "adopted"], "adopted", 10)?;
    // The node may free something meanwhile: the disk is filled again.
    let mut tried = 0;
    let mut seen = String::new();
    let refused = until("a write is refused, and /readyz says why", Duration::from_secs(30), || {
        fill(&mut file);
        // A new name for each: one that was written after all would be refused for its name for ever.
        tried += 1;
        let name = format!("no-{tried}");
        let ask = |arguments: &[&str]| n.run(arguments, "").map_err(|e| format!("{e:?}"));
        // kubectl asks again as Retry-After says, until its own limit.
        let wrote = ask(&["create", "configmap", &name, "--request-timeout=1s"])?;
        let ready = ask(&["get", "--raw", "/readyz"])?;
        seen = format!("{} {}; {} {}", wrote.code, wrote.err, ready.code, ready.err);
        Ok(wrote.code != 0 && ready.code != 0 && ready.err.contains("failed"))
    });
    refused.map_err(|e| format!("{e:?}: {seen}"))?;

    fs::remove_file(&filler)?;
    drop(file);
    until("the cluster writes again", Duration::from_secs(10), || {
        let said = n.run(&["create", "configmap", "after"], "").map_err(|e| format!("{e:?}"))?;
        Ok(said.code == 0)
    })?;
    n.ok(&["delete", "pod", "p", "--grace-period=1", "--timeout=60s"], "")?;
    cluster.take_down()
}
