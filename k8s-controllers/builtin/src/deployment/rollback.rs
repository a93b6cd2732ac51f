//! Rollback through the API of the oldest clients: `rollbackTo` of extensions/v1beta1, stored as an
//! annotation. (`kubectl rollout undo` patches the template itself.)

use k8s_core::{api::api::apps::v1::Deployment, meta::ObjectExt};

use super::replica_sets::{self, Sets};
use k8s_controllers::{Action, Context, Error, EventType};

pub(super) const ANNOTATION: &str = "deprecated.deployment.rollback.to";

/// Returns the requested revision; 0 means the previous one.
pub(super) fn requested(deployment: &Deployment) -> Option<i64> {
    deployment.annotation(ANNOTATION)?.parse().ok()
}

/// Restores the template of the requested revision and removes the request.
pub(super) async fn perform(
    cx: &Context,
    deployment: &Deployment,
    sets: &Sets,
    wanted: i64,
) -> Result<Action, Error> {
    let revision = if wanted == 0 { before_last(sets) } else { Some(wanted) };
    let target = revision.and_then(|r| sets.all().find(|s| replica_sets::revision(s) == r));
    let mut next = deployment.clone();
    if let Some(annotations) = &mut next.metadata.annotations {
        annotations.remove(ANNOTATION);
    }
    let (kind, reason, message) = match target {
        None if wanted == 0 => {
            (EventType::Warning, "DeploymentRollbackRevisionNotFound", "Unable to find last revision.".into())
        }
        None => (
            EventType::Warning,
            "DeploymentRollbackRevisionNotFound",
            "Unable to find the revision to rollback to.".into(),
        ),
        Some(set) if replica_sets::same_template(deployment, set) => {
            let message = format!(
                "The rollback revision contains the same template as current deployment {:?}",
                deployment.name()
            );
            (EventType::Warning, "DeploymentRollbackTemplateUnchanged", message)
        }
        Some(set) => {
            next.spec.get_or_insert_default().template = replica_sets::original_template(set);
            replica_sets::take_back_annotations(&mut next, set);
            let message = format!(
                "Rolled back deployment {:?} to revision {}",
                deployment.name(),
                replica_sets::revision(set)
            );
            (EventType::Normal, "DeploymentRollback", message)
        }
    };
    cx.replace(&next).await?;
    cx.event(deployment, kind, reason, message);
    Ok(Action::await_change())
}

/// Returns the second highest revision.
fn before_last(sets: &Sets) -> Option<i64> {
    let mut all: Vec<i64> = sets.all().map(|s| replica_sets::revision(s)).collect();
    all.sort_unstable();
    all.iter().rev().nth(1).copied()
}
