//! From the decision to the bound pod: permit, pre-bind, bind, post-bind.

use std::{sync::Arc, time::Duration};

use k8s_controllers::{EventType, Recorder, involved};
use k8s_core::client::Error;
use tokio::time::Instant;

use crate::{Placement, Points, queue::Attempt};

/// Longest time that plugins may delay a binding.
const LONGEST_PERMIT: Duration = Duration::from_secs(15 * 60);

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
    /// A plugin refused it.
    #[error("{reasons}")]
    Refused { plugin: String, reasons: String },
    /// A request failed.
    #[error("{0}")]
    Request(#[from] Error),
}

/// Binds a pod with the plugins of its profile.
pub(super) async fn bind(
    rows: Arc<Vec<Points>>,
    placement: &Placement,
    recorder: &Recorder,
) -> Result<(), Failed> {
    for row in rows.iter() {
        let Some(plugin) = &row.permit else { continue };
        let refused = |reasons: String| Failed::Refused { plugin: row.name.to_string(), reasons };
        match tokio::time::timeout(LONGEST_PERMIT, plugin.permit(placement)).await {
            Ok(Ok(())) => {}
            Ok(Err(reject)) => return Err(refused(reject.reasons.join(", "))),
            Err(_) => {
                return Err(refused(format!(
                    "rejected due to timeout after waiting {LONGEST_PERMIT:?} at plugin {}",
                    row.name
                )));
            }
        }
    }
    for plugin in rows.iter().filter_map(|row| row.pre_bind.as_ref()) {
        plugin.pre_bind(placement).await?;
    }
    let mut bound = false;
    for plugin in rows.iter().filter_map(|row| row.bind.as_ref()) {
        bound = plugin.bind(placement).await?;
        if bound {
            break;
        }
    }
    if !bound {
        let reasons = "no plugin binds the pod".to_owned();
        return Err(Failed::Refused { plugin: "bind".into(), reasons });
    }
    let message = format!("Successfully assigned {} to {}", placement.pod.key, placement.node);
    recorder.event(involved(&*placement.pod.pod), EventType::Normal, "Scheduled", message);
    for plugin in rows.iter().filter_map(|row| row.post_bind.as_ref()) {
        plugin.post_bind(placement).await;
    }
    Ok(())
}
