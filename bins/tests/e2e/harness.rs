//! Starts, drives and takes down clusters.
//!
//! Guarantee: when the [`Cluster`] is dropped, its processes are ended by their own ids and `hyperkube reset`
//! runs, whatever the test did.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use k8s_runtime::images::ImageBuilder;
use libtest_mimic::Failed;
use tempfile::TempDir;

/// The tests' image, and a second tag of it.
pub const IMAGE: &str = "test.local/busybox:1";
pub const IMAGE_2: &str = "test.local/busybox:2";
/// The program under test.
pub const HYPERKUBE: &str = env!("CARGO_BIN_EXE_hyperkube");

/// Exit code and output of a command.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end, with a timeout.
pub fn run(command: &mut Command, input: &str, limit: Duration) -> Result<Said, Failed> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{command:?}: {e}"))?;
    let mut stdin = child.stdin.take();
    let input = input.to_owned();
    // A child that does not read its input must not block the test.
    let writer = std::thread::spawn(move || stdin.as_mut().map(|s| s.write_all(input.as_bytes())));
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        sleep(Duration::from_millis(5));
    };
    let _ = writer.join();
    let out = out.join().unwrap_or_default();
    let err = err.join().unwrap_or_default();
    match status {
        Some(status) => Ok(Said { code: status.code().unwrap_or(-1), out, err }),
        None => Err(format!("{command:?} did not end within {limit:?}; out: {out}; err: {err}").into()),
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Polls until the condition holds.
pub fn until(
    what: &str,
    limit: Duration,
    mut test: impl FnMut() -> Result<bool, String>,
) -> Result<(), Failed> {
    let begun = Instant::now();
    let mut last = String::new();
    while begun.elapsed() < limit {
        match test() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(e) => last = e,
        }
        sleep(Duration::from_millis(50));
    }
    Err(format!("not within {limit:?}: {what}; last seen: {last}").into())
}

/// A network namespace, kept alive by a sleeping process.
pub struct NetworkNamespace(Child);

impl NetworkNamespace {
    pub fn new() -> Result<Self, Failed> {
        let script = "/bin/busybox ip link set lo up && echo up && exec /bin/busybox sleep 100000";
        let mut child = Command::new("unshare")
            .args(["-n", "/bin/busybox", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("unshare (root and busybox-static are needed): {e}"))?;
        let mut byte = [0; 1];
        let read = child.stdout.as_mut().map(|out| out.read(&mut byte));
        let held = NetworkNamespace(child);
        match read {
            Some(Ok(1)) => Ok(held),
            other => Err(format!("no network namespace: {other:?}").into()),
        }
    }

    /// Returns the id of the process that keeps it alive.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Returns a command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-n", "-t", &self.0.id().to_string(), "--", program]);
        command
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running program with its output in a file. Dropping it ends the process.
pub struct Process {
    child: Child,
    pub log: PathBuf,
}

impl Process {
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Self, Failed> {
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|e| format!("{command:?}: {e}"))?;
        Ok(Process { child, log })
    }
    pub fn id(&self) -> u32 {
        self.child.id()
    }
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
    pub fn has_ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(|s| s.code().unwrap_or(-1))
    }
    /// Sends SIGTERM and returns the exit code; kills the process after a timeout.
    pub fn stop(&mut self) -> Result<i32, Failed> {
        if let Some(code) = self.has_ended() {
            return Ok(code);
        }
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if let Some(code) = self.has_ended() {
                return Ok(code);
            }
            sleep(Duration::from_millis(10));
        }
        self.kill();
        Err(format!("did not end within 20 s of SIGTERM: {}", self.said()).into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended().is_none() {
            let _ = self.stop();
        }
    }
}

/// A cluster of one node.
pub struct Cluster {
    pub processes: Vec<Process>,
    pub net: NetworkNamespace,
    pub data: PathBuf,
    pub kubeconfig: PathBuf,
    pub dir: TempDir,
    down: bool,
}

impl Cluster {
    /// Creates directories and a network namespace; starts nothing.
    pub fn prepare() -> Result<Self, Failed> {
        let dir = tempfile::Builder::new().prefix("hk-e2e-").tempdir()?;
        let data = dir.path().join("data");
        Ok(Cluster {
            processes: Vec::new(),
            net: NetworkNamespace::new()?,
            kubeconfig: data.join("kubeconfig"),
            data,
            dir,
            down: false,
        })
    }

    /// Runs `hyperkube up`, waits for the node and loads the images.
    pub fn up() -> Result<Self, Failed> {
        let mut cluster = Cluster::prepare()?;
        cluster.load_images()?;
        cluster.start_up()?;
        Ok(cluster)
    }

    pub fn hyperkube(&self, arguments: &[&str]) -> Command {
        let mut command = self.net.command(HYPERKUBE);
        command.args(arguments).env("HOME", self.dir.path()).env_remove("KUBECONFIG");
        command
    }

    /// Starts `up` as a foreground process and waits for the node.
    pub fn start_up(&mut self) -> Result<(), Failed> {
        self.launch(&[])?;
        self.wait_ready()
    }

    /// As [`Cluster::start_up_with`], on a node that is short of something and may say so before it is ready.
    pub fn start_up_short_of_disk(&mut self, more: &[&str]) -> Result<(), Failed> {
        self.launch(more)?;
        self.wait_until_ready(true)
    }

    /// As [`Cluster::start_up`], with more arguments of `up`.
    pub fn start_up_with(&mut self, more: &[&str]) -> Result<(), Failed> {
        self.launch(more)?;
        self.wait_ready()
    }

    fn launch(&mut self, more: &[&str]) -> Result<(), Failed> {
        let data = self.data.to_string_lossy().into_owned();
        let own =
            ["--log", "info", "up", "--data-dir", &data, "--no-kubeconfig-merge", "--node-name", "node-1"];
        let mut command = self.hyperkube(&[&own, more].concat());
        self.processes.push(Process::start(&mut command, self.dir.path().join("up.log"))?);
        Ok(())
    }

    pub fn wait_ready(&mut self) -> Result<(), Failed> {
        self.wait_until_ready(false)
    }

    fn wait_until_ready(&mut self, may_be_short: bool) -> Result<(), Failed> {
        let begun = Instant::now();
        loop {
            for process in &mut self.processes {
                if let Some(code) = process.has_ended() {
                    return Err(format!("ended with {code}: {}", process.said()).into());
                }
            }
            if self.kubeconfig.exists() {
                let holds = "jsonpath={.items[*].status.conditions[?(@.status==\"True\")].type}";
                let said = self.kubectl(&["get", "nodes", "-o", holds])?;
                // No pod would be scheduled: fail here instead of in every test after a minute.
                if said.out.contains("Pressure") && !may_be_short {
                    return Err(format!("this machine is short of something: {}", said.out).into());
                }
                if said.out.split(' ').any(|condition| condition == "Ready") {
                    return Ok(());
                }
            }
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(format!("no node is ready after 60 s: {}", self.log()).into());
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Loads the tests' image under both tags.
    pub fn load_images(&self) -> Result<(), Failed> {
        let mut image = ImageBuilder::new()
            .file("/bin/busybox", "/bin/busybox", 0o755)
            .directory("/tmp", 0o1777)
            .env("PATH", "/bin");
        for applet in [
            "sh", "echo", "cat", "sleep", "id", "hostname", "true", "false", "env", "tar", "ls", "httpd",
            "wget", "nslookup", "ip", "ps", "kill", "mkdir", "nc",
        ] {
            image = image.link("busybox", format!("/bin/{applet}"));
        }
        let data = self.data.to_string_lossy().into_owned();
        for (name, version) in [(IMAGE, "1"), (IMAGE_2, "2")] {
            let archive = self.dir.path().join(format!("image-{version}.tar"));
            image.clone().env("VERSION", version).write_layout(&archive, name)?;
            let archive = archive.to_string_lossy().into_owned();
            let said = run(
                &mut self.hyperkube(&["image", "load", &archive, "--data-dir", &data]),
                "",
                Duration::from_secs(60),
            )?;
            if said.code != 0 || !said.out.contains(name) {
                return Err(format!("image load: {said:?}").into());
            }
        }
        Ok(())
    }

    pub fn log(&self) -> String {
        self.processes.iter().map(Process::said).collect()
    }

    /// Returns a kubectl command for this cluster.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.net.command("kubectl");
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path());
        command
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<Said, Failed> {
        self.kubectl_with(arguments, "")
    }

    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<Said, Failed> {
        run(&mut self.kubectl_command(arguments), input, Duration::from_secs(90))
    }

    /// Runs kubectl; a failure is an error.
    pub fn ok(&self, arguments: &[&str], input: &str) -> Result<String, Failed> {
        let said = self.kubectl_with(arguments, input)?;
        if said.code == 0 { Ok(said.out) } else { Err(format!("kubectl {arguments:?}: {said:?}").into()) }
    }

    /// Creates a namespace for one test, in which kubectl runs.
    pub fn namespace<'a>(&'a self, name: &str) -> Result<Namespace<'a>, Failed> {
        let manifest =
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.ok(&["apply", "-f", "-"], &manifest.to_string())?;
        let namespace = Namespace { cluster: self, name: name.to_owned() };
        // Pods are admitted only with these.
        until("the namespace has its service account", Duration::from_secs(20), || {
            let said = namespace
                .run(&["get", "serviceaccount/default", "configmap/kube-root-ca.crt"], "")
                .map_err(|e| e.message().unwrap_or_default().to_owned())?;
            if said.code == 0 { Ok(true) } else { Err(said.err) }
        })?;
        Ok(namespace)
    }

    /// Stops and resets the cluster; returns the remains.
    pub fn take_down(&mut self) -> Result<(), Failed> {
        if std::mem::replace(&mut self.down, true) {
            return Ok(());
        }
        let mut problems = Vec::new();
        for process in self.processes.iter_mut().rev() {
            if let Err(e) = process.stop() {
                problems.push(e.message().unwrap_or_default().to_owned());
            }
        }
        let data = self.data.to_string_lossy().into_owned();
        match run(&mut self.hyperkube(&["reset", "--data-dir", &data]), "", Duration::from_secs(60)) {
            Ok(said) if said.code == 0 => {}
            Ok(said) => problems.push(format!("reset: {said:?}")),
            Err(e) => problems.push(e.message().unwrap_or_default().to_owned()),
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let here = self.dir.path().to_string_lossy().into_owned();
        problems.extend(mounts.lines().filter(|l| l.contains(&here)).map(|l| format!("mount left: {l}")));
        if self.data.exists() {
            problems.push(format!("{data} is left"));
        }
        for process in processes_below(&here) {
            problems.push(format!("process left: {process}"));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
    }
}

/// Returns command lines, other than this process's own, that contain a directory.
fn processes_below(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let lines = entries.flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_string_lossy().parse().ok()?;
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?.replace('\0', " ");
        (pid != std::process::id() && line.contains(directory)).then(|| format!("{pid} {line}"))
    });
    lines.collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(e) = self.take_down() {
            eprintln!("taking a cluster down: {}", e.message().unwrap_or_default());
        }
    }
}

/// A namespace of a cluster.
pub struct Namespace<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

impl Namespace<'_> {
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<Said, Failed> {
        self.cluster.kubectl_with(&[&["-n", &self.name], arguments].concat(), input)
    }

    pub fn ok(&self, arguments: &[&str], input: &str) -> Result<String, Failed> {
        self.cluster.ok(&[&["-n", &self.name], arguments].concat(), input)
    }

    /// Runs kubectl; requires an exit code and a text in the output.
    pub fn expect(&self, arguments: &[&str], input: &str, code: i32, want: &str) -> Result<String, Failed> {
        let said = self.run(arguments, input)?;
        if said.code == code && (said.out.contains(want) || said.err.contains(want)) {
            return Ok(said.out);
        }
        Err(format!(
            "kubectl {}: wanted exit code {code} and {want:?}, got {}\nout: {}\nerr: {}",
            arguments.join(" "),
            said.code,
            said.out,
            said.err
        )
        .into())
    }

    /// Polls kubectl until the output contains a text.
    pub fn until(&self, arguments: &[&str], want: &str, seconds: u64) -> Result<(), Failed> {
        until(&format!("kubectl {} says {want:?}", arguments.join(" ")), Duration::from_secs(seconds), || {
            let said = self.run(arguments, "").map_err(|e| e.message().unwrap_or_default().to_owned())?;
            if said.code == 0 && said.out.contains(want) { Ok(true) } else { Err(format!("{said:?}")) }
        })
    }

    pub fn jsonpath(&self, object: &str, path: &str) -> Result<String, Failed> {
        self.ok(&["get", object, "-o", &format!("jsonpath={path}")], "")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.cluster.kubectl_command(&[&["-n", &self.name], arguments].concat())
    }
}

/// Returns a pod manifest that runs a shell script.
pub fn pod(name: &str, script: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 3, "containers": [{
            "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sh", "-c", script],
        }]},
    })
}

/// A script that waits for SIGTERM.
pub const WAIT: &str = "trap 'exit 0' TERM; echo started; while true; do sleep 0.1; done";

/// Returns a Deployment manifest whose pods serve their version, or only wait.
pub fn deployment(name: &str, replicas: u32) -> serde_json::Value {
    let script = "mkdir -p /tmp/www; echo version $VERSION > /tmp/www/index.html; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/www & wait";
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 2, "containers": [{
                    "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sh", "-c", script],
                    "ports": [{"name": "http", "containerPort": 8080}],
                }]},
            },
        },
    })
}

static SHARED: Mutex<Option<Arc<Cluster>>> = Mutex::new(None);

/// Returns the shared cluster; the first caller starts it.
pub fn shared() -> Result<Arc<Cluster>, Failed> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = &*shared {
        return Ok(cluster.clone());
    }
    let cluster = Arc::new(Cluster::up()?);
    *shared = Some(cluster.clone());
    Ok(cluster)
}

/// Takes the shared cluster down, if it was started.
pub fn take_down_shared() -> Result<(), String> {
    let Some(cluster) = SHARED.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
    match Arc::into_inner(cluster) {
        Some(mut cluster) => cluster.take_down().map_err(|e| e.message().unwrap_or_default().to_owned()),
        None => Err("a test still holds it".into()),
    }
}
