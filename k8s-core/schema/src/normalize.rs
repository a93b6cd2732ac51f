//! Fits a decoded value to its type: removes unknown fields, fills in absent ones, and reports mismatches.

use serde_json::{Map, Value};

use super::{Kind, Limits, MAX_DEPTH, NodeId, Schema};
use crate::paths::{self, Paths};

/// A value that does not match its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Field path such as `spec.containers[0].ports`.
    pub path: String,
    /// Nearest definition and the path in it (`Container.ports`), for built-in types.
    pub field: String,
    /// Expected type or format.
    pub want: String,
    /// Actual type: `string`, `number`, `bool`, `array` or `object`.
    pub have: &'static str,
}

/// Most findings of one kind that are kept, and the most bytes of a message about a value.
const MOST: usize = 1000;
const LONGEST: usize = 16 << 10;

/// Findings of [`Schema::normalize`]. All empty: the value matches its schema.
#[derive(Clone, Debug, Default)]
pub struct Normalized {
    /// Paths of unknown fields, which were removed.
    pub unknown: Paths,
    /// Values of the wrong type; the first 1,000.
    pub mismatches: Vec<Mismatch>,
    /// Violated limits of a custom schema: path and message; the first 1,000.
    pub breaches: Vec<(String, String)>,
}

impl Schema {
    /// Removes unknown fields and `null`s, and reports mismatches. With `custom` also checks required fields
    /// and limits (built-in types have their own validators for those).
    ///
    /// ```
    /// use k8s_schema::Schema;
    /// use serde_json::json;
    ///
    /// let schema = Schema::custom(&json!({"type": "object", "properties": {
    ///     "size": {"type": "integer", "minimum": 1}, "name": {"type": "string"},
    /// }})).unwrap();
    /// let mut object = json!({"size": 0, "name": 7, "colour": "red"});
    /// let found = schema.normalize(&mut object, true);
    /// assert_eq!(found.unknown.as_slice(), ["colour"]);
    /// assert_eq!((found.mismatches.len(), found.breaches.len()), (1, 1));
    /// ```
    pub fn normalize(&self, value: &mut Value, custom: bool) -> Normalized {
        let mut walk = Walk { schema: self, found: Normalized::default(), path: String::new(), custom };
        walk.value(value, self.root, 0);
        walk.found
    }

    /// Sets the schema's defaults recursively, where the parent exists.
    ///
    /// ```
    /// use k8s_schema::Schema;
    /// use serde_json::json;
    ///
    /// let schema = Schema::custom(&json!({"type": "object", "properties": {
    ///     "spec": {"type": "object", "properties": {"replicas": {"type": "integer", "default": 1}}},
    /// }})).unwrap();
    /// let (mut object, mut empty) = (json!({"spec": {}}), json!({}));
    /// schema.default(&mut object);
    /// schema.default(&mut empty);
    /// assert_eq!((object, empty), (json!({"spec": {"replicas": 1}}), json!({})));
    /// ```
    pub fn default(&self, value: &mut Value) {
        self.default_at(value, self.root, 0, false);
    }

    /// Fills in the members that Go always writes, and the defaults in them.
    pub fn complete(&self, value: &mut Value) {
        self.default_at(value, self.root, 0, true);
    }

    fn default_at(&self, value: &mut Value, node: NodeId, depth: usize, always: bool) {
        if depth > MAX_DEPTH {
            return;
        }
        match (&self.node(node).kind, value) {
            (Kind::Object { fields, rest, .. }, Value::Object(map)) => {
                for (name, field) in fields {
                    if let Some(default) = &field.default {
                        map.entry(name.as_ref()).or_insert_with(|| default.clone());
                    } else if always && field.always {
                        map.entry(name.as_ref()).or_insert_with(|| Map::new().into());
                    }
                }
                for (name, child) in map.iter_mut() {
                    if let Some(node) = fields.get(name.as_str()).map(|f| f.node).or(*rest) {
                        self.default_at(child, node, depth + 1, always);
                    }
                }
            }
            (Kind::List { item, .. }, Value::Array(items)) => {
                for child in items {
                    self.default_at(child, *item, depth + 1, always);
                }
            }
            _ => {}
        }
    }
}

struct Walk<'a> {
    schema: &'a Schema,
    found: Normalized,
    path: String,
    custom: bool,
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Optional lists whose emptiness has a meaning: RBAC's rules are written, managedFields are reset.
const KEPT_EMPTY: [&str; 2] = ["rules", "managedFields"];

/// Returns true for an empty list or map. In a built-in type it is equivalent to an absent one, and is stored
/// as such.
fn is_empty_collection(value: &Value, kind: &Kind) -> bool {
    match (value, kind) {
        (Value::Array(items), Kind::List { .. }) => items.is_empty(),
        (Value::Object(map), Kind::Object { fields, rest: Some(_), .. }) => {
            map.is_empty() && fields.is_empty()
        }
        _ => false,
    }
}

impl Walk<'_> {
    fn mismatch(&mut self, want: impl Into<String>, value: &Value) {
        if self.found.mismatches.len() >= MOST {
            return;
        }
        self.found.mismatches.push(Mismatch {
            path: self.path.clone(),
            field: self.path.clone(),
            want: want.into(),
            have: type_name(value),
        });
    }

    /// Runs `f` with `part` appended to the path.
    fn within(&mut self, part: &str, dot: bool, f: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if dot && !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(paths::part(part));
        f(self);
        self.path.truncate(length);
    }

    /// Returns the value that a `null` in a list of a built-in type means, as Go's decoder takes it.
    fn zero(&self, id: NodeId) -> Value {
        match &self.schema.node(id).kind {
            Kind::Object { .. } => Value::Object(Map::new()),
            Kind::List { .. } => Value::Array(Vec::new()),
            Kind::String { .. } => Value::String(String::new()),
            Kind::Integer { .. } | Kind::Number | Kind::IntOrString => Value::from(0),
            Kind::Boolean => Value::Bool(false),
            Kind::Quantity => Value::String("0".into()),
            Kind::Any => Value::Null,
        }
    }

    fn value(&mut self, value: &mut Value, id: NodeId, depth: usize) {
        let schema = self.schema;
        let node = schema.node(id);
        if depth > MAX_DEPTH {
            self.mismatch("a value nested less deep", value);
            return;
        }
        let fits = match (&node.kind, &mut *value) {
            (Kind::Any, _) => true,
            (_, Value::Null) => node.nullable,
            (Kind::Object { .. }, Value::Object(map)) => {
                self.object(map, &node.kind, depth);
                true
            }
            (Kind::List { item, .. }, Value::Array(items)) => {
                for (i, element) in items.iter_mut().enumerate() {
                    if element.is_null() && !self.custom {
                        *element = self.zero(*item);
                    }
                    self.within(&format!("[{i}]"), false, |walk| walk.value(element, *item, depth + 1));
                }
                true
            }
            (Kind::String { format }, Value::String(text)) => {
                self.format(format, text);
                true
            }
            (Kind::Integer { bits }, Value::Number(n)) => {
                let whole = n.as_i64().or_else(|| {
                    // 3.0 is an integer in JSON; Go's decoder rejects it, but YAML users write it.
                    n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15).map(|f| f as i64)
                });
                match whole {
                    Some(n) => *bits == 64 || i32::try_from(n).is_ok(),
                    None => false,
                }
            }
            (Kind::Number | Kind::Quantity, Value::Number(_)) => true,
            (Kind::Boolean, Value::Bool(_)) => true,
            (Kind::IntOrString, Value::String(_)) => true,
            (Kind::IntOrString, Value::Number(n)) => n.is_i64() || n.is_u64(),
            (Kind::Quantity, Value::String(text)) => {
                if let Err(e) = text.trim().parse::<k8s_quantity::Quantity>() {
                    self.mismatch(format!("quantity: {e}"), &Value::Null);
                }
                true
            }
            _ => false,
        };
        if !fits {
            let want = match &node.kind {
                Kind::Object { .. } if node.name.is_empty() => "map[string]string".to_owned(),
                Kind::Object { .. } => format!("v1.{}", node.name),
                Kind::List { .. } => "[]".to_owned() + &self.item_name(&node.kind),
                Kind::String { .. } => "string".into(),
                Kind::Integer { bits } => format!("int{bits}"),
                Kind::Number => "float64".into(),
                Kind::Boolean => "bool".into(),
                Kind::IntOrString => "int or string".into(),
                Kind::Quantity => "quantity".into(),
                Kind::Any => "anything".into(),
            };
            self.mismatch(want, value);
        } else if self.custom
            && let Some(limits) = &node.limits
        {
            self.limits(limits, value);
        }
        match (&node.kind, &*value) {
            (Kind::Quantity, Value::Number(n)) => *value = Value::String(n.to_string()),
            // Space around a quantity is no part of it: those who read the stored text know none.
            (Kind::Quantity, Value::String(text)) if text.trim() != text => {
                *value = Value::String(text.trim().to_owned());
            }
            _ => {}
        }
    }

    fn item_name(&self, kind: &Kind) -> String {
        match kind {
            Kind::List { item, .. } => match &self.schema.node(*item).kind {
                Kind::String { .. } => "string".into(),
                _ => format!("v1.{}", self.schema.node(*item).name),
            },
            _ => String::new(),
        }
    }

    fn object(&mut self, map: &mut Map<String, Value>, kind: &Kind, depth: usize) {
        let Kind::Object { fields, rest, preserve, required, .. } = kind else { return };
        let schema = self.schema;
        let mut drop = Vec::new();
        for (name, child) in map.iter_mut() {
            let node = match fields.get(name.as_str()).map(|f| f.node).or(*rest) {
                Some(node) => node,
                None if *preserve => continue,
                None => {
                    self.within(name, true, |walk| {
                        walk.found.unknown.push(&walk.path);
                    });
                    drop.push(name.clone());
                    continue;
                }
            };
            if child.is_null() && !(self.custom && self.schema.node(node).nullable) {
                drop.push(name.clone());
                continue;
            }
            if rest.is_some() && !fields.contains_key(name.as_str()) {
                self.within(&format!("[{name}]"), false, |walk| walk.value(child, node, depth + 1));
            } else {
                self.within(name, true, |walk| walk.value(child, node, depth + 1));
                let needed = KEPT_EMPTY.contains(&name.as_str()) || required.iter().any(|r| **r == **name);
                if !self.custom && !needed && is_empty_collection(child, &schema.node(node).kind) {
                    drop.push(name.clone());
                }
            }
        }
        for name in drop {
            map.remove(&name);
        }
        if self.custom {
            for name in required.iter().filter(|name| !map.contains_key(name.as_ref())) {
                self.within(name, true, |walk| {
                    let path = walk.path.clone();
                    walk.found.breaches.push((path, "Required value".into()));
                });
            }
        }
    }

    fn format(&mut self, format: &str, text: &mut String) {
        match format {
            "byte" => self.bytes(text),
            "date-time" if text.parse::<jiff::Timestamp>().is_err() => {
                self.mismatch(
                    format!("time: parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\""),
                    &Value::Null,
                );
            }
            _ => {}
        }
    }

    /// Validates base64. Like Go's decoder it ignores line breaks; in a built-in type they are removed.
    fn bytes(&mut self, text: &mut String) {
        use base64::{DecodeError, Engine, engine::general_purpose::STANDARD};
        let is_break = |c: char| c == '\r' || c == '\n';
        let lines = text.contains(is_break).then(|| text.replace(is_break, ""));
        let joined = lines.as_deref().unwrap_or(text);
        if let Err(e) = STANDARD.decode(joined) {
            let at = match e {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                _ => joined.len(),
            };
            // Offset in the text as sent.
            let sent =
                text.char_indices().filter(|(_, c)| !is_break(*c)).nth(at).map_or(text.len(), |(i, _)| i);
            self.mismatch(format!("base64: illegal base64 data at input byte {sent}"), &Value::Null);
        } else if let Some(joined) = lines.filter(|_| !self.custom) {
            *text = joined;
        }
    }

    fn limits(&mut self, limits: &Limits, value: &Value) {
        let mut breach = |mut message: String| {
            if self.found.breaches.len() < MOST {
                message.truncate(message.floor_char_boundary(LONGEST));
                self.found.breaches.push((self.path.clone(), message));
            }
        };
        if !limits.values.is_empty() && !limits.values.contains(value) {
            let allowed: Vec<String> = limits.values.iter().map(Value::to_string).collect();
            breach(format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")));
        }
        if let Some(n) = value.as_f64() {
            if limits.minimum.is_some_and(|m| n < m) {
                breach(format!(
                    "Invalid value: {value}: should be greater than or equal to {}",
                    limits.minimum.unwrap_or_default()
                ));
            }
            if limits.maximum.is_some_and(|m| n > m) {
                breach(format!(
                    "Invalid value: {value}: should be less than or equal to {}",
                    limits.maximum.unwrap_or_default()
                ));
            }
        }
        let length = match value {
            Value::String(s) => Some((s.chars().count(), limits.min_length, limits.max_length, "chars long")),
            Value::Array(a) => Some((a.len(), limits.min_items, limits.max_items, "items")),
            _ => None,
        };
        if let Some((length, least, most, unit)) = length {
            let length = length as u64;
            if let Some(least) = least.filter(|l| length < *l) {
                breach(format!("Invalid value: {value}: should be at least {least} {unit}"));
            }
            if most.is_some_and(|m| length > m) {
                breach(format!("Too long: may not be more than {} {unit}", most.unwrap_or_default()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::{builtin, generate};

    #[test]
    fn a_null_in_a_list_is_an_empty_element() {
        let schema = builtin(&[generate::<Pod>]).remove(0);
        let containers = json!([null, {"name": "c", "command": ["a", null]}]);
        let mut pod = json!({"spec": {"containers": containers, "imagePullSecrets": [null]}});
        let found = schema.normalize(&mut pod, false);
        assert_eq!(found.mismatches.len(), 0, "{:?}", found.mismatches);
        assert_eq!(pod["spec"]["containers"], json!([{}, {"name": "c", "command": ["a", ""]}]));
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{}]));
    }

    #[test]
    fn finds_what_does_not_fit() {
        let schema = builtin(&[generate::<Pod>]).remove(0);
        let mut pod = json!({
            "metadata": {"name": "p", "creationTimestamp": null, "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "imagee": "x", "ports": [{"containerPort": "80"}]}], "hostNetwork": "yes"},
            "extra": 1
        });
        let found = schema.normalize(&mut pod, false);
        assert_eq!(found.unknown.as_slice(), ["extra", "spec.containers[0].imagee"]);
        let paths: Vec<&str> = found.mismatches.iter().map(|m| m.path.as_str()).collect();
        assert_eq!(paths, ["spec.containers[0].ports[0].containerPort", "spec.hostNetwork"]);
        assert_eq!(pod["metadata"], json!({"name": "p", "labels": {"a": "b"}}));
    }

    #[test]
    fn quantities_lose_the_space_around_them() {
        let schema = builtin(&[generate::<Pod>]).remove(0);
        let with = |cpu: &str, memory: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
        let mut pod = with(" 1\t", "\u{a0}-2Gi");
        assert!(schema.normalize(&mut pod, false).mismatches.is_empty());
        assert_eq!(pod, with("1", "-2Gi"));
        assert_eq!(schema.normalize(&mut with("1 m", "1"), false).mismatches.len(), 1);
    }

    #[test]
    fn empty_lists_and_maps_are_none() {
        let schema = builtin(&[generate::<Pod>]).remove(0);
        let mut pod = json!({
            "metadata": {"name": "p", "labels": {}, "finalizers": []},
            "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {}, "securityContext": {}}
        });
        schema.normalize(&mut pod, false);
        let want = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}}
        });
        assert_eq!(pod, want, "required lists and empty structures stay");
    }

    #[test]
    fn fills_in_defaults() {
        let schema = builtin(&[generate::<Pod>]).remove(0);
        let mut pod = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}]}]}});
        schema.default(&mut pod);
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
    }

    #[test]
    fn completes_what_go_always_writes() {
        use k8s_openapi::api::{coordination::v1::Lease, core::v1::PodTemplate};
        let schemas = builtin(&[generate::<Lease>, generate::<PodTemplate>]);
        let mut lease = json!({"metadata": {"name": "l"}});
        schemas[0].complete(&mut lease);
        assert_eq!(lease, json!({"metadata": {"name": "l"}, "spec": {}}));
        let mut template = json!({"template": {"spec": {"containers": [{"name": "c"}]}}});
        schemas[1].complete(&mut template);
        assert_eq!(
            template["template"],
            json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}]}})
        );
    }

    #[test]
    fn custom_limits() {
        let schema = Schema::custom(&json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["engine"],
            "properties": {"engine": {"type": "string", "enum": ["a"]}, "size": {"type": "integer", "minimum": 10, "default": 20}}}}}))
        .unwrap();
        let mut bad = json!({"spec": {"size": 3, "junk": 1}});
        let found = schema.normalize(&mut bad, true);
        assert_eq!(found.unknown.as_slice(), ["spec.junk"]);
        assert_eq!(found.breaches.len(), 2, "{:?}", found.breaches);
        let mut good = json!({"metadata": {"name": "x"}, "spec": {"engine": "a"}});
        schema.default(&mut good);
        assert_eq!(good["spec"]["size"], 20);
        assert!(schema.normalize(&mut good, true).breaches.is_empty());
    }
}
