//! Regular expressions with RE2 syntax: `\d` and similar classes are ASCII only, and syntax unknown to RE2 is
//! an error.

use regex::{Regex, RegexBuilder};

use super::{Cost, Cx, Form, Function, function, made, no_overload};
use crate::{error::EvalError, types::T, value::Value};

/// Maximum size of a compiled pattern in bytes.
const SIZE: usize = 256 << 10;
/// Number of compiled patterns that an evaluation caches.
const KEPT: usize = 4;
/// Work charged for compiling a pattern.
const COMPILING: u64 = 20_000;

pub(super) const FUNCTIONS: &[Function] = &[
    function(
        "matches",
        Form::Either,
        Cost::Pattern,
        &[(&[T::Str, T::Str], T::Bool)],
        |cx, args| match args {
            [Value::String(text), Value::String(pattern)] => {
                let found = find(cx, pattern, text.len())?;
                Ok(Value::Bool(found.is_match(text)))
            }
            _ => no_overload(),
        },
    ),
    function("find", Form::Member, Cost::Pattern, &[(&[T::Str, T::Str], T::Str)], |cx, args| match args {
        [Value::String(text), Value::String(pattern)] => {
            let found = find(cx, pattern, text.len())?.find(text);
            Ok(found.map(|m| m.as_str().to_owned()).unwrap_or_default().into())
        }
        _ => no_overload(),
    }),
    function(
        "findAll",
        Form::Member,
        Cost::Pattern,
        &[(&[T::Str, T::Str], T::List(&T::Str)), (&[T::Str, T::Str, T::Int], T::List(&T::Str))],
        find_all,
    ),
];

fn find_all<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let (text, pattern, most) = match args {
        [Value::String(text), Value::String(pattern)] => (text, pattern, -1),
        [Value::String(text), Value::String(pattern), Value::Int(most)] => (text, pattern, *most),
        _ => return no_overload(),
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let pattern = find(cx, pattern, text.len())?.clone();
    let mut all = Vec::new();
    let mut behind = text.len() as u64;
    for found in pattern.find_iter(text).take(most) {
        // A search may scan the whole rest and match little of it.
        let left = text.len() as u64 - found.end() as u64;
        cx.meter.work(64 + found.len() as u64 + behind.saturating_sub(left))?;
        behind = left;
        all.push(found.as_str().to_owned().into());
    }
    made(all, cx.meter)
}

/// Cache of the patterns compiled by an evaluation.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    recent: Vec<(String, Regex)>,
}

/// Returns the compiled pattern from the cache; charges for its use on a text of this length.
fn find<'c>(cx: &'c mut Cx<'_>, pattern: &str, length: usize) -> Result<&'c Regex, EvalError> {
    let (meter, recent) = (&mut *cx.meter, &mut cx.patterns.recent);
    let states = (pattern.len() as u64).saturating_mul(weight(pattern)).min(SIZE as u64 / 16);
    meter.work((length as u64).saturating_mul(1 + states / 16))?;
    if let Some((_, compiled)) = cx.written.iter().find(|(known, _)| known == pattern) {
        return Ok(compiled);
    }
    let position = match recent.iter().position(|(known, _)| known == pattern) {
        Some(position) => position,
        None => {
            meter.work(COMPILING + (pattern.len() as u64).saturating_mul(weight(pattern)))?;
            let compiled = compile(pattern).map_err(EvalError::Failed)?;
            if recent.len() >= KEPT {
                recent.remove(0);
            }
            recent.push((pattern.to_owned(), compiled));
            recent.len() - 1
        }
    };
    match recent.get(position) {
        Some((_, found)) => Ok(found),
        None => EvalError::failed("no pattern"),
    }
}

/// Returns an upper bound on the growth of a pattern when its repetitions are expanded.
fn weight(pattern: &str) -> u64 {
    let mut weight = 1u64;
    for piece in pattern.split('{').skip(1) {
        let counts = piece.split('}').next().unwrap_or_default();
        let most = counts.split(',').filter_map(|n| n.trim().parse::<u64>().ok()).max();
        weight = weight.saturating_mul(most.unwrap_or(1).max(1));
    }
    weight.min(10_000)
}

/// Compiles a pattern in RE2 syntax, with limits on its size.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(&translate(pattern)).size_limit(SIZE).nest_limit(100).build();
    built.map_err(|e| {
        let text = e.to_string();
        let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("error parsing regexp: {why}")
    })
}

/// Translates an RE2 pattern to the syntax of the `regex` crate.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped) => out.push_str(&class_of(escaped, class)),
                None => out.push('\\'),
            },
            '[' if !class => {
                class = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    out.push('^');
                    chars.next();
                }
                // As the first character of a class it is a literal.
                if chars.peek() == Some(&']') {
                    out.push_str("\\]");
                    chars.next();
                }
            }
            '[' if chars.peek() == Some(&':') => {
                // A class such as [:alpha:].
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            ']' => {
                class = false;
                out.push(']');
            }
            // Literals in RE2 classes, but operators in this crate's.
            '[' | '&' | '~' if class => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

fn class_of(escaped: char, class: bool) -> String {
    let (inner, negated) = match escaped {
        'd' => ("0-9", false),
        'D' => ("0-9", true),
        'w' => ("0-9A-Za-z_", false),
        'W' => ("0-9A-Za-z_", true),
        's' => ("\\t\\n\\f\\r ", false),
        'S' => ("\\t\\n\\f\\r ", true),
        'b' if !class => return "(?-u:\\b)".into(),
        'B' if !class => return "(?-u:\\B)".into(),
        c => return format!("\\{c}"),
    };
    match (class, negated) {
        (true, false) => inner.to_owned(),
        (_, true) => format!("[^{inner}]"),
        (false, false) => format!("[{inner}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_re2() {
        for (pattern, text, want) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١٢٣", false),
            (r"^[\w-]+$", "a-b_c", true),
            (r"^\w$", "é", false),
            ("^[^]a]$", "b", true),
            ("^[a&&b]+$", "a&b", true),
            ("^[[]$", "[", true),
            ("^[[:alpha:]]+$", "abc", true),
            (r"^\S+$", "a b", false),
            ("^.$", "é", true),
            (r"\bfoo\b", "a foo b", true),
        ] {
            assert_eq!(compile(pattern).unwrap().is_match(text), want, "{pattern} {text}");
        }
        for bad in ["(", "a{99999}", "(?=a)", r"\1", "(((a{99}){99}){99}){99}"] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
