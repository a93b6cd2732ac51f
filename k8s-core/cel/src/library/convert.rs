//! Type conversions, and functions of any value.

use std::{fmt::Write, sync::Arc};

use super::{Cost, Cx, Form, Function, function, global, no_overload};
use crate::{
    error::{EvalError, short},
    types::{Opaque, T},
    value::{Text, Value, time},
};

pub(super) const FUNCTIONS: &[Function] = &[
    global("dyn", &[(&[T::A], T::Dyn)], |_, args| args.first().cloned().ok_or(EvalError::NoSuchOverload)),
    global("type", &[(&[T::A], T::Type)], |_, args| match args {
        [value] => Ok(Value::Type(Text::Borrowed(value.type_name()))),
        _ => no_overload(),
    }),
    global("bool", &[(&[T::Bool], T::Bool), (&[T::Str], T::Bool)], |_, args| match args {
        [Value::Bool(b)] => Ok(Value::Bool(*b)),
        [Value::String(text)] => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            text => EvalError::failed(format!("type conversion error from '{}' to 'bool'", short(text))),
        },
        _ => no_overload(),
    }),
    global(
        "int",
        &[
            (&[T::Int], T::Int),
            (&[T::Uint], T::Int),
            (&[T::Double], T::Int),
            (&[T::Str], T::Int),
            (&[T::Time], T::Int),
            (&[T::Dur], T::Int),
        ],
        int,
    ),
    global(
        "uint",
        &[(&[T::Uint], T::Uint), (&[T::Int], T::Uint), (&[T::Double], T::Uint), (&[T::Str], T::Uint)],
        uint,
    ),
    global(
        "double",
        &[(&[T::Double], T::Double), (&[T::Int], T::Double), (&[T::Uint], T::Double), (&[T::Str], T::Double)],
        double,
    ),
    function("string", Form::Global, Cost::Traverse(1), STRING, string),
    function(
        "bytes",
        Form::Global,
        Cost::Traverse(1),
        &[(&[T::Bytes], T::Bytes), (&[T::Str], T::Bytes)],
        bytes,
    ),
    global("duration", &[(&[T::Dur], T::Dur), (&[T::Str], T::Dur)], |_, args| match args {
        [Value::Duration(n)] => Ok(Value::Duration(*n)),
        [Value::String(text)] => match time::parse_duration(text) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => EvalError::failed(format!("invalid duration {:?}", short(text))),
        },
        _ => no_overload(),
    }),
    global("timestamp", &[(&[T::Time], T::Time), (&[T::Str], T::Time), (&[T::Int], T::Time)], |_, args| {
        match args {
            [Value::Timestamp(at)] => Ok(Value::Timestamp(*at)),
            [Value::String(text)] => match time::parse_timestamp(text) {
                Some(at) => Ok(Value::Timestamp(at)),
                None => EvalError::failed(format!("invalid timestamp {:?}", short(text))),
            },
            [Value::Int(seconds)] => match time::in_range(i128::from(*seconds) * 1_000_000_000) {
                Some(at) => Ok(Value::Timestamp(at)),
                None => EvalError::failed("timestamp overflow"),
            },
            _ => no_overload(),
        }
    }),
    function(
        "size",
        Form::Either,
        Cost::Fixed(1),
        &[
            (&[T::Str], T::Int),
            (&[T::Bytes], T::Int),
            (&[T::List(&T::A)], T::Int),
            (&[T::Map(&T::A, &T::B)], T::Int),
        ],
        size,
    ),
];

const STRING: &[(&[T], T)] = &[
    (&[T::Str], T::Str),
    (&[T::Bool], T::Str),
    (&[T::Int], T::Str),
    (&[T::Uint], T::Str),
    (&[T::Double], T::Str),
    (&[T::Bytes], T::Str),
    (&[T::Time], T::Str),
    (&[T::Dur], T::Str),
    (&[T::Op(Opaque::Ip)], T::Str),
    (&[T::Op(Opaque::Cidr)], T::Str),
];

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // its range is checked
fn int<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Int(n)] => Ok(Value::Int(*n)),
        [Value::Uint(n)] => match i64::try_from(*n) {
            Ok(n) => Ok(Value::Int(n)),
            Err(_) => EvalError::failed("integer overflow"),
        },
        [Value::Double(n)] if n.is_finite() && *n > i64::MIN as f64 && *n < i64::MAX as f64 => {
            Ok(Value::Int(n.trunc() as i64))
        }
        [Value::Double(_)] => EvalError::failed("integer overflow"),
        [Value::String(text)] => match text.parse() {
            Ok(n) => Ok(Value::Int(n)),
            Err(_) => {
                EvalError::failed(format!("strconv.ParseInt: parsing {:?}: invalid syntax", short(text)))
            }
        },
        [Value::Timestamp(time)] => Ok(Value::Int(time.as_second())),
        [Value::Duration(nanos)] => Ok(Value::Int(*nanos)),
        _ => no_overload(),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // its range is checked
fn uint<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Uint(n)] => Ok(Value::Uint(*n)),
        [Value::Int(n)] => match u64::try_from(*n) {
            Ok(n) => Ok(Value::Uint(n)),
            Err(_) => EvalError::failed("unsigned integer overflow"),
        },
        [Value::Double(n)] if n.is_finite() && *n >= 0.0 && *n < u64::MAX as f64 => {
            Ok(Value::Uint(n.trunc() as u64))
        }
        [Value::Double(_)] => EvalError::failed("unsigned integer overflow"),
        [Value::String(text)] => match text.parse() {
            Ok(n) => Ok(Value::Uint(n)),
            Err(_) => {
                EvalError::failed(format!("strconv.ParseUint: parsing {:?}: invalid syntax", short(text)))
            }
        },
        _ => no_overload(),
    }
}

#[allow(clippy::cast_precision_loss)] // as every language does
fn double<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Double(n)] => Ok(Value::Double(*n)),
        [Value::Int(n)] => Ok(Value::Double(*n as f64)),
        [Value::Uint(n)] => Ok(Value::Double(*n as f64)),
        [Value::String(text)] => match text.parse() {
            Ok(n) => Ok(Value::Double(n)),
            Err(_) => {
                EvalError::failed(format!("strconv.ParseFloat: parsing {:?}: invalid syntax", short(text)))
            }
        },
        _ => no_overload(),
    }
}

/// Formats a double like Go's `%g`.
pub(super) fn double_text(n: f64) -> String {
    if n.is_nan() {
        return "NaN".into();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    // Shortest digits that round-trip, with exponent.
    let text = format!("{n:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{n}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Converts a scalar to text.
pub(crate) fn text_of(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::String(text) => text.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) => double_text(*n),
        Value::Timestamp(time) => time.to_string(),
        Value::Duration(nanos) => time::duration_text(*nanos),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(network) => network.to_string(),
        Value::Quantity(quantity) => quantity.to_string(),
        Value::Type(name) => name.to_string(),
        Value::Null => "null".into(),
        Value::Url(url) => url.text().to_owned(),
        Value::Semver(version) => {
            let mut out = String::new();
            let _ = write!(out, "{version}");
            out
        }
        _ => return None,
    })
}

fn string<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::String(text)] => Ok(Value::String(text.clone())),
        [Value::Bytes(bytes)] => {
            cx.meter.work(bytes.len() as u64)?;
            match std::str::from_utf8(bytes) {
                Ok(text) => Ok(text.to_owned().into()),
                Err(_) => EvalError::failed("invalid UTF-8 in bytes, cannot convert to string"),
            }
        }
        [Value::Null | Value::Type(_) | Value::Quantity(_) | Value::Url(_) | Value::Semver(_)] => {
            no_overload()
        }
        [value] => text_of(value).map(Value::from).ok_or(EvalError::NoSuchOverload),
        _ => no_overload(),
    }
}

fn bytes<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Bytes(bytes)] => Ok(Value::Bytes(bytes.clone())),
        [Value::String(text)] => {
            cx.meter.work(text.len() as u64)?;
            Ok(Value::Bytes(Arc::from(text.as_bytes())))
        }
        _ => no_overload(),
    }
}

fn size<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let size = match args {
        [Value::String(text)] => {
            cx.meter.work(text.len() as u64 / 8)?;
            text.chars().count()
        }
        [Value::Bytes(bytes)] => bytes.len(),
        [Value::List(list)] => list.len(),
        [Value::Map(map)] => map.len(),
        _ => return no_overload(),
    };
    Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}
