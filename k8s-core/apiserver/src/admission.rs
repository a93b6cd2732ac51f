//! Admission: plugins that change or refuse a write between authorization and storage.
//!
//! Flow of a create or update: [`Admit::admit`] of each plugin, defaults and validation, [`Admit::validate`]
//! of each plugin, the store. Flow of a deletion: [`Admit::delete`] of each plugin. Flow of a connection to a
//! pod, node or Service: [`Admit::connect`] of each plugin.
//!
//! Built-in plugins are rows of one table in upstream's order; those of a distribution come after them, and
//! before ResourceQuota.
//!
//! Guarantee: a refused write stores nothing.

pub(crate) mod cached;
mod configuration;
mod event;
mod facts;
mod matching;
mod metrics;
mod plugins;
mod rounds;
mod typed;

pub use configuration::{Configuration, ConfigurationError};
pub(crate) use plugins::{Chain, Parts, Selection};
pub use plugins::{PluginError, default_plugins, plugins};
use rounds::Rounds;
pub use typed::{Every, IntoAdmit, Request, Verdict};

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Stored;
use serde_json::Value;

use crate::{call::Call, request::RequestInfo, resources::Resource, user::User, value::str_at};

/// The kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// POST, or an apply or update that creates the object.
    Create,
    /// PUT or PATCH of an existing object.
    Update,
    /// DELETE of an object, or of each object of a collection.
    Delete,
    /// A connection: `exec`, `attach`, `portforward` or `proxy`.
    Connect,
}

impl Operation {
    /// The operation of a write with this object before it.
    pub(crate) fn of(old: Option<&Value>) -> Self {
        if old.is_some() { Operation::Update } else { Operation::Create }
    }
}

/// A create or update.
///
/// `object` is the stored form of the resource's objects. Requests for subresources with a kind of their own
/// have that kind: a Scale, Eviction, Binding or TokenRequest. A plugin of a distribution gets an update of
/// `scale` with the scaled object.
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
    /// True if nothing will be stored.
    pub dry_run: bool,
    pub(crate) call: &'a Call,
    /// True if a plugin changed fields that only the server may set. They are set again.
    pub(crate) reset: bool,
    /// The calls of webhooks and policies that may be repeated.
    pub(crate) rounds: Rounds,
}

impl<'a> Admission<'a> {
    /// A write of `object`, which replaces `old`.
    pub(crate) fn new(
        call: &'a Call,
        resource: &'a Resource,
        object: &'a mut Value,
        old: Option<&'a Value>,
        dry_run: bool,
    ) -> Self {
        Admission {
            operation: Operation::of(old),
            user: &call.user,
            resource,
            request: &call.info,
            object,
            old,
            dry_run,
            call,
            reset: false,
            rounds: Rounds::default(),
        }
    }

    /// Returns the name of the object that is written; empty if it has none yet.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.request.name.as_str() {
            "" => str_at(self.object, "/metadata/name"),
            name => name,
        }
    }

    /// Sends a warning to the client, in a `Warning` header. A repeated one is sent once.
    pub fn warn(&self, warning: impl Into<String>) {
        self.call.warn_once(warning.into());
    }

    /// Adds an annotation to the request's audit events. The first value of a key stays.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.call.annotate(key.into(), value.into());
    }

    /// The refusal of this write: 403 with upstream's text for this object.
    pub(crate) fn forbidden(&self, why: &str) -> ApiStatus {
        ApiStatus::forbidden(&self.resource.group, &self.resource.plural, self.name(), why)
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
    /// True if nothing will be deleted.
    pub dry_run: bool,
    pub(crate) call: &'a Call,
    pub(crate) stored: &'a Stored,
    /// The `DeleteOptions` of the request.
    pub(crate) options: &'a Value,
}

impl Deletion<'_> {
    /// Decodes the object in its stored form.
    ///
    /// # Errors
    /// 500 if the stored bytes are not JSON.
    pub fn object(&self) -> Result<Value, ApiStatus> {
        serde_json::from_slice(&self.stored.json).map_err(ApiStatus::internal)
    }

    /// Sends a warning to the client, in a `Warning` header. A repeated one is sent once.
    pub fn warn(&self, warning: impl Into<String>) {
        self.call.warn_once(warning.into());
    }
}

/// A connection to a pod, node or Service: `exec`, `attach`, `portforward` or `proxy`.
#[derive(Debug)]
pub struct Connection<'a> {
    /// The user who sent the request.
    pub user: &'a User,
    /// The resource that is connected to.
    pub resource: &'a Resource,
    /// The request: its namespace, name and subresource.
    pub request: &'a RequestInfo,
    /// The options of the request as an object: a PodExecOptions, PodAttachOptions, PodPortForwardOptions,
    /// PodProxyOptions, NodeProxyOptions or ServiceProxyOptions.
    pub options: &'a Value,
    pub(crate) call: &'a Call,
}

impl Connection<'_> {
    /// Sends a warning to the client, in a `Warning` header. A repeated one is sent once.
    pub fn warn(&self, warning: impl Into<String>) {
        self.call.warn_once(warning.into());
    }
}

/// A write that was validated and did not happen.
#[derive(Debug)]
pub struct Abandoned<'a> {
    pub(crate) call: &'a Call,
}

impl Abandoned<'_> {
    /// Returns the request.
    #[must_use]
    pub fn request(&self) -> &RequestInfo {
        &self.call.info
    }
}

/// An admission plugin: it sees every write, and may change or refuse it. Closures over an [`Admission`]
/// implement [`admit`](Admit::admit) only; closures over a [`Request`] see the writes of one type.
///
/// ```
/// use async_trait::async_trait;
/// use k8s_apiserver::{ApiServer, User, admission::{Admit, Deletion}};
/// use k8s_core::{api::ConfigMap, status::ApiStatus};
/// use k8s_store::Store;
///
/// /// Objects named `keep` stay.
/// struct Keep;
///
/// #[async_trait]
/// impl Admit for Keep {
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
    /// Returns false for requests that the plugin has nothing to do with, so that it is not asked about them.
    /// Default: every request.
    fn handles(&self, _operation: Operation, _resource: &Resource, _subresource: &str) -> bool {
        true
    }

    /// Changes or refuses the object, which has its defaults. Defaults are applied again afterwards.
    ///
    /// # Errors
    /// The reason of the refusal; the client receives this status unchanged.
    async fn admit(&self, _admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }

    /// Refuses the object in its final form, after all changes and validation.
    ///
    /// # Errors
    /// The reason of the refusal; the client receives this status unchanged.
    async fn validate(&self, _admission: &Admission<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }

    /// Takes back what [`validate`](Admit::validate) did, because the object was not stored: a later plugin
    /// or the store refused it, or another write was first. It may be validated again. Not called if the
    /// server or the client ends in between.
    async fn abandon(&self, _admission: &Abandoned<'_>) {}

    /// Refuses a deletion. Called for each object of a collection.
    ///
    /// # Errors
    /// The reason of the refusal; the client receives this status unchanged.
    async fn delete(&self, _deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }

    /// Refuses a connection.
    ///
    /// # Errors
    /// The reason of the refusal; the client receives this status unchanged.
    async fn connect(&self, _connection: &Connection<'_>) -> Result<(), ApiStatus> {
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
