//! Life and death: events, stopping, adoption after a restart, dead shims, cleaning up, and how long it
//! takes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_runtime::{ContainerState, Runtime, RuntimeEvent, embedded};
use libtest_mimic::Failed;

use crate::harness::{Fixture, event, expect, launch, outside_traces, status, wait_end};

crate::tests![
    events_and_idempotence,
    stop_with_grace,
    stop_sandbox_keeps_statuses,
    adoption_after_a_restart,
    dead_shim,
    dead_shim_while_away,
    reset_after_everything_died,
    update_and_stats,
    host_namespaces,
    nothing_is_left,
    create_to_running,
];

async fn events_and_idempotence(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut events = runtime.events();
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "exit 4")).await?;
    event(&mut events, &RuntimeEvent::Started(sandbox.id.clone(), id.clone())).await?;
    event(&mut events, &RuntimeEvent::Exited(sandbox.id.clone(), id.clone())).await?;
    expect(wait_end(&runtime, &id).await?.code, 4)?;
    runtime.stop(&id, Duration::from_secs(1)).await?;
    runtime.remove(&id).await?;
    event(&mut events, &RuntimeEvent::Removed(sandbox.id.clone(), id.clone())).await?;
    runtime.remove(&id).await?;
    runtime.stop(&id, Duration::from_secs(1)).await?;
    expect(runtime.start(&id).await.is_err(), true)?;
    for _ in 0..2 {
        runtime.stop_sandbox(&sandbox.id).await?;
        runtime.remove_sandbox(&sandbox.id).await?;
    }
    expect(runtime.list().await?.len(), 0)
}

async fn stop_with_grace(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let polite = "trap 'echo bye; exit 9' TERM; echo up; while true; do sleep 0.05; done";
    let polite = launch(&runtime, &sandbox.id, &f.spec("polite", polite)).await?;
    let mut other = f.spec("other", "trap 'echo usr; exit 8' USR1; echo up; while true; do sleep 0.05; done");
    other.stop_signal = Some("SIGUSR1".into());
    let other = launch(&runtime, &sandbox.id, &other).await?;
    let deaf = launch(&runtime, &sandbox.id, &f.spec("deaf", "trap '' TERM; echo up; sleep 1000")).await?;
    for name in ["polite", "other", "deaf"] {
        while f.log(name).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    runtime.stop(&polite, Duration::from_secs(20)).await?;
    expect(wait_end(&runtime, &polite).await?.code, 9)?;
    runtime.stop(&other, Duration::from_secs(20)).await?;
    expect(wait_end(&runtime, &other).await?.code, 8)?;
    let begin = Instant::now();
    runtime.stop(&deaf, Duration::from_millis(300)).await?;
    expect(wait_end(&runtime, &deaf).await?.code, 137)?;
    expect(begin.elapsed() >= Duration::from_millis(300), true)?;
    // Made and never started.
    let never = runtime.create(&sandbox.id, &f.spec("never", "true")).await?;
    runtime.stop(&never, Duration::from_secs(20)).await?;
    expect(wait_end(&runtime, &never).await?.code, 137)?;
    runtime.remove(&never).await?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn stop_sandbox_keeps_statuses(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "echo hi; sleep 1000")).await?;
    runtime.stop_sandbox(&sandbox.id).await?;
    let check = |list: Vec<k8s_runtime::SandboxStatus>| {
        let all: Vec<(bool, usize)> = list.iter().map(|s| (s.ready, s.containers.len())).collect();
        expect(all, vec![(false, 1)])
    };
    check(runtime.list().await?)?;
    expect(wait_end(&runtime, &id).await?.code, 137)?;
    expect(sandbox.netns.is_some_and(|n| n.exists()), false)?;
    drop(runtime);
    let runtime = f.runtime().await?;
    check(runtime.list().await?)?;
    expect(wait_end(&runtime, &id).await?.code, 137)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn adoption_after_a_restart(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let mut spec = f.spec("a", "while read line; do echo got $line; done; exit 6");
    spec.stdin = true;
    let lives = launch(&runtime, &sandbox.id, &spec).await?;
    let ends = launch(&runtime, &sandbox.id, &f.spec("b", "sleep 0.3; exit 5")).await?;
    let before = status(&runtime, &lives).await?;
    drop(runtime);
    tokio::time::sleep(Duration::from_millis(600)).await;

    let runtime = f.runtime().await?;
    let list = runtime.list().await?;
    expect(list.iter().map(|s| (s.ready, s.containers.len())).collect::<Vec<_>>(), vec![(true, 2)])?;
    expect(status(&runtime, &lives).await?.state, before.state)?;
    expect(wait_end(&runtime, &ends).await?.code, 5)?;
    let mut events = runtime.events();
    let mut attached = runtime.attach(&lives).await?;
    let mut stdin = attached.stdin.take().ok_or("no stdin")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"after\n").await?;
    while f.log("a").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    expect(f.log("a"), vec!["stdout:got after".to_owned()])?;
    runtime.stop(&lives, Duration::ZERO).await?;
    event(&mut events, &RuntimeEvent::Exited(sandbox.id.clone(), lives.clone())).await?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

fn children_of_shim(f: &Fixture) -> Vec<i32> {
    let group = std::path::Path::new("/sys/fs/cgroup");
    let name = format!("{}/_shims", f.config.cgroup_root);
    let file = [group.join("memory").join(&name), group.join(&name)].into_iter().find(|p| p.exists());
    let text = file.and_then(|p| std::fs::read_to_string(p.join("cgroup.procs")).ok()).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}

/// Processor time of all shims so far, in hundredths of a second.
pub fn shims_cpu_ticks(f: &Fixture) -> u64 {
    let ticks = |pid: i32| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    children_of_shim(f).into_iter().filter_map(ticks).sum()
}

/// Pids of shims: the members of the shims' cgroup whose binary is this one and that lead a session and are
/// no zygote's parent.
fn kill_everything_of(f: &Fixture, only_shims: bool) {
    for pid in children_of_shim(f) {
        let command = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The zygote is this test's own child.
        let parent: i32 =
            command.rsplit(") ").next().and_then(|r| r.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        if only_shims && parent == std::process::id() as i32 {
            continue;
        }
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
}

async fn dead_shim(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut events = runtime.events();
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000 & sleep 1000")).await?;
    let ContainerState::Running { pid, .. } = status(&runtime, &id).await?.state else {
        return Err("not running".into());
    };
    kill_everything_of(&f, true);
    event(&mut events, &RuntimeEvent::Exited(sandbox.id.clone(), id.clone())).await?;
    event(&mut events, &RuntimeEvent::SandboxGone(sandbox.id.clone())).await?;
    let list = runtime.list().await?;
    expect(list.iter().map(|s| s.ready).collect::<Vec<_>>(), vec![false])?;
    expect(wait_end(&runtime, &id).await?.code, 137)?;
    expect(runtime.create(&sandbox.id, &f.spec("b", "true")).await.is_err(), true)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    // Whoever adopted it may not have buried it yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    expect(stat.is_empty() || stat.contains(") Z "), true)?;
    // The zygote is alive: the next pod works.
    let next = f.sandbox(&runtime).await?;
    runtime.remove_sandbox(&next.id).await?;
    // And a dead zygote is replaced.
    kill_everything_of(&f, false);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let next = f.sandbox(&runtime).await?;
    runtime.remove_sandbox(&next.id).await?;
    Ok(())
}

async fn dead_shim_while_away(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000")).await?;
    drop(runtime);
    kill_everything_of(&f, false);
    let runtime = f.runtime().await?;
    let list = runtime.list().await?;
    expect(list.iter().map(|s| s.ready).collect::<Vec<_>>(), vec![false])?;
    expect(wait_end(&runtime, &id).await?.code, 137)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn reset_after_everything_died(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    for _ in 0..2 {
        let sandbox = f.sandbox(&runtime).await?;
        launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000 & sleep 1000")).await?;
    }
    drop(runtime);
    expect(embedded::leftovers(&f.config.root)?.iter().any(|l| l.starts_with("mount ")), true)?;
    // One alive, as far as the first kill goes; reset takes both.
    if let Some(pid) = children_of_shim(&f).first() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
    }
    let root = f.config.root.clone();
    tokio::task::spawn_blocking(move || embedded::reset(&root)).await??;
    expect(embedded::leftovers(&f.config.root)?, Vec::new())?;
    expect(outside_traces(&f.dir, &f.config.cgroup_root)?, Vec::new())
}

async fn update_and_stats(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let sandbox = f.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "seq 1 100000 > /dev/null; sleep 1000")).await?;
    let limit = k8s_runtime::Resources { memory_bytes: Some(64 << 20), ..Default::default() };
    runtime.update(&id, &limit, k8s_runtime::Requests::default()).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stats = runtime.stats(&id).await?;
    expect(stats.cpu_nanos > 100_000 && stats.memory_bytes > 4096 && stats.pids >= 1, true)?;
    expect(stats.working_set_bytes <= stats.memory_bytes, true)?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn host_namespaces(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut spec = f.sandbox_spec();
    (spec.host_network, spec.host_pid, spec.host_ipc) = (true, true, true);
    let sandbox = runtime.run_sandbox(&spec).await?;
    expect(sandbox.netns.is_none(), true)?;
    let id = launch(&runtime, &sandbox.id, &f.spec("a", "echo $$; hostname")).await?;
    let ContainerState::Running { pid, .. } = status(&runtime, &id).await?.state else {
        return Err("too fast".into());
    };
    wait_end(&runtime, &id).await?;
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    expect(f.log("a"), vec![format!("stdout:{pid}"), format!("stdout:{name}")])?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok(())
}

async fn nothing_is_left(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut all = Vec::new();
    for _ in 0..3 {
        let sandbox = f.sandbox(&runtime).await?;
        launch(&runtime, &sandbox.id, &f.spec("a", "sleep 1000 & sleep 1000")).await?;
        launch(&runtime, &sandbox.id, &f.spec("b", "true")).await?;
        all.push(sandbox.id);
    }
    for id in &all {
        runtime.remove_sandbox(id).await?;
    }
    drop(runtime);
    let parents = |t: &String| t.ends_with(&f.config.cgroup_root);
    let left: Vec<String> =
        outside_traces(&f.dir, &f.config.cgroup_root)?.into_iter().filter(|t| !parents(t)).collect();
    expect(left, Vec::new())?;
    let pods =
        std::path::Path::new("/sys/fs/cgroup/memory").join(&f.config.cgroup_root).join("burstable/poduid");
    expect(pods.exists(), false)
}

/// Prints how long a pod takes from nothing to running, and what a shim weighs; asserts only that it works.
async fn create_to_running(f: Arc<Fixture>) -> Result<(), Failed> {
    let runtime = f.runtime().await?;
    let mut times: Vec<[Duration; 4]> = Vec::new();
    let mut weight = String::new();
    for _ in 0..30 {
        let begin = Instant::now();
        let sandbox = f.sandbox(&runtime).await?;
        let made = begin.elapsed();
        let id = runtime.create(&sandbox.id, &f.spec("a", "sleep 1000")).await?;
        let created = begin.elapsed();
        runtime.start(&id).await?;
        let started = begin.elapsed();
        weight = children_of_shim(&f).into_iter().max().map(memory).unwrap_or_default();
        let begin = Instant::now();
        runtime.remove_sandbox(&sandbox.id).await?;
        times.push([made, created - made, started - created, begin.elapsed()]);
    }
    let median = |index: usize| {
        let mut column: Vec<Duration> = times.iter().map(|t| t[index]).collect();
        column.sort();
        column[column.len() / 2]
    };
    println!(
        "\nsandbox {:?}, create {:?}, start {:?}, remove all {:?} (medians of 30); shim: {weight}",
        median(0),
        median(1),
        median(2),
        median(3)
    );
    Ok(())
}

fn memory(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let wanted = ["Rss:", "Pss:", "Private_Dirty:"];
    let lines = text.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w)));
    lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}
