//! The four patch types on JSON values with a [`Schema`](crate::Schema).
//!
//! JSON patch (RFC 6902) and merge patch (RFC 7386) need no schema. Strategic merge takes merge keys from it;
//! server-side apply takes list types from it and maintains [`managed`] fields.

pub mod fields;
mod json;
pub mod last_applied;
pub mod managed;
mod strategic;

pub use json::{MAX_JSON_PATCH_OPERATIONS, json};
pub use strategic::strategic;

use serde_json::Value;

/// Errors of applying a patch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The patch is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The patch has too many operations.
    #[error("{0}")]
    TooLarge(String),
    /// The patch does not apply to this object (a failed `test`, a missing path).
    #[error("{0}")]
    Inapplicable(String),
}

/// Applies a JSON merge patch: `null` removes, objects are merged, all other values replace.
///
/// ```
/// use serde_json::json;
/// let mut object = json!({"spec": {"replicas": 3, "paused": true}, "tags": ["a"]});
/// k8s_schema::patch::merge(&mut object, &json!({"spec": {"paused": null}, "tags": ["b"]}));
/// assert_eq!(object, json!({"spec": {"replicas": 3}, "tags": ["b"]}));
/// ```
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

/// Returns the merge patch from `old` to `new`. A merge patch cannot set a member to `null`.
///
/// # Examples
/// ```
/// # use k8s_schema::patch;
/// # use serde_json::json;
/// let old = json!({"data": {"a": "1", "b": "2"}, "immutable": true});
/// let new = json!({"data": {"a": "1", "b": "3"}});
/// let patch = patch::merge_diff(&old, &new);
/// assert_eq!(patch, json!({"data": {"b": "3"}, "immutable": null}));
/// ```
#[must_use]
pub fn merge_diff(old: &Value, new: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (old, new) else { return new.clone() };
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value)).map(|(key, value)| {
        let change = match before.get(key) {
            // An object that replaces another type must be complete.
            Some(old @ Value::Object(_)) => merge_diff(old, value),
            _ => value.clone(),
        };
        (key.clone(), change)
    });
    gone.chain(changed).collect()
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

    fn tree() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..9i64).prop_map(Value::from)];
        leaf.prop_recursive(3, 12, 3, |inner| {
            proptest::collection::btree_map("[abc]", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn merging_the_difference_makes_the_target(old in tree(), new in tree()) {
            let patch = merge_diff(&old, &new);
            let mut merged = old.clone();
            merge(&mut merged, &patch);
            prop_assert_eq!(&merged, &new);
            prop_assert_eq!(merge_diff(&new, &new), if new.is_object() { json!({}) } else { new });
        }

        #[test]
        fn merging_twice_is_merging_once(mut target in tree(), patch in tree()) {
            merge(&mut target, &patch);
            let once = target.clone();
            merge(&mut target, &patch);
            prop_assert_eq!(target, once);
        }
    }
}
