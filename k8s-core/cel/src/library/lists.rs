//! List functions and sets.

use std::cmp::Ordering;

use super::{Cost, Cx, Form, Function, elements, function, made, no_overload};
use crate::{
    error::EvalError,
    meter::Meter,
    types::T,
    value::{List, Value},
};

const ORDERED: &[(&[T], T)] = &[(&[T::List(&T::A)], T::A)];
const SUMS: &[(&[T], T)] = &[
    (&[T::List(&T::Int)], T::Int),
    (&[T::List(&T::Uint)], T::Uint),
    (&[T::List(&T::Double)], T::Double),
    (&[T::List(&T::Dur)], T::Dur),
];
const SETS: &[(&[T], T)] = &[(&[T::List(&T::A), T::List(&T::A)], T::Bool)];

pub(super) const FUNCTIONS: &[Function] = &[
    function("isSorted", Form::Member, Cost::Walk, &[(&[T::List(&T::A)], T::Bool)], is_sorted),
    function("sum", Form::Member, Cost::Walk, SUMS, sum),
    function("min", Form::Member, Cost::Walk, ORDERED, |_, args| most(args, Ordering::Less)),
    function("max", Form::Member, Cost::Walk, ORDERED, |_, args| most(args, Ordering::Greater)),
    function("sets.contains", Form::Global, Cost::Pairs, SETS, |cx, args| match args {
        [Value::List(a), Value::List(b)] => Ok(Value::Bool(has_all(a, b, cx.meter)?)),
        _ => no_overload(),
    }),
    function("sets.equivalent", Form::Global, Cost::Pairs, SETS, |cx, args| match args {
        [Value::List(a), Value::List(b)] => {
            Ok(Value::Bool(has_all(a, b, cx.meter)? && has_all(b, a, cx.meter)?))
        }
        _ => no_overload(),
    }),
    function("sets.intersects", Form::Global, Cost::Pairs, SETS, |cx, args| match args {
        [Value::List(a), Value::List(b)] => {
            for item in b.iter() {
                if has(a, &item?, cx.meter)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        _ => no_overload(),
    }),
    function("lists.range", Form::Global, Cost::Fixed(1), &[(&[T::Int], T::List(&T::Int))], |cx, args| {
        match args {
            [Value::Int(n)] => {
                let n = u64::try_from(*n).unwrap_or(0);
                cx.meter.charge(n)?;
                cx.meter.work(n.saturating_mul(super::ELEMENT))?;
                Ok((0..i64::try_from(n).unwrap_or(0)).map(Value::Int).collect::<Vec<_>>().into())
            }
            _ => no_overload(),
        }
    }),
    function(
        "slice",
        Form::Member,
        Cost::Fixed(1),
        &[(&[T::List(&T::A), T::Int, T::Int], T::List(&T::A))],
        |cx, args| match args {
            [Value::List(list), Value::Int(from), Value::Int(to)] => {
                let (Ok(start), Ok(end)) = (usize::try_from(*from), usize::try_from(*to)) else {
                    return EvalError::failed(format!(
                        "cannot slice({from}, {to}), negative indexes not supported"
                    ));
                };
                if start > end || end > list.len() {
                    return EvalError::failed(format!(
                        "cannot slice({from}, {to}), list is length {}",
                        list.len()
                    ));
                }
                cx.meter.work(super::ELEMENT.saturating_mul((end - start) as u64))?;
                let items = (start..end).map(|i| Ok(list.get(i)?.unwrap_or(Value::Null)));
                Ok(items.collect::<Result<Vec<_>, EvalError>>()?.into())
            }
            _ => no_overload(),
        },
    ),
    function("distinct", Form::Member, Cost::Walk, &[(&[T::List(&T::A)], T::List(&T::A))], |cx, args| {
        match args {
            [Value::List(list)] => {
                let mut seen = Vec::new();
                for item in list.iter() {
                    let item = item?;
                    let mut found = false;
                    for other in &seen {
                        if item.equals(other, cx.meter)? {
                            found = true;
                            break;
                        }
                    }
                    if !found {
                        seen.push(item);
                    }
                }
                made(seen, cx.meter)
            }
            _ => no_overload(),
        }
    }),
];

fn is_sorted<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [Value::List(list)] = args else { return no_overload() };
    let items = elements(list, cx.meter)?;
    for pair in items.windows(2) {
        let [a, b] = pair else { continue };
        match a.order(b) {
            Some(order) if order.is_some_and(Ordering::is_gt) => return Ok(Value::Bool(false)),
            Some(_) => {}
            None => return no_overload(),
        }
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut total: Option<Value<'a>> = None;
    for item in list.iter() {
        let next = match (total, item?) {
            (None, n @ (Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_))) => Some(n),
            (Some(Value::Int(a)), Value::Int(b)) => a.checked_add(b).map(Value::Int),
            (Some(Value::Uint(a)), Value::Uint(b)) => a.checked_add(b).map(Value::Uint),
            (Some(Value::Double(a)), Value::Double(b)) => Some(Value::Double(a + b)),
            (Some(Value::Duration(a)), Value::Duration(b)) => a.checked_add(b).map(Value::Duration),
            _ => return no_overload(),
        };
        match next {
            Some(next) => total = Some(next),
            None => return EvalError::failed("integer overflow"),
        }
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

fn most<'a>(args: &[Value<'a>], wanted: Ordering) -> Result<Value<'a>, EvalError> {
    let [Value::List(list)] = args else { return no_overload() };
    let mut found: Option<Value<'a>> = None;
    for item in list.iter() {
        let item = item?;
        match &found {
            None => found = Some(item),
            Some(best) => match item.order(best) {
                Some(order) if order == Some(wanted) => found = Some(item),
                Some(_) => {}
                None => return no_overload(),
            },
        }
    }
    match found {
        Some(found) => Ok(found),
        None if wanted == Ordering::Less => EvalError::failed("min called on empty list"),
        None => EvalError::failed("max called on empty list"),
    }
}

/// Returns the index of a value in a list.
pub(super) fn find<'a>(
    list: &List<'a>,
    value: &Value<'a>,
    last: bool,
    meter: &mut Meter,
) -> Result<Value<'a>, EvalError> {
    let length = list.len();
    for i in 0..length {
        let i = if last { length - 1 - i } else { i };
        if let Some(item) = list.get(i)?
            && item.equals(value, meter)?
        {
            return Ok(Value::Int(i64::try_from(i).unwrap_or(i64::MAX)));
        }
    }
    Ok(Value::Int(-1))
}

fn has<'a>(list: &List<'a>, value: &Value<'a>, meter: &mut Meter) -> Result<bool, EvalError> {
    for item in list.iter() {
        if item?.equals(value, meter)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_all<'a>(list: &List<'a>, of: &List<'a>, meter: &mut Meter) -> Result<bool, EvalError> {
    for item in of.iter() {
        if !has(list, &item?, meter)? {
            return Ok(false);
        }
    }
    Ok(true)
}
