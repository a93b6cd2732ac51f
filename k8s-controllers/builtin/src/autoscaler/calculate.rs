//! Replica counts from metrics: how many pods would bring a metric to its target.
//!
//! All values are thousandths of their unit (milli-CPU, thousandths of bytes or of requests per second).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::{
            autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior},
            core::v1::Pod,
        },
        apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    },
    meta::{ObjectExt, Quantity},
};

use super::super::pods;

/// Why no count could be computed.
pub(super) type Failure = String;

/// A metric of a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Thousandths.
    pub value: i64,
    /// End of the time that it was measured over.
    pub at: Timestamp,
    /// Length of that time.
    pub window: Duration,
}

/// Metrics by name of the pod.
pub(super) type Samples = BTreeMap<String, Sample>;

/// Relative distance of a metric from its target that changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    /// For fewer pods.
    pub down: f64,
    /// For more pods.
    pub up: f64,
}

impl Tolerance {
    /// Returns the tolerances of an autoscaler; `default` where it names none.
    pub(super) fn of(behavior: Option<&HorizontalPodAutoscalerBehavior>, default: f64) -> Self {
        let named = |rules: Option<&HPAScalingRules>| {
            let quantity: Quantity = rules?.tolerance.as_ref()?.0.parse().ok()?;
            Some(quantity.milli() as f64 / 1000.0)
        };
        Tolerance {
            down: named(behavior.and_then(|b| b.scale_down.as_ref())).unwrap_or(default),
            up: named(behavior.and_then(|b| b.scale_up.as_ref())).unwrap_or(default),
        }
    }

    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// What pods' metrics are compared with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    /// A percentage of the pods' requests.
    Utilization {
        /// Percent; above 0.
        percent: i32,
        /// Requests by name of the pod.
        requests: BTreeMap<String, i64>,
    },
    /// An average over the pods.
    Average(i64),
}

/// Use beside its target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    /// Use divided by the target.
    pub ratio: f64,
    /// Percent of the requests, for [`Target::Utilization`].
    pub utilization: Option<i32>,
    /// Average over the pods.
    pub average: i64,
}

impl Target {
    fn usage(&self, values: &BTreeMap<&str, i64>) -> Result<Usage, Failure> {
        let count = i64::try_from(values.len()).unwrap_or(i64::MAX).max(1);
        match self {
            Target::Average(target) => {
                let average = total(values.values().copied()) / count;
                Ok(Usage { ratio: average as f64 / *target as f64, utilization: None, average })
            }
            Target::Utilization { percent, requests } => {
                // A metric of a pod that is not the target's says nothing.
                let known: Vec<(i64, i64)> =
                    values.iter().filter_map(|(pod, used)| Some((*requests.get(*pod)?, *used))).collect();
                let requested = total(known.iter().map(|(requested, _)| *requested));
                let used = total(known.iter().map(|(_, used)| *used));
                let count = i64::try_from(known.len()).unwrap_or(i64::MAX).max(1);
                if requested == 0 {
                    return Err("no metrics returned matched known pods".into());
                }
                let share = i128::from(used) * 100 / i128::from(requested);
                let utilization = i32::try_from(share).unwrap_or(i32::MAX);
                let ratio = f64::from(utilization) / f64::from(*percent);
                Ok(Usage { ratio, utilization: Some(utilization), average: used / count })
            }
        }
    }

    /// The use of a pod without a metric, when there may be too many pods.
    fn assumed(&self, pod: &str) -> i64 {
        match self {
            Target::Average(target) => *target,
            Target::Utilization { percent, requests } => {
                let request = i128::from(requests.get(pod).copied().unwrap_or(0));
                i64::try_from(request * i128::from((*percent).max(100)) / 100).unwrap_or(i64::MAX)
            }
        }
    }
}

/// Sum that saturates.
fn total(values: impl Iterator<Item = i64>) -> i64 {
    values.fold(0, i64::saturating_add)
}

fn ceil(count: f64) -> i32 {
    // `as` saturates, and makes 0 of NaN.
    count.ceil() as i32
}

/// Times that a new pod's CPU is not trusted for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delays {
    /// Time after a pod's start in which CPU counts only of ready pods, and of whole windows since.
    pub cpu_initialization: Duration,
    /// Time after a pod's start in which a change of readiness is its first.
    pub initial_readiness: Duration,
}

/// Pods by what their metrics are good for.
#[derive(Debug, Default, PartialEq)]
struct Groups<'a> {
    ready: usize,
    unready: BTreeSet<&'a str>,
    missing: BTreeSet<&'a str>,
    ignored: BTreeSet<&'a str>,
}

fn group<'a>(pods: &'a [Arc<Pod>], samples: &Samples, cpu: Option<Delays>, now: Timestamp) -> Groups<'a> {
    let mut groups = Groups::default();
    for pod in pods {
        let name = pod.name();
        if pod.is_deleting() || pods::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pods::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else {
            match samples.get(name) {
                None => drop(groups.missing.insert(name)),
                Some(sample) if cpu.is_some_and(|delays| is_warming_up(pod, sample, delays, now)) => {
                    groups.unready.insert(name);
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// Returns true if the CPU that a pod used does not yet tell what it will use.
fn is_warming_up(pod: &Pod, sample: &Sample, delays: Delays, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|time| time.0);
    let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else { return true };
    let is_not_ready = ready.status == "False";
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let after = |time: Timestamp, delay: Duration| time.checked_add(delay).unwrap_or(Timestamp::MAX);
    if after(started, delays.cpu_initialization) > now {
        is_not_ready || sample.at < after(changed, sample.window)
    } else {
        // Not ready, and never was.
        is_not_ready && after(started, delays.initial_readiness) > changed
    }
}

/// The pods of a target, and their metrics.
pub(super) struct Observed<'a> {
    pub pods: &'a [Arc<Pod>],
    pub samples: Samples,
    /// The delays for CPU; `None` for other metrics.
    pub cpu: Option<Delays>,
    pub now: Timestamp,
}

/// A proposed count, and the use that it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proposal {
    pub replicas: i32,
    pub usage: Usage,
}

impl Observed<'_> {
    /// Proposes a count for a metric that each pod has.
    ///
    /// Pods without a metric, and pods that are not ready, count only against the direction of the change: a
    /// guess never makes it larger, nor turns it round.
    ///
    /// # Errors
    /// No pod has a metric that counts; `target` fails.
    pub(super) fn propose(
        &self,
        current: i32,
        tolerance: Tolerance,
        target: impl FnOnce() -> Result<Target, Failure>,
    ) -> Result<Proposal, Failure> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".into());
        }
        let groups = group(self.pods, &self.samples, self.cpu, self.now);
        let counts = |name: &str| !groups.ignored.contains(name) && !groups.unready.contains(name);
        let mut values: BTreeMap<&str, i64> = self
            .samples
            .iter()
            .filter(|(name, _)| counts(name))
            .map(|(name, sample)| (name.as_str(), sample.value))
            .collect();
        if values.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".into());
        }
        let target = target()?;
        let usage = target.usage(&values)?;
        let stay = Ok(Proposal { replicas: current, usage });
        let unready_matter = !groups.unready.is_empty() && usage.ratio > 1.0;
        if !unready_matter && groups.missing.is_empty() {
            if tolerance.holds(usage.ratio) {
                return stay;
            }
            return Ok(Proposal { replicas: ceil(usage.ratio * groups.ready as f64), usage });
        }
        for pod in &groups.missing {
            if usage.ratio < 1.0 {
                values.insert(pod, target.assumed(pod));
            } else if usage.ratio > 1.0 {
                values.insert(pod, 0);
            }
        }
        if unready_matter {
            values.extend(groups.unready.iter().map(|pod| (*pod, 0)));
        }
        let ratio = target.usage(&values)?.ratio;
        let turned = (usage.ratio < 1.0 && ratio > 1.0) || (usage.ratio > 1.0 && ratio < 1.0);
        if tolerance.holds(ratio) || turned {
            return stay;
        }
        let replicas = ceil(ratio * values.len() as f64);
        if (ratio < 1.0 && replicas > current) || (ratio > 1.0 && replicas < current) {
            return stay;
        }
        Ok(Proposal { replicas, usage })
    }
}

/// Proposes a count for a metric of something else than pods, whose whole is compared with `target`.
///
/// # Errors
/// The selector finds no pods.
pub(super) fn by_whole(
    usage: i64,
    target: i64,
    current: i32,
    tolerance: Tolerance,
    pods: &[Arc<Pod>],
) -> Result<i32, Failure> {
    let ratio = usage as f64 / target as f64;
    if current == 0 {
        return Ok(ceil(ratio));
    }
    if tolerance.holds(ratio) {
        return Ok(current);
    }
    if pods.is_empty() {
        return Err(
            "unable to calculate ready pods: no pods returned by selector while calculating replica count"
                .into(),
        );
    }
    let ready = pods.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod)).count();
    Ok(ceil(ratio * ready as f64))
}

/// Proposes a count for a metric of something else than pods, of which each pod shall have `target`; and
/// returns how much each has now.
pub(super) fn by_share(usage: i64, target: i64, current: i32, tolerance: Tolerance) -> (i32, i64) {
    let ratio = usage as f64 / (target as f64 * f64::from(current));
    let replicas = if tolerance.holds(ratio) { current } else { ceil(usage as f64 / target as f64) };
    (replicas, (usage as f64 / f64::from(current)).ceil() as i64)
}

/// Returns what each pod requests of a resource, in one container or in all.
///
/// # Errors
/// A container has no request; there is no container of that name.
pub(super) fn requests(
    pods: &[Arc<Pod>],
    container: Option<&str>,
    resource: &str,
) -> Result<BTreeMap<String, i64>, Failure> {
    pods.iter().map(|pod| Ok((pod.name().to_owned(), request(pod, container, resource)?))).collect()
}

fn request(pod: &Pod, container: Option<&str>, resource: &str) -> Result<i64, Failure> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let sidecars = init.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let all = spec.map_or(&[][..], |s| &s.containers).iter().chain(sidecars);
    let milli = |list: Option<&BTreeMap<String, ApiQuantity>>| {
        Some(list?.get(resource)?.0.parse::<Quantity>().ok()?.milli())
    };
    let whole = spec.and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    if container.is_none()
        && whole.is_some_and(|list| {
            list.keys().any(|name| name == "cpu" || name == "memory" || name.starts_with("hugepages-"))
        })
    {
        let overhead = milli(spec.and_then(|s| s.overhead.as_ref())).unwrap_or(0);
        let of_containers = || {
            let mut found = all.filter_map(|c| milli(c.resources.as_ref()?.requests.as_ref())).peekable();
            found.peek().is_some().then(|| total(found))
        };
        let found = milli(whole).or_else(of_containers);
        return found
            .map(|request| request.saturating_add(overhead))
            .ok_or_else(|| format!("missing pod-level request for {resource} in Pod {}", pod.name()));
    }
    let mut sum = None;
    for c in all.filter(|c| container.is_none_or(|name| name == c.name)) {
        let request = milli(c.resources.as_ref().and_then(|r| r.requests.as_ref())).ok_or_else(|| {
            format!("missing request for {resource} in container {} of Pod {}", c.name, pod.name())
        })?;
        sum = Some(request.saturating_add(sum.unwrap_or(0)));
    }
    match (sum, container) {
        (None, Some(name)) => Err(format!("container {name} not found in Pod {}", pod.name())),
        (sum, _) => Ok(sum.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-01T12:00:00Z";
    const EVEN: Tolerance = Tolerance { down: 0.1, up: 0.1 };
    const DELAYS: Delays =
        Delays { cpu_initialization: Duration::from_secs(300), initial_readiness: Duration::from_secs(30) };

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    /// A pod that requests 1,000 milli-CPU and has run for an hour. A leading `-` makes it unready since its
    /// start, `?` pending, `x` failed.
    fn pod(text: &str) -> Arc<Pod> {
        let name = text.trim_start_matches(['-', '?', 'x']);
        let phase = match text.chars().next() {
            Some('?') => "Pending",
            Some('x') => "Failed",
            _ => "Running",
        };
        let ready = if text.starts_with('-') { "False" } else { "True" };
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "startTime": "2026-01-01T11:00:00Z", "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T11:00:10Z"}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn sample(value: i64) -> Sample {
        Sample { value, at: now(), window: Duration::from_secs(30) }
    }

    /// Proposes for pods by text, and the samples of some of them in milli-CPU.
    fn propose(pods: &str, samples: &[(&str, i64)], percent: i32) -> Result<(i32, i32), Failure> {
        let pods: Vec<Arc<Pod>> = pods.split_whitespace().map(pod).collect();
        let samples = samples.iter().map(|(name, value)| ((*name).to_owned(), sample(*value))).collect();
        let current = i32::try_from(pods.len()).unwrap();
        let observed = Observed { pods: &pods, samples, cpu: Some(DELAYS), now: now() };
        let target = || Ok(Target::Utilization { percent, requests: requests(&pods, None, "cpu")? });
        let proposal = observed.propose(current, EVEN, target)?;
        Ok((proposal.replicas, proposal.usage.utilization.unwrap()))
    }

    #[test]
    fn utilization_proposes_as_upstream_does() {
        type Case<'a> = (&'a str, &'a [(&'a str, i64)], i32, Result<(i32, i32), &'a str>);
        let cases: &[Case<'_>] = &[
            // All pods measured and ready: the count follows the ratio.
            ("a b c", &[("a", 300), ("b", 500), ("c", 700)], 30, Ok((5, 50))),
            ("a b c", &[("a", 320), ("b", 290), ("c", 290)], 30, Ok((3, 30))),
            ("a b c d e", &[("a", 100), ("b", 300), ("c", 500), ("d", 250), ("e", 250)], 50, Ok((3, 28))),
            // One not ready, and none: those that are not ready use nothing when more are wanted.
            ("a b -c", &[("a", 600), ("b", 600), ("c", 900)], 30, Ok((4, 60))),
            ("a b ?c", &[("a", 600), ("b", 600)], 30, Ok((4, 60))),
            // The guess would turn the direction round: nothing changes.
            ("a -b -c -d", &[("a", 400)], 30, Ok((4, 40))),
            // Fewer are wanted: unready pods do not matter.
            ("a b ?c", &[("a", 100), ("b", 100)], 50, Ok((1, 10))),
            // Missing pods use all of their request on the way down, nothing on the way up.
            ("a b c d", &[("a", 100), ("b", 100)], 50, Ok((4, 10))),
            ("a b c d", &[("a", 10), ("b", 10), ("c", 10)], 50, Ok((2, 1))),
            ("a b c", &[("a", 1000), ("b", 1000)], 50, Ok((4, 100))),
            // Failed pods count as not there.
            ("a b xc", &[("a", 1000), ("b", 1000), ("c", 10)], 50, Ok((4, 100))),
            ("", &[], 50, Err("no pods returned by selector while calculating replica count")),
            ("?a", &[("a", 3)], 50, Err("did not receive metrics for targeted pods (pods might be unready)")),
        ];
        for (pods, samples, percent, wanted) in cases {
            let wanted = wanted.map_err(str::to_owned);
            assert_eq!(propose(pods, samples, *percent), wanted, "{pods} {samples:?} {percent}");
        }
    }

    #[test]
    fn a_guess_never_enlarges_a_change_nor_turns_it_round() {
        use proptest::prelude::*;
        proptest!(|(known in prop::collection::vec(0_i64..4_000, 1..8), missing in 0_usize..4,
            pending in 0_usize..4, percent in 1..200)| {
            let names: Vec<String> = (0..known.len()).map(|i| format!("k{i}")).collect();
            let samples: Vec<(&str, i64)> = names.iter().map(String::as_str).zip(known.iter().copied()).collect();
            let all = |missing, pending| {
                let missing = (0..missing).map(|i| format!("m{i}"));
                let pending = (0..pending).map(|i| format!("?p{i}"));
                names.iter().cloned().chain(missing).chain(pending).collect::<Vec<_>>().join(" ")
            };
            let (replicas, used) = propose(&all(missing, pending), &samples, percent).unwrap();
            let current = i32::try_from(known.len() + missing + pending).unwrap();
            let ratio = f64::from(used) / f64::from(percent);
            if ratio > 1.0 { prop_assert!(replicas >= current || missing + pending == 0 || replicas >= 1) }
            // The whole of what was measured, spread at the target, is the most that is asked for.
            if ratio > 1.1 && missing + pending > 0 {
                let most = (known.iter().sum::<i64>() as f64 / (10.0 * f64::from(percent))).ceil() as i32 + 1;
                prop_assert!(replicas <= most.max(current), "{replicas} of at most {most}, now {current}");
            }
            if ratio < 1.0 { prop_assert!(replicas <= current) }
        });
    }

    #[test]
    fn cpu_of_a_young_pod_counts_from_its_first_whole_window() {
        let pod = |started: &str, ready: &str, changed: &str| -> Pod {
            serde_json::from_value(json!({"status": {"startTime": started, "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": changed}]}}))
            .unwrap()
        };
        let (young, old) = ("2026-01-01T11:58:00Z", "2026-01-01T11:00:00Z");
        let cases = [
            (young, "True", "2026-01-01T11:59:00Z", false),
            (young, "True", "2026-01-01T11:59:45Z", true),
            (young, "False", "2026-01-01T11:58:01Z", true),
            // Never ready in half a minute after its start; then: was ready, and counts.
            (old, "False", "2026-01-01T11:00:10Z", true),
            (old, "False", "2026-01-01T11:40:00Z", false),
            (old, "True", "2026-01-01T11:59:59Z", false),
        ];
        for (started, ready, changed, warming) in cases {
            let pod = pod(started, ready, changed);
            assert_eq!(
                is_warming_up(&pod, &sample(1), DELAYS, now()),
                warming,
                "{started} {ready} {changed}"
            );
        }
        assert!(is_warming_up(&Pod::default(), &sample(1), DELAYS, now()), "nothing is known of it");
    }

    #[test]
    fn metrics_of_other_things_are_taken_whole_or_shared() {
        let pods: Vec<Arc<Pod>> = ["a", "b", "-c"].map(pod).into();
        assert_eq!(by_whole(2_000, 1_000, 3, EVEN, &pods), Ok(4), "two are ready");
        assert_eq!(by_whole(1_050, 1_000, 3, EVEN, &pods), Ok(3), "tolerated");
        assert_eq!(by_whole(2_500, 1_000, 0, EVEN, &[]), Ok(3), "from zero");
        assert!(by_whole(2_000, 1_000, 3, EVEN, &[]).unwrap_err().contains("no pods returned"));
        assert_eq!(by_whole(i64::MAX, 1, 3, EVEN, &pods), Ok(i32::MAX));
        assert_eq!(by_share(7_000, 2_000, 3, EVEN), (4, 2_334));
        assert_eq!(by_share(6_100, 2_000, 3, EVEN), (3, 2_034), "tolerated");
        assert_eq!(by_share(7_000, 2_000, 0, EVEN).0, 4);
    }

    #[test]
    fn requests_are_of_all_containers_of_one_or_of_the_pod() {
        let pod = |spec: serde_json::Value| -> Vec<Arc<Pod>> {
            vec![Arc::new(serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())]
        };
        let container =
            |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = container("s", "50m");
        sidecar["restartPolicy"] = "Always".into();
        let spec = json!({"containers": [container("a", "100m"), container("b", "1")],
            "initContainers": [container("i", "9"), sidecar]});
        let of = |pods: &[Arc<Pod>], container| requests(pods, container, "cpu").map(|all| all["p"]);
        let both = pod(spec.clone());
        assert_eq!(of(&both, None), Ok(1_150));
        assert_eq!(of(&both, Some("b")), Ok(1_000));
        assert_eq!(of(&both, Some("z")), Err("container z not found in Pod p".into()));
        let mut lacking = spec.clone();
        lacking["containers"][1]["resources"] = json!({});
        assert_eq!(
            of(&pod(lacking.clone()), None),
            Err("missing request for cpu in container b of Pod p".into())
        );
        lacking["resources"] = json!({"requests": {"cpu": "3"}});
        assert_eq!(of(&pod(lacking.clone()), None), Ok(3_000), "the pod's own requests come first");
        lacking["resources"] = json!({"requests": {"memory": "3"}});
        assert_eq!(of(&pod(lacking), None), Ok(150));
        let none = pod(json!({"containers": [{"name": "a"}], "resources": {"requests": {"memory": "1"}}}));
        assert_eq!(of(&none, None), Err("missing pod-level request for cpu in Pod p".into()));
    }
}
