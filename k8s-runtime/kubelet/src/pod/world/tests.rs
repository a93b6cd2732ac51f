//! Table tests: messages and the resulting effects.

use k8s_runtime::ContainerId;

use super::{super::sandbox::Extent, *};
use crate::{
    pod::samples::{at, container, exited, record, running, sandbox},
    probe::{Kind, Report},
};

pub(super) fn pod(spec: PodSpec) -> Pod {
    let metadata = ObjectMeta {
        name: Some("p".into()),
        namespace: Some("ns".into()),
        uid: Some("u".into()),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: Some(spec), ..Pod::default() }
}

pub(super) fn deleting(pod: &Pod, grace: i64) -> Arc<Pod> {
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp = Some(Time(at(0)));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    Arc::new(pod)
}

/// Describes an effect in a few words.
fn say(effect: &Effect) -> String {
    let second = |t: &Timestamp| t.as_millisecond() as f64 / 1000.0;
    match effect {
        Effect::Event(event) => format!("event {}", event.reason),
        Effect::SetUpVolumes => "volumes".into(),
        Effect::MakeSandbox { attempt, old } => {
            let old = old.as_ref().map(|s| format!(" for {}", s.id)).unwrap_or_default();
            format!("sandbox {attempt}{old}")
        }
        Effect::Connect { sandbox, .. } => format!("connect {}", sandbox.id),
        Effect::Start(what) => format!("start {} {}", what.container.name, what.attempt),
        Effect::Stop(what) => {
            let kill_at = what.kill_at.as_ref().map(|at| format!(" by {}", second(at))).unwrap_or_default();
            format!("stop {}{kill_at}", what.container.name)
        }
        Effect::Propose(pod) => format!("propose {:?}", pod.as_ref().and_then(|p| p.metadata.generation)),
        Effect::SaveAllocation(_) => "save allocation".into(),
        Effect::Resize(plan) => format!("resize in {} steps", plan.steps.len()),
        Effect::End { kill_at } => format!("end by {}", second(kill_at)),
        Effect::TakeDown { extent: Extent::Stop, .. } => "take down".into(),
        Effect::TakeDown { extent: Extent::Remove, .. } => "remove".into(),
        Effect::Delete { .. } => "delete".into(),
        Effect::WakeAt(at) => format!("wake {}", second(at)),
    }
}

/// The pod of a test.
struct Case(World);

impl Case {
    fn new(spec: PodSpec) -> Case {
        Case(World::new(Arc::new(pod(spec)), at(0)))
    }

    /// A pod with one container `a` that is always restarted.
    fn one() -> Case {
        Case::new(PodSpec { containers: vec![container("a")], ..PodSpec::default() })
    }

    /// Like [`Case::one`], with the container running as `c0`.
    fn running() -> Case {
        let mut case = Case::one();
        case.start_up();
        case.check(0, started("a", "c0", 0), &[]);
        case
    }

    fn start_up(&mut self) {
        self.check(0, Message::Adopt { seen: vec![], refusal: None }, &["volumes"]);
        self.check(0, Message::Volumes(Ok(Mounted::default())), &["sandbox 0"]);
        self.0.on(at(0), [made("s0", 0)]);
    }

    #[track_caller]
    fn check(&mut self, second: i64, message: Message, want: &[&str]) {
        let words = format!("{message:?}");
        let effects: Vec<String> = self.0.on(at(second), [message]).iter().map(say).collect();
        assert_eq!(effects, want, "after {words}");
    }
}

fn made(id: &str, attempt: u32) -> Message {
    Message::Sandbox(Ok((sandbox(id, attempt), vec![])))
}

fn started(name: &str, id: &str, attempt: u32) -> Message {
    Message::Started { name: name.into(), outcome: StartOutcome::Started(record(id, attempt, running())) }
}

fn ended(name: &str, id: &str, attempt: u32, code: i32, second: i64) -> Message {
    Message::Container(Observed { name: name.into(), record: record(id, attempt, exited(code, second)) })
}

fn stopped(id: &str, second: i64) -> Message {
    Message::Stopped { name: "a".into(), record: Some(record(id, 0, exited(143, second))) }
}

#[test]
fn volumes_and_sandboxes_that_fail_are_tried_again_later_and_later() {
    let mut case = Case::one();
    case.check(0, Message::Adopt { seen: vec![], refusal: None }, &["volumes"]);
    case.check(0, Message::Volumes(Err("no".into())), &["event FailedMount", "wake 0.5"]);
    case.check(1, Message::Tick, &["volumes"]);
    case.check(1, Message::Volumes(Err("no".into())), &["event FailedMount", "wake 2"]);
    case.check(2, Message::Tick, &["volumes"]);
    case.check(2, Message::Volumes(Ok(Mounted::default())), &["sandbox 0"]);
    case.check(2, Message::Sandbox(Err("no".into())), &["event FailedCreatePodSandBox", "wake 3"]);
    case.check(3, Message::Tick, &["sandbox 1"]);
    case.check(3, Message::Sandbox(Err("no".into())), &["event FailedCreatePodSandBox", "wake 5"]);
    case.check(5, Message::Tick, &["sandbox 2"]);
    case.check(5, made("s2", 2), &["start a 0"]);
}

#[test]
fn devices_that_are_not_prepared_are_tried_again_and_no_sandbox_is_made() {
    let mut case = Case::one();
    case.check(0, Message::Adopt { seen: vec![], refusal: None }, &["volumes"]);
    case.check(2, Message::Volumes(Ok(Mounted::default())), &["sandbox 0"]);
    let unprepared = || Message::Unprepared("no".into());
    case.check(2, unprepared(), &["event FailedPrepareDynamicResources", "wake 3"]);
    case.check(3, Message::Tick, &["sandbox 1"]);
    case.check(3, unprepared(), &["event FailedPrepareDynamicResources", "wake 5"]);
    case.check(5, Message::Tick, &["sandbox 2"]);
    case.check(5, made("s2", 2), &["start a 0"]);
}

#[test]
fn a_crash_restarts_at_once_and_then_backs_off() {
    let mut case = Case::running();
    case.check(5, ended("a", "c0", 0, 1, 5), &["start a 1"]);
    case.check(5, started("a", "c1", 1), &[]);
    case.check(6, ended("a", "c1", 1, 1, 6), &["event BackOff", "wake 16"]);
    case.check(10, Message::Tick, &["wake 16"]);
    case.check(16, Message::Tick, &["start a 2"]);
    case.check(16, started("a", "c2", 2), &[]);
    case.check(17, ended("a", "c2", 2, 1, 17), &["event BackOff", "wake 37"]);
}

#[test]
fn a_container_that_cannot_be_made_is_held_until_its_source_changes() {
    let mut case = Case::one();
    case.start_up();
    let hold = |on_source| Hold { until: at(10), reason: "x".into(), message: String::new(), on_source };
    let held =
        |on_source| Message::Started { name: "a".into(), outcome: StartOutcome::Held(hold(on_source)) };
    case.check(0, held(false), &["wake 10"]);
    case.check(1, Message::Source, &["volumes", "wake 10"]);
    case.check(1, Message::Volumes(Ok(Mounted::default())), &["wake 10"]);
    case.check(10, Message::Tick, &["start a 0"]);
    case.check(10, Message::Started { name: "a".into(), outcome: StartOutcome::Cancelled }, &["start a 0"]);
    case.check(10, held(true), &["start a 0"]);
}

#[test]
fn a_failed_liveness_probe_restarts_within_its_own_grace_period() {
    let probe = Probe { termination_grace_period_seconds: Some(7), ..Probe::default() };
    let a = Container { liveness_probe: Some(probe), ..container("a") };
    let mut case = Case::new(PodSpec { containers: vec![a], ..PodSpec::default() });
    case.start_up();
    case.check(0, started("a", "c0", 0), &[]);
    let report = |id: &str, verdict| {
        Message::Probe(Report {
            container: "a".into(),
            id: ContainerId(id.into()),
            kind: Kind::Liveness,
            failure: Some("why".into()),
            verdict,
        })
    };
    case.check(1, report("an older one", Some(false)), &[]);
    case.check(1, report("c0", None), &["event Unhealthy"]);
    case.check(2, report("c0", Some(false)), &["event Unhealthy", "stop a by 9"]);
    case.check(3, Message::Tick, &[]);
    case.check(3, stopped("c0", 3), &["start a 1"]);
}

#[test]
fn a_deleted_pod_stops_is_removed_and_goes() {
    let mut case = Case::running();
    let deleted = deleting(&case.0.pod, 20);
    case.check(10, Message::Pod(deleted.clone()), &["end by 30", "stop a"]);
    case.check(11, Message::Pod(deleting(&deleted, 60)), &[]);
    case.check(12, Message::Pod(deleting(&deleted, 5)), &["end by 17"]);
    case.check(13, stopped("c0", 13), &["remove"]);
    case.check(13, Message::TakenDown(Err("busy".into())), &["event FailedKillPod", "wake 14"]);
    case.check(14, Message::Tick, &["remove"]);
    case.check(14, Message::TakenDown(Err("busy".into())), &["event FailedKillPod", "wake 16"]);
    case.check(16, Message::Tick, &["remove"]);
    case.check(16, Message::TakenDown(Ok(())), &["delete"]);
    case.check(16, Message::Deleted(Err("no".into())), &["delete"]);
    case.check(17, Message::Deleted(Ok(())), &[]);
    assert!(!case.0.is_finished(), "the object is still there");
    case.check(17, Message::Gone(deleted), &[]);
    assert!(case.0.is_finished());
}

#[test]
fn a_completed_pod_keeps_its_traces_until_it_is_deleted() {
    let spec = PodSpec {
        restart_policy: Some("Never".into()),
        containers: vec![container("a")],
        ..PodSpec::default()
    };
    let mut case = Case::new(spec);
    case.start_up();
    case.check(0, started("a", "c0", 0), &[]);
    case.check(3, ended("a", "c0", 0, 0, 3), &["end by 33", "take down"]);
    case.check(3, Message::TakenDown(Ok(())), &[]);
    case.check(9, Message::Tick, &[]);
    case.check(9, Message::Pod(deleting(&case.0.pod.clone(), 1)), &["end by 10", "remove"]);
}

#[test]
fn a_refused_pod_never_gets_a_sandbox() {
    let refusal = Refusal { reason: "SysctlForbidden".into(), message: "no".into() };
    let mut case = Case::one();
    let adopt = Message::Adopt { seen: vec![], refusal: Some(refusal) };
    case.check(0, adopt, &["event SysctlForbidden", "end by 30", "take down"]);
}

fn disrupted(reason: &'static str, grace: Option<u64>) -> Message {
    let grace = grace.map(Duration::from_secs);
    Message::Disrupt(Disruption { reason, message: "low".into(), condition: None, grace })
}

#[test]
fn an_evicted_pod_has_a_short_end_and_nothing_of_it_stays() {
    let mut case = Case::running();
    case.check(5, disrupted(EVICTED, Some(0)), &["end by 6", "stop a"]);
    case.check(5, disrupted(EVICTED, Some(9)), &[]);
    case.check(7, stopped("c0", 7), &["remove"]);
    case.check(8, Message::TakenDown(Ok(())), &[]);
    case.check(9, Message::Pod(deleting(&case.0.pod.clone(), 30)), &["end by 9", "remove"]);
    assert!(matches!(case.0.sandbox, Sandbox::Absent { attempt: 1 }));
    // The pod's own grace period is not exceeded.
    let mut case = Case::running();
    case.check(5, disrupted(EVICTED, Some(900)), &["end by 35", "stop a"]);
}

#[test]
fn an_eviction_shortens_the_end_of_a_pod() {
    let mut case = Case::running();
    case.check(5, Message::Pod(deleting(&case.0.pod.clone(), 30)), &["end by 35", "stop a"]);
    case.check(6, disrupted(EVICTED, Some(1)), &["end by 7"]);
    case.check(7, stopped("c0", 7), &["remove"]);
    case.check(7, Message::TakenDown(Ok(())), &["delete"]);
}

#[test]
fn a_preempted_pod_is_stopped_and_not_restarted() {
    let mut case = Case::running();
    case.check(5, disrupted("Preempting", None), &["end by 35", "stop a"]);
    case.check(7, stopped("c0", 7), &["take down"]);
    case.check(8, Message::TakenDown(Ok(())), &[]);
    case.check(9, Message::Tick, &[]);
}

#[test]
fn a_deadline_ends_the_pod() {
    let spec =
        PodSpec { active_deadline_seconds: Some(10), containers: vec![container("a")], ..PodSpec::default() };
    let mut case = Case::new(spec);
    case.check(0, Message::Adopt { seen: vec![], refusal: None }, &["wake 10", "volumes"]);
    case.check(10, Message::Tick, &["event DeadlineExceeded", "end by 40"]);
    case.check(11, Message::Volumes(Ok(Mounted::default())), &["take down"]);
}

#[test]
fn running_containers_are_adopted_and_not_started() {
    let mut case = Case::one();
    let observed = Observed { name: "a".into(), record: record("c4", 4, running()) };
    let old = Seen { sandbox: sandbox("old", 0), containers: vec![] };
    let new = Seen { sandbox: sandbox("new", 1), containers: vec![observed] };
    case.check(5, Message::Adopt { seen: vec![new, old], refusal: None }, &["connect new", "volumes"]);
    case.check(5, Message::Volumes(Ok(Mounted::default())), &[]);
    case.check(5, made("new", 1), &[]);
    let life = case.0.life("a").unwrap();
    assert!(life.started && life.ready && life.hook_done && case.0.initialized);
    case.check(6, ended("a", "c4", 4, 1, 6), &["start a 5"]);
}

#[test]
fn a_container_that_only_the_status_knows_is_counted() {
    let mut spec = pod(PodSpec { containers: vec![container("a")], ..PodSpec::default() });
    let running = ContainerStateRunning { started_at: Some(Time(at(0))) };
    spec.status = Some(PodStatus {
        container_statuses: Some(vec![ContainerStatus {
            name: "a".into(),
            restart_count: 3,
            state: Some(ContainerState { running: Some(running), ..ContainerState::default() }),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    });
    let mut case = Case(World::new(Arc::new(spec), at(9)));
    case.start_up();
    let life = case.0.life("a").unwrap();
    assert_eq!((life.op, life.next_attempt()), (Some(Op::Starting), 4));
    assert_eq!(life.exit().map(|e| e.code), Some(137));
}

#[test]
fn a_sandbox_that_is_gone_takes_its_containers_along() {
    let mut case = Case::running();
    let gone = |id: &str| Message::SandboxGone { id: SandboxId(id.into()), containers: vec![] };
    case.check(4, gone("another"), &[]);
    case.check(4, gone("s0"), &["event SandboxChanged", "sandbox 1 for s0"]);
    assert_eq!(case.0.life("a").and_then(Life::exit).map(|e| e.code), Some(137));
    case.check(5, made("s1", 1), &["start a 1"]);
    // The same by a listing without the sandbox.
    case.check(5, started("a", "c1", 1), &[]);
    case.check(6, Message::Listed(vec![]), &["sandbox 2"]);
}

#[test]
fn an_end_that_overtakes_its_start_is_not_forgotten() {
    let mut case = Case::one();
    case.start_up();
    case.check(1, ended("a", "c0", 0, 1, 1), &[]);
    case.check(1, Message::Running { name: "a".into(), record: record("c0", 0, running()) }, &[]);
    case.check(1, started("a", "c0", 0), &["start a 1"]);
}

#[test]
fn contents_are_renewed_when_due_and_when_a_source_changed_meanwhile() {
    let mut case = Case::running();
    let due = |second| Message::Volumes(Ok(Mounted { refresh_at: Some(at(second)), ..Mounted::default() }));
    case.check(1, Message::Source, &["volumes"]);
    case.check(1, Message::Source, &[]);
    case.check(2, due(50), &["volumes"]);
    case.check(3, due(50), &["wake 50"]);
    case.check(50, Message::Tick, &["volumes"]);
    case.check(50, Message::Volumes(Err("no".into())), &["event FailedMount", "wake 60"]);
    case.check(60, Message::Tick, &["volumes"]);
}

#[test]
fn messages_that_arrive_together_are_decided_together() {
    let mut case = Case::running();
    let gone = Message::SandboxGone { id: SandboxId("s0".into()), containers: vec![] };
    let effects = case.0.on(at(4), [ended("a", "c0", 0, 137, 4), gone]);
    let words: Vec<String> = effects.iter().map(say).collect();
    assert_eq!(words, ["event SandboxChanged", "sandbox 1 for s0"], "no start in the dead sandbox");
}
