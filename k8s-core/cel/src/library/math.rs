//! Minimum, maximum and rounding.

use std::cmp::Ordering;

use super::{Function, global, no_overload};
use crate::{error::EvalError, types::T, value::Value};

const FEW: &[(&[T], T)] = &[
    (&[T::List(&T::A)], T::A),
    (&[T::Int], T::Int),
    (&[T::Uint], T::Uint),
    (&[T::Double], T::Double),
    (&[T::A, T::A], T::A),
    (&[T::Dyn, T::Dyn], T::Dyn),
    (&[T::Dyn, T::Dyn, T::Dyn], T::Dyn),
    (&[T::Dyn, T::Dyn, T::Dyn, T::Dyn], T::Dyn),
    (&[T::Dyn, T::Dyn, T::Dyn, T::Dyn, T::Dyn], T::Dyn),
];
const ROUND: &[(&[T], T)] = &[(&[T::Double], T::Double)];
const TEST: &[(&[T], T)] = &[(&[T::Double], T::Bool)];
const NUMBER: &[(&[T], T)] = &[(&[T::Int], T::Int), (&[T::Uint], T::Uint), (&[T::Double], T::Double)];

pub(super) const FUNCTIONS: &[Function] = &[
    global("math.least", FEW, |_, args| most(args, Ordering::Less)),
    global("math.greatest", FEW, |_, args| most(args, Ordering::Greater)),
    global("math.ceil", ROUND, |_, args| double(args, |n| Value::Double(n.ceil()))),
    global("math.floor", ROUND, |_, args| double(args, |n| Value::Double(n.floor()))),
    global("math.round", ROUND, |_, args| double(args, |n| Value::Double(n.round()))),
    global("math.trunc", ROUND, |_, args| double(args, |n| Value::Double(n.trunc()))),
    global("math.isNaN", TEST, |_, args| double(args, |n| Value::Bool(n.is_nan()))),
    global("math.isInf", TEST, |_, args| double(args, |n| Value::Bool(n.is_infinite()))),
    global("math.isFinite", TEST, |_, args| double(args, |n| Value::Bool(n.is_finite()))),
    global("math.abs", NUMBER, |_, args| match args {
        [Value::Int(n)] => match n.checked_abs() {
            Some(n) => Ok(Value::Int(n)),
            None => EvalError::failed("integer overflow"),
        },
        [Value::Uint(n)] => Ok(Value::Uint(*n)),
        [Value::Double(n)] => Ok(Value::Double(n.abs())),
        _ => no_overload(),
    }),
    global("math.sign", NUMBER, |_, args| match args {
        [Value::Int(n)] => Ok(Value::Int(n.signum())),
        [Value::Uint(n)] => Ok(Value::Uint((*n).min(1))),
        [Value::Double(n)] if *n == 0.0 || n.is_nan() => Ok(Value::Double(*n)),
        [Value::Double(n)] => Ok(Value::Double(n.signum())),
        _ => no_overload(),
    }),
];

fn double<'a>(args: &[Value<'a>], f: fn(f64) -> Value<'a>) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Double(n)] => Ok(f(*n)),
        _ => no_overload(),
    }
}

fn most<'a>(args: &[Value<'a>], wanted: Ordering) -> Result<Value<'a>, EvalError> {
    let mut best: Option<Value<'a>> = None;
    let mut look = |value: Value<'a>| {
        if !matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_)) {
            return no_overload();
        }
        if best.as_ref().is_none_or(|best| value.order(best) == Some(Some(wanted))) {
            best = Some(value);
        }
        Ok(())
    };
    match args {
        [Value::List(list)] => list.iter().try_for_each(|item| look(item?))?,
        args => args.iter().cloned().try_for_each(look)?,
    }
    match best {
        Some(best) => Ok(best),
        None => EvalError::failed("argument must not be empty"),
    }
}
