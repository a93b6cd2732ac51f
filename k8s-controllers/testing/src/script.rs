//! What a pod does on a node that is not there.

use std::time::Duration;

use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};

use crate::node;

/// What becomes of a pod once it is bound to a node. Made by a function of the pod (`Lab::pods`), or from the pod's annotations.
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
    /// It starts at once, is ready, and runs until it is deleted.
    #[must_use]
    pub fn runs() -> Self {
        Script::default()
    }

    /// Its containers end with this code after so long; what follows is the pod's restart policy.
    #[must_use]
    pub fn exits(after: Duration, code: i32) -> Self {
        Script { end: Some((after, code)), ..Script::default() }
    }

    /// Its containers never start, for this reason (`ImagePullBackOff`).
    #[must_use]
    pub fn never_starts(reason: &str) -> Self {
        Script { stuck: Some(reason.to_owned()), ..Script::default() }
    }

    /// It takes so long to start.
    #[must_use]
    pub fn starts_after(mut self, latency: Duration) -> Self {
        self.start = latency;
        self
    }

    /// It is ready so long after it started.
    #[must_use]
    pub fn ready_after(mut self, latency: Duration) -> Self {
        self.ready = latency;
        self
    }

    /// So long after the step before, its readiness probe begins to say this.
    #[must_use]
    pub fn then_ready(mut self, after: Duration, ready: bool) -> Self {
        self.probes.push((after, ready));
        self
    }

    /// It takes so long to stop when it is deleted.
    #[must_use]
    pub fn stops_after(mut self, latency: Duration) -> Self {
        self.stop = latency;
        self
    }

    /// What a pod's annotations say.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let after = |name| pod.annotation(name).and_then(duration).unwrap_or_default();
        let code = pod.annotation(node::EXIT).and_then(|code| code.parse().ok());
        Script {
            start: after(node::START_AFTER),
            ready: after(node::READY_AFTER),
            end: code.map(|code| (after(node::RUN_FOR), code)),
            stop: after(node::STOP_AFTER),
            stuck: pod.annotation(node::STUCK).map(str::to_owned),
            probes: Vec::new(),
        }
    }
}

/// `90s`, `5m`, `2h`, `300ms`.
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
        let texts = [(node::EXIT, "3"), (node::RUN_FOR, "2h"), (node::START_AFTER, "1500ms")];
        pod.metadata.annotations = Some(texts.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let wanted = Script::exits(Duration::from_secs(7200), 3).starts_after(Duration::from_millis(1500));
        assert_eq!(Script::of(&pod), wanted);
        assert_eq!([duration("5"), duration("x"), duration("5y"), duration("")], [None; 4]);
    }
}
