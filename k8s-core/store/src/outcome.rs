//! Expectations of writes, and their failures.

/// A backend that could not do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// A write or an exact read that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object is not in the state that the writer expects. Read again and retry.
    #[error("{key} is at {have:?}")]
    Conflict {
        /// The object: `namespace/name`, or the name alone.
        key: String,
        /// Its revision; `None`: it is not there.
        have: Option<u64>,
    },
    /// The backend cannot write, and nothing was written. Retryable: the store writes again within seconds
    /// after the cause is gone.
    #[error("the store cannot write: {0}")]
    Unavailable(String),
    /// The requested revision is no longer in history.
    #[error("revision {0} is no longer in history")]
    Expired(u64),
}

/// The state that a writer expects.
///
/// ```
/// use k8s_store::{Expect, Meta, Store, StoreError};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = Store::memory();
/// let put = |expect| store.put("configmaps", "default/a", expect, Meta::default(), |_| "{}".into());
/// let first = put(Expect::Absent).await?;
/// let second = put(Expect::Revision(first.revision)).await?;
/// // The first revision is not the newest any more.
/// let late = put(Expect::Revision(first.revision)).await;
/// assert!(matches!(late, Err(StoreError::Conflict { have, .. }) if have == Some(second.revision)));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The object does not exist: the write creates it.
    Absent,
    /// The object's last write had this revision: the optimistic lock.
    Revision(u64),
}
