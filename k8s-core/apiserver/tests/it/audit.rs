//! Audit events of requests, as a policy asks for them.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use async_trait::async_trait;
use http_body_util::BodyExt;
use k8s_apiserver::{
    ApiServer, User,
    admission::{Admission, Admit},
    audit::{Event, Log, LogSettings, Mode, Policy, Sink},
    auth::Authenticator,
};
use k8s_core::{client::body_from_bytes, status::ApiStatus};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::{Answer, ask};

/// Events of the requests of a test; those of the server itself are left out.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Value>>>);

impl Sink for Seen {
    fn name(&self) -> &'static str {
        "seen"
    }
    fn record(&self, event: &Event) -> io::Result<()> {
        if event.user.username != "system:apiserver" {
            self.0.lock().unwrap().push(serde_json::to_value(event)?);
        }
        Ok(())
    }
}

impl Seen {
    fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Panics at an object that asks for it.
struct Trap;
#[async_trait]
impl Admit for Trap {
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        assert!(admission.object["metadata"]["name"] != "trap", "it is a trap");
        Ok(())
    }
}

async fn server(policy: &str, sink: impl Sink) -> ApiServer {
    let policy = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{policy}");
    let admin = User::new("admin", &["system:masters"]);
    let guest = User::new("guest", &[]);
    let users = HashMap::from([("admin".to_owned(), admin), ("guest".to_owned(), guest)]);
    ApiServer::builder(Store::memory())
        .authenticator(Authenticator::new(users, false))
        .audit_policy(Policy::parse(&policy).unwrap())
        .audit_sink(sink)
        .admit(Trap)
        .build()
        .await
        .unwrap()
}

fn request(token: &str, method: &str, path: &str, body: &Value) -> http::Request<Vec<u8>> {
    http::Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .header("user-agent", "test/1")
        .header("x-forwarded-for", "192.0.2.1, 192.0.2.2")
        .header("audit-id", "number-1")
        .header("content-type", "application/json")
        .body(if body.is_null() { Vec::new() } else { body.to_string().into_bytes() })
        .unwrap()
}

async fn call(server: &ApiServer, token: &str, method: &str, path: &str, body: Value) -> Answer {
    ask(server, request(token, method, path, &body)).await
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "canary"}})
}

#[tokio::test]
async fn metadata_events_tell_everything_but_bodies() {
    let seen = Seen::default();
    let server = server("rules: [{level: Metadata}]", seen.clone()).await;
    assert_eq!(call(&server, "admin", "POST", MAPS, map("a")).await.status, 201);
    let events = seen.take();
    let [received, complete] = events.as_slice() else { panic!("{events:#?}") };
    assert_eq!(
        (&received["stage"], &complete["stage"]),
        (&json!("RequestReceived"), &json!("ResponseComplete"))
    );
    assert_eq!(received["requestReceivedTimestamp"], received["stageTimestamp"]);
    let mut rest = complete.clone();
    for field in ["requestReceivedTimestamp", "stageTimestamp"] {
        let time = rest.as_object_mut().unwrap().remove(field).unwrap();
        let time = time.as_str().unwrap();
        assert_eq!((time.len(), time.ends_with('Z')), ("2026-11-28T15:00:00.000000Z".len(), true), "{time}");
    }
    assert_eq!(
        rest,
        json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "number-1",
            "stage": "ResponseComplete", "requestURI": MAPS, "verb": "create",
            "user": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
            "sourceIPs": ["192.0.2.1", "192.0.2.2"], "userAgent": "test/1",
            "objectRef": {
                "resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1",
            },
            "responseStatus": {"metadata": {}, "code": 201},
            "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""},
        })
    );

    let read = call(&server, "admin", "GET", &format!("{MAPS}/a"), Value::Null).await.json();
    call(&server, "admin", "PUT", &format!("{MAPS}/a"), read.clone()).await;
    let events = seen.take();
    let object = &events.last().unwrap()["objectRef"];
    assert_eq!(object["uid"], read["metadata"]["uid"]);
    assert_eq!(object["resourceVersion"], read["metadata"]["resourceVersion"]);
    assert!(!format!("{events:?}").contains("canary"), "{events:?}");
}

#[tokio::test]
async fn levels_decide_about_bodies_and_managed_fields() {
    let seen = Seen::default();
    let policy = "
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, resources: [{resources: [events]}]}
- {level: Metadata, resources: [{resources: [secrets]}]}
- {level: Request, verbs: [update, patch], omitManagedFields: false}
- {level: RequestResponse}
";
    let server = server(policy, seen.clone()).await;
    call(&server, "admin", "POST", MAPS, map("a")).await;
    let created = seen.take().remove(0);
    assert_eq!(created["requestObject"], map("a"));
    assert_eq!(created["responseObject"]["data"]["a"], "canary");
    assert!(created["responseObject"]["metadata"]["uid"].is_string());
    assert!(created["responseObject"]["metadata"].get("managedFields").is_none(), "{created}");

    let read = call(&server, "admin", "GET", &format!("{MAPS}/a"), Value::Null).await.json();
    assert!(read["metadata"]["managedFields"].is_array());
    seen.take();
    call(&server, "admin", "PUT", &format!("{MAPS}/a"), read).await;
    let updated = seen.take().remove(0);
    assert!(updated["requestObject"]["metadata"]["managedFields"].is_array(), "{updated}");
    assert!(updated.get("responseObject").is_none());

    let listed = call(&server, "admin", "GET", MAPS, Value::Null).await.json();
    let list = seen.take().remove(0);
    assert_eq!(list["responseObject"]["kind"], "ConfigMapList");
    assert_eq!(
        list["responseObject"]["items"].as_array().unwrap().len(),
        listed["items"].as_array().unwrap().len()
    );
    assert!(!list["responseObject"].to_string().contains("managedFields"));

    let secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "canary"}});
    call(&server, "admin", "POST", "/api/v1/namespaces/default/secrets", secret).await;
    let events = seen.take();
    assert_eq!(events.len(), 1);
    assert!(!events[0].to_string().contains("canary"), "{events:?}");
    call(&server, "admin", "GET", "/api/v1/events", Value::Null).await;
    assert_eq!(seen.take(), Vec::<Value>::new());

    let deleted = call(&server, "admin", "DELETE", &format!("{MAPS}/a"), Value::Null).await.json();
    let event = seen.take().remove(0);
    assert_eq!(event["responseStatus"]["status"], "Success");
    assert_eq!(event["responseObject"]["details"], deleted["details"]);
}

#[tokio::test]
async fn refusals_impersonation_and_failed_authentication_are_recorded() {
    let seen = Seen::default();
    let server = server("omitStages: [RequestReceived]\nrules: [{level: Metadata}]", seen.clone()).await;
    assert_eq!(call(&server, "guest", "GET", MAPS, Value::Null).await.status, 403);
    let refused = seen.take().remove(0);
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    assert_eq!(refused["responseStatus"]["code"], 403);

    let mut request = request("admin", "GET", MAPS, &Value::Null);
    request.headers_mut().insert("impersonate-user", "guest".parse().unwrap());
    assert_eq!(ask(&server, request).await.status, 403);
    let event = seen.take().remove(0);
    assert_eq!(event["user"]["username"], "admin");
    assert_eq!(event["impersonatedUser"]["username"], "guest");

    assert_eq!(call(&server, "wrong", "GET", MAPS, Value::Null).await.status, 401);
    let events = seen.take();
    let [event] = events.as_slice() else { panic!("{events:#?}") };
    assert_eq!((&event["stage"], &event["user"]), (&json!("ResponseStarted"), &json!({})));
    assert_eq!(event["responseStatus"]["message"], "Authentication failed, attempted: bearer");
    assert!(!event.to_string().contains("wrong"), "{event}");
}

#[tokio::test]
async fn a_watch_starts_and_completes() {
    let seen = Seen::default();
    let server = server("rules: [{level: RequestResponse}]", seen.clone()).await;
    let stages = || seen.0.lock().unwrap().iter().map(|e| e["stage"].clone()).collect::<Vec<_>>();
    let path = format!("{MAPS}?watch=true&timeoutSeconds=60");
    let watch = server.handle(request("admin", "GET", &path, &Value::Null).map(body_from_bytes)).await;
    assert_eq!(stages(), ["RequestReceived", "ResponseStarted"]);
    let mut body = watch.into_body();
    call(&server, "admin", "POST", MAPS, map("a")).await;
    assert!(body.frame().await.is_some());
    drop(body);
    let events = seen.take();
    let last = events.last().unwrap();
    assert_eq!((&last["stage"], &last["verb"]), (&json!("ResponseComplete"), &json!("watch")));
    assert_eq!(last["requestURI"], path.as_str());
    assert!(last.get("responseObject").is_none(), "events of a watch are not kept");
}

#[tokio::test]
async fn a_panic_is_recorded() {
    let seen = Seen::default();
    let server = server("omitStages: [RequestReceived]\nrules: [{level: Request}]", seen.clone()).await;
    let answer = tokio::spawn(async move { call(&server, "admin", "POST", MAPS, map("trap")).await.status });
    assert!(answer.await.is_err_and(|error| error.is_panic()));
    let events = seen.take();
    let [event] = events.as_slice() else { panic!("{events:#?}") };
    assert_eq!(event["stage"], "Panic");
    assert_eq!(event["responseStatus"]["message"], "APIServer panic'd: it is a trap");
    assert_eq!(event["requestObject"]["metadata"]["name"], "trap");
}

/// A log on a disk that is full.
fn full(mode: Mode) -> Log {
    let mut settings = LogSettings::new("/dev/full");
    settings.mode = mode;
    Log::open(&settings).unwrap()
}

#[tokio::test]
async fn a_full_disk_refuses_requests_only_where_asked() {
    for (mode, want) in [(Mode::Batch, 201), (Mode::Blocking, 201), (Mode::BlockingStrict, 500)] {
        let policy = "rules: [{level: None, users: ['system:apiserver']}, {level: Metadata}]";
        let server = server(policy, full(mode)).await;
        let answer = call(&server, "admin", "POST", MAPS, map("a")).await;
        assert_eq!(answer.status.as_u16(), want, "{mode:?}");
        if want == 500 {
            let message = "Internal error occurred: failed to store audit event";
            assert_eq!(answer.json()["message"], message);
        }
        let begun = Instant::now();
        loop {
            let mut text = String::new();
            k8s_metrics::encode(&mut text, server.metrics());
            let least = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
                line.trim().parse::<f64>().unwrap() >= 1.0
            };
            if least("apiserver_audit_error_total{plugin=\"log\"}") && least("apiserver_audit_event_total") {
                assert_eq!(least("apiserver_audit_requests_rejected_total"), want == 500, "{text}");
                break;
            }
            assert!(begun.elapsed().as_secs() < 20, "{text}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn the_log_has_a_line_for_each_event() {
    let directory = tempfile::tempdir().unwrap();
    for (format, mode) in [("json", Mode::Blocking), ("legacy", Mode::Batch)] {
        let mut settings = LogSettings::new(directory.path().join(format));
        settings.mode = mode;
        if format == "legacy" {
            settings.format = k8s_apiserver::audit::Format::Legacy;
        }
        let policy = "omitStages: [RequestReceived]\nrules: [{level: Metadata, users: [admin]}]";
        let server = server(policy, Log::open(&settings).unwrap()).await;
        call(&server, "admin", "GET", &format!("{MAPS}?limit=5"), Value::Null).await;
        let begun = Instant::now();
        let text = loop {
            let text = std::fs::read_to_string(&settings.path).unwrap();
            if text.ends_with('\n') {
                break text;
            }
            assert!(begun.elapsed().as_secs() < 20, "no line");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        assert_eq!(text.lines().count(), 1, "{text}");
        if format == "json" {
            let event: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(event["verb"], "list");
        } else {
            let want = format!(
                r#" AUDIT: id="number-1" stage="ResponseComplete" ip="192.0.2.1" method="list" user="admin" groups="\"system:masters\",\"system:authenticated\"" as="<self>" asgroups="<lookup>" user-agent="test/1" namespace="default" uri="{MAPS}?limit=5" response="200""#
            );
            assert!(text.trim_end().ends_with(&want), "{text}\n{want}");
        }
    }
}
