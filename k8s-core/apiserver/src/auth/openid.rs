//! The service account issuer's discovery document and public keys.

use serde_json::{Value, json};

use super::tokens::TokenIssuer;

/// Path of the discovery document.
pub(crate) const CONFIGURATION: &str = "/.well-known/openid-configuration";
/// Path of the public keys.
pub(crate) const KEYS: &str = "/openid/v1/jwks";
/// Media type of the public keys.
pub(crate) const KEYS_MEDIA: &str = "application/jwk-set+json";

/// Returns the discovery document. `None` if the issuer's URL or that of its keys cannot be published: only
/// https, without query and fragment.
pub(crate) fn configuration(issuer: &TokenIssuer) -> Option<Value> {
    let settings = issuer.settings();
    let url = settings.issuers.first().filter(|url| is_publishable(url) && !url.contains(['?', '#']))?;
    let keys = match (&settings.jwks_uri, &settings.external_address) {
        (Some(uri), _) => Some(uri.clone()).filter(|uri| is_publishable(uri)),
        (None, Some(address)) => Some(format!("https://{address}{KEYS}")),
        (None, None) => None,
    }?;
    let mut algorithms: Vec<&str> = issuer.keys().map(|key| key.algorithm().name()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    Some(json!({
        "issuer": url, "jwks_uri": keys, "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": algorithms,
    }))
}

/// Returns the public keys that verify service account tokens. `None` if the discovery document has none.
pub(crate) fn keys(issuer: &TokenIssuer) -> Option<Value> {
    configuration(issuer)?;
    let keys: Vec<Value> = issuer.keys().map(super::keys::PublicKey::to_jwk).collect();
    Some(json!({"keys": keys}))
}

fn is_publishable(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|url| url.scheme_str() == Some("https") && url.host().is_some())
}
