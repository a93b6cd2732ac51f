//! String functions. Positions are counted in characters.

use std::fmt::Write;

use super::{Cost, Cx, Form, Function, function, lists, made, member, no_overload, template};
use crate::{
    error::EvalError,
    types::T,
    value::{Text, Value},
};

const TEXT_TO_TEXT: &[(&[T], T)] = &[(&[T::Str], T::Str)];
const TWO_TO_BOOL: &[(&[T], T)] = &[(&[T::Str, T::Str], T::Bool)];
const FIND: &[(&[T], T)] =
    &[(&[T::Str, T::Str], T::Int), (&[T::Str, T::Str, T::Int], T::Int), (&[T::List(&T::A), T::A], T::Int)];

pub(super) const FUNCTIONS: &[Function] = &[
    function("jsonpatch.escapeKey", Form::Global, Cost::Traverse(1), &[(&[T::Str], T::Str)], |_, args| {
        match args {
            [Value::String(key)] => Ok(key.replace('~', "~0").replace('/', "~1").into()),
            _ => no_overload(),
        }
    }),
    function("contains", Form::Member, Cost::Contains, TWO_TO_BOOL, |cx, args| {
        test(cx, args, |a, b| a.contains(b))
    }),
    function("startsWith", Form::Member, Cost::Second, TWO_TO_BOOL, |cx, args| {
        test(cx, args, |a, b| a.starts_with(b))
    }),
    function("endsWith", Form::Member, Cost::Second, TWO_TO_BOOL, |cx, args| {
        test(cx, args, |a, b| a.ends_with(b))
    }),
    member("charAt", &[(&[T::Str, T::Int], T::Str)], char_at),
    function("indexOf", Form::Member, Cost::Walk, FIND, |cx, args| find(cx, args, false)),
    function("lastIndexOf", Form::Member, Cost::Walk, FIND, |cx, args| find(cx, args, true)),
    function("lowerAscii", Form::Member, Cost::Traverse(1), TEXT_TO_TEXT, |_, args| {
        map(args, str::to_ascii_lowercase)
    }),
    function("upperAscii", Form::Member, Cost::Traverse(1), TEXT_TO_TEXT, |_, args| {
        map(args, str::to_ascii_uppercase)
    }),
    function("trim", Form::Member, Cost::Traverse(1), TEXT_TO_TEXT, |_, args| {
        map(args, |text| text.trim().to_owned())
    }),
    function("reverse", Form::Member, Cost::Traverse(1), TEXT_TO_TEXT, |_, args| {
        map(args, |text| text.chars().rev().collect())
    }),
    function(
        "replace",
        Form::Member,
        Cost::Traverse(2),
        &[(&[T::Str, T::Str, T::Str], T::Str), (&[T::Str, T::Str, T::Str, T::Int], T::Str)],
        replace,
    ),
    function(
        "split",
        Form::Member,
        Cost::Traverse(2),
        &[(&[T::Str, T::Str], T::List(&T::Str)), (&[T::Str, T::Str, T::Int], T::List(&T::Str))],
        split,
    ),
    function(
        "substring",
        Form::Member,
        Cost::Traverse(1),
        &[(&[T::Str, T::Int], T::Str), (&[T::Str, T::Int, T::Int], T::Str)],
        substring,
    ),
    function(
        "join",
        Form::Member,
        Cost::Join,
        &[(&[T::List(&T::Str)], T::Str), (&[T::List(&T::Str), T::Str], T::Str)],
        join,
    ),
    function(
        "format",
        Form::Member,
        Cost::Traverse(1),
        &[(&[T::Str, T::List(&T::Dyn)], T::Str)],
        |cx, args| match args {
            [Value::String(text), Value::List(list)] => template::fill(text, list, cx.meter).map(Value::from),
            _ => no_overload(),
        },
    ),
    function("strings.quote", Form::Global, Cost::Traverse(1), TEXT_TO_TEXT, quote),
];

fn test<'a>(
    cx: &mut Cx<'_>,
    args: &[Value<'a>],
    holds: fn(&str, &str) -> bool,
) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::String(a), Value::String(b)] => {
            cx.meter.work((a.len() as u64 + b.len() as u64) / 8)?;
            Ok(Value::Bool(holds(a, b)))
        }
        _ => no_overload(),
    }
}

fn map<'a>(args: &[Value<'a>], f: fn(&str) -> String) -> Result<Value<'a>, EvalError> {
    match args {
        // The cost is charged before.
        [Value::String(text)] => Ok(f(text).into()),
        _ => no_overload(),
    }
}

/// Returns the byte offset of a character index; the length is valid, too.
fn byte_of(text: &str, index: i64) -> Option<usize> {
    let index = usize::try_from(index).ok()?;
    text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(index)
}

fn out_of_range<T>(index: i64) -> Result<T, EvalError> {
    EvalError::failed(format!("index out of range: {index}"))
}

fn char_at<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [Value::String(text), Value::Int(index)] = args else { return no_overload() };
    cx.meter.work(text.len() as u64 / 4)?;
    let Some(start) = byte_of(text, *index) else { return out_of_range(*index) };
    let char = text.get(start..).and_then(|rest| rest.chars().next());
    Ok(char.map(String::from).unwrap_or_default().into())
}

fn find<'a>(cx: &mut Cx<'_>, args: &[Value<'a>], last: bool) -> Result<Value<'a>, EvalError> {
    let (text, part, from) = match args {
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, Some(*from)),
        [Value::List(list), value] => return lists::find(list, value, last, cx.meter),
        _ => return no_overload(),
    };
    cx.meter.work(text.len() as u64 + part.len() as u64)?;
    let count = |bytes: usize| {
        let before = text.get(..bytes).unwrap_or_default();
        Value::Int(i64::try_from(before.chars().count()).unwrap_or(i64::MAX))
    };
    if part.is_empty() {
        return match from {
            Some(n) if byte_of(text, n).is_none() => out_of_range(n),
            Some(n) => Ok(Value::Int(n)),
            None => Ok(if last { count(text.len()) } else { Value::Int(0) }),
        };
    }
    let found = match (from, last) {
        (None, false) => text.find(&**part),
        (None, true) => text.rfind(&**part),
        (Some(n), _) => {
            let Some(start) = byte_of(text, n) else { return out_of_range(n) };
            if last {
                // Matches that start at or before this position.
                let end = start.saturating_add(part.len()).min(text.len());
                let end = (end..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
                text.get(..end).and_then(|text| text.rfind(&**part)).filter(|at| *at <= start)
            } else {
                text.get(start..).and_then(|text| text.find(&**part)).map(|at| at + start)
            }
        }
    };
    Ok(found.map_or(Value::Int(-1), count))
}

fn replace<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let (text, from, to, most) = match args {
        [Value::String(text), Value::String(from), Value::String(to)] => (text, from, to, -1),
        [Value::String(text), Value::String(from), Value::String(to), Value::Int(most)] => {
            (text, from, to, *most)
        }
        _ => return no_overload(),
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    cx.meter.work(text.len() as u64 + from.len() as u64)?;
    let count = text.matches(&**from).take(most).count() as u64;
    cx.meter.work(count.saturating_mul(to.len() as u64 + 4))?;
    Ok(text.replacen(&**from, to, most).into())
}

/// Returns a substring, borrowed if the text is.
fn piece<'a>(text: &Text<'a>, range: std::ops::Range<usize>) -> Value<'a> {
    match text {
        Text::Borrowed(text) => Value::String(Text::Borrowed(text.get(range).unwrap_or_default())),
        Text::Shared(text) => text.get(range).unwrap_or_default().to_owned().into(),
    }
}

fn split<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let (text, by, most) = match args {
        [Value::String(text), Value::String(by)] => (text, by, -1),
        [Value::String(text), Value::String(by), Value::Int(most)] => (text, by, *most),
        _ => return no_overload(),
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    cx.meter.work(text.len() as u64 + by.len() as u64)?;
    if most == 0 {
        return Ok(Vec::new().into());
    }
    let mut pieces = Vec::new();
    let mut start = 0;
    if by.is_empty() {
        for (at, char) in text.char_indices() {
            cx.meter.work(32)?;
            if pieces.len() + 1 == most {
                break;
            }
            start = at + char.len_utf8();
            pieces.push(piece(text, at..start));
        }
        if start < text.len() {
            pieces.push(piece(text, start..text.len()));
        }
        return made(pieces, cx.meter);
    }
    for (at, _) in text.match_indices(&**by) {
        cx.meter.work(32)?;
        if pieces.len() + 1 == most {
            break;
        }
        pieces.push(piece(text, start..at));
        start = at + by.len();
    }
    pieces.push(piece(text, start..text.len()));
    made(pieces, cx.meter)
}

fn substring<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let (text, start, end) = match args {
        [Value::String(text), Value::Int(start)] => (text, *start, None),
        [Value::String(text), Value::Int(start), Value::Int(end)] => (text, *start, Some(*end)),
        _ => return no_overload(),
    };
    cx.meter.work(text.len() as u64)?;
    if let Some(end) = end.filter(|end| start > *end) {
        return EvalError::failed(format!("invalid substring range. start: {start}, end: {end}"));
    }
    let Some(from) = byte_of(text, start) else { return out_of_range(start) };
    let to = match end {
        Some(end) => match byte_of(text, end) {
            Some(to) => to,
            None => return out_of_range(end),
        },
        None => text.len(),
    };
    Ok(piece(text, from..to))
}

fn join<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let (list, by) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(by)] => (list, &**by),
        _ => return no_overload(),
    };
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        let item = item?;
        let Some(text) = item.as_str() else { return no_overload() };
        cx.meter.work(text.len() as u64 + by.len() as u64 + 1)?;
        if i > 0 {
            out.push_str(by);
        }
        out.push_str(text);
    }
    cx.meter.traverse(out.len() as u64 * 2)?;
    Ok(out.into())
}

fn quote<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [Value::String(text)] = args else { return no_overload() };
    cx.meter.work(text.len() as u64 * 2)?;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let escaped = match c {
            '\u{7}' => "\\a",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{b}' => "\\v",
            '\\' => "\\\\",
            '"' => "\\\"",
            c => {
                let _ = out.write_char(c);
                continue;
            }
        };
        out.push_str(escaped);
    }
    out.push('"');
    Ok(out.into())
}
