//! Tests without a shared cluster: preflight, exit codes, `demo`, `image`, `reset`, failing starts.

use std::{process::Command, time::Duration};

use libtest_mimic::Failed;
use nix::unistd::geteuid;

use crate::{
    Outcome,
    harness::{Cluster, HYPERKUBE, IMAGE, NetworkNamespace, Said, run},
};

pub const TESTS: &[crate::Test] = &[
    ("up_without_root_is_refused", no_root),
    ("up_on_an_impossible_directory_is_refused", no_directory),
    ("up_on_a_port_in_use_is_refused", port_in_use),
    ("up_on_a_directory_in_use_is_refused", directory_in_use),
    ("up_on_a_newer_format_is_refused", newer_format),
    ("up_on_an_empty_state_is_refused", empty_state),
    ("built_in_controllers_have_their_own_rights_and_no_more", controllers_rights),
    ("a_wrong_command_line_is_refused", usage),
    ("images_are_loaded_listed_and_removed", images),
    ("an_image_loaded_while_a_cluster_runs_is_used", loaded_late),
    ("reset_removes_what_it_says", reset),
    ("demo_shows_every_step", demo),
];

fn refused(said: &Said, code: i32, words: &[&str]) -> Outcome {
    let lines = said.err.trim().lines().count();
    if said.code == code && lines == 1 && words.iter().all(|w| said.err.contains(w)) {
        return Ok(());
    }
    Err(format!("wanted exit code {code} and one line with {words:?}, got {said:?}").into())
}

fn up(net: &NetworkNamespace, data: &str, more: &[&str]) -> Result<Said, Failed> {
    let mut command = net.command(HYPERKUBE);
    command.args(["up", "--no-kubeconfig-merge", "--data-dir", data]).args(more);
    run(&mut command, "", Duration::from_secs(20))
}

fn no_root() -> Outcome {
    if !geteuid().is_root() {
        return Err("these tests need root".into());
    }
    let dir = tempfile::tempdir()?;
    // A copy of the program that unprivileged users can execute.
    let program = dir.path().join("hyperkube");
    std::fs::copy(HYPERKUBE, &program)?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let data = dir.path().join("data");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
    command.args(["up", "--no-kubeconfig-merge", "--data-dir"]).arg(&data);
    refused(&run(&mut command, "", Duration::from_secs(20))?, 7, &["root"])?;
    if data.exists() {
        return Err("left its data directory".into());
    }
    // A foreign directory.
    std::fs::create_dir(&data)?;
    std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    for arguments in [&["image", "ls"] as &[&str], &["reset"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
        command.args(arguments).arg("--data-dir").arg(&data);
        refused(&run(&mut command, "", Duration::from_secs(20))?, 7, &["ermission denied"])?;
    }
    Ok(())
}

fn no_directory() -> Outcome {
    let net = NetworkNamespace::new()?;
    refused(&up(&net, "/proc/nope", &["--simulated-nodes", "1"])?, 3, &["/proc/nope", "--data-dir"])
}

fn port_in_use() -> Outcome {
    let cluster = Cluster::prepare()?;
    let mut listener = cluster.net.command("/bin/busybox");
    let _listener = crate::harness::Process::start(
        listener.args(["httpd", "-f", "-p", "0.0.0.0:6443"]),
        cluster.dir.path().join("nc.log"),
    )?;
    std::thread::sleep(Duration::from_millis(300));
    let said = up(&cluster.net, &cluster.data.to_string_lossy(), &[])?;
    refused(&said, 4, &["6443", "in use"])
}

fn directory_in_use() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    cluster.start_up()?;
    let said = up(&cluster.net, &cluster.data.to_string_lossy(), &["--https-listen-port", "7443"])?;
    refused(&said, 4, &["in use", "--data-dir"])?;
    cluster.take_down()
}

fn newer_format() -> Outcome {
    let cluster = Cluster::prepare()?;
    std::fs::create_dir_all(&cluster.data)?;
    std::fs::write(cluster.data.join("format"), "99\n")?;
    let said = up(&cluster.net, &cluster.data.to_string_lossy(), &[])?;
    refused(&said, 3, &["format 99"])?;
    // Without a marker `reset` would refuse the directory.
    std::fs::write(cluster.data.join("format"), "1\n")?;
    Ok(())
}

fn empty_state() -> Outcome {
    let mut cluster = Cluster::up()?;
    let n = cluster.namespace("kept")?;
    n.ok(&["apply", "-f", "-"], &crate::harness::pod("p", crate::harness::WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    if let Some(mut process) = cluster.processes.pop() {
        process.stop()?;
    }
    let sandboxes = || Ok::<_, Failed>(std::fs::read_dir(cluster.data.join("containers/sandboxes"))?.count());
    let before = sandboxes()?;
    std::fs::write(cluster.data.join("state.redb"), "")?;
    let data = cluster.data.to_string_lossy().into_owned();
    refused(&up(&cluster.net, &data, &[])?, 3, &["state.redb", "--forget-state"])?;
    if before == 0 || sandboxes()? != before {
        return Err("containers went on the word of an empty store".into());
    }
    cluster.take_down()
}

/// Each built-in controller acts as its own service account: without its role only that one stops working.
fn controllers_rights() -> Outcome {
    let mut cluster = Cluster::up()?;
    let role = "system:controller:replicaset-controller";
    cluster.ok(&["delete", "clusterrolebinding", role], "")?;
    let n = cluster.namespace("rights")?;
    n.ok(&["apply", "-f", "-"], &crate::harness::deployment("web", 1).to_string())?;
    // The deployment controller still works.
    n.until(&["get", "replicasets", "-o", "jsonpath={.items[*].spec.replicas}"], "1", 20)?;
    std::thread::sleep(Duration::from_secs(1));
    let pods = n.ok(&["get", "pods", "-o", "name"], "")?;
    if !pods.trim().is_empty() {
        return Err(format!("made without the right to: {pods}").into());
    }
    let account = "--serviceaccount=kube-system:replicaset-controller";
    cluster.ok(&["create", "clusterrolebinding", role, &format!("--clusterrole={role}"), account], "")?;
    n.ok(&["rollout", "status", "deployment/web", "--timeout=60s"], "")?;
    cluster.take_down()
}

fn usage() -> Outcome {
    for arguments in [&["up", "--cluster-cidr", "nonsense"] as &[&str], &["nothing"], &["image", "load"]] {
        let said = run(Command::new(HYPERKUBE).args(arguments), "", Duration::from_secs(10))?;
        if said.code != 2 {
            return Err(format!("{arguments:?}: {said:?}").into());
        }
    }
    let said = run(Command::new(HYPERKUBE).arg("--version"), "", Duration::from_secs(10))?;
    if said.code == 0 { Ok(()) } else { Err(format!("{said:?}").into()) }
}

fn images() -> Outcome {
    let cluster = Cluster::prepare()?;
    cluster.load_images()?;
    let data = cluster.data.to_string_lossy().into_owned();
    let image = |arguments: &[&str]| {
        run(
            &mut cluster.hyperkube(&[&["image"], arguments, &["--data-dir", &data]].concat()),
            "",
            Duration::from_secs(20),
        )
    };
    let listed = image(&["ls"])?;
    if !listed.out.contains(IMAGE) || !listed.out.contains("MB") {
        return Err(format!("{listed:?}").into());
    }
    let removed = image(&["rm", IMAGE])?;
    let left = image(&["ls", "-q"])?;
    if removed.code != 0 || left.out.contains(IMAGE) {
        return Err(format!("{removed:?} {left:?}").into());
    }
    let again = image(&["rm", IMAGE])?;
    refused(&again, 1, &["no image", IMAGE])?;
    let junk = cluster.dir.path().join("junk.tar");
    std::fs::write(&junk, b"this is no archive")?;
    std::fs::write(&junk, [b"\x1b[31m\xff\xfe\0".repeat(300), b"junk".to_vec()].concat())?;
    let said = image(&["load", &junk.to_string_lossy()])?;
    refused(&said, 1, &["junk.tar"])?;
    if said.err.chars().any(|c| c.is_control() && c != '\n') || said.err.contains('\u{fffd}') {
        return Err(format!("bytes of the file on the terminal: {said:?}").into());
    }
    Ok(())
}

fn loaded_late() -> Outcome {
    let mut cluster = Cluster::prepare()?;
    cluster.start_up()?;
    cluster.load_images()?;
    let n = cluster.namespace("late")?;
    n.ok(&["apply", "-f", "-"], &crate::harness::pod("p", crate::harness::WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=30s"], "")?;
    let data = cluster.data.to_string_lossy().into_owned();
    let used = cluster.hyperkube(&["image", "rm", IMAGE, "--data-dir", &data]);
    refused(&run(&mut { used }, "", Duration::from_secs(20))?, 4, &[IMAGE, "late/p"])?;
    cluster.take_down()
}

fn reset() -> Outcome {
    let mut cluster = Cluster::up()?;
    let n = cluster.namespace("left")?;
    n.ok(&["apply", "-f", "-"], &crate::harness::pod("p", crate::harness::WAIT).to_string())?;
    n.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "")?;
    let data = cluster.data.to_string_lossy().into_owned();
    let running = run(&mut cluster.hyperkube(&["reset", "--data-dir", &data]), "", Duration::from_secs(20))?;
    // Nothing is printed of a plan that is not executed.
    if running.code != 4 || !running.out.is_empty() {
        return Err(format!("reset of a running cluster: {running:?}").into());
    }
    if let Some(mut process) = cluster.processes.pop() {
        let code = process.stop()?;
        if code != 0 {
            return Err(format!("SIGTERM ended it with {code}: {}", process.said()).into());
        }
    }
    let dry = run(
        &mut cluster.hyperkube(&["reset", "--dry-run", "--data-dir", &data]),
        "",
        Duration::from_secs(20),
    )?;
    if !dry.out.contains("would remove") || !cluster.data.exists() {
        return Err(format!("{dry:?}").into());
    }
    cluster.take_down()
}

fn demo() -> Outcome {
    let net = NetworkNamespace::new()?;
    let home = tempfile::tempdir()?;
    let said = run(
        net.command(HYPERKUBE).arg("demo").env("HOME", home.path()).current_dir(home.path()),
        "",
        Duration::from_secs(180),
    )?;
    if said.code == 0 {
        Ok(())
    } else {
        Err(format!("demo ended with {}\n{}\n{}", said.code, said.out, said.err).into())
    }
}
