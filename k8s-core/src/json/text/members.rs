//! The elements of an array, and the members of an object and their names.

use std::borrow::Cow;

use serde::{
    Deserialize,
    de::{
        DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        Visitor,
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Number};

use super::{Num, Rules, Text, visit_text};

/// Number of members of a struct that can be found absent.
const MOST_FIELDS: usize = u128::BITS as usize;

fn is_kind(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind")
}

/// The elements of an array.
pub(super) struct Items<'a, 'de> {
    text: &'a mut Text<'de>,
    /// The array is a zero value.
    empty: bool,
    first: bool,
}

impl<'a, 'de> Items<'a, 'de> {
    pub(super) fn of(text: &'a mut Text<'de>, empty: bool) -> Self {
        Items { text, empty, first: true }
    }

    /// Moves to the next element; false at the end.
    fn more(&mut self) -> Result<bool, Error> {
        if self.empty {
            return Ok(false);
        }
        let first = std::mem::take(&mut self.first);
        match self.text.peek() {
            b']' => return Ok(false),
            b',' if !first => self.text.at += 1,
            0 | b',' => return Err(self.text.broken()),
            _ if first => return Ok(true),
            _ => return Err(self.text.broken()),
        }
        if self.text.peek() == b']' { Err(self.text.broken()) } else { Ok(true) }
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.more()? { seed.deserialize(&mut *self.text).map(Some) } else { Ok(None) }
    }
}

/// The members of an object.
pub(super) struct Members<'a, 'de> {
    text: &'a mut Text<'de>,
    /// The object is a zero value.
    empty: bool,
    first: bool,
    /// Names of the struct's members; empty for a map.
    fields: &'static [&'static str],
    /// Skip `apiVersion` and `kind`.
    kindless: bool,
    /// The `fields` that the object has, as bits.
    seen: u128,
    /// Number of `fields` that were looked at after the object's end.
    filled: usize,
    /// The text and the offset in it while a `null` is read instead.
    rest: Option<(&'de str, usize)>,
}

impl<'a, 'de> Members<'a, 'de> {
    pub(super) fn of(text: &'a mut Text<'de>, empty: bool, fields: &'static [&'static str]) -> Self {
        // Go ignores apiVersion and kind of a nested object (a claim template).
        let nested = text.depth > u8::from(!empty);
        let kindless = text.rules != Rules::Strict && nested && fields.contains(&"metadata");
        Members { text, empty, first: true, fields, kindless, seen: 0, filled: 0, rest: None }
    }

    /// Moves to the next member's value and returns its name; `None` at the end.
    fn name(&mut self) -> Result<Option<Cow<'de, str>>, Error> {
        if let Some((text, at)) = self.rest.take() {
            (self.text.text, self.text.at) = (text, at);
        }
        while self.more()? {
            let name = self.text.string()?;
            if self.text.peek() != b':' {
                return Err(self.text.broken());
            }
            self.text.at += 1;
            if self.kindless && is_kind(&name) {
                self.text.skip()?;
                continue;
            }
            if self.text.rules == Rules::Fill
                && let Some(index) = self.fields.iter().take(MOST_FIELDS).position(|field| *field == name)
            {
                self.seen |= 1 << index;
            }
            return Ok(Some(name));
        }
        Ok(if self.text.rules == Rules::Fill { self.absent().map(Cow::Borrowed) } else { None })
    }

    /// Moves to the next name; false at the end.
    fn more(&mut self) -> Result<bool, Error> {
        if self.empty || self.filled > 0 {
            return Ok(false);
        }
        let first = std::mem::take(&mut self.first);
        match self.text.peek() {
            b'"' if first => return Ok(true),
            b'}' => return Ok(false),
            b',' if !first => self.text.at += 1,
            _ => return Err(self.text.broken()),
        }
        if self.text.peek() == b'"' { Ok(true) } else { Err(self.text.broken()) }
    }

    /// Returns the next field that the object does not have, and makes its value a `null`.
    #[cold]
    fn absent(&mut self) -> Option<&'static str> {
        loop {
            let index = self.filled;
            let field = self.fields.get(index).filter(|_| index < MOST_FIELDS)?;
            self.filled += 1;
            // apiVersion and kind have no zero value.
            if self.seen & 1 << index == 0 && !is_kind(field) {
                self.rest = Some((self.text.text, self.text.at));
                (self.text.text, self.text.at) = ("null", 0);
                return Some(field);
            }
        }
    }
}

impl<'de> MapAccess<'de> for Members<'_, 'de> {
    type Error = Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        match self.name()? {
            Some(name) => seed.deserialize(Name(name)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(&mut *self.text)
    }
}

/// The name of a member. The names of a map may be numbers or booleans.
struct Name<'de>(Cow<'de, str>);

impl Name<'_> {
    fn parse<T: for<'a> Deserialize<'a>>(&self) -> Result<T, Error> {
        let numeric = self.0.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        let value = serde_json::from_str(&self.0).ok().filter(|_| numeric);
        value.ok_or_else(|| Error::custom("invalid value: expected key to be a number in quotes"))
    }

    fn number(&self) -> Result<Num, Error> {
        self.parse::<Number>().map(|number| Num::of(&number))
    }
}

macro_rules! by_parsing {
    ($($method:ident: $read:ident, $visit:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            $visit(self.$read()?, visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Name<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visit_text(self.0, visitor)
    }

    by_parsing! {
        deserialize_i8: number, Num::visit;
        deserialize_i16: number, Num::visit;
        deserialize_i32: number, Num::visit;
        deserialize_i64: number, Num::visit;
        deserialize_i128: parse, |value, visitor: V| visitor.visit_i128(value);
        deserialize_u8: number, Num::visit;
        deserialize_u16: number, Num::visit;
        deserialize_u32: number, Num::visit;
        deserialize_u64: number, Num::visit;
        deserialize_u128: parse, |value, visitor: V| visitor.visit_u128(value);
        deserialize_f32: parse, |value, visitor: V| visitor.visit_f32(value);
        deserialize_f64: number, Num::visit;
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &*self.0 {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            other => Err(Error::invalid_type(Unexpected::Str(other), &visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.into_deserializer().deserialize_enum(name, variants, visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bytes(self.0.as_bytes())
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bytes(self.0.as_bytes())
    }

    forward_to_deserialize_any! {
        char str string unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}
