//! The output is read by a parser of the format's specification, whatever the values and texts contain.

use std::collections::BTreeMap;

use k8s_metrics::{Counter, Family, Gauge, Histogram, Registry, encode};
use proptest::prelude::*;

type Labels = Vec<(String, String)>;

/// Help, type and samples by name.
#[derive(Debug, Default, PartialEq)]
struct Parsed {
    help: BTreeMap<String, String>,
    kinds: BTreeMap<String, String>,
    samples: Vec<(String, Labels, f64)>,
}

/// Reads characters up to `end`, resolving escapes.
fn unescaped(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, end: Option<char>) -> String {
    let mut out = String::new();
    loop {
        match (chars.next(), end) {
            (None, None) => return out,
            (None, Some(end)) => panic!("{end:?} is missing after {out:?}"),
            (Some(c), end) if Some(c) == end => return out,
            (Some('\\'), _) => out.push(match chars.next() {
                Some('n') => '\n',
                Some(c @ ('\\' | '"')) => c,
                other => panic!("a bad escape: {other:?}"),
            }),
            (Some(c), _) => out.push(c),
        }
    }
}

fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    assert!(text.is_empty() || text.ends_with('\n'));
    for line in text.split('\n').filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let known = parsed.help.insert(name.to_owned(), unescaped(&mut help.chars().peekable(), None));
            assert!(known.is_none(), "{name} twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            parsed.kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            parsed.samples.push(sample(line));
        }
    }
    parsed
}

fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, rest) = line.split_at(end);
    let mut labels = Vec::new();
    let mut chars = rest.chars().peekable();
    if chars.next() == Some('{') {
        loop {
            let mut label = String::new();
            while let Some(c) = chars.next_if(|c| *c != '=') {
                label.push(c);
            }
            assert_eq!((chars.next(), chars.next()), (Some('='), Some('"')), "{line}");
            labels.push((label, unescaped(&mut chars, Some('"'))));
            match chars.next() {
                Some(',') => {}
                Some('}') => break,
                other => panic!("{other:?} in {line}"),
            }
        }
        assert_eq!(chars.next(), Some(' '));
    }
    let value: String = chars.collect();
    let value = match value.as_str() {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => number.parse().unwrap(),
    };
    (name.to_owned(), labels, value)
}

fn encoded(registry: &Registry) -> Parsed {
    let mut text = String::new();
    encode(&mut text, registry);
    parse(&text)
}

/// Characters that matter in the format, and any others.
fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof![Just('\\'), Just('"'), Just('\n'), Just('}'), any::<char>()], 0..8)
        .prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn labels_and_values_come_back(
        counts in proptest::collection::btree_map((text(), text()), 0u64..1 << 50, 0..8),
        level in any::<f64>(),
        help in text(),
    ) {
        let registry = Registry::default();
        // The registry takes static texts.
        let help: &'static str = Box::leak(help.into_boxed_str());
        let family: Family<2, Counter> = registry.register("counts_total", help, Family::new(["a", "b"]));
        for ((a, b), count) in &counts {
            family.get_or_create(&[a, b]).inc_by(*count);
        }
        let gauge: Gauge<f64> = registry.register("level", "Level.", Gauge::default());
        gauge.set(level);
        let parsed = encoded(&registry);
        prop_assert_eq!(&parsed.help["counts_total"], help);
        prop_assert_eq!(&parsed.kinds["counts_total"], "counter");
        let mut found = BTreeMap::new();
        for (name, labels, value) in &parsed.samples {
            if name == "level" {
                prop_assert_eq!(value.to_bits() == level.to_bits() || value.is_nan() && level.is_nan(), true);
                continue;
            }
            prop_assert_eq!(&labels[0].0, "a");
            prop_assert_eq!(&labels[1].0, "b");
            found.insert((labels[0].1.clone(), labels[1].1.clone()), *value as u64);
        }
        prop_assert_eq!(found, counts);
    }

    #[test]
    fn a_histogram_counts_like_a_naive_one(
        bounds in proptest::collection::vec(-100.0..100.0, 0..6),
        values in proptest::collection::vec(-120.0..120.0, 0..40),
    ) {
        let registry = Registry::default();
        let histogram = registry.register("sizes", "Sizes.", Histogram::new(bounds.clone()));
        for value in &values {
            histogram.observe(*value);
        }
        for (name, labels, value) in encoded(&registry).samples {
            let expected = match name.as_str() {
                "sizes_bucket" => {
                    let bound = if labels[0].1 == "+Inf" { f64::INFINITY } else { labels[0].1.parse().unwrap() };
                    values.iter().filter(|v| **v <= bound).count() as f64
                }
                "sizes_count" => values.len() as f64,
                "sizes_sum" => values.iter().sum(),
                other => panic!("{other}"),
            };
            prop_assert!((value - expected).abs() < 1e-6, "{name} {labels:?}: {value}, not {expected}");
        }
    }
}
