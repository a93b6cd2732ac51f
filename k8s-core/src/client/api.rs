//! A typed client for one resource and scope.

use std::marker::PhantomData;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Preconditions, Status};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Client, Error, Page, Resource, Unreadable, decode};
use crate::{json, status::ApiStatus};

const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Selection and paging of a list or watch.
///
/// ```
/// use k8s_core::client::ListParams;
/// let selected = ListParams::default().labels("app in (web,api)").fields("spec.nodeName=n1");
/// let params = ListParams { limit: 500, ..selected };
/// assert_eq!(params.labels, "app in (web,api)");
/// ```
#[derive(Clone, Debug, Default)]
pub struct ListParams {
    /// Label selector; empty selects all.
    pub labels: String,
    /// Field selector; empty selects all.
    pub fields: String,
    /// Page size; 0 means unlimited.
    pub limit: u32,
    /// Continue token of the previous page.
    pub continue_token: String,
    /// `resourceVersion`; empty means the newest.
    pub resource_version: String,
}

impl ListParams {
    /// Selects objects by labels (`a=b,c in (d,e)`).
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = selector.into();
        self
    }

    /// Selects objects by fields (`spec.nodeName=n1`).
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = selector.into();
        self
    }

    /// Starts from this `resourceVersion`.
    #[must_use]
    pub fn at(mut self, version: impl Into<String>) -> Self {
        self.resource_version = version.into();
        self
    }

    fn query(&self) -> Query {
        let mut query = Query::default();
        query.add("labelSelector", &self.labels).add("fieldSelector", &self.fields);
        if self.limit > 0 {
            query.add("limit", &self.limit.to_string());
        }
        query.add("continue", &self.continue_token).add("resourceVersion", &self.resource_version);
        query
    }
}

/// Options of a write request.
#[derive(Clone, Debug, Default)]
pub struct PostParams {
    /// Validate only, store nothing.
    pub dry_run: bool,
    /// Field manager; empty means the client's name.
    pub field_manager: String,
    /// Server-side apply: take over fields owned by other managers.
    pub force: bool,
}

/// A patch and its type.
#[derive(Clone, Debug)]
pub enum Patch<T> {
    /// JSON patch (RFC 6902).
    Json(T),
    /// JSON merge patch (RFC 7386).
    Merge(T),
    /// Strategic merge patch (built-in types only).
    Strategic(T),
    /// Server-side apply: the fields that the manager wants, with `apiVersion` and `kind`.
    Apply(T),
}

/// Options of a delete request.
///
/// ```
/// use k8s_core::client::DeleteOptions;
/// let options = DeleteOptions::background().with_uid("1234").grace(0);
/// let body = serde_json::to_value(&options)?;
/// assert_eq!((&body["gracePeriodSeconds"], &body["preconditions"]["uid"]), (&0.into(), &"1234".into()));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    /// Grace period in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    /// `Orphan`, `Background` or `Foreground`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<String>,
    /// Required uid and resourceVersion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
}

impl DeleteOptions {
    /// Sets background propagation: the garbage collector deletes dependents afterwards.
    #[must_use]
    pub fn background() -> Self {
        DeleteOptions { propagation_policy: Some("Background".into()), ..Self::default() }
    }

    /// Requires this uid, so that a later object of the same name is not deleted.
    #[must_use]
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.preconditions.get_or_insert_default().uid = Some(uid.to_owned());
        self
    }

    /// Sets the grace period in seconds.
    #[must_use]
    pub fn grace(mut self, seconds: i64) -> Self {
        self.grace_period_seconds = Some(seconds);
        self
    }
}

/// An event of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent<K> {
    /// The object is new to the watcher.
    Added(K),
    /// The object was changed.
    Modified(K),
    /// The object was deleted (or is no longer selected); its last state.
    Deleted(K),
    /// The object was added or changed and does not deserialize. `true`: it was deleted.
    Unreadable(Unreadable, bool),
    /// No further changes up to this resourceVersion. `true`: the initial state is complete
    /// (`sendInitialEvents`).
    Bookmark(u64, bool),
    /// The watch failed and ends.
    Error(ApiStatus),
}

/// A typed client for one resource and scope. Cheap to clone.
#[derive(Debug)]
pub struct Api<K> {
    client: Client,
    resource: Resource,
    namespace: String,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Api {
            client: self.client.clone(),
            resource: self.resource.clone(),
            namespace: self.namespace.clone(),
            kind: PhantomData,
        }
    }
}

#[derive(Default)]
struct Query(String);

impl Query {
    fn add(&mut self, key: &str, value: &str) -> &mut Self {
        if !value.is_empty() {
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0.push_str(key);
            self.0.push('=');
            self.0.extend(utf8_percent_encode(value, QUERY));
        }
        self
    }

    fn write(&mut self, params: &PostParams) -> &mut Self {
        self.add("dryRun", if params.dry_run { "All" } else { "" })
            .add("fieldManager", &params.field_manager)
            .add("force", if params.force { "true" } else { "" })
    }
}

const JSON: &str = "application/json";

/// The metadata of a bookmark event.
#[derive(Deserialize)]
struct BookmarkObject {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
}

impl<K> Api<K> {
    pub(super) fn new(client: Client, resource: Resource, namespace: &str) -> Self {
        Api { client, resource, namespace: namespace.to_owned(), kind: PhantomData }
    }

    /// Returns the group, version and plural name of the requests.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Returns the underlying client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns a client that does not decode `managedFields` ([`Client::without_managed_fields`]).
    #[must_use]
    pub fn without_managed_fields(&self) -> Self {
        Api { client: self.client.without_managed_fields(), ..self.clone() }
    }

    /// Returns a client for another namespace (empty: all).
    #[must_use]
    pub fn within(&self, namespace: &str) -> Self {
        Api { namespace: namespace.to_owned(), ..self.clone() }
    }

    fn path(&self, name: &str, subresource: &str) -> String {
        let name = utf8_percent_encode(name, QUERY).to_string();
        self.resource.path(&self.namespace, &name, subresource)
    }
}

impl<K: Serialize + DeserializeOwned> Api<K> {
    fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes, Error> {
        json::to_vec(value)
            .map(Bytes::from)
            .map_err(|e| Error::Request(format!("encode {}: {e}", self.resource.kind)))
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`Error::is_not_found`] if it does not exist.
    pub async fn get(&self, name: &str) -> Result<K, Error> {
        self.client.json(Method::GET, &self.path(name, ""), JSON, Bytes::new()).await
    }

    /// Reads an object; `None` if it does not exist.
    ///
    /// ```
    /// use k8s_core::{api::Pod, client::{Client, Error}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let pods = client.namespaced::<Pod>("default");
    /// if pods.get_opt("web").await?.is_none() {
    ///     println!("there is no web");
    /// }
    /// // The same with the error.
    /// assert!(pods.get("web").await.is_err_and(|error| error.is_not_found()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Any error but 404.
    pub async fn get_opt(&self, name: &str) -> Result<Option<K>, Error> {
        match self.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads a subresource (`status`, `scale`).
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn get_subresource<T: DeserializeOwned>(
        &self,
        name: &str,
        subresource: &str,
    ) -> Result<T, Error> {
        self.client.json(Method::GET, &self.path(name, subresource), JSON, Bytes::new()).await
    }

    /// Lists one page of objects if `params` has a limit, otherwise all.
    ///
    /// ```
    /// use k8s_core::{api::Pod, client::{Client, Error, ListParams}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let (pods, mut params) = (client.all::<Pod>(), ListParams { limit: 500, ..ListParams::default() });
    /// loop {
    ///     let page = pods.page(&params).await?;
    ///     println!("{} pods", page.items.len());
    ///     if page.continue_token.is_empty() {
    ///         break;
    ///     }
    ///     params.continue_token = page.continue_token;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::is_expired`] for an old resourceVersion or continue token.
    pub async fn page(&self, params: &ListParams) -> Result<Page<K>, Error> {
        let path = self.path("", "") + &params.query().0;
        let bytes = self.client.bytes(Method::GET, &path, JSON, Bytes::new()).await?;
        decode::page(&self.resource, &bytes).map_err(|source| Error::Decode { what: path, source })
    }

    /// Lists objects; also returns the list's resourceVersion. Objects that do not deserialize are skipped
    /// ([`super::unreadable_objects`]).
    ///
    /// # Errors
    /// As [`Api::page`].
    pub async fn list_with_version(&self, params: &ListParams) -> Result<(Vec<K>, String), Error> {
        let page = self.page(params).await?;
        Ok((page.items, page.version))
    }

    /// Lists objects. Objects that do not deserialize are skipped ([`super::unreadable_objects`]).
    ///
    /// # Errors
    /// As [`Api::list_with_version`].
    pub async fn list(&self, params: &ListParams) -> Result<Vec<K>, Error> {
        Ok(self.list_with_version(params).await?.0)
    }

    /// Watches from `params.resource_version` on. Empty: starts with the current objects.
    ///
    /// ```
    /// use futures::StreamExt;
    /// use k8s_core::{api::Pod, client::{Client, Error, ListParams, WatchEvent}, meta::ObjectExt};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let pods = client.namespaced::<Pod>("default");
    /// let (_, version) = pods.list_with_version(&ListParams::default()).await?;
    /// let mut events = pods.watch(&ListParams::default().at(version)).await?;
    /// while let Some(event) = events.next().await {
    ///     match event? {
    ///         WatchEvent::Added(pod) | WatchEvent::Modified(pod) => println!("{} changed", pod.name()),
    ///         WatchEvent::Deleted(pod) => println!("{} is gone", pod.name()),
    ///         WatchEvent::Error(status) => return Err(status.into()), // 410: list again
    ///         WatchEvent::Unreadable(..) | WatchEvent::Bookmark(..) => {}
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The watch cannot be opened. Later failures are returned as events or items.
    pub async fn watch(
        &self,
        params: &ListParams,
    ) -> Result<BoxStream<'static, Result<WatchEvent<K>, Error>>, Error>
    where
        K: 'static,
    {
        let mut query = params.query();
        query.add("watch", "1").add("allowWatchBookmarks", "true");
        self.watch_raw(&query.0).await
    }

    /// Watches and streams the current objects as `Added` events before the first bookmark with `true`
    /// (WatchList).
    ///
    /// # Errors
    /// As [`Api::watch`].
    pub async fn watch_list(
        &self,
        params: &ListParams,
    ) -> Result<BoxStream<'static, Result<WatchEvent<K>, Error>>, Error>
    where
        K: 'static,
    {
        let mut query = params.query();
        query
            .add("watch", "1")
            .add("allowWatchBookmarks", "true")
            .add("sendInitialEvents", "true")
            .add("resourceVersionMatch", "NotOlderThan");
        self.watch_raw(&query.0).await
    }

    async fn watch_raw(&self, query: &str) -> Result<BoxStream<'static, Result<WatchEvent<K>, Error>>, Error>
    where
        K: 'static,
    {
        let lines = self.client.lines(&(self.path("", "") + query)).await?;
        let (client, resource) = (self.client.clone(), self.resource.clone());
        Ok(lines.map(move |line| decode_event(&client, &resource, &line?)).boxed())
    }

    /// Creates an object.
    ///
    /// ```
    /// use k8s_core::{api::ConfigMap, client::{Client, Error}, meta::ObjectExt};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let mut map = ConfigMap::default();
    /// map.metadata.name = Some("settings".into());
    /// map.data = Some([("colour".into(), "red".into())].into());
    /// match client.namespaced::<ConfigMap>("default").create(&map).await {
    ///     Err(error) if error.is_already_exists() => println!("another process was faster"),
    ///     created => println!("{}", created?.uid()),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::is_already_exists`], [`Error::is_invalid`].
    pub async fn create(&self, object: &K) -> Result<K, Error> {
        self.create_with(object, &PostParams::default()).await
    }

    /// Creates an object with options.
    ///
    /// # Errors
    /// As [`Api::create`].
    pub async fn create_with(&self, object: &K, params: &PostParams) -> Result<K, Error> {
        let path = self.path("", "") + &Query::default().write(params).0;
        self.client.json(Method::POST, &path, JSON, self.encode(object)?).await
    }

    /// Posts to a subresource (`binding`, `eviction`, `token`).
    ///
    /// ```
    /// use k8s_core::{api::{ServiceAccount, api::authentication::v1::TokenRequest}, client::{Client, Error}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// // As the kubelet asks for a pod's token.
    /// let request = TokenRequest::default();
    /// let accounts = client.namespaced::<ServiceAccount>("default");
    /// let issued: TokenRequest = accounts.create_subresource("default", "token", &request).await?;
    /// println!("{:?}", issued.status.unwrap_or_default().token);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of the subresource.
    pub async fn create_subresource<B: Serialize, T: DeserializeOwned>(
        &self,
        name: &str,
        subresource: &str,
        body: &B,
    ) -> Result<T, Error> {
        self.client.json(Method::POST, &self.path(name, subresource), JSON, self.encode(body)?).await
    }

    /// Replaces an object. Its resourceVersion, if set, is the optimistic lock.
    ///
    /// ```
    /// use k8s_core::{api::ConfigMap, client::{Client, Error}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let maps = client.namespaced::<ConfigMap>("default");
    /// loop {
    ///     let mut map = maps.get("counter").await?;
    ///     let count = map.data.get_or_insert_default().entry("count".into()).or_default();
    ///     *count = (count.parse::<u64>().unwrap_or(0) + 1).to_string();
    ///     match maps.replace("counter", &map).await {
    ///         Err(error) if error.is_conflict() => continue, // read again
    ///         done => break drop(done?),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::is_conflict`] if the object was changed meanwhile.
    pub async fn replace(&self, name: &str, object: &K) -> Result<K, Error> {
        self.client.json(Method::PUT, &self.path(name, ""), JSON, self.encode(object)?).await
    }

    /// Replaces an object's status; all other fields are ignored.
    ///
    /// # Errors
    /// As [`Api::replace`].
    pub async fn replace_status(&self, name: &str, object: &K) -> Result<K, Error> {
        self.client.json(Method::PUT, &self.path(name, "status"), JSON, self.encode(object)?).await
    }

    /// Replaces a subresource (`scale`).
    ///
    /// # Errors
    /// As [`Api::replace`].
    pub async fn replace_subresource<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        subresource: &str,
        value: &T,
    ) -> Result<T, Error> {
        self.client.json(Method::PUT, &self.path(name, subresource), JSON, self.encode(value)?).await
    }

    /// Patches an object.
    ///
    /// ```
    /// use k8s_core::{api::Deployment, client::{Client, Error, Patch}};
    /// use serde_json::json;
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let deployments = client.namespaced::<Deployment>("default");
    /// deployments.patch("web", &Patch::Merge(json!({"spec": {"replicas": 3}}))).await?;
    /// let path = "/spec/template/spec/containers/0/image";
    /// let image = json!([{"op": "replace", "path": path, "value": "web:2"}]);
    /// deployments.patch("web", &Patch::Json(image)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::is_not_found`] (except for apply, which creates), [`Error::is_invalid`],
    /// [`Error::is_conflict`].
    pub async fn patch<T: Serialize>(&self, name: &str, patch: &Patch<T>) -> Result<K, Error> {
        self.patch_with(name, "", patch, &PostParams::default()).await
    }

    /// Patches an object's status.
    ///
    /// # Errors
    /// As [`Api::patch`].
    pub async fn patch_status<T: Serialize>(&self, name: &str, patch: &Patch<T>) -> Result<K, Error> {
        self.patch_with(name, "status", patch, &PostParams::default()).await
    }

    /// Patches an object or one of its subresources, with options. The field manager of an apply defaults to
    /// the client's name.
    ///
    /// ```
    /// use k8s_core::{api::Node, client::{Client, Error, Patch, PostParams}};
    /// use serde_json::json;
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// // Only what would happen: nothing is stored.
    /// let params = PostParams { dry_run: true, ..PostParams::default() };
    /// let patch = Patch::Strategic(json!({"spec": {"unschedulable": true}}));
    /// client.all::<Node>().patch_with("node-1", "", &patch, &params).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Api::patch`].
    pub async fn patch_with<T: Serialize>(
        &self,
        name: &str,
        subresource: &str,
        patch: &Patch<T>,
        params: &PostParams,
    ) -> Result<K, Error> {
        let mut params = params.clone();
        let (content_type, body) = match patch {
            Patch::Json(p) => ("application/json-patch+json", self.encode(p)?),
            Patch::Merge(p) => ("application/merge-patch+json", self.encode(p)?),
            Patch::Strategic(p) => ("application/strategic-merge-patch+json", self.encode(p)?),
            Patch::Apply(p) => {
                if params.field_manager.is_empty() {
                    params.field_manager = self.client.name().to_owned();
                }
                ("application/apply-patch+yaml", self.encode(p)?)
            }
        };
        let path = self.path(name, subresource) + &Query::default().write(&params).0;
        self.client.json(Method::PATCH, &path, content_type, body).await
    }

    /// Applies an object by server-side apply with the client's name as field manager, taking over fields
    /// owned by others.
    ///
    /// ```
    /// use k8s_core::{api::ConfigMap, client::{Client, Error}};
    /// use serde_json::json;
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"colour": "red"}});
    /// let applied = client.named("shop").namespaced::<ConfigMap>("default").apply("settings", &map).await?;
    /// assert_eq!(applied.metadata.managed_fields.unwrap_or_default()[0].manager.as_deref(), Some("shop"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Api::patch`].
    pub async fn apply<T: Serialize>(&self, name: &str, object: &T) -> Result<K, Error> {
        let params = PostParams { force: true, ..PostParams::default() };
        self.patch_with(name, "", &Patch::Apply(object), &params).await
    }

    /// Deletes an object. It exists until its grace period is over and its finalizers are gone.
    ///
    /// ```
    /// use k8s_core::{api::Pod, client::{Client, DeleteOptions, Error}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let pods = client.namespaced::<Pod>("default");
    /// pods.delete("web", &DeleteOptions::default().grace(30)).await?;
    /// pods.wait_deleted("web").await?; // returns when its containers have ended
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::is_not_found`], [`Error::is_conflict`] for a failed precondition.
    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<(), Error> {
        let body = self.encode(options)?;
        self.client.bytes(Method::DELETE, &self.path(name, ""), JSON, body).await.map(drop)
    }

    /// Deletes an object; a missing one is not an error.
    ///
    /// # Errors
    /// Any error but 404.
    pub async fn delete_if_exists(&self, name: &str, options: &DeleteOptions) -> Result<(), Error> {
        match self.delete(name, options).await {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Deletes all selected objects.
    ///
    /// ```
    /// use k8s_core::{api::Pod, client::{Client, DeleteOptions, Error, ListParams}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let finished = ListParams::default().fields("status.phase=Succeeded");
    /// client.namespaced::<Pod>("default").delete_collection(&finished, &DeleteOptions::default()).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Api::delete`].
    pub async fn delete_collection(&self, params: &ListParams, options: &DeleteOptions) -> Result<(), Error> {
        let path = self.path("", "") + &params.query().0;
        let body = self.encode(options)?;
        self.client.bytes(Method::DELETE, &path, JSON, body).await.map(drop)
    }
}

/// Decodes one line of a watch.
fn decode_event<K: DeserializeOwned>(
    client: &Client,
    resource: &Resource,
    line: &[u8],
) -> Result<WatchEvent<K>, Error> {
    let decode = |source| Error::Decode { what: "watch event".into(), source };
    let Some(kind) = json::plain(line, &["type"]) else {
        return Err(Error::Request("a line of a watch is no event".into()));
    };
    let changed = |event: fn(K) -> WatchEvent<K>, gone| -> Result<WatchEvent<K>, Error> {
        let line = client.read_below(line, "object");
        let error = match json::read_leniently(&line, &["object"]) {
            Ok(object) => return Ok(event(object)),
            Err(e) => e,
        };
        let value = json::read(&line, &["object"]).map_err(decode)?;
        Ok(WatchEvent::Unreadable(Unreadable::found(resource, &value, &error), gone))
    };
    Ok(match kind {
        "ADDED" => changed(WatchEvent::Added, false)?,
        "MODIFIED" => changed(WatchEvent::Modified, false)?,
        "DELETED" => changed(WatchEvent::Deleted, true)?,
        "BOOKMARK" => {
            let mark: BookmarkObject = json::read(line, &["object"]).map_err(decode)?;
            let version = mark.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or(0);
            let complete = mark
                .metadata
                .annotations
                .is_some_and(|a| a.get("k8s.io/initial-events-end").is_some_and(|v| v == "true"));
            WatchEvent::Bookmark(version, complete)
        }
        "ERROR" => {
            let status: Status = json::read(line, &["object"]).map_err(decode)?;
            WatchEvent::Error(ApiStatus::from_status(status))
        }
        other => return Err(Error::Request(format!("watch event type {other:?} is unknown"))),
    })
}
