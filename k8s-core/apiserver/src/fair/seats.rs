//! Width of a request: the number of seats that it takes.

use crate::request::{Query, RequestInfo};

/// Number of objects that one seat is for.
const OBJECTS: usize = 100;
/// Most seats of one request.
const MOST: usize = 10;

/// Returns the most seats of one request of a level with so many seats, where a flow has `hand` queues,
/// if any.
pub(super) fn widest(nominal: usize, hand: Option<usize>) -> usize {
    match hand {
        Some(hand) => (nominal * 15).div_ceil(100).min(nominal / hand.max(1)).clamp(1, MOST),
        None => MOST,
    }
}

/// Returns the number of seats of a request: one, and for a list or the initial events of a watch, one
/// for each hundred objects that are looked at. `stored` returns the number of stored objects of the
/// resource; `None` if they are elsewhere.
pub(crate) fn of(
    info: &RequestInfo,
    query: &Query,
    most: usize,
    stored: impl FnOnce() -> Option<usize>,
) -> usize {
    let looks = match info.verb.as_str() {
        "list" => true,
        "watch" => begins_with_all(query),
        _ => false,
    };
    // A list of one object by its name is a get.
    let by_name = query.get("fieldSelector").starts_with("metadata.name=");
    if !looks || !info.is_resource || !info.name.is_empty() || by_name {
        return 1;
    }
    let all = stored().unwrap_or(0);
    let selects = !query.get("labelSelector").is_empty() || !query.get("fieldSelector").is_empty();
    let limit = query.number("limit").and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0 && !selects);
    limit.unwrap_or(all).min(all).div_ceil(OBJECTS).clamp(1, most.max(1))
}

/// True for a watch that begins with the objects that there are.
fn begins_with_all(query: &Query) -> bool {
    query.truth("sendInitialEvents") || matches!(query.get("resourceVersion"), "" | "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_as_wide_as_they_are_long() {
        let pods = "/api/v1/pods";
        for (method, path, query, want) in [
            ("GET", pods, "", 8),
            ("GET", pods, "limit=250", 3),
            ("GET", pods, "limit=250&labelSelector=a", 8),
            ("GET", pods, "limit=5000", 8),
            ("GET", pods, "fieldSelector=metadata.name=a", 1),
            ("GET", pods, "watch=1", 8),
            ("GET", pods, "watch=1&resourceVersion=0", 8),
            ("GET", pods, "watch=1&resourceVersion=7", 1),
            ("GET", pods, "watch=1&resourceVersion=7&sendInitialEvents=true", 8),
            ("GET", "/api/v1/namespaces/a/pods/b", "", 1),
            ("POST", "/api/v1/namespaces/a/pods", "", 1),
            ("DELETE", pods, "", 1),
            ("GET", "/apis", "", 1),
        ] {
            let query = Query::parse(query);
            let info = RequestInfo::parse(&method.parse().unwrap(), path, &query);
            assert_eq!(of(&info, &query, 10, || Some(750)), want, "{method} {path} {query:?}");
        }
        let list = RequestInfo::parse(&http::Method::GET, pods, &Query::default());
        let seats = |most, stored| of(&list, &Query::default(), most, || stored);
        assert_eq!(
            [seats(10, Some(0)), seats(10, None), seats(10, Some(9999)), seats(4, Some(9999))],
            [1, 1, 10, 4]
        );
    }

    #[test]
    fn the_widest_request_depends_on_the_level() {
        let widest = |nominal, hand| super::widest(nominal, hand);
        assert_eq!(
            [widest(98, Some(6)), widest(49, Some(6)), widest(3, Some(6)), widest(13, None)],
            [10, 8, 1, 10]
        );
    }
}
