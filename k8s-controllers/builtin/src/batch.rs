//! Batched writes with slow start: if a quota or admission rejects them, one request fails instead of
//! thousands.

use std::{sync::Arc, time::Duration};

use k8s_core::{
    client::{Error as ApiError, ListParams},
    meta::{LabelSelector, Object, ObjectExt},
};

use tokio::task::JoinSet;
use tracing::Instrument;

use k8s_controllers::{Context, Error};

/// Maximum number of pods that one reconcile creates or deletes.
pub const BURST: usize = 500;

/// Calls `act` for every item in batches of 1, 2, 4, ... and stops after the first batch with a failure.
/// Returns the number of successes and the first failure. The calls of a batch run on all threads; dropping
/// the future cancels them.
pub async fn slow_start<K, T, F>(
    cx: &Context,
    owner: &Arc<K>,
    items: Vec<T>,
    act: impl Fn(Arc<Context>, Arc<K>, T) -> F,
) -> (usize, Option<Error>)
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let cx = Arc::new(cx.clone());
    in_batches(items, |item| act(cx.clone(), owner.clone(), item)).await
}

async fn in_batches<T, F>(items: Vec<T>, act: impl Fn(T) -> F) -> (usize, Option<Error>)
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let mut items = items.into_iter();
    let (mut done, mut size) = (0, 1);
    loop {
        let mut batch = JoinSet::new();
        for item in items.by_ref().take(size) {
            batch.spawn(act(item).in_current_span());
        }
        if batch.is_empty() {
            return (done, None);
        }
        let mut failure = None;
        while let Some(ended) = batch.join_next().await {
            match ended {
                Ok(Ok(())) => done += 1,
                Ok(Err(e)) => failure = failure.or(Some(e)),
                // Resumes the panic here, where the controller isolates it.
                Err(e) => match e.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => unreachable!("nobody but this function's end cancels them"),
                },
            }
        }
        if failure.is_some() {
            return (done, failure);
        }
        size *= 2;
    }
}

/// Returns true if it is unknown whether a write took effect: the response was lost or unreadable.
#[must_use]
pub fn is_in_doubt(error: &Error) -> bool {
    let Error::Api(e) = error else { return false };
    matches!(e, ApiError::Transport { .. }) || e.status().is_some_and(|s| s.code() >= 500)
}

/// Call after a create with unknown outcome: holds the key until the cache has the live objects, so that the
/// next reconcile does not create them again.
pub fn catch_up<T: Object>(cx: &Context, selector: &LabelSelector) {
    let params = ListParams::default().labels(selector.to_string());
    let (api, cache, key) = (cx.api::<T>(&cx.key().namespace), cx.caches().of::<T>(), cx.key().clone());
    cx.hold(async move {
        let mut delay = Duration::from_millis(50);
        let newest = loop {
            match api.list(&params).await {
                Ok(live) => break live.iter().map(ObjectExt::revision).max(),
                Err(e) => tracing::debug!(%key, error = %e, "the outcome of a create is unknown"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(5));
        };
        if let Some(newest) = newest {
            cache.reached(newest).await;
        }
    });
}

/// Returns true if a create was rejected because its namespace is terminating. Nothing to report or retry.
#[must_use]
pub fn is_namespace_terminating(error: &Error) -> bool {
    error.is_namespace_terminating()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_refusal_is_met_by_few_requests() {
        let seen = Mutex::new(Vec::new());
        let (done, failure) = in_batches((0..100).collect(), |n| {
            seen.lock().unwrap().push(n);
            async move { if n == 2 { Err(Error::invalid("x", "no")) } else { Ok(()) } }
        })
        .await;
        assert_eq!((done, failure.is_some(), seen.into_inner().unwrap().len()), (2, true, 3));
        let (done, failure) = in_batches((0..100).collect(), |_: i32| async { Ok(()) }).await;
        assert_eq!((done, failure.is_none()), (100, true));
    }

    #[tokio::test]
    async fn a_panic_in_one_of_them_is_the_callers() {
        let all = in_batches((0..10).collect(), |n: i32| async move {
            assert_ne!(n, 5, "the sixth");
            Ok(())
        });
        let panic = tokio::spawn(all).await.unwrap_err().into_panic();
        assert!(panic.downcast_ref::<String>().unwrap().contains("the sixth"));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_dropped_takes_them_along() {
        let (alive, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let all = in_batches(vec![alive], |alive| async move {
            std::future::pending::<()>().await;
            drop(alive);
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), all).await.is_err());
        assert_eq!(ended.recv().await, None);
    }
}
