//! The steps of a pod's life, decided from its script. No clock, no I/O.

use std::time::Duration;

use crate::script::Script;

/// Back-off before the first restart of a container; doubled each time.
const FIRST_RESTART: Duration = Duration::from_secs(10);
const LONGEST_RESTART: Duration = Duration::from_secs(300);
/// Exit code of a container that cannot be started, as of container runtimes.
const CANNOT_START: i32 = 128;

/// Restart policy of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Always,
    OnFailure,
    Never,
}

impl Policy {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Policy::Never,
            Some("OnFailure") => Policy::OnFailure,
            _ => Policy::Always,
        }
    }
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its containers were not started yet.
    Born,
    /// Its containers run; this number of readiness steps is done.
    Up { steps: u16 },
    /// Its containers exited and wait for their restart.
    Down,
    /// Nothing follows but deletion.
    Over,
}

/// What a pod's status says of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// They wait for ever, for this reason.
    Stuck(String),
    Running {
        ready: bool,
    },
    /// They exited for good.
    Ended(Exit),
    /// They exited and wait for their restart.
    BackOff(Exit),
}

/// Exit of the containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    /// Error of a start that failed.
    pub(crate) message: Option<String>,
}

/// The next step of a life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    /// Delay from the step before.
    pub(crate) after: Duration,
    pub(crate) face: Face,
    pub(crate) then: Life,
    /// The containers begin anew.
    pub(crate) begins: bool,
    /// It is a restart after a back-off. Restarts never end: a test does not wait for them.
    pub(crate) restart: bool,
}

/// Returns the next step; `None`: nothing follows by itself.
pub(crate) fn next(life: Life, script: &Script, policy: Policy, restarts: u32) -> Option<Next> {
    match life {
        Life::Born => Some(start(script, policy, script.start, false)),
        Life::Down => Some(start(script, policy, back_off(restarts), true)),
        Life::Up { steps } => {
            let first = (!script.ready.is_zero()).then_some((script.ready, true));
            let mut all = first.into_iter().chain(script.probes.iter().copied());
            if let Some((after, ready)) = all.nth(usize::from(steps)) {
                let then = Life::Up { steps: steps.saturating_add(1) };
                return Some(Next {
                    after,
                    face: Face::Running { ready },
                    then,
                    begins: false,
                    restart: false,
                });
            }
            let (after, code) = script.end?;
            let (face, then) = exit(Exit { code, message: None }, policy);
            Some(Next { after, face, then, begins: false, restart: false })
        }
        Life::Over => None,
    }
}

fn start(script: &Script, policy: Policy, after: Duration, restart: bool) -> Next {
    let (face, then) = match (&script.stuck, &script.broken, script.end) {
        (Some(reason), ..) => (Face::Stuck(reason.clone()), Life::Over),
        (None, Some(message), _) => exit(Exit { code: CANNOT_START, message: Some(message.clone()) }, policy),
        (None, None, Some((Duration::ZERO, code))) => exit(Exit { code, message: None }, policy),
        _ => (Face::Running { ready: script.ready.is_zero() }, Life::Up { steps: 0 }),
    };
    Next { after, face, then, begins: true, restart }
}

fn exit(exit: Exit, policy: Policy) -> (Face, Life) {
    let ends = policy == Policy::Never || (policy == Policy::OnFailure && exit.code == 0);
    if ends { (Face::Ended(exit), Life::Over) } else { (Face::BackOff(exit), Life::Down) }
}

/// Returns the time before a restart, `restarts` having happened.
fn back_off(restarts: u32) -> Duration {
    (FIRST_RESTART * 2_u32.saturating_pow(restarts.min(10))).min(LONGEST_RESTART)
}

/// Returns how far a pod is whose status another run of this program wrote.
pub(crate) fn resumed(phase: &str, waits: bool, ready: bool, script: &Script) -> Life {
    match phase {
        "Succeeded" | "Failed" => Life::Over,
        "Running" if waits => Life::Down,
        "Running" if ready || script.ready.is_zero() => {
            let steps = usize::from(!script.ready.is_zero()) + script.probes.len();
            Life::Up { steps: u16::try_from(steps).unwrap_or(u16::MAX) }
        }
        "Running" => Life::Up { steps: 0 },
        _ => Life::Born,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The first `count` steps: delay, and what the status says.
    fn steps(script: &Script, policy: Policy, count: usize) -> Vec<(u64, String)> {
        let (mut life, mut restarts, mut out) = (Life::Born, 0, Vec::new());
        while out.len() < count
            && let Some(step) = next(life, script, policy, restarts)
        {
            restarts += u32::from(step.restart);
            let face = match &step.face {
                Face::Stuck(reason) => reason.clone(),
                Face::Running { ready } => format!("running {ready}"),
                Face::Ended(exit) => format!("ended {}", exit.code),
                Face::BackOff(exit) => format!("back-off {}", exit.code),
            };
            out.push((step.after.as_secs(), face));
            life = step.then;
        }
        out
    }

    fn check(script: &Script, policy: Policy, wanted: &[(u64, &str)]) {
        let wanted: Vec<_> = wanted.iter().map(|(after, face)| (*after, (*face).to_owned())).collect();
        assert_eq!(steps(script, policy, wanted.len() + 1)[..wanted.len()], wanted);
    }

    #[test]
    fn lives() {
        let one = |script: Script| steps(&script, Policy::Always, 9).len();
        check(&Script::runs().starts_after(2 * SECOND), Policy::Always, &[(2, "running true")]);
        assert_eq!((one(Script::runs()), one(Script::never_starts("No"))), (1, 1));
        let probed = Script::runs().ready_after(3 * SECOND).then_ready(SECOND, false);
        check(&probed, Policy::Always, &[(0, "running false"), (3, "running true"), (1, "running false")]);
        let job = Script::exits(5 * SECOND, 0);
        check(&job, Policy::OnFailure, &[(0, "running true"), (5, "ended 0")]);
        let wanted = [
            (0, "running true"),
            (5, "back-off 0"),
            (10, "running true"),
            (5, "back-off 0"),
            (20, "running true"),
        ];
        check(&job, Policy::Always, &wanted);
        let crash = Script::exits(Duration::ZERO, 3);
        check(&crash, Policy::Never, &[(0, "ended 3")]);
        check(&crash, Policy::OnFailure, &[(0, "back-off 3"), (10, "back-off 3"), (20, "back-off 3")]);
        check(&Script::fails_to_start("no"), Policy::Never, &[(0, "ended 128")]);
        assert_eq!(
            (back_off(4), back_off(5), back_off(u32::MAX)),
            (160 * SECOND, 300 * SECOND, 300 * SECOND)
        );
    }

    #[test]
    fn a_life_is_resumed() {
        let slow = Script::runs().ready_after(SECOND);
        for (phase, waits, ready, wanted) in [
            ("Pending", false, false, Life::Born),
            ("Running", false, false, Life::Up { steps: 0 }),
            ("Running", false, true, Life::Up { steps: 1 }),
            ("Running", true, false, Life::Down),
            ("Failed", false, false, Life::Over),
        ] {
            assert_eq!(resumed(phase, waits, ready, &slow), wanted, "{phase}");
        }
    }

    fn rank(face: &Face) -> u8 {
        match face {
            Face::Stuck(_) => 0,
            Face::Running { .. } | Face::BackOff(_) => 1,
            Face::Ended(_) => 2,
        }
    }

    proptest! {
        #[test]
        fn a_phase_never_goes_back(
            start in 0..5_u64, ready in 0..5_u64, end in proptest::option::of((0..9_u64, -1..3_i32)),
            probes in proptest::collection::vec((0..3_u64, any::<bool>()), 0..4), policy in 0..3_usize,
        ) {
            let policy = [Policy::Always, Policy::OnFailure, Policy::Never][policy];
            let mut script = Script::runs().starts_after(SECOND * u32::try_from(start).unwrap_or(0));
            script.ready = Duration::from_secs(ready);
            script.end = end.map(|(after, code)| (Duration::from_secs(after), code));
            script.probes = probes.into_iter().map(|(after, ready)| (Duration::from_secs(after), ready)).collect();
            let (mut life, mut restarts, mut before) = (Life::Born, 0, 0);
            for _ in 0..40 {
                let Some(step) = next(life, &script, policy, restarts) else {
                    prop_assert!(life == Life::Over || script.end.is_none());
                    break;
                };
                prop_assert!(rank(&step.face) >= before && step.after <= LONGEST_RESTART);
                prop_assert!(before < 2, "nothing follows the end");
                before = rank(&step.face);
                restarts += u32::from(step.restart);
                life = step.then;
            }
        }
    }
}
