//! Bodies to JSON values: JSON and YAML, with duplicate fields found and depth and size limited.

use std::fmt;

use http::{HeaderMap, header};
use k8s_schema::paths::{self, Paths};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Error as YamlError, options::DuplicateKeyPolicy};

use crate::blocking::run_blocking_if;

/// The largest body, bytes (as etcd's largest request with upstream's slack).
pub const MAX_BODY: usize = 3 << 20;

/// A body is not JSON or YAML; the message has the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

/// Decodes JSON, collecting the paths of duplicate fields (the last one counts).
///
/// # Errors
/// A description of where it is not JSON.
pub fn json(bytes: &[u8]) -> Result<(Value, Paths), DecodeError> {
    let mut decoded = Err(DecodeError(String::new()));
    run_blocking_if(bytes.len() > HEAVY, || decoded = json_here(bytes));
    decoded
}

fn json_here(bytes: &[u8]) -> Result<(Value, Paths), DecodeError> {
    let mut duplicates = Paths::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed { path: &mut String::new(), duplicates: &mut duplicates };
    let value = seed.deserialize(&mut deserializer).map_err(|e| match e.is_eof() {
        true => DecodeError("unexpected end of JSON input".to_owned()),
        false => DecodeError(e.to_string()),
    })?;
    deserializer.end().map_err(|e| DecodeError(e.to_string()))?;
    Ok((value, duplicates))
}

/// Decodes YAML (one document). A key that is there twice is an error.
///
/// # Errors
/// A description of where it is not YAML.
pub fn yaml(bytes: &[u8]) -> Result<Value, DecodeError> {
    yaml_with(bytes, DuplicateKeyPolicy::Error).map_err(|e| DecodeError(e.to_string()))
}

/// Decodes YAML (one document), with a description of the first key that is there twice (the last one
/// counts).
///
/// # Errors
/// A description of where it is not YAML.
pub fn yaml_with_duplicate(bytes: &[u8]) -> Result<(Value, Option<String>), DecodeError> {
    let failed = match yaml_with(bytes, DuplicateKeyPolicy::Error) {
        Ok(value) => return Ok((value, None)),
        Err(failed) => failed,
    };
    let duplicate = match failed.without_snippet() {
        YamlError::DuplicateMappingKey { key, location } => {
            let (line, key) = (location.line(), key.as_deref().unwrap_or_default());
            format!("line {line}: key {key:?} already set in map")
        }
        _ => return Err(DecodeError(failed.to_string())),
    };
    let value = yaml_with(bytes, DuplicateKeyPolicy::LastWins).map_err(|e| DecodeError(e.to_string()))?;
    Ok((value, Some(duplicate)))
}

fn yaml_with(bytes: &[u8], twice: DuplicateKeyPolicy) -> Result<Value, YamlError> {
    let text = std::str::from_utf8(bytes).map_err(YamlError::custom)?;
    // Most of what is sent as YAML is JSON, which is decoded sooner.
    if is_object(bytes)
        && let Ok((value, duplicates)) = json(bytes)
        && duplicates.is_empty()
    {
        return Ok(value);
    }
    // The expansion of aliases and merge keys is bounded by the text's own size, as in Go's decoder: a short
    // text cannot become a large object.
    let replayed = (bytes.len() / 4).clamp(LEAST_REPLAYED, MOST_REPLAYED);
    let options = serde_saphyr::options! {
        duplicate_keys: twice,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: replayed },
        budget: serde_saphyr::budget! {
            max_merge_keys: MOST_MERGES,
            max_recorded_anchor_events: replayed,
            max_recorded_anchor_bytes: 2 * MAX_BODY,
            max_total_scalar_bytes: 2 * MAX_BODY,
        },
    };
    let mut value = Err(YamlError::custom(""));
    run_blocking_if(true, || value = serde_saphyr::from_str_with_options(text, options));
    value
}

fn is_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{')
}

/// Returns true for a body that takes long to decode: a large one, or YAML.
pub(crate) fn is_heavy(headers: &HeaderMap, bytes: &[u8]) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    bytes.len() > HEAVY || (kind.contains("yaml") && !is_object(bytes))
}

/// YAML's events that aliases may repeat in a document, at least and at most.
const LEAST_REPLAYED: usize = 10_000;
const MOST_REPLAYED: usize = 200_000;
/// Merge keys (`<<`) in a document.
const MOST_MERGES: usize = 1000;
/// Bodies of more bytes are decoded where no other request waits for it.
const HEAVY: usize = 64 << 10;

struct Seed<'a> {
    path: &'a mut String,
    duplicates: &'a mut Paths,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let length = self.path.len();
        loop {
            self.path.push_str(&format!("[{}]", items.len()));
            let next = seq.next_element_seed(Seed { path: self.path, duplicates: self.duplicates })?;
            self.path.truncate(length);
            match next {
                Some(item) => items.push(item),
                None => return Ok(items.into()),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let length = self.path.len();
        while let Some(key) = map.next_key::<String>()? {
            if !self.path.is_empty() {
                self.path.push('.');
            }
            self.path.push_str(paths::part(&key));
            let value = map.next_value_seed(Seed { path: self.path, duplicates: self.duplicates })?;
            if out.insert(key, value).is_some() {
                self.duplicates.push(self.path);
            }
            self.path.truncate(length);
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found_and_depth_is_limited() {
        let (value, duplicates) =
            json(br#"{"metadata":{"name":"b"},"data":{"k":"v","k":"w"},"l":[{"a":1,"a":2}]}"#).unwrap();
        assert_eq!(duplicates.as_slice(), ["data.k", "l[0].a"]);
        assert_eq!(value["data"]["k"], "w");
        assert!(json(&b"[".repeat(100_000)).is_err());
        assert!(json(b"{\"metadata\":").is_err());
        assert!(json(b"{} x").is_err());
    }

    #[test]
    fn aliases_and_merge_keys_cannot_make_much_of_little() {
        let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, of) in "bcdefghij".chars().zip("abcdefghi".chars()) {
            laughs += &format!("{name}: &{name} [*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of}]\n");
        }
        let mut merges = "m0: &m0 {k: v}\n".to_owned();
        for i in 1..40 {
            merges += &format!("m{i}: &m{i} {{<<: [*m{0}, *m{0}], k{i}: v}}\n", i - 1);
        }
        let long = "x".repeat(60_000);
        let texts = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 2000].join(","));
        for bomb in [laughs, merges, texts] {
            let begun = std::time::Instant::now();
            assert!(yaml(bomb.as_bytes()).is_err());
            assert!(begun.elapsed().as_millis() < 1000, "{:?}", begun.elapsed());
        }
        let fine = "base: &b {image: x, env: [1, 2]}\nuse: [{<<: *b, name: a}, {<<: *b, name: c}]\n";
        assert_eq!(yaml(fine.as_bytes()).unwrap()["use"][1]["image"], "x");
        let large: String = (0..20_000).map(|i| format!("k{i}: v\n")).collect();
        assert_eq!(yaml(large.as_bytes()).unwrap().as_object().unwrap().len(), 20_000);
    }
}
