//! Timestamps and durations: their range and their text.

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1000 * MILLI;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// Returns a timestamp in CEL's range, the years 1 to 9999.
pub(crate) fn in_range(nanos: i128) -> Option<Timestamp> {
    const LEAST: i64 = -62_135_596_800;
    Timestamp::from_nanosecond(nanos).ok().filter(|time| time.as_second() >= LEAST)
}

/// Parses an RFC 3339 timestamp.
pub(crate) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let fits = |(b, want): (&u8, &u8)| if *want == b'd' { b.is_ascii_digit() } else { b == want };
    if bytes.len() < 20 || bytes.len() > 64 || !bytes.iter().zip(shape).all(fits) {
        return None;
    }
    let rest = text.get(19..)?;
    let rest = match rest.strip_prefix('.') {
        Some(fraction) => {
            let end = fraction.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
            fraction.get(end..)?
        }
        None => rest,
    };
    let offset = rest.as_bytes();
    let zone = rest == "Z"
        || (offset.len() == 6
            && matches!(offset[0], b'+' | b'-')
            && offset.iter().skip(1).zip(b"dd:dd").all(fits));
    if !zone {
        return None;
    }
    text.parse::<Timestamp>().ok().and_then(|time| in_range(time.as_nanosecond()))
}

/// Parses a date as midnight UTC.
pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    let date: civil::Date = if text.len() == 10 { text.parse().ok()? } else { return None };
    date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// Parses a Go duration (`1h30m`, `-1.5s`) into nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 8] = [
        ("ns", 1),
        ("us", 1000),
        ("µs", 1000),
        ("μs", 1000),
        ("ms", MILLI),
        ("s", SECOND),
        ("m", MINUTE),
        ("h", HOUR),
    ];
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 19 {
            return None;
        }
        let (name, unit) =
            UNITS.iter().filter(|(name, _)| after.starts_with(name)).max_by_key(|(name, _)| name.len())?;
        let unit = i128::from(*unit);
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        // Digits below a nanosecond are ignored.
        let digits = fraction.get(..fraction.len().min(18)).unwrap_or_default();
        let scale = 10i128.pow(u32::try_from(digits.len()).unwrap_or(0));
        let part: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(part * unit / scale)?;
        rest = after.get(name.len()..)?;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Formats as seconds with the necessary decimals: `90s`, `1.5s`.
pub(crate) fn duration_text(nanos: i64) -> String {
    let duration = SignedDuration::from_nanos(nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, rest) = (duration.as_secs().unsigned_abs(), duration.subsec_nanos().unsigned_abs());
    let fraction = format!("{rest:09}");
    match fraction.trim_end_matches('0') {
        "" => format!("{sign}{seconds}s"),
        fraction => format!("{sign}{seconds}.{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos, again) in [
            ("1h30m", Some(5_400_000_000_000), "5400s"),
            ("-1.5s", Some(-1_500_000_000), "-1.5s"),
            ("100ms", Some(100_000_000), "0.1s"),
            ("1us", Some(1000), "0.000001s"),
            ("0", Some(0), "0s"),
            (".5m", Some(30_000_000_000), "30s"),
            ("", None, ""),
            ("1", None, ""),
            ("1d", None, ""),
            ("-", None, ""),
            ("9999999999999h", None, ""),
        ] {
            assert_eq!(parse_duration(text), nanos, "{text}");
            if let Some(nanos) = nanos {
                assert_eq!(duration_text(nanos), again);
            }
        }
    }

    #[test]
    fn timestamps() {
        for (text, good) in [
            ("2026-01-02T03:04:05Z", true),
            ("2026-01-02T03:04:05.123+02:00", true),
            ("2026-01-02 03:04:05Z", false),
            ("2026-01-02T03:04:05", false),
            ("2026-13-02T03:04:05Z", false),
            ("2026-01-02T03:04:05.Z", false),
            ("2026-01-02", false),
            ("0000-01-02T03:04:05Z", false),
        ] {
            assert_eq!(parse_timestamp(text).is_some(), good, "{text}");
        }
        assert!(parse_date("2026-01-02").is_some());
    }
}
