//! Stored objects that decide about credentials.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::tz::TimeZone;
use k8s_core::clock::Clock;
use k8s_store::{Store, Stored};
use serde_json::Value;

use super::{
    constant_time::{hashed, same},
    token_uses::TokenUses,
    tokens::{Lookup, TokenIssuer},
};
use crate::value::str_at;

/// Seconds that a token stays valid after the object it depends on was marked as deleted, as upstream's
/// leeway for clock skew.
const DELETION_LEEWAY: i64 = 60;

/// Label of the Secrets of tokens that were found to be unused.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Label with the day on which a Secret's token was last used.
pub(crate) const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";

/// A decoded Secret.
pub(super) struct SecretData(Value);

impl SecretData {
    /// Returns true if the Secret is being deleted.
    pub(super) fn is_deleted(&self) -> bool {
        !str_at(&self.0, "/metadata/deletionTimestamp").is_empty()
    }

    /// Returns the Secret's type.
    pub(super) fn kind(&self) -> &str {
        str_at(&self.0, "/type")
    }

    /// Returns a label; empty if it is absent.
    fn label(&self, key: &str) -> &str {
        let labels = self.0.pointer("/metadata/labels");
        labels.and_then(|labels| labels.get(key)).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns an entry of the data; empty if it is absent.
    pub(super) fn bytes(&self, key: &str) -> Vec<u8> {
        let entry = self.0.get("data").and_then(|data| data.get(key)).and_then(Value::as_str);
        STANDARD.decode(entry.unwrap_or_default()).unwrap_or_default()
    }

    /// Returns an entry of the data as text.
    pub(super) fn text(&self, key: &str) -> String {
        String::from_utf8(self.bytes(key)).unwrap_or_default()
    }
}

/// The server's objects, time and keys.
pub(crate) struct Evidence<'a> {
    pub(crate) store: &'a Store,
    pub(crate) clock: &'a Clock,
    pub(crate) issuer: &'a TokenIssuer,
    pub(crate) uses: &'a TokenUses,
}

impl Evidence<'_> {
    /// Returns the time in seconds since 1970.
    pub(super) fn now(&self) -> i64 {
        self.clock.now().as_second()
    }

    /// Returns a Secret by namespace and name.
    pub(super) fn secret(&self, key: &str) -> Option<SecretData> {
        let stored = self.store.get("secrets", key)?;
        serde_json::from_slice(&stored.json).ok().map(SecretData)
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

    /// Returns true if a Secret that is not being deleted holds this token, and is not marked as invalid. A
    /// use is recorded once a day, that of an invalid token, too.
    fn holds_token(&self, key: &str, token: &str) -> bool {
        let Some(secret) = self.secret(key) else { return false };
        if secret.is_deleted() || !same(&hashed(&secret.bytes("token")), &hashed(token.as_bytes())) {
            return false;
        }
        let today = self.clock.now().to_zoned(TimeZone::UTC).date();
        // Another server's clock may be ahead.
        let recent = [Some(today), today.tomorrow().ok()].into_iter().flatten();
        if !recent.map(|day| day.to_string()).any(|day| day == secret.label(LAST_USED)) {
            self.uses.note(key);
        }
        secret.label(INVALID_SINCE).is_empty()
    }
}
