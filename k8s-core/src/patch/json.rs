//! JSON patch (RFC 6902), kept within bounds: a short patch must not make a large or deep value.

use json_patch::{Patch, PatchOperation, jsonptr::PointerBuf};
use serde_json::Value;

use super::PatchError;
use crate::schema::MAX_DEPTH;

/// Most operations that a JSON patch may have, as upstream limits it.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;
/// How much the `copy` operations of one patch may copy, in bytes of JSON (about): what a request may hold, as upstream limits it.
const MAX_COPIED: usize = 3 << 20;

/// Applies a JSON patch.
///
/// # Errors
/// [`PatchError::Malformed`] when it is not one, [`PatchError::Inapplicable`] when a path or test fails or the result would be too large or too deep;
/// `target` is then unchanged.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if patch.as_array().is_some_and(|p| p.len() > MAX_JSON_PATCH_OPERATIONS) {
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}"
        )));
    }
    let Patch(operations) =
        serde_json::from_value(patch.clone()).map_err(|e| PatchError::Malformed(e.to_string()))?;
    // The crate's own way back from a failed patch does not always find the way; a copy does.
    let mut patched = target.clone();
    let mut copied = 0;
    for operation in operations {
        within_bounds(&patched, &operation, &mut copied)?;
        json_patch::patch_unsafe(&mut patched, &[operation])
            .map_err(|e| PatchError::Inapplicable(e.to_string()))?;
    }
    *target = patched;
    Ok(())
}

fn within_bounds(target: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), PatchError> {
    let source = |from: &PointerBuf| target.pointer(from.as_str());
    let (path, value) = match operation {
        PatchOperation::Add(o) => (&o.path, Some(&o.value)),
        PatchOperation::Replace(o) => (&o.path, Some(&o.value)),
        PatchOperation::Move(o) => (&o.path, source(&o.from)),
        PatchOperation::Copy(o) => (&o.path, source(&o.from)),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    let Some(value) = value else { return Ok(()) };
    let (size, depth) = extent(value);
    if path.count() + depth > MAX_DEPTH {
        return Err(PatchError::Inapplicable(format!(
            "the value at {path} would be nested deeper than {MAX_DEPTH}"
        )));
    }
    if matches!(operation, PatchOperation::Copy(_)) {
        *copied += size;
        if *copied > MAX_COPIED {
            return Err(PatchError::Inapplicable(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
            )));
        }
    }
    Ok(())
}

/// About how many bytes a value's JSON has, and how deep it is nested (a leaf: 1).
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
