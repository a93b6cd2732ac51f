//! Authenticators: client certificates, passwords, and bearer tokens.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_core::status::ApiStatus;
use k8s_metrics::{Histogram, Registry};
use serde_json::Value;

pub use super::files::TokenFileError;
use super::{
    AuthenticationConfiguration, Evidence,
    anonymous::Anonymous,
    bootstrap_tokens,
    constant_time::{Hashed, hashed},
    files::{self, Passwords},
    jwt::Token,
    metrics, oidc,
    tokens::{TokenError, Verified},
    webhook::TokenWebhook,
};
use crate::{stages::Credentials, user::User, value::str_at};

/// Extra attribute with the id of a credential.
#[cfg(feature = "tls")]
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Finds out who a request comes from.
#[derive(Debug, Default)]
pub struct Authenticator {
    /// Users of static tokens, by the token's hash.
    tokens: HashMap<Hashed, User>,
    passwords: Passwords,
    bootstrap_tokens: bool,
    /// Issuers of JSON Web Tokens. A reloaded configuration replaces them.
    jwt: RwLock<Arc<Vec<Arc<oidc::Authentication>>>>,
    webhook: Option<TokenWebhook>,
    anonymous: Anonymous,
    /// The part of a configuration about anonymous requests.
    configured_anonymous: Option<Anonymous>,
    /// Remaining time of client certificates, in a server.
    expiration: Option<Histogram>,
}

impl Authenticator {
    /// Creates an authenticator with static tokens. With `anonymous`, requests without credentials are
    /// `system:anonymous`.
    #[must_use]
    pub fn new(tokens: HashMap<String, User>, anonymous: bool) -> Self {
        let tokens = tokens.into_iter().map(|(token, user)| (hashed(token.as_bytes()), user)).collect();
        let anonymous = if anonymous { Anonymous::Always } else { Anonymous::Never };
        Authenticator { tokens, anonymous, ..Authenticator::default() }
    }

    /// Users with passwords (HTTP basic authentication). Default: none.
    #[must_use]
    pub fn passwords(mut self, passwords: Passwords) -> Self {
        self.passwords = passwords;
        self
    }

    /// Accepts the bootstrap tokens in Secrets of kube-system (`--enable-bootstrap-token-auth`). Default: no.
    #[must_use]
    pub fn bootstrap_tokens(mut self, accepts: bool) -> Self {
        self.bootstrap_tokens = accepts;
        self
    }

    /// Issuers of JSON Web Tokens, and anonymous requests, of an AuthenticationConfiguration; what the file
    /// says about anonymous requests goes before the argument of [`Authenticator::new`].
    #[must_use]
    pub fn configured(mut self, configuration: AuthenticationConfiguration) -> Self {
        let mut jwt = self.issuers().to_vec();
        jwt.extend(configuration.jwt.into_iter().map(Arc::new));
        *self.jwt.get_mut().unwrap_or_else(PoisonError::into_inner) = Arc::new(jwt);
        if let Some(anonymous) = configuration.anonymous {
            self.anonymous = anonymous.clone();
            self.configured_anonymous = Some(anonymous);
        }
        self
    }

    /// Replaces the issuers of all configurations. Tokens that are being verified finish with the former
    /// ones.
    ///
    /// # Errors
    /// The part about anonymous requests is another one, which upstream refuses as well.
    pub(crate) fn replace(&self, configurations: Vec<AuthenticationConfiguration>) -> Result<(), String> {
        let anonymous = configurations.iter().find_map(|configuration| configuration.anonymous.as_ref());
        if anonymous != self.configured_anonymous.as_ref() {
            return Err("anonymous: Forbidden: changed from initial configuration file".into());
        }
        let jwt = configurations.into_iter().flat_map(|configuration| configuration.jwt);
        let jwt = jwt.map(Arc::new).collect();
        *self.jwt.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(jwt);
        Ok(())
    }

    fn issuers(&self) -> Arc<Vec<Arc<oidc::Authentication>>> {
        self.jwt.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Webhook that is asked about bearer tokens which no other authenticator knows. Default: none.
    #[must_use]
    pub fn token_webhook(mut self, webhook: TokenWebhook) -> Self {
        self.webhook = Some(webhook);
        self
    }

    /// Parses a token file: lines of `token,user,uid[,"group1,group2"]`.
    ///
    /// ```
    /// use k8s_apiserver::auth::authenticate::Authenticator;
    /// let tokens = Authenticator::parse_token_file("s3cret,eve,42,\"shop,admins\"\n")?;
    /// assert_eq!((tokens["s3cret"].name.as_str(), tokens["s3cret"].groups[0].as_str()), ("eve", "shop"));
    /// assert!(Authenticator::parse_token_file("s3cret,eve").is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A line with too few fields.
    pub fn parse_token_file(text: &str) -> Result<HashMap<String, User>, TokenFileError> {
        files::lines(text, "token").map(|lines| lines.into_iter().collect())
    }

    /// Measures certificates and the token webhook in a server's metrics.
    pub(crate) fn measure(&mut self, registry: &Registry) {
        self.expiration = Some(metrics::certificate_expiration(registry));
        if let Some(webhook) = &mut self.webhook {
            webhook.measure(registry);
        }
    }

    /// Rejects requests without credentials.
    pub(crate) fn refuse_anonymous(&mut self) {
        self.anonymous = Anonymous::Never;
    }

    /// Returns the user of a bearer token for one of `audiences`. Tokens that name no audiences are for the
    /// API server.
    ///
    /// # Errors
    /// The reasons of the rejection.
    pub(crate) async fn token(
        &self,
        token: &str,
        audiences: &[String],
        evidence: &Evidence<'_>,
    ) -> Result<Verified, TokenError> {
        let refused = match evidence.issuer.verify(token, audiences, evidence.now(), evidence) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        let mut own = evidence.issuer.api_audiences().to_vec();
        own.retain(|audience| audiences.contains(audience));
        if own.is_empty() {
            return Err(refused);
        }
        if let Some(user) = self.tokens.get(&hashed(token.as_bytes())) {
            return Ok(Verified { user: user.clone(), audiences: own });
        }
        if self.bootstrap_tokens {
            match bootstrap_tokens::user(token, evidence) {
                Ok(user) => return Ok(Verified { user, audiences: own }),
                Err(reason) => tracing::debug!(reason, "no bootstrap token"),
            }
        }
        let mut reasons = Vec::new();
        if let Some((issuer, token, claims)) = self.issuer(token) {
            match issuer.user(&token, &claims, evidence.now()).await {
                Ok(user) => return Ok(Verified { user, audiences: own }),
                Err(reason) => {
                    tracing::debug!(reason, "bearer token refused");
                    reasons.push(reason);
                }
            }
        }
        if let Some(webhook) = &self.webhook {
            match webhook.user(token, &own).await {
                Ok(verified) => return Ok(verified),
                Err(reason) if reason.is_empty() => {}
                Err(reason) => reasons.push(reason),
            }
        }
        Err(if reasons.is_empty() { refused } else { TokenError::Refused { reasons } })
    }

    /// Returns the issuer that a token names, with the token's parts, before they are verified.
    fn issuer<'a>(&self, token: &'a str) -> Option<(Arc<oidc::Authentication>, Token<'a>, Value)> {
        let issuers = self.issuers();
        if issuers.is_empty() {
            return None;
        }
        let token = Token::parse(token)?;
        let claims = token.unverified_claims()?;
        let named = str_at(&claims, "/iss");
        let issuer = issuers.iter().find(|issuer| issuer.issuer() == named)?.clone();
        Some((issuer, token, claims))
    }

    /// Returns the user of a request's certificate, password or bearer token; `None` without valid
    /// credentials.
    pub(crate) async fn identify(
        &self,
        credentials: &Credentials<'_>,
        evidence: &Evidence<'_>,
    ) -> Option<User> {
        if let Some((user, ends)) = credentials.certificate.and_then(|c| certificate_user(&c.0)) {
            if let Some(expiration) = &self.expiration {
                let left = ends.saturating_sub(evidence.now());
                // Seconds of centuries are exact in a float.
                #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
                expiration.observe(left as f64);
            }
            return Some(user);
        }
        if let Some((name, password)) = basic(credentials) {
            return self.passwords.user(&name, &password);
        }
        let token = credentials.bearer_token()?;
        let found = self.token(token, evidence.issuer.api_audiences(), evidence).await;
        found.ok().map(|verified| verified.user)
    }

    /// Returns `system:anonymous` for a request of this path that no authenticator knows.
    ///
    /// # Errors
    /// 401 for rejected credentials, or if credentials are required.
    pub(crate) fn anonymous(&self, credentials: &Credentials<'_>, path: &str) -> Result<User, ApiStatus> {
        let wrong_password = !self.passwords.is_empty() && basic(credentials).is_some();
        match credentials.bearer_token() {
            None if self.anonymous.allows(path) && !wrong_password => Ok(User::anonymous()),
            _ => Err(ApiStatus::unauthorized()),
        }
    }
}

/// Returns the user name and the password of a request.
fn basic(credentials: &Credentials<'_>) -> Option<(String, Vec<u8>)> {
    let value = credentials.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, pair) = value.split_once(' ')?;
    let pair = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(pair.trim()).ok())??;
    let colon = pair.iter().position(|b| *b == b':')?;
    Some((String::from_utf8(pair[..colon].to_vec()).ok()?, pair[colon + 1..].to_vec()))
}

/// Returns the certificate subject's common name as user and its organizations as groups, and the end of the
/// certificate in seconds since 1970. The user id is the
/// attribute that Kubernetes reserves for it. Of several common names the last counts, as upstream and as for
/// those who approve and sign.
#[cfg(feature = "tls")]
fn certificate_user(der: &[u8]) -> Option<(User, i64)> {
    use sha2::{Digest, Sha256};
    use x509_parser::{der_parser::oid, parse_x509_certificate};
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().last()?.as_str().ok().filter(|name| !name.is_empty())?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let mut user = User::new(name, &groups);
    let mut ids = subject.iter_by_oid(&oid!(1.3.6.1.4.1.57683.2));
    match (ids.next(), ids.next()) {
        (None, _) => {}
        (Some(id), None) => id.as_str().ok()?.clone_into(&mut user.uid),
        // Upstream refuses a certificate with several, too.
        (Some(_), Some(_)) => return None,
    }
    let mut id = String::from("X509SHA256=");
    for byte in Sha256::digest(der) {
        for digit in [byte >> 4, byte & 15] {
            id.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    user.extra.insert(CREDENTIAL_ID.into(), vec![id]);
    Some((user, certificate.validity().not_after.timestamp()))
}

/// Without TLS no connection has a certificate.
#[cfg(not(feature = "tls"))]
fn certificate_user(_: &[u8]) -> Option<(User, i64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files() {
        let tokens = Authenticator::parse_token_file("abc,jane,u1,\"dev,ops\"\n\n# x\nxyz,bob,u2\n").unwrap();
        assert_eq!(tokens["abc"].groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(tokens["xyz"].name, "bob");
        assert!(Authenticator::parse_token_file("onlytoken").is_err());
    }
}
