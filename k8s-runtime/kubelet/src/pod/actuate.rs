//! Carries out a resize on the runtime's cgroups.

use k8s_runtime::{ContainerId, RuntimeError};

use super::resize::{Plan, Resized, Step};
use crate::context::Context;

/// Carries out a plan. It stops at the first step that fails. Nothing is done if a memory limit would be
/// below what is used.
pub(crate) async fn resize(cx: &Context, plan: Plan) -> Resized {
    let mut done = Vec::new();
    if let Err(error) = check_usage(cx, &plan).await {
        return Resized { done, error: Some(error) };
    }
    for step in plan.steps {
        let result = match (&step, &plan.sandbox) {
            (Step::Pod(resources), Some(sandbox)) => cx.runtime.update_sandbox(sandbox, resources).await,
            (Step::Pod(_), None) => Ok(()),
            (Step::Container { id, resources, requests }, _) => {
                match cx.runtime.update(id, resources, *requests).await {
                    // It has ended. Its next instance gets the new size at its start.
                    Err(RuntimeError::NotFound { .. }) => Ok(()),
                    other => other,
                }
            }
        };
        match result {
            Ok(()) => done.push(step),
            Err(e) => return Resized { done, error: Some(e.to_string()) },
        }
    }
    Resized { done, error: None }
}

/// Refuses memory limits below the present usage: the kernel would kill for them.
async fn check_usage(cx: &Context, plan: &Plan) -> Result<(), String> {
    let mut errors = Vec::new();
    if let Some(limit) = plan.lower_pod {
        let mut used = 0_u64;
        for id in &plan.running {
            used = used.saturating_add(usage(cx, id).await.unwrap_or(0));
        }
        if is_above(used, limit) {
            errors.push(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"));
        }
    }
    for (name, id, limit) in &plan.lower {
        match usage(cx, id).await {
            None => errors.push(format!("missing container {name:?} memory usage")),
            Some(used) if is_above(used, *limit) => errors.push(format!(
                "attempting to set container {name:?} memory limit ({limit}) below current usage ({used})"
            )),
            Some(_) => {}
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(format!("cannot decrease memory limits: {one}")),
        all => Err(format!("cannot decrease memory limits: [{}]", all.join(", "))),
    }
}

/// Returns the memory that a container uses, bytes.
async fn usage(cx: &Context, id: &ContainerId) -> Option<u64> {
    cx.runtime.stats(id).await.ok().map(|stats| stats.memory_bytes)
}

fn is_above(used: u64, limit: i64) -> bool {
    u64::try_from(limit).is_ok_and(|limit| used >= limit)
}
