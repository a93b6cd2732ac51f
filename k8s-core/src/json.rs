//! Access to fields of JSON text: found, cut and read without decoding the rest.
//!
//! The text must be a JSON object, as sent by a server or stored. For any other text nothing panics, but
//! fields are not found. Names are compared as written, so a name with escapes does not match.

mod lenient;
mod text;

pub(crate) use lenient::strictly;
pub use lenient::{from_slice, lenient};
pub(crate) use text::decode;

use std::{borrow::Cow, ops::Range};

use memchr::memchr2;
use serde::{
    Serialize,
    de::{DeserializeOwned, Error as _},
};
use serde_json::{Error, Value};

/// Maximum length of a string that is scanned byte by byte.
const SHORT: usize = 24;

/// Returns the range of a field's value, by its path from the outermost object.
///
/// # Examples
/// ```
/// use k8s_core::json::find;
/// let text = br#"{"metadata": {"name": "a", "labels": {"}": "{"}}, "name": "b"}"#;
/// assert_eq!(&text[find(text, &["metadata", "name"]).unwrap()], b"\"a\"");
/// assert_eq!(find(text, &["spec", "name"]), None);
/// ```
#[must_use]
pub fn find(json: &[u8], path: &[&str]) -> Option<Range<usize>> {
    let start = start(json, path)?;
    Some(start..value_end(json, start)?)
}

/// Returns the start of a field's value. Faster than [`find`] for early fields of a long text, because the
/// rest is not scanned.
fn start(json: &[u8], path: &[&str]) -> Option<usize> {
    path.iter().try_fold(white(json, 0), |at, name| {
        let mut fields = Fields::of(json, at)?;
        loop {
            let (field, value) = fields.next()?;
            if json.get(field) == Some(name.as_bytes()) {
                return Some(value);
            }
            fields.skip(value)?;
        }
    })
}

/// Decodes a field's value, and nothing after it.
///
/// # Errors
/// The field does not exist (as an unexpected end), or does not deserialize.
///
/// # Examples
/// ```
/// # use k8s_core::json::read;
/// let text = br#"{"metadata": {"generation": 7}, "spec": "whatever"#;
/// assert_eq!(read::<u64>(text, &["metadata", "generation"]).unwrap(), 7);
/// ```
pub fn read<T: DeserializeOwned>(json: &[u8], path: &[&str]) -> Result<T, Error> {
    text::decode(std::str::from_utf8(rest(json, path)).map_err(Error::custom)?, false, text::Rules::Strict)
}

/// Returns the text from a field's value on; empty if there is no such field.
fn rest<'a>(json: &'a [u8], path: &[&str]) -> &'a [u8] {
    start(json, path).and_then(|start| json.get(start..)).unwrap_or_default()
}

/// As [`read`]; if that fails, decodes with Go's rules ([`lenient()`]).
///
/// # Errors
/// The error of [`read`].
pub fn read_leniently<T: DeserializeOwned>(json: &[u8], path: &[&str]) -> Result<T, Error> {
    lenient::attempts(rest(json, path), false)
}

/// Encodes a value, as `serde_json::to_vec` does.
///
/// # Errors
/// The type's own, or a map's key is no string.
// Not inlined, so that one copy per type serves all crates above (`shared`).
#[inline(never)]
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value)
}

/// Converts a value to a tree, by way of text: built-in kinds are then not compiled for another encoder.
///
/// # Errors
/// As [`to_vec`].
///
/// # Examples
/// ```
/// use k8s_core::{api::Pod, json};
/// let pod: Pod = json::from_value(&serde_json::json!({"metadata": {"name": "web"}}))?;
/// assert_eq!(json::to_value(&pod)?["metadata"]["name"], "web");
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, Error> {
    serde_json::from_slice(&to_vec(value)?)
}

/// Decodes a tree by serde_json's rules, by way of text: built-in kinds are then not compiled for another
/// decoder.
///
/// # Errors
/// The value does not deserialize.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    lenient::strictly(value.to_string().as_bytes())
}

/// Returns a field's string if it has no escapes.
#[must_use]
pub fn plain<'a>(json: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let inner = json.get(find(json, path)?)?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') { None } else { std::str::from_utf8(inner).ok() }
}

/// Returns the text without a field.
///
/// # Examples
/// ```
/// use k8s_core::json::without;
/// assert_eq!(&*without(br#"{"a":{"b":1,"c":[2,3]}}"#, &["a", "c"]), br#"{"a":{"b":1}}"#);
/// assert_eq!(&*without(br#"{"a":{"b":1,"c":[2,3]}}"#, &["a", "b"]), br#"{"a":{"c":[2,3]}}"#);
/// ```
#[must_use]
pub fn without<'a>(json: &'a [u8], path: &[&str]) -> Cow<'a, [u8]> {
    match place_of_field(json, path) {
        Some(place) => Cow::Owned([&json[..place.start], &json[place.end..]].concat()),
        None => Cow::Borrowed(json),
    }
}

/// Returns the range of a field with its name and an adjacent comma.
fn place_of_field(json: &[u8], path: &[&str]) -> Option<Range<usize>> {
    let (last, outer) = path.split_last()?;
    let mut fields = Fields::of(json, start(json, outer)?)?;
    let mut before = None;
    loop {
        let (name, value) = fields.next()?;
        let end = fields.skip(value)?;
        if json.get(name.clone()) == Some(last.as_bytes()) {
            let after = white(json, end);
            // The name is preceded by a quote.
            let start = name.start.checked_sub(1)?;
            return Some(match before {
                Some(before) => before..end,
                None if json.get(after) == Some(&b',') => start..after + 1,
                None => start..end,
            });
        }
        before = Some(end);
    }
}

/// Iterator over the fields of an object; ends at the object's end or at invalid text.
struct Fields<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn of(json: &'a [u8], start: usize) -> Option<Self> {
        (json.get(start) == Some(&b'{')).then_some(Fields { json, at: start + 1 })
    }

    /// Returns the range of the next field's name, without quotes, and the start of its value. The value must
    /// be skipped before the next call.
    fn next(&mut self) -> Option<(Range<usize>, usize)> {
        let json = self.json;
        let mut at = white(json, self.at);
        if json.get(at) == Some(&b',') {
            at = white(json, at + 1);
        }
        let name = at + 1..string_end(json, at)?.checked_sub(1)?;
        let colon = white(json, name.end + 1);
        (json.get(colon) == Some(&b':')).then(|| (name, white(json, colon + 1)))
    }

    /// Skips the value that starts here; returns its end.
    fn skip(&mut self, value: usize) -> Option<usize> {
        self.at = value_end(self.json, value)?;
        Some(self.at)
    }
}

fn white(json: &[u8], at: usize) -> usize {
    let rest = json.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|b| b.is_ascii_whitespace()).count()
}

/// Returns the offset after the closing quote of the string that starts here.
fn string_end(json: &[u8], at: usize) -> Option<usize> {
    if json.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    // Most strings are short; a byte loop finds their end faster.
    for _ in 0..SHORT {
        match json.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    loop {
        at += memchr2(b'"', b'\\', json.get(at..)?)?;
        match json.get(at)? {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// Returns the offset after the value that starts here.
fn value_end(json: &[u8], start: usize) -> Option<usize> {
    match json.get(start)? {
        b'"' => string_end(json, start),
        b'{' | b'[' => {
            let (mut at, mut depth) = (start, 0usize);
            loop {
                match json.get(at)? {
                    b'"' => {
                        at = string_end(json, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let rest = json.get(start..)?;
            let ends = |b: &u8| matches!(b, b',' | b'}' | b']') || b.is_ascii_whitespace();
            Some(start + rest.iter().position(ends).unwrap_or(rest.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Objects with few distinct names, so that paths match, and strings that look like structure.
    fn tree() -> impl Strategy<Value = Value> {
        let text = prop_oneof![Just("a"), Just("}"), Just("\"{"), Just("\\"), Just("[,"), Just("")];
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            text.prop_map(Value::from),
            Just(Value::Null)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let object = proptest::collection::btree_map("[abc]", inner.clone(), 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect()));
            prop_oneof![object, proptest::collection::vec(inner, 0..4).prop_map(Value::from)]
        })
    }

    fn fields_at(value: &Value, path: &[&str]) -> Option<Value> {
        path.iter().try_fold(value, |at, name| at.as_object()?.get(*name)).cloned()
    }

    proptest! {
        #[test]
        fn finds_and_cuts_what_decoding_would(value in tree(), path in proptest::collection::vec("[abc]", 1..4), pretty: bool) {
            let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let want = fields_at(&value, &path);
            let found = find(&text, &path).map(|place| serde_json::from_slice::<Value>(&text[place]).unwrap());
            prop_assert_eq!(&found, &want);
            let mut less = value.clone();
            let (last, outer) = path.split_last().unwrap();
            let pointer: String = outer.iter().map(|name| format!("/{name}")).collect();
            if let Some(Value::Object(map)) = less.pointer_mut(&pointer)
                && want.is_some()
            {
                map.remove(*last);
            }
            prop_assert_eq!(serde_json::from_slice::<Value>(&without(&text, &path)).unwrap(), less);
        }

        #[test]
        fn nonsense_is_no_danger(text in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b'\\'), Just(b','), Just(b':'), Just(b'a'), Just(b' ')], 0..40)) {
            let _ = (find(&text, &["a", "a"]), without(&text, &["a"]).len(), plain(&text, &["a"]));
        }
    }

    #[test]
    fn plain_text_is_read() {
        let text = json!({"type": "ADDED", "odd": "a\"b", "n": 1}).to_string();
        assert_eq!(plain(text.as_bytes(), &["type"]), Some("ADDED"));
        assert_eq!(plain(text.as_bytes(), &["odd"]), None);
        assert_eq!(plain(text.as_bytes(), &["n"]), None);
    }
}
