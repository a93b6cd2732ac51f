//! Requests for versions of custom resources that a webhook converts.
//!
//! Such a request is served as one for the stored version: objects are converted on the way in and out. The
//! other handlers see stored objects only.

mod chosen;

use std::sync::Arc;

use chosen::{Chosen, Shown};

use bytes::Bytes;
use futures::{
    StreamExt,
    future::{BoxFuture, ready},
    stream::BoxStream,
};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::{
    client::{Body, BoxError, body_from_bytes},
    status::ApiStatus,
};
use serde_json::Value;

use crate::{
    body::{decode_body, fit, media_type, read_body},
    call::Call,
    errors::modified,
    invalid::FieldErrors,
    read::{Presenter, object_response},
    resources::{Resource, custom::Webhook},
    state::State,
    value::{array_at, set, str_at},
    webhook_client::whole,
    write::{applied, declared, fit_patched, patch_function},
};

/// Maximum of retries after a conflict.
const TRIES: usize = 5;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const APPLY: &str = "application/apply-patch+yaml";

/// One request for a version that a webhook converts to.
struct Converting<'a> {
    state: &'a Arc<State>,
    call: &'a Call,
    /// The requested version.
    resource: &'a Arc<Resource>,
    webhook: &'a Arc<Webhook>,
    uri: &'a Uri,
    dispatch: Dispatch,
    /// Which objects of the requested version are wanted, and the field selector for the stored version.
    chosen: Option<&'a (Chosen, String)>,
}

/// The handler of requests for the stored version.
pub(crate) type Dispatch = for<'a> fn(
    &'a Arc<State>,
    &'a Call,
    &'a Arc<Resource>,
    &'a mut Request<Body>,
) -> BoxFuture<'a, Result<Response<Body>, ApiStatus>>;

/// Serves a request for a converted version.
pub(crate) async fn handle(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    webhook: &Arc<Webhook>,
    request: &mut Request<Body>,
    dispatch: Dispatch,
) -> Result<Response<Body>, ApiStatus> {
    let uri = request.uri().clone();
    let chosen = Chosen::of(call, resource)?;
    let this = Converting { state, call, resource, webhook, uri: &uri, dispatch, chosen: chosen.as_ref() };
    let objects = matches!(call.info.subresource.as_str(), "" | "status");
    match call.info.verb.as_str() {
        "watch" => this.watch().await,
        "deletecollection" if chosen.is_some() => {
            let body = read_body(request).await?;
            this.delete_chosen(body).await
        }
        "create" | "update" if objects => {
            let body = read_body(request).await?;
            let (mut object, duplicates) = decode_body(call, &resource.kind, &body)?;
            fit(call, resource, &mut object, duplicates)?;
            let answer = this.write(&call.info.verb, object).await?;
            this.answer(answer).await
        }
        "patch" if objects => {
            let body = read_body(request).await?;
            let answer = this.patch(&body).await?;
            this.answer(answer).await
        }
        _ => {
            let body = read_body(request).await?;
            let answer = this.pass(&call.info.verb, body).await?;
            this.answer(answer).await
        }
    }
}

impl Converting<'_> {
    /// Sends the request for the stored version, in JSON.
    async fn pass(&self, verb: &str, body: impl Into<Bytes>) -> Result<Response<Body>, ApiStatus> {
        let stored = &self.webhook.stored;
        let mut inner = self.call.inner();
        inner.info.verb = verb.to_owned();
        inner.asked = Some(self.resource.clone());
        inner.info.version = stored.version.clone();
        if let Some((_, common)) = self.chosen {
            inner.query.set("fieldSelector", common);
        }
        inner.headers.remove(header::ACCEPT);
        let mut asked = Request::new(body_from_bytes(body.into().to_vec()));
        *asked.uri_mut() = self.uri.clone();
        let answer = (self.dispatch)(self.state, &inner, stored, &mut asked).await;
        self.call.take_notes(&inner);
        answer
    }

    /// Writes an object of the requested version.
    async fn write(&self, verb: &str, object: Value) -> Result<Response<Body>, ApiStatus> {
        let mut errors = FieldErrors::default();
        if let Some(rules) = &self.resource.rules {
            rules.check(&object, None, &mut errors);
        }
        if !errors.is_empty() {
            let name = str_at(&object, "/metadata/name").to_owned();
            return Err(errors.into_status(&self.resource.group, &self.resource.kind, &name));
        }
        let stored = self.stored(object).await?;
        let mut inner = self.call.inner();
        inner.headers.insert(header::CONTENT_TYPE, JSON);
        Converting { call: &inner, ..*self }.pass(verb, stored.to_string()).await
    }

    /// Converts an object of the requested version to the stored version.
    async fn stored(&self, object: Value) -> Result<Value, ApiStatus> {
        let version = self.webhook.stored.api_version();
        let mut all = self.webhook.convert(&self.state.store, &version, vec![object]).await?;
        Ok(all.pop().unwrap_or_default())
    }

    /// Converts stored objects to the requested version.
    async fn served(&self, objects: Vec<Value>) -> Result<Vec<Value>, ApiStatus> {
        self.webhook.convert(&self.state.store, &self.resource.api_version(), objects).await
    }

    /// Applies a patch to the object in the requested version. Of server-side apply the configuration is
    /// converted, not the object.
    async fn patch(&self, body: &[u8]) -> Result<Response<Body>, ApiStatus> {
        let (call, resource) = (self.call, self.resource);
        let media = media_type(call);
        if media == APPLY {
            let (mut applied, twice) = applied(body)?;
            declared(call, resource, &applied, twice)?;
            fit(call, resource, &mut applied, Vec::new())?;
            let stored = self.stored(applied).await?;
            return self.pass("patch", stored.to_string()).await;
        }
        let change = patch_function(resource, &media, body)?;
        for _ in 0..TRIES {
            let mut get = self.call.inner();
            get.info.subresource.clear();
            let found = Converting { call: &get, ..*self }.pass("get", Bytes::new()).await?;
            let mut object = self.served(vec![json_of(found).await?]).await?.pop().unwrap_or_default();
            let before = str_at(&object, "/metadata/resourceVersion").to_owned();
            change(&mut object)?;
            fit_patched(call, resource, &mut object)?;
            let own = str_at(&object, "/metadata/resourceVersion").to_owned();
            if own.is_empty() {
                set(&mut object, "/metadata/resourceVersion", before.clone().into());
            }
            match self.write("update", object).await {
                // A patch without a resourceVersion applies to the current object.
                Err(status) if status.code() == 409 && (own.is_empty() || own == before) => {}
                answer => return answer,
            }
        }
        Err(modified(resource, &call.info.name))
    }

    /// Converts a response to the requested version and format.
    async fn answer(&self, response: Response<Body>) -> Result<Response<Body>, ApiStatus> {
        let code = response.status();
        let answer = json_of(response).await?;
        let kind = str_at(&answer, "/kind");
        let group = str_at(&answer, "/apiVersion").rsplit_once('/').map_or("", |(group, _)| group);
        let stored = group == self.resource.group;
        if stored && kind == self.resource.kind {
            let object = self.served(vec![answer]).await?.pop().unwrap_or_default();
            let bytes = crate::value::encode(&object).into();
            return object_response(self.state, self.call, self.resource, code, &bytes);
        }
        if stored && kind == self.resource.list_kind {
            let presenter = Presenter::from_call(self.state, self.call, self.resource)?;
            let mut items = self.served(array_at(&answer, "/items").to_vec()).await?;
            if let Some((chosen, _)) = self.chosen {
                items.retain(|object| chosen.accepts(object));
            }
            let items = items.iter().map(crate::value::encode);
            return Ok(crate::respond::json_bytes(
                code,
                Bytes::from(presenter.list(&answer["metadata"], items)),
            ));
        }
        Ok(crate::respond::json_value(code, &answer))
    }

    /// Returns the list of stored objects with its items in the requested version.
    async fn listed(&self, call: &Call) -> Result<Value, ApiStatus> {
        let mut list = json_of(Converting { call, ..*self }.pass("list", Bytes::new()).await?).await?;
        list["items"] = self.served(array_at(&list, "/items").to_vec()).await?.into();
        Ok(list)
    }

    /// Deletes the chosen objects one by one: the stored version cannot choose them.
    async fn delete_chosen(&self, body: Bytes) -> Result<Response<Body>, ApiStatus> {
        let Some((chosen, _)) = self.chosen else { return self.pass("deletecollection", body).await };
        let mut list = self.listed(self.call).await?;
        let mut deleted = Vec::new();
        for object in array_at(&list, "/items").iter().filter(|object| chosen.accepts(object)) {
            let mut inner = self.call.inner();
            inner.info.name = str_at(object, "/metadata/name").to_owned();
            inner.info.namespace = str_at(object, "/metadata/namespace").to_owned();
            match (Converting { call: &inner, ..*self }.pass("delete", body.clone()).await) {
                Ok(_) => deleted.push(object.clone()),
                Err(gone) if gone.code() == 404 => {}
                Err(status) => return Err(status),
            }
        }
        list["items"] = deleted.into();
        list["apiVersion"] = self.resource.api_version().into();
        Ok(crate::respond::json_value(StatusCode::OK, &list))
    }

    /// Returns what a watch by fields of the requested version has shown before its first event.
    async fn shown(&self) -> Result<Option<Shown>, ApiStatus> {
        let Some((chosen, _)) = self.chosen else { return Ok(None) };
        let from = self.call.query.get("resourceVersion");
        if ["", "0"].contains(&from) || self.call.query.truth("sendInitialEvents") {
            return Ok(Some(Shown::new(chosen.clone(), &Value::Null)));
        }
        let mut list = self.call.inner();
        list.query.set("resourceVersionMatch", "Exact");
        for not_for_lists in ["watch", "allowWatchBookmarks", "sendInitialEvents", "timeoutSeconds"] {
            list.query.set(not_for_lists, "");
        }
        Ok(Some(Shown::new(chosen.clone(), &self.listed(&list).await?)))
    }

    /// A watch of stored objects, each converted on its way.
    async fn watch(&self) -> Result<Response<Body>, ApiStatus> {
        let shown = self.shown().await?;
        let presenter = Presenter::from_call(self.state, self.call, self.resource)?;
        let response = self.pass("watch", Bytes::new()).await?;
        let watching = Watching {
            state: self.state.clone(),
            webhook: self.webhook.clone(),
            version: self.resource.api_version(),
            presenter,
            shown,
            first: true,
            failed: false,
        };
        let lines = lines(response.into_body());
        let out = futures::stream::unfold((lines, watching), |(mut lines, mut watching)| async move {
            let line = if watching.failed { None } else { lines.next().await };
            let event = watching.event(&line?).await;
            Some((Bytes::from(event), (lines, watching)))
        });
        let out = out.map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)));
        let mut response = Response::new(StreamBody::new(out).boxed_unsync());
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        Ok(response)
    }
}

/// A watch under way.
struct Watching {
    state: Arc<State>,
    webhook: Arc<Webhook>,
    version: String,
    presenter: Presenter,
    /// With a selector by fields of the version.
    shown: Option<Shown>,
    first: bool,
    failed: bool,
}

impl Watching {
    /// Converts an event to the requested version.
    async fn event(&mut self, line: &[u8]) -> Vec<u8> {
        let mut event: Value = serde_json::from_slice(line).unwrap_or_default();
        let (kind, mut out) = (str_at(&event, "/type").to_owned(), Vec::new());
        match kind.as_str() {
            "ADDED" | "MODIFIED" | "DELETED" => {
                let object = vec![event["object"].take()];
                match self.webhook.convert(&self.state.store, &self.version, object).await {
                    Ok(objects) => {
                        for object in objects {
                            let kind = match &mut self.shown {
                                None => kind.as_str(),
                                Some(shown) => match shown.event(&kind, &object) {
                                    Some(kind) => kind,
                                    None => continue,
                                },
                            };
                            let json = crate::value::encode(&object);
                            self.presenter.event(kind, &json, std::mem::take(&mut self.first), &mut out);
                        }
                    }
                    Err(status) => {
                        self.failed = true;
                        self.presenter.failure(&status, &mut out);
                    }
                }
            }
            "BOOKMARK" => {
                let revision = str_at(&event, "/object/metadata/resourceVersion").parse().unwrap_or(0);
                let initial = event.pointer("/object/metadata/annotations").is_some();
                self.presenter.bookmark(revision, initial, &mut out);
            }
            _ => {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
        out
    }
}

/// The lines of a body, up to its end or failure.
fn lines(body: Body) -> BoxStream<'static, Vec<u8>> {
    let frames = body.into_data_stream().take_while(|frame| ready(frame.is_ok()));
    let frames = frames.filter_map(|frame| ready(frame.ok())).boxed();
    let lines = futures::stream::unfold((frames, Vec::new()), |(mut frames, mut rest)| async move {
        loop {
            if let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let tail = rest.split_off(end + 1);
                let mut line = std::mem::replace(&mut rest, tail);
                line.pop();
                return Some((line, (frames, rest)));
            }
            rest.extend_from_slice(&frames.next().await?);
        }
    });
    lines.boxed()
}

/// The JSON of an answer of this server's own.
async fn json_of(response: Response<Body>) -> Result<Value, ApiStatus> {
    let status: StatusCode = response.status();
    let body = whole(response.into_body(), usize::MAX).await.map_err(ApiStatus::internal)?;
    serde_json::from_slice(&body)
        .map_err(|e| ApiStatus::internal(format!("an answer with status {status}: {e}")))
}
