//! JSON Web Tokens of identity providers (OpenID Connect).
//!
//! Flow: a token whose issuer is configured is verified with the keys that the issuer publishes, its claims
//! are checked by rules and mapped to a user. A token of another issuer is left to the next authenticator.
//! Guarantees: only keys of the token's own issuer verify it, with an algorithm of the key's kind; an
//! unknown key causes a bounded number of requests to the issuer.
//! Not here: distributed claims (`_claim_names`), which would have the server follow URLs from tokens.

mod provider;
mod rules;

pub(super) use provider::Issuer;
use provider::Provider;
pub(super) use rules::{ClaimRule, Expression, Mapping, Rules};
use serde_json::Value;

use super::{
    jwt::{self, Token},
    keys::Algorithm,
};
use crate::user::User;

/// Seconds that clocks may differ where a token begins to be valid.
const LEEWAY: f64 = 60.0;

/// An issuer of tokens, and the rules by which they name users.
#[derive(Debug)]
pub(super) struct Authentication {
    provider: Provider,
    rules: Rules,
    /// Accepted algorithms; `None`: all that are known.
    algorithms: Option<Vec<Algorithm>>,
}

impl Authentication {
    pub(super) fn new(issuer: Issuer, rules: Rules, algorithms: Option<Vec<Algorithm>>) -> Self {
        Authentication { provider: Provider::new(issuer), rules, algorithms }
    }

    /// Returns the value of the claim `iss` of this issuer's tokens.
    pub(super) fn issuer(&self) -> &str {
        &self.provider.issuer.url
    }

    /// Returns the user of a token of this issuer. `claims` are the token's.
    ///
    /// # Errors
    /// The reason of the rejection, without parts of the token.
    pub(super) async fn user(&self, token: &Token<'_>, claims: &Value, now: i64) -> Result<User, String> {
        self.verify(token, claims, now).await.map_err(|e| format!("oidc: verify token: {e}"))?;
        self.rules.user(claims).map_err(|e| format!("oidc: {e}"))
    }

    async fn verify(&self, token: &Token<'_>, claims: &Value, now: i64) -> Result<(), String> {
        let header = token.header().ok_or("oidc: malformed jwt, or an unsupported algorithm")?;
        if self.algorithms.as_ref().is_some_and(|known| !known.contains(&header.algorithm)) {
            return Err(format!(
                "oidc: id token signed with unsupported algorithm {:?}",
                header.algorithm.name()
            ));
        }
        let has = jwt::audiences(claims);
        let wanted = &self.provider.issuer.audiences;
        if !has.iter().any(|audience| wanted.contains(audience)) {
            return Err(format!("oidc: expected audience in {wanted:?} got {has:?}"));
        }
        // Dates of JSON Web Tokens may have fractions.
        let at = |claim: &str| claims.get(claim).map(Value::as_f64);
        #[allow(clippy::cast_precision_loss)] // Exact until the year 285 million.
        let now = now as f64;
        match at("exp") {
            Some(Some(end)) if now < end => {}
            Some(Some(_)) => return Err("oidc: token is expired".into()),
            _ => return Err("oidc: the token has no expiry".into()),
        }
        match at("nbf") {
            None => {}
            Some(Some(start)) if start <= now + LEEWAY => {}
            Some(_) => return Err("oidc: current time is before the nbf (not before) time".into()),
        }
        self.provider.verify(token, &header).await
    }
}
