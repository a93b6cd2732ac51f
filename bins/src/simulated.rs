//! The containers of simulated nodes: their start, and their end by the annotations of their pods.

use std::{collections::BTreeMap, time::Duration};

use k8s_runtime::simulated::{Behavior, Simulated};

use crate::duration;

/// Pod annotation: duration of a container's start (`2s`). Default: `--simulated-start-delay`.
const START_AFTER: &str = "k8s-testing/start-after";
/// Pod annotation: exit code of the containers, which exit at once or after [`RUN_FOR`].
const EXIT: &str = "k8s-testing/exit-code";
/// Pod annotation: running time of containers that exit.
const RUN_FOR: &str = "k8s-testing/run-for";

/// Returns the runtime of a simulated node. The annotations are those of k8s-testing.
pub(crate) fn runtime(start_delay: Duration) -> Simulated {
    Simulated::scripted(move |sandbox, _| {
        behavior(&sandbox.annotations, start_delay)
            // The pod's status tells.
            .unwrap_or_else(|error| Behavior { start_error: Some(error), ..Behavior::default() })
    })
}

/// Reads the annotations of a pod.
///
/// # Errors
/// The annotation that is not valid.
fn behavior(annotations: &BTreeMap<String, String>, start_delay: Duration) -> Result<Behavior, String> {
    let time = |name: &str| {
        let text = annotations.get(name);
        let parsed = text.map(|text| duration::parse(text)).transpose();
        parsed.map_err(|e| format!("annotation {name}: {e}"))
    };
    let code = annotations.get(EXIT).map(|code| code.parse()).transpose();
    let code: Option<i32> = code.map_err(|_| format!("annotation {EXIT} is no exit code"))?;
    Ok(Behavior {
        start_latency: time(START_AFTER)?.unwrap_or(start_delay),
        exit: match (time(RUN_FOR)?, code) {
            (after, Some(code)) => Some((after.unwrap_or_default(), code)),
            (_, None) => None,
        },
        ..Behavior::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_come_before_the_default() {
        let delay = Duration::from_secs(2);
        let of = |pairs: &[(&str, &str)]| {
            behavior(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), delay)
        };
        assert_eq!(of(&[]), Ok(Behavior { start_latency: delay, ..Behavior::default() }));
        let soon = of(&[(START_AFTER, "5ms"), (EXIT, "3"), (RUN_FOR, "1m")]).unwrap();
        assert_eq!(
            (soon.start_latency, soon.exit),
            (Duration::from_millis(5), Some((Duration::from_secs(60), 3)))
        );
        assert!(of(&[(START_AFTER, "soon")]).unwrap_err().contains("k8s-testing/start-after"));
        assert!(of(&[(EXIT, "bad")]).unwrap_err().contains("k8s-testing/exit-code"));
    }
}
