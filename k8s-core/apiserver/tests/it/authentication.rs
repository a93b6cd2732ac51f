//! Authentication: who a request comes from.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use http::StatusCode;
use k8s_apiserver::{
    ApiServer, User,
    auth::{Authenticator, PublicKey, ServiceAccountTokens, tokens::TokenIssuer},
};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::{Answer, ask, ask_as, done};

const RSA: &str = include_str!("../data/rsa-2048.pem");
const P384: &str = include_str!("../data/p384-sec1.pem");

/// Returns an authenticator that knows the administrator's token `admin`.
pub(crate) fn with_admin() -> Authenticator {
    let admin = User::new("admin", &["system:masters"]);
    Authenticator::new([("admin".to_owned(), admin)].into(), true)
}

/// Asks who a request with this `Authorization` header is from.
pub(crate) async fn who(server: &ApiServer, authorization: &str) -> Answer {
    let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("authorization", authorization)
        .header("content-type", "application/json")
        .body(b"{}".to_vec());
    ask(server, request.unwrap()).await
}

/// Returns the status of a TokenReview.
pub(crate) async fn review(server: &ApiServer, token: &str) -> Value {
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let made = done(server, "POST", path, &json!({"spec": {"token": token}})).await;
    made["status"].clone()
}

async fn issued(server: &ApiServer, spec: Value) -> String {
    let account = "/api/v1/namespaces/default/serviceaccounts";
    let _ = ask_as(server, &User::admin(), "POST", account, &json!({"metadata": {"name": "a"}})).await;
    let made = done(server, "POST", &format!("{account}/a/token"), &json!({"spec": spec})).await;
    made["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_issuer_publishes_itself_and_its_keys() {
    let tokens = ServiceAccountTokens {
        issuers: vec!["https://issuer.example.com".into(), "https://old.example.com".into()],
        keys: PublicKey::parse_pem(P384).unwrap(),
        external_address: Some("10.0.0.1:6443".into()),
        ..ServiceAccountTokens::default()
    };
    let build = |tokens: ServiceAccountTokens| {
        ApiServer::builder(Store::memory())
            .authenticator(with_admin())
            .service_account_key(RSA.into())
            .service_account_tokens(tokens)
            .build()
    };
    let server = build(tokens.clone()).await.unwrap();
    let account = User::service_account("default", "a");
    let (configuration, keys) = ("/.well-known/openid-configuration", "/openid/v1/jwks");
    let document = ask_as(&server, &account, "GET", configuration, &Value::Null).await;
    assert_eq!(
        document.json(),
        json!({
            "issuer": "https://issuer.example.com", "jwks_uri": "https://10.0.0.1:6443/openid/v1/jwks",
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES384", "RS256"],
        })
    );
    assert_eq!(document.headers["content-type"], "application/json");
    assert_eq!(document.headers["cache-control"], "public, max-age=3600");
    let set = ask_as(&server, &account, "GET", keys, &Value::Null).await;
    assert_eq!(set.headers["content-type"], "application/jwk-set+json");
    let set = set.json();
    let kinds: Vec<&str> =
        set["keys"].as_array().unwrap().iter().map(|k| k["kty"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["RSA", "EC"]);
    assert!(set.to_string().find("\"d\"").is_none(), "no private part");

    // A token names its key.
    let token = issued(&server, json!({})).await;
    let header: Value =
        serde_json::from_slice(&B64.decode(token.split('.').next().unwrap()).unwrap()).unwrap();
    assert_eq!((&header["kid"], &header["alg"]), (&set["keys"][0]["kid"], &json!("RS256")));
    let found = review(&server, &token).await;
    let both = json!(["https://issuer.example.com", "https://old.example.com"]);
    assert_eq!((&found["authenticated"], &found["audiences"]), (&json!(true), &both));
    // One of the old issuer and key.
    let old = ServiceAccountTokens { issuers: vec!["https://old.example.com".into()], ..Default::default() };
    let old = TokenIssuer::with(Some(P384.as_bytes()), old).unwrap();
    let account = server.store().get("serviceaccounts", "default/a").unwrap();
    let subject = k8s_apiserver::auth::tokens::TokenSubject {
        namespace: "default".into(),
        name: "a".into(),
        uid: account.uid.to_string(),
        ..Default::default()
    };
    let now = k8s_core::clock::Clock::system().now().as_second();
    let old = old.issue(&subject, &["https://old.example.com".to_owned()], now, 600).unwrap();
    assert_eq!(who(&server, &format!("Bearer {old}")).await.status, 201);

    // Strangers may not read it; an issuer that is no https URL is not published.
    let stranger = http::Request::get(configuration).body(Vec::new()).unwrap();
    assert_eq!(ask(&server, stranger).await.status, StatusCode::FORBIDDEN);
    let plain = ServiceAccountTokens { issuers: vec!["kubernetes".into()], ..tokens };
    let server = build(plain).await.unwrap();
    for path in [configuration, keys] {
        assert_eq!(ask_as(&server, &User::admin(), "GET", path, &Value::Null).await.status, 404);
    }
}

#[tokio::test]
async fn audiences_and_lifetimes_follow_the_settings() {
    let tokens = ServiceAccountTokens {
        audiences: vec!["api".into(), "shop".into()],
        max_seconds: Some(3600),
        ..ServiceAccountTokens::default()
    };
    let builder = ApiServer::builder(Store::memory()).authenticator(with_admin());
    let server = Arc::new(builder.service_account_tokens(tokens).build().await.unwrap());
    let token = issued(&server, json!({"expirationSeconds": 86400})).await;
    let claims: Value =
        serde_json::from_slice(&B64.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap();
    assert_eq!(claims["aud"], json!(["api", "shop"]));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    assert_eq!(who(&server, &format!("Bearer {token}")).await.status, 201);
    let elsewhere = issued(&server, json!({"audiences": ["vault"]})).await;
    assert_eq!(who(&server, &format!("Bearer {elsewhere}")).await.status, 401);
}
