//! Deletes finished Jobs after `ttlSecondsAfterFinished`.

use std::{sync::Arc, time::Duration};

use k8s_core::{api::api::batch::v1::Job, client::DeleteOptions, meta::ObjectExt};

use crate::conditions;
use k8s_controllers::{Action, Context, Error, Reconcile};

pub(super) struct TtlAfterFinished;

impl Reconcile for TtlAfterFinished {
    type Kind = Job;

    async fn reconcile(&self, cx: &Context, job: Arc<Job>) -> Result<Action, Error> {
        let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
        let Some(ttl) = ttl.and_then(|t| u64::try_from(t).ok()).filter(|_| !job.is_deleting()) else {
            return Ok(Action::await_change());
        };
        let all = job.status.as_ref().and_then(|s| s.conditions.as_ref());
        let end = ["Complete", "Failed"].iter().find_map(|kind| {
            conditions::find(all, kind).filter(|c| c.status == "True")?.last_transition_time.as_ref()
        });
        let Some(end) = end else { return Ok(Action::await_change()) };
        let left = Duration::from_secs(ttl).saturating_sub(cx.clock().since(end.0));
        if !left.is_zero() {
            return Ok(Action::requeue_after(left));
        }
        let options =
            DeleteOptions { propagation_policy: Some("Foreground".into()), ..DeleteOptions::default() };
        cx.delete(&*job, options).await?;
        Ok(Action::await_change())
    }
}
