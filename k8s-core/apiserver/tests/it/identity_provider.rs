//! Tokens of identity providers, against a real issuer over TLS.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_apiserver::{
    ApiServer,
    auth::{AuthenticationConfiguration, OidcSettings},
};
use k8s_store::Store;
use ring::{
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
        RsaEncoding, RsaKeyPair,
    },
};
use serde_json::{Value, json};

use crate::{
    authentication::{review, who, with_admin},
    peer::{Authority, authority, signed},
    support::ask,
};

/// Key pair of an issuer.
enum Key {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str),
}

impl Key {
    fn rsa() -> Self {
        let pem = include_str!("../data/rsa-2048.pem");
        let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        Key::Rsa(RsaKeyPair::from_der(&der).unwrap())
    }

    fn ec(curve: &'static str) -> Self {
        let algorithm = match curve {
            "P-256" => &ECDSA_P256_SHA256_FIXED_SIGNING,
            _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
        };
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Key::Ec(EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).unwrap(), curve)
    }

    fn jwk(&self, kid: &str) -> Value {
        match self {
            Key::Rsa(pair) => {
                let parts: PublicKeyComponents<Vec<u8>> = pair.public().into();
                json!({"kty": "RSA", "kid": kid, "use": "sig", "n": B64.encode(parts.n), "e": B64.encode(parts.e)})
            }
            Key::Ec(pair, curve) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
                json!({"kty": "EC", "kid": kid, "use": "sig", "crv": curve, "x": B64.encode(x), "y": B64.encode(y)})
            }
        }
    }

    fn token(&self, alg: &str, kid: &str, claims: &Value) -> String {
        let header = json!({"alg": alg, "kid": kid});
        let message = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Key::Ec(pair, _) => pair.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Key::Rsa(pair) => {
                let encoding: &dyn RsaEncoding = match alg {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut bytes = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, message.as_bytes(), &mut bytes).unwrap();
                bytes
            }
        };
        format!("{message}.{}", B64.encode(signature))
    }
}

#[derive(Default)]
struct Published {
    keys: Vec<Value>,
    /// Issuer that the discovery document names, if it is not the issuer itself.
    lies: Option<String>,
    gets: Vec<String>,
}

/// An identity provider on a port of the loopback interface.
struct Issuer {
    url: String,
    ca: Authority,
    published: Arc<Mutex<Published>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Issuer {
    async fn start() -> Self {
        let ca = authority();
        let identity = signed(&ca, "localhost");
        let identity = k8s_tls::Identity {
            certificate: identity.certificate.into_bytes(),
            key: identity.key.into_bytes(),
        };
        let config = k8s_tls::server(&identity, &k8s_tls::ClientAuth::Off, &[b"http/1.1"]).unwrap();
        let acceptor = k8s_tls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/realm", listener.local_addr().unwrap().port());
        let published = Arc::new(Mutex::new(Published::default()));
        let (state, own) = (published.clone(), url.clone());
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let (state, own) = (state.clone(), own.clone());
                let answer = service_fn(move |request: Request<Incoming>| {
                    let answer = Self::answer(&mut state.lock().unwrap(), &own, request.uri().path());
                    async move { Ok::<_, Infallible>(answer) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), answer)
                    .await;
            }
        });
        Issuer { url, ca, published, task }
    }

    fn answer(state: &mut Published, own: &str, path: &str) -> Response<Full<Bytes>> {
        state.gets.push(path.to_owned());
        let document = match path {
            "/realm/.well-known/openid-configuration" | "/elsewhere" => {
                let issuer = state.lies.clone().unwrap_or_else(|| own.to_owned());
                json!({"issuer": issuer, "jwks_uri": format!("{own}/keys")})
            }
            "/realm/keys" => json!({"keys": state.keys}),
            _ => {
                let mut missing = Response::new(Full::default());
                *missing.status_mut() = StatusCode::NOT_FOUND;
                return missing;
            }
        };
        Response::new(Full::new(document.to_string().into()))
    }

    fn publish(&self, keys: Vec<Value>) {
        self.published.lock().unwrap().keys = keys;
    }

    fn gets(&self) -> usize {
        self.published.lock().unwrap().gets.len()
    }

    /// Returns an entry of `jwt` with this issuer and further fields.
    fn entry(&self, more: Value) -> Value {
        let mut entry = json!({
            "issuer": {"url": self.url, "audiences": ["shop"], "certificateAuthority": self.ca.0},
            "claimMappings": {"username": {"claim": "sub", "prefix": "idp:"}},
        });
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        entry
    }

    fn claims(&self, more: Value) -> Value {
        let now = now();
        let mut claims = json!({"iss": self.url, "aud": "shop", "sub": "eve", "iat": now, "exp": now + 600});
        for (key, value) in more.as_object().unwrap() {
            claims[key] = value.clone();
        }
        claims
    }
}

fn now() -> i64 {
    k8s_core::clock::Clock::system().now().as_second()
}

fn configuration(jwt: Vec<Value>) -> String {
    let kind = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": jwt});
    kind.to_string()
}

async fn server(jwt: Vec<Value>) -> ApiServer {
    let configuration = AuthenticationConfiguration::parse(&configuration(jwt), &[]).unwrap();
    let authenticator = with_admin().configured(configuration);
    ApiServer::builder(Store::memory()).authenticator(authenticator).build().await.unwrap()
}

async fn status(server: &ApiServer, token: &str) -> u16 {
    who(server, &format!("Bearer {token}")).await.status.as_u16()
}

#[tokio::test]
async fn every_algorithm_is_verified_and_no_other() {
    let issuer = Issuer::start().await;
    let (rsa, p256, p384) = (Key::rsa(), Key::ec("P-256"), Key::ec("P-384"));
    issuer.publish(vec![rsa.jwk("rsa"), p256.jwk("p256"), p384.jwk("p384")]);
    let server = server(vec![issuer.entry(json!({}))]).await;
    let claims = issuer.claims(json!({}));
    for alg in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        assert_eq!(status(&server, &rsa.token(alg, "rsa", &claims)).await, 201, "{alg}");
    }
    assert_eq!(status(&server, &p256.token("ES256", "p256", &claims)).await, 201);
    assert_eq!(status(&server, &p384.token("ES384", "p384", &claims)).await, 201);
    assert_eq!(issuer.gets(), 2, "the document and the keys, once");
    let info = who(&server, &format!("Bearer {}", rsa.token("RS256", "rsa", &claims))).await.json();
    assert_eq!(info["status"]["userInfo"]["username"], "idp:eve");
    // Another algorithm than the signature's, another key's id, secrets of HMAC, no signature.
    for (alg, kid) in [
        ("RS512", "p256"),
        ("ES256", "rsa"),
        ("ES384", "p256"),
        ("HS256", "rsa"),
        ("none", "rsa"),
        ("ES512", "p384"),
    ] {
        let made = rsa.token(alg, kid, &claims);
        assert_eq!(status(&server, &made).await, 401, "{alg} {kid}");
    }
    let signed = rsa.token("RS256", "rsa", &claims);
    let (message, _) = signed.rsplit_once('.').unwrap();
    let public = B64.decode(rsa.jwk("")["n"].as_str().unwrap()).unwrap();
    let hmac = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &public);
    for forged in [
        format!("{message}."),
        format!("{message}.{}", B64.encode(ring::hmac::sign(&hmac, message.as_bytes()))),
        format!("{signed}.{signed}"),
        "a".repeat(100_000),
    ] {
        assert_eq!(status(&server, &forged).await, 401);
    }
}

#[tokio::test]
async fn a_reloaded_configuration_replaces_the_issuers() {
    let (issuer, other) = (Issuer::start().await, Issuer::start().await);
    let key = Key::ec("P-256");
    issuer.publish(vec![key.jwk("k")]);
    other.publish(vec![key.jwk("k")]);
    let server = server(vec![issuer.entry(json!({}))]).await;
    let by = |issuer: &Issuer| key.token("ES256", "k", &issuer.claims(json!({})));
    assert_eq!((status(&server, &by(&issuer)).await, status(&server, &by(&other)).await), (201, 401));
    let parse = |text: &str| AuthenticationConfiguration::parse(text, &[]).unwrap();
    server.replace_authentication(vec![parse(&configuration(vec![other.entry(json!({}))]))]).unwrap();
    assert_eq!((status(&server, &by(&issuer)).await, status(&server, &by(&other)).await), (401, 201));
    // As upstream, the part about anonymous requests stays as it was at the start.
    let anonymous = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "anonymous": {"enabled": true},
    });
    let refused = server.replace_authentication(vec![parse(&anonymous.to_string())]).unwrap_err();
    assert_eq!(refused, "anonymous: Forbidden: changed from initial configuration file");
    assert_eq!(status(&server, &by(&other)).await, 201, "the former issuers stay");
}

#[tokio::test]
async fn tokens_are_for_their_issuer_audience_and_time() {
    let (issuer, other) = (Issuer::start().await, Issuer::start().await);
    let (key, another) = (Key::ec("P-256"), Key::ec("P-256"));
    issuer.publish(vec![key.jwk("k")]);
    // The same id for another key.
    other.publish(vec![another.jwk("k")]);
    let server = server(vec![issuer.entry(json!({})), other.entry(json!({}))]).await;
    let by = |key: &Key, issuer: &Issuer, more: Value| key.token("ES256", "k", &issuer.claims(more));
    assert_eq!(status(&server, &by(&key, &issuer, json!({}))).await, 201);
    assert_eq!(status(&server, &by(&another, &other, json!({}))).await, 201);
    assert_eq!(status(&server, &by(&another, &issuer, json!({}))).await, 401, "the other issuer's key");
    for (more, why) in [
        (json!({"aud": "vault"}), "expected audience"),
        (json!({"aud": ["vault"]}), "expected audience"),
        (json!({"exp": now() - 1}), "expired"),
        (json!({"exp": null}), "no expiry"),
        (json!({"nbf": now() + 300}), "not before"),
    ] {
        let token = by(&key, &issuer, more.clone());
        assert_eq!(status(&server, &token).await, 401, "{more}");
        let error = review(&server, &token).await["error"].as_str().unwrap().to_owned();
        assert!(error.starts_with("[invalid bearer token, oidc: ") && error.contains(why), "{error}");
    }
    assert_eq!(status(&server, &by(&key, &issuer, json!({"iss": "https://elsewhere"}))).await, 401);
    assert_eq!(
        status(&server, &by(&key, &issuer, json!({"aud": ["vault", "shop"], "nbf": now() + 30}))).await,
        201
    );
}

#[tokio::test]
async fn keys_rotate_and_unknown_ones_cost_little() {
    let issuer = Issuer::start().await;
    let (first, second) = (Key::ec("P-256"), Key::rsa());
    issuer.publish(vec![first.jwk("one")]);
    let server = server(vec![issuer.entry(json!({}))]).await;
    let claims = issuer.claims(json!({}));
    let (old, new) = (first.token("ES256", "one", &claims), second.token("RS256", "two", &claims));
    assert_eq!(status(&server, &old).await, 201);
    assert_eq!(status(&server, &new).await, 401, "a key that is not known yet");
    issuer.publish(vec![first.jwk("one"), second.jwk("two")]);
    assert_eq!(status(&server, &new).await, 201);
    assert_eq!(status(&server, &old).await, 201);
    issuer.publish(vec![second.jwk("two")]);
    // Unknown ids, many at a time: few requests reach the issuer.
    let before = issuer.gets();
    let begun = Instant::now();
    let unknown = (0..300).map(|i| first.token("ES256", &format!("x{i}"), &claims));
    let all = futures::future::join_all(unknown.map(|token| {
        let server = &server;
        async move { status(server, &token).await }
    }));
    assert!(all.await.iter().all(|status| *status == 401));
    let allowed = 5 + usize::try_from(begun.elapsed().as_secs() / 10).unwrap();
    assert!(issuer.gets() - before <= allowed, "{} requests", issuer.gets() - before);
    assert_eq!(status(&server, &old).await, 401, "its key is withdrawn");
    assert_eq!(status(&server, &new).await, 201);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_trusted_or_reached_lets_nobody_in() {
    let issuer = Issuer::start().await;
    let key = Key::ec("P-256");
    issuer.publish(vec![key.jwk("k")]);
    let token = key.token("ES256", "k", &issuer.claims(json!({})));
    // Another CA.
    let mut entry = issuer.entry(json!({}));
    entry["issuer"]["certificateAuthority"] = authority().0.into();
    assert_eq!(status(&server(vec![entry]).await, &token).await, 401);
    // A document that names another issuer.
    issuer.published.lock().unwrap().lies = Some("https://elsewhere".into());
    let one = server(vec![issuer.entry(json!({}))]).await;
    let error = review(&one, &token).await["error"].to_string();
    assert!(error.contains("issuer did not match"), "{error}");
    // It comes back, and a static token works all the time.
    assert_eq!(status(&one, "admin").await, 201);
    issuer.published.lock().unwrap().lies = None;
    assert_eq!(status(&one, &token).await, 201);
    // A discovery document elsewhere.
    let mut entry = issuer.entry(json!({}));
    entry["issuer"]["discoveryURL"] = issuer.url.replace("/realm", "/elsewhere").into();
    assert_eq!(status(&server(vec![entry]).await, &token).await, 201);
    assert!(issuer.published.lock().unwrap().gets.contains(&"/elsewhere".to_owned()));
    // Nothing listens: refused soon.
    let mut entry = issuer.entry(json!({}));
    let gone = "https://localhost:1/realm";
    entry["issuer"]["url"] = gone.into();
    let token = key.token("ES256", "k", &issuer.claims(json!({"iss": gone})));
    let dead = server(vec![entry]).await;
    let answered = tokio::time::timeout(Duration::from_secs(5), status(&dead, &token)).await;
    assert_eq!(answered, Ok(401));
}

#[tokio::test]
async fn claims_become_users_by_rules() {
    let issuer = Issuer::start().await;
    let key = Key::ec("P-384");
    issuer.publish(vec![key.jwk("k")]);
    let entry = issuer.entry(json!({
        "claimValidationRules": [
            {"claim": "hd", "requiredValue": "example.com"},
            {"expression": "claims.exp - claims.iat <= 86400", "message": "lives too long"},
        ],
        "claimMappings": {
            "username": {"expression": "claims.email.split('@')[0] + (claims.email_verified ? '' : '-unverified')"},
            "groups": {"expression": "claims.roles.map(r, 'idp:' + r)"},
            "uid": {"claim": "oid"},
            "extra": [{"key": "example.com/tenant", "valueExpression": "claims.?tenant.orValue('none')"}],
        },
        "userValidationRules": [{"expression": "!user.groups.exists(g, g.startsWith('idp:system:'))", "message": "reserved"}],
    }));
    let server = server(vec![entry]).await;
    let good = json!({"hd": "example.com", "email": "eve@example.com", "email_verified": true, "roles": ["dev"], "oid": "7", "jti": "j"});
    let token = |more: Value| {
        let mut claims = issuer.claims(good.clone());
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        key.token("ES384", "k", &claims)
    };
    let info =
        who(&server, &format!("Bearer {}", token(json!({})))).await.json()["status"]["userInfo"].clone();
    assert_eq!(
        info,
        json!({
            "username": "eve", "uid": "7", "groups": ["idp:dev", "system:authenticated"],
            "extra": {"authentication.kubernetes.io/credential-id": ["JTI=j"], "example.com/tenant": ["none"]},
        })
    );
    for (more, why) in [
        (json!({"hd": "else.com"}), "required claim hd value does not match"),
        (json!({"exp": now() + 100_000}), "lives too long"),
        (json!({"roles": ["system:masters"]}), "reserved"),
        (json!({"roles": "dev"}), "group claim expression"),
        (json!({"oid": 7}), "parse uid claim"),
    ] {
        let error = review(&server, &token(more.clone())).await["error"].to_string();
        assert!(error.contains(why), "{more}: {error}");
    }
}

#[tokio::test]
async fn the_old_flags_are_one_issuer() {
    let issuer = Issuer::start().await;
    let key = Key::rsa();
    issuer.publish(vec![key.jwk("k")]);
    let settings = OidcSettings {
        issuer_url: issuer.url.clone(),
        client_id: "shop".into(),
        ca: Some(issuer.ca.0.clone()),
        groups_claim: "groups".into(),
        groups_prefix: "oidc:".into(),
        required_claims: vec![("hd".into(), "x".into())],
        ..OidcSettings::default()
    };
    let configuration = AuthenticationConfiguration::of_oidc(settings.clone(), &[]).unwrap();
    let builder = ApiServer::builder(Store::memory()).authenticator(with_admin().configured(configuration));
    let server = builder.build().await.unwrap();
    let claims = issuer.claims(json!({"hd": "x", "groups": "dev"}));
    let info = who(&server, &format!("Bearer {}", key.token("RS256", "k", &claims))).await.json();
    assert_eq!(info["status"]["userInfo"]["username"], format!("{}#eve", issuer.url));
    assert_eq!(info["status"]["userInfo"]["groups"][0], "oidc:dev");
    let without = issuer.claims(json!({"groups": "dev"}));
    assert_eq!(status(&server, &key.token("RS256", "k", &without)).await, 401);
    assert_eq!(status(&server, &key.token("RS512", "k", &claims)).await, 401, "RS256 is the default");
    let wrong = OidcSettings { signing_algs: vec!["ES512".into()], ..settings };
    assert!(AuthenticationConfiguration::of_oidc(wrong, &[]).is_err());
}

#[tokio::test]
async fn anonymous_requests_are_for_the_paths_of_the_file() {
    let with = |anonymous: Value| {
        let kind = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "anonymous": anonymous});
        AuthenticationConfiguration::parse(&kind.to_string(), &[]).unwrap()
    };
    let get = async |anonymous: Value, path: &str| {
        let builder =
            ApiServer::builder(Store::memory()).authenticator(with_admin().configured(with(anonymous)));
        let server = builder.build().await.unwrap();
        let request = Request::get(path).body(Vec::new()).unwrap();
        ask(&server, request).await.status.as_u16()
    };
    let some = json!({"enabled": true, "conditions": [{"path": "/livez"}, {"path": "/readyz"}]});
    for (anonymous, path, status) in [
        (some.clone(), "/livez", 200),
        (some.clone(), "/readyz?verbose", 200),
        (some.clone(), "/healthz", 401),
        (some.clone(), "/livez/", 401),
        (some, "/api/v1/nodes", 401),
        (json!({"enabled": true}), "/api/v1/nodes", 403),
        (json!({"enabled": false}), "/livez", 401),
    ] {
        assert_eq!(get(anonymous.clone(), path).await, status, "{anonymous} {path}");
    }
}

/// Each wrong configuration is refused with the field's path.
#[test]
fn wrong_configurations_name_their_fields() {
    let entry = json!({
        "issuer": {"url": "https://a", "audiences": ["x"]},
        "claimMappings": {"username": {"claim": "sub", "prefix": ""}},
    });
    let check = |path: &str, value: Value, want: &str| {
        let mut one = entry.clone();
        *one.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
        let error = AuthenticationConfiguration::parse(&configuration(vec![one]), &["https://own".into()]);
        let problems = error.unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(want), "{problems:?}\nwant {want}");
    };
    let url = "/issuer/url";
    check(url, "".into(), "jwt[0].issuer.url: Required value");
    check(url, "http://a".into(), "jwt[0].issuer.url: Invalid value: \"http://a\": URL scheme must be https");
    check(
        url,
        "https://own".into(),
        "jwt[0].issuer.url: Invalid value: \"https://own\": URL must not overlap",
    );
    check(
        url,
        "https://u:p@a".into(),
        "jwt[0].issuer.url: Invalid value: \"https://u:p@a\": URL must not contain a user",
    );
    check(
        url,
        "https://a?x=1".into(),
        "jwt[0].issuer.url: Invalid value: \"https://a?x=1\": URL must not contain a query",
    );
    check(
        url,
        "https://a#x".into(),
        "jwt[0].issuer.url: Invalid value: \"https://a#x\": URL must not contain a fragment",
    );
    check(url, 7.into(), "jwt[0].issuer.url: Invalid value: 7: must be a string");
    let audiences = "/issuer/audiences";
    check(audiences, json!([]), "jwt[0].issuer.audiences: Required value");
    check(
        audiences,
        json!(["a", "b"]),
        "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny",
    );
    check(
        "/issuer",
        json!({"url": "https://a", "audiences": ["x"], "discoveryURL": "https://a/"}),
        "jwt[0].issuer.discoveryURL: Invalid value",
    );
    check(
        "/issuer",
        json!({"url": "https://a", "audiences": ["x"], "certificateAuthority": "x"}),
        "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\"",
    );
    check(
        "/issuer",
        json!({"url": "https://a", "audiences": ["x"], "tls": {}}),
        "jwt[0].issuer.tls: unknown field",
    );
    let username = "/claimMappings/username";
    check(username, json!({}), "jwt[0].claimMappings.username: Required value");
    check(username, json!({"claim": "sub"}), "jwt[0].claimMappings.username.prefix: Required value");
    check(
        username,
        json!({"claim": "sub", "prefix": "", "expression": "claims.sub"}),
        "jwt[0].claimMappings.username: Invalid value",
    );
    check(
        username,
        json!({"expression": "claims."}),
        "jwt[0].claimMappings.username.expression: Invalid value: \"claims.\": compilation failed",
    );
    check(
        username,
        json!({"expression": "user.username"}),
        "jwt[0].claimMappings.username.expression: Invalid value",
    );
    check(
        username,
        json!({"expression": "claims.email"}),
        "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must be used",
    );
    let more = |key: &str, value: Value, want: &str| {
        let mut one = entry.clone();
        one["claimMappings"]["extra"] = json!([{"key": key, "valueExpression": value}]);
        let error = AuthenticationConfiguration::parse(&configuration(vec![one]), &[]).unwrap_err();
        assert!(error.problems[0].starts_with(want), "{error}\nwant {want}");
    };
    more(
        "tier",
        "'x'".into(),
        "jwt[0].claimMappings.extra[0].key: Invalid value: \"tier\": must be a domain-prefixed path",
    );
    more(
        "x.k8s.io/a",
        "'x'".into(),
        "jwt[0].claimMappings.extra[0].key: Invalid value: \"x.k8s.io/a\": k8s.io",
    );
    more(
        "a.io/B",
        "'x'".into(),
        "jwt[0].claimMappings.extra[0].key: Invalid value: \"a.io/B\": must be lowercase",
    );
    more("a.io/b", "".into(), "jwt[0].claimMappings.extra[0].valueExpression: Required value");
    let rule = |field: &str, value: Value, want: &str| {
        let mut one = entry.clone();
        one[field] = json!([value]);
        let error = AuthenticationConfiguration::parse(&configuration(vec![one]), &[]).unwrap_err();
        assert!(error.problems[0].starts_with(want), "{error}\nwant {want}");
    };
    rule("claimValidationRules", json!({}), "jwt[0].claimValidationRules[0]: Required value");
    rule(
        "claimValidationRules",
        json!({"claim": "a", "message": "m"}),
        "jwt[0].claimValidationRules[0].message: Invalid value",
    );
    rule(
        "claimValidationRules",
        json!({"expression": "claims.sub"}),
        "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.sub\": must evaluate to bool",
    );
    rule(
        "userValidationRules",
        json!({"expression": "user.nme == ''"}),
        "jwt[0].userValidationRules[0].expression: Invalid value: \"user.nme == ''\": compilation failed",
    );
    rule("userValidationRules", json!({}), "jwt[0].userValidationRules[0].expression: Required value");
    let twice = AuthenticationConfiguration::parse(&configuration(vec![entry.clone(), entry.clone()]), &[]);
    assert_eq!(twice.unwrap_err().problems, ["jwt[1].issuer.url: Duplicate value: \"https://a\""]);
    for (text, want) in [
        ("kind: AuthenticationConfiguration", "apiVersion: Unsupported value"),
        ("apiVersion: apiserver.config.k8s.io/v1\nkind: X", "kind: Invalid value"),
        (
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njtw: []",
            "jtw: unknown field",
        ),
        (
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: false, conditions: [{path: /a}]}",
            "anonymous.conditions: Invalid value",
        ),
    ] {
        let error = AuthenticationConfiguration::parse(text, &[]).unwrap_err();
        assert!(error.problems[0].starts_with(want), "{error}\nwant {want}");
    }
}
