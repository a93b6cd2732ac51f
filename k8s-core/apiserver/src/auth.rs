//! Authentication and authorization of requests.
//!
//! Flow: a request's client certificate, password or bearer token is looked up by the [`Authenticator`]; the
//! first authenticator that knows it decides who the user is. A bearer token may be of
//! a service account, of the token file, a bootstrap token, or of an identity provider (the
//! file of `--authentication-config`). Last a webhook is asked.

pub mod abac;
pub mod access_webhook;
mod anonymous;
pub mod authenticate;
mod authorize;
mod bootstrap_tokens;
mod configuration;
mod constant_time;
pub(crate) mod default_roles;
mod der;
mod evidence;
mod files;
pub(crate) mod impersonate;
mod jwt;
mod keys;
pub(crate) mod metrics;
pub(crate) mod node;
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
    Webhook(access_webhook::WebhookAuthorizer),
    /// Every authenticated request is allowed.
    AlwaysAllow,
    /// Nothing is allowed.
    AlwaysDeny,
}
