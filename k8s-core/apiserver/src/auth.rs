//! Authentication and authorization of requests.
//!
//! Flow: a request's client certificate, password or bearer token is looked up by the [`Authenticator`]; the
//! first authenticator that knows it decides who the user is. Tokens are asked for in upstream's order: token
//! file, service accounts.

pub mod authenticate;
mod authorize;
mod der;
mod evidence;
pub(crate) mod impersonate;
mod jwt;
mod keys;
pub(crate) mod openid;
pub mod rbac;
pub mod tokens;

pub use crate::request::PeerCertificate;
pub use authenticate::{Authenticator, TokenFileError};
pub(crate) use authorize::Authorization;
pub(crate) use evidence::Evidence;
pub use keys::PublicKey;
pub use tokens::ServiceAccountTokens;

/// Authorizer of the server (`--authorization-mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Role-based access control, with upstream's default roles.
    #[default]
    Rbac,
    /// Every authenticated request is allowed.
    AlwaysAllow,
}
