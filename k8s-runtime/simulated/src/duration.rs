//! Durations in the text form of Go.

use std::time::Duration;

/// Parses a Go duration without a sign: `90s`, `1m30s`, `250ms`, `1.5s`, `0`.
///
/// # Errors
/// The text is not of that form, with an example of one that is.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration such as 60s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut nanos, mut rest) = (0_f64, text);
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, unit) = rest.split_at(unit_at);
        let unit_end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, after) = unit.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| bad())?;
        let each = match unit {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" | "μs" => 1e3,
            "ns" => 1.0,
            _ => return Err(bad()),
        };
        nanos += number * each;
        rest = after;
    }
    // Go's durations end at 2^63 nanoseconds.
    if nanos >= 9.2e18 {
        return Err(bad());
    }
    Duration::try_from_secs_f64((nanos / 1e9 * 1e9).round() / 1e9).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let ms = |n| Ok(Duration::from_millis(n));
        assert_eq!(parse("60s"), ms(60_000));
        assert_eq!(parse("1h1m1s1ms"), ms(3_661_001));
        assert_eq!((parse("0"), parse("0s"), parse("1.5s")), (ms(0), ms(0), ms(1500)));
        for wrong in ["", "5", "s", "5y", "-5s", "5 s", "1.2.3s", "99999999999999999999s", "9999999999h"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
