//! Strategies: per-resource defaulting, validation, and update rules beyond the schema.
//!
//! They work on the stored form, so each rule is written once for all versions of a resource.

pub mod admission;
pub mod aggregate;
pub mod autoscale;
pub mod certificates;
pub mod classes;
pub mod core;
pub mod csi;
pub mod dra;
pub mod events;
pub mod extensions;
pub mod flow;
pub mod job;
pub mod network;
pub mod pod;
pub mod pod_certificates;
pub mod policy;
pub mod rbac;
pub(in crate::resources) mod rule;
pub mod service;
pub mod storage;
pub mod trust;
pub mod workload;

use serde_json::Value;

use crate::{
    invalid::{FieldErrors, names},
    user::User,
};

/// Validation rule of object names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// Lower-case RFC 1123 subdomain.
    Subdomain,
    /// Lower-case RFC 1123 label.
    Label,
    /// RFC 1035 label: must start with a letter.
    Label1035,
    /// Any single path segment.
    Segment,
}

/// Metadata fields that clients control.
pub(crate) const METADATA_OF_CLIENTS: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];

/// The target of a `proxy` subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// A TCP port of the pod.
    Pod,
    /// A ready pod of the Service.
    Service,
    /// The node's kubelet, or another port of the node.
    Node,
}

/// Returns true if a selectable field has a value.
pub type HasValue<'a> = &'a dyn Fn(&str, &str) -> bool;

/// Behaviour of a resource that differs between resources.
#[derive(Debug)]
pub struct Strategy {
    /// Validation of object names.
    pub name: NameRule,
    /// Increment `metadata.generation` on changes of the spec.
    pub generation: bool,
    /// A delete returns the object instead of a Status.
    pub returns_deleted: bool,
    /// A PUT creates the object where it is absent.
    pub allow_create_on_update: bool,
    /// A PUT may leave out `metadata.resourceVersion`.
    pub allow_unconditional_update: bool,
    /// A new object keeps its status: a kubelet registers its node with one.
    pub created_with_status: bool,
    /// Objects have cluster addresses and node ports (module `allocate`).
    pub allocates: bool,
    /// Target of the `proxy` subresource.
    pub proxied: Option<Proxied>,
    /// Metadata fields, owned by clients, that status writes leave unchanged.
    pub fixed_by_status: &'static [&'static str],
    /// Default grace period of a deletion, seconds. `None`: the object is deleted at once.
    pub grace: fn(&Value) -> Option<i64>,
    /// Returns true if an object is deleted at once, by its selectable fields: it is not decoded.
    pub is_deleted_unread: fn(HasValue<'_>) -> bool,
    /// Returns true if something other than `metadata.finalizers` keeps an object that is being deleted.
    pub is_held: fn(&Value) -> bool,
    /// Changes an object after it was marked as being deleted.
    pub mark_deleted: fn(&mut Value),
    /// Sets the default values of absent fields.
    pub default: fn(&mut Value),
    /// Records the user who creates an object; runs before admission.
    pub created_by: fn(&User, &mut Value),
    /// Sets what the server decides on creation (beyond metadata); runs before validation.
    pub create: fn(&mut Value),
    /// Restores immutable fields on update; gets new and old object, before validation.
    pub update: fn(&mut Value, &Value),
    /// Validation that applies to writes in the stored version only; gets the new object and, on update, the
    /// old one.
    pub validate_current: fn(&Value, Option<&Value>, &mut FieldErrors),
    /// Validation that always applies.
    pub validate: fn(&Value, &mut FieldErrors),
    /// Validation of an update; gets new and old object.
    pub validate_update: fn(&Value, &Value, &mut FieldErrors),
    /// JSON pointers of immutable fields, reported after all other errors of an update.
    pub fixed: &'static [&'static str],
    /// Validation of a status write; gets new and old object.
    pub validate_status: fn(&Value, &Value, &mut FieldErrors),
    /// Prepares and validates a write to a subresource that is a view of the whole object (`approval`,
    /// `ephemeralcontainers`, `status`): restores fields that it must not change.
    pub view: fn(&View<'_>, &mut Value, &mut FieldErrors),
}

/// A write to a subresource that is a view of the whole object.
#[derive(Debug)]
pub struct View<'a> {
    /// Name of the subresource.
    pub part: &'a str,
    /// The object as stored before the update.
    pub old: &'a Value,
    /// Current time, RFC 3339.
    pub now: &'a str,
}

/// Strategy of a type without own defaults, validation and status.
pub(crate) const BASE: Strategy = Strategy {
    name: NameRule::Subdomain,
    generation: false,
    returns_deleted: false,
    allow_create_on_update: false,
    allow_unconditional_update: true,
    created_with_status: false,
    allocates: false,
    proxied: None,
    fixed_by_status: &[],
    grace: |_| None,
    is_deleted_unread: |_| true,
    is_held: |_| false,
    mark_deleted: |_| {},
    default: |_| {},
    created_by: |_, _| {},
    create: |_| {},
    update: |_, _| {},
    validate_current: |_, _, _| {},
    validate: |_, _| {},
    validate_update: |_, _, _| {},
    fixed: &[],
    validate_status: |_, _, _| {},
    view: |_, _, _| {},
};

impl NameRule {
    /// Validates a name by this rule; `field` is the path in the error.
    pub fn check(self, field: &str, name: &str, errors: &mut FieldErrors) {
        let (good, message) = match self {
            NameRule::Subdomain => (names::is_subdomain(name), names::SUBDOMAIN_MESSAGE),
            NameRule::Label => (names::is_label(name), names::LABEL_MESSAGE),
            NameRule::Label1035 => (names::is_label_1035(name), names::LABEL_1035_MESSAGE),
            NameRule::Segment => (
                name != "." && name != ".." && !name.contains(['/', '%']),
                "may not be '.' or '..' and may not contain '/' or '%'",
            ),
        };
        let limit = if matches!(self, NameRule::Label | NameRule::Label1035) { 63 } else { 253 };
        if name.len() > limit {
            errors.invalid(field, name, format!("must be no more than {limit} characters"));
        } else if !good {
            errors.invalid(field, name, message);
        }
    }
}

/// Validates labels at `field`.
pub(crate) fn check_labels(object: &Value, pointer: &str, field: &str, errors: &mut FieldErrors) {
    for (key, value) in crate::value::object_at(object, pointer).into_iter().flatten() {
        if !names::is_qualified(key) {
            errors.invalid(field, key.as_str(), "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')");
        }
        let value = value.as_str().unwrap_or_default();
        if !names::is_label_value(value) {
            errors.invalid(field, value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')");
        }
    }
}

/// Reports a changed immutable field.
pub(crate) fn immutable(new: &Value, old: &Value, pointer: &str, errors: &mut FieldErrors) {
    let (now, before) = (new.pointer(pointer), old.pointer(pointer));
    if now != before {
        let field = pointer.trim_start_matches('/').replace('/', ".");
        errors.invalid(field, now.cloned().unwrap_or_default(), "field is immutable");
    }
}

/// Reports a negative number.
pub(crate) fn not_negative(object: &Value, pointer: &str, errors: &mut FieldErrors) {
    if let Some(n) = crate::value::int_at(object, pointer)
        && n < 0
    {
        let field = pointer.trim_start_matches('/').replace('/', ".");
        errors.invalid(field, n, "must be greater than or equal to 0");
    }
}
