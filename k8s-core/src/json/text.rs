//! A deserializer of JSON text that applies either serde_json's rules or Go's.
//!
//! The rules are a value, not a type, so a type's decoder is compiled once for all of them. Objects, arrays,
//! plain strings and short integers are read here. Escaped strings, other numbers, skipped values and enums
//! are read by serde_json, and a syntax error is the one that serde_json reports for the same text.

mod members;

use std::borrow::Cow;

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, Expected, IgnoredAny, Unexpected, Visitor},
};
use serde_json::{Error, Number};

use self::members::{Items, Members};

/// Go's zero time, which some clients send for an absent one.
const ZERO_TIME: &str = "\"0001-01-01T00:00:00Z\"";

/// Name of the newtype by which serde_json's `RawValue` asks for the text of a value.
const RAW: &str = "$serde_json::private::RawValue";

/// Number of nested objects and arrays that is an error, as in serde_json.
const TOO_DEEP: u8 = 128;

/// Rules for members that are absent or `null`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// serde_json's.
    Strict,
    /// A `null` is the zero value of a type that is not optional; `3.0` is an integer.
    Zero,
    /// As `Zero`, and an absent member of a struct is `null`.
    Fill,
}

/// JSON text that is being read.
#[derive(Debug)]
pub(super) struct Text<'de> {
    text: &'de str,
    /// Offset of the next byte.
    at: usize,
    /// Number of objects and arrays around it.
    depth: u8,
    rules: Rules,
    /// A syntax error was found.
    broken: bool,
}

/// Decodes the value at the start of a text. `whole`: nothing but white space follows it.
///
/// # Errors
/// The value does not deserialize by these rules, or the text is not JSON.
// Not inlined, so that one copy per type serves all crates above (`shared`).
#[inline(never)]
pub(crate) fn decode<'de, T: Deserialize<'de>>(
    text: &'de str,
    whole: bool,
    rules: Rules,
) -> Result<T, Error> {
    let mut json = Text { text, at: 0, depth: 0, rules, broken: false };
    let value = T::deserialize(&mut json);
    match json.end(whole, value.as_ref().err()) {
        Some(error) => Err(error),
        None => value,
    }
}

/// A number, as serde_json presents it to visitors.
#[derive(Clone, Copy)]
enum Num {
    Positive(u64),
    Negative(i64),
    Float(f64),
}

impl Num {
    fn of(number: &Number) -> Self {
        match (number.as_u64(), number.as_i64()) {
            (Some(n), _) => Num::Positive(n),
            (None, Some(n)) => Num::Negative(n),
            (None, None) => Num::Float(number.as_f64().unwrap_or_default()),
        }
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Num::Positive(n) => visitor.visit_u64(n),
            Num::Negative(n) => visitor.visit_i64(n),
            Num::Float(n) => visitor.visit_f64(n),
        }
    }

    /// Returns an integer for a number such as `3.0`, within the range of exact integers in a double.
    fn whole(self) -> Self {
        match self {
            Num::Float(n) if n.fract() == 0.0 && n.abs() < 9.0e15 => Num::Negative(n as i64),
            other => other,
        }
    }
}

fn visit_text<'de, V: Visitor<'de>>(text: Cow<'de, str>, visitor: V) -> Result<V::Value, Error> {
    match text {
        Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
        Cow::Owned(text) => visitor.visit_string(text),
    }
}

// Everything that needs no visitor is here, so that it is not compiled for every type.
impl<'de> Text<'de> {
    /// Returns the final error: `error` with its place, or the syntax error, or text after the value.
    fn end(&mut self, whole: bool, error: Option<&Error>) -> Option<Error> {
        match error {
            None if !whole || self.peek() == 0 && self.at == self.text.len() => None,
            None => {
                Some(serde_json::from_str::<IgnoredAny>(self.text).err().unwrap_or_else(|| self.broken()))
            }
            Some(error) => Some(self.located(whole, error)),
        }
    }

    #[cold]
    fn located(&self, whole: bool, error: &Error) -> Error {
        if self.broken {
            let mut values = serde_json::Deserializer::from_str(self.text).into_iter::<IgnoredAny>();
            let syntax = match whole {
                true => serde_json::from_str::<IgnoredAny>(self.text).err(),
                false => values.next().and_then(Result::err),
            };
            if let Some(syntax) = syntax {
                return syntax;
            }
        }
        let read = &self.text.as_bytes()[..self.at.min(self.text.len())];
        let line = 1 + read.iter().filter(|b| **b == b'\n').count();
        let column = read.iter().rev().take_while(|b| **b != b'\n').count();
        Error::custom(format_args!("{error} at line {line} column {column}"))
    }

    #[cold]
    fn broken(&mut self) -> Error {
        self.broken = true;
        Error::custom("trailing characters")
    }

    /// Marks the text as broken at an error of serde_json for a part of it.
    #[cold]
    fn broken_by(&mut self, error: &Error) -> Error {
        self.broken = true;
        without_place(error)
    }

    /// Skips white space and returns the next byte; 0 at the end.
    #[inline]
    fn peek(&mut self) -> u8 {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                Some(byte) => return *byte,
                None => return 0,
            }
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Error> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(self.broken());
        }
        self.at += word.len();
        Ok(())
    }

    /// Reads a `null` that is a zero value. The outermost value is an object, which `null` is not.
    #[inline]
    fn zero(&mut self) -> Result<bool, Error> {
        if self.rules == Rules::Strict || self.depth == 0 || self.peek() != b'n' {
            return Ok(false);
        }
        self.word("null").map(|()| true)
    }

    /// Reads a string that starts here.
    fn string(&mut self) -> Result<Cow<'de, str>, Error> {
        let start = self.at + 1;
        let end = start + plain(&self.text.as_bytes()[start..]);
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(&self.text[start..end]));
        }
        self.escaped(end).map(Cow::Owned)
    }

    /// Reads a string that starts here and has an escape or an invalid byte at `end`.
    #[cold]
    fn escaped(&mut self, mut end: usize) -> Result<String, Error> {
        let bytes = self.text.as_bytes();
        while bytes.get(end) == Some(&b'\\') {
            let next = end + 2;
            end = next + plain(bytes.get(next..).unwrap_or_default());
        }
        let Some(quoted) = self.text.get(self.at..end + 1) else { return Err(self.broken()) };
        let read = serde_json::from_str(quoted);
        self.at = end + 1;
        read.map_err(|e| self.broken_by(&e))
    }

    /// Reads a number that starts here.
    fn number(&mut self) -> Result<Num, Error> {
        let bytes = self.text.as_bytes();
        let negative = bytes.get(self.at) == Some(&b'-');
        let first = self.at + usize::from(negative);
        let (mut at, mut n) = (first, 0i64);
        while let Some(digit @ b'0'..=b'9') = bytes.get(at)
            && at - first < 18
        {
            n = n * 10 + i64::from(digit - b'0');
            at += 1;
        }
        let ends = !matches!(bytes.get(at), Some(b'0'..=b'9' | b'.' | b'e' | b'E'));
        // A zero has one digit; a negative one is a float.
        if ends && at > first && (bytes[first] != b'0' || at - first == 1 && !negative) {
            self.at = at;
            return Ok(if negative { Num::Negative(-n) } else { Num::Positive(n.unsigned_abs()) });
        }
        self.long_number()
    }

    #[cold]
    fn long_number(&mut self) -> Result<Num, Error> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'));
        let token = &rest[..end.unwrap_or(rest.len())];
        let number: Number = serde_json::from_str(token).map_err(|e| self.broken_by(&e))?;
        self.at += token.len();
        Ok(Num::of(&number))
    }

    /// Reads a number by the rules for integers; `None` if the value is something else.
    fn integer(&mut self) -> Result<Option<Num>, Error> {
        let number = self.float()?;
        Ok(if self.rules == Rules::Strict { number } else { number.map(Num::whole) })
    }

    /// Reads a number; `None` if the value is something else.
    fn float(&mut self) -> Result<Option<Num>, Error> {
        if self.zero()? {
            return Ok(Some(Num::Positive(0)));
        }
        match self.peek() {
            b'-' | b'0'..=b'9' => self.number().map(Some),
            _ => Ok(None),
        }
    }

    /// Reads a boolean; `None` if the value is something else.
    fn boolean(&mut self) -> Result<Option<bool>, Error> {
        if self.zero()? {
            return Ok(Some(false));
        }
        match self.peek() {
            b't' => self.word("true").map(|()| Some(true)),
            b'f' => self.word("false").map(|()| Some(false)),
            _ => Ok(None),
        }
    }

    /// Reads a string; `None` if the value is something else.
    fn text(&mut self) -> Result<Option<Cow<'de, str>>, Error> {
        if self.zero()? {
            return Ok(Some(Cow::Borrowed("")));
        }
        if self.peek() == b'"' { self.string().map(Some) } else { Ok(None) }
    }

    /// Reads the value that is not as expected.
    #[cold]
    fn invalid(&mut self, expected: &dyn Expected) -> Error {
        let error = |found| Error::invalid_type(found, expected);
        match self.peek() {
            b'n' => self.word("null").map_or_else(|e| e, |()| error(Unexpected::Unit)),
            b't' | b'f' => match self.boolean() {
                Ok(found) => error(Unexpected::Bool(found.unwrap_or_default())),
                Err(e) => e,
            },
            b'-' | b'0'..=b'9' => match self.number() {
                Ok(Num::Positive(n)) => error(Unexpected::Unsigned(n)),
                Ok(Num::Negative(n)) => error(Unexpected::Signed(n)),
                Ok(Num::Float(n)) => error(Unexpected::Float(n)),
                Err(e) => e,
            },
            b'"' => match self.string() {
                Ok(found) => error(Unexpected::Str(&found)),
                Err(e) => e,
            },
            b'[' => error(Unexpected::Seq),
            b'{' => error(Unexpected::Map),
            _ => self.broken(),
        }
    }

    /// Enters an object or array if it starts here.
    fn open(&mut self, start: u8) -> Result<bool, Error> {
        if self.peek() != start {
            return Ok(false);
        }
        self.at += 1;
        self.depth += 1;
        if self.depth == TOO_DEEP {
            return Err(Error::custom("recursion limit exceeded"));
        }
        Ok(true)
    }

    /// Leaves an object or array.
    fn close(&mut self, end: u8) -> Result<(), Error> {
        if self.peek() != end {
            return Err(self.broken());
        }
        self.at += 1;
        self.depth -= 1;
        Ok(())
    }

    /// Skips a value.
    fn skip(&mut self) -> Result<(), Error> {
        let mut values = serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => self.at += values.byte_offset(),
            Some(Err(e)) => return Err(self.broken_by(&e)),
            None => return Err(self.broken()),
        }
        Ok(())
    }

    /// Skips a value and returns serde_json's deserializer of it.
    fn value(&mut self) -> Result<serde_json::Deserializer<serde_json::de::StrRead<'de>>, Error> {
        self.peek();
        let start = self.at;
        self.skip()?;
        Ok(serde_json::Deserializer::from_str(&self.text[start..self.at]))
    }

    fn map<V: Visitor<'de>>(
        &mut self,
        empty: bool,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let value = visitor.visit_map(Members::of(self, empty, fields))?;
        if !empty {
            self.close(b'}')?;
        }
        Ok(value)
    }

    fn seq<V: Visitor<'de>>(&mut self, empty: bool, visitor: V) -> Result<V::Value, Error> {
        let value = visitor.visit_seq(Items::of(self, empty))?;
        if !empty {
            self.close(b']')?;
        }
        Ok(value)
    }
}

/// Returns an error without its place, which is one in a part of the text.
#[cold]
fn without_place(error: &Error) -> Error {
    let text = error.to_string();
    let message = text.rfind(" at line ").map_or(&*text, |end| &text[..end]);
    Error::custom(message)
}

/// Returns the number of bytes before the first quote, backslash or control character.
#[inline]
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // The high bit of the lowest byte of `word` that is less than `than`; bytes above it may be marked too.
    const fn less(word: u64, than: u8) -> u64 {
        word.wrapping_sub(ONES * than as u64) & !word & HIGH
    }
    let mut at = 0;
    while let Some(eight) = bytes.get(at..at + 8) {
        let word = eight.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let special =
            less(word, 0x20) | less(word ^ (ONES * b'"' as u64), 1) | less(word ^ (ONES * b'\\' as u64), 1);
        if special != 0 {
            return at + special.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = &bytes[at..];
    at + rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20)).count()
}

macro_rules! by_reading {
    ($($method:ident: $read:ident, $visit:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.$read()? {
                Some(value) => $visit(value, visitor),
                None => Err(self.invalid(&visitor)),
            }
        })*
    };
}

macro_rules! by_serde_json {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let mut value = self.value()?;
            let read = value.$method(visitor).map_err(|e| without_place(&e))?;
            // Of a float, serde_json reads 128-bit integers only up to its point.
            value.end().map_err(|e| without_place(&e))?;
            Ok(read)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Text<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            b'n' => {
                self.word("null")?;
                visitor.visit_unit()
            }
            b't' => {
                self.word("true")?;
                visitor.visit_bool(true)
            }
            b'f' => {
                self.word("false")?;
                visitor.visit_bool(false)
            }
            b'-' | b'0'..=b'9' => self.number()?.visit(visitor),
            b'"' => visit_text(self.string()?, visitor),
            b'[' => {
                self.open(b'[')?;
                self.seq(false, visitor)
            }
            b'{' => {
                self.open(b'{')?;
                self.map(false, &[], visitor)
            }
            _ => Err(self.broken()),
        }
    }

    by_reading! {
        deserialize_bool: boolean, |value, visitor: V| visitor.visit_bool(value);
        deserialize_i8: integer, Num::visit;
        deserialize_i16: integer, Num::visit;
        deserialize_i32: integer, Num::visit;
        deserialize_i64: integer, Num::visit;
        deserialize_u8: integer, Num::visit;
        deserialize_u16: integer, Num::visit;
        deserialize_u32: integer, Num::visit;
        deserialize_u64: integer, Num::visit;
        deserialize_f64: float, Num::visit;
        deserialize_char: text, visit_text;
        deserialize_str: text, visit_text;
        deserialize_string: text, visit_text;
        deserialize_identifier: text, visit_text;
    }

    by_serde_json! { deserialize_i128 deserialize_u128 deserialize_bytes deserialize_byte_buf }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.zero()? {
            return visitor.visit_f32(0.0);
        }
        self.value()?.deserialize_f32(visitor).map_err(|e| without_place(&e))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.peek() != b'n' {
            return visitor.visit_some(self);
        }
        self.word("null")?;
        visitor.visit_none()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.peek() != b'n' {
            return Err(self.invalid(&visitor));
        }
        self.word("null")?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == RAW {
            return self.value()?.deserialize_newtype_struct(name, visitor).map_err(|e| without_place(&e));
        }
        if matches!(name, "Time" | "MicroTime") && self.zero()? {
            return visitor.visit_newtype_struct(&mut Text { text: ZERO_TIME, at: 0, ..*self });
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let empty = self.zero()?;
        if !empty && !self.open(b'[')? {
            return Err(self.invalid(&visitor));
        }
        self.seq(empty, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let empty = self.zero()?;
        if !empty && !self.open(b'{')? {
            return Err(self.invalid(&visitor));
        }
        self.map(empty, &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let empty = self.zero()?;
        if empty || self.open(b'{')? {
            return self.map(empty, fields, visitor);
        }
        if self.open(b'[')? { self.seq(false, visitor) } else { Err(self.invalid(&visitor)) }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.value()?.deserialize_enum(name, variants, visitor).map_err(|e| without_place(&e))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.skip()?;
        visitor.visit_unit()
    }
}

#[cfg(test)]
mod tests;
