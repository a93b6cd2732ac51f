//! The door from errors of the store, of bodies and of preconditions to the Status that clients get.

use k8s_core::status::{ApiStatus, Reason};
use k8s_store::StoreError;

use crate::resources::Resource;

/// The kind of read whose revision is gone from the history.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Read {
    /// A list of a revision.
    List,
    /// Events after a revision, or anything else of the store.
    Events,
}

/// 410 Gone: the history no longer has the revision that a client asked for. The client lists again.
pub(crate) fn gone(read: Read, error: &dyn std::fmt::Display) -> ApiStatus {
    ApiStatus::expired(match read {
        Read::List => "The resourceVersion for the provided list is too old.".to_owned(),
        Read::Events => error.to_string(),
    })
}

/// 410 Gone for the next page of a list whose moment is gone. `token` continues with what is there now.
pub(crate) fn page_gone(token: String) -> ApiStatus {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
    ApiStatus::expired(message).continued_by(token)
}

/// The Status of a failed write to, or read of, the store: 409, 410, 503 or 500.
pub(crate) fn store_failure(resource: &Resource, name: &str, error: &StoreError) -> ApiStatus {
    match error {
        StoreError::Conflict { .. } => modified(resource, name),
        StoreError::Expired(_) => gone(Read::Events, error),
        StoreError::Unavailable(_) => unavailable(error),
        other => ApiStatus::of(Reason::InternalError, format!("Internal error occurred: {other}")),
    }
}

/// 503 for a write of which nothing is stored; the store writes again once its disk has room. Upstream
/// answers 500 over a full etcd, which clients do not retry.
pub(crate) fn unavailable(error: &StoreError) -> ApiStatus {
    ApiStatus::of(Reason::ServiceUnavailable, error.to_string()).retry_after(UNAVAILABLE_SECONDS)
}

/// Seconds until clients should try again while the store cannot write.
const UNAVAILABLE_SECONDS: i32 = 5;

/// 409 for a write that lost the optimistic lock.
pub(crate) fn modified(resource: &Resource, name: &str) -> ApiStatus {
    ApiStatus::conflict(
        &resource.group,
        &resource.plural,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )
}

/// 409 for a precondition on the uid that does not hold.
pub(crate) fn precondition(resource: &Resource, key: &str, name: &str, want: &str, have: &str) -> ApiStatus {
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{}/{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {want}, UID in object meta: {have}",
        resource.plural
    );
    ApiStatus::conflict(&resource.group, &resource.plural, name, &why)
}

/// 400 for an object of another namespace than the request's.
pub(crate) fn other_namespace() -> ApiStatus {
    ApiStatus::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    )
}
