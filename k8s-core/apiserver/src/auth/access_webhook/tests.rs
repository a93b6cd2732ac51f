use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_core::client::{Body, BoxError, Transport, body_from_bytes};

use super::*;

/// A webhook in this process: answers each review by a function and counts them.
#[derive(Clone)]
struct Server {
    answer: fn(&Value) -> (StatusCode, Value),
    asked: Arc<AtomicUsize>,
}

impl Transport for Server {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let this = self.clone();
        async move {
            this.asked.fetch_add(1, Ordering::SeqCst);
            assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/authorize"));
            let body = request.into_body().collect().await?.to_bytes();
            let (code, answer) = (this.answer)(&serde_json::from_slice(&body)?);
            let body = body_from_bytes(answer.to_string().into_bytes());
            Ok(Response::builder().status(code).header("content-type", "application/json").body(body)?)
        }
        .boxed()
    }
}

fn settings() -> WebhookSettings {
    WebhookSettings { version: ReviewVersion::V1, ..WebhookSettings::default() }
}

fn webhook(
    settings: WebhookSettings,
    answer: fn(&Value) -> (StatusCode, Value),
) -> (WebhookAuthorizer, Server) {
    let server = Server { answer, asked: Arc::default() };
    (WebhookAuthorizer::new(Client::new(server.clone()), "/authorize", settings).unwrap(), server)
}

/// Allows bob, denies eve, has no opinion about others.
fn by_name(review: &Value) -> (StatusCode, Value) {
    let status = match str_at(review, "/spec/user") {
        "bob" => json!({"allowed": true, "reason": "it is bob"}),
        "eve" => json!({"allowed": false, "denied": true, "reason": "it is eve"}),
        "both" => json!({"allowed": true, "denied": true}),
        _ => json!({"allowed": false, "reason": "who?"}),
    };
    (StatusCode::OK, json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "status": status}))
}

fn pods() -> Attributes<'static> {
    Attributes { verb: "list", resource: "pods", version: "v1", namespace: "ns", ..Attributes::default() }
}

fn deny() -> Decision {
    Decision::Deny(String::new())
}

#[tokio::test]
async fn answers_decide_and_are_kept() {
    let (webhook, server) = webhook(settings(), by_name);
    for _ in 0..2 {
        for (name, decision, reason, error) in [
            ("bob", Decision::Allow, "it is bob", false),
            ("eve", deny(), "it is eve", false),
            ("both", deny(), "", true),
            ("joe", Decision::NoOpinion, "who?", false),
        ] {
            let answer = webhook.decide(&User::new(name, &[]), &pods()).await;
            assert_eq!((answer.decision, answer.reason.as_str()), (decision, reason), "{name}");
            assert_eq!(answer.error.is_some(), error, "{name}");
        }
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 4, "the second round is answered from memory");
    // Another group is another user.
    webhook.decide(&User::new("bob", &["ops"]), &pods()).await;
    let long = "x".repeat(MOST_KEPT);
    for _ in 0..2 {
        webhook.decide(&User::new("bob", &[]), &Attributes { name: &long, ..pods() }).await;
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 7, "what is long is not kept");
}

#[tokio::test]
async fn nothing_is_kept_without_a_ttl() {
    let forgetful =
        WebhookSettings { authorized_ttl: Duration::ZERO, unauthorized_ttl: Duration::ZERO, ..settings() };
    let (webhook, server) = webhook(forgetful, by_name);
    for name in ["bob", "bob", "joe", "joe"] {
        webhook.decide(&User::new(name, &[]), &pods()).await;
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn reviews_have_the_fields_of_their_version() {
    let fields = "spec.nodeName=a,status.phase!=Failed".parse().unwrap();
    let labels = "app in (x),!y,n>3".parse().unwrap();
    let mut user = User::new("bob", &[]);
    user.uid = "7".into();
    user.extra.insert("k".into(), vec!["v".into()]);
    let wanted = Attributes { fields: Some(&fields), labels: Some(&labels), ..pods() };
    let resource = json!({"namespace": "ns", "verb": "list", "version": "v1", "resource": "pods",
        "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["a"]},
            {"key": "status.phase", "operator": "NotIn", "values": ["Failed"]}]},
        "labelSelector": {"requirements": [{"key": "app", "operator": "In", "values": ["x"]}, {"key": "y", "operator": "DoesNotExist"}]}});
    let groups = json!(["system:authenticated"]);
    assert_eq!(
        spec(&user, &wanted, ReviewVersion::V1),
        json!({"user": "bob", "uid": "7", "groups": groups, "extra": {"k": ["v"]}, "resourceAttributes": resource})
    );
    let path = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
    assert_eq!(
        spec(&User::new("bob", &[]), &path, ReviewVersion::V1beta1),
        json!({"user": "bob", "group": groups, "nonResourceAttributes": {"path": "/metrics", "verb": "get"}})
    );
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_failure_policy_decides() {
    for (answer, attempts) in [
        ((|_| (StatusCode::FORBIDDEN, json!({}))) as fn(&Value) -> (StatusCode, Value), 1),
        (|_| (StatusCode::OK, json!({"kind": "Pod"})), 1),
        (|_| (StatusCode::OK, json!({"kind": "SubjectAccessReview"})), 1),
        (|_| (StatusCode::INTERNAL_SERVER_ERROR, json!({})), 1 + RETRIES.len()),
    ] {
        for (policy, decision) in
            [(FailurePolicy::NoOpinion, Decision::NoOpinion), (FailurePolicy::Deny, deny())]
        {
            let (webhook, server) = webhook(WebhookSettings { failure_policy: policy, ..settings() }, answer);
            let answer = webhook.decide(&User::new("bob", &[]), &pods()).await;
            assert_eq!(answer.decision, decision);
            assert!(answer.error.is_some());
            assert_eq!(server.asked.swap(0, Ordering::SeqCst), attempts);
            webhook.decide(&User::new("bob", &[]), &pods()).await;
            assert_eq!(server.asked.load(Ordering::SeqCst), attempts, "a failure is not kept");
        }
    }
}

#[tokio::test]
async fn conditions_choose_who_is_asked() {
    let with = |conditions: &[&str], policy| WebhookSettings {
        match_conditions: conditions.iter().map(|text| (*text).to_owned()).collect(),
        failure_policy: policy,
        ..settings()
    };
    let asked = async |conditions: &[&str], wanted: &Attributes<'_>| {
        let (webhook, server) = webhook(with(conditions, FailurePolicy::Deny), by_name);
        let decision = webhook.decide(&User::new("bob", &["ops"]), wanted).await.decision;
        (server.asked.load(Ordering::SeqCst), decision)
    };
    let path = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
    let of_resource = "has(request.resourceAttributes)";
    for (conditions, wanted, want) in [
        (&[of_resource][..], &pods(), (1, Decision::Allow)),
        (&[of_resource], &path, (0, Decision::NoOpinion)),
        (
            &["request.resourceAttributes.namespace == 'ns'", "'ops' in request.groups"],
            &pods(),
            (1, Decision::Allow),
        ),
        (&["request.resourceAttributes.name == ''"], &pods(), (1, Decision::Allow)),
        (&["!('system:serviceaccounts' in request.groups)"], &path, (1, Decision::Allow)),
        // An error counts only if no other condition is false.
        (&["request.resourceAttributes.name == ''"], &path, (0, deny())),
        (&["request.resourceAttributes.name == ''", of_resource], &path, (0, Decision::NoOpinion)),
    ] {
        assert_eq!(asked(conditions, wanted).await, want, "{conditions:?}");
    }
    let (lenient, _) =
        webhook(with(&["request.resourceAttributes.name == ''"], FailurePolicy::NoOpinion), by_name);
    assert_eq!(lenient.decide(&User::new("bob", &[]), &path).await.decision, Decision::NoOpinion);
    let refused = |conditions: &[&str]| {
        let server = Server { answer: by_name, asked: Arc::default() };
        let settings = with(conditions, FailurePolicy::Deny);
        WebhookAuthorizer::new(Client::new(server), "/", settings).unwrap_err().to_string()
    };
    assert!(refused(&["true", "request.users == ''"]).starts_with("matchConditions[1].expression: ERROR"));
    assert!(refused(&["request.user"]).ends_with("must evaluate to bool"));
    assert!(refused(&["true", "true"]).ends_with("is there twice"));
    assert!(refused(&[" "]).ends_with("an expression is required"));
}
