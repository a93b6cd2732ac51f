//! The schema engine: one description of every served type, built-in or custom, and everything that is driven by it.
//!
//! Flow: JSON schemas (schemars output for built-in types, the CRD's own for custom ones) and the facts that such schemas do not hold
//! (`facts.txt`) are compiled into a [`Schema`]: a flat arena of small nodes. Decoding ([`normalize`](Schema::normalize)), defaulting, strategic merge
//! patches and server-side apply walk a JSON value along it.
//!
//! Guarantees: compiling and walking are total. A value may be nested at most [`MAX_DEPTH`] deep; deeper input is an error, not a stack overflow.
//!
//! Not here: cross-field rules (a resource's strategy has those).

mod compile;
mod facts;
mod normalize;
pub mod patch;
pub mod proto;

pub use compile::{CompileError, Generate, builtin, generate};
pub use facts::annotate;
pub use normalize::{Mismatch, Normalized};

use std::collections::BTreeMap;

use serde_json::Value;

/// How deep a value may be nested.
pub const MAX_DEPTH: usize = 128;

/// A node's place in its arena.
pub type NodeId = u32;

/// How two lists of the same field become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// The new one replaces the old one.
    Atomic,
    /// Elements are told apart by their value.
    Set,
    /// Elements are objects, told apart by these fields.
    Map(Vec<Box<str>>),
}

/// What a node describes.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An object with known fields; with `rest`, other fields have that type.
    Object {
        /// Known fields.
        fields: BTreeMap<Box<str>, Field>,
        /// Type of all other fields, for maps and objects that have both.
        rest: Option<NodeId>,
        /// Keep unknown fields as they are.
        preserve: bool,
        /// Merges as a whole.
        atomic: bool,
        /// Fields that must be there.
        required: Vec<Box<str>>,
    },
    /// A list.
    List {
        /// Type of the elements.
        item: NodeId,
        /// How it merges.
        list_type: ListType,
    },
    /// A string.
    String {
        /// `byte`, `date-time` and so on; empty: none.
        format: Box<str>,
    },
    /// A whole number of so many bits.
    Integer {
        /// 32 or 64.
        bits: u8,
    },
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A string or a whole number.
    IntOrString,
    /// A quantity: a string or a number.
    Quantity,
    /// Anything.
    Any,
}

/// A field of an object.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its type.
    pub node: NodeId,
    /// Strategic merge: the key that tells list elements apart.
    pub merge_key: Option<Box<str>>,
    /// Strategic merge: the list or map is replaced as a whole.
    pub replace: bool,
    /// Strategic merge: fields that the patch does not name go away.
    pub retain_keys: bool,
    /// Value when absent.
    pub default: Option<Value>,
    /// Go always writes it, empty where it is not set: a struct that is no pointer.
    pub always: bool,
    /// The values it may have.
    pub values: Vec<Box<str>>,
}

/// Limits on a value, as a CRD states them.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Lowest number.
    pub minimum: Option<f64>,
    /// Highest number.
    pub maximum: Option<f64>,
    /// Shortest string, in characters.
    pub min_length: Option<u64>,
    /// Longest string, in characters.
    pub max_length: Option<u64>,
    /// Fewest elements.
    pub min_items: Option<u64>,
    /// Most elements.
    pub max_items: Option<u64>,
    /// Allowed values.
    pub values: Vec<Value>,
}

/// One type in the arena.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// `null` is a value, not an absence.
    pub nullable: bool,
    /// The definition's short name (`PodSpec`), for messages; empty where it has none.
    pub name: Box<str>,
    /// Limits, where there are any.
    pub limits: Option<Box<Limits>>,
}

/// A set of types.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    nodes: Vec<Node>,
}

impl Arena {
    /// The node at a place.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }
}

/// The type of one served resource.
#[derive(Clone, Debug)]
pub struct Schema {
    arena: std::sync::Arc<Arena>,
    root: NodeId,
}

impl Schema {
    /// The node of the whole object.
    #[must_use]
    pub fn root(&self) -> &Node {
        self.arena.node(self.root)
    }

    /// A node of this type's arena.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        self.arena.node(id)
    }

    /// The root's place.
    #[must_use]
    pub fn root_id(&self) -> NodeId {
        self.root
    }

    /// The node of a field, `None` where the node has no such field.
    #[must_use]
    pub fn child(&self, node: NodeId, field: &str) -> Option<NodeId> {
        match &self.node(node).kind {
            Kind::Object { fields, rest, .. } => fields.get(field).map(|f| f.node).or(*rest),
            _ => None,
        }
    }
}
