//! From the decision to the bound pod: permit, pre-bind, bind, post-bind.

use std::time::Duration;

use k8s_controllers::{EventType, Recorder, involved};
use k8s_core::{api::api::core::v1::Pod, client::Error, meta::ObjectExt};
use tokio::time::Instant;

use crate::{
    Placement, Points, Reject,
    extender::{ExtenderError, Extenders},
    failures::Reason,
    queue::Attempt,
};

/// Longest time that plugins may delay a binding.
const LONGEST_PERMIT: Duration = Duration::from_secs(15 * 60);
/// First and longest time between questions to an API server that does not answer.
const ASK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Result of a bind task.
pub(super) struct Bound {
    pub(super) attempt: Attempt,
    pub(super) node: String,
    /// Start of the decision.
    pub(super) begun: Instant,
    pub(super) failure: Option<Failed>,
}

/// The reason for which a pod was not bound.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// A plugin refused the node.
    #[error("0/1 nodes are available: 1 {}.", reasons.join(", 1 "))]
    Refused { plugin: String, reasons: Vec<String> },
    /// A request of a plugin failed.
    #[error("running {point} plugin {plugin:?}: {error}")]
    Request { point: &'static str, plugin: String, error: Error },
    /// The extender that binds failed.
    #[error(transparent)]
    Extender(#[from] ExtenderError),
    /// All plugins left the pod to others.
    #[error("no plugin binds the pod")]
    NoBinder,
}

impl Failed {
    pub(super) fn refused(plugin: &str, reject: &Reject) -> Self {
        let reasons = reject.reasons.iter().map(ToString::to_string).collect();
        Failed::Refused { plugin: plugin.to_owned(), reasons }
    }

    /// Returns the reason of the pod's condition.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Failed::Refused { .. } => Reason::Unschedulable,
            Failed::Request { .. } | Failed::Extender(_) | Failed::NoBinder => Reason::SchedulerError,
        }
    }
}

/// Binds a pod with the plugins of its profile, or with the extender that binds.
pub(super) async fn bind(
    rows: &[Points],
    extenders: &Extenders,
    placement: &Placement,
    recorder: &Recorder,
) -> Result<(), Failed> {
    for row in rows {
        let Some(plugin) = &row.permit else { continue };
        let permit = tokio::time::timeout(LONGEST_PERMIT, plugin.permit(placement));
        let late = |_| {
            let name = &row.name;
            Reject::full(format!("rejected due to timeout after waiting {LONGEST_PERMIT:?} at plugin {name}"))
        };
        permit
            .await
            .unwrap_or_else(|e| Err(late(e)))
            .map_err(|reject| Failed::refused(&row.name, &reject))?;
    }
    let failed = |point, row: &Points| {
        let plugin = row.name.to_string();
        move |error| Failed::Request { point, plugin, error }
    };
    for (row, plugin) in rows.iter().filter_map(|row| Some((row, row.pre_bind.as_ref()?))) {
        plugin.pre_bind(placement).await.map_err(failed("PreBind", row))?;
    }
    let mut bound = match extenders.bind(&placement.pod, &placement.node).await {
        Err(_) if is_bound(placement).await => true,
        done => done?,
    };
    for (row, plugin) in rows.iter().filter_map(|row| Some((row, row.bind.as_ref()?))) {
        if bound {
            break;
        }
        bound = match plugin.bind(placement).await {
            Err(_) if is_bound(placement).await => true,
            done => done.map_err(failed("Bind", row))?,
        };
    }
    if !bound {
        return Err(Failed::NoBinder);
    }
    let message = format!("Successfully assigned {} to {}", placement.pod.key, placement.node);
    recorder.event(involved(&*placement.pod.pod), EventType::Normal, "Scheduled", message);
    for plugin in rows.iter().filter_map(|row| row.post_bind.as_ref()) {
        plugin.post_bind(placement).await;
    }
    Ok(())
}

/// Returns true if a pod whose binding failed is on its node: the answer may be lost, and the cache behind.
/// Else its room would be given to others. Asks until the API server answers.
async fn is_bound(placement: &Placement) -> bool {
    let pods = placement.client.namespaced::<Pod>(&placement.pod.key.namespace);
    let [mut wait, longest] = ASK_AGAIN;
    loop {
        match pods.get_opt(&placement.pod.key.name).await {
            Err(error) if error.is_transient() => {
                // Not all that wait at once.
                tokio::time::sleep(wait.mul_f64(k8s_core::random::range(0.5..1.0))).await;
                wait = (wait * 2).min(longest);
            }
            Err(_) | Ok(None) => return false,
            Ok(Some(live)) => {
                let node = live.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                return live.uid() == placement.pod.uid() && node == Some(placement.node.as_str());
            }
        }
    }
}
