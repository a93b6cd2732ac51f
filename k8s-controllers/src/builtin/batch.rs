//! Many writes at once, started slowly: a refusal (quota, admission) is met by one request, not by thousands.

use futures::future::join_all;
use k8s_core::client::Error as ApiError;

use crate::Error;

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
