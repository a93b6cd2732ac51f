//! Get, list and watch.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::StatusCause,
    client::{Body, BoxError},
    meta::{FieldSelector, LabelSelector},
    status::ApiStatus,
    store::{Event, EventKind, Snapshot, Stored, WatchCursor},
};
use serde_json::{Value, json};

use crate::{
    invalid::FieldErrors,
    resources::Resource,
    respond::{self, status_value},
    server::{ApiServer, Call},
    table::{Form, metadata_only, row, table},
    value::{encode, text},
    write::object_response,
};

/// GET of an object.
pub(crate) fn get(server: &ApiServer, call: &Call, resource: &Resource) -> Result<Response<Body>, ApiStatus> {
    let key = resource.key(&call.info.namespace, &call.info.name);
    let stored = server
        .inner
        .store
        .get(&resource.storage, &key)
        .ok_or_else(|| ApiStatus::not_found(&resource.group, &resource.plural, &call.info.name))?;
    object_response(server, call, resource, StatusCode::OK, &stored.json)
}

/// Which objects of a type a request is about.
pub(crate) struct Selection {
    namespace: String,
    namespaced: bool,
    name: String,
    labels: LabelSelector,
    fields: FieldSelector,
    known: Arc<[String]>,
}

impl Selection {
    pub(crate) fn from_call(call: &Call, resource: &Resource) -> Result<Self, ApiStatus> {
        let labels: LabelSelector = call
            .query
            .get("labelSelector")
            .parse()
            .map_err(|e: k8s_core::meta::selector::SelectorError| ApiStatus::bad_request(e.0))?;
        let fields: FieldSelector = call
            .query
            .get("fieldSelector")
            .parse()
            .map_err(|e: k8s_core::meta::selector::SelectorError| ApiStatus::bad_request(e.0))?;
        for (path, _, _) in &fields.terms {
            let plain = path == "metadata.name" || (path == "metadata.namespace" && resource.namespaced);
            if !plain && !resource.fields.iter().any(|f| f == path) {
                let mut known = vec!["metadata.name"];
                if resource.namespaced {
                    known.push("metadata.namespace");
                }
                known.extend(resource.fields.iter().map(String::as_str));
                let known: Vec<String> = known.iter().map(|k| format!("\"{k}\"")).collect();
                return Err(ApiStatus::bad_request(format!(
                    "\"{path}\" is not a known field selector: only {}",
                    known.join(", ")
                )));
            }
        }
        let name = match fields.required("metadata.name") {
            Some(name) => name.to_owned(),
            None => call.info.name.clone(),
        };
        let namespace = match fields.required("metadata.namespace") {
            Some(namespace) if call.info.namespace.is_empty() => namespace.to_owned(),
            _ => call.info.namespace.clone(),
        };
        Ok(Selection {
            namespace,
            namespaced: resource.namespaced,
            name,
            labels,
            fields,
            known: resource.fields.clone(),
        })
    }

    /// The start of every selected key.
    pub(crate) fn prefix(&self) -> String {
        if self.namespaced && !self.namespace.is_empty() {
            format!("{}/", self.namespace)
        } else {
            String::new()
        }
    }

    pub(crate) fn accepts(&self, stored: &Stored) -> bool {
        (!self.namespaced || self.namespace.is_empty() || stored.namespace() == self.namespace)
            && (self.name.is_empty() || stored.name() == self.name)
            && self.labels.matches_with(|key| stored.label(key))
            && (self.fields.terms.is_empty() || self.fields.matches_with(|path| self.field(stored, path)))
    }

    fn field(&self, stored: &Stored, path: &str) -> String {
        match path {
            "metadata.name" => stored.name().to_owned(),
            "metadata.namespace" => stored.namespace().to_owned(),
            _ => match self.known.iter().position(|f| f == path) {
                Some(at) if stored.fields.len() == self.known.len() => stored.fields[at].to_string(),
                // Stored before the field was declared selectable.
                _ => serde_json::from_slice::<Value>(&stored.json)
                    .map(|object| crate::resources::field_text(&object, path))
                    .unwrap_or_default(),
            },
        }
    }
}

/// Where a list goes on: the revision it is taken at, and the last key given.
fn decode_continue(token: &str) -> Result<(u64, String), ApiStatus> {
    let bad = || {
        ApiStatus::bad_request(
            "invalid continue token: continue key is not valid: it was not made by this server",
        )
    };
    let bytes = B64.decode(token).map_err(|_| bad())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let revision = value.get("rv").and_then(Value::as_u64).ok_or_else(bad)?;
    Ok((revision, text(&value, "/start").to_owned()))
}

fn encode_continue(revision: u64, after: &str) -> String {
    B64.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": after}).to_string())
}

/// The state that a list is taken from, as resourceVersion and resourceVersionMatch say.
fn state(server: &ApiServer, call: &Call, resource: &Resource) -> Result<(Snapshot, String), ApiStatus> {
    let store = &server.inner.store;
    let (version, matching, token) = (
        call.query.get("resourceVersion"),
        call.query.get("resourceVersionMatch"),
        call.query.get("continue"),
    );
    let mut errors = FieldErrors::default();
    if !matching.is_empty() {
        if version.is_empty() {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        } else if !token.is_empty() {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            );
        } else if !["Exact", "NotOlderThan"].contains(&matching) {
            errors.not_supported("resourceVersionMatch", matching, &["Exact", "NotOlderThan"]);
        } else if matching == "Exact" && version == "0" {
            errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
    }
    if !errors.is_empty() {
        return Err(errors.into_status("meta.k8s.io", "ListOptions", ""));
    }
    if !token.is_empty() {
        let (revision, after) = decode_continue(token)?;
        let snapshot = store.snapshot_at(&resource.storage, revision).map_err(|_| {
            ApiStatus::expired("The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.")
        })?;
        return Ok((snapshot, after));
    }
    let wanted: u64 = if version.is_empty() { 0 } else { parse_version(version)? };
    let newest = store.revision();
    if wanted > newest {
        let cause = StatusCause {
            reason: Some("ResourceVersionTooLarge".into()),
            message: Some("Too large resource version".into()),
            field: None,
        };
        return Err(ApiStatus::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {wanted}, current: {newest}"),
        )
        .causes(vec![cause])
        .retry_after(1));
    }
    let exact = matching == "Exact" || (matching.is_empty() && wanted > 0 && call.query.has("limit"));
    if exact {
        let snapshot = store
            .snapshot_at(&resource.storage, wanted)
            .map_err(|_| ApiStatus::expired("The resourceVersion for the provided list is too old."))?;
        return Ok((snapshot, String::new()));
    }
    Ok((store.snapshot(&resource.storage), String::new()))
}

fn parse_version(version: &str) -> Result<u64, ApiStatus> {
    version.parse().map_err(|_| {
        let mut errors = FieldErrors::default();
        errors.invalid("resourceVersion", version, "strconv.ParseUint: parsing: invalid syntax");
        errors.into_status("meta.k8s.io", "ListOptions", "")
    })
}

/// GET of a collection.
pub(crate) fn list(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
) -> Result<Response<Body>, ApiStatus> {
    let form = Form::from_headers(&call.headers)?;
    let selection = Selection::from_call(call, resource)?;
    let (snapshot, after) = state(server, call, resource)?;
    let limit = usize::try_from(call.query.number("limit").unwrap_or(0)).unwrap_or(0);
    let prefix = selection.prefix();
    let mut matching = snapshot.range(&prefix, &after).filter(|s| selection.accepts(s));
    let items: Vec<Arc<Stored>> = if limit == 0 {
        matching.by_ref().cloned().collect()
    } else {
        matching.by_ref().take(limit).cloned().collect()
    };
    let remaining = if limit > 0 { matching.count() } else { 0 };
    let mut metadata = json!({"resourceVersion": snapshot.revision.to_string()});
    if remaining > 0
        && let Some(last) = items.last()
    {
        metadata["continue"] = encode_continue(snapshot.revision, &last.key).into();
        if selection.labels.is_everything() && selection.fields.terms.is_empty() {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    if form == Form::Whole && resource.is_storage_version() {
        return Ok(streamed_list(resource, items, &metadata));
    }
    let objects =
        items.iter().filter_map(|s| serde_json::from_slice::<Value>(&s.json).ok()).map(|mut object| {
            resource.from_storage(&mut object);
            object
        });
    let now = server.inner.clock.now();
    let answer = match form {
        Form::Table => {
            let include = call.query.get("includeObject");
            let rows = objects.map(|o| row(resource, &o, include, now)).collect();
            table(resource, rows, metadata, true)
        }
        Form::Metadata => {
            let items: Vec<Value> = objects.map(|o| metadata_only(&o)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
        }
        Form::Whole => {
            let items: Vec<Value> = objects.collect();
            json!({"kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items})
        }
    };
    Ok(respond::json_value(StatusCode::OK, &answer))
}

/// A list whose items are the stored bytes, sent as chunks without copying. Built-in items leave out their kind and apiVersion, as upstream's do.
fn streamed_list(resource: &Resource, items: Vec<Arc<Stored>>, metadata: &Value) -> Response<Body> {
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
        Value::from(resource.list_kind.as_str()),
        Value::from(resource.api_version())
    );
    let prefix = format!(
        "{{\"kind\":{},\"apiVersion\":{},",
        Value::from(resource.kind.as_str()),
        Value::from(resource.api_version())
    );
    let custom = resource.custom;
    let mut first = true;
    let chunks = items.into_iter().flat_map(move |stored| {
        let separator = if std::mem::take(&mut first) { Bytes::new() } else { Bytes::from_static(b",") };
        let body = if !custom && stored.json.starts_with(prefix.as_bytes()) {
            [separator, Bytes::from_static(b"{"), stored.json.slice(prefix.len()..)]
        } else {
            [separator, Bytes::new(), stored.json.clone()]
        };
        body.into_iter().filter(|b| !b.is_empty())
    });
    let all =
        std::iter::once(Bytes::from(head)).chain(chunks).chain(std::iter::once(Bytes::from_static(b"]}")));
    let frames = stream::iter(all.map(|b| Ok::<_, BoxError>(Frame::data(b)))).chunks(64).flat_map(|batch| {
        // Small pieces are joined so that each write carries a useful amount.
        let mut joined = Vec::with_capacity(16 << 10);
        for frame in batch.into_iter().flatten() {
            if let Ok(data) = frame.into_data() {
                joined.extend_from_slice(&data);
            }
        }
        stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from(joined)))])
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// One watcher.
struct Watch {
    server: ApiServer,
    resource: Arc<Resource>,
    selection: Selection,
    form: Form,
    include: String,
    cursor: WatchCursor,
    bookmarks: bool,
    /// Frames that wait to be sent.
    ready: std::collections::VecDeque<Bytes>,
    columns_sent: bool,
    ended: bool,
    deadline: tokio::time::Instant,
    next_bookmark: tokio::time::Instant,
}

/// Longest watch without `timeoutSeconds`.
const LONGEST: Duration = Duration::from_secs(3600);
/// How often an idle watcher is told the revision it is at.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How many events are taken from history at a time.
const BATCH: usize = 256;

/// GET of a collection with `watch`.
pub(crate) fn watch(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
) -> Result<Response<Body>, ApiStatus> {
    let form = Form::from_headers(&call.headers)?;
    let selection = Selection::from_call(call, resource)?;
    let version = call.query.get("resourceVersion");
    let store = &server.inner.store;
    let bookmarks = call.query.truth("allowWatchBookmarks");
    let initial_asked = call.query.truth("sendInitialEvents");
    if call.query.has("sendInitialEvents") && call.query.get("resourceVersionMatch") != "NotOlderThan" {
        let mut errors = FieldErrors::default();
        errors.forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
        return Err(errors.into_status("meta.k8s.io", "ListOptions", ""));
    }
    let from: u64 = if version.is_empty() { 0 } else { parse_version(version)? };
    let list_first = initial_asked || (from == 0 && !call.query.has("sendInitialEvents"));
    let mut ready = std::collections::VecDeque::new();
    let mut watch;
    let now = tokio::time::Instant::now();
    let timeout = call.query.number("timeoutSeconds").and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let deadline = now + timeout.map_or(LONGEST, Duration::from_secs);
    let make = |after: u64, ready| Watch {
        server: server.clone(),
        resource: resource.clone(),
        selection,
        form,
        include: call.query.get("includeObject").to_owned(),
        cursor: store.watch(&resource.storage, after),
        bookmarks,
        ready,
        columns_sent: false,
        ended: false,
        deadline,
        next_bookmark: now + BOOKMARK_EVERY,
    };
    if list_first {
        let snapshot = store.snapshot(&resource.storage);
        watch = make(snapshot.revision, std::mem::take(&mut ready));
        let prefix = watch.selection.prefix();
        let objects: Vec<Arc<Stored>> =
            snapshot.range(&prefix, "").filter(|s| watch.selection.accepts(s)).cloned().collect();
        for object in &objects {
            watch.push(EventKind::Added, object, None);
        }
        if initial_asked && bookmarks {
            watch.bookmark(snapshot.revision, true);
        }
    } else {
        let after = if from == 0 { store.revision() } else { from };
        watch = make(after, ready);
    }
    let frames = frames(watch).map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

impl Watch {
    /// Queues an event about an object. `event` shares its encoding where the object is seen as what it is.
    fn push(&mut self, kind: EventKind, object: &Stored, event: Option<&Event>) {
        let plain = self.form == Form::Whole && self.resource.is_storage_version();
        let frame = match event {
            Some(event) if plain && event.kind == kind => event.frame(),
            _ => {
                let name = match kind {
                    EventKind::Added => "ADDED",
                    EventKind::Modified => "MODIFIED",
                    EventKind::Deleted => "DELETED",
                };
                if plain {
                    line(name, &object.json)
                } else {
                    let mut value: Value = serde_json::from_slice(&object.json).unwrap_or_default();
                    self.resource.from_storage(&mut value);
                    let value = self.formed(&value);
                    line(name, &encode(&value))
                }
            }
        };
        self.ready.push_back(frame);
    }

    fn formed(&mut self, object: &Value) -> Value {
        match self.form {
            Form::Whole => object.clone(),
            Form::Metadata => metadata_only(object),
            Form::Table => {
                let rows = vec![row(&self.resource, object, &self.include, self.server.inner.clock.now())];
                let revision = text(object, "/metadata/resourceVersion");
                let first = !std::mem::replace(&mut self.columns_sent, true);
                table(&self.resource, rows, json!({"resourceVersion": revision}), first)
            }
        }
    }

    fn bookmark(&mut self, revision: u64, initial: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.form {
            Form::Whole => (self.resource.kind.clone(), self.resource.api_version()),
            Form::Metadata => ("PartialObjectMetadata".into(), "meta.k8s.io/v1".into()),
            Form::Table => {
                let object = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata});
                let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": null, "rows": [{"cells": [], "object": metadata_only(&object)}]});
                self.ready.push_back(line("BOOKMARK", &encode(&table)));
                return;
            }
        };
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        self.ready.push_back(line("BOOKMARK", &encode(&object)));
    }

    /// Takes what has happened and queues what this watcher is to see.
    fn take(&mut self) -> bool {
        match self.cursor.take(BATCH) {
            Ok(events) => {
                for event in &events {
                    let was = match event.kind {
                        EventKind::Added => false,
                        _ => event.before.as_ref().is_some_and(|b| self.selection.accepts(b)),
                    };
                    let is = event.kind != EventKind::Deleted && self.selection.accepts(&event.object);
                    match (was, is) {
                        (false, false) => {}
                        (false, true) => self.push(EventKind::Added, &event.object, Some(event)),
                        (true, true) => self.push(EventKind::Modified, &event.object, Some(event)),
                        (true, false) => self.push(EventKind::Deleted, &event.object, Some(event)),
                    }
                }
                !events.is_empty()
            }
            Err(e) => {
                let status = ApiStatus::expired(e.to_string());
                self.ready.push_back(line("ERROR", &encode(&status_value(&status))));
                self.ended = true;
                true
            }
        }
    }
}

fn line(kind: &str, json: &[u8]) -> Bytes {
    [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":", json, b"}\n"].concat().into()
}

/// The frames of a watch, until its deadline or an error.
fn frames(watch: Watch) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(watch, |mut watch| async move {
        loop {
            if !watch.ready.is_empty() {
                // What is ready goes out together.
                let mut out = watch.ready.pop_front().unwrap_or_default();
                if !watch.ready.is_empty() {
                    let mut joined = Vec::from(out);
                    while joined.len() < 64 << 10
                        && let Some(next) = watch.ready.pop_front()
                    {
                        joined.extend_from_slice(&next);
                    }
                    out = joined.into();
                }
                return Some((out, watch));
            }
            if watch.ended || tokio::time::Instant::now() >= watch.deadline {
                return None;
            }
            if watch.take() {
                continue;
            }
            let wake = if watch.bookmarks { watch.next_bookmark.min(watch.deadline) } else { watch.deadline };
            // Read before waiting: nothing up to here is unseen when the wait begins and ends with the timer.
            let revision = watch.server.inner.store.revision();
            tokio::select! {
                () = watch.cursor.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    if watch.bookmarks && tokio::time::Instant::now() >= watch.next_bookmark && !watch.take() {
                        watch.bookmark(revision, false);
                        watch.next_bookmark = tokio::time::Instant::now() + BOOKMARK_EVERY;
                    }
                }
            }
        }
    })
}
