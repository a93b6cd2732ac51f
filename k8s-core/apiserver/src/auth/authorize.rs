//! Authorization: the authorizers that a distribution added, then the server's own mode.

use std::sync::Arc;

use k8s_core::status::{ApiStatus, Reason};
use k8s_store::Store;

use super::{AuthorizationMode, rbac::Rbac};
use crate::{
    request::{Attributes, RequestInfo},
    stages::{Authorize, Decision},
    user::User,
};

/// Decides what users may do.
pub(crate) struct Authorization {
    /// Asked before the mode, in their order.
    pub(crate) authorizers: Vec<Arc<dyn Authorize>>,
    pub(crate) mode: AuthorizationMode,
    pub(crate) rbac: Rbac,
    pub(crate) store: Store,
}

impl Authorization {
    /// Checks that `user` may do it.
    ///
    /// # Errors
    /// 403 with the reason.
    pub(crate) async fn authorize(&self, user: &User, a: &Attributes<'_>) -> Result<(), ApiStatus> {
        let mut reason = String::new();
        for authorizer in &self.authorizers {
            match authorizer.authorize(user, a).await {
                Decision::Allow => return Ok(()),
                Decision::Deny(why) => {
                    reason = why;
                    break;
                }
                Decision::NoOpinion => {}
            }
        }
        let allowed =
            || self.mode == AuthorizationMode::AlwaysAllow || self.rbac.allows(&self.store, user, a);
        if reason.is_empty() && allowed() {
            return Ok(());
        }
        let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
        let why = if a.path.is_empty() {
            let resource = if a.subresource.is_empty() {
                a.resource.to_owned()
            } else {
                format!("{}/{}", a.resource, a.subresource)
            };
            let scope = if a.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{}\"", a.namespace)
            };
            format!(
                "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{reason}",
                user.name, a.verb, a.group
            )
        } else {
            let why =
                format!("forbidden: User \"{}\" cannot {} path \"{}\"{reason}", user.name, a.verb, a.path);
            return Err(ApiStatus::of(Reason::Forbidden, why).about("", "", ""));
        };
        Err(ApiStatus::forbidden(a.group, a.resource, a.name, &why))
    }

    /// Checks that a caller may `create` what a request is about ([`Attributes::create`]).
    ///
    /// # Errors
    /// 403 with the reason.
    pub(crate) async fn may_create(&self, user: &User, info: &RequestInfo) -> Result<(), ApiStatus> {
        self.authorize(user, &Attributes::create(info)).await
    }
}
