//! Sets of completion indexes in the status format: `0-3,5,8`.

use std::collections::BTreeSet;

/// Parses the indexes below `limit`. Malformed parts are skipped; only the controller writes these fields.
pub(super) fn parse_below(text: &str, limit: i32) -> BTreeSet<i32> {
    let range = |part: &str| -> Option<std::ops::Range<i32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (i32, i32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // Stops at `limit`, so that a hostile range costs no more than the Job itself.
        Some(first.max(0)..last.saturating_add(1).min(limit))
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Formats a set as upstream: two neighbours separately, three and more as a range.
pub(super) fn format(indexes: &BTreeSet<i32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut write = |first: i32, last: i32| {
        parts.push(match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
    };
    let mut run: Option<(i32, i32)> = None;
    for &index in indexes {
        run = match run {
            Some((first, last)) if last + 1 == index => Some((first, index)),
            Some((first, last)) => {
                write(first, last);
                Some((index, index))
            }
            None => Some((index, index)),
        };
    }
    if let Some((first, last)) = run {
        write(first, last);
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_as_upstream() {
        assert_eq!(format(&[0, 1, 2, 3, 5, 7, 8].into()), "0-3,5,7,8");
        assert_eq!(format(&BTreeSet::new()), "");
    }

    #[test]
    fn hostile_text_is_harmless() {
        for text in ["", ",", "-", "3-1", "x-y", "-5-3", "9999999999-1"] {
            assert!(parse_below(text, 10).is_empty(), "{text}");
        }
        assert_eq!(format(&parse_below("0-2147483647", 4)), "0-3");
    }

    proptest! {
        #[test]
        fn round_trip(set in proptest::collection::btree_set(0..200i32, 0..60)) {
            prop_assert_eq!(parse_below(&format(&set), 200), set);
        }
    }
}
