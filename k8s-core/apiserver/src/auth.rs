//! Authentication and authorization.

pub mod authenticate;
pub(crate) mod impersonate;
pub mod rbac;
pub mod tokens;

pub use authenticate::{Authenticator, PeerCertificate};

/// Authorization mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Role-based access control.
    #[default]
    Rbac,
    /// Every authenticated request is allowed.
    AlwaysAllow,
}
