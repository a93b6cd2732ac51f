//! JSON Web Tokens in compact form.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use serde_json::Value;

use super::keys::{Algorithm, PublicKey};
use crate::value::str_at;

/// Longest token, in bytes.
const LONGEST: usize = 64 << 10;

/// A token whose signature is not verified yet.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    /// The whole token.
    pub(super) text: &'a str,
    /// Header and claims, which are signed.
    message: &'a str,
    signature: &'a str,
}

/// Header of a token.
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    /// Id of the key.
    pub(super) key_id: Option<String>,
}

impl<'a> Token<'a> {
    /// Splits a text of three parts; `None` for others, and for one that is too long.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > LONGEST || text.bytes().filter(|b| *b == b'.').count() != 2 {
            return None;
        }
        let (message, signature) = text.rsplit_once('.')?;
        Some(Token { text, message, signature })
    }

    fn part(&self, part: usize) -> Option<Value> {
        let json = B64.decode(self.message.split('.').nth(part)?).ok()?;
        // serde_json ends at 128 levels.
        serde_json::from_slice::<Value>(&json).ok().filter(Value::is_object)
    }

    /// Returns the header. `None` if it is damaged, has an unsupported algorithm, or critical extensions.
    pub(super) fn header(&self) -> Option<Header> {
        let header = self.part(0)?;
        if header.get("crit").is_some() {
            return None;
        }
        let key_id = match header.get("kid") {
            None => None,
            Some(id) => Some(id.as_str()?.to_owned()).filter(|id| !id.is_empty()),
        };
        Some(Header { algorithm: Algorithm::named(str_at(&header, "/alg"))?, key_id })
    }

    /// Returns the claims before the signature is verified, to find the issuer.
    pub(super) fn unverified_claims(&self) -> Option<Value> {
        self.part(1)
    }

    /// True if the key signed the token with the header's algorithm.
    pub(super) fn is_signed_by(&self, key: &PublicKey, header: &Header) -> bool {
        let signature = B64.decode(self.signature).unwrap_or_default();
        key.verifies(header.algorithm, self.message.as_bytes(), &signature)
    }
}

/// Returns the audiences of claims: a text or a list.
pub(super) fn audiences(claims: &Value) -> Vec<String> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}
