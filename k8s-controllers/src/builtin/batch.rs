//! Many writes at once, started slowly: a refusal (quota, admission) is met by one request, not by thousands.

use std::time::Duration;

use futures::future::join_all;
use k8s_core::{
    client::{Error as ApiError, ListParams},
    meta::{LabelSelector, Object, ObjectExt},
};

use crate::{Context, Error, context::PATIENCE};

/// How many pods one reconcile makes or deletes at most.
pub const BURST: usize = 500;

/// Calls `act` for every item in batches of 1, 2, 4, ... and stops after the first batch with a failure. Returns how many succeeded, and
/// the first failure.
pub async fn slow_start<T, F: Future<Output = Result<(), Error>>>(
    items: Vec<T>,
    act: impl Fn(T) -> F,
) -> (usize, Option<Error>) {
    let mut items = items.into_iter();
    let mut done = 0;
    let mut size = 1;
    loop {
        let batch: Vec<T> = items.by_ref().take(size).collect();
        if batch.is_empty() {
            return (done, None);
        }
        let mut failure = None;
        for result in join_all(batch.into_iter().map(&act)).await {
            match result {
                Ok(()) => done += 1,
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        if failure.is_some() {
            return (done, failure);
        }
        size *= 2;
    }
}

/// Whether nobody knows if a write happened: the answer was lost, or was not one.
#[must_use]
pub fn is_in_doubt(error: &Error) -> bool {
    let Error::Api(e) = error else { return false };
    matches!(e, ApiError::Transport { .. }) || e.status().is_some_and(|s| s.code() >= 500)
}

/// After a create that may have happened: waits until the cache has what is there now, so that the next look does not make it again.
pub async fn catch_up<T: Object>(cx: &Context, selector: &LabelSelector) {
    let params = ListParams::default().labels(selector.to_string());
    let api = cx.api::<T>(&cx.key().namespace);
    let caught_up = async {
        let mut delay = Duration::from_millis(50);
        let newest = loop {
            match api.list(&params).await {
                Ok(live) => break live.iter().map(ObjectExt::revision).max(),
                Err(e) => tracing::debug!(key = %cx.key(), error = %e, "not known what was made"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(5));
        };
        if let Some(newest) = newest {
            cx.caches().of::<T>().reached(newest).await;
        }
    };
    // Longer than that: too many may be made, and the surplus is deleted later.
    let _ = tokio::time::timeout(PATIENCE, caught_up).await;
}

/// Whether a create was refused because its namespace is going away: nothing to report, nothing to retry.
#[must_use]
pub fn is_namespace_terminating(error: &Error) -> bool {
    let Error::Api(e) = error else { return false };
    let causes = e.status().and_then(|s| s.status().details.as_ref()).and_then(|d| d.causes.as_ref());
    let named = causes.into_iter().flatten().any(|c| c.reason.as_deref() == Some("NamespaceTerminating"));
    named || (ApiError::is_forbidden(e) && e.to_string().contains("is being terminated"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn a_refusal_is_met_by_few_requests() {
        let seen = RefCell::new(Vec::new());
        let (done, failure) = slow_start((0..100).collect(), |n| {
            seen.borrow_mut().push(n);
            async move { if n == 2 { Err(Error::invalid("x", "no")) } else { Ok(()) } }
        })
        .await;
        assert_eq!((done, failure.is_some(), seen.borrow().len()), (2, true, 3));
        let (done, failure) = slow_start((0..100).collect(), |_: i32| async { Ok(()) }).await;
        assert_eq!((done, failure.is_none()), (100, true));
    }
}
