//! Admission: plugins that change or refuse a write between authorization and storage.
//!
//! Flow of a create or update: [`Admit::admit`] of each plugin, defaults and validation, [`Admit::validate`]
//! of each plugin, the store. Built-in plugins are rows of one table in upstream's order; those of a
//! distribution come after them. Flow of a deletion: [`Admit::delete`] of each plugin.
//!
//! Guarantee: a refused write stores nothing.

mod plugins;
mod typed;

pub(crate) use plugins::{Chain, Parts, UPSTREAM};
pub use typed::{Every, IntoAdmit, Request, Verdict};

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::Value;

use crate::{request::RequestInfo, resources::Resource, user::User};

/// The kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// POST, or an apply or update that creates the object.
    Create,
    /// PUT or PATCH of an existing object.
    Update,
}

impl Operation {
    /// The operation of a write with this object before it.
    pub(crate) fn of(old: Option<&Value>) -> Self {
        if old.is_some() { Operation::Update } else { Operation::Create }
    }
}

/// A create or update. `object` is the stored form.
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
    /// Returns true if an object of a built-in resource is created, by the resource's name in the store.
    pub(crate) fn creates(&self, storage: &str) -> bool {
        self.operation == Operation::Create && *self.resource.storage == *storage
    }
}

/// A DELETE of one object, or of each object of a collection.
#[derive(Debug)]
pub struct Deletion<'a> {
    /// The user who sent the request.
    pub user: &'a User,
    /// The resource of the object.
    pub resource: &'a Resource,
    /// The object's namespace; empty for none.
    pub namespace: &'a str,
    /// The object's name; never empty.
    pub name: &'a str,
}

/// An admission plugin: it sees every write, and may change or refuse it. Closures over an [`Admission`]
/// implement [`admit`](Admit::admit) only; closures over a [`Request`] see the writes of one type.
///
/// ```
/// use async_trait::async_trait;
/// use k8s_apiserver::{ApiServer, User, admission::{Admission, Admit, Deletion}};
/// use k8s_core::{api::ConfigMap, status::ApiStatus};
/// use k8s_store::Store;
///
/// /// Objects named `keep` stay.
/// struct Keep;
///
/// #[async_trait]
/// impl Admit for Keep {
///     async fn admit(&self, _: &mut Admission<'_>) -> Result<(), ApiStatus> {
///         Ok(())
///     }
///     async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
///         match deletion.name {
///             "keep" => Err(ApiStatus::forbidden("", &deletion.resource.plural, "keep", "it is kept")),
///             _ => Ok(()),
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = ApiServer::builder(Store::memory()).admit(Keep).build().await?;
/// let maps = server.client_as(User::admin()).namespaced::<ConfigMap>("default");
/// let mut map = ConfigMap::default();
/// map.metadata.name = Some("keep".into());
/// maps.create(&map).await?;
/// assert!(maps.delete("keep", &Default::default()).await.is_err_and(|error| error.is_forbidden()));
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Admit: Send + Sync + 'static {
    /// Changes or refuses the object, which has its defaults. Defaults are applied again afterwards.
    ///
    /// # Errors
    /// The reason of the refusal; the client receives this status unchanged.
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus>;

    /// Refuses the object in its final form, after all changes and validation.
    ///
    /// # Errors
    /// The reason of the refusal; the client receives this status unchanged.
    async fn validate(&self, _admission: &Admission<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }

    /// Refuses a deletion. Called for each object of a collection.
    ///
    /// # Errors
    /// The reason of the refusal; the client receives this status unchanged.
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
