//! Cron schedules: five fields, names, ranges, lists and steps, `@hourly` and the like, `@every 1h30m`.
//!
//! Ours, because the cron crates differ from upstream in the details that users notice: `@every`, the union of
//! day of month and day of week, times that a change of clocks skips or repeats.

use std::str::FromStr;

use jiff::{Timestamp, ToSpan, civil::DateTime, tz::TimeZone};

/// A parsed schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// Local times that match the fields.
    Cron(Box<Fields>),
    /// Interval in seconds.
    Every(i64),
}

/// Bit sets of minutes, hours, days of month, months, days of week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Day of month, or day of week, was `*`: then only the other one must match. If both are restricted,
    /// either is enough.
    any_day: bool,
    any_weekday: bool,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn number(text: &str, names: &[&str], base: u32) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    if let Some(at) = names.iter().position(|n| *n == lower) {
        return Ok(u32::try_from(at).unwrap_or(0) + base);
    }
    text.parse().map_err(|_| format!("failed to parse number: {text:?}"))
}

/// Parses one field: a list of `*`, `?`, values or ranges, each with an optional step. Returns the bits, and
/// true for a bare star.
fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let (mut bits, mut star) = (0u64, false);
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, number(step, &[], 0)?),
            None => (part, 1),
        };
        let stepped = part.contains('/');
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first, names, least)?, number(last, names, least)?),
            None if range == "*" || range == "?" => {
                star |= step == 1;
                (least, most)
            }
            None => {
                let value = number(range, names, least)?;
                (value, if stepped { most } else { value })
            }
        };
        if first < least || last > most || first > last || step == 0 {
            return Err(format!("{part:?} is not within {least}-{most}"));
        }
        let mut value = first;
        while value <= last {
            bits |= 1 << value;
            value += step;
        }
    }
    Ok((bits, star))
}

/// Splits off a leading time zone (`TZ=Asia/Tokyo 0 9 * * *`).
pub(super) fn zone_prefix(text: &str) -> (Option<&str>, &str) {
    let text = text.trim();
    let Some(named) = text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) else {
        return (None, text);
    };
    named.split_once(char::is_whitespace).map_or((Some(named), ""), |(zone, rest)| (Some(zone), rest.trim()))
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(every) = text.strip_prefix("@every ") {
            return duration(every.trim()).map(Schedule::Every);
        }
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {text:?}", parts.len()));
        };
        let (days, any_day) = field(day, 1, 31, &[])?;
        let (mut weekdays, any_weekday) = field(weekday, 0, 7, &WEEKDAYS)?;
        if weekdays & (1 << 7) != 0 {
            weekdays |= 1; // Sunday is both 0 and 7
        }
        Ok(Schedule::Cron(Box::new(Fields {
            minutes: field(minute, 0, 59, &[])?.0,
            hours: field(hour, 0, 23, &[])?.0,
            days,
            months: field(month, 1, 12, &MONTHS)?.0,
            weekdays,
            any_day,
            any_weekday,
        })))
    }
}

/// Parses `1h30m15s` or `1.5h` into whole seconds, at least one.
fn duration(text: &str) -> Result<i64, String> {
    let error = || format!("failed to parse duration {text:?}");
    let (mut total, mut rest) = (0f64, text);
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let value: f64 = rest[..at].parse().map_err(|_| error())?;
        let end = rest[at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| at + n);
        let unit = match &rest[at..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(error()),
        };
        total += value * unit;
        rest = &rest[end..];
    }
    // Limit of a hundred years, far from any overflow.
    if text.is_empty() || !(0.0..=3.2e9).contains(&total) {
        return Err(error());
    }
    // Within the range checked above.
    #[allow(clippy::cast_possible_truncation)]
    Ok((total as i64).max(1))
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|v| bits & (1 << v) != 0)
}

impl Fields {
    fn day_matches(&self, at: DateTime) -> bool {
        let day = has(self.days, at.day());
        let weekday = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        match (self.any_day, self.any_weekday) {
            (true, _) => weekday && day,
            (_, true) => day && weekday,
            _ => day || weekday,
        }
    }

    /// Returns the first matching local minute at or after `from`; `None` if there is none within five years
    /// (31 February).
    fn first_from(&self, from: DateTime) -> Option<DateTime> {
        let last_year = from.year().checked_add(5)?;
        let mut at = from;
        while at.year() <= last_year {
            let date = at.date();
            if !has(self.months, at.month()) {
                at = date.first_of_month().checked_add(1.month()).ok()?.at(0, 0, 0, 0);
            } else if !self.day_matches(at) {
                at = date.checked_add(1.day()).ok()?.at(0, 0, 0, 0);
            } else if !has(self.hours, at.hour()) {
                at = date.at(at.hour(), 0, 0, 0).checked_add(1.hour()).ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at);
            }
        }
        None
    }
}

impl Schedule {
    /// Returns the first time after `time`. A local time skipped by a DST change happens after the gap.
    pub(super) fn after(&self, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let fields = match self {
            Schedule::Every(seconds) => {
                return Timestamp::from_second(time.as_second().checked_add(*seconds)?).ok();
            }
            Schedule::Cron(fields) => fields,
        };
        let local = time.to_zoned(zone.clone()).datetime();
        let minute = local.date().at(local.hour(), local.minute(), 0, 0);
        let mut from = minute.checked_add(1.minute()).ok()?;
        // After a DST change back, a local time may be in the past; try the next one.
        for _ in 0..200 {
            let found = fields.first_from(from)?;
            let moment = zone.to_ambiguous_zoned(found).compatible().ok()?.timestamp();
            if moment > time {
                return Some(moment);
            }
            from = found.checked_add(1.minute()).ok()?;
        }
        None
    }

    /// Returns the number of times in `(earliest, now]`, counted up to 101, and the last of them.
    pub(super) fn last_between(
        &self,
        earliest: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
    ) -> (usize, Option<Timestamp>) {
        let (mut count, mut last) = (0, None);
        let mut at = earliest;
        while let Some(next) = self.after(at, zone).filter(|t| *t <= now) {
            count += 1;
            last = Some(next);
            at = next;
            if count > 100 {
                // Far behind: search ever longer intervals before `now` for the last time.
                let mut back = 60;
                while let Some(from) = Timestamp::from_second(now.as_second() - back).ok().filter(|f| *f > at)
                {
                    if let Some(mut late) = self.after(from, zone).filter(|t| *t <= now) {
                        while let Some(later) = self.after(late, zone).filter(|t| *t <= now) {
                            late = later;
                        }
                        return (count, Some(late));
                    }
                    back *= 2;
                }
                break;
            }
        }
        (count, last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn next(schedule: &str, from: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).unwrap();
        let schedule: Schedule = schedule.parse().unwrap();
        schedule.after(from.parse().unwrap(), &zone).map_or_else(|| "never".into(), |t| t.to_string())
    }

    #[test]
    fn next_times() {
        for (schedule, from, zone, want) in [
            ("*/15 * * * *", "2026-01-01T00:00:00Z", "UTC", "2026-01-01T00:15:00Z"),
            ("0 9-17/4 * * mon-fri", "2026-01-03T00:00:00Z", "UTC", "2026-01-05T09:00:00Z"),
            ("30 4 1,15 * 5", "2026-01-01T05:00:00Z", "UTC", "2026-01-02T04:30:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "UTC", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", "UTC", "never"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "UTC", "2026-01-04T00:00:00Z"),
            ("@hourly", "2026-01-01T00:30:00Z", "UTC", "2026-01-01T01:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:10Z", "UTC", "2026-01-01T01:30:10Z"),
            ("0 8 * JAN *", "2026-01-01T00:00:00Z", "Europe/Berlin", "2026-01-01T07:00:00Z"),
            // 02:30 does not exist on this day.
            ("30 2 * * *", "2026-03-28T12:00:00Z", "Europe/Berlin", "2026-03-29T01:30:00Z"),
        ] {
            assert_eq!(next(schedule, from, zone), want, "{schedule} from {from} in {zone}");
        }
    }

    #[test]
    fn durations_and_zones_in_schedules() {
        for (text, want) in [("1h30m15s", 5415), ("1.5h", 5400), ("90s", 90), ("1500ms", 1), ("1ms", 1)] {
            assert_eq!(duration(text), Ok(want), "{text}");
        }
        assert_eq!(zone_prefix("TZ=Asia/Tokyo 0 9 * * *"), (Some("Asia/Tokyo"), "0 9 * * *"));
        assert_eq!(zone_prefix(" CRON_TZ=UTC  @hourly"), (Some("UTC"), "@hourly"));
        assert_eq!(zone_prefix("0 9 * * *"), (None, "0 9 * * *"));
    }

    #[test]
    fn malformed() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "x * * * *",
            "@every x",
            "@every ",
            "@every 1h2",
            "@every 9999999999h",
            "@often",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }

    proptest! {
        /// Each result is later and matches, and no matching minute is skipped.
        #[test]
        fn finds_the_very_next(minute in 0..60u32, step in 1..30u32, hour in 0..24u32, start in 0i64..2_000_000_000) {
            let schedule: Schedule = format!("{minute},*/{step} {hour} * * *").parse().unwrap();
            let from = Timestamp::from_second(start).unwrap();
            let found = schedule.after(from, &TimeZone::UTC).unwrap();
            prop_assert!(found > from);
            let matches = |t: i64| t % 60 == 0 && (t / 3600) % 24 == i64::from(hour) && {
                let m = (t / 60) % 60;
                m == i64::from(minute) || m % i64::from(step) == 0
            };
            prop_assert!(matches(found.as_second()));
            let mut t = (start / 60 + 1) * 60;
            while t < found.as_second() { prop_assert!(!matches(t)); t += 60; }
        }

        #[test]
        fn the_last_of_many_is_found(start in 0i64..1_000_000, length in 0i64..10_000_000) {
            let schedule: Schedule = "*/5 * * * *".parse().unwrap();
            let at = |s| Timestamp::from_second(s).unwrap();
            let (count, last) = schedule.last_between(at(start), at(start + length), &TimeZone::UTC);
            let want = (start + length) / 300 * 300;
            prop_assert_eq!(last, (want > start).then(|| at(want)));
            prop_assert_eq!(count > 0, want > start);
        }
    }
}
