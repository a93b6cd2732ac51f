//! Authenticators: client certificates, static tokens, service account tokens.

use std::collections::HashMap;

use k8s_core::status::ApiStatus;

use super::tokens::{API_AUDIENCE, TokenError, TokenIssuer, Verified};
use crate::{stages::Credentials, user::User};

/// A line of a token file has too few fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: want token,user,uid and optionally \"group1,group2\"")]
pub struct TokenFileError {
    /// Number of the line, from 1.
    pub line: usize,
}

/// Finds out who a request comes from.
#[derive(Debug, Default)]
pub struct Authenticator {
    tokens: HashMap<String, User>,
    anonymous: bool,
}

impl Authenticator {
    /// Creates an authenticator with static tokens. With `anonymous`, requests without credentials are
    /// `system:anonymous`.
    #[must_use]
    pub fn new(tokens: HashMap<String, User>, anonymous: bool) -> Self {
        Authenticator { tokens, anonymous }
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
        let mut tokens = HashMap::new();
        for (number, line) in
            text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'))
        {
            let mut fields = line.splitn(4, ',').map(|f| f.trim().trim_matches('"'));
            let (Some(token), Some(name), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
                return Err(TokenFileError { line: number + 1 });
            };
            let groups: Vec<&str> = fields
                .next()
                .unwrap_or_default()
                .split(',')
                .map(str::trim)
                .filter(|g| !g.is_empty())
                .collect();
            let mut user = User::new(name, &groups);
            user.uid = uid.into();
            tokens.insert(token.to_owned(), user);
        }
        Ok(tokens)
    }

    /// Rejects requests without credentials.
    pub(crate) fn refuse_anonymous(&mut self) {
        self.anonymous = false;
    }

    /// Returns the user of a bearer token for one of `audiences`. Service account tokens need `issuer`;
    /// static tokens are for the API server.
    ///
    /// # Errors
    /// The reason of the rejection.
    pub fn token(
        &self,
        token: &str,
        audiences: &[String],
        issuer: &TokenIssuer,
        now: i64,
        alive: &dyn Fn(&str, &str, &str) -> bool,
    ) -> Result<Verified, TokenError> {
        match self.tokens.get(token) {
            Some(user) if audiences.iter().any(|a| a == API_AUDIENCE) => {
                Ok(Verified { user: user.clone(), audiences: vec![API_AUDIENCE.to_owned()] })
            }
            Some(_) => Err(TokenError::Invalid),
            None => issuer.verify(token, audiences, now, alive),
        }
    }

    /// Returns the user of a request's certificate or bearer token; `None` without valid credentials.
    pub fn identify(
        &self,
        credentials: &Credentials<'_>,
        issuer: &TokenIssuer,
        now: i64,
        alive: &dyn Fn(&str, &str, &str) -> bool,
    ) -> Option<User> {
        if let Some(user) = credentials.certificate.and_then(|c| certificate_user(&c.0)) {
            return Some(user);
        }
        let token = credentials.bearer_token()?;
        self.token(token, &[API_AUDIENCE.to_owned()], issuer, now, alive).ok().map(|verified| verified.user)
    }

    /// Returns `system:anonymous` for a request that no authenticator knows.
    ///
    /// # Errors
    /// 401 for a rejected bearer token, or if credentials are required.
    pub fn anonymous(&self, credentials: &Credentials<'_>) -> Result<User, ApiStatus> {
        match credentials.bearer_token() {
            None if self.anonymous => Ok(User::anonymous()),
            _ => Err(ApiStatus::unauthorized()),
        }
    }
}

/// Returns the certificate subject's common name as user and its organizations as groups. Of several common
/// names the last counts, as upstream and as for those who approve and sign.
#[cfg(feature = "tls")]
fn certificate_user(der: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().last()?.as_str().ok().filter(|name| !name.is_empty())?.to_owned();
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    Some(User::new(&name, &groups))
}

/// Without TLS no connection has a certificate.
#[cfg(not(feature = "tls"))]
fn certificate_user(_: &[u8]) -> Option<User> {
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
