//! Stored objects that decide about credentials.

use k8s_core::clock::Clock;
use k8s_store::{Store, Stored};
use std::sync::Arc;

use super::tokens::{Lookup, TokenIssuer};

/// Seconds that a token stays valid after the object it depends on was marked as deleted, as upstream's
/// leeway for clock skew.
const DELETION_LEEWAY: i64 = 60;

/// The server's objects, time and keys.
pub(crate) struct Evidence<'a> {
    pub(crate) store: &'a Store,
    pub(crate) clock: &'a Clock,
    pub(crate) issuer: &'a TokenIssuer,
}

impl Evidence<'_> {
    /// Returns the time in seconds since 1970.
    pub(super) fn now(&self) -> i64 {
        self.clock.now().as_second()
    }

    fn is_deleted_before(stored: &Arc<Stored>, before: i64) -> bool {
        let place = k8s_core::json::find(&stored.json, &["metadata", "deletionTimestamp"]);
        let Some(place) = place else { return false };
        let since = serde_json::from_slice::<jiff::Timestamp>(&stored.json[place]);
        since.is_ok_and(|since| since.as_second() < before)
    }
}

impl Lookup for Evidence<'_> {
    /// Returns true if an object exists with this uid and was not marked as deleted before the leeway.
    fn is_alive(&self, resource: &str, key: &str, uid: &str) -> bool {
        let stored = self.store.get(resource, key).filter(|s| *s.uid == *uid);
        stored.is_some_and(|stored| !Self::is_deleted_before(&stored, self.now() - DELETION_LEEWAY))
    }
}
