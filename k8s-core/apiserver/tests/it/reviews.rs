//! Reviews pass admission: plugins and policies see their creation.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use k8s_apiserver::{ApiServer, User, admission::Admission, auth::Authenticator};
use k8s_store::Store;
use serde_json::json;

use crate::support::{admin, done, server};

const REVIEWS: [(&str, &str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews", "{}"),
    ("authentication.k8s.io", "tokenreviews", r#"{"token": "admin"}"#),
    (
        "authorization.k8s.io",
        "subjectaccessreviews",
        r#"{"user": "u", "nonResourceAttributes": {"path": "/", "verb": "get"}}"#,
    ),
    (
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        r#"{"nonResourceAttributes": {"path": "/", "verb": "get"}}"#,
    ),
    ("authorization.k8s.io", "selfsubjectrulesreviews", r#"{"namespace": "default"}"#),
    (
        "authorization.k8s.io",
        "namespaces/absent/localsubjectaccessreviews",
        r#"{"user": "u", "resourceAttributes": {"namespace": "absent", "verb": "get", "resource": "pods"}}"#,
    ),
];

#[tokio::test]
async fn admission_sees_every_review_and_may_refuse_it() {
    let seen: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let (notes, user) = (seen.clone(), User::new("admin", &["system:masters"]));
    let server = ApiServer::builder(Store::memory())
        .authenticator(Authenticator::new(HashMap::from([("admin".to_owned(), user)]), true))
        .admit(move |a: &mut Admission<'_>| {
            if a.resource.plural.ends_with("reviews") {
                let kind = a.object["kind"].as_str().unwrap_or_default().to_owned();
                notes.lock().unwrap().push((a.resource.plural.clone(), kind));
                if a.object["spec"]["user"] == "refused" {
                    return Err(k8s_core::status::ApiStatus::forbidden(
                        &a.resource.group,
                        &a.resource.plural,
                        "",
                        "no questions about this user",
                    ));
                }
            }
            Ok(())
        })
        .build()
        .await
        .unwrap();
    for (group, plural, spec) in REVIEWS {
        let body = format!(r#"{{"spec": {spec}}}"#);
        let path = format!("/apis/{group}/v1/{plural}");
        let answer = admin(&server, "POST", &path, "application/json", body).await;
        assert_eq!(answer.status, 201, "{path}: {}", answer.json());
    }
    let kinds: Vec<String> = seen.lock().unwrap().iter().map(|(_, kind)| kind.clone()).collect();
    assert_eq!(
        kinds,
        [
            "SelfSubjectReview",
            "TokenReview",
            "SubjectAccessReview",
            "SelfSubjectAccessReview",
            "SelfSubjectRulesReview",
            "LocalSubjectAccessReview"
        ]
    );
    let refused = json!({"spec": {"user": "refused", "nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = admin(&server, "POST", path, "application/json", refused.to_string()).await;
    assert_eq!(answer.status, 403);
    assert!(answer.json()["message"].as_str().unwrap().ends_with("no questions about this user"));
    // A review that asks nothing is refused as before.
    let answer = admin(&server, "POST", path, "application/json", "{}").await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn a_policy_decides_about_reviews() {
    let server = server().await;
    let base = "/apis/admissionregistration.k8s.io/v1";
    let rule = json!({"apiGroups": ["authorization.k8s.io"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["subjectaccessreviews"]});
    let policy = json!({"metadata": {"name": "questions"}, "spec": {"matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "object.spec.user != 'eve'", "message": "not about eve"}]}});
    done(&server, "POST", &format!("{base}/validatingadmissionpolicies"), &policy).await;
    let binding = json!({"metadata": {"name": "questions"}, "spec": {"policyName": "questions", "validationActions": ["Deny"]}});
    done(&server, "POST", &format!("{base}/validatingadmissionpolicybindings"), &binding).await;
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    for (user, status) in [("bob", 201), ("eve", 422)] {
        let review = json!({"spec": {"user": user, "nonResourceAttributes": {"path": "/", "verb": "get"}}});
        let answer = admin(&server, "POST", path, "application/json", review.to_string()).await;
        assert_eq!(answer.status, status, "{user}: {}", answer.json());
    }
}

#[tokio::test]
async fn a_review_has_no_table() {
    let server = server().await;
    for (group, plural, spec) in REVIEWS {
        let request = http::Request::post(format!("/apis/{group}/v1/{plural}"))
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .extension(User::new("admin", &["system:masters"]))
            .body(k8s_core::client::body_from_bytes(format!("{{\"spec\": {spec}}}")));
        assert_eq!(server.handle(request.unwrap()).await.status(), 406, "{plural}");
    }
}
