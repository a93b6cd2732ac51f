//! Sets of completion indexes in the form that the status has them: `0-3,5,8`.

use std::collections::BTreeSet;

/// Reads a set. What is malformed is left out; only the controller writes these.
pub(super) fn parse(text: &str) -> BTreeSet<i32> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<i32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Writes a set. Two neighbours are written one by one, three and more as a range, as upstream does.
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

    proptest! {
        #[test]
        fn round_trip(set in proptest::collection::btree_set(0..200i32, 0..60)) {
            prop_assert_eq!(parse(&format(&set)), set);
        }
    }
}
