//! JSON patch (RFC 6902) as API servers apply it, with limits: a short patch must not create a large or deep
//! value.
//!
//! Deviations of upstream's implementation from the RFC are kept, because clients rely on them: an absent
//! object member equals null (`test`, `copy`) and may be replaced; an absent `value` is null; negative
//! indices count from the end; `add` and `remove` of the whole document do not apply.

use serde_json::{Map, Value};

use super::PatchError;
use crate::MAX_DEPTH;

/// Maximum number of operations, as upstream.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;
/// Maximum amount of JSON that the `copy` operations of a patch may copy, approximately in bytes: the size
/// limit of a request, as upstream.
const MAX_COPIED: usize = 3 << 20;

/// Applies a JSON patch. `target` is unchanged on error.
///
/// # Errors
/// [`PatchError::Malformed`] if it is not a JSON patch, [`PatchError::TooLarge`] if it has too many
/// operations, [`PatchError::Inapplicable`] if a path or test fails, an operation is unknown, or the result
/// would be too large or too deep.
///
/// # Examples
/// ```
/// # use k8s_schema::patch;
/// # use serde_json::json;
/// let mut object = json!({"metadata": {}});
/// let patch = json!([
///     {"op": "test", "path": "/metadata/finalizers", "value": null},
///     {"op": "add", "path": "/metadata/finalizers", "value": ["example.com/f"]},
/// ]);
/// patch::json(&mut object, &patch).unwrap();
/// assert_eq!(object, json!({"metadata": {"finalizers": ["example.com/f"]}}));
/// ```
pub fn json(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let malformed = |why: &str| PatchError::Malformed(why.to_owned());
    let operations =
        patch.as_array().ok_or_else(|| malformed("a JSON patch must be a list of operations"))?;
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let operations: Vec<Operation<'_>> = operations.iter().map(Operation::read).collect::<Result<_, _>>()?;
    let mut run = Run { document: target.clone(), copied: 0 };
    for operation in &operations {
        run.apply(operation)?;
    }
    *target = run.document;
    Ok(())
}

fn inapplicable(why: impl Into<String>) -> PatchError {
    PatchError::Inapplicable(why.into())
}

/// An operation. Its members are validated when it is applied, so that an earlier operation may fail first.
struct Operation<'a> {
    op: &'a str,
    path: Option<&'a str>,
    from: Option<&'a str>,
    value: &'a Value,
}

impl<'a> Operation<'a> {
    fn read(operation: &'a Value) -> Result<Self, PatchError> {
        let map = operation.as_object().ok_or_else(|| {
            PatchError::Malformed("an operation of a JSON patch must be an object".to_owned())
        })?;
        let text = |field: &str| match map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => {
                Err(PatchError::Malformed(format!("{field} of a JSON patch's operation must be a string")))
            }
        };
        Ok(Operation {
            op: text("op")?.unwrap_or("unknown"),
            path: text("path")?,
            from: text("from")?,
            value: map.get("value").unwrap_or(&Value::Null),
        })
    }

    fn path(&self) -> Result<&'a str, PatchError> {
        self.path.ok_or_else(|| inapplicable(format!("{} operation: missing path field", self.op)))
    }

    fn from(&self) -> Result<&'a str, PatchError> {
        self.from.ok_or_else(|| inapplicable(format!("{} operation: missing from field", self.op)))
    }
}

/// State of the patch application.
struct Run {
    document: Value,
    /// Bytes copied so far, approximately.
    copied: usize,
}

impl Run {
    fn apply(&mut self, operation: &Operation<'_>) -> Result<(), PatchError> {
        match operation.op {
            "add" => self.add(operation.path()?, operation.value.clone()),
            "remove" => self.remove(operation.path()?).map(drop),
            "replace" => self.replace(operation.path()?, operation.value),
            "move" => {
                let value = self.remove(operation.from()?)?;
                self.add(operation.path()?, value)
            }
            "copy" => {
                let value = self.get(operation.from()?)?.clone();
                let (size, _) = extent(&value);
                self.copied += size;
                if self.copied > MAX_COPIED {
                    return Err(inapplicable(format!(
                        "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {MAX_COPIED}",
                        self.copied
                    )));
                }
                self.add(operation.path()?, value)
            }
            "test" => {
                let path = operation.path()?;
                let is_equal = match path {
                    "" => self.document == *operation.value,
                    path => self.get(path)? == operation.value,
                };
                if is_equal { Ok(()) } else { Err(inapplicable(format!("testing value {path} failed"))) }
            }
            other => Err(inapplicable(format!("Unexpected kind: {other}"))),
        }
    }

    /// Returns the value at a path; null for an absent object member.
    fn get(&mut self, path: &str) -> Result<&Value, PatchError> {
        let (parent, key) = self.parent(path)?;
        match parent {
            Parent::Object(map) => Ok(map.get(&key).unwrap_or(&Value::Null)),
            Parent::Array(items) => {
                let at = index(&key, items.len())?;
                Ok(items.get(at).unwrap_or(&Value::Null))
            }
        }
    }

    fn add(&mut self, path: &str, value: Value) -> Result<(), PatchError> {
        within_depth(path, &value)?;
        let (parent, key) = self.parent(path)?;
        match parent {
            Parent::Object(map) => drop(map.insert(key, value)),
            Parent::Array(items) if key == "-" => items.push(value),
            Parent::Array(items) => items.insert(index(&key, items.len() + 1)?, value),
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<Value, PatchError> {
        let (parent, key) = self.parent(path)?;
        match parent {
            Parent::Object(map) => map
                .remove(&key)
                .ok_or_else(|| inapplicable(format!("Unable to remove nonexistent key: {key}"))),
            Parent::Array(items) => Ok(items.remove(index(&key, items.len())?)),
        }
    }

    fn replace(&mut self, path: &str, value: &Value) -> Result<(), PatchError> {
        within_depth(path, value)?;
        if path.is_empty() {
            if !value.is_object() && !value.is_array() {
                return Err(inapplicable("replace operation value must be object or array"));
            }
            self.document = value.clone();
            return Ok(());
        }
        let (parent, key) = self.parent(path)?;
        match parent {
            Parent::Object(map) => drop(map.insert(key, value.clone())),
            Parent::Array(items) => {
                let at = index(&key, items.len())?;
                items[at] = value.clone();
            }
        }
        Ok(())
    }

    /// Returns the container of a path's last element, and that element.
    fn parent(&mut self, path: &str) -> Result<(Parent<'_>, String), PatchError> {
        let missing = || inapplicable(format!("doc is missing path: {path}"));
        let (before, last) = path.rsplit_once('/').ok_or_else(missing)?;
        let mut at = &mut self.document;
        for part in before.split('/').skip(1).map(decoded) {
            at = match at {
                Value::Object(map) => map.get_mut(&part).ok_or_else(missing)?,
                Value::Array(items) => {
                    let place = index(&part, items.len()).map_err(|_| missing())?;
                    items.get_mut(place).ok_or_else(missing)?
                }
                _ => return Err(missing()),
            };
        }
        match at {
            Value::Object(map) => Ok((Parent::Object(map), decoded(last))),
            Value::Array(items) => Ok((Parent::Array(items), decoded(last))),
            _ => Err(missing()),
        }
    }
}

enum Parent<'a> {
    Object(&'a mut Map<String, Value>),
    Array(&'a mut Vec<Value>),
}

/// Unescapes a path element.
fn decoded(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// Parses a path element as an array index; negative ones count from the end.
fn index(part: &str, length: usize) -> Result<usize, PatchError> {
    let asked: i64 =
        part.parse().map_err(|_| inapplicable(format!("value was not a proper array index: '{part}'")))?;
    let from_end = |back: u64| usize::try_from(back).ok().and_then(|back| length.checked_sub(back));
    let place = match usize::try_from(asked) {
        Ok(place) => Some(place).filter(|place| *place < length),
        Err(_) => from_end(asked.unsigned_abs()),
    };
    place.ok_or_else(|| inapplicable(format!("Unable to access invalid index: {asked}")))
}

fn within_depth(path: &str, value: &Value) -> Result<(), PatchError> {
    let (_, depth) = extent(value);
    if path.matches('/').count() + depth > MAX_DEPTH {
        return Err(inapplicable(format!("the value at {path} would be nested deeper than {MAX_DEPTH}")));
    }
    Ok(())
}

/// Returns the approximate JSON size of a value in bytes, and its depth (1 for a leaf).
fn extent(value: &Value) -> (usize, usize) {
    let of_children = |children: &mut dyn Iterator<Item = (usize, &Value)>| {
        children.fold((2, 1), |(size, depth), (key, child)| {
            let (s, d) = extent(child);
            (size + key + s + 1, depth.max(d + 1))
        })
    };
    match value {
        Value::Null | Value::Bool(_) => (4, 1),
        Value::Number(_) => (8, 1),
        Value::String(text) => (text.len() + 2, 1),
        Value::Array(items) => of_children(&mut items.iter().map(|item| (0, item))),
        Value::Object(map) => of_children(&mut map.iter().map(|(key, value)| (key.len() + 3, value))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{json as apply, *};

    #[test]
    fn a_failed_patch_changes_nothing() {
        let mut value = json!({"a": 1});
        let patch =
            json!([{"op": "add", "path": "/b", "value": 2}, {"op": "test", "path": "/a", "value": 9}]);
        assert!(matches!(apply(&mut value, &patch), Err(PatchError::Inapplicable(_))));
        assert_eq!(value, json!({"a": 1}));
    }

    /// Expected document after each patch; `None`: it does not apply.
    #[test]
    fn patches_apply_as_upstream_applies_them() {
        let cases = [
            // An absent member equals null if its parent exists.
            (
                json!({"m": {}}),
                json!([{"op": "test", "path": "/m/f", "value": null}]),
                Some(json!({"m": {}})),
            ),
            (json!({"m": {}}), json!([{"op": "test", "path": "/m/f"}]), Some(json!({"m": {}}))),
            (
                json!({"m": {"f": null}}),
                json!([{"op": "test", "path": "/m/f", "value": null}]),
                Some(json!({"m": {"f": null}})),
            ),
            (json!({"m": {}}), json!([{"op": "test", "path": "/m/f/g", "value": null}]), None),
            (json!({"m": {"f": 1}}), json!([{"op": "test", "path": "/m/f", "value": null}]), None),
            (json!({"m": {}}), json!([{"op": "test", "path": "/m/f", "value": 1}]), None),
            (json!([]), json!([{"op": "test", "path": "/0", "value": null}]), None),
            (json!({"a": 1}), json!([{"op": "test", "path": "", "value": {"a": 1}}]), Some(json!({"a": 1}))),
            // An absent object member may be replaced, an absent array element may not.
            (
                json!({"m": {}}),
                json!([{"op": "replace", "path": "/m/f", "value": 1}]),
                Some(json!({"m": {"f": 1}})),
            ),
            (json!({}), json!([{"op": "replace", "path": "/m/f", "value": 1}]), None),
            (json!([1]), json!([{"op": "replace", "path": "/1", "value": 2}]), None),
            (json!([1]), json!([{"op": "replace", "path": "/-", "value": 2}]), None),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "", "value": {"b": 2}}]),
                Some(json!({"b": 2})),
            ),
            (json!({"a": 1}), json!([{"op": "replace", "path": "", "value": 2}]), None),
            // An absent value is null.
            (json!({}), json!([{"op": "add", "path": "/a"}]), Some(json!({"a": null}))),
            (
                json!([1]),
                json!([{"op": "add", "path": "/-", "value": 2}, {"op": "add", "path": "/0", "value": 0}]),
                Some(json!([0, 1, 2])),
            ),
            (json!([1]), json!([{"op": "add", "path": "/-1", "value": 2}]), Some(json!([1, 2]))),
            (json!([1, 2]), json!([{"op": "remove", "path": "/-1"}]), Some(json!([1]))),
            (json!([1]), json!([{"op": "remove", "path": "/-2"}]), None),
            (json!([1]), json!([{"op": "add", "path": "/2", "value": 2}]), None),
            (json!({"a": 1}), json!([{"op": "add", "path": "", "value": {}}]), None),
            (json!({}), json!([{"op": "remove", "path": "/a"}]), None),
            (
                json!({"a": {"b": 1}}),
                json!([{"op": "move", "from": "/a/b", "path": "/c"}]),
                Some(json!({"a": {}, "c": 1})),
            ),
            (json!({}), json!([{"op": "move", "from": "/b", "path": "/c"}]), None),
            (json!({}), json!([{"op": "copy", "from": "/b", "path": "/c"}]), Some(json!({"c": null}))),
            (
                json!({"a/b": {"c~d": 1}}),
                json!([{"op": "remove", "path": "/a~1b/c~0d"}]),
                Some(json!({"a/b": {}})),
            ),
            (json!({}), json!([{"op": "foo", "path": "/a"}]), None),
            (json!({}), json!([{"path": "/a"}]), None),
            (json!({}), json!([{"op": "add", "value": 1}]), None),
            (json!({}), json!([]), Some(json!({}))),
        ];
        for (document, patch, want) in cases {
            let mut patched = document.clone();
            let done = apply(&mut patched, &patch);
            match want {
                Some(want) => assert_eq!((done, &patched), (Ok(()), &want), "{patch} on {document}"),
                None => {
                    assert!(
                        matches!(done, Err(PatchError::Inapplicable(_))),
                        "{patch} on {document}: {done:?}"
                    );
                    assert_eq!(patched, document);
                }
            }
        }
        for malformed in [json!({}), json!([1]), json!([{"op": 5}]), json!([{"op": "add", "path": 5}])] {
            assert!(
                matches!(apply(&mut json!({}), &malformed), Err(PatchError::Malformed(_))),
                "{malformed}"
            );
        }
        let error = apply(&mut json!({}), &json!([{"op": "foo", "path": "/a"}])).unwrap_err();
        assert_eq!(error.to_string(), "Unexpected kind: foo");
        let many: Value = (0..10_001).map(|_| json!({"op": "test", "path": "/a"})).collect();
        assert!(matches!(apply(&mut json!({}), &many), Err(PatchError::TooLarge(_))));
    }

    #[test]
    fn a_copy_of_copies_is_stopped() {
        let mut value = json!({"a": {"x": "0123456789"}});
        let patch: Vec<Value> =
            (0..60).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/k{i}")})).collect();
        let error = apply(&mut value, &patch.into()).unwrap_err();
        assert!(error.to_string().contains("exceeding the limit"), "{error}");
    }

    #[test]
    fn nothing_gets_deeper_than_can_be_walked() {
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!({"a": deep});
        }
        let path = "/a".repeat(100);
        let mut value = deep.clone();
        let patch = json!([{"op": "add", "path": path, "value": deep}]);
        assert!(apply(&mut value, &patch).unwrap_err().to_string().contains("nested deeper"));
    }
}
