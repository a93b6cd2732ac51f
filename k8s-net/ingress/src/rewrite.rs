//! `rewrite-target`: another path for the backend.

use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::table::Route;

/// Bytes that a path has only encoded.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'\\')
    .add(b'^')
    .add(b'|');

/// Bytes of a new path at most.
const LONGEST: usize = 64 * 1024;

/// The new path is longer than a path may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Returns path and query for the backend of a route; `None`: those of the request. `path` is normalized, so
/// that groups of the pattern are decoded, and encoded again.
///
/// # Errors
/// The new path is too long.
pub(crate) fn rewritten(
    route: &Route,
    path: &str,
    query: Option<&str>,
) -> Result<Option<PathAndQuery>, TooLong> {
    let Some(template) = route.settings.rewrite.as_deref() else { return Ok(None) };
    let groups = route.pattern.as_ref().and_then(|pattern| pattern.captures(path.as_bytes()));
    let mut out = Vec::new();
    let mut rest = template.bytes();
    while let Some(byte) = rest.next() {
        // The template has a digit behind each `$`.
        let digit = if byte == b'$' { rest.next() } else { None };
        match digit {
            None => out.push(byte),
            Some(digit) => {
                let group =
                    groups.as_ref().and_then(|groups| groups.get(usize::from(digit.wrapping_sub(b'0'))));
                out.extend(group.map(|group| group.as_bytes()).unwrap_or_default());
            }
        }
        // A template may repeat a group many times.
        if out.len() > LONGEST {
            return Err(TooLong);
        }
    }
    if out.first() != Some(&b'/') {
        out.insert(0, b'/');
    }
    // The template's own query, if it has one, goes first.
    let (path, own) = match template.contains('?').then(|| out.iter().position(|b| *b == b'?')).flatten() {
        Some(at) => (&out[..at], Some(percent_encode(&out[at + 1..], PATH).to_string())),
        None => (&out[..], None),
    };
    let mut text = percent_encode(path, PATH).to_string();
    for (query, joint) in own.as_deref().into_iter().chain(query).zip(['?', '&']) {
        text.push(joint);
        text += query;
    }
    PathAndQuery::try_from(text).map(Some).map_err(|_| TooLong)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_core::meta::ObjectKey;

    use super::*;
    use crate::{backend::Backend, patterns::pattern, settings::Settings};

    fn route(target: &str, rule: &str) -> Route {
        let backend = Backend::new(ObjectKey::new("a", "b"), String::new(), Vec::new(), 0);
        Route {
            ingress: ObjectKey::new("a", "b"),
            settings: Arc::new(Settings { rewrite: Some(target.into()), ..Settings::default() }),
            pattern: Some(pattern(&format!("^{rule}")).unwrap()),
            backend: Arc::new(backend),
            canaries: Vec::new(),
        }
    }

    #[test]
    fn groups_are_put_in_and_encoded() {
        for (target, rule, path, query, want) in [
            ("/$2", "/api(/|$)(.*)", "/api/v1/x", None, "/v1/x"),
            ("/$2", "/api(/|$)(.*)", "/api", Some("a=b"), "/?a=b"),
            ("/", "/foo", "/foo/bar", None, "/"),
            ("/x/$1", "/(.*)", "/ü b?c", None, "/x/%C3%BC%20b%3Fc"),
            ("$1", "/a(/.*)", "/a/b", None, "/b"),
            ("/$1", "/a(.*)", "/a\r\nHost: evil", None, "/%0D%0AHost:%20evil"),
            ("/s?q=$1", "/a/(.*)", "/a/b", Some("c=d"), "/s?q=b&c=d"),
            ("/$9", "/a", "/a", None, "/"),
        ] {
            let got = rewritten(&route(target, rule), path, query).unwrap().map(|path| path.to_string());
            assert_eq!(got.as_deref(), Some(want), "{target} {rule} {path}");
        }
    }

    #[test]
    fn a_path_that_becomes_too_long_is_told() {
        let long = format!("/{}", "a".repeat(20_000));
        assert!(rewritten(&route("/$1", "/(.*)"), &long, None).unwrap().is_some());
        let many = "/$1".repeat(80_000);
        for target in ["/$1$1$1$1", &*many] {
            assert_eq!(
                rewritten(&route(target, "/(.*)"), &long, None),
                Err(TooLong),
                "{} bytes",
                target.len()
            );
        }
        let encoded = format!("/{}", "ü".repeat(12_000));
        assert_eq!(rewritten(&route("/$1", "/(.*)"), &encoded, None), Err(TooLong));
    }
}
