//! Optional values.

use super::{Cx, Function, global, member, no_overload};
use crate::{error::EvalError, types::T, value::Value};

const MAYBE: &[(&[T], T)] = &[(&[T::A], T::Opt(&T::A))];

pub(super) const FUNCTIONS: &[Function] = &[
    global("optional.of", MAYBE, |_, args| Ok(args.first().cloned().into())),
    global("optional.none", &[(&[], T::Opt(&T::Dyn))], |_, _| Ok(None.into())),
    global("optional.ofNonZeroValue", MAYBE, |_, args| {
        Ok(args.first().filter(|value| !is_zero(value)).cloned().into())
    }),
    member("hasValue", &[(&[T::Opt(&T::A)], T::Bool)], |_, args| match args {
        [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
        _ => no_overload(),
    }),
    member("value", &[(&[T::Opt(&T::A)], T::A)], value),
    // The evaluator implements these two lazily: the argument is evaluated only if it is needed.
    member("orValue", &[(&[T::Opt(&T::A), T::A], T::A)], |_, args| match args {
        [Value::Optional(Some(value)), _] => Ok((**value).clone()),
        [Value::Optional(None), other] => Ok(other.clone()),
        _ => no_overload(),
    }),
    member("or", &[(&[T::Opt(&T::A), T::Opt(&T::A)], T::Opt(&T::A))], |_, args| match args {
        [Value::Optional(None), other @ Value::Optional(_)] => Ok(other.clone()),
        [some @ Value::Optional(_), Value::Optional(_)] => Ok(some.clone()),
        _ => no_overload(),
    }),
];

fn value<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Optional(Some(value))] => Ok((**value).clone()),
        [Value::Optional(None)] => EvalError::failed("optional.none() dereference"),
        _ => no_overload(),
    }
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Int(n) | Value::Duration(n) => *n == 0,
        Value::Uint(n) => *n == 0,
        Value::Double(n) => *n == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Optional(value) => value.as_deref().is_none_or(is_zero),
        _ => false,
    }
}
