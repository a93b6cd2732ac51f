//! A small fake API server: objects as JSON, resourceVersions, watches, finalizers, deletion with
//! propagation. (`k8s-testing` has the real one; this one keeps the controllers' tests independent of it and
//! can refuse calls on purpose.)

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use k8s_core::{
    client::{Body, BoxError, Client, body_from_bytes},
    clock::Clock,
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Served resources: group/version, kind, plural, namespaced.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("v1", "Pod", "pods", true),
    ("v1", "Node", "nodes", false),
    ("v1", "Namespace", "namespaces", false),
    ("v1", "Service", "services", true),
    ("v1", "Endpoints", "endpoints", true),
    ("v1", "Event", "events", true),
    ("v1", "ConfigMap", "configmaps", true),
    ("v1", "ServiceAccount", "serviceaccounts", true),
    ("v1", "ReplicationController", "replicationcontrollers", true),
    ("v1", "PersistentVolume", "persistentvolumes", false),
    ("v1", "PersistentVolumeClaim", "persistentvolumeclaims", true),
    ("apps/v1", "Deployment", "deployments", true),
    ("apps/v1", "ReplicaSet", "replicasets", true),
    ("apps/v1", "DaemonSet", "daemonsets", true),
    ("apps/v1", "StatefulSet", "statefulsets", true),
    ("apps/v1", "ControllerRevision", "controllerrevisions", true),
    ("batch/v1", "Job", "jobs", true),
    ("batch/v1", "CronJob", "cronjobs", true),
    ("coordination.k8s.io/v1", "Lease", "leases", true),
    ("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true),
    ("storage.k8s.io/v1", "StorageClass", "storageclasses", false),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", false),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", false),
    ("example.com/v1", "Widget", "widgets", true),
];

type Key = (String, String, String);

#[derive(Default)]
struct State {
    revision: u64,
    /// Objects by plural with group, namespace, name.
    objects: BTreeMap<Key, Value>,
    log: Vec<(u64, &'static str, String, Arc<Value>)>,
}

/// The fake server.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    clock: Clock,
}

struct Refusal(u16, &'static str, String);

struct Target {
    collection: String,
    api_version: String,
    kind: String,
    plural: String,
    namespace: String,
    name: String,
    sub: String,
}

fn parse(path: &str) -> Option<Target> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let api_version = match *parts.first()? {
        "api" => parts.drain(..2).nth(1)?.to_owned(),
        "apis" => parts.drain(..3).skip(1).collect::<Vec<_>>().join("/"),
        _ => return None,
    };
    let mut namespace = String::new();
    if parts.first() == Some(&"namespaces") && parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
        namespace = parts.drain(..2).nth(1)?.to_owned();
    }
    let plural = (*parts.first()?).to_owned();
    let (_, kind, ..) = KINDS.iter().find(|(v, _, p, _)| *v == api_version && *p == plural)?;
    let text = |i: usize| parts.get(i).map(|p| (*p).to_owned()).unwrap_or_default();
    Some(Target {
        collection: format!("{api_version}/{plural}"),
        kind: (*kind).to_owned(),
        api_version,
        plural,
        namespace,
        name: text(1),
        sub: text(2),
    })
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// Strategic merge as far as these tests need it: conditions are merged by type.
fn strategic(target: &mut Value, patch: &Value) {
    let mut patch = patch.clone();
    if let Some(new) = patch["status"]["conditions"].as_array().cloned() {
        let mut all = target["status"]["conditions"].as_array().cloned().unwrap_or_default();
        for condition in new {
            all.retain(|c| c["type"] != condition["type"]);
            all.push(condition);
        }
        patch["status"]["conditions"] = all.into();
    }
    merge(target, &patch);
}

impl Fake {
    pub(crate) fn new(clock: Clock) -> Self {
        Fake { state: Arc::default(), changed: watch::channel(0).0, clock }
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        Client::new(tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { fake.answer(request).await }
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        // As over a network, other tasks run before a response arrives.
        tokio::task::yield_now().await;
        let query: HashMap<String, String> = head
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| {
                (k.to_owned(), percent_encoding::percent_decode_str(v).decode_utf8_lossy().into_owned())
            })
            .collect();
        let path = head.uri.path();
        if let Some(answer) = discovery(path) {
            return Ok(Response::new(body_from_bytes(answer.to_string())));
        }
        let Some(target) = parse(path) else {
            return Ok(refuse(Refusal(404, "NotFound", format!("no path {path}"))));
        };
        if query.contains_key("watch") {
            return Ok(self.watch(&target, &query));
        }
        let content_type = head.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        Ok(match self.handle(&head.method, &target, content_type, &body) {
            Ok(value) => Response::new(body_from_bytes(value.to_string())),
            Err(refusal) => refuse(refusal),
        })
    }

    fn watch(&self, target: &Target, query: &HashMap<String, String>) -> Response<Body> {
        let mut backlog: Vec<Bytes> = Vec::new();
        let frame = |kind: &str, object: &Value| {
            Bytes::from(json!({"type": kind, "object": object}).to_string() + "\n")
        };
        let mut from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let state = self.lock();
        if query.contains_key("sendInitialEvents") {
            for ((collection, ..), object) in &state.objects {
                if *collection == target.collection {
                    backlog.push(frame("ADDED", object));
                }
            }
            from = state.revision;
            backlog.push(frame(
                "BOOKMARK",
                &json!({"metadata": {"resourceVersion": from.max(1).to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}}),
            ));
        }
        drop(state);
        let (fake, collection) = (self.clone(), target.collection.clone());
        let live =
            futures::stream::unfold((from, self.changed.subscribe()), move |(mut from, mut changed)| {
                let (fake, collection) = (fake.clone(), collection.clone());
                async move {
                    loop {
                        changed.borrow_and_update();
                        let new: Vec<(u64, Bytes)> = {
                            let state = fake.lock();
                            let start = state.log.partition_point(|(r, ..)| *r <= from);
                            let events = state.log[start..].iter().filter(|(_, _, c, _)| *c == collection);
                            events
                                .map(|(r, kind, _, o)| {
                                    (
                                        *r,
                                        Bytes::from(json!({"type": kind, "object": &**o}).to_string() + "\n"),
                                    )
                                })
                                .collect()
                        };
                        if let Some((last, _)) = new.last() {
                            from = *last;
                            let frames: Vec<Bytes> = new.into_iter().map(|(_, b)| b).collect();
                            return Some((frames, (from, changed)));
                        }
                        changed.changed().await.ok()?;
                    }
                }
            });
        let frames = futures::stream::iter(vec![backlog]).chain(live).flat_map(futures::stream::iter);
        let body = StreamBody::new(frames.map(|b| Ok::<_, BoxError>(http_body_frame(b))));
        Response::new(BodyExt::boxed_unsync(body))
    }

    fn handle(&self, method: &Method, t: &Target, content_type: &str, body: &[u8]) -> Result<Value, Refusal> {
        let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
        let key = (t.collection.clone(), t.namespace.clone(), t.name.clone());
        let mut state = self.lock();
        let missing = || Refusal(404, "NotFound", format!("{} \"{}\" not found", t.plural, t.name));
        let answer = match (method.as_str(), t.name.is_empty(), t.sub.as_str()) {
            ("GET", true, _) => {
                let items: Vec<Value> = state
                    .objects
                    .iter()
                    .filter(|((c, n, _), _)| {
                        *c == t.collection && (t.namespace.is_empty() || *n == t.namespace)
                    })
                    .map(|(_, o)| o.clone())
                    .collect();
                return Ok(
                    json!({"metadata": {"resourceVersion": state.revision.max(1).to_string()}, "items": items}),
                );
            }
            ("GET", false, _) => return state.objects.get(&key).cloned().ok_or_else(missing),
            ("POST", false, "binding") => {
                let mut pod = state.objects.get(&key).cloned().ok_or_else(missing)?;
                if pod["spec"]["nodeName"].is_string() {
                    return Err(Refusal(409, "Conflict", "already assigned to a node".into()));
                }
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                state.put(key, pod);
                Ok(json!({"kind": "Status", "status": "Success"}))
            }
            ("POST", true, _) => self.create(&mut state, t, body),
            ("PUT", false, sub) => {
                let old = state.objects.get(&key).cloned().ok_or_else(missing)?;
                self.update(&mut state, key, old, body, sub)
            }
            ("PATCH", false, sub) => {
                let old = state.objects.get(&key).cloned().ok_or_else(missing)?;
                let mut new = old.clone();
                if body["metadata"]["uid"].as_str().is_some_and(|u| u != old["metadata"]["uid"]) {
                    return Err(Refusal(409, "Conflict", "uid".into()));
                }
                match content_type {
                    "application/strategic-merge-patch+json" => strategic(&mut new, &body),
                    _ => merge(&mut new, &body),
                }
                if body["metadata"]["resourceVersion"].is_null() {
                    new["metadata"].as_object_mut().unwrap().remove("resourceVersion");
                }
                self.update(&mut state, key, old, new, sub)
            }
            ("DELETE", false, _) => {
                let old = state.objects.get(&key).cloned().ok_or_else(missing)?;
                for (field, path) in [("uid", "uid"), ("resourceVersion", "resourceVersion")] {
                    let wanted = &body["preconditions"][field];
                    if wanted.is_string() && *wanted != old["metadata"][path] {
                        return Err(Refusal(409, "Conflict", format!("precondition {field}")));
                    }
                }
                self.delete(&mut state, key, old, &body);
                Ok(json!({"kind": "Status", "status": "Success"}))
            }
            ("DELETE", true, _) => {
                let all: Vec<(Key, Value)> = state
                    .objects
                    .iter()
                    .filter(|((c, n, _), _)| *c == t.collection && *n == t.namespace)
                    .map(|(k, o)| (k.clone(), o.clone()))
                    .collect();
                for (key, object) in all {
                    self.delete(&mut state, key, object, &body);
                }
                Ok(json!({"kind": "Status", "status": "Success"}))
            }
            other => Err(Refusal(405, "MethodNotAllowed", format!("{other:?}"))),
        };
        let revision = state.revision;
        drop(state);
        self.changed.send_replace(revision);
        answer
    }

    fn create(&self, state: &mut State, t: &Target, mut object: Value) -> Result<Value, Refusal> {
        if !t.namespace.is_empty() {
            object["metadata"]["namespace"] = t.namespace.clone().into();
            let namespace = state.objects.get(&("v1/namespaces".into(), String::new(), t.namespace.clone()));
            if namespace.is_some_and(|n| n["metadata"]["deletionTimestamp"].is_string()) {
                return Err(Refusal(403, "Forbidden", "because it is being terminated".into()));
            }
        }
        if object["metadata"]["name"].is_null() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
            object["metadata"]["name"] = format!("{prefix}{:05}", state.revision + 1).into();
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = (t.collection.clone(), t.namespace.clone(), name.clone());
        if state.objects.contains_key(&key) {
            return Err(Refusal(409, "AlreadyExists", format!("{} \"{name}\" already exists", t.plural)));
        }
        object["apiVersion"] = t.api_version.clone().into();
        object["kind"] = t.kind.clone().into();
        object["metadata"]["uid"] = format!("uid-{}-{name}", state.revision + 1).into();
        object["metadata"]["generation"] = 1.into();
        object["metadata"]["creationTimestamp"] = serde_json::to_value(self.clock.time()).unwrap();
        if t.plural == "namespaces" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        Ok(state.put(key, object))
    }

    fn update(
        &self,
        state: &mut State,
        key: Key,
        old: Value,
        new: Value,
        sub: &str,
    ) -> Result<Value, Refusal> {
        let wanted = &new["metadata"]["resourceVersion"];
        if wanted.is_string() && *wanted != old["metadata"]["resourceVersion"] {
            return Err(Refusal(409, "Conflict", "the object has been modified".into()));
        }
        let mut next = new;
        match sub {
            "status" => {
                let status = next["status"].clone();
                next = old.clone();
                next["status"] = status;
            }
            "finalize" => {
                let finalizers = next["spec"]["finalizers"].clone();
                next = old.clone();
                next["spec"]["finalizers"] = finalizers;
            }
            _ => {
                next["status"] = old["status"].clone();
                if next["spec"] != old["spec"] {
                    next["metadata"]["generation"] =
                        (old["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
                }
            }
        }
        if next["status"].is_null() {
            next.as_object_mut().unwrap().remove("status");
        }
        for field in ["resourceVersion", "uid", "creationTimestamp", "deletionTimestamp"] {
            next["metadata"][field] = old["metadata"][field].clone();
        }
        let metadata = next["metadata"].as_object_mut().unwrap();
        metadata.retain(|_, v| !v.is_null() && *v != json!([]));
        if next == old {
            return Ok(old);
        }
        let going = next["metadata"]["deletionTimestamp"].is_string();
        let held = next["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
            || next["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
            || next["metadata"]["deletionGracePeriodSeconds"].as_u64().is_some_and(|s| s > 0);
        if going && !held { Ok(state.remove(key, next)) } else { Ok(state.put(key, next)) }
    }

    fn delete(&self, state: &mut State, key: Key, mut object: Value, options: &Value) {
        let policy = options["propagationPolicy"].as_str().unwrap_or("Background");
        let metadata = object["metadata"].as_object_mut().unwrap();
        let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([])).as_array_mut().unwrap();
        match policy {
            "Foreground" => finalizers.push("foregroundDeletion".into()),
            "Orphan" => finalizers.push("orphan".into()),
            _ => {}
        }
        finalizers.dedup();
        let mut held = !finalizers.is_empty();
        if !held {
            metadata.remove("finalizers");
        }
        let grace = options["gracePeriodSeconds"].as_u64();
        // A running pod on a node is ended by the kubelet.
        let runs = key.0 == "v1/pods"
            && object["spec"]["nodeName"].is_string()
            && !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if runs {
            let seconds = grace.unwrap_or(30);
            object["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
            held |= seconds > 0;
        }
        held |= key.0 == "v1/namespaces";
        if !held {
            state.remove(key, object);
            return;
        }
        if object["metadata"]["deletionTimestamp"].is_null() || grace == Some(0) {
            object["metadata"]["deletionTimestamp"] = serde_json::to_value(self.clock.time()).unwrap();
        }
        // A second deletion changes nothing.
        if state.objects.get(&key) != Some(&object) {
            state.put(key, object);
        }
    }
}

fn http_body_frame(bytes: Bytes) -> http_body::Frame<Bytes> {
    http_body::Frame::data(bytes)
}

impl State {
    fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let kind = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.log.push((self.revision, kind, key.0.clone(), Arc::new(object.clone())));
        self.objects.insert(key, object.clone());
        object
    }

    fn remove(&mut self, key: Key, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.log.push((self.revision, "DELETED", key.0.clone(), Arc::new(object.clone())));
        self.objects.remove(&key);
        object
    }
}

fn discovery(path: &str) -> Option<Value> {
    let rows = |version: &str| -> Vec<Value> {
        KINDS
            .iter()
            .filter(|(v, ..)| *v == version)
            .map(|(_, kind, plural, namespaced)| {
                json!({"name": plural, "singularName": "", "kind": kind, "namespaced": namespaced,
                    "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
            })
            .collect()
    };
    match path {
        "/api" => Some(json!({"versions": ["v1"], "serverAddressByClientCIDRs": []})),
        "/apis" => {
            let mut versions: Vec<&str> =
                KINDS.iter().map(|(v, ..)| *v).filter(|v| v.contains('/')).collect();
            versions.dedup();
            let group = |v: &&str| {
                let (name, version) = v.split_once('/').unwrap();
                let version = json!({"groupVersion": v, "version": version});
                json!({"name": name, "versions": [version], "preferredVersion": version})
            };
            Some(json!({"groups": versions.iter().map(group).collect::<Vec<_>>()}))
        }
        _ => {
            let version = path.strip_prefix("/api/").or_else(|| path.strip_prefix("/apis/"))?;
            let known = KINDS.iter().any(|(v, ..)| *v == version);
            known.then(|| json!({"groupVersion": version, "resources": rows(version)}))
        }
    }
}

fn refuse(Refusal(code, reason, message): Refusal) -> Response<Body> {
    let status =
        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
    Response::builder().status(code).body(body_from_bytes(status.to_string())).unwrap()
}
