//! Semantic versions.

use std::{cmp::Ordering, fmt, sync::Arc};

use super::{Cost, Form, Function, convert::short, function, member, no_overload};
use crate::{
    error::EvalError,
    types::{Opaque, T},
    value::Value,
};

/// A semantic version.
#[derive(Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
    build: String,
}

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
            let number = version.numbers.get(i).copied().unwrap_or(0);
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

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl Semver {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{why}: {:?}", short(text));
        let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
        let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
        let mut numbers = [0; 3];
        let mut parts = core.split('.');
        for number in &mut numbers {
            let part = parts
                .next()
                .filter(|part| is_number(part))
                .ok_or_else(|| wrong("no Major.Minor.Patch elements found"))?;
            if part.len() > 1 && part.starts_with('0') {
                return Err(wrong("version number must not contain leading zeroes"));
            }
            *number = part.parse().map_err(|_| wrong("version number is too large"))?;
        }
        if parts.next().is_some() {
            return Err(wrong("invalid character(s) found in patch number"));
        }
        let pre: Vec<String> = pre.map(|pre| pre.split('.').map(str::to_owned).collect()).unwrap_or_default();
        if pre
            .iter()
            .any(|part| !is_identifier(part) || (is_number(part) && part.len() > 1 && part.starts_with('0')))
        {
            return Err(wrong("invalid pre-release"));
        }
        if build.is_some_and(|build| !build.split('.').all(is_identifier)) {
            return Err(wrong("invalid build meta data"));
        }
        Ok(Semver { numbers, pre, build: build.unwrap_or_default().to_owned() })
    }

    /// Compares by precedence; build metadata is ignored.
    pub(crate) fn order(&self, other: &Semver) -> Ordering {
        let core = self.numbers.cmp(&other.numbers);
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.pre.iter().zip(&other.pre);
                let differs = pairs.map(|(a, b)| order_parts(a, b)).find(|order| order.is_ne());
                differs.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        };
        core.then_with(pre)
    }
}

fn order_parts(a: &str, b: &str) -> Ordering {
    match (is_number(a), is_number(b)) {
        // Numeric identifiers have no leading zeros, so longer means larger.
        (true, true) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if self.build.is_empty() { Ok(()) } else { write!(f, "+{}", self.build) }
    }
}
