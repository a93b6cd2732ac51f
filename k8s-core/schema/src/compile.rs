//! Compiles JSON schemas to arenas.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

use super::{
    Arena, Field, Kind, Limits, ListType, MAX_DEPTH, Node, NodeId, Schema,
    facts::{FACTS, Fact},
};

/// The schema is not structural.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct CompileError {
    /// Path in the schema.
    pub path: String,
    /// Reason, in upstream's words.
    pub message: String,
}

/// Adds a type to a schema generator: `generate::<Pod>`.
pub type Generate = fn(&mut SchemaGenerator) -> schemars::Schema;

/// Compiles built-in types with shared definitions.
#[must_use]
pub fn builtin(types: &[Generate]) -> Vec<Schema> {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/$defs".into());
    let mut generator = settings.into_generator();
    let roots: Vec<schemars::Schema> = types.iter().map(|generate| generate(&mut generator)).collect();
    let definitions = generator.take_definitions(true);
    let mut compiler = Compiler { definitions: &definitions, done: HashMap::new(), arena: Arena::default() };
    let ids: Vec<NodeId> =
        roots.iter().map(|root| compiler.node(root.as_value(), "", 0).unwrap_or_default()).collect();
    let arena = Arc::new(compiler.arena);
    ids.into_iter().map(|root| Schema { arena: arena.clone(), root }).collect()
}

impl Schema {
    /// Compiles a custom type's JSON schema (a definition's `openAPIV3Schema`). Adds `apiVersion`, `kind` and
    /// `metadata` if they are not specified.
    ///
    /// ```
    /// use k8s_schema::Schema;
    /// use serde_json::json;
    ///
    /// let size = |of: &str| json!({"type": "object", "properties": {"size": {"type": of}}});
    /// assert!(Schema::custom(&size("integer")).is_ok());
    /// // An unknown type.
    /// let error = Schema::custom(&size("text")).unwrap_err();
    /// assert!(error.path.ends_with(".type"), "{error}");
    /// ```
    ///
    /// # Errors
    /// The schema is not structural; the error has its path.
    pub fn custom(schema: &Value) -> Result<Schema, CompileError> {
        let mut compiler = Compiler { definitions: &METADATA, done: HashMap::new(), arena: Arena::default() };
        let root = compiler.node(schema, "openAPIV3Schema", 0)?;
        let metadata = compiler.node(
            &serde_json::json!({"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}),
            "",
            0,
        )?;
        let string = compiler.push(Node {
            kind: Kind::String { format: "".into() },
            nullable: false,
            name: "".into(),
            limits: None,
        });
        if let Kind::Object { fields, .. } = &mut compiler.arena.nodes[root as usize].kind {
            fields.insert("metadata".into(), Field::plain(metadata));
            fields.insert("apiVersion".into(), Field::plain(string));
            fields.insert("kind".into(), Field::plain(string));
        }
        Ok(Schema { arena: Arc::new(compiler.arena), root })
    }

    /// Returns a type of objects with known metadata only.
    #[must_use]
    pub fn anything() -> Schema {
        let schema = serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        Schema::custom(&schema).unwrap_or(Schema {
            arena: Arc::new(Arena {
                nodes: vec![Node { kind: Kind::Any, nullable: false, name: "".into(), limits: None }],
            }),
            root: 0,
        })
    }
}

/// Schemas of `ObjectMeta` and of its types, equal to schemars' output for k8s-openapi (a test compares
/// them).
///
/// Stored as a file, so that this crate need not wait for k8s-openapi to compile.
static METADATA: LazyLock<Map<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("object_meta.json")).unwrap_or_default());

/// Adds a type to a generator: the usual [`Generate`].
#[must_use]
pub fn generate<T: JsonSchema>(generator: &mut SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<T>()
}

impl Field {
    fn plain(node: NodeId) -> Field {
        Field {
            node,
            merge_key: None,
            replace: false,
            retain_keys: false,
            default: None,
            always: false,
            values: Vec::new(),
        }
    }
}

struct Compiler<'a> {
    definitions: &'a Map<String, Value>,
    done: HashMap<String, NodeId>,
    arena: Arena,
}

impl Compiler<'_> {
    fn push(&mut self, node: Node) -> NodeId {
        self.arena.nodes.push(node);
        NodeId::try_from(self.arena.nodes.len() - 1).unwrap_or(NodeId::MAX)
    }

    /// Compiles a schema, or the definition that it refers to.
    fn node(&mut self, schema: &Value, path: &str, depth: usize) -> Result<NodeId, CompileError> {
        let error = |message: &str| CompileError { path: path.to_owned(), message: message.to_owned() };
        if depth > MAX_DEPTH {
            return Err(error("is nested too deep"));
        }
        let Some(object) = schema.as_object() else {
            // `true` accepts anything.
            return if schema == &Value::Bool(true) {
                Ok(self.push(Node { kind: Kind::Any, nullable: true, name: "".into(), limits: None }))
            } else {
                Err(error("must be an object"))
            };
        };
        if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
            let name = reference.rsplit('/').next().unwrap_or_default().to_owned();
            if let Some(id) = self.done.get(&name) {
                return Ok(*id);
            }
            let definition = self.definitions.get(&name).ok_or_else(|| error("$ref is not supported"))?;
            // Reserved first, so that a type may be recursive.
            let id = self.push(Node { kind: Kind::Any, nullable: false, name: "".into(), limits: None });
            self.done.insert(name.clone(), id);
            let node = self.compile(definition, &name, path, depth)?;
            self.arena.nodes[id as usize] = node;
            return Ok(id);
        }
        let node = self.compile(schema, "", path, depth)?;
        Ok(self.push(node))
    }

    fn compile(
        &mut self,
        schema: &Value,
        definition: &str,
        path: &str,
        depth: usize,
    ) -> Result<Node, CompileError> {
        let facts = FACTS.get(definition);
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool) == Some(true);
        let (kind_name, mut nullable) = match schema.get("type") {
            Some(Value::String(name)) => (name.as_str(), flag("nullable")),
            // schemars writes optional types as ["string", "null"].
            Some(Value::Array(names)) => (
                names.iter().filter_map(Value::as_str).find(|n| *n != "null").unwrap_or(""),
                names.iter().any(|n| n == "null"),
            ),
            _ => ("", flag("nullable")),
        };
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = if definition == "io.k8s.apimachinery.pkg.api.resource.Quantity" {
            Kind::Quantity
        } else if flag("x-kubernetes-int-or-string") || text("format") == "int-or-string" {
            Kind::IntOrString
        } else if ANYTHING.contains(&definition.rsplit('.').next().unwrap_or_default()) {
            nullable = true;
            Kind::Any
        } else {
            match kind_name {
                "object" => self.object(schema, facts, !definition.is_empty(), path, depth)?,
                "array" => {
                    let item = match schema.get("items") {
                        Some(items) => self.node(items, &format!("{path}.items"), depth + 1)?,
                        None => self.node(&Value::Bool(true), path, depth + 1)?,
                    };
                    Kind::List { item, list_type: list_type_of(schema) }
                }
                "string" => Kind::String { format: text("format").into() },
                "integer" => Kind::Integer { bits: if text("format") == "int32" { 32 } else { 64 } },
                "number" => Kind::Number,
                "boolean" => Kind::Boolean,
                "" if schema.get("properties").is_some() => {
                    self.object(schema, facts, !definition.is_empty(), path, depth)?
                }
                "" => {
                    nullable = true;
                    Kind::Any
                }
                other => {
                    return Err(CompileError {
                        path: format!("{path}.type"),
                        message: format!(
                            "Unsupported value: {other:?}: supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""
                        ),
                    });
                }
            }
        };
        let name = definition.rsplit('.').next().unwrap_or_default().into();
        Ok(Node { kind, nullable, name, limits: limits_of(schema).map(Box::new) })
    }

    fn object(
        &mut self,
        schema: &Value,
        facts: Option<&HashMap<&'static str, Fact>>,
        built_in: bool,
        path: &str,
        depth: usize,
    ) -> Result<Kind, CompileError> {
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool) == Some(true);
        let mut fields = BTreeMap::new();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let node = self.node(property, &format!("{path}.properties[{name}]"), depth + 1)?;
            let mut field = Field::plain(node);
            field.default = property.get("default").cloned();
            if let Some(fact) = facts.and_then(|f| f.get(name.as_str())) {
                self.apply_fact(&mut field, fact);
            }
            fields.insert(name.as_str().into(), field);
        }
        let rest = match schema.get("additionalProperties") {
            None | Some(Value::Bool(false)) => None,
            Some(other) => Some(self.node(other, &format!("{path}.additionalProperties"), depth + 1)?),
        };
        let required =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic")
            || facts.and_then(|f| f.get(".")).is_some_and(|f| f.map_atomic);
        // A built-in type without fields (FieldsV1, RawExtension) accepts anything.
        let opaque = built_in && fields.is_empty() && rest.is_none();
        let preserve = opaque || flag("x-kubernetes-preserve-unknown-fields");
        Ok(Kind::Object { fields, rest, preserve, atomic, required: required.map(Into::into).collect() })
    }

    /// Applies a field's facts to its own copy of the list or map type, not to the shared type.
    fn apply_fact(&mut self, field: &mut Field, fact: &Fact) {
        field.merge_key = fact.merge_key.clone();
        field.replace = fact.replace;
        field.retain_keys = fact.retain_keys;
        field.values = fact.values.clone();
        field.always = fact.always;
        if fact.default.is_some() {
            field.default = fact.default.clone();
        }
        match &mut self.arena.nodes[field.node as usize].kind {
            Kind::List { list_type, .. } => {
                if let Some(known) = &fact.list_type {
                    *list_type = known.clone();
                }
            }
            Kind::Object { atomic, .. } if fact.map_atomic => *atomic = true,
            _ => {}
        }
    }
}

/// Definitions of any JSON value, or of several types: their schemas say "object", or nothing.
const ANYTHING: [&str; 4] =
    ["JSON", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrStringArray"];

fn list_type_of(schema: &Value) -> ListType {
    match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListType::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            ListType::Map(keys.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect())
        }
        _ => ListType::Atomic,
    }
}

fn limits_of(schema: &Value) -> Option<Limits> {
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    let whole = |key: &str| schema.get(key).and_then(Value::as_u64);
    let limits = Limits {
        minimum: number("minimum"),
        maximum: number("maximum"),
        min_length: whole("minLength"),
        max_length: whole("maxLength"),
        min_items: whole("minItems"),
        max_items: whole("maxItems"),
        values: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
    };
    let none = limits.minimum.is_none()
        && limits.maximum.is_none()
        && limits.min_length.is_none()
        && limits.max_length.is_none()
        && limits.min_items.is_none()
        && limits.max_items.is_none()
        && limits.values.is_empty();
    (!none).then_some(limits)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};

    use super::*;

    fn without_descriptions(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, value| key != "description" || !value.is_string());
                map.values_mut().for_each(without_descriptions);
            }
            Value::Array(list) => list.iter_mut().for_each(without_descriptions),
            _ => {}
        }
    }

    #[test]
    fn object_meta_is_that_of_k8s_openapi() {
        let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/$defs".into());
        let mut generator = settings.into_generator();
        generator.subschema_for::<ObjectMeta>();
        let mut theirs = Value::Object(generator.take_definitions(true));
        without_descriptions(&mut theirs);
        let ours = Value::Object(METADATA.clone());
        assert_eq!(ours, theirs, "object_meta.json should be: {theirs}");
    }

    #[test]
    fn built_in_types_know_their_lists() {
        let schemas = builtin(&[generate::<Pod>, generate::<Deployment>]);
        let pod = &schemas[0];
        let spec = pod.child(pod.root_id(), "spec").unwrap();
        let containers = pod.child(spec, "containers").unwrap();
        let Kind::List { item, list_type } = &pod.node(containers).kind else { panic!("not a list") };
        assert_eq!(*list_type, ListType::Map(vec!["name".into()]));
        assert_eq!(&*pod.node(*item).name, "Container");
        let Kind::Object { fields, .. } = &pod.node(spec).kind else { panic!("not an object") };
        assert_eq!(fields["containers"].merge_key.as_deref(), Some("name"));
    }

    #[test]
    fn recursive_and_odd_custom_schemas() {
        assert!(Schema::custom(&serde_json::json!({"type": "what"})).is_err());
        assert!(Schema::custom(&serde_json::json!({"$ref": "#/x"})).is_err());
        let mut deep = serde_json::json!({"type": "string"});
        for _ in 0..500 {
            deep = serde_json::json!({"type": "object", "properties": {"a": deep}});
        }
        assert!(Schema::custom(&deep).is_err());
    }
}
