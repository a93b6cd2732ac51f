//! Scripted life of a simulated pod.

use std::time::Duration;

use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};

use crate::duration;

/// Pod annotation: exit code of the containers, which exit at once or after [`RUN_FOR`].
pub const EXIT: &str = "k8s-testing/exit-code";
/// Pod annotation: running time of containers that exit (`90s`, `1m30s`, `2h`).
pub const RUN_FOR: &str = "k8s-testing/run-for";
/// Pod annotation: time from binding to start.
pub const START_AFTER: &str = "k8s-testing/start-after";
/// Pod annotation: time from start to readiness.
pub const READY_AFTER: &str = "k8s-testing/ready-after";
/// Pod annotation: time from deletion to the end, at most the pod's grace period.
pub const STOP_AFTER: &str = "k8s-testing/stop-after";
/// Pod annotation: waiting reason of a pod that never starts (`ImagePullBackOff`).
pub const STUCK: &str = "k8s-testing/stuck";

/// The life of a pod after binding. Returned by a function of the pod, or read from the pod's annotations.
///
/// ```
/// use std::time::Duration;
/// use k8s_core::{api::Pod, meta::ObjectExt};
/// use k8s_simulated::Script;
///
/// // Pods of Jobs end after a minute; all others run.
/// let script = |pod: &Pod| match pod.label("job-name") {
///     Some(_) => Script::exits(Duration::from_secs(60), 0).starts_after(Duration::from_secs(5)),
///     None => Script::runs(),
/// };
/// assert_eq!(script(&Pod::default()), Script::runs());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    pub(crate) start: Duration,
    pub(crate) ready: Duration,
    pub(crate) probes: Vec<(Duration, bool)>,
    pub(crate) end: Option<(Duration, i32)>,
    pub(crate) stop: Duration,
    pub(crate) stuck: Option<String>,
    /// Message of a start that fails.
    pub(crate) broken: Option<String>,
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

    /// Its containers exit so, unless the script has an exit already or they never start.
    #[must_use]
    pub fn or_exits(mut self, after: Duration, code: i32) -> Self {
        self.end = self.end.or(Some((after, code)));
        self
    }

    /// Its containers never start, with this waiting reason (`ImagePullBackOff`).
    #[must_use]
    pub fn never_starts(reason: &str) -> Self {
        Script { stuck: Some(reason.to_owned()), ..Script::default() }
    }

    /// The start of its containers fails with this message; then the restart policy applies.
    #[must_use]
    pub fn fails_to_start(message: &str) -> Self {
        Script { broken: Some(message.to_owned()), ..Script::default() }
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

    /// Delays the end after deletion, at most by the pod's grace period.
    #[must_use]
    pub fn stops_after(mut self, latency: Duration) -> Self {
        self.stop = latency;
        self
    }

    /// Reads the script from a pod's annotations.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Script::annotated(pod, Duration::ZERO)
    }

    /// As [`Script::of`], with the delay of the start of pods that have no annotation for it. An annotation
    /// that is not valid makes the start fail; the pod's status tells.
    #[must_use]
    pub fn annotated(pod: &Pod, start: Duration) -> Self {
        if pod.metadata.annotations.is_none() {
            return Script::runs().starts_after(start);
        }
        Script::read(pod, start).unwrap_or_else(|message| Script::fails_to_start(&message))
    }

    fn read(pod: &Pod, start: Duration) -> Result<Self, String> {
        let time = |name: &str| {
            let parsed = pod.annotation(name).map(duration::parse).transpose();
            parsed.map_err(|e| format!("annotation {name}: {e}"))
        };
        let code = pod.annotation(EXIT).map(str::parse).transpose();
        let code: Option<i32> = code.map_err(|_| format!("annotation {EXIT} is no exit code"))?;
        let run_for = time(RUN_FOR)?.unwrap_or_default();
        Ok(Script {
            start: time(START_AFTER)?.unwrap_or(start),
            ready: time(READY_AFTER)?.unwrap_or_default(),
            end: code.map(|code| (run_for, code)),
            stop: time(STOP_AFTER)?.unwrap_or_default(),
            stuck: pod.annotation(STUCK).map(str::to_owned),
            probes: Vec::new(),
            broken: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(pairs: &[(&str, &str)]) -> Pod {
        let mut pod = Pod::default();
        pairs.iter().for_each(|(key, value)| pod.set_annotation(key, value));
        pod
    }

    #[test]
    fn annotations_make_a_script() {
        assert_eq!(Script::of(&Pod::default()), Script::runs());
        let pod = annotated(&[(EXIT, "3"), (RUN_FOR, "2h"), (START_AFTER, "1500ms")]);
        let wanted = Script::exits(Duration::from_secs(7200), 3).starts_after(Duration::from_millis(1500));
        assert_eq!(Script::of(&pod), wanted);
    }

    #[test]
    fn annotations_come_before_the_default() {
        let delay = Duration::from_secs(2);
        assert_eq!(Script::annotated(&Pod::default(), delay), Script::runs().starts_after(delay));
        let other = annotated(&[("a", "b")]);
        assert_eq!(Script::annotated(&other, delay), Script::runs().starts_after(delay));
        let soon = Script::annotated(&annotated(&[(START_AFTER, "5ms")]), delay);
        assert_eq!(soon.start, Duration::from_millis(5));
    }

    #[test]
    fn an_annotation_that_is_not_valid_is_told() {
        let told = |pairs: &[(&str, &str)]| Script::of(&annotated(pairs)).broken.unwrap_or_default();
        assert!(told(&[(START_AFTER, "soon")]).contains("annotation k8s-testing/start-after: \"soon\""));
        assert_eq!(told(&[(EXIT, "bad")]), "annotation k8s-testing/exit-code is no exit code");
    }
}
