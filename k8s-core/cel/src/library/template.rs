//! `'%s is %d'.format([..])`.

use std::fmt::Write;

use super::convert::{double_text, text_of};
use crate::{
    error::EvalError,
    meter::Meter,
    value::{List, Value},
};

/// Maximum precision in digits.
const MAX_PRECISION: usize = 100;
/// Maximum nesting of a formatted list or map.
const MAX_DEPTH: usize = 64;

/// Fills the verbs (`%s`, `%d`, `%.2f`) of `string.format`.
pub(super) fn fill(template: &str, args: &List<'_>, meter: &mut Meter) -> Result<String, EvalError> {
    meter.work(template.len() as u64)?;
    let mut out = String::new();
    let mut rest = template;
    let mut next = 0;
    while let Some(at) = rest.find('%') {
        out.push_str(rest.get(..at).unwrap_or_default());
        rest = rest.get(at + 1..).unwrap_or_default();
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let (precision, after) = precision_of(rest)?;
        let Some(verb) = after.chars().next() else {
            return EvalError::failed("unexpected end of string");
        };
        rest = after.get(verb.len_utf8()..).unwrap_or_default();
        let Some(value) = args.get(next)? else {
            return EvalError::failed(format!("index {next} out of range"));
        };
        next += 1;
        clause(verb, precision, &value, &mut out, meter)?;
    }
    out.push_str(rest);
    Ok(out)
}

/// Parses a precision such as `.3`.
fn precision_of(rest: &str) -> Result<(Option<usize>, &str), EvalError> {
    let Some(digits) = rest.strip_prefix('.') else { return Ok((None, rest)) };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (number, after) = digits.split_at(end);
    match number.parse::<usize>() {
        Ok(n) if n <= MAX_PRECISION => Ok((Some(n), after)),
        Ok(n) => {
            EvalError::failed(format!("precision {n} exceeds maximum allowed precision {MAX_PRECISION}"))
        }
        Err(_) => EvalError::failed("error while parsing precision"),
    }
}

fn clause(
    verb: char,
    precision: Option<usize>,
    value: &Value<'_>,
    out: &mut String,
    meter: &mut Meter,
) -> Result<(), EvalError> {
    meter.work(64)?;
    let wrong = |what: &str| {
        EvalError::failed(format!("error during formatting: {what}, was given {}", value.type_name()))
    };
    let number = match value {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    let signed = |n: i128, digits: String| if n < 0 { format!("-{digits}") } else { digits };
    match (verb, value) {
        ('s', value) => return plain(value, out, meter, 0),
        ('d', Value::Double(n)) if !n.is_finite() => out.push_str(&double_text(*n)),
        ('f' | 'e', Value::Double(n)) if !n.is_finite() => out.push_str(&double_text(*n)),
        ('f' | 'e', Value::Double(_) | Value::Int(_) | Value::Uint(_)) => {
            #[allow(clippy::cast_precision_loss)] // as every language does
            let n = match (value, number) {
                (Value::Double(n), _) => *n,
                (_, Some(n)) => n as f64,
                _ => 0.0,
            };
            let precision = precision.unwrap_or(6);
            meter.work(400)?;
            if verb == 'f' {
                let _ = write!(out, "{n:.precision$}");
            } else {
                let text = format!("{n:.precision$e}");
                let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
                let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
            }
        }
        ('b', Value::Bool(b)) => out.push(if *b { '1' } else { '0' }),
        ('x' | 'X', Value::String(_) | Value::Bytes(_)) => {
            let bytes: &[u8] = match value {
                Value::String(text) => text.as_bytes(),
                Value::Bytes(bytes) => bytes,
                _ => &[],
            };
            meter.work(bytes.len() as u64 * 3)?;
            for byte in bytes {
                let _ = if verb == 'x' { write!(out, "{byte:02x}") } else { write!(out, "{byte:02X}") };
            }
        }
        ('d' | 'b' | 'o' | 'x' | 'X', _) => {
            let Some(n) = number else { return wrong(&format!("{verb} clause needs a number")) };
            let amount = n.unsigned_abs();
            let digits = match verb {
                'b' => format!("{amount:b}"),
                'o' => format!("{amount:o}"),
                'x' => format!("{amount:x}"),
                'X' => format!("{amount:X}"),
                _ => amount.to_string(),
            };
            out.push_str(&signed(n, digits));
        }
        ('f' | 'e', _) => return wrong("fixed-point clause can only be used on numbers"),
        (verb, _) => return EvalError::failed(format!("unrecognized formatting clause \"{verb}\"")),
    }
    Ok(())
}

fn plain(value: &Value<'_>, out: &mut String, meter: &mut Meter, depth: usize) -> Result<(), EvalError> {
    meter.work(8)?;
    if depth > MAX_DEPTH {
        return EvalError::failed("value is nested too deep to be formatted");
    }
    match value {
        Value::String(text) => {
            meter.work(text.len() as u64)?;
            out.push_str(text);
        }
        Value::Bytes(bytes) => {
            meter.work(bytes.len() as u64 * 3)?;
            out.push_str(&String::from_utf8_lossy(bytes));
        }
        Value::List(list) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                plain(&item?, out, meter, depth + 1)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            out.push('{');
            for (i, entry) in map.entries().enumerate() {
                let (key, value) = entry?;
                if i > 0 {
                    out.push_str(", ");
                }
                plain(&key, out, meter, depth + 1)?;
                out.push_str(": ");
                plain(&value, out, meter, depth + 1)?;
            }
            out.push('}');
        }
        value => match text_of(value) {
            Some(text) => {
                meter.work(text.len() as u64)?;
                out.push_str(&text);
            }
            None => {
                return EvalError::failed(format!(
                    "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}",
                    value.type_name()
                ));
            }
        },
    }
    Ok(())
}
