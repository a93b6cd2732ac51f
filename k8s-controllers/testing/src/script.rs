//! Scripted life of a simulated pod.

use std::time::Duration;

use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};

/// Pod annotation: exit code of the containers, which exit at once or after [`RUN_FOR`].
pub const EXIT: &str = "k8s-testing/exit-code";
/// Pod annotation: running time of containers that exit (`90s`, `5m`, `2h`).
pub const RUN_FOR: &str = "k8s-testing/run-for";
/// Pod annotation: time from binding to start.
pub const START_AFTER: &str = "k8s-testing/start-after";
/// Pod annotation: time from start to readiness.
pub const READY_AFTER: &str = "k8s-testing/ready-after";
/// Pod annotation: time from deletion to the end.
pub const STOP_AFTER: &str = "k8s-testing/stop-after";
/// Pod annotation: waiting reason of a pod that never starts (`ImagePullBackOff`).
pub const STUCK: &str = "k8s-testing/stuck";

/// The life of a pod after binding. Returned by a function of the pod (`Lab::pods`), or read from the pod's
/// annotations.
///
/// ```
/// use std::time::Duration;
/// use k8s_core::api::{Job, Pod};
/// use k8s_testing::{Lab, Script, controllers::job};
/// use serde_json::json;
///
/// // Pods of the Job end after a minute; all others run.
/// let script = |pod: &Pod| match pod.metadata.labels.iter().flatten().any(|(key, _)| key == "job-name") {
///     true => Script::exits(Duration::from_secs(60), 0).starts_after(Duration::from_secs(5)),
///     false => Script::runs(),
/// };
/// Lab::new().controllers([job()]).nodes(1).pods(script).run(async |lab| {
///     let pods = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
///     let job = json!({"metadata": {"name": "once"}, "spec": {"template": {"spec": pods}}});
///     lab.create_from::<Job>(job).await;
///     lab.settle().await;
///     let once: Job = lab.get("once").await;
///     assert_eq!(once.status.and_then(|s| s.succeeded), Some(1));
/// });
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    pub(crate) start: Duration,
    pub(crate) ready: Duration,
    pub(crate) probes: Vec<(Duration, bool)>,
    pub(crate) end: Option<(Duration, i32)>,
    pub(crate) stop: Duration,
    pub(crate) stuck: Option<String>,
}

impl Script {
    /// Starts at once, is ready, and runs until it is deleted.
    #[must_use]
    pub fn runs() -> Self {
        Script::default()
    }

    /// Its containers exit with `code` after `after`; then the restart policy applies.
    #[must_use]
    pub fn exits(after: Duration, code: i32) -> Self {
        Script { end: Some((after, code)), ..Script::default() }
    }

    /// Its containers never start, with this waiting reason (`ImagePullBackOff`).
    #[must_use]
    pub fn never_starts(reason: &str) -> Self {
        Script { stuck: Some(reason.to_owned()), ..Script::default() }
    }

    /// Delays the start.
    #[must_use]
    pub fn starts_after(mut self, latency: Duration) -> Self {
        self.start = latency;
        self
    }

    /// Delays readiness after the start.
    #[must_use]
    pub fn ready_after(mut self, latency: Duration) -> Self {
        self.ready = latency;
        self
    }

    /// Adds a step: after a delay from the previous one, the readiness probe returns this result.
    #[must_use]
    pub fn then_ready(mut self, after: Duration, ready: bool) -> Self {
        self.probes.push((after, ready));
        self
    }

    /// Delays the end after deletion.
    #[must_use]
    pub fn stops_after(mut self, latency: Duration) -> Self {
        self.stop = latency;
        self
    }

    /// Reads the script from a pod's annotations.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let after = |name| pod.annotation(name).and_then(duration).unwrap_or_default();
        let code = pod.annotation(EXIT).and_then(|code| code.parse().ok());
        Script {
            start: after(START_AFTER),
            ready: after(READY_AFTER),
            end: code.map(|code| (after(RUN_FOR), code)),
            stop: after(STOP_AFTER),
            stuck: pod.annotation(STUCK).map(str::to_owned),
            probes: Vec::new(),
        }
    }
}

/// Parses `90s`, `5m`, `2h`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..at].parse().ok()?;
    Some(match &text[at..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_make_a_script() {
        let mut pod = Pod::default();
        assert_eq!(Script::of(&pod), Script::runs());
        let texts = [(EXIT, "3"), (RUN_FOR, "2h"), (START_AFTER, "1500ms")];
        pod.metadata.annotations = Some(texts.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let wanted = Script::exits(Duration::from_secs(7200), 3).starts_after(Duration::from_millis(1500));
        assert_eq!(Script::of(&pod), wanted);
        assert_eq!([duration("5"), duration("x"), duration("5y"), duration("")], [None; 4]);
    }
}
