//! Authentication and authorization of requests.

pub mod abac;
pub mod authenticate;
mod authorize;
pub(crate) mod default_roles;
pub(crate) mod impersonate;
pub(crate) mod node;
pub mod rbac;
mod signature;
pub mod tokens;
pub mod webhook;

pub use crate::request::PeerCertificate;
pub use authenticate::{Authenticator, TokenFileError};
pub(crate) use authorize::Authorization;

/// An authorizer of the server (`--authorization-mode`). The server asks its authorizers in order; the first
/// that allows or denies decides, and a request that none allows is refused. `system:masters` may do
/// everything, whatever the modes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AuthorizationMode {
    /// Kubelets get the objects that the pods of their node refer to, and their own objects.
    Node,
    /// Role-based access control, with upstream's default roles.
    Rbac,
    /// Attribute-based access control, with the lines of a policy file.
    Abac(abac::Policies),
    /// Another server decides, asked by SubjectAccessReviews.
    Webhook(webhook::WebhookAuthorizer),
    /// Every authenticated request is allowed.
    AlwaysAllow,
    /// Nothing is allowed.
    AlwaysDeny,
}
