//! Arithmetic, comparison, membership and index operators.

use std::cmp::Ordering;

use jiff::Timestamp;

use super::{Cost, Cx, Form, Function, elements, function, global, no_overload};
use crate::{
    error::EvalError,
    types::T,
    value::{List, Value, time},
};

const ARITHMETIC: &[(&[T], T)] =
    &[(&[T::Int, T::Int], T::Int), (&[T::Uint, T::Uint], T::Uint), (&[T::Double, T::Double], T::Double)];
const WHOLE: &[(&[T], T)] = &[(&[T::Int, T::Int], T::Int), (&[T::Uint, T::Uint], T::Uint)];
const ORDER: &[(&[T], T)] = &[
    (&[T::Bool, T::Bool], T::Bool),
    (&[T::Int, T::Int], T::Bool),
    (&[T::Int, T::Double], T::Bool),
    (&[T::Int, T::Uint], T::Bool),
    (&[T::Uint, T::Uint], T::Bool),
    (&[T::Uint, T::Double], T::Bool),
    (&[T::Uint, T::Int], T::Bool),
    (&[T::Double, T::Double], T::Bool),
    (&[T::Double, T::Int], T::Bool),
    (&[T::Double, T::Uint], T::Bool),
    (&[T::Str, T::Str], T::Bool),
    (&[T::Bytes, T::Bytes], T::Bool),
    (&[T::Time, T::Time], T::Bool),
    (&[T::Dur, T::Dur], T::Bool),
];
const EQUAL: &[(&[T], T)] = &[(&[T::A, T::A], T::Bool)];

pub(super) const FUNCTIONS: &[Function] = &[
    function(
        "_+_",
        Form::Global,
        Cost::Add,
        &[
            (&[T::Int, T::Int], T::Int),
            (&[T::Uint, T::Uint], T::Uint),
            (&[T::Double, T::Double], T::Double),
            (&[T::Str, T::Str], T::Str),
            (&[T::Bytes, T::Bytes], T::Bytes),
            (&[T::List(&T::A), T::List(&T::A)], T::List(&T::A)),
            (&[T::Dur, T::Dur], T::Dur),
            (&[T::Time, T::Dur], T::Time),
            (&[T::Dur, T::Time], T::Time),
        ],
        add,
    ),
    global(
        "_-_",
        &[
            (&[T::Int, T::Int], T::Int),
            (&[T::Uint, T::Uint], T::Uint),
            (&[T::Double, T::Double], T::Double),
            (&[T::Dur, T::Dur], T::Dur),
            (&[T::Time, T::Dur], T::Time),
            (&[T::Time, T::Time], T::Dur),
        ],
        subtract,
    ),
    global("_*_", ARITHMETIC, multiply),
    global("_/_", ARITHMETIC, divide),
    global("_%_", WHOLE, modulo),
    global("-_", &[(&[T::Int], T::Int), (&[T::Double], T::Double), (&[T::Dur], T::Dur)], negate),
    global("!_", &[(&[T::Bool], T::Bool)], not),
    function("_==_", Form::Global, Cost::Compare, EQUAL, |cx, args| equal(cx, args).map(Value::Bool)),
    function("_!=_", Form::Global, Cost::Compare, EQUAL, |cx, args| equal(cx, args).map(|b| Value::Bool(!b))),
    function("_<_", Form::Global, Cost::Compare, ORDER, |_, args| ordered(args, Ordering::is_lt)),
    function("_<=_", Form::Global, Cost::Compare, ORDER, |_, args| ordered(args, Ordering::is_le)),
    function("_>_", Form::Global, Cost::Compare, ORDER, |_, args| ordered(args, Ordering::is_gt)),
    function("_>=_", Form::Global, Cost::Compare, ORDER, |_, args| ordered(args, Ordering::is_ge)),
    function(
        "@in",
        Form::Global,
        Cost::In,
        &[(&[T::A, T::List(&T::A)], T::Bool), (&[T::A, T::Map(&T::A, &T::B)], T::Bool)],
        contained,
    ),
    global(
        "_[_]",
        &[
            (&[T::List(&T::A), T::Int], T::A),
            (&[T::Map(&T::A, &T::B), T::A], T::B),
            (&[T::Opt(&T::List(&T::A)), T::Int], T::Opt(&T::A)),
            (&[T::Opt(&T::Map(&T::A, &T::B)), T::A], T::Opt(&T::B)),
        ],
        |_, args| at(args, false),
    ),
    global(
        "_[?_]",
        &[
            (&[T::List(&T::A), T::Int], T::Opt(&T::A)),
            (&[T::Map(&T::A, &T::B), T::A], T::Opt(&T::B)),
            (&[T::Opt(&T::List(&T::A)), T::Int], T::Opt(&T::A)),
            (&[T::Opt(&T::Map(&T::A, &T::B)), T::A], T::Opt(&T::B)),
        ],
        |_, args| at(args, true),
    ),
];

fn whole<'a, N: Into<Value<'a>>>(result: Option<N>, what: &str) -> Result<Value<'a>, EvalError> {
    match result {
        Some(n) => Ok(n.into()),
        None => EvalError::failed(what),
    }
}

impl From<i64> for Value<'_> {
    fn from(n: i64) -> Self {
        Value::Int(n)
    }
}

impl From<u64> for Value<'_> {
    fn from(n: u64) -> Self {
        Value::Uint(n)
    }
}

const INT: &str = "integer overflow";
const UINT: &str = "unsigned integer overflow";

fn moment<'a>(time: &Timestamp, nanos: i128) -> Result<Value<'a>, EvalError> {
    match time::in_range(time.as_nanosecond() + nanos) {
        Some(time) => Ok(Value::Timestamp(time)),
        None => EvalError::failed("timestamp overflow"),
    }
}

fn span<'a>(nanos: Option<i64>) -> Result<Value<'a>, EvalError> {
    nanos.map_or_else(|| EvalError::failed("duration overflow"), |n| Ok(Value::Duration(n)))
}

fn add<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Int(a), Value::Int(b)] => whole(a.checked_add(*b), INT),
        [Value::Uint(a), Value::Uint(b)] => whole(a.checked_add(*b), UINT),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::String(a), Value::String(b)] => {
            cx.meter.work(a.len() as u64 + b.len() as u64)?;
            Ok([&**a, &**b].concat().into())
        }
        [Value::Bytes(a), Value::Bytes(b)] => {
            cx.meter.work(a.len() as u64 + b.len() as u64)?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        [Value::List(a), Value::List(b)] => {
            let mut items = elements(a, cx.meter)?;
            items.extend(elements(b, cx.meter)?);
            Ok(items.into())
        }
        [Value::Duration(a), Value::Duration(b)] => span(a.checked_add(*b)),
        [Value::Timestamp(time), Value::Duration(nanos)]
        | [Value::Duration(nanos), Value::Timestamp(time)] => moment(time, i128::from(*nanos)),
        _ => no_overload(),
    }
}

fn subtract<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Int(a), Value::Int(b)] => whole(a.checked_sub(*b), INT),
        [Value::Uint(a), Value::Uint(b)] => whole(a.checked_sub(*b), UINT),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Duration(a), Value::Duration(b)] => span(a.checked_sub(*b)),
        [Value::Timestamp(time), Value::Duration(nanos)] => moment(time, -i128::from(*nanos)),
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            span(i64::try_from(a.as_nanosecond() - b.as_nanosecond()).ok())
        }
        _ => no_overload(),
    }
}

fn multiply<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Int(a), Value::Int(b)] => whole(a.checked_mul(*b), INT),
        [Value::Uint(a), Value::Uint(b)] => whole(a.checked_mul(*b), UINT),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
        _ => no_overload(),
    }
}

fn divide<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            EvalError::failed("division by zero")
        }
        [Value::Int(a), Value::Int(b)] => whole(a.checked_div(*b), INT),
        [Value::Uint(a), Value::Uint(b)] => whole(a.checked_div(*b), UINT),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
        _ => no_overload(),
    }
}

fn modulo<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            EvalError::failed("modulus by zero")
        }
        [Value::Int(a), Value::Int(b)] => whole(a.checked_rem(*b), INT),
        [Value::Uint(a), Value::Uint(b)] => whole(a.checked_rem(*b), UINT),
        _ => no_overload(),
    }
}

fn negate<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Int(n)] => whole(n.checked_neg(), INT),
        [Value::Double(n)] => Ok(Value::Double(-n)),
        [Value::Duration(n)] => span(n.checked_neg()),
        _ => no_overload(),
    }
}

fn not<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => no_overload(),
    }
}

fn equal(cx: &mut Cx<'_>, args: &[Value<'_>]) -> Result<bool, EvalError> {
    match args {
        [a, b] => a.equals(b, cx.meter),
        _ => no_overload(),
    }
}

fn ordered<'a>(args: &[Value<'_>], test: fn(Ordering) -> bool) -> Result<Value<'a>, EvalError> {
    match args {
        [a, b] => match a.order(b) {
            Some(order) => Ok(Value::Bool(order.is_some_and(test))),
            None => no_overload(),
        },
        _ => no_overload(),
    }
}

fn contained<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [value, Value::List(list)] => {
            for item in list.iter() {
                if value.equals(&item?, cx.meter)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        [key, Value::Map(map)] => Ok(Value::Bool(map.get(key)?.is_some())),
        _ => no_overload(),
    }
}

/// Converts a list index of any numeric type.
fn position(index: &Value<'_>) -> Result<i64, EvalError> {
    match index {
        Value::Int(n) => Ok(*n),
        Value::Uint(n) => Ok(i64::try_from(*n).unwrap_or(i64::MAX)),
        #[allow(clippy::cast_possible_truncation)] // it has no fraction, and saturates
        Value::Double(n) if n.fract() == 0.0 => Ok(*n as i64),
        Value::Double(_) => EvalError::failed("unsupported index value"),
        _ => no_overload(),
    }
}

fn show_key(key: &Value<'_>) -> String {
    super::convert::text_of(key).unwrap_or_else(|| key.type_name().to_owned())
}

/// Returns the element at an index or key. `None`: absent.
pub(crate) fn index<'a>(value: &Value<'a>, index: &Value<'_>) -> Result<Option<Value<'a>>, EvalError> {
    match value {
        Value::List(list) => match usize::try_from(position(index)?) {
            Ok(i) => list.get(i),
            Err(_) => Ok(None),
        },
        Value::Map(map) => map.get(index),
        _ => no_overload(),
    }
}

fn at<'a>(args: &[Value<'a>], optional: bool) -> Result<Value<'a>, EvalError> {
    let [value, key] = args else { return no_overload() };
    match value {
        Value::Optional(None) => Ok(None.into()),
        Value::Optional(Some(value)) => index(value, key).map(Value::from),
        value if optional => index(value, key).map(Value::from),
        value => match (index(value, key)?, value) {
            (Some(found), _) => Ok(found),
            (None, Value::List(List::Json(..) | List::Made(_))) => {
                EvalError::failed(format!("index out of bounds: {}", position(key)?))
            }
            (None, _) => Err(EvalError::NoSuchKey(show_key(key))),
        },
    }
}
