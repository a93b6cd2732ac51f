//! Authentication and authorization of requests.

pub mod authenticate;
mod authorize;
pub(crate) mod impersonate;
pub mod rbac;
mod signature;
pub mod tokens;

pub use crate::request::PeerCertificate;
pub use authenticate::{Authenticator, TokenFileError};
pub(crate) use authorize::Authorization;

/// Authorization mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Role-based access control.
    #[default]
    Rbac,
    /// Every authenticated request is allowed.
    AlwaysAllow,
}
