//! The revision of a list: `resourceVersion`, `resourceVersionMatch` and continue tokens.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::StatusCause,
    status::{ApiStatus, Reason},
};
use k8s_store::Store;
use serde::{Deserialize, Serialize};

use crate::{call::Call, invalid::FieldErrors};

/// A continue token: the position in a paged list. Opaque for clients.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Continue {
    v: Form,
    /// Revision of all pages; negative: the newest of each page, so that the list is not consistent.
    #[serde(rename = "rv")]
    revision: i64,
    /// Last key of the previous page.
    #[serde(rename = "start")]
    pub(super) after: String,
    /// Number of objects in the previous pages.
    #[serde(rename = "n")]
    pub(super) given: usize,
}

/// Format version of the token.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
enum Form {
    #[serde(rename = "meta.k8s.io/v1")]
    V1,
}

impl Continue {
    pub(super) fn new(revision: u64, after: &str, given: usize) -> Self {
        let revision = i64::try_from(revision).unwrap_or(i64::MAX);
        Continue { v: Form::V1, revision, after: after.to_owned(), given }
    }

    /// The token of the same page, of what is there now.
    pub(super) fn inconsistent(&self) -> Self {
        Continue { v: Form::V1, revision: -1, after: self.after.clone(), given: self.given }
    }

    /// Returns the revision of the page; `None`: the newest.
    pub(super) fn revision(&self) -> Option<u64> {
        u64::try_from(self.revision).ok()
    }

    /// Decodes a token of [`Continue::encode`].
    ///
    /// # Errors
    /// 400 for any other text.
    pub(super) fn decode(token: &str) -> Result<Self, ApiStatus> {
        let bad = |why: String| {
            ApiStatus::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = B64.decode(token).map_err(|e| bad(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| match bytes.first() {
            Some(first) if *first != b'{' => {
                bad(format!("invalid character {:?} looking for beginning of value", char::from(*first)))
            }
            _ => bad(e.to_string()),
        })
    }

    pub(super) fn encode(&self) -> String {
        // Numbers and strings always encode as JSON.
        B64.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// The state that a list returns.
#[derive(Debug, PartialEq)]
pub(super) enum Moment {
    /// No `resourceVersion`: the state at the time of the request.
    Newest,
    /// Exactly the state at this revision.
    Exact(u64),
    /// The next page of a list.
    Next(Continue),
}

/// Returns the state that a list request asks for.
///
/// # Errors
/// 400 or 422 for invalid options, 504 for a revision in the future.
pub(super) fn of_list(call: &Call, store: &Store) -> Result<Moment, ApiStatus> {
    let (version, matching, token) = (
        call.query.get("resourceVersion"),
        call.query.get("resourceVersionMatch"),
        call.query.get("continue"),
    );
    let mut errors = FieldErrors::default();
    if !matching.is_empty() {
        if version.is_empty() {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        } else if !token.is_empty() {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            );
        } else if !["Exact", "NotOlderThan"].contains(&matching) {
            errors.not_supported("resourceVersionMatch", matching, &["Exact", "NotOlderThan"]);
        } else if matching == "Exact" && version == "0" {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
    }
    if call.query.has("sendInitialEvents") {
        errors.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    if !errors.is_empty() {
        return Err(errors.into_status("meta.k8s.io", "ListOptions", ""));
    }
    if !token.is_empty() {
        if !["", "0"].contains(&version) {
            return Err(ApiStatus::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        return Continue::decode(token).map(Moment::Next);
    }
    let wanted = parse(version)?;
    // By convention, a limited list at a revision means exactly that revision.
    let limited = call.query.number("limit").is_some_and(|limit| limit > 0);
    let exact = matching == "Exact" || (matching.is_empty() && wanted > 0 && limited);
    if let Some(status) = in_the_future(wanted, store) {
        return Err(if exact { status } else { status.retry_after(1) });
    }
    Ok(if exact { Moment::Exact(wanted) } else { Moment::Newest })
}

/// Returns the start revision of a watch, and whether it begins with the current objects.
///
/// # Errors
/// 400 or 422 for invalid options, 504 for initial events of a revision in the future.
pub(super) fn of_watch(call: &Call, store: &Store) -> Result<(u64, bool), ApiStatus> {
    let (version, matching) = (call.query.get("resourceVersion"), call.query.get("resourceVersionMatch"));
    let initial = call.query.has("sendInitialEvents");
    let mut errors = FieldErrors::default();
    if initial && matching != "NotOlderThan" {
        errors.forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if !matching.is_empty() {
        if !initial {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if matching != "NotOlderThan" {
            errors.not_supported("resourceVersionMatch", matching, &["NotOlderThan"]);
        }
        if call.query.has("continue") {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            );
        }
    }
    if !errors.is_empty() {
        return Err(errors.into_status("meta.k8s.io", "ListOptions", ""));
    }
    let from = parse(version)?;
    let begin = call.query.truth("sendInitialEvents") || (from == 0 && !initial);
    if begin && let Some(status) = in_the_future(from, store) {
        return Err(status.retry_after(1));
    }
    Ok((from, begin))
}

fn parse(version: &str) -> Result<u64, ApiStatus> {
    if version.is_empty() {
        return Ok(0);
    }
    version.parse().map_err(|_| {
        let mut errors = FieldErrors::default();
        errors.invalid("resourceVersion", version, "strconv.ParseUint: parsing: invalid syntax");
        errors.into_status("meta.k8s.io", "ListOptions", "")
    })
}

/// Returns 504 for a revision in the future.
fn in_the_future(wanted: u64, store: &Store) -> Option<ApiStatus> {
    let newest = store.revision();
    let cause = StatusCause {
        reason: Some("ResourceVersionTooLarge".into()),
        message: Some("Too large resource version".into()),
        field: None,
    };
    let message = format!("Timeout: Too large resource version: {wanted}, current: {newest}");
    (wanted > newest).then(|| ApiStatus::of(Reason::Timeout, message).causes(vec![cause]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_was_made_of() {
        let token = Continue::new(7, "ns/a\"b", 500).encode();
        assert_eq!(Continue::decode(&token).unwrap(), Continue::new(7, "ns/a\"b", 500));
        for bad in ["", "x", "e30", &token[1..]] {
            assert_eq!(Continue::decode(bad).unwrap_err().code(), 400, "{bad}");
        }
    }
}
