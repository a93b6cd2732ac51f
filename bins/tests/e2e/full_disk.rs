//! An API server on a full disk: a small tmpfs, unmounted after the test.

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
    harness::{HYPERKUBE, Process, until},
};

pub const TESTS: &[crate::Test] = &[("a_server_outlives_a_full_disk", outlives)];

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Disk<'a>(&'a Path);

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
    fs::create_dir(&disk)?;
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "hk-e2e"]).arg(&disk).status()?;
    if !mounted.success() {
        return Err("mount a tmpfs".into());
    }
    let _disk = Disk(&disk);
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
    let mut fill = || {
        for size in [64 << 10, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    };
    fill();
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
    fill();
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
