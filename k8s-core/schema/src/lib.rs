//! The schema engine: one description of every served type, built-in or custom, and all that it drives.
//!
//! ```
//! use k8s_schema::{Schema, patch::{json, strategic}};
//! use serde_json::json;
//!
//! let schema = Schema::custom(&json!({"type": "object", "properties": {
//!     "spec": {"type": "object", "properties": {"replicas": {"type": "integer", "default": 1}}},
//! }})).expect("a structural schema");
//! let mut object = json!({"kind": "Shop", "spec": {"replicas": 3}});
//! strategic(&mut object, &json!({"spec": {"replicas": 5}}), &schema)?;
//! json(&mut object, &json!([{"op": "test", "path": "/spec/replicas", "value": 5}]))?;
//! # Ok::<(), k8s_schema::patch::PatchError>(())
//! ```
//!
//! Flow: JSON schemas (schemars output for built-in types, the definition's own for custom ones) and
//! additional facts (`facts.txt`) are compiled into a [`Schema`], a flat arena of small nodes. Decoding
//! ([`normalize`](Schema::normalize)), defaulting, strategic merge patches and server-side apply ([`patch`]) walk
//! a JSON value along it. [`proto`] is the protobuf encoding of built-in types.
//!
//! Guarantees: compiling and walking are total. Values may be nested up to [`MAX_DEPTH`]; deeper input is an
//! error, not a stack overflow.
//!
//! Not here: cross-field validation (in a resource's strategy), conversions between versions (in the API
//! server's table).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod compile;
mod facts;
mod normalize;
pub mod patch;
pub mod paths;
pub mod proto;

pub use compile::{CompileError, Generate, builtin, generate};
pub use facts::annotate;
pub use normalize::{Mismatch, Normalized};

use std::collections::BTreeMap;

use serde_json::Value;

/// Maximum nesting of a value.
pub const MAX_DEPTH: usize = 128;

/// Index of a node in its arena.
pub type NodeId = u32;

/// Merge strategy of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// The new list replaces the old one.
    Atomic,
    /// A set: elements are identified by their value.
    Set,
    /// Elements are objects, identified by these fields.
    Map(Vec<Box<str>>),
}

/// Type of a node.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An object with known fields; with `rest` other fields have that type.
    Object {
        /// Known fields by name.
        fields: BTreeMap<Box<str>, Field>,
        /// Type of all other fields: a map, or an object with additional ones.
        rest: Option<NodeId>,
        /// Keep unknown fields (`x-kubernetes-preserve-unknown-fields`).
        preserve: bool,
        /// Replaced as a whole on merges.
        atomic: bool,
        /// Names of the required fields.
        required: Vec<Box<str>>,
    },
    /// A list of one type.
    List {
        /// Type of the elements.
        item: NodeId,
        /// Merge strategy of server-side apply.
        list_type: ListType,
    },
    /// A JSON string, of any format.
    String {
        /// `byte`, `date-time` and so on; empty if none.
        format: Box<str>,
    },
    /// A JSON number without fraction, within the size.
    Integer {
        /// Size: 32 or 64 bits.
        bits: u8,
    },
    /// An integer or a floating-point number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A string or an integer.
    IntOrString,
    /// A quantity: a string or a number.
    Quantity,
    /// Any JSON value, unchecked (`x-kubernetes-preserve-unknown-fields` without properties).
    Any,
}

/// A field of an object.
#[derive(Clone, Debug)]
pub struct Field {
    /// Type of the field.
    pub node: NodeId,
    /// Strategic merge: key that identifies list elements.
    pub merge_key: Option<Box<str>>,
    /// Strategic merge: replace the list or map as a whole.
    pub replace: bool,
    /// Strategic merge: remove fields that the patch does not mention.
    pub retain_keys: bool,
    /// Default of an absent field.
    pub default: Option<Value>,
    /// Go always writes the field, empty if it is not set: a struct without pointer.
    pub always: bool,
    /// Allowed values; empty allows all.
    pub values: Vec<Box<str>>,
}

/// Value limits of a CustomResourceDefinition's schema.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Minimum of a number.
    pub minimum: Option<f64>,
    /// Maximum of a number.
    pub maximum: Option<f64>,
    /// Minimum length of a string, in characters.
    pub min_length: Option<u64>,
    /// Maximum length of a string, in characters.
    pub max_length: Option<u64>,
    /// Minimum number of elements.
    pub min_items: Option<u64>,
    /// Maximum number of elements.
    pub max_items: Option<u64>,
    /// Allowed values; empty allows all.
    pub values: Vec<Value>,
}

/// A type in an arena.
#[derive(Clone, Debug)]
pub struct Node {
    /// Structure of the type.
    pub kind: Kind,
    /// `null` is a value, not an absence.
    pub nullable: bool,
    /// Short name of the definition (`PodSpec`) for messages; empty if it has none.
    pub name: Box<str>,
    /// Value limits, if any.
    pub limits: Option<Box<Limits>>,
}

/// A set of types.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    nodes: Vec<Node>,
}

impl Arena {
    /// Returns the node of an id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }
}

/// Type of a served resource.
#[derive(Clone, Debug)]
pub struct Schema {
    arena: std::sync::Arc<Arena>,
    root: NodeId,
}

impl Schema {
    /// Returns the node of the whole object.
    #[must_use]
    pub fn root(&self) -> &Node {
        self.arena.node(self.root)
    }

    /// Returns a node of the type's arena.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        self.arena.node(id)
    }

    /// Returns the id of the whole object's node.
    #[must_use]
    pub fn root_id(&self) -> NodeId {
        self.root
    }

    /// Returns the node of a field; `None` if there is no such field.
    #[must_use]
    pub fn child(&self, node: NodeId, field: &str) -> Option<NodeId> {
        match &self.node(node).kind {
            Kind::Object { fields, rest, .. } => fields.get(field).map(|f| f.node).or(*rest),
            _ => None,
        }
    }
}
