//! Declarations: types with bounds of their values.

use std::{collections::BTreeMap, sync::Arc};

use super::Type;
use crate::names::escape;

/// The size of a request in bytes: the bound of a value without another one.
pub(crate) const REQUEST: u64 = 3 * 1024 * 1024;

/// A declared type with its size bounds.
#[derive(Clone, Debug)]
pub struct Decl {
    pub(crate) ty: Type,
    /// Maximum number of list elements, map entries, or bytes of a text.
    pub(crate) max: u64,
    /// Minimum size in JSON, in bytes.
    pub(crate) min_size: u64,
    /// Declaration of list elements, map values, or an optional's value.
    pub(crate) element: Option<Arc<Decl>>,
}

/// A field of an object.
#[derive(Clone, Debug)]
pub struct Field {
    pub(crate) property: String,
    pub(crate) decl: Arc<Decl>,
}

/// An object type: fields by their escaped names.
#[derive(Debug)]
pub struct ObjectType {
    pub(crate) name: String,
    pub(crate) fields: BTreeMap<String, Field>,
    /// Unknown fields are preserved, with dynamic type.
    pub(crate) open: bool,
}

impl ObjectType {
    /// Creates an object type from properties. Properties that cannot be escaped are omitted.
    pub fn new(name: impl Into<String>, fields: impl IntoIterator<Item = (String, Arc<Decl>)>) -> Self {
        let fields = fields.into_iter().filter_map(|(property, decl)| {
            let name = escape(&property)?;
            Some((name, Field { property, decl }))
        });
        ObjectType { name: name.into(), fields: fields.collect(), open: false }
    }

    /// Creates an object type whose fields have the names of its properties, also where CEL reserves them
    /// (`namespace`): upstream's declarations of requests, which come from no schema.
    ///
    /// ```
    /// use k8s_cel::{Decl, Env, ObjectType, Type};
    /// let fields = [("namespace".to_owned(), Decl::new(Type::String).into())];
    /// let request = Decl::object(ObjectType::plain("request", fields));
    /// assert!(Env::new().variable("request", request).compile("request.namespace == 'shop'").is_ok());
    /// ```
    pub fn plain(name: impl Into<String>, fields: impl IntoIterator<Item = (String, Arc<Decl>)>) -> Self {
        let fields = fields.into_iter().map(|(property, decl)| (property.clone(), Field { property, decl }));
        ObjectType { name: name.into(), fields: fields.collect(), open: false }
    }

    /// Returns the type's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns true if unknown fields are preserved.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Returns a field by its escaped name.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    /// Returns true if two types are the same: identical or with equal declarations.
    pub(crate) fn is(&self, other: &ObjectType) -> bool {
        std::ptr::eq(self, other)
            || self.open
            || other.open
            || (self.fields.len() == other.fields.len()
                && self
                    .fields
                    .iter()
                    .zip(&other.fields)
                    .all(|(a, b)| a.0 == b.0 && a.1.decl.ty.accepts(&b.1.decl.ty)))
    }
}

impl Decl {
    /// Declares a type without bounds except the request size.
    #[must_use]
    pub fn new(ty: Type) -> Self {
        let element = match &ty {
            Type::List(of) | Type::Optional(of) => Some(Arc::new(Decl::new(Type::clone(of)))),
            Type::Map(entry) => Some(Arc::new(Decl::new(entry.1.clone()))),
            _ => None,
        };
        Decl { ty, max: REQUEST, min_size: 1, element }
    }

    /// Declares a value of dynamic type.
    #[must_use]
    pub fn any() -> Self {
        Decl::new(Type::Dyn)
    }

    /// Declares a value with these fields.
    #[must_use]
    pub fn object(object: ObjectType) -> Self {
        Decl { ty: Type::Object(Arc::new(object)), max: REQUEST, min_size: 2, element: None }
    }

    /// Declares an optional of this type.
    #[must_use]
    pub fn optional(self) -> Self {
        Decl { ty: Type::optional(self.ty.clone()), max: 1, min_size: 0, element: Some(Arc::new(self)) }
    }

    /// Returns the declared type.
    #[must_use]
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Returns the maximum number of elements of a list or entries of a map.
    #[must_use]
    pub fn max_elements(&self) -> u64 {
        self.max
    }

    /// Returns the minimum size of a value in JSON, in bytes.
    #[must_use]
    pub fn min_serialized_size(&self) -> u64 {
        self.min_size
    }

    pub(crate) fn scalar(ty: Type, max: u64, min_size: u64) -> Self {
        Decl { ty, max, min_size, element: None }
    }
}
