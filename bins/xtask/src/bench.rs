//! `cargo xtask bench`: measurements of a whole cluster.
//!
//! Flow: release build, `hyperkube up` in its own network namespace, and a client inside it that times watch
//! events. It prints numbers and asserts none. Everything that it starts is stopped and reset.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    root,
    steps::{self, cargo, output},
};

const IMAGE: &str = "bench.local/busybox:1";

/// A process that is ended on drop.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(15) {
            if let Ok(Some(_)) = self.0.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A data directory that is reset on drop.
struct Data {
    program: PathBuf,
    directory: PathBuf,
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = Command::new(&self.program)
            .arg("reset")
            .arg("--data-dir")
            .arg(self.directory.join("data"))
            .stdout(Stdio::null())
            .status();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

struct Bench {
    data: Data,
    holder: Guard,
}

impl Bench {
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-n", "-t", &self.holder.0.id().to_string(), "--"]).arg(program).stdin(Stdio::null());
        command.env("HOME", &self.data.directory);
        command
    }
    fn kubeconfig(&self) -> PathBuf {
        self.data.directory.join("data/kubeconfig")
    }
    fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command
    }
}

pub(crate) fn run(pods: usize, at_once: usize) -> Result<()> {
    let begun = Instant::now();
    steps::run(&mut cargo(&["build", "--release", "--package", "hyperkube", "--bin", "hyperkube"]))?;
    println!("{:<44} {:>10.1} s", "release build (what was not built yet)", begun.elapsed().as_secs_f64());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target.join("release/hyperkube");
    println!("{:<44} {:>10.1} MB", "binary", fs::metadata(&program)?.len() as f64 / 1e6);

    let directory = std::env::temp_dir().join(format!("hk-bench-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let holder = Command::new("unshare")
        .args([
            "-n",
            "/bin/busybox",
            "sh",
            "-c",
            "/bin/busybox ip link set lo up; exec /bin/busybox sleep 100000",
        ])
        .stdin(Stdio::null())
        .spawn()
        .context("unshare -n (root is needed)")?;
    let bench = Bench {
        data: Data { program: program.clone(), directory: directory.clone() },
        holder: Guard(holder),
    };
    std::thread::sleep(Duration::from_millis(200));

    let log = File::create(directory.join("up.log"))?;
    let started = Instant::now();
    let up = bench
        .command(&program)
        .args(["up", "--no-kubeconfig-merge", "--node-name", "bench", "--data-dir"])
        .arg(directory.join("data"))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("hyperkube up")?;
    let pid = up.id();
    let _up = Guard(up);
    let said = |words: &str| -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            if fs::read_to_string(directory.join("up.log")).unwrap_or_default().contains(words) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!(
            "up did not say {words:?}: {}",
            fs::read_to_string(directory.join("up.log")).unwrap_or_default()
        )
    };
    said("API server ready")?;
    println!("{:<44} {:>10.0} ms", "start to API ready", started.elapsed().as_secs_f64() * 1e3);
    said("node bench ready")?;
    println!("{:<44} {:>10.0} ms", "start to node Ready", started.elapsed().as_secs_f64() * 1e3);

    load_image(&bench, &program, &directory)?;
    idle(pid)?;
    one_by_one(&bench, pods)?;
    together(&bench, at_once)?;
    println!("{:<44} {:>10.1} MB", "resident after the pods", resident(pid)?);
    Ok(())
}

fn load_image(bench: &Bench, program: &Path, directory: &Path) -> Result<()> {
    use k8s_runtime::images::ImageBuilder;
    let archive = directory.join("image.tar");
    let image = ImageBuilder::new()
        .file("/bin/busybox", "/bin/busybox", 0o755)
        .link("busybox", "/bin/sh")
        .link("busybox", "/bin/sleep");
    image.write_layout(&archive, IMAGE)?;
    output(
        bench
            .command(program)
            .args(["image", "load"])
            .arg(&archive)
            .arg("--data-dir")
            .arg(directory.join("data")),
    )?;
    Ok(())
}

fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

/// Returns the processor time used so far, in seconds.
fn processor(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
    // Fields 14 (utime) and 15 (stime) of the whole line, in clock ticks: 1/100 s on Linux.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

fn idle(pid: u32) -> Result<()> {
    std::thread::sleep(Duration::from_secs(5));
    let before = processor(pid)?;
    std::thread::sleep(Duration::from_secs(20));
    let used = processor(pid)? - before;
    println!("{:<44} {:>10.2} % of a core", "idle", used / 20.0 * 100.0);
    println!("{:<44} {:>10.1} MB", "resident, idle", resident(pid)?);
    Ok(())
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"bench": "pod"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sleep", "100000"],
        }]},
    })
}

/// Watches all pods and records the time at which each is first Running.
struct Watcher {
    child: Child,
    seen: std::sync::mpsc::Receiver<(String, Instant)>,
}

impl Watcher {
    fn start(bench: &Bench) -> Result<Self> {
        use std::io::BufRead;
        let template = r#"{{.metadata.name}} {{.status.phase}}{{"\n"}}"#;
        let mut child = bench
            .kubectl(&["get", "pods", "--watch", "-o", &format!("go-template={template}")])
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl get --watch")?;
        let (sender, seen) = std::sync::mpsc::channel();
        let lines = std::io::BufReader::new(child.stdout.take().context("no output")?).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(std::result::Result::ok) {
                if let Some(name) = line.strip_suffix(" Running")
                    && sender.send((name.to_owned(), Instant::now())).is_err()
                {
                    break;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        Ok(Watcher { child, seen })
    }

    fn wait(&self, names: &[String]) -> Result<HashMap<String, Instant>> {
        let mut running = HashMap::new();
        while !names.iter().all(|n| running.contains_key(n)) {
            let (name, when) = self
                .seen
                .recv_timeout(Duration::from_secs(60))
                .context("pods did not all run within a minute")?;
            running.entry(name).or_insert(when);
        }
        Ok(running)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends requests on a kept-alive connection, so that client start-up is not measured.
struct Poster {
    child: Child,
    port: u16,
}

impl Poster {
    fn start(bench: &Bench) -> Result<Self> {
        use std::io::BufRead;
        let mut child =
            bench.kubectl(&["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().context("kubectl proxy")?;
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let port = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|p| p.parse().ok())
            .with_context(|| format!("no port in {line:?}"))?;
        Ok(Poster { child, port })
    }

    /// Creates objects one after the other from inside the namespace; returns the time of each request.
    fn create(&self, bench: &Bench, manifests: &[Value]) -> Result<Vec<Instant>> {
        let mut sent = Vec::new();
        for manifest in manifests {
            let body = manifest.to_string();
            let url = format!("http://127.0.0.1:{}/api/v1/namespaces/default/pods", self.port);
            let mut command = bench.command("/bin/busybox");
            command.args([
                "wget",
                "-q",
                "-O",
                "/dev/null",
                "--header",
                "Content-Type: application/json",
                "--post-data",
                &body,
                &url,
            ]);
            sent.push(Instant::now());
            output(&mut command)?;
        }
        Ok(sent)
    }
}

impl Drop for Poster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{prefix}-{i}")).collect()
}

fn one_by_one(bench: &Bench, count: usize) -> Result<()> {
    let (watcher, poster) = (Watcher::start(bench)?, Poster::start(bench)?);
    let mut times: Vec<f64> = Vec::new();
    for name in names("one", count) {
        let sent = poster.create(bench, &[pod(&name)])?;
        let running = watcher.wait(std::slice::from_ref(&name))?;
        times.push(running[&name].duration_since(sent[0]).as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |p: f64| {
        times
            .get(((times.len() as f64 * p) as usize).min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{:<44} {:>10.0} ms p50, {:.0} ms p99 (of {count})",
        "pod create to Running on a watch",
        at(0.5),
        at(0.99)
    );
    drop(watcher);
    clear(bench)
}

fn together(bench: &Bench, count: usize) -> Result<()> {
    let (watcher, poster) = (Watcher::start(bench)?, Poster::start(bench)?);
    let names = names("all", count);
    let manifests: Vec<Value> = names.iter().map(|n| pod(n)).collect();
    let begun = Instant::now();
    poster.create(bench, &manifests)?;
    let running = watcher.wait(&names)?;
    let last = running.values().max().copied().unwrap_or(begun);
    println!(
        "{:<44} {:>10.0} ms",
        format!("{count} pods at once to all Running"),
        last.duration_since(begun).as_secs_f64() * 1e3
    );
    drop(watcher);
    clear(bench)
}

fn clear(bench: &Bench) -> Result<()> {
    output(&mut bench.kubectl(&["delete", "pods", "-l", "bench=pod", "--grace-period=0", "--force"]))?;
    Ok(())
}
