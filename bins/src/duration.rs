//! Durations in the form of Go's, as in upstream's flags.

use std::time::Duration;

/// Parses a Go duration of whole units: `90s`, `1m30s`, `250ms`, `0`.
///
/// # Errors
/// The text is not of that form, with an example of one that is.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration such as 60s or 1m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut sum, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = rest.split_at(unit_at);
        let unit_end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, after) = unit.split_at(unit_end);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
        let part = match unit {
            "h" => seconds(3600),
            "m" => seconds(60),
            "s" => seconds(1),
            "ms" => Some(Duration::from_millis(number)),
            _ => None,
        };
        sum = part.and_then(|part| sum.checked_add(part)).ok_or_else(bad)?;
        rest = after;
    }
    if text.is_empty() { Err(bad()) } else { Ok(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let ms = |n| Ok(Duration::from_millis(n));
        assert_eq!(parse("60s"), ms(60_000));
        assert_eq!(parse("1h1m1s1ms"), ms(3_661_001));
        assert_eq!((parse("0"), parse("0s")), (ms(0), ms(0)));
        for wrong in
            ["", "5", "s", "5y", "-5s", "1.5s", "5 s", "99999999999999999999s", "9999999999999999999h"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
