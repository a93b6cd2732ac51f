//! Prometheus' text format, and OpenMetrics as far as it is the same. Pure.

use std::collections::{BTreeMap, HashMap};

/// Most series of one text.
const MOST_SERIES: usize = 5_000;
/// Most labels of one series.
const MOST_LABELS: usize = 64;
/// Most labels of all series of one text.
const MOST_LABELS_ALL: usize = 50_000;

/// A series of a metric and its value now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
    /// It only grows, until its process starts anew.
    pub(super) is_counter: bool,
}

/// The reason for which a text is no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TextError {
    #[error("line {line}: {why}")]
    Line { line: usize, why: &'static str },
    #[error("more than {MOST_SERIES} series")]
    TooMany,
    #[error("more than {MOST_LABELS_ALL} labels")]
    TooManyLabels,
}

/// Parses a text. Buckets of histograms and quantiles of summaries are left out: they have no sum. Their
/// `_count` and `_sum` are counters.
///
/// # Errors
/// A line that is not of the format, too many series, or too many labels of one series or of all.
pub(super) fn parse(text: &str) -> Result<Vec<Series>, TextError> {
    let mut kinds: HashMap<&str, &str> = HashMap::new();
    let (mut all, mut labels) = (Vec::new(), 0);
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_whitespace();
            if words.next() == Some("TYPE")
                && let (Some(name), Some(kind)) = (words.next(), words.next())
            {
                kinds.insert(name, kind);
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let mut series = sample(line).map_err(|why| TextError::Line { line: at + 1, why })?;
        match kind(&series.name, &kinds) {
            Some(is_counter) => series.is_counter = is_counter,
            None => continue,
        }
        // A part of a summary.
        if series.labels.contains_key("quantile") && !series.is_counter {
            continue;
        }
        if all.len() == MOST_SERIES {
            return Err(TextError::TooMany);
        }
        labels += series.labels.len();
        if labels > MOST_LABELS_ALL {
            return Err(TextError::TooManyLabels);
        }
        all.push(series);
    }
    Ok(all)
}

/// Returns true for a counter, false for a gauge, and `None` for a bucket.
fn kind(name: &str, kinds: &HashMap<&str, &str>) -> Option<bool> {
    let of = |suffix: &str| name.strip_suffix(suffix).and_then(|base| kinds.get(base)).copied();
    if let Some(kind) = kinds.get(name) {
        return Some(*kind == "counter");
    }
    if matches!(of("_bucket"), Some("histogram" | "gaugehistogram")) {
        return None;
    }
    let summed = [of("_count"), of("_sum")].into_iter().flatten();
    let is_counter = summed.into_iter().any(|kind| matches!(kind, "histogram" | "summary"));
    // OpenMetrics names the type without the suffix, and a text without types has only the suffix.
    Some(is_counter || of("_total") == Some("counter") || name.ends_with("_total"))
}

fn is_name(text: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(valid)
}

/// Parses `name{label="value",...} number [timestamp]`.
fn sample(line: &str) -> Result<Series, &'static str> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace()).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err("the name of a metric has other characters than letters, digits, '_' and ':'");
    }
    let (mut labels, mut count) = (BTreeMap::new(), 0);
    if let Some(inner) = rest.trim_start().strip_prefix('{') {
        rest = inner.trim_start();
        while !rest.starts_with('}') {
            count += 1;
            if count > MOST_LABELS {
                return Err("a series with more than 64 labels");
            }
            let (label, after) = rest.split_once('=').ok_or("a label without '='")?;
            if !is_name(label.trim()) {
                return Err("the name of a label has other characters than letters, digits and '_'");
            }
            let after = after.trim_start().strip_prefix('"').ok_or("a label's value without quotes")?;
            let (value, after) = quoted(after).ok_or("a label's value without end")?;
            labels.insert(label.trim().to_owned(), value);
            rest = after.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        rest = &rest[1..];
    }
    let number = rest.split_whitespace().next().ok_or("no value")?;
    // Rust reads NaN, +Inf and -Inf as Go does.
    let value = number.parse().map_err(|_| "the value is no number")?;
    Ok(Series { name: name.to_owned(), labels, value, is_counter: false })
}

/// Reads up to the closing quote. Returns the value, and the text after the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let written = |s: &Series| {
            let kind = if s.is_counter { "counter" } else { "gauge" };
            format!("{} {:?} {} {kind}", s.name, s.labels, s.value)
        };
        parse(text).unwrap().iter().map(written).collect()
    }

    #[test]
    fn series_of_all_types_are_read() {
        let text = r#"
# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total { code = "4\"0\\0\n" , } 3

# TYPE depth gauge
depth -1.5e2
# TYPE latency histogram
latency_bucket{le="0.1"} 3
latency_bucket{le="+Inf"} 5
latency_sum 1.25
latency_count 5
# TYPE rpc summary
rpc{quantile="0.5"} 47
rpc_count 2693
# TYPE jobs counter
jobs_total 4 # {trace="x"} 0.5
untyped_total 7
untyped NaN
# EOF
"#;
        assert_eq!(
            lines(text),
            [
                r#"http_requests_total {"code": "200", "method": "post"} 1027 counter"#,
                r#"http_requests_total {"code": "4\"0\\0\n"} 3 counter"#,
                "depth {} -150 gauge",
                "latency_sum {} 1.25 counter",
                "latency_count {} 5 counter",
                "rpc_count {} 2693 counter",
                "jobs_total {} 4 counter",
                "untyped_total {} 7 counter",
                "untyped {} NaN gauge",
            ]
        );
    }

    #[test]
    fn what_is_not_the_format_is_told() {
        for (text, why) in [
            ("a", "line 1: no value"),
            ("\na{b=\"c} 1", "line 2: a label's value without end"),
            ("a{b} 1", "line 1: a label without '='"),
            ("a{b=c} 1", "line 1: a label's value without quotes"),
            ("a{b=\"c\"", "line 1: a label without '='"),
            ("a x", "line 1: the value is no number"),
            ("1a 1", "line 1: the name of a metric has other characters than letters, digits, '_' and ':'"),
            (
                "<html> 1",
                "line 1: the name of a metric has other characters than letters, digits, '_' and ':'",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), why, "{text}");
        }
        let many: String = (0..=MOST_SERIES).map(|i| format!("a{{i=\"{i}\"}} 1\n")).collect();
        assert_eq!(parse(&many), Err(TextError::TooMany));
    }

    #[test]
    fn labels_are_bounded() {
        let series = |labels: usize, at: usize| {
            let all: Vec<String> = (0..labels).map(|i| format!("l{i}=\"\"")).collect();
            format!("a{{at=\"{at}\",{}}} 1\n", all.join(","))
        };
        let most = MOST_LABELS - 1;
        assert_eq!(parse(&series(most, 0)).unwrap()[0].labels.len(), MOST_LABELS);
        let refused = parse(&format!("b 1\n{}", series(most + 1, 0))).unwrap_err();
        assert_eq!(refused.to_string(), "line 2: a series with more than 64 labels");
        // One label many times is many labels.
        let same = format!("a{{{}}} 1", "x=\"\",".repeat(MOST_LABELS + 1));
        assert!(parse(&same).is_err());
        let text: String = (0..MOST_LABELS_ALL / 50).map(|at| series(49, at)).collect();
        assert_eq!(parse(&text).unwrap().len(), MOST_LABELS_ALL / 50);
        let refused = parse(&format!("{text}a{{b=\"c\"}} 1")).unwrap_err();
        assert_eq!(refused.to_string(), "more than 50000 labels");
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[a{}=\",\\\\ \n#1é]{0,60}|\\PC{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn labels_come_back(value in "\\PC{0,20}") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let all = parse(&format!("a{{b=\"{escaped}\"}} 1")).unwrap();
            prop_assert_eq!(&all[0].labels["b"], &value);
        }
    }
}
