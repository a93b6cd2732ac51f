//! Functions of semantic versions.

use std::sync::Arc;

use super::{Cost, Form, Function, function, member, no_overload};
use crate::{
    error::EvalError,
    types::{Opaque, T},
    value::{Value, semver::Semver},
};

const SEMVER: T = T::Op(Opaque::Semver);
const NUMBER: &[(&[T], T)] = &[(&[SEMVER], T::Int)];

pub(super) const FUNCTIONS: &[Function] = &[
    function(
        "semver",
        Form::Global,
        Cost::Traverse(1),
        &[(&[T::Str], SEMVER), (&[T::Str, T::Bool], SEMVER)],
        |_, args| match read(args)? {
            Ok(version) => Ok(Value::Semver(Arc::new(version))),
            Err(why) => EvalError::failed(why),
        },
    ),
    function(
        "isSemver",
        Form::Global,
        Cost::Traverse(1),
        &[(&[T::Str], T::Bool), (&[T::Str, T::Bool], T::Bool)],
        |_, args| Ok(Value::Bool(read(args)?.is_ok())),
    ),
    member("major", NUMBER, |_, args| number(args, 0)),
    member("minor", NUMBER, |_, args| number(args, 1)),
    member("patch", NUMBER, |_, args| number(args, 2)),
];

fn number<'a>(args: &[Value<'a>], i: usize) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Semver(version)] => {
            let number = version.numbers().get(i).copied().unwrap_or(0);
            Ok(Value::Int(i64::try_from(number).unwrap_or(i64::MAX)))
        }
        _ => no_overload(),
    }
}

fn read(args: &[Value<'_>]) -> Result<Result<Semver, String>, EvalError> {
    match args {
        [Value::String(text)] | [Value::String(text), Value::Bool(false)] => Ok(Semver::parse(text)),
        [Value::String(text), Value::Bool(true)] => Ok(normalize(text).and_then(|text| Semver::parse(&text))),
        _ => no_overload(),
    }
}

/// Removes a leading `v` and leading zeros, and adds missing numbers.
fn normalize(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text
        .splitn(3, '.')
        .map(|part| {
            let cut = part.trim_start_matches('0');
            let needs_zero = part.len() != cut.len() && !cut.starts_with(|c: char| c.is_ascii_digit());
            if needs_zero { format!("0{cut}") } else { cut.to_owned() }
        })
        .collect();
    if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".into());
    }
    while parts.len() < 3 {
        parts.push("0".into());
    }
    Ok(parts.join("."))
}
