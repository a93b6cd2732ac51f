//! Who a request comes from, and what that user may do.

pub mod authenticate;
pub(crate) mod impersonate;
pub mod rbac;
pub mod tokens;

pub use authenticate::{Authenticator, PeerCertificate};

/// How requests are authorized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Role-based access control.
    #[default]
    Rbac,
    /// Everybody may do everything.
    AlwaysAllow,
}
