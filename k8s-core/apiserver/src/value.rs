//! Helpers for JSON values.

use serde_json::{Map, Value};

/// Returns a time in whole seconds, RFC 3339, as objects have it.
pub(crate) fn timestamp(now: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// Returns the value at a JSON pointer. Like [`Value::pointer`], but without copying names, because every
/// write calls it many times.
#[must_use]
pub fn at<'a>(object: &'a Value, pointer: &str) -> Option<&'a Value> {
    if pointer.contains('~') {
        return object.pointer(pointer);
    }
    let mut names = pointer.split('/');
    // The part before the first slash must be empty.
    if !names.next()?.is_empty() {
        return None;
    }
    names.try_fold(object, |at, name| match at {
        Value::Object(map) => map.get(name),
        Value::Array(_) => at.pointer(&format!("/{name}")),
        _ => None,
    })
}

/// Returns the string at a JSON pointer; empty if absent.
#[must_use]
pub fn str_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the integer at a JSON pointer.
#[must_use]
pub fn int_at(object: &Value, pointer: &str) -> Option<i64> {
    at(object, pointer).and_then(Value::as_i64)
}

/// Returns the boolean at a JSON pointer; false if absent.
#[must_use]
pub fn bool_at(object: &Value, pointer: &str) -> bool {
    at(object, pointer).and_then(Value::as_bool).unwrap_or(false)
}

/// Returns the list at a JSON pointer; empty if absent.
#[must_use]
pub fn array_at<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    at(object, pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Returns the map at a JSON pointer, if there is one.
#[must_use]
pub fn object_at<'a>(object: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    at(object, pointer).and_then(Value::as_object)
}

/// Removes a key from the map at a JSON pointer.
pub fn take(object: &mut Value, pointer: &str, key: &str) -> Option<Value> {
    object.pointer_mut(pointer)?.as_object_mut()?.remove(key)
}

/// Sets a field of an object if it is absent. Does nothing for other types.
pub fn default(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.into(), value.into());
    }
}

/// Sets a field of an object if it is absent or an empty string.
pub fn default_text(object: &mut Value, key: &str, value: &str) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(|v| v.is_null() || v == "")
    {
        map.insert(key.into(), value.into());
    }
}

/// Sets a field of an object if it is absent or zero.
pub fn default_number(object: &mut Value, key: &str, value: i64) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(|v| v.is_null() || v == 0)
    {
        map.insert(key.into(), value.into());
    }
}

/// Returns the map in field `key`; creates it if absent. `None` if the object or the field is not a map.
pub fn child<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = object.as_object_mut()?;
    let child = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    child.is_object().then_some(child)
}

/// Sets the value at a JSON pointer and creates the maps on the way. Does nothing if another type is in the
/// way.
pub fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    let parts: Vec<&str> = pointer.split('/').skip(1).collect();
    for part in &parts[..parts.len().saturating_sub(1)] {
        let Some(next) = child(at, part) else { return };
        at = next;
    }
    if let (Some(map), Some(last)) = (at.as_object_mut(), parts.last()) {
        map.insert((*last).to_owned(), value);
    }
}

/// Returns the name; empty if absent.
#[must_use]
pub fn name(object: &Value) -> &str {
    str_at(object, "/metadata/name")
}

/// Returns true if two objects are equal except for `metadata` and `status`.
#[must_use]
pub fn same_spec(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let relevant = |k: &&String| {
        k.as_str() != "metadata"
            && k.as_str() != "status"
            && k.as_str() != "apiVersion"
            && k.as_str() != "kind"
    };
    a.keys().filter(relevant).all(|k| a.get(k) == b.get(k))
        && b.keys().filter(relevant).all(|k| a.contains_key(k))
}

/// Encodes an object as JSON with `kind`, `apiVersion` and `metadata` first, as upstream does.
#[must_use]
pub fn encode(object: &Value) -> Vec<u8> {
    let Some(map) = object.as_object() else { return object.to_string().into_bytes() };
    let mut out = Vec::with_capacity(1024);
    encode_fields(map, &FIRST, &mut out, |_, value, out| encode_value(value, out));
    out
}

/// Fields that are encoded first.
const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    // Encoding JSON values into memory cannot fail: their keys are strings.
    let _ = serde_json::to_writer(out, value);
}

/// Encodes an object, its `first` fields before the others; `each` encodes a field's value.
fn encode_fields(
    map: &Map<String, Value>,
    first: &[&str],
    out: &mut Vec<u8>,
    mut each: impl FnMut(&str, &Value, &mut Vec<u8>),
) {
    out.push(b'{');
    let ordered = first
        .iter()
        .filter_map(|k| map.get_key_value(*k))
        .chain(map.iter().filter(|(k, _)| !first.contains(&k.as_str())));
    for (i, (key, value)) in ordered.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        each(key, value, out);
    }
    out.push(b'}');
}

/// JSON of an object without its resourceVersion. A write learns the revision while it holds a lock; only the
/// digits are then filled in.
#[derive(Debug)]
pub struct Unversioned {
    json: Vec<u8>,
    /// Offset of the revision's digits.
    gap: usize,
}

impl Unversioned {
    /// Encodes an object as [`encode`] does, without its resourceVersion.
    #[must_use]
    pub fn encode(object: &Value) -> Self {
        let empty = Map::new();
        let mut json = Vec::with_capacity(1024);
        let mut gap = 0;
        encode_fields(object.as_object().unwrap_or(&empty), &FIRST, &mut json, |key, value, out| {
            let metadata = value.as_object().filter(|_| key == "metadata");
            let Some(metadata) = metadata else { return encode_value(value, out) };
            out.extend_from_slice(b"{\"resourceVersion\":\"");
            gap = out.len();
            out.push(b'"');
            for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
                out.push(b',');
                let _ = serde_json::to_writer(&mut *out, key);
                out.push(b':');
                encode_value(value, out);
            }
            out.push(b'}');
        });
        Unversioned { json, gap }
    }

    /// Converts an object's JSON without decoding it. `None` if it has no resourceVersion.
    #[must_use]
    pub fn of(json: &[u8]) -> Option<Self> {
        let digits = k8s_core::json::find(json, &["metadata", "resourceVersion"])?;
        let (head, tail) = (json.get(..=digits.start)?, json.get(digits.end.checked_sub(1)?..)?);
        Some(Unversioned { json: [head, tail].concat(), gap: head.len() })
    }

    /// The object's JSON at a revision; `None`: with an empty resourceVersion, to be filled later.
    #[must_use]
    pub fn at(&self, revision: impl Into<Option<u64>>) -> bytes::Bytes {
        let (head, tail) = self.json.split_at(self.gap);
        if self.gap == 0 {
            return tail.to_vec().into();
        }
        let revision = revision.into().map(|revision| revision.to_string()).unwrap_or_default();
        [head, revision.as_bytes(), tail].concat().into()
    }
}

/// Returns the JSON of an object's `metadata`, without decoding the rest.
#[must_use]
pub fn metadata_of(json: &[u8]) -> Option<&[u8]> {
    json.get(k8s_core::json::find(json, &["metadata"])?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pointers_lead_where_they_should() {
        let object = json!({"a": {"b": [1, {"c": 2}]}, "": 3, "x/y": 4});
        for pointer in
            ["", "/", "/a", "/a/b", "/a/b/1/c", "/a/b/01", "/a/b/2", "/a/b/1/c/d", "/x~1y", "a", "/a/"]
        {
            assert_eq!(at(&object, pointer), object.pointer(pointer), "{pointer:?}");
        }
    }

    #[test]
    fn encoding_keeps_everything() {
        let object = json!({"spec": {"a": 1}, "metadata": {"name": "x\"y"}, "apiVersion": "v1", "kind": "K"});
        let bytes = encode(&object);
        assert!(bytes.starts_with(b"{\"kind\":\"K\",\"apiVersion\":\"v1\",\"metadata\":"));
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), object);
    }

    #[test]
    fn the_revision_is_filled_in() {
        let old = json!({"metadata": {"name": "a", "resourceVersion": "1"}, "apiVersion": "v1", "kind": "K", "data": {"metadata": {"resourceVersion": "x"}}});
        let mut want = old.clone();
        set(&mut want, "/metadata/resourceVersion", "42".into());
        let bytes = Unversioned::encode(&old).at(42);
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), want);
        assert!(bytes.starts_with(b"{\"kind\":\"K\",\"apiVersion\":\"v1\",\"metadata\":"));
        assert_eq!(Unversioned::of(&bytes).unwrap().at(42), bytes);
        assert_eq!(Unversioned::of(&bytes).unwrap().at(7), Unversioned::encode(&old).at(7));
        assert!(Unversioned::of(b"{\"kind\":\"K\"}").is_none());
        assert_eq!(&Unversioned::encode(&json!({"kind": "K"})).at(1)[..], b"{\"kind\":\"K\"}");
    }

    #[test]
    fn metadata_is_found_without_decoding() {
        let metadata =
            json!({"name": "a\\\"}", "annotations": {"x": "{[\"", "y": "\\\\"}, "finalizers": ["}"]});
        let object = json!({"kind": "K", "apiVersion": "v1", "metadata": metadata, "spec": {"metadata": {}}});
        let bytes = encode(&object);
        assert_eq!(serde_json::from_slice::<Value>(metadata_of(&bytes).unwrap()).unwrap(), metadata);
        assert!(metadata_of(b"{}").is_none() && metadata_of(b"{\"a\":1,\"metadata\":{").is_none());
    }

    #[test]
    fn spec_comparison_ignores_metadata_and_status() {
        let a = json!({"metadata": {"x": 1}, "status": 1, "spec": 1});
        assert!(same_spec(&a, &json!({"metadata": {}, "spec": 1})));
        assert!(!same_spec(&a, &json!({"spec": 2})));
        assert!(!same_spec(&json!({}), &a));
    }
}
