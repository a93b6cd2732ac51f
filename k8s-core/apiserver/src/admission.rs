//! Admission: plugins that change or refuse a write between authorization and storage.
//!
//! Flow of a create or update: each plugin's [`Admit::admit`], defaults and the rules of the type, each plugin's
//! [`Admit::validate`], the store. Built-in plugins are rows of one table in upstream's order; those that a
//! distribution adds come after them. Flow of a deletion: each plugin's [`Admit::delete`].
//!
//! Guarantee: a refused write stores nothing.

mod plugins;
mod typed;

pub(crate) use plugins::{Chain, Parts};
pub use typed::{Every, IntoAdmit, Request, Verdict};

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::Value;

use crate::{request::RequestInfo, resources::Resource, user::User};

/// The kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object.
    Update,
}

impl Operation {
    /// The operation of a write with this object before it.
    pub(crate) fn of(old: Option<&Value>) -> Self {
        if old.is_some() { Operation::Update } else { Operation::Create }
    }
}

/// A write that is to be admitted. `object` is the stored form.
#[derive(Debug)]
pub struct Admission<'a> {
    /// The kind of write.
    pub operation: Operation,
    /// The user who sent the request.
    pub user: &'a User,
    /// The resource that is written.
    pub resource: &'a Resource,
    /// The request: its namespace, name and subresource.
    pub request: &'a RequestInfo,
    /// The object; may be changed.
    pub object: &'a mut Value,
    /// The object before, for updates.
    pub old: Option<&'a Value>,
}

impl Admission<'_> {
    /// Whether an object of a built-in resource is created, by the resource's name in the store.
    pub(crate) fn creates(&self, storage: &str) -> bool {
        self.operation == Operation::Create && *self.resource.storage == *storage
    }
}

/// A deletion that is to be admitted.
#[derive(Debug)]
pub struct Deletion<'a> {
    /// The user who sent the request.
    pub user: &'a User,
    /// The resource of the object.
    pub resource: &'a Resource,
    /// The object's namespace; empty for none.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
}

/// An admission plugin: it sees every write, and may change or refuse it. Closures are ones that only [`admit`](Admit::admit); one over a [`Request`] sees the writes of one type.
#[async_trait]
pub trait Admit: Send + Sync + 'static {
    /// Changes the object, or refuses it. The object has its defaults; what is made of it is defaulted and checked again.
    ///
    /// # Errors
    /// Why it is refused; the client gets this as it is.
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus>;

    /// Refuses the object as it is going to be stored: all changes are made and all rules of its type hold.
    ///
    /// # Errors
    /// Why it is refused; the client gets this as it is.
    async fn validate(&self, _admission: &Admission<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }

    /// Refuses a deletion. Called for each object of a collection.
    ///
    /// # Errors
    /// Why it is refused; the client gets this as it is.
    async fn delete(&self, _deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }
}

#[async_trait]
impl<F> Admit for F
where
    F: Fn(&mut Admission<'_>) -> Result<(), ApiStatus> + Send + Sync + 'static,
{
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        self(admission)
    }
}
