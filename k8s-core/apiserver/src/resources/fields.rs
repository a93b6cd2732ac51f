//! Selectable fields: values that the store indexes and selectors compare.

use k8s_store::Meta;
use serde_json::Value;

/// A selectable field: where its value is in an object's stored form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Paths such as `spec.nodeName`; the first one that an object has counts.
    paths: Vec<String>,
    /// The value of objects without any.
    absent: String,
}

impl Field {
    /// Creates a field of one path, such as `spec.nodeName`.
    #[must_use]
    pub fn at(path: &str) -> Self {
        Field { paths: vec![path.to_owned()], absent: String::new() }
    }

    /// Reads a row's notation, `name[=path[|path]...][?absent]`: the field's name, its paths if they are not the
    /// name, and the value of an object without it. Returns the name with the field.
    pub(super) fn named(notation: &str) -> (String, Self) {
        let (place, absent) = notation.split_once('?').unwrap_or((notation, ""));
        let (name, paths) = place.split_once('=').unwrap_or((place, place));
        let paths = paths.split('|').map(str::to_owned).collect();
        (name.to_owned(), Field { paths, absent: absent.to_owned() })
    }

    /// Returns the value of an object as selectors compare it. Empty: the field is absent.
    #[must_use]
    pub fn text(&self, object: &Value) -> String {
        let value = |path: &String| match path.split('.').try_fold(object, |at, part| at.get(part))? {
            Value::String(text) => Some(text.clone()),
            plain @ (Value::Bool(_) | Value::Number(_)) => Some(plain.to_string()),
            _ => None,
        };
        self.paths.iter().find_map(value).unwrap_or_else(|| self.absent.clone())
    }
}

/// Returns the values of a resource's selectable fields in an object's stored form.
#[must_use]
pub fn selectable(fields: &[Field], object: &Value) -> Box<[Box<str>]> {
    fields.iter().map(|field| field.text(object).into()).collect()
}

/// Returns the labels, selectable fields and uid of an object, which the store keeps beside its JSON.
pub(crate) fn meta_of(object: &Value, fields: &[Field]) -> Meta {
    let labels = crate::value::object_at(object, "/metadata/labels").into_iter().flatten();
    Meta {
        uid: crate::value::str_at(object, "/metadata/uid").into(),
        labels: labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect(),
        fields: selectable(fields, object),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_notation_of_rows() {
        let pod = json!({"spec": {"nodeName": "n", "hostNetwork": true}, "status": {"replicas": 3}});
        for (notation, name, value) in [
            ("spec.nodeName", "spec.nodeName", "n"),
            ("status.replicas", "status.replicas", "3"),
            ("spec.hostNetwork?false", "spec.hostNetwork", "true"),
            ("spec.unschedulable?false", "spec.unschedulable", "false"),
            ("node=spec.absent|spec.nodeName", "node", "n"),
            ("node=spec.absent|spec", "node", ""),
        ] {
            let (named, field) = Field::named(notation);
            assert_eq!((&*named, &*field.text(&pod)), (name, value), "{notation}");
        }
    }
}
