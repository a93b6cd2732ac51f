//! Types of expressions, and their assignability.

use std::{fmt, sync::Arc};

pub(crate) mod declared;

use declared::ObjectType;

/// Types that only functions can inspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// A resource quantity, `quantity("1Gi")`.
    Quantity,
    /// A parsed URL, `url("https://...")`.
    Url,
    /// An IP address, `ip("10.0.0.1")`.
    Ip,
    /// A network in CIDR notation.
    Cidr,
    /// A semantic version, `semver("1.2.3")`.
    Semver,
    /// A named string format, `format.named("dns1123Label")`.
    Format,
    /// The variable `authorizer`: what a user may do.
    Authorizer,
    /// A question about a path, `authorizer.path("/healthz")`.
    PathCheck,
    /// A question about an API group, `authorizer.group("apps")`.
    GroupCheck,
    /// A question about a resource, `authorizer.group("apps").resource("deployments")`.
    ResourceCheck,
    /// The answer to a question, `....check("get")`.
    Decision,
}

impl Opaque {
    /// Returns the type's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Opaque::Quantity => "kubernetes.Quantity",
            Opaque::Url => "kubernetes.URL",
            Opaque::Ip => "net.IP",
            Opaque::Cidr => "net.CIDR",
            Opaque::Semver => "kubernetes.Semver",
            Opaque::Format => "kubernetes.NamedFormat",
            Opaque::Authorizer => "kubernetes.authorization.Authorizer",
            Opaque::PathCheck => "kubernetes.authorization.PathCheck",
            Opaque::GroupCheck => "kubernetes.authorization.GroupCheck",
            Opaque::ResourceCheck => "kubernetes.authorization.ResourceCheck",
            Opaque::Decision => "kubernetes.authorization.Decision",
        }
    }
}

/// Type of an expression.
#[derive(Clone, Debug)]
pub enum Type {
    /// Dynamic: known at evaluation only.
    Dyn,
    /// The type of `null`.
    Null,
    /// `bool`: true or false.
    Bool,
    /// `int`: 64 bits with sign.
    Int,
    /// `uint`: 64 bits without sign.
    Uint,
    /// `double`: a 64-bit floating-point number.
    Double,
    /// `string`: Unicode text.
    String,
    /// `bytes`: a sequence of octets.
    Bytes,
    /// A point in time.
    Timestamp,
    /// `google.protobuf.Duration`, in nanoseconds.
    Duration,
    /// A list with its element type.
    List(Arc<Type>),
    /// A map with its key and value types.
    Map(Arc<(Type, Type)>),
    /// `optional_type`: a value or none.
    Optional(Arc<Type>),
    /// The type of type values.
    Type,
    /// An object with declared fields.
    Object(Arc<ObjectType>),
    /// A Kubernetes extension type.
    Opaque(Opaque),
}

impl Type {
    /// Returns a list type.
    #[must_use]
    pub fn list(element: Type) -> Type {
        Type::List(Arc::new(element))
    }

    /// Returns a map type with string keys.
    #[must_use]
    pub fn map(value: Type) -> Type {
        Type::Map(Arc::new((Type::String, value)))
    }

    /// Returns an optional type.
    #[must_use]
    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    pub(super) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn)
    }

    fn takes_null(&self) -> bool {
        matches!(
            self,
            Type::Null
                | Type::Object(_)
                | Type::Timestamp
                | Type::Duration
                | Type::Optional(_)
                | Type::Opaque(_)
        )
    }

    /// Returns true if a value of `other` can be used for this type. Dynamic types are always accepted.
    #[must_use]
    pub fn accepts(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::Null, b) if b.takes_null() => true,
            (a, Type::Null) => a.takes_null(),
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a.accepts(b),
            (Type::Map(a), Type::Map(b)) => a.0.accepts(&b.0) && a.1.accepts(&b.1),
            (Type::Object(a), Type::Object(b)) => a.is(b),
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }

    /// Returns the common type, or dynamic.
    #[must_use]
    pub fn join(&self, other: &Type) -> Type {
        match (self, other) {
            (Type::List(a), Type::List(b)) => Type::list(a.join(b)),
            (Type::Optional(a), Type::Optional(b)) => Type::optional(a.join(b)),
            (Type::Map(a), Type::Map(b)) => Type::Map(Arc::new((a.0.join(&b.0), a.1.join(&b.1)))),
            (Type::Null, b) if b.takes_null() => b.clone(),
            (a, Type::Null) if a.takes_null() => a.clone(),
            (a, b) if !a.is_dyn() && !b.is_dyn() && a.accepts(b) => a.clone(),
            _ => Type::Dyn,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::List(element) => write!(f, "list({element})"),
            Type::Map(entry) => write!(f, "map({}, {})", entry.0, entry.1),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Type => f.write_str("type"),
            Type::Object(object) => f.write_str(object.name()),
            Type::Opaque(opaque) => f.write_str(opaque.name()),
        }
    }
}

/// A type in the function table; `A` and `B` are type parameters of the row.
#[derive(Clone, Copy, Debug)]
pub(super) enum T {
    Dyn,
    Bool,
    Int,
    Uint,
    Double,
    Str,
    Bytes,
    Time,
    Dur,
    Type,
    A,
    B,
    List(&'static T),
    Map(&'static T, &'static T),
    Opt(&'static T),
    Op(Opaque),
}

/// Types bound to the parameters `A` and `B` in a call.
#[derive(Clone, Debug, Default)]
pub(super) struct Params([Option<Type>; 2]);

impl T {
    /// Returns true if an argument's type matches; binds type parameters.
    pub(super) fn fits(&self, actual: &Type, params: &mut Params) -> bool {
        let bind = |slot: usize, params: &mut Params| match &params.0[slot] {
            None => {
                params.0[slot] = Some(actual.clone());
                true
            }
            Some(known) if known.accepts(actual) => {
                let joined = known.join(actual);
                params.0[slot] = Some(joined);
                true
            }
            Some(_) => false,
        };
        match (self, actual) {
            (T::A, _) => bind(0, params),
            (T::B, _) => bind(1, params),
            (T::Dyn, _) => true,
            (T::List(of), Type::List(element)) => of.fits(element, params),
            (T::Map(key, value), Type::Map(entry)) => {
                key.fits(&entry.0, params) && value.fits(&entry.1, params)
            }
            (T::Opt(of), Type::Optional(inner)) => of.fits(inner, params),
            (T::List(of), Type::Dyn) | (T::Opt(of), Type::Dyn) => of.fits(actual, params),
            (T::Map(key, value), Type::Dyn) => key.fits(actual, params) && value.fits(actual, params),
            (T::List(_) | T::Map(..) | T::Opt(_), _) => false,
            _ => self.result(params).accepts(actual),
        }
    }

    /// Returns the type with its parameters substituted.
    pub(super) fn result(&self, params: &Params) -> Type {
        let param = |slot: usize| params.0[slot].clone().unwrap_or(Type::Dyn);
        match self {
            T::Dyn => Type::Dyn,
            T::Bool => Type::Bool,
            T::Int => Type::Int,
            T::Uint => Type::Uint,
            T::Double => Type::Double,
            T::Str => Type::String,
            T::Bytes => Type::Bytes,
            T::Time => Type::Timestamp,
            T::Dur => Type::Duration,
            T::Type => Type::Type,
            T::A => param(0),
            T::B => param(1),
            T::List(of) => Type::list(of.result(params)),
            T::Map(key, value) => Type::Map(Arc::new((key.result(params), value.result(params)))),
            T::Opt(of) => Type::optional(of.result(params)),
            T::Op(opaque) => Type::Opaque(*opaque),
        }
    }
}
