//! A fake API server in memory: the behaviour that the kubelet relies on, without validation.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use k8s_core::client::{Body, Client, body_from_bytes};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

#[derive(Clone, Debug)]
struct Change {
    path: String,
    kind: &'static str,
    object: Value,
}

struct Inner {
    objects: BTreeMap<String, Value>,
    revision: u64,
    changes: broadcast::Sender<Change>,
    /// Number of status writes to answer with an error.
    fail_status: usize,
    /// Every pod status written, in order.
    statuses: Vec<Value>,
    /// Allowed accesses: user, verb, subresource.
    allowed: Vec<[String; 3]>,
    reviews: usize,
}

#[derive(Clone)]
pub struct FakeApi(Arc<Mutex<Inner>>);

fn query(uri: &http::Uri) -> BTreeMap<String, String> {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|p| p.split_once('='));
    pairs
        .map(|(k, v)| {
            (k.to_owned(), percent_encoding::percent_decode_str(v).decode_utf8_lossy().into_owned())
        })
        .collect()
}

/// Returns `(collection, name, subresource)`; the collection includes the namespace.
fn split(path: &str) -> (String, String, String) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let start = if parts[0] == "api" { 2 } else { 3 };
    let namespaced = parts.get(start) == Some(&"namespaces") && parts.len() > start + 2;
    let plural = if namespaced { start + 2 } else { start };
    let part = |n: usize| parts.get(n).copied().unwrap_or_default().to_owned();
    (parts[..=plural].join("/"), part(plural + 1), part(plural + 2))
}

fn plural(collection: &str) -> &str {
    collection.rsplit('/').next().unwrap()
}

/// Returns `true` if an object's path is in a collection (of one namespace or of all).
fn within(object: &str, collection: &str) -> bool {
    let (own, ..) = split(&format!("/{object}"));
    if collection.contains("/namespaces/") { own == collection } else { plural(&own) == plural(collection) }
}

fn selected(object: &Value, selector: Option<&String>) -> bool {
    let Some((path, want)) = selector.and_then(|s| s.split_once('=')) else { return true };
    let pointer = format!("/{}", path.replace('.', "/"));
    object.pointer(&pointer).and_then(Value::as_str) == Some(want)
}

fn answer(code: StatusCode, value: &Value) -> Response<Body> {
    Response::builder().status(code).body(body_from_bytes(value.to_string())).unwrap()
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    let value =
        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason});
    answer(StatusCode::from_u16(code).unwrap(), &value)
}

fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(from)) = (&mut *target, patch) else {
        *target = patch.clone();
        return;
    };
    for (key, value) in from {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl Inner {
    fn put(&mut self, path: &str, mut object: Value, kind: &'static str) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if kind == "DELETED" {
            self.objects.remove(path);
        } else {
            self.objects.insert(path.to_owned(), object.clone());
        }
        let _ = self.changes.send(Change { path: path.to_owned(), kind, object: object.clone() });
        object
    }
}

impl FakeApi {
    pub fn new() -> Self {
        FakeApi(Arc::new(Mutex::new(Inner {
            objects: BTreeMap::new(),
            revision: 10,
            changes: broadcast::channel(10_000).0,
            fail_status: 0,
            statuses: Vec::new(),
            allowed: Vec::new(),
            reviews: 0,
        })))
    }

    /// Allows a user a verb on a subresource of nodes.
    pub fn allow(&self, user: &str, verb: &str, subresource: &str) {
        let rule = [user, verb, subresource].map(str::to_owned);
        self.0.lock().unwrap().allowed.push(rule);
    }

    /// The number of SubjectAccessReviews so far.
    pub fn reviews(&self) -> usize {
        self.0.lock().unwrap().reviews
    }

    pub fn client(&self) -> Client {
        Client::new(self.clone())
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    pub fn fail_status_writes(&self, times: usize) {
        self.0.lock().unwrap().fail_status = times;
    }

    /// Deletes an object at once, without a grace period.
    pub fn vanish(&self, path: &str) {
        let mut inner = self.0.lock().unwrap();
        let object = inner.objects.get(path).cloned().unwrap();
        inner.put(path, object, "DELETED");
    }

    pub fn list(&self, plural_name: &str) -> Vec<Value> {
        let inner = self.0.lock().unwrap();
        let wanted = |path: &&String| plural(&split(&format!("/{path}")).0) == plural_name;
        inner.objects.keys().filter(wanted).map(|p| inner.objects[p].clone()).collect()
    }

    /// Returns all pod statuses written.
    pub fn statuses(&self) -> Vec<Value> {
        self.0.lock().unwrap().statuses.clone()
    }

    fn watch(
        &self,
        collection: String,
        selector: Option<String>,
        initial: bool,
        since: u64,
    ) -> Response<Body> {
        let inner = self.0.lock().unwrap();
        let mut changes = inner.changes.subscribe();
        let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
        let line = |kind: &str, object: &Value| {
            Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
        };
        if initial || since == 0 {
            for (path, object) in &inner.objects {
                if within(path, &collection) && selected(object, selector.as_ref()) {
                    let _ = sender.send(line("ADDED", object));
                }
            }
        }
        if initial {
            let mark = json!({"metadata": {"resourceVersion": inner.revision.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"}}});
            let _ = sender.send(line("BOOKMARK", &mark));
        }
        drop(inner);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    change = changes.recv() => {
                        let Ok(change) = change else { break };
                        if within(&change.path, &collection) && selected(&change.object, selector.as_ref())
                            && sender.send(line(change.kind, &change.object)).is_err() { break; }
                    }
                    () = sender.closed() => break,
                }
            }
        });
        let frames = futures::stream::unfold(receiver, |mut receiver| async move {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, k8s_core::client::BoxError>(http_body::Frame::data(bytes)), receiver))
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn exchange(&self, method: &Method, uri: &http::Uri, body: &[u8]) -> Response<Body> {
        let (collection, name, sub) = split(uri.path());
        let query = query(uri);
        let selector = query.get("fieldSelector").cloned();
        if method == Method::GET && query.contains_key("watch") {
            let initial = query.contains_key("sendInitialEvents");
            let since = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            return self.watch(collection, selector, initial, since);
        }
        let path = format!("{collection}/{name}");
        let sent: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let mut inner = self.0.lock().unwrap();
        match (method.as_str(), name.as_str(), sub.as_str()) {
            ("POST", _, "token") => {
                let mut reply = sent;
                reply["status"] = json!({"token": "a-token", "expirationTimestamp": "2100-01-01T00:00:00Z"});
                answer(StatusCode::CREATED, &reply)
            }
            ("POST", "", "") if plural(&collection) == "subjectaccessreviews" => {
                let (mut review, text) = (sent, |v: &Value| v.as_str().unwrap_or_default().to_owned());
                let attributes = &review["spec"]["resourceAttributes"];
                assert_eq!((&attributes["resource"], &attributes["name"]), (&json!("nodes"), &json!("n1")));
                let asked =
                    [&review["spec"]["user"], &attributes["verb"], &attributes["subresource"]].map(text);
                inner.reviews += 1;
                review["status"] = json!({"allowed": inner.allowed.contains(&asked)});
                answer(StatusCode::CREATED, &review)
            }
            ("POST", "", "") => {
                let mut object = sent;
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                let path = format!("{collection}/{name}");
                if inner.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists");
                }
                let uid = format!("uid-{}", inner.revision);
                object["metadata"]["uid"] = json!(uid);
                if let Some((_, rest)) = collection.split_once("/namespaces/") {
                    object["metadata"]["namespace"] = json!(rest.split('/').next().unwrap());
                }
                answer(StatusCode::CREATED, &inner.put(&path, object, "ADDED"))
            }
            ("GET", "", "") => {
                let items: Vec<&Value> = inner
                    .objects
                    .iter()
                    .filter(|(path, object)| within(path, &collection) && selected(object, selector.as_ref()))
                    .map(|(_, object)| object)
                    .collect();
                let version = inner.revision.to_string();
                answer(StatusCode::OK, &json!({"metadata": {"resourceVersion": version}, "items": items}))
            }
            _ => {
                let Some(have) = inner.objects.get(&path).cloned() else { return failure(404, "NotFound") };
                match method.as_str() {
                    "GET" => answer(StatusCode::OK, &have),
                    "PUT" => {
                        if sub == "status" && inner.fail_status > 0 {
                            inner.fail_status -= 1;
                            return failure(500, "InternalError");
                        }
                        let version = &sent["metadata"]["resourceVersion"];
                        if !version.is_null() && *version != have["metadata"]["resourceVersion"] {
                            return failure(409, "Conflict");
                        }
                        let mut object = if sub == "status" { have } else { sent.clone() };
                        if sub == "status" {
                            object["status"] = sent["status"].clone();
                            if plural(&collection) == "pods" {
                                inner.statuses.push(object.clone());
                            }
                        }
                        answer(StatusCode::OK, &inner.put(&path, object, "MODIFIED"))
                    }
                    "PATCH" => {
                        let mut object = have;
                        merge(&mut object, &sent);
                        answer(StatusCode::OK, &inner.put(&path, object, "MODIFIED"))
                    }
                    "DELETE" => {
                        let want = &sent["preconditions"]["uid"];
                        if !want.is_null() && *want != have["metadata"]["uid"] {
                            return failure(409, "Conflict");
                        }
                        let grace = sent["gracePeriodSeconds"].as_i64();
                        let grace =
                            grace.or(have["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
                        if plural(&collection) == "pods" && grace > 0 {
                            let mut object = have;
                            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                            return answer(StatusCode::OK, &inner.put(&path, object, "MODIFIED"));
                        }
                        answer(StatusCode::OK, &inner.put(&path, have, "DELETED"))
                    }
                    other => panic!("{other} {path}"),
                }
            }
        }
    }
}

impl tower::Service<Request<Body>> for FakeApi {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Ok(api.exchange(&parts.method, &parts.uri, &body))
        }
        .boxed()
    }
}
