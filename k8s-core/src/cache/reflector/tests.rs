//! Reflectors against other kinds of servers than ours, and against objects that do not match their type.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures::{FutureExt, future::BoxFuture, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::*;
use crate::client::{Body, BoxError, Client, Transport, body_from_bytes};

/// Status and body of a response; true if the watch stays open afterwards.
struct Answer(u16, String, bool);

type Script = dyn Fn(&str, usize) -> Answer + Send + Sync;

/// A fake server with scripted responses that records its requests.
#[derive(Clone)]
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    count: Arc<AtomicUsize>,
    script: Arc<Script>,
}

impl Fake {
    fn new(script: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        Fake { asked: Arc::default(), count: Arc::default(), script: Arc::new(script) }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn reflect(&self) -> (Cache<Service>, Reflector) {
        let cache = Cache::new();
        let reflector = reflect(Client::new(self.clone()).all(), ListParams::default(), cache.clone());
        (cache, reflector)
    }
}

impl Transport for Fake {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let Answer(code, text, open) = (self.script)(&query, self.count.fetch_add(1, Ordering::Relaxed));
        self.asked.lock().unwrap().push(query);
        let body = if open {
            let begin = stream::iter([Ok::<_, BoxError>(Frame::data(text.into()))]);
            StreamBody::new(begin.chain(stream::pending())).boxed_unsync()
        } else {
            body_from_bytes(text)
        };
        let mut response = Response::new(body);
        *response.status_mut() = code.try_into().unwrap();
        async { Ok(response) }.boxed()
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

fn refusal(code: u16, reason: &str) -> Answer {
    Answer(code, status(code, reason).to_string(), false)
}

fn service(name: &str, revision: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": revision.to_string()}})
}

fn list(items: &[Value], revision: u64, next: &str) -> Answer {
    let metadata = json!({"resourceVersion": revision.to_string(), "continue": next});
    Answer(200, json!({"metadata": metadata, "items": items}).to_string(), false)
}

fn events(events: &[(&str, Value)]) -> String {
    events.iter().map(|(kind, object)| json!({"type": kind, "object": object}).to_string() + "\n").collect()
}

fn complete(revision: u64) -> (&'static str, Value) {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    ("BOOKMARK", json!({"metadata": {"resourceVersion": revision.to_string(), "annotations": annotations}}))
}

fn names(cache: &Cache<Service>) -> Vec<String> {
    cache.list().iter().map(|service| service.name().to_owned()).collect()
}

/// A server that lists in pages, whose second page is expired.
fn old_server(query: &str, initial: fn() -> Answer) -> Answer {
    if query.contains("sendInitialEvents") {
        initial()
    } else if query.contains("watch=1") {
        assert!(query.contains("resourceVersion=7") && query.contains("allowWatchBookmarks"), "{query}");
        Answer(200, events(&[("ADDED", service("d", 8)), ("BOOKMARK", service("", 9))]), true)
    } else if query.contains("continue=") {
        refusal(410, "Expired")
    } else if query.contains("limit=") {
        list(&[service("a", 1), service("z", 1)], 6, "next")
    } else {
        list(&[service("a", 1), service("b", 2), service("c", 3)], 7, "")
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_send_the_initial_state_is_listed() {
    let refusals: [fn() -> Answer; 4] = [
        || refusal(422, "Invalid"),
        || refusal(400, "BadRequest"),
        || Answer(200, events(&[("ERROR", status(500, "InternalError"))]), false),
        // An etcd without progress requests: the end of the initial state is never sent.
        || Answer(200, events(&[("ADDED", service("a", 1)), ("ADDED", service("gone", 1))]), true),
    ];
    for initial in refusals {
        let fake = Fake::new(move |query, _| old_server(query, initial));
        let begun = tokio::time::Instant::now();
        let (cache, reflector) = fake.reflect();
        cache.reached(9).await;
        assert_eq!(names(&cache), ["a", "b", "c", "d"]);
        let waited = begun.elapsed();
        assert!(waited.is_zero() || waited == STALLED, "it is no failure: {waited:?}");
        let asked = fake.asked();
        assert_eq!(asked.iter().filter(|q| q.contains("sendInitialEvents")).count(), 1, "{asked:?}");
        drop(reflector);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lacks_a_kind_is_asked_slowly() {
    for (code, reason) in [(404, "NotFound"), (403, "Forbidden")] {
        let fake = Fake::new(move |_, _| refusal(code, reason));
        let (cache, _reflector) = fake.reflect();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let asked = fake.asked().len();
        assert!((20..80).contains(&asked), "{asked} times in an hour");
        assert!(!cache.is_synced());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_forgets_at_once_is_not_asked_in_a_loop() {
    let fake = Fake::new(|_, _| refusal(410, "Expired"));
    let (_cache, _reflector) = fake.reflect();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(fake.asked().len() < 20, "{}", fake.asked().len());
}

#[test]
fn the_same_trouble_is_told_once_if_it_lasts() {
    let mut trouble = Trouble::default();
    let error = Error::from(crate::status::ApiStatus::no_resource());
    for _ in 0..PASSING {
        trouble.tell("Service", &error);
        assert!(trouble.told.is_none(), "it may pass");
    }
    trouble.tell("Service", &error);
    let told = trouble.told.clone();
    trouble.tell("Service", &error);
    assert!(told.is_some() && trouble.told == told);
    trouble.over("Service");
    trouble.tell("Service", &error);
    assert!(trouble.told.is_none(), "it is new");
}

/// A Service with a condition without time, as in upstream's conformance tests.
fn without_time(name: &str, revision: u64) -> Value {
    let mut service = service(name, revision);
    service["status"] = json!({"conditions": [{"type": "Set", "status": "True"}], "loadBalancer": {}});
    service
}

/// An object that cannot be a Service.
fn nonsense(name: &str, revision: u64) -> Value {
    let mut service = service(name, revision);
    service["spec"] = json!("nonsense");
    service
}

#[tokio::test(start_paused = true)]
async fn one_bad_object_stops_nothing() {
    let script = |query: &str, n| match n {
        0 => {
            assert!(query.contains("sendInitialEvents"));
            let initial = [
                ("ADDED", service("a", 1)),
                ("ADDED", nonsense("bad", 2)),
                ("ADDED", without_time("odd", 3)),
                complete(3),
            ];
            Answer(200, events(&initial), false)
        }
        1 => {
            let mut other = nonsense("odd", 6);
            other["metadata"]["uid"] = "another".into();
            let later = [("MODIFIED", nonsense("a", 4)), ("ADDED", service("b", 5)), ("MODIFIED", other)];
            Answer(200, events(&later), false)
        }
        2 => {
            assert!(query.contains("resourceVersion=6"), "{query}");
            Answer(200, events(&[("DELETED", nonsense("b", 7)), ("ERROR", status(410, "Expired"))]), false)
        }
        3 => refusal(422, "Invalid"),
        4 => list(&[nonsense("a", 4), nonsense("bad", 2), without_time("odd", 8), Value::Null], 8, ""),
        _ => Answer(200, events(&[("ADDED", service("last", 10))]), true),
    };
    let before = crate::client::unreadable_objects();
    let (cache, _reflector) = Fake::new(script).reflect();
    cache.reached(3).await;
    assert_eq!(names(&cache), ["a", "odd"]);
    let odd = cache.get("n", "odd").unwrap();
    let time = &odd.status.as_ref().unwrap().conditions.as_ref().unwrap()[0].last_transition_time;
    assert_eq!(time.0.to_string(), "0001-01-01T00:00:00Z");
    cache.reached(6).await;
    assert_eq!(names(&cache), ["a", "b"], "an older state stays, an earlier object of the name goes");
    cache.reached(10).await;
    assert_eq!(names(&cache), ["a", "last", "odd"]);
    assert_eq!(cache.get("n", "a").unwrap().revision(), 1);
    let count = |all: Vec<((String, String, String), u64)>| {
        all.iter().find(|((_, _, kind), _)| kind == "Service").map_or(0, |(_, count)| *count)
    };
    assert!(count(crate::client::unreadable_objects()) >= count(before) + 6);
}
