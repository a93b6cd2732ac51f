//! The four kinds of patch, all on JSON values along a [`Schema`](crate::schema::Schema).
//!
//! JSON patch (RFC 6902) and merge patch (RFC 7386) need no schema; strategic merge takes merge keys from it, server-side apply takes list types
//! from it and keeps [`managed`] fields.

pub mod fields;
pub mod managed;
mod strategic;

pub use strategic::strategic;

use serde_json::Value;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// It does not fit this object (a failed `test`, a missing path).
    #[error("{0}")]
    Inapplicable(String),
}

/// Most operations that a JSON patch may have, as upstream limits it.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Applies a JSON patch.
///
/// # Errors
/// [`PatchError::Malformed`] when it is not one, [`PatchError::Inapplicable`] when a path or test fails; `target` is then unchanged.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if patch.as_array().is_some_and(|p| p.len() > MAX_JSON_PATCH_OPERATIONS) {
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}"
        )));
    }
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| PatchError::Malformed(e.to_string()))?;
    // The crate's own way back from a failed patch does not always find the way; a copy does.
    let mut patched = target.clone();
    json_patch::patch_unsafe(&mut patched, &patch).map_err(|e| PatchError::Inapplicable(e.to_string()))?;
    *target = patched;
    Ok(())
}

/// Applies a merge patch: `null` removes, objects merge, everything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, change) in changes {
        match change {
            Value::Null => {
                map.remove(key);
            }
            Value::Object(_) => merge(map.entry(key.clone()).or_insert(Value::Null), change),
            other => {
                map.insert(key.clone(), other.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn rfc_7386_examples() {
        let mut value = json!({"a": "b", "c": {"d": "e", "f": "g"}});
        merge(&mut value, &json!({"a": "z", "c": {"f": null}}));
        assert_eq!(value, json!({"a": "z", "c": {"d": "e"}}));
        let mut value = json!({});
        merge(&mut value, &json!({"a": {"bb": {"ccc": null}}}));
        assert_eq!(value, json!({"a": {"bb": {}}}));
    }

    #[test]
    fn a_failed_json_patch_changes_nothing() {
        let mut value = json!({"a": 1});
        let patch =
            json!([{"op": "add", "path": "/b", "value": 2}, {"op": "test", "path": "/a", "value": 9}]);
        assert!(matches!(json(&mut value, &patch), Err(PatchError::Inapplicable(_))));
        assert_eq!(value, json!({"a": 1}));
    }

    fn tree() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..9i64).prop_map(Value::from)];
        leaf.prop_recursive(3, 12, 3, |inner| {
            proptest::collection::btree_map("[abc]", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(mut target in tree(), patch in tree()) {
            merge(&mut target, &patch);
            let once = target.clone();
            merge(&mut target, &patch);
            prop_assert_eq!(target, once);
        }
    }
}
