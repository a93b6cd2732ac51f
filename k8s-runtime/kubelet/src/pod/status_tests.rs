use std::sync::Arc;

use super::*;
use crate::pod::samples::{at, container};

fn world(policy: &str, init: &[&str], mains: &[&str]) -> World {
    let make = |names: &[&str]| names.iter().map(|name| container(name)).collect::<Vec<_>>();
    let spec = PodSpec {
        restart_policy: Some(policy.into()),
        init_containers: Some(make(init)),
        containers: make(mains),
        ..PodSpec::default()
    };
    World::new(Arc::new(Pod { spec: Some(spec), ..Pod::default() }), at(0))
}

fn put(world: &mut World, name: &str, phase: Phase) {
    let life = world.life_mut(name).unwrap();
    life.current = Some(Record {
        id: None,
        full_id: "x://1".into(),
        attempt: 2,
        phase,
        image_id: "sha256:1".into(),
        log: Default::default(),
        in_sandbox: true,
        size: crate::cgroups::Size::default(),
    });
    life.started = true;
    life.ready = true;
}

fn exit(code: i32) -> Phase {
    Phase::Exited(Exit {
        code,
        reason: "Error".into(),
        message: String::new(),
        started_at: None,
        finished_at: at(5),
    })
}

fn running() -> Phase {
    Phase::Running { started_at: at(1) }
}

fn of(world: &World) -> PodStatus {
    compute(at(9), world, &Facts { host_ips: &[], pod_ips: &[] }, None)
}

fn condition(status: &PodStatus, type_: &str) -> (String, String) {
    let found = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone().unwrap_or_default())
}

#[test]
fn phases() {
    let phase_of = |policy: &str, phases: &[Option<Phase>]| {
        let names = ["a", "b"];
        let mut w = world(policy, &[], &names[..phases.len()]);
        w.initialized = true;
        for (name, phase) in names.iter().zip(phases) {
            if let Some(phase) = phase {
                put(&mut w, name, phase.clone());
            }
        }
        of(&w).phase.unwrap()
    };
    for (policy, phases, want) in [
        ("Always", vec![None], "Pending"),
        ("Always", vec![Some(running())], "Running"),
        ("Always", vec![Some(running()), None], "Pending"),
        ("Always", vec![Some(running()), Some(exit(1))], "Running"),
        ("Always", vec![Some(exit(0))], "Running"),
        ("OnFailure", vec![Some(exit(0))], "Succeeded"),
        ("OnFailure", vec![Some(exit(1))], "Running"),
        ("Never", vec![Some(exit(1)), Some(exit(0))], "Failed"),
        ("Never", vec![Some(exit(0)), Some(exit(0))], "Succeeded"),
        ("Never", vec![Some(exit(0)), Some(running())], "Running"),
    ] {
        assert_eq!(phase_of(policy, &phases), want, "{policy} {phases:?}");
    }
}

#[test]
fn ready_and_not() {
    let mut w = world("Always", &["i"], &["a"]);
    let status = of(&w);
    assert_eq!(condition(&status, "Initialized"), ("False".into(), "ContainersNotInitialized".into()));
    assert_eq!(condition(&status, "Ready"), ("False".into(), "ContainersNotReady".into()));
    let waiting = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
    put(&mut w, "i", exit(0));
    put(&mut w, "a", running());
    w.initialized = true;
    let status = of(&w);
    assert_eq!(condition(&status, "Ready"), ("True".into(), String::new()));
    assert_eq!(condition(&status, "Initialized").0, "True");
    w.life_mut("a").unwrap().ready = false;
    assert_eq!(condition(&of(&w), "ContainersReady").0, "False");
}

#[test]
fn crash_loop_shows_its_last_state() {
    let mut w = world("Always", &[], &["a"]);
    w.initialized = true;
    put(&mut w, "a", exit(3));
    w.life_mut("a").unwrap().hold = Some(Hold {
        until: at(20),
        reason: "CrashLoopBackOff".into(),
        message: "back-off 10s".into(),
        on_source: false,
    });
    let status = of(&w);
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(
        container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
        Some("CrashLoopBackOff")
    );
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    assert_eq!(container.restart_count, 2);
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn transition_times_are_kept_and_foreign_conditions_too() {
    let mut w = world("Always", &[], &["a"]);
    let mut first = of(&w);
    first.conditions.as_mut().unwrap().push(PodCondition {
        type_: "example.com/gate".into(),
        status: "False".into(),
        ..PodCondition::default()
    });
    put(&mut w, "a", running());
    w.initialized = true;
    let second = compute(at(50), &w, &Facts { host_ips: &[], pod_ips: &[] }, Some(&first));
    let time = |type_: &str| {
        let all = second.conditions.as_ref().unwrap();
        all.iter().find(|c| c.type_ == type_).unwrap().last_transition_time.as_ref().unwrap().0
    };
    assert_eq!(time("PodScheduled"), at(9));
    assert_eq!(time("Ready"), at(50));
    assert!(second.conditions.as_ref().unwrap().iter().any(|c| c.type_ == "example.com/gate"));
    let mut pod = Pod { status: Some(first), ..Pod::default() };
    merge(&mut pod, &second);
    assert_eq!(pod.status.unwrap().conditions.unwrap().len(), 6);
}

#[test]
fn readiness_gates() {
    let mut w = world("Always", &[], &["a"]);
    put(&mut w, "a", running());
    w.initialized = true;
    let mut pod = (*w.pod).clone();
    pod.spec.as_mut().unwrap().readiness_gates = Some(vec![PodReadinessGate { condition_type: "g".into() }]);
    w.pod = Arc::new(pod);
    assert_eq!(condition(&of(&w), "Ready"), ("False".into(), "ReadinessGatesNotReady".into()));
    assert_eq!(condition(&of(&w), "ContainersReady").0, "True");
}
