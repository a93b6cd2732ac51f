//! Authentication and authorization of requests.
//!
//! Flow: a request's client certificate, password or bearer token is looked up by the [`Authenticator`]; the
//! first authenticator that knows it decides who the user is. A bearer token may be of
//! a service account, of the token file, a bootstrap token, or of an identity provider (the
//! file of `--authentication-config`). Last a webhook is asked.

mod anonymous;
pub mod authenticate;
mod authorize;
mod bootstrap_tokens;
mod configuration;
mod constant_time;
mod der;
mod evidence;
mod files;
pub(crate) mod impersonate;
mod jwt;
mod keys;
mod oidc;
pub(crate) mod openid;
pub mod rbac;
pub mod tokens;
mod webhook;

pub use crate::request::PeerCertificate;
pub use authenticate::Authenticator;
pub(crate) use authorize::Authorization;
pub use configuration::{AuthenticationConfiguration, ConfigurationError, OidcSettings};
pub(crate) use evidence::Evidence;
pub use files::{Passwords, TokenFileError};
pub use keys::PublicKey;
pub use tokens::ServiceAccountTokens;
pub use webhook::{ReviewVersion, TokenWebhook, WebhookError};

/// Authorizer of the server (`--authorization-mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Role-based access control, with upstream's default roles.
    #[default]
    Rbac,
    /// Every authenticated request is allowed.
    AlwaysAllow,
}
