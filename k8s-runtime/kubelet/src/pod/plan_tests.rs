use std::sync::Arc;

use super::*;
use crate::pod::samples::{self, at, exited, record, running, sandbox};

fn container(name: &str, policy: Option<&str>) -> Container {
    Container { restart_policy: policy.map(str::to_owned), ..samples::container(name) }
}

fn world(policy: &str, init: Vec<Container>, mains: Vec<Container>) -> World {
    let spec = PodSpec {
        restart_policy: Some(policy.into()),
        init_containers: Some(init),
        containers: mains,
        ..PodSpec::default()
    };
    let mut world = World::new(Arc::new(Pod { spec: Some(spec), ..Pod::default() }), at(0));
    world.volumes = Volumes::Ready { mounted: Arc::default(), refresh: Refresh::Due(None) };
    world.sandbox = Sandbox::Ready(sandbox("s", 0));
    world.network_ready = true;
    world
}

fn set(world: &mut World, name: &str, phase: Phase) {
    let life = world.life_mut(name).unwrap();
    life.current = Some(record("c", 0, phase));
    life.started = true;
}

fn start(name: &str) -> Act {
    Act::Start(name.into())
}

#[test]
fn volumes_then_sandbox_then_containers() {
    let mut w = world("Always", vec![], vec![container("a", None), container("b", None)]);
    assert_eq!(decide(at(0), &w), [start("a"), start("b")]);
    w.sandbox = Sandbox::Absent { attempt: 0 };
    assert_eq!(decide(at(0), &w), [Act::MakeSandbox]);
    w.volumes = Volumes::Failed { retry_at: at(5), failures: 1 };
    assert_eq!(decide(at(0), &w), [Act::WakeAt(at(5))]);
    assert_eq!(decide(at(5), &w), [Act::MountVolumes]);
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let init = vec![container("i1", None), container("side", Some("Always")), container("i2", None)];
    let mut w = world("Always", init, vec![container("m", None)]);
    assert_eq!(decide(at(0), &w), [start("i1")]);
    set(&mut w, "i1", running());
    assert_eq!(decide(at(0), &w), []);
    set(&mut w, "i1", exited(0, 0));
    assert_eq!(decide(at(0), &w), [start("side")]);
    set(&mut w, "side", running());
    w.life_mut("side").unwrap().started = false;
    assert_eq!(decide(at(0), &w), [], "a sidecar must have started");
    w.life_mut("side").unwrap().started = true;
    assert_eq!(decide(at(0), &w), [start("i2")]);
    set(&mut w, "i2", exited(0, 0));
    assert_eq!(decide(at(0), &w), [start("m")]);
    w.initialized = true;
    set(&mut w, "side", exited(1, 0));
    set(&mut w, "m", running());
    assert_eq!(decide(at(0), &w), [start("side")], "a sidecar restarts beside the others");
}

#[test]
fn init_failure_ends_a_pod_that_never_restarts() {
    let mut w = world("Never", vec![container("i", None)], vec![container("m", None)]);
    set(&mut w, "i", exited(1, 0));
    assert_eq!(decide(at(0), &w), [Act::End(Cause::Completed)]);
    let mut w = world("OnFailure", vec![container("i", None)], vec![container("m", None)]);
    set(&mut w, "i", exited(1, 0));
    assert_eq!(decide(at(0), &w), [start("i")]);
}

#[test]
fn restart_policies() {
    for (policy, code, want) in [
        ("Always", 0, start("m")),
        ("Always", 1, start("m")),
        ("OnFailure", 1, start("m")),
        ("OnFailure", 0, Act::End(Cause::Completed)),
        ("Never", 0, Act::End(Cause::Completed)),
        ("Never", 1, Act::End(Cause::Completed)),
    ] {
        let mut w = world(policy, vec![], vec![container("m", None)]);
        set(&mut w, "m", exited(code, 0));
        assert_eq!(decide(at(0), &w), [want], "{policy} {code}");
    }
}

#[test]
fn crashes_wait_longer() {
    let mut w = world("Always", vec![], vec![container("m", None)]);
    set(&mut w, "m", exited(1, 100));
    w.life_mut("m").unwrap().backoff.advance(at(99), at(99));
    assert_eq!(decide(at(100), &w), [Act::BackOff("m".into(), at(110))]);
    assert_eq!(decide(at(110), &w), [start("m")]);
}

#[test]
fn a_failed_probe_stops_the_container() {
    let mut w = world("Always", vec![], vec![container("m", None)]);
    set(&mut w, "m", running());
    w.life_mut("m").unwrap().kill = Some("why".into());
    assert_eq!(decide(at(0), &w), [Act::Stop("m".into(), "why".into())]);
    w.life_mut("m").unwrap().op = Some(Op::Stopping);
    assert_eq!(decide(at(0), &w), []);
}

#[test]
fn sidecars_end_last_and_in_reverse() {
    let init = vec![container("s1", Some("Always")), container("s2", Some("Always"))];
    let mut w = world("Always", init, vec![container("m", None)]);
    for name in ["s1", "s2", "m"] {
        set(&mut w, name, running());
    }
    w.ending = Some(Ending { cause: Cause::Deleted, stage: Stage::Stopping, kill_at: at(30) });
    let names = |acts: Vec<Act>| {
        acts.into_iter()
            .map(|a| match a {
                Act::Stop(name, _) => name,
                other => format!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(names(decide(at(0), &w)), ["m"]);
    set(&mut w, "m", exited(0, 1));
    assert_eq!(names(decide(at(0), &w)), ["s2"]);
    set(&mut w, "s2", exited(0, 1));
    assert_eq!(names(decide(at(0), &w)), ["s1"]);
    set(&mut w, "s1", exited(0, 1));
    assert_eq!(decide(at(0), &w), [Act::TakeDown]);
    w.ending = Some(Ending { cause: Cause::Deleted, stage: Stage::Down, kill_at: at(30) });
    assert_eq!(decide(at(0), &w), [Act::Finish]);
}

#[test]
fn deadline() {
    let mut w = world("Always", vec![], vec![container("m", None)]);
    set(&mut w, "m", running());
    let mut pod = (*w.pod).clone();
    pod.spec.as_mut().unwrap().active_deadline_seconds = Some(10);
    w.pod = Arc::new(pod);
    assert_eq!(decide(at(9), &w), [Act::WakeAt(at(10))]);
    assert_eq!(decide(at(10), &w), [Act::End(Cause::Deadline)]);
}

#[test]
fn a_dead_sandbox_is_replaced_and_init_runs_again() {
    let mut w = world("Always", vec![container("i", None)], vec![container("m", None)]);
    set(&mut w, "i", exited(0, 0));
    set(&mut w, "m", exited(137, 0));
    w.sandbox = Sandbox::Dead(sandbox("s", 0));
    assert_eq!(decide(at(1), &w), [Act::MakeSandbox]);
    w.sandbox = Sandbox::Ready(sandbox("t", 1));
    for life in &mut w.containers {
        life.current.as_mut().unwrap().in_sandbox = false;
    }
    assert_eq!(decide(at(1), &w), [start("i")]);
}
