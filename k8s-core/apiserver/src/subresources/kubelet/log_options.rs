//! Validation of log options (`PodLogOptions`) before the kubelet is called.

use k8s_core::status::ApiStatus;

use crate::{invalid::FieldErrors, request::Query};

const STREAMS: [&str; 3] = ["All", "Stdout", "Stderr"];

/// Parses a number.
///
/// # Errors
/// 400 if it is not a number.
fn number(query: &Query, name: &str) -> Result<Option<i64>, ApiStatus> {
    let text = query.get(name);
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |_| ApiStatus::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
    text.parse().map(Some).map_err(bad)
}

/// Validates the options of a log request.
///
/// # Errors
/// 400 for malformed options, 422 with all invalid ones.
pub(super) fn check(query: &Query, pod: &str) -> Result<(), ApiStatus> {
    let tail = number(query, "tailLines")?;
    let mut errors = FieldErrors::default();
    if let Some(lines) = tail.filter(|n| *n < 0) {
        errors.invalid("tailLines", lines, "must be greater than or equal to 0");
    }
    if let Some(bytes) = number(query, "limitBytes")?.filter(|n| *n < 1) {
        errors.invalid("limitBytes", bytes, "must be greater than 0");
    }
    let since = query.get("sinceTime");
    if !since.is_empty() && since.parse::<jiff::Timestamp>().is_err() {
        return Err(ApiStatus::bad_request(format!(
            "sinceTime: {since:?} is no time in RFC 3339 form, such as 2026-01-02T15:04:05Z"
        )));
    }
    match number(query, "sinceSeconds")? {
        Some(_) if !since.is_empty() => {
            errors.forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified");
        }
        Some(seconds) if seconds < 1 => errors.invalid("sinceSeconds", seconds, "must be greater than 0"),
        _ => {}
    }
    let stream = query.get("stream");
    if !stream.is_empty() && !STREAMS.contains(&stream) {
        errors.not_supported("stream", stream, &STREAMS);
    } else if !["", "All"].contains(&stream) && tail.is_some() {
        errors.forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now");
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.into_status("", "PodLogOptions", pod)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_before_a_node_is_asked() {
        let code = |query: &str| check(&Query::parse(query), "p").map_or_else(|e| e.code(), |()| 200);
        for good in [
            "",
            "follow=true&tailLines=0",
            "sinceSeconds=1",
            "sinceTime=2026-01-02T15:04:05Z",
            "stream=Stderr",
            "stream=All&tailLines=3",
        ] {
            assert_eq!(code(good), 200, "{good}");
        }
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-02T15:04:05Z",
            "stream=stderr",
            "stream=Stdout&tailLines=3",
        ] {
            assert_eq!(code(bad), 422, "{bad}");
        }
        for unreadable in ["tailLines=x", "sinceTime=yesterday", "limitBytes=1e9"] {
            assert_eq!(code(unreadable), 400, "{unreadable}");
        }
        let message = check(&Query::parse("tailLines=-1"), "p").unwrap_err().to_string();
        assert!(
            message.contains("PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1"),
            "{message}"
        );
    }
}
