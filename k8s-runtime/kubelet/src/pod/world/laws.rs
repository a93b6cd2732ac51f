//! Property tests: a simulated runtime answers the effects in any order, with success or failure, while
//! containers crash, sandboxes die, and users delete pods.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    super::resize::{self, Plan},
    tests::*,
    *,
};
use crate::{
    cgroups::Size,
    pod::samples::{at, container, exited, record, running, sandbox},
    probe::{Kind, Report},
};

/// A requested operation without an answer yet.
#[derive(Clone, Debug)]
enum Job {
    Volumes,
    Sandbox {
        attempt: u32,
    },
    /// `made`: the container runs, and `Message::Running` was sent.
    Start {
        what: Box<StartContainer>,
        made: Option<Record>,
    },
    Stop(StopContainer),
    Resize(Plan),
    TakeDown,
    Delete,
}

impl Job {
    /// Returns the operation's container.
    fn container(&self) -> Option<&str> {
        match self {
            Job::Start { what, .. } => Some(&what.container.name),
            Job::Stop(what) => Some(&what.container.name),
            Job::Volumes | Job::Sandbox { .. } | Job::Resize(_) | Job::TakeDown | Job::Delete => None,
        }
    }
}

/// A step of the simulation.
#[derive(Clone, Debug)]
enum Step {
    Wait(u16),
    /// An operation ends, with success or failure.
    Answer {
        job: usize,
        well: bool,
    },
    /// A running container exits. `seen`: its event is delivered at once.
    Crash {
        container: usize,
        code: i32,
        seen: bool,
    },
    SandboxDies {
        events: bool,
    },
    /// Events were lost: a listing follows. `forgotten`: the runtime has lost the sandbox too.
    List {
        forgotten: bool,
    },
    Probe {
        container: usize,
        kind: Kind,
        verdict: Option<bool>,
    },
    Source,
    Services,
    /// The user asks for other resources.
    Ask {
        container: usize,
        cpu: i64,
    },
    /// The node decides on what was asked for.
    Decide {
        room: bool,
    },
    Delete {
        grace: i64,
    },
    Gone,
    Declare,
    /// The kubelet evicts or preempts the pod.
    Disrupt {
        evict: bool,
        grace: Option<u64>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Startup), Just(Kind::Liveness), Just(Kind::Readiness)];
    prop_oneof![
        4 => (0_u16..400).prop_map(Step::Wait),
        20 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(job, well)| Step::Answer { job, well }),
        6 => (any::<usize>(), 0..2, any::<bool>())
            .prop_map(|(container, code, seen)| Step::Crash { container, code, seen }),
        1 => any::<bool>().prop_map(|events| Step::SandboxDies { events }),
        1 => prop::bool::weighted(0.2).prop_map(|forgotten| Step::List { forgotten }),
        2 => (any::<usize>(), kind, any::<Option<bool>>())
            .prop_map(|(container, kind, verdict)| Step::Probe { container, kind, verdict }),
        1 => Just(Step::Source),
        3 => (any::<usize>(), 0_i64..4).prop_map(|(container, cpu)| Step::Ask { container, cpu }),
        3 => prop::bool::weighted(0.7).prop_map(|room| Step::Decide { room }),
        3 => Just(Step::Services),
        1 => (0_i64..60).prop_map(|grace| Step::Delete { grace }),
        1 => Just(Step::Gone),
        1 => Just(Step::Declare),
        1 => (any::<bool>(), prop::option::of(0_u64..40))
            .prop_map(|(evict, grace)| Step::Disrupt { evict, grace }),
    ]
}

fn spec() -> impl Strategy<Value = PodSpec> {
    let policy = prop::sample::select(vec!["Always", "OnFailure", "Never"]);
    (policy, 0_usize..3, 0_usize..2, 1_usize..3, any::<bool>()).prop_map(
        |(policy, inits, sidecars, mains, deadline)| {
            let named = |prefix: &str, n: usize| (0..n).map(|i| container(&format!("{prefix}{i}"))).collect();
            let sidecar = |c: Container| Container { restart_policy: Some("Always".into()), ..c };
            let sidecars: Vec<Container> = named("side", sidecars);
            let inits: Vec<Container> = named("init", inits);
            let inits = sidecars.into_iter().map(sidecar).chain(inits).collect();
            PodSpec {
                restart_policy: Some(policy.into()),
                init_containers: Some(inits),
                containers: named("main", mains),
                active_deadline_seconds: deadline.then_some(600),
                ..PodSpec::default()
            }
        },
    )
}

/// A pod, its simulated runtime, and the checks of every answer.
struct Model {
    world: World,
    now: Timestamp,
    jobs: Vec<Job>,
    /// The living sandbox.
    sandbox: Option<Arc<SandboxStatus>>,
    /// Current instances of the containers, by name.
    containers: BTreeMap<String, Record>,
    /// Previous instances, exited.
    old: Vec<Observed>,
    made: u32,
    /// The pod that waits for a decision.
    asked: Option<Arc<Pod>>,
    wake: Option<Timestamp>,
    kill_at: Option<Timestamp>,
}

impl Model {
    fn new(spec: PodSpec) -> Model {
        let mut world = World::new(Arc::new(pod(spec)), at(0));
        world.services_known = false;
        let mut model = Model {
            world,
            now: at(0),
            jobs: Vec::new(),
            sandbox: None,
            containers: BTreeMap::new(),
            old: Vec::new(),
            made: 0,
            asked: None,
            wake: None,
            kill_at: None,
        };
        model.on([Message::Adopt { seen: vec![], refusal: None }]);
        model
    }

    fn on(&mut self, messages: impl IntoIterator<Item = Message>) {
        let attempts = |world: &World| -> Vec<Option<u32>> {
            world.containers.iter().map(|l| l.current.as_ref().map(|r| r.attempt)).collect()
        };
        if self.world.is_finished() {
            // The worker has ended.
            return;
        }
        let before = attempts(&self.world);
        let effects = self.world.on(self.now, messages);
        assert!(before <= attempts(&self.world), "a restart count went down");
        self.wake = None;
        for effect in effects {
            self.begin(effect);
        }
        self.check_waits();
    }

    /// Starts an effect. Checks that it is neither running already nor forbidden by the pod's termination.
    fn begin(&mut self, effect: Effect) {
        let jobs = |of: fn(&Job) -> bool| self.jobs.iter().any(of);
        let job = match effect {
            Effect::Event(_) => return,
            Effect::WakeAt(at) => {
                assert!(at > self.now, "a wake in the past is a busy loop");
                self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
                return;
            }
            Effect::End { kill_at } => {
                let latest = self.kill_at.map(|before| before.max(self.now));
                assert!(latest.is_none_or(|latest| kill_at <= latest), "the pod's end moves away");
                self.kill_at = Some(kill_at);
                return;
            }
            Effect::SetUpVolumes => {
                assert!(!jobs(|j| matches!(j, Job::Volumes | Job::TakeDown)));
                Job::Volumes
            }
            Effect::MakeSandbox { attempt, .. } => {
                assert!(!jobs(|j| matches!(j, Job::Sandbox { .. } | Job::TakeDown)));
                assert!(self.world.ending.is_none(), "a sandbox for a pod that ends");
                Job::Sandbox { attempt }
            }
            Effect::Connect { .. } => panic!("nothing was adopted"),
            Effect::Start(what) => {
                let name = &what.container.name;
                assert!(self.world.ending.is_none(), "{name} is started in a pod that ends");
                assert!(self.jobs.iter().all(|j| j.container() != Some(name)), "{name} is worked on already");
                Job::Start { what, made: None }
            }
            Effect::Stop(what) => {
                let name = &what.container.name;
                assert!(self.jobs.iter().all(|j| j.container() != Some(name)), "{name} is worked on already");
                Job::Stop(*what)
            }
            Effect::Propose(asked) => {
                self.asked = asked;
                return;
            }
            Effect::SaveAllocation(_) => return,
            Effect::Resize(plan) => {
                assert!(!jobs(|j| matches!(j, Job::Resize(_) | Job::TakeDown)));
                assert!(self.world.ending.is_none(), "a resize of a pod that ends");
                assert!(!plan.steps.is_empty());
                Job::Resize(*plan)
            }
            Effect::TakeDown { .. } => {
                assert!(self.jobs.is_empty(), "taken down beside {:?}", self.jobs);
                assert!(!self.world.containers.iter().any(Life::is_running));
                Job::TakeDown
            }
            Effect::Delete { .. } => {
                assert!(self.jobs.is_empty());
                Job::Delete
            }
        };
        self.jobs.push(job);
    }

    /// Checks that a pod without operations and running containers waits for a time, for the services, or for
    /// its deletion.
    fn check_waits(&self) {
        let resting = self.world.ending.is_some_and(|e| matches!(e.stage, Stage::Down | Stage::Finished));
        let runs = self.world.containers.iter().any(Life::is_running);
        if self.jobs.is_empty() && !runs && self.world.services_known && !resting {
            assert!(self.wake.is_some(), "nothing wakes {:?}", self.world);
        }
    }

    fn running(&self) -> Vec<String> {
        let running = self.containers.iter().filter(|(_, r)| r.exit().is_none());
        running.map(|(name, _)| name.clone()).collect()
    }

    fn observed(&self, name: &str) -> Observed {
        Observed { name: name.into(), record: self.containers[name].clone() }
    }

    fn end(&mut self, name: &str, code: i32) {
        let second = self.now.as_second();
        if let Some(record) = self.containers.get_mut(name).filter(|r| r.exit().is_none()) {
            record.phase = exited(code, second);
        }
    }

    fn end_all(&mut self) {
        self.running().iter().for_each(|name| self.end(name, 137));
        self.sandbox = None;
    }

    /// Returns all containers of the sandbox in an unusual order.
    fn all_observed(&self) -> Vec<Observed> {
        let newest = self.containers.keys().map(|name| self.observed(name));
        newest.chain(self.old.iter().cloned()).collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Wait(seconds) => {
                self.now += Duration::from_secs(seconds.into());
                self.on([Message::Tick]);
            }
            Step::Answer { job, well } => self.answer(job, well),
            Step::Crash { container, code, seen } => {
                let running = self.running();
                if running.is_empty() {
                    return;
                }
                let name = &running[container % running.len()];
                self.end(name, code);
                // Without an event, a listing reports it.
                let message = match &self.sandbox {
                    Some(sandbox) if !seen => {
                        let containers = self.all_observed();
                        Message::Listed(vec![Seen { sandbox: sandbox.clone(), containers }])
                    }
                    _ => Message::Container(self.observed(name)),
                };
                self.on([message]);
            }
            Step::SandboxDies { events } => {
                let Some(sandbox) = self.sandbox.clone() else { return };
                let names = self.running();
                self.end_all();
                let ends = names.iter().filter(|_| events).map(|n| Message::Container(self.observed(n)));
                let containers = self.all_observed();
                let gone = Message::SandboxGone { id: sandbox.id.clone(), containers };
                self.on(ends.chain([gone]).collect::<Vec<_>>());
            }
            Step::List { forgotten } => {
                let containers = self.all_observed();
                let seen = self.sandbox.clone().map(|sandbox| Seen { sandbox, containers });
                if forgotten {
                    self.end_all();
                    (self.containers, self.old) = Default::default();
                }
                self.on([Message::Listed(seen.into_iter().filter(|_| !forgotten).collect())]);
            }
            Step::Probe { container, kind, verdict } => {
                let Some((name, record)) = self.containers.iter().nth(container % 3) else { return };
                let Some(id) = record.id.clone() else { return };
                let report = Report { container: name.clone(), id, kind, failure: None, verdict };
                self.on([Message::Probe(report)]);
            }
            Step::Source => self.on([Message::Source]),
            Step::Services => self.on([Message::Services]),
            Step::Ask { container, cpu } => {
                let mut pod = (*self.world.desired).clone();
                let spec = pod.spec.get_or_insert_default();
                let mut all: Vec<&mut Container> =
                    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).collect();
                let at = container % all.len();
                let request = [("cpu".to_owned(), ApiQuantity(cpu.to_string()))].into();
                all[at].resources.get_or_insert_default().requests = Some(request);
                // Every other container restarts for it.
                let restart_policy =
                    if at.is_multiple_of(2) { "NotRequired" } else { "RestartContainer" }.into();
                let policy = ContainerResizePolicy { resource_name: "cpu".into(), restart_policy };
                all[at].resize_policy = Some(vec![policy]);
                self.on([Message::Pod(Arc::new(pod))]);
            }
            Step::Decide { room } => {
                let Some(asked) = self.asked.clone() else { return };
                let verdict = if room {
                    self.asked = None;
                    Verdict::Allocated(asked)
                } else {
                    Verdict::Deferred(asked, Refusal { reason: "OutOfcpu".into(), message: "full".into() })
                };
                self.on([Message::Resize(verdict)]);
            }
            Step::Delete { grace } => {
                let pod = deleting(&self.world.desired, grace);
                self.on([Message::Pod(pod)]);
            }
            Step::Gone => {
                let pod = self.world.desired.clone();
                self.on([Message::Gone(pod)]);
            }
            Step::Disrupt { evict, grace } => {
                let reason = if evict { EVICTED } else { "Preempting" };
                let grace = grace.map(Duration::from_secs);
                let why = Disruption { reason, message: String::new(), condition: None, grace };
                self.on([Message::Disrupt(why)]);
            }
            Step::Declare => {
                let mut pod = (*self.world.desired).clone();
                pod.status.get_or_insert_default().phase = Some("Failed".into());
                self.on([Message::Pod(Arc::new(pod))]);
            }
        }
    }

    fn answer(&mut self, job: usize, well: bool) {
        if self.jobs.is_empty() {
            return;
        }
        let job = self.jobs.swap_remove(job % self.jobs.len());
        let failed = || "failed".to_owned();
        let message = match job {
            Job::Volumes => {
                let due = self.now + Duration::from_secs(60);
                // Only sometimes: the wake-up for this would hide that another one is missing.
                let refresh_at = (self.now.as_second() % 2 == 1).then_some(due);
                let mounted = Mounted { refresh_at, ..Mounted::default() };
                Message::Volumes(if well { Ok(mounted) } else { Err(failed()) })
            }
            Job::Sandbox { attempt } => {
                self.end_all();
                (self.containers, self.old) = Default::default();
                if well {
                    let made = sandbox(&format!("s{attempt}"), attempt);
                    self.sandbox = Some(made.clone());
                    Message::Sandbox(Ok((made, vec![])))
                } else {
                    Message::Sandbox(Err(failed()))
                }
            }
            Job::Start { what, made: Some(record) } => {
                let name = what.container.name.clone();
                Message::Started { name, outcome: StartOutcome::Started(record) }
            }
            Job::Start { what, made: None } => {
                let name = what.container.name.clone();
                let alive = self.sandbox.as_ref().is_some_and(|s| s.id == what.sandbox);
                if !alive || !well {
                    let until = self.now + Duration::from_secs(10);
                    let hold = Hold { until, reason: "x".into(), message: String::new(), on_source: true };
                    let outcome = match self.world.ending {
                        Some(_) => StartOutcome::Cancelled,
                        None => StartOutcome::Held(hold),
                    };
                    Message::Started { name, outcome }
                } else {
                    self.made += 1;
                    let size = Size::wanted(self.world.spec(), &what.container);
                    let record =
                        Record { size, ..record(&format!("c{}", self.made), what.attempt, running()) };
                    if let Some(record) = self.containers.insert(name.clone(), record.clone()) {
                        self.old.push(Observed { name: name.clone(), record });
                    }
                    self.jobs.push(Job::Start { what, made: Some(record.clone()) });
                    Message::Running { name, record }
                }
            }
            Job::Stop(what) => {
                let name = what.container.name.clone();
                self.end(&name, 143);
                let known = self.containers.get(&name).filter(|r| r.id.as_ref() == Some(&what.id));
                Message::Stopped { name, record: known.filter(|_| well).cloned() }
            }
            Job::Resize(plan) => {
                let (done, error) = if well { (plan.steps, None) } else { (Vec::new(), Some(failed())) };
                for step in &done {
                    let resize::Step::Container { id, requests, .. } = step else { continue };
                    let mut all = self.containers.values_mut();
                    if let Some(record) = all.find(|record| record.id.as_ref() == Some(id)) {
                        record.size.requests = *requests;
                    }
                }
                Message::Resized(resize::Resized { done, error })
            }
            Job::TakeDown if well => {
                self.end_all();
                Message::TakenDown(Ok(()))
            }
            Job::TakeDown => Message::TakenDown(Err(failed())),
            Job::Delete => Message::Deleted(if well { Ok(()) } else { Err(failed()) }),
        };
        self.on([message]);
    }

    /// Lets every operation succeed, and checks that running containers have the sizes that are allocated.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.step(Step::Decide { room: true });
            self.step(Step::Services);
            self.step(Step::Wait(400));
            for _ in 0..50 {
                self.answer(0, true);
            }
        }
        if self.world.ending.is_some() {
            return;
        }
        let resize = &self.world.resize;
        assert!(resize.pending.is_none() && resize.progress.is_none(), "{resize:?} {:?}", self.world);
        assert!(self.world.allocation.same(&Allocation::of(&self.world.desired)));
        for life in self.world.containers.iter().filter(|life| life.is_running()) {
            let size = &life.current.as_ref().unwrap().size;
            assert_eq!(*size, Size::wanted(self.world.spec(), &life.spec), "{}", life.name);
        }
    }

    /// Deletes the pod and lets every operation succeed.
    fn wind_up(&mut self) {
        self.step(Step::Delete { grace: 30 });
        for _ in 0..100 {
            self.answer(0, true);
        }
        self.step(Step::Wait(60));
        for _ in 0..100 {
            self.answer(0, true);
        }
        self.step(Step::Gone);
        self.answer(0, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pod_keeps_its_laws_and_is_gone_once_it_is_deleted(
        spec in spec(),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut model = Model::new(spec);
        for step in steps {
            model.step(step);
        }
        model.settle();
        model.wind_up();
        prop_assert!(model.world.is_finished(), "{:?}", model.world.ending);
    }
}
