//! Timestamps and durations in Go's formats.

use jiff::{Zoned, tz::TimeZone};

use super::{Cx, Function, member, no_overload};
use crate::{error::EvalError, types::T, value::Value};

const PARTS: &[(&[T], T)] = &[(&[T::Time], T::Int), (&[T::Time, T::Str], T::Int)];
const PARTS_OF_BOTH: &[(&[T], T)] =
    &[(&[T::Time], T::Int), (&[T::Time, T::Str], T::Int), (&[T::Dur], T::Int)];

pub(super) const FUNCTIONS: &[Function] = &[
    member("getFullYear", PARTS, |_, args| part(args, |t| t.year().into())),
    member("getMonth", PARTS, |_, args| part(args, |t| i64::from(t.month()) - 1)),
    member("getDate", PARTS, |_, args| part(args, |t| t.day().into())),
    member("getDayOfMonth", PARTS, |_, args| part(args, |t| i64::from(t.day()) - 1)),
    member("getDayOfWeek", PARTS, |_, args| part(args, |t| t.weekday().to_sunday_zero_offset().into())),
    member("getDayOfYear", PARTS, |_, args| part(args, |t| i64::from(t.day_of_year()) - 1)),
    member("getHours", PARTS_OF_BOTH, |cx, args| part_or(cx, args, |t| t.hour().into(), HOUR)),
    member("getMinutes", PARTS_OF_BOTH, |cx, args| part_or(cx, args, |t| t.minute().into(), MINUTE)),
    member("getSeconds", PARTS_OF_BOTH, |cx, args| part_or(cx, args, |t| t.second().into(), SECOND)),
    member("getMilliseconds", PARTS_OF_BOTH, |cx, args| part_or(cx, args, |t| t.millisecond().into(), MILLI)),
];

const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1000 * MILLI;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

fn zone(name: &str) -> Result<TimeZone, EvalError> {
    let offset = || {
        let (sign, rest) = match name.as_bytes().first()? {
            b'-' => (-1, name.get(1..)?),
            b'+' => (1, name.get(1..)?),
            _ => (1, name),
        };
        let (hours, minutes) = rest.split_once(':')?;
        let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
        if !(0..24).contains(&hours) || !(0..60).contains(&minutes) {
            return None;
        }
        jiff::tz::Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok().map(TimeZone::fixed)
    };
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    match offset().or_else(|| TimeZone::get(name.get(..64).unwrap_or(name)).ok()) {
        Some(zone) => Ok(zone),
        None => EvalError::failed(format!("unknown time zone {}", crate::error::short(name))),
    }
}

fn part<'a>(args: &[Value<'a>], get: fn(&Zoned) -> i64) -> Result<Value<'a>, EvalError> {
    let (time, zone) = match args {
        [Value::Timestamp(time)] => (time, TimeZone::UTC),
        [Value::Timestamp(time), Value::String(name)] => (time, zone(name)?),
        _ => return no_overload(),
    };
    Ok(Value::Int(get(&time.to_zoned(zone))))
}

fn part_or<'a>(
    _: &mut Cx<'_>,
    args: &[Value<'a>],
    get: fn(&Zoned) -> i64,
    unit: i64,
) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Duration(nanos)] => Ok(Value::Int(nanos / unit)),
        args => part(args, get),
    }
}
