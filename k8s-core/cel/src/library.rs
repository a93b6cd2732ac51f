//! The function table, from which type checking, costs and evaluation are derived.

mod access;
mod convert;
pub(super) mod format;
mod ip;
mod lists;
mod math;
mod operators;
mod optional;
mod quantity;
mod regex;
pub(super) mod semver;
mod strings;
mod template;
pub(super) mod time;
pub(super) mod url;

use std::{collections::HashMap, sync::LazyLock};

#[cfg(test)]
pub(super) use self::convert::text_of;
pub(super) use self::regex::{Patterns, compile};

use super::{
    error::EvalError,
    meter::Meter,
    types::T,
    value::{List, Value},
};

/// Evaluation context of a function.
pub(super) struct Cx<'m> {
    pub(super) meter: &'m mut Meter,
    pub(super) patterns: &'m mut Patterns,
    /// Patterns that are literals in the expression, precompiled.
    pub(super) written: &'m [(String, ::regex::Regex)],
}

/// Implementation of a function. The target is the first argument.
pub(super) type Call = for<'a> fn(&mut Cx<'_>, &[Value<'a>]) -> Result<Value<'a>, EvalError>;

/// Call style of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A function: `f(x)`.
    Global,
    /// A method: `x.f()`.
    Member,
    /// A function or a method: `f(x)` or `x.f()`.
    Either,
}

/// Cost of a call besides its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// The same cost for all arguments.
    Fixed(u64),
    /// Traversals of the first argument's text.
    Traverse(u64),
    /// Traversal of the second argument's text.
    Second,
    /// Product of the two traversals.
    Contains,
    /// Matching a pattern against a text.
    Pattern,
    /// Number of elements of the second argument.
    In,
    /// Traversal of the smaller argument.
    Compare,
    /// Traversal of both texts; 1 for other types.
    Add,
    /// Two traversals of the resulting text.
    Join,
    /// Deep traversal of the first argument.
    Walk,
    /// Product of the two sizes.
    Pairs,
}

/// A row of the function table.
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) form: Form,
    pub(super) cost: Cost,
    pub(super) overloads: &'static [(&'static [T], T)],
    pub(super) call: Call,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn function(
    name: &'static str,
    form: Form,
    cost: Cost,
    overloads: &'static [(&'static [T], T)],
    call: Call,
) -> Function {
    Function { name, form, cost, overloads, call }
}

/// Creates a row for `f(x)` with cost 1.
const fn global(name: &'static str, overloads: &'static [(&'static [T], T)], call: Call) -> Function {
    function(name, Form::Global, Cost::Fixed(1), overloads, call)
}

/// Creates a row for `x.f()` with cost 1.
const fn member(name: &'static str, overloads: &'static [(&'static [T], T)], call: Call) -> Function {
    function(name, Form::Member, Cost::Fixed(1), overloads, call)
}

static LIBRARIES: [&[Function]; 14] = [
    operators::FUNCTIONS,
    convert::FUNCTIONS,
    time::FUNCTIONS,
    strings::FUNCTIONS,
    lists::FUNCTIONS,
    regex::FUNCTIONS,
    optional::FUNCTIONS,
    math::FUNCTIONS,
    url::FUNCTIONS,
    quantity::FUNCTIONS,
    ip::FUNCTIONS,
    semver::FUNCTIONS,
    format::FUNCTIONS,
    access::FUNCTIONS,
];

type Table = HashMap<(&'static str, bool), &'static Function>;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table::new();
    for function in LIBRARIES.iter().flat_map(|library| library.iter()) {
        if function.form != Form::Member {
            table.insert((function.name, false), function);
        }
        if function.form != Form::Global {
            table.insert((function.name, true), function);
        }
    }
    table
});

/// Looks up a function.
pub(super) fn find(name: &str, member: bool) -> Option<&'static Function> {
    TABLE.get(&(name, member)).copied()
}

/// Returns true if a function of this name exists in any style.
pub(super) fn is_known(name: &str) -> bool {
    find(name, true).or_else(|| find(name, false)).is_some()
}

/// Returns the canonical name of a type denotation.
pub(super) fn type_name(name: &str) -> Option<&'static str> {
    const NAMES: [&str; 25] = [
        "int",
        "uint",
        "double",
        "bool",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "optional_type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "dyn",
        "kubernetes.Quantity",
        "kubernetes.URL",
        "net.IP",
        "net.CIDR",
        "kubernetes.Semver",
        "kubernetes.NamedFormat",
        "kubernetes.authorization.Authorizer",
        "kubernetes.authorization.PathCheck",
        "kubernetes.authorization.GroupCheck",
        "kubernetes.authorization.ResourceCheck",
        "kubernetes.authorization.Decision",
    ];
    NAMES.into_iter().find(|known| *known == name)
}

/// Charges the cost of a call before it is executed.
pub(super) fn charge(cost: Cost, args: &[Value<'_>], meter: &mut Meter) -> Result<(), EvalError> {
    let size = |i: usize| args.get(i).map_or(1, Value::size);
    match cost {
        Cost::Fixed(n) => meter.charge(n),
        Cost::Traverse(times) => meter.traverse(size(0).saturating_mul(times)),
        Cost::Second => meter.traverse(size(1)),
        Cost::Contains => meter.charge(size(0).div_ceil(10).saturating_mul(size(1).div_ceil(10))),
        Cost::Pattern => meter.charge((size(0) + 1).div_ceil(10).saturating_mul(size(1).div_ceil(4))),
        Cost::In => meter.charge(size(1)),
        Cost::Compare => meter.charge(size(0).min(size(1)).div_ceil(10)),
        Cost::Add => match args {
            [Value::String(_) | Value::Bytes(_), _] => meter.traverse(size(0).saturating_add(size(1))),
            _ => meter.charge(1),
        },
        // Charged when the result is known.
        Cost::Join => Ok(()),
        Cost::Walk => args.first().map_or(Ok(()), |value| walk(value, meter)),
        Cost::Pairs => meter.charge(size(0).saturating_mul(size(1))),
    }
}

/// Charges a deep traversal of a value.
fn walk(value: &Value<'_>, meter: &mut Meter) -> Result<(), EvalError> {
    match value {
        Value::String(_) | Value::Bytes(_) => meter.charge(value.size() / 10),
        Value::List(list) => {
            meter.work(list.len() as u64)?;
            list.iter().try_for_each(|item| walk(&item?, meter))
        }
        Value::Map(map) => {
            meter.work(map.len() as u64)?;
            map.entries().try_for_each(|entry| {
                let (key, value) = entry?;
                walk(&key, meter)?;
                walk(&value, meter)
            })
        }
        _ => meter.charge(1),
    }
}

fn no_overload<T>() -> Result<T, EvalError> {
    Err(EvalError::NoSuchOverload)
}

/// Bytes that a list element counts as.
const ELEMENT: u64 = 64;

/// Creates a list and charges for it.
fn made<'a>(items: Vec<Value<'a>>, meter: &mut Meter) -> Result<Value<'a>, EvalError> {
    meter.work(ELEMENT.saturating_mul(items.len() as u64))?;
    Ok(items.into())
}

fn elements<'a>(list: &List<'a>, meter: &mut Meter) -> Result<Vec<Value<'a>>, EvalError> {
    meter.work(ELEMENT.saturating_mul(list.len() as u64))?;
    list.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        let mut seen = std::collections::HashSet::new();
        for function in LIBRARIES.iter().flat_map(|library| library.iter()) {
            let forms: &[bool] = match function.form {
                Form::Global => &[false],
                Form::Member => &[true],
                Form::Either => &[false, true],
            };
            for form in forms {
                assert!(seen.insert((function.name, *form)), "{} is there twice", function.name);
            }
            assert!(!function.overloads.is_empty(), "{}", function.name);
        }
    }
}
