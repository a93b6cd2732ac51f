use std::sync::Arc;

use k8s_core::meta::ObjectExt;
use k8s_runtime::SandboxStatus;
use serde_json::{Value, json};

use super::*;
use crate::{
    allocation::Allocation,
    pod::{
        admit::Refusal,
        samples::{at, record, running, sandbox},
    },
};

/// A container: name, CPU and memory (request and limit alike; empty: none), and resize policies.
fn container(name: &str, cpu: &str, memory: &str, restarts: &[&str]) -> Value {
    let mut list = json!({});
    for (resource, amount) in [("cpu", cpu), ("memory", memory)] {
        if !amount.is_empty() {
            list[resource] = amount.into();
        }
    }
    let policies: Vec<Value> = restarts
        .iter()
        .map(|resource| json!({"resourceName": resource, "restartPolicy": "RestartContainer"}))
        .collect();
    json!({"name": name, "resources": {"requests": list, "limits": list}, "resizePolicy": policies})
}

fn pod(generation: i64, containers: &[Value]) -> Arc<Pod> {
    let metadata = json!({"name": "p", "namespace": "ns", "uid": "u", "generation": generation});
    let spec = json!({"containers": containers, "restartPolicy": "OnFailure"});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
}

/// A world whose containers run with the sizes of the pod.
fn world(pod: &Arc<Pod>) -> World {
    let mut world = World::new(pod.clone(), at(0));
    let mut shown: SandboxStatus = (*sandbox("s", 0)).clone();
    shown.spec.resources = cgroups::pod(world.spec());
    world.sandbox = Sandbox::Ready(Arc::new(shown));
    world.volumes = Volumes::Ready { mounted: Arc::default(), refresh: Refresh::Due(None) };
    let spec = world.spec().clone();
    for life in &mut world.containers {
        let size = Size::wanted(&spec, &life.spec);
        life.current = Some(Record { size, ..record(&life.name, 0, running()) });
        (life.started, life.ready, life.hook_done) = (true, true, true);
    }
    world.initialized = true;
    world
}

/// Lets the node allocate what a newer state of the pod asks for.
fn allocate(world: &mut World, newer: &Arc<Pod>) -> Vec<Effect> {
    let proposed = world.on(at(10), [Message::Pod(newer.clone())]);
    assert!(proposed.iter().any(|e| matches!(e, Effect::Propose(Some(_)))), "{proposed:?}");
    world.on(at(10), [Message::Resize(Verdict::Allocated(newer.clone()))])
}

fn planned(effects: &[Effect]) -> Plan {
    let mut plans = effects.iter().filter_map(|e| match e {
        Effect::Resize(plan) => Some((**plan).clone()),
        _ => None,
    });
    plans.next().unwrap_or_default()
}

/// The steps as text: `pod memory 8`, `a cpu 50000`; memory in MiB, CPU as quota.
fn texts(plan: &Plan) -> Vec<String> {
    let mib = |bytes: i64| bytes >> 20;
    let text = |who: &str, resources: &Resources| match resources {
        Resources { memory_bytes: Some(bytes), .. } => format!("{who} memory {}", mib(*bytes)),
        Resources { cpu_quota_us: Some(quota), .. } => format!("{who} cpu {quota}"),
        Resources { cpu_shares: Some(shares), .. } => format!("{who} shares {shares}"),
        other => format!("{who} {other:?}"),
    };
    let steps = plan.steps.iter();
    steps
        .map(|step| match step {
            Step::Pod(resources) => text("pod", resources),
            Step::Container { id, resources, .. } => text(&id.0, resources),
        })
        .collect()
}

fn events(effects: &[Effect]) -> Vec<(String, String)> {
    let of = |e: &Effect| match e {
        Effect::Event(event) => Some((event.reason.clone().into_owned(), event.message.clone())),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

fn conditions(world: &World) -> Vec<(String, Option<String>, Option<i64>)> {
    world.resize.conditions().map(|c| (c.type_, c.reason, c.observed_generation)).collect()
}

#[test]
fn a_pod_grows_before_its_containers_and_shrinks_after_them() {
    let (small, large) = (("100m", "10Mi"), ("200m", "20Mi"));
    let two = |generation, a: (&str, &str), b: (&str, &str)| {
        pod(generation, &[container("a", a.0, a.1, &[]), container("b", b.0, b.1, &[])])
    };
    for (old, new, want) in [
        (
            (small, small),
            (large, large),
            vec![
                "pod memory 40",
                "a memory 20",
                "b memory 20",
                "pod cpu 40000",
                "pod shares 409",
                "a cpu 20000",
                "b cpu 20000",
            ],
        ),
        (
            (large, large),
            (small, small),
            vec![
                "a memory 10",
                "b memory 10",
                "pod memory 20",
                "a cpu 10000",
                "b cpu 10000",
                "pod shares 204",
                "pod cpu 20000",
            ],
        ),
        // Equal in sum: what shrinks is first.
        ((small, large), (large, small), vec!["b memory 10", "a memory 20", "b cpu 10000", "a cpu 20000"]),
        ((small, small), (("100m", "20Mi"), small), vec!["pod memory 30", "a memory 20"]),
    ] {
        let mut world = world(&two(1, old.0, old.1));
        let effects = allocate(&mut world, &two(2, new.0, new.1));
        assert_eq!(texts(&planned(&effects)), want, "{old:?} {new:?}");
    }
}

#[test]
fn a_resize_is_told_from_its_start_to_its_end() {
    let (old, new) = (pod(1, &[container("a", "1", "", &[])]), pod(2, &[container("a", "2", "", &[])]));
    let mut world = world(&old);
    let effects = allocate(&mut world, &new);
    let json = r#"{"containers":[{"name":"a","resources":{"limits":{"cpu":"2"},"requests":{"cpu":"2"}}}],"generation":2}"#;
    assert_eq!(events(&effects), [("ResizeStarted".to_owned(), format!("Pod resize started: {json}"))]);
    assert!(effects.iter().any(|e| matches!(e, Effect::SaveAllocation(_))));
    assert_eq!(conditions(&world), [(IN_PROGRESS.to_owned(), None, Some(2))]);
    let done = planned(&effects).steps;
    let effects = world.on(at(11), [Message::Resized(Resized { done, error: None })]);
    assert_eq!(events(&effects), [("ResizeCompleted".to_owned(), format!("Pod resize completed: {json}"))]);
    assert_eq!(conditions(&world), []);
    let record = world.containers[0].current.as_ref().unwrap();
    assert_eq!((record.size.quota_us, record.size.requests.cpu_milli), (Some(200_000), 2000));
    assert!(world.on(at(12), [Message::Tick]).is_empty(), "nothing is left to do");
}

#[test]
fn a_failure_is_told_and_tried_again_and_a_newer_resize_forgets_it() {
    let sized = |generation, memory: &str| pod(generation, &[container("a", "", memory, &[])]);
    let mut world = world(&sized(1, "20Mi"));
    let effects = allocate(&mut world, &sized(2, "1Mi"));
    assert_eq!(planned(&effects).lower, [("a".to_owned(), ContainerId("a".into()), 1 << 20)]);
    assert_eq!(planned(&effects).lower_pod, Some(1 << 20));
    let failed = || Message::Resized(Resized { done: Vec::new(), error: Some("too low".into()) });
    let effects = world.on(at(11), [failed()]);
    assert_eq!(events(&effects)[0].0, "ResizeError");
    assert!(events(&effects)[0].1.contains(r#""generation":2,"error":"too low""#));
    assert_eq!(conditions(&world), [(IN_PROGRESS.to_owned(), Some("Error".to_owned()), Some(2))]);
    // The status tells what the container has.
    assert!(world.on(at(12), [Message::Tick]).iter().all(|e| matches!(e, Effect::WakeAt(_))));
    let again = world.on(at(30), [Message::Tick]);
    assert!(!planned(&again).steps.is_empty());
    assert_eq!(events(&world.on(at(31), [failed()])), [], "the same failure is no news");
    let effects = allocate(&mut world, &sized(3, "20Mi"));
    assert_eq!(events(&effects).last().unwrap().0, "ResizeCompleted", "nothing had changed");
    assert_eq!(conditions(&world), []);
}

#[test]
fn a_resize_without_room_waits_and_one_that_is_taken_back_is_forgotten() {
    let sized = |generation, cpu: &str| pod(generation, &[container("a", cpu, "", &[])]);
    let mut world = world(&sized(1, "1"));
    let new = sized(2, "9");
    world.on(at(10), [Message::Pod(new.clone())]);
    let refusal = || Refusal { reason: "OutOfcpu".into(), message: "no room".into() };
    let effects = world.on(at(10), [Message::Resize(Verdict::Deferred(new.clone(), refusal()))]);
    let told = events(&effects);
    assert_eq!(told[0].0, "ResizeDeferred");
    assert!(told[0].1.starts_with("Pod resize OutOfcpu: {") && told[0].1.ends_with(r#""error":"no room"}"#));
    assert_eq!(conditions(&world), [(PENDING.to_owned(), Some("Deferred".to_owned()), Some(2))]);
    assert_eq!(world.pod.spec.as_ref().unwrap().containers[0], world_container(&sized(1, "1")));
    let again = world.on(at(20), [Message::Resize(Verdict::Deferred(new, refusal()))]);
    assert_eq!(events(&again), [], "a repeated attempt is no news");
    let back = world.on(at(30), [Message::Pod(sized(3, "1000m"))]);
    assert!(matches!(back[..], [Effect::Propose(None)]), "{back:?}");
    assert_eq!(conditions(&world), []);
}

fn world_container(pod: &Pod) -> Container {
    pod.spec.as_ref().unwrap().containers[0].clone()
}

#[test]
fn a_policy_restarts_its_container_after_the_pod_has_its_size() {
    let sized = |generation, cpu: &str| {
        pod(generation, &[container("a", cpu, "10Mi", &["cpu"]), container("b", "1", "10Mi", &["memory"])])
    };
    let mut world = world(&sized(1, "1"));
    let effects = allocate(&mut world, &sized(2, "2"));
    let [Effect::Stop(stop)] =
        effects.iter().filter(|e| matches!(e, Effect::Stop(_))).collect::<Vec<_>>()[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(stop.why, "Container a resize requires restart");
    assert!(planned(&effects).steps.is_empty(), "the pod waits for the end of the old instance");
    let end = Record { size: Size::default(), ..record("a", 0, crate::pod::samples::exited(0, 12)) };
    let effects = world.on(at(12), [Message::Stopped { name: "a".into(), record: Some(end) }]);
    assert_eq!(texts(&planned(&effects)), ["pod cpu 300000", "pod shares 3072"]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Start(_) | Effect::End { .. })), "{effects:?}");
    let done = planned(&effects).steps;
    let effects = world.on(at(12), [Message::Resized(Resized { done, error: None })]);
    // At once, although it ended with success and the policy is OnFailure.
    assert!(effects.iter().any(|e| matches!(e, Effect::Start(s) if s.container.name == "a")), "{effects:?}");
    assert_eq!(conditions(&world).len(), 1, "it is not at its end before the container runs");
    let spec = world.spec().clone();
    let size = Size::wanted(&spec, &spec.containers[0]);
    let runs = Record { size, ..record("a2", 1, running()) };
    let effects = world.on(
        at(13),
        [
            Message::Running { name: "a".into(), record: runs.clone() },
            Message::Started { name: "a".into(), outcome: StartOutcome::Started(runs) },
        ],
    );
    assert_eq!(events(&effects)[0].0, "ResizeCompleted");
}

#[test]
fn an_earlier_kubelets_allocation_holds_until_the_node_decides_anew() {
    let sized = |generation, cpu: &str| pod(generation, &[container("a", cpu, "", &[])]);
    let mut asked = (*sized(2, "9")).clone();
    let condition = json!({"type": PENDING, "status": "True", "reason": "Deferred", "observedGeneration": 2,
        "lastTransitionTime": "1970-01-01T00:00:05Z"});
    asked.status = Some(serde_json::from_value(json!({"conditions": [condition]})).unwrap());
    let mut world = World::new(Arc::new(asked), at(0));
    world.restore(Allocation::of(&sized(1, "1")));
    assert_eq!(world.spec().containers[0], world_container(&sized(1, "1")));
    assert_eq!(conditions(&world), [(PENDING.to_owned(), Some("Deferred".to_owned()), Some(2))]);
    let effects = world.on(at(10), [Message::Adopt { seen: Vec::new(), refusal: None }]);
    let proposed = effects.iter().find_map(|e| match e {
        Effect::Propose(Some(pod)) => Some(pod.metadata.generation),
        _ => None,
    });
    assert_eq!(proposed, Some(Some(2)));
    assert_eq!(world.desired.uid(), "u");
}
