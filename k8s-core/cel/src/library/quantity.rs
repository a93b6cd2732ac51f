//! Resource quantities, and the functions that they share with semantic versions.

use std::cmp::Ordering;

use super::{Cost, Form, Function, function, member, no_overload};
use crate::{
    error::{EvalError, short},
    types::{Opaque, T},
    value::Value,
};
use k8s_quantity::Quantity;

const QUANTITY: T = T::Op(Opaque::Quantity);
const SEMVER: T = T::Op(Opaque::Semver);
const TESTS: &[(&[T], T)] = &[(&[QUANTITY, QUANTITY], T::Bool), (&[SEMVER, SEMVER], T::Bool)];
const SUMS: &[(&[T], T)] = &[(&[QUANTITY, QUANTITY], QUANTITY), (&[QUANTITY, T::Int], QUANTITY)];

pub(super) const FUNCTIONS: &[Function] = &[
    function("quantity", Form::Global, Cost::Traverse(1), &[(&[T::Str], QUANTITY)], |_, args| match args {
        [Value::String(text)] => match text.parse() {
            Ok(quantity) => Ok(Value::Quantity(quantity)),
            Err(e) => EvalError::failed(format!("{e}: {:?}", short(text))),
        },
        _ => no_overload(),
    }),
    function("isQuantity", Form::Global, Cost::Traverse(1), &[(&[T::Str], T::Bool)], |_, args| match args {
        [Value::String(text)] => Ok(Value::Bool(text.parse::<Quantity>().is_ok())),
        _ => no_overload(),
    }),
    member("sign", &[(&[QUANTITY], T::Int)], |_, args| one(args, |q| Ok(Value::Int(sign(q))))),
    member("isInteger", &[(&[QUANTITY], T::Bool)], |_, args| {
        one(args, |q| Ok(Value::Bool(whole(q).is_some())))
    }),
    member("asInteger", &[(&[QUANTITY], T::Int)], |_, args| {
        one(args, |q| match whole(q) {
            Some(n) => Ok(Value::Int(n)),
            None => EvalError::failed("cannot convert value to integer"),
        })
    }),
    member("asApproximateFloat", &[(&[QUANTITY], T::Double)], |_, args| {
        one(args, |q| Ok(Value::Double(float(q))))
    }),
    member("isGreaterThan", TESTS, |_, args| Ok(Value::Bool(order(args)?.is_gt()))),
    member("isLessThan", TESTS, |_, args| Ok(Value::Bool(order(args)?.is_lt()))),
    member("compareTo", &[(&[QUANTITY, QUANTITY], T::Int), (&[SEMVER, SEMVER], T::Int)], |_, args| {
        Ok(Value::Int(order(args)? as i64))
    }),
    member("add", SUMS, |_, args| sum(args, |a, b| a + b)),
    member("sub", SUMS, |_, args| sum(args, |a, b| a - b)),
];

fn one<'a>(
    args: &[Value<'a>],
    f: fn(&Quantity) -> Result<Value<'a>, EvalError>,
) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Quantity(quantity)] => f(quantity),
        _ => no_overload(),
    }
}

fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    match args {
        [Value::Quantity(a), Value::Quantity(b)] => Ok(a.cmp(b)),
        [Value::Semver(a), Value::Semver(b)] => Ok(a.order(b)),
        _ => no_overload(),
    }
}

fn sum<'a>(args: &[Value<'a>], f: fn(Quantity, Quantity) -> Quantity) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Quantity(a), Value::Quantity(b)] => Ok(Value::Quantity(f(*a, *b))),
        [Value::Quantity(a), Value::Int(b)] => Ok(Value::Quantity(f(*a, Quantity::from_units(*b)))),
        _ => no_overload(),
    }
}

fn sign(quantity: &Quantity) -> i64 {
    match (quantity.is_zero(), quantity.is_negative()) {
        (true, _) => 0,
        (_, true) => -1,
        _ => 1,
    }
}

/// Returns the amount if it is an integer.
fn whole(quantity: &Quantity) -> Option<i64> {
    let units = quantity.units();
    (Quantity::from_units(units) == *quantity).then_some(units)
}

/// Returns the amount as a double, from its canonical form.
#[allow(clippy::cast_precision_loss)] // it is approximate
fn float(quantity: &Quantity) -> f64 {
    if let Some(units) = whole(quantity) {
        return units as f64;
    }
    // Fractional amounts end in `n`, `u` or `m`, or in an exponent.
    let text = quantity.to_string();
    let text = ["n", "u", "m"]
        .iter()
        .zip(["e-9", "e-6", "e-3"])
        .fold(text, |t, (sign, power)| t.replace(sign, power));
    text.parse().unwrap_or(f64::NAN)
}
