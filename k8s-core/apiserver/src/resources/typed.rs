//! Resources of Rust types ([`CustomResource`]), served without a CustomResourceDefinition: their methods
//! default and validate.

use std::{fmt, marker::PhantomData, sync::Arc};

use k8s_core::custom::{CustomResource, Problems};
use serde_json::Value;

use super::{Resource, custom};
use crate::invalid::FieldErrors;

/// Type-erased methods of a custom resource, on JSON values.
pub(crate) trait Typed: Send + Sync {
    fn default(&self, object: &mut Value);
    fn validate(&self, object: &Value, old: Option<&Value>, status: bool, errors: &mut FieldErrors);
    fn stored_form(&self, version: &str, object: &mut Value);
    fn served_form(&self, version: &str, object: &mut Value);
}

impl fmt::Debug for dyn Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Typed")
    }
}

struct Of<T>(PhantomData<fn() -> T>);

impl<T: CustomResource> Typed for Of<T> {
    fn default(&self, object: &mut Value) {
        // Values that do not match the type are left to validation.
        let Ok(mut typed) = T::deserialize(&*object) else { return };
        typed.default();
        let Ok(Value::Object(new)) = serde_json::to_value(&typed) else { return };
        let Some(map) = object.as_object_mut() else { return };
        for (name, value) in new {
            if !["apiVersion", "kind", "metadata"].contains(&name.as_str()) && !value.is_null() {
                map.insert(name, value);
            }
        }
    }

    fn validate(&self, object: &Value, old: Option<&Value>, status: bool, errors: &mut FieldErrors) {
        let typed = match T::deserialize(object) {
            Ok(typed) => typed,
            Err(e) => {
                errors.invalid("<nil>", Value::Null, format!("cannot be read as a {}: {e}", T::KIND));
                return;
            }
        };
        // A stored object may have an older structure; it is then ignored.
        let old = old.and_then(|old| T::deserialize(old).ok());
        let mut problems = Problems::default();
        match (&old, status) {
            (Some(old), true) => typed.validate_status(old, &mut problems),
            _ => typed.validate(old.as_ref(), &mut problems),
        }
        for (field, message) in problems.iter() {
            let pointer = format!("/{}", field.replace('.', "/"));
            errors.invalid(field, object.pointer(&pointer).cloned().unwrap_or_default(), message);
        }
    }

    fn stored_form(&self, version: &str, object: &mut Value) {
        T::from_version(version, object);
    }

    fn served_form(&self, version: &str, object: &mut Value) {
        T::to_version(version, object);
    }
}

/// The definition of a type is invalid.
pub(crate) struct InvalidDefinition {
    pub(crate) kind: String,
    /// Each problem as `field: message`.
    pub(crate) problems: Vec<String>,
}

/// Returns the resources of a type, one per version.
pub(crate) fn resources<T: CustomResource>() -> Result<Vec<Arc<Resource>>, InvalidDefinition> {
    let definition = T::definition();
    let mut errors = FieldErrors::default();
    custom::check_definition(&definition, &mut errors);
    if !errors.is_empty() {
        return Err(InvalidDefinition { kind: T::KIND.to_owned(), problems: errors.lines() });
    }
    let made = custom::from_definition(&definition);
    let typed: Arc<dyn Typed> = Arc::new(Of::<T>(PhantomData));
    let with = |resource: Arc<Resource>| {
        let mut resource = Arc::into_inner(resource)?;
        resource.typed = Some(typed.clone());
        Some(Arc::new(resource))
    };
    Ok(made.into_iter().filter_map(with).collect())
}
