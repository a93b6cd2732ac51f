//! Authentication: who a request comes from.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use http::StatusCode;
use k8s_apiserver::{
    ApiServer, User,
    auth::{Authenticator, Passwords, PeerCertificate, PublicKey, ServiceAccountTokens, tokens::TokenIssuer},
};
use k8s_store::Store;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

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

fn basic(pair: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

#[tokio::test]
async fn passwords_are_those_of_the_file() {
    let passwords = Passwords::parse("pass:word,eve,7,\"shop,admins\"\n").unwrap();
    let builder = ApiServer::builder(Store::memory()).authenticator(with_admin().passwords(passwords));
    let server = builder.build().await.unwrap();
    let eve = who(&server, &basic("eve:pass:word")).await;
    let info = eve.json()["status"]["userInfo"].clone();
    assert_eq!((&info["username"], &info["uid"]), (&json!("eve"), &json!("7")));
    assert_eq!(info["groups"], json!(["shop", "admins", "system:authenticated"]));
    for wrong in ["eve:pass", "eve:", "eve", "mallory:pass:word", ":"] {
        assert_eq!(
            who(&server, &basic(wrong)).await.status,
            if wrong == "eve" { 403 } else { 401 },
            "{wrong}"
        );
    }
    // Without a password file the header means nothing, and the request is anonymous.
    let server = ApiServer::builder(Store::memory()).authenticator(with_admin()).build().await.unwrap();
    assert_eq!(who(&server, &basic("eve:pass:word")).await.status, 403);
}

#[tokio::test]
async fn a_bootstrap_token_is_a_secret_of_kube_system() {
    let server = ApiServer::builder(Store::memory())
        .authenticator(with_admin().bootstrap_tokens(true))
        .build()
        .await
        .unwrap();
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let token = "abcdef.0123456789abcdef";
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token", "expiration": "2999-01-01T00:00:00Z",
        },
    });
    assert_eq!(who(&server, &format!("Bearer {token}")).await.status, 401);
    done(&server, "POST", secrets, &secret).await;
    let found = review(&server, token).await;
    assert_eq!(found["user"]["username"], "system:bootstrap:abcdef");
    let groups = json!([
        "system:bootstrappers",
        "system:bootstrappers:kubeadm:default-node-token",
        "system:authenticated"
    ]);
    assert_eq!(found["user"]["groups"], groups);
    assert_eq!(who(&server, &format!("Bearer {token}")).await.status, 201);
    for wrong in ["abcdef.0123456789abcdee", "abcdeg.0123456789abcdef", "abcdef", "abcdef.0123456789abcdef0"]
    {
        assert_eq!(who(&server, &format!("Bearer {wrong}")).await.status, 401, "{wrong}");
    }
    let one = format!("{secrets}/bootstrap-token-abcdef");
    for (field, bad, good) in [
        ("expiration", "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"),
        ("expiration", "soon", "2999-01-01T00:00:00+02:00"),
        ("usage-bootstrap-authentication", "false", "true"),
        ("auth-extra-groups", "system:masters", ""),
        ("token-id", "abcdeg", "abcdef"),
        ("token-secret", "0123456789abcdee", "0123456789abcdef"),
    ] {
        for (value, status) in [(bad, 401), (good, 201)] {
            done(&server, "PATCH", &one, &json!({"stringData": {field: value}})).await;
            let answer = who(&server, &format!("Bearer {token}")).await;
            assert_eq!(answer.status, status, "{field}: {value:?}");
        }
    }
    // Being deleted is being revoked, and another namespace or type gives nothing.
    done(&server, "PATCH", &one, &json!({"metadata": {"finalizers": ["example.com/wait"]}})).await;
    done(&server, "DELETE", &one, &Value::Null).await;
    assert_eq!(who(&server, &format!("Bearer {token}")).await.status, 401);
    let other = json!({
        "metadata": {"name": "bootstrap-token-aaaaaa"}, "type": "Opaque",
        "stringData": {"token-id": "aaaaaa", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"},
    });
    done(&server, "POST", secrets, &other).await;
    assert_eq!(who(&server, "Bearer aaaaaa.0123456789abcdef").await.status, 401);
    // Off by default.
    let server = crate::support::server().await;
    done(&server, "POST", secrets, &secret).await;
    assert_eq!(who(&server, &format!("Bearer {token}")).await.status, 401);
}

#[tokio::test]
async fn a_client_certificate_is_named_in_extra() {
    use rcgen::{CertificateParams, CustomExtension, DnType, DnValue, KeyPair};
    let uid = DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]);
    let made = |ids: &[&str]| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "jane");
        params.distinguished_name.push(DnType::OrganizationName, "dev");
        for id in ids {
            params.distinguished_name.push(uid.clone(), DnValue::Utf8String((*id).to_owned()));
        }
        params.custom_extensions = Vec::<CustomExtension>::new();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    };
    let server = ApiServer::builder(Store::memory()).authenticator(with_admin()).build().await.unwrap();
    let der = made(&["u-1"]);
    let id: String = Sha256::digest(&der).iter().map(|b| format!("{b:02x}")).collect();
    let mut request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("content-type", "application/json")
        .body(b"{}".to_vec())
        .unwrap();
    request.extensions_mut().insert(PeerCertificate(der));
    let info = ask(&server, request).await.json()["status"]["userInfo"].clone();
    assert_eq!((&info["username"], &info["uid"]), (&json!("jane"), &json!("u-1")));
    assert_eq!(
        info["extra"],
        json!({"authentication.kubernetes.io/credential-id": [format!("X509SHA256={id}")]})
    );
}

/// Asks who a request is as another user.
async fn who_as(server: &ApiServer, user: &User, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let answer = ask(&server.service_as(user.clone()), request.body(b"{}".to_vec()).unwrap()).await;
    let json = answer.json();
    let told =
        if answer.status == 201 { json["status"]["userInfo"].clone() } else { json["message"].clone() };
    (answer.status.as_u16(), told)
}

#[tokio::test]
async fn every_impersonated_part_must_be_allowed_and_is_told() {
    let server = crate::support::server().await;
    let support = User::new("support", &[]);
    let rule = |groups: &str, resource: &str, names: Value| json!({"apiGroups": [groups], "resources": [resource], "verbs": ["impersonate"], "resourceNames": names});
    let authentication = "authentication.k8s.io";
    let rules = json!([
        rule("", "users", json!(["jane", "Jané", "system:anonymous"])),
        rule("", "groups", json!(["dev", "system:unauthenticated"])),
        rule(authentication, "uids", json!(["7"])),
        rule(authentication, "userextras/acme.com/project", json!(["x"])),
        rule("", "serviceaccounts", json!(["robot"])),
    ]);
    crate::support::grant(&server, "support", rules).await;
    let everyone = json!(["system:authenticated"]);
    let jane = ("impersonate-user", "jane");
    let all = [
        jane,
        ("impersonate-group", "dev"),
        ("impersonate-uid", "7"),
        ("impersonate-extra-acme.com%2Fproject", "x"),
    ];
    assert_eq!(
        who_as(&server, &support, &all).await,
        (
            201,
            json!({"username": "jane", "uid": "7", "groups": ["dev", "system:authenticated"], "extra": {"acme.com/project": ["x"]}})
        )
    );
    for (headers, groups) in [
        (vec![("impersonate-user", "Jané")], everyone.clone()),
        (
            vec![("impersonate-user", "system:serviceaccount:ns:robot")],
            json!(["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]),
        ),
        (
            vec![("impersonate-user", "system:serviceaccount:ns:robot"), ("impersonate-group", "dev")],
            json!(["dev", "system:authenticated"]),
        ),
        (vec![jane, ("impersonate-group", "system:unauthenticated")], json!(["system:unauthenticated"])),
    ] {
        let (status, info) = who_as(&server, &support, &headers).await;
        // A user who is not authenticated may not ask who it is.
        if groups == json!(["system:unauthenticated"]) {
            assert_eq!(status, 403, "{info}");
            continue;
        }
        assert_eq!((status, &info["groups"]), (201, &groups), "{headers:?}: {info}");
        assert_eq!(info["username"], headers[0].1);
    }
    for (header, value) in [
        ("impersonate-group", "system:masters"),
        ("impersonate-uid", "8"),
        ("impersonate-extra-acme.com%2Fproject", "y"),
        ("impersonate-extra-acme.com%2Ftenant", "x"),
    ] {
        assert_eq!(who_as(&server, &support, &[jane, (header, value)]).await.0, 403, "{header}: {value}");
        assert_eq!(who_as(&server, &support, &[(header, value)]).await.0, 400, "{header} without a user");
    }
    for name in ["joe", "system:serviceaccount:ns:other", "system:serviceaccount:ns:robot:x", "system:node:n"]
    {
        assert_eq!(who_as(&server, &support, &[("impersonate-user", name)]).await.0, 403, "{name}");
    }
    // Who is impersonated impersonates nobody, and an administrator everybody.
    assert_eq!(who_as(&server, &User::new("jane", &[]), &[jane]).await.0, 403);
    assert_eq!(
        who_as(&server, &User::admin(), &[jane, ("impersonate-group", "system:masters")]).await.0,
        201
    );
}

#[tokio::test]
async fn constrained_impersonation_is_for_kinds_of_users_and_requests() {
    let server = crate::support::server().await;
    let group = "authentication.k8s.io";
    let on = |mode: &str, verb: &str, group: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": [format!("impersonate-on:{mode}:{verb}")]});
    let be = |mode: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": [format!("impersonate:{mode}")]});
    let ask_who = |mode: &str| on(mode, "create", group, "selfsubjectreviews");
    let agent_name = "system:serviceaccount:kube-system:agent";
    let mut agent = User::service_account("kube-system", "agent");
    agent.extra.insert("authentication.kubernetes.io/node-name".into(), vec!["n1".into()]);
    let binding = json!({"metadata": {"name": "agent"}, "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": "kube-system"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "test-agent"}});
    crate::support::grant(
        &server,
        "agent",
        json!([ask_who("associated-node"), be("associated-node", "nodes")]),
    )
    .await;
    done(&server, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let own = who_as(&server, &agent, &[("impersonate-user", "system:node:n1")]).await;
    assert_eq!(
        own,
        (201, json!({"username": "system:node:n1", "groups": ["system:nodes", "system:authenticated"]}))
    );
    let (status, message) = who_as(&server, &agent, &[("impersonate-user", "system:node:n2")]).await;
    assert_eq!(status, 403);
    let wanted = format!("User \"{agent_name}\" cannot impersonate-on:arbitrary-node:create resource");
    assert!(message.as_str().unwrap().contains(&wanted), "{message}");
    assert_eq!(
        who_as(&server, &agent, &[("impersonate-user", "system:node:n1"), ("impersonate-uid", "7")]).await.0,
        403
    );

    // One kind of user, for one kind of request.
    let rules = json!([
        ask_who("user-info"),
        be("user-info", "users"),
        be("user-info", "groups"),
        ask_who("serviceaccount")
    ]);
    crate::support::grant(&server, "desk", rules).await;
    let desk = User::new("desk", &[]);
    let jane = ("impersonate-user", "jane");
    assert_eq!(who_as(&server, &desk, &[jane, ("impersonate-group", "dev")]).await.0, 201);
    for (header, value) in [
        ("impersonate-group", "system:masters"),
        ("impersonate-group", ""),
        ("impersonate-uid", "7"),
        ("impersonate-extra-a", "b"),
    ] {
        assert_eq!(who_as(&server, &desk, &[jane, (header, value)]).await.0, 403, "{header} {value:?}");
    }
    for name in ["system:node:n1", "system:serviceaccount:a:b"] {
        assert_eq!(who_as(&server, &desk, &[("impersonate-user", name)]).await.0, 403, "{name}");
    }
    let list = http::Request::get("/api/v1/namespaces/default/pods").header("impersonate-user", "jane");
    let answer = ask(&server.service_as(desk), list.body(Vec::new()).unwrap()).await;
    assert_eq!(
        answer.json()["message"],
        "pods is forbidden: User \"desk\" cannot impersonate-on:user-info:list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
}
