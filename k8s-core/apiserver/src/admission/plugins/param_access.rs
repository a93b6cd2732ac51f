//! ParamAccess: who writes an admission policy or binding must be allowed to read its parameters, because
//! expressions and their messages show them.
//!
//! Every write of a policy or binding passes this check, as upstream's storage of these kinds has it. A
//! policy needs `get` on all objects of its `paramKind`; a binding `get` or `list` on what its `paramRef`
//! names. A reference that stays as it was needs nothing.

use std::sync::Arc;

use k8s_core::status::ApiStatus;
use serde_json::Value;

use super::webhooks::EXEMPT as GROUP;
use crate::{
    admission::Admission,
    auth::{Authorization, rbac::is_master},
    invalid::FieldErrors,
    request::Attributes,
    stages::Decision,
    user::User,
    value::str_at,
};

/// Kinds of policies with those of their bindings, by plural names.
const BINDINGS: [(&str, &str); 2] = [
    ("validatingadmissionpolicybindings", "validatingadmissionpolicies"),
    ("mutatingadmissionpolicybindings", "mutatingadmissionpolicies"),
];

/// The check of policies and bindings.
pub(super) struct ParamAccess {
    pub(super) authorization: Arc<Authorization>,
}

impl ParamAccess {
    /// # Errors
    /// 422 for parameters that the user may not read.
    pub(super) async fn check(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let resource = admission.resource;
        let written = admission.request.subresource.is_empty() && resource.group == GROUP;
        if !written || is_master(admission.user) {
            return Ok(());
        }
        let (field, refused) = match BINDINGS.iter().find(|(binding, _)| *binding == resource.plural) {
            Some((_, policies)) => ("spec.paramRef", self.binding(policies, admission).await),
            None => ("spec.paramKind", self.policy(admission).await),
        };
        let Err(why) = refused else { return Ok(()) };
        let mut errors = FieldErrors::default();
        errors.forbidden(field, &why);
        Err(errors.into_status(&resource.group, &resource.kind, admission.name()))
    }

    async fn policy(&self, admission: &Admission<'_>) -> Result<(), String> {
        let kind = |object| part(object, "/spec/paramKind");
        let Some(wanted) = kind(admission.object) else { return Ok(()) };
        if admission.old.and_then(kind) == Some(wanted) {
            return Ok(());
        }
        let params = Params::of(Some(wanted), admission);
        if self.may(admission.user, "get", &params, "*", "*").await {
            return Ok(());
        }
        let (kind, version) = (str_at(wanted, "/kind"), str_at(wanted, "/apiVersion"));
        Err(format!(
            "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={kind}, apiVersion={version})",
            described(admission.user)
        ))
    }

    async fn binding(&self, policies: &str, admission: &Admission<'_>) -> Result<(), String> {
        let reference = |object| part(object, "/spec/paramRef");
        let policy = |object| str_at(object, "/spec/policyName");
        let Some(wanted) = reference(admission.object) else { return Ok(()) };
        let name = policy(admission.object);
        if admission.old.is_some_and(|old| reference(old) == Some(wanted) && policy(old) == name) {
            return Ok(());
        }
        let stored = self.authorization.store.get(&format!("{policies}.{GROUP}"), name);
        let stored = stored.and_then(|stored| serde_json::from_slice::<Value>(&stored.json).ok());
        let kind = stored.as_ref().and_then(|policy| part(policy, "/spec/paramKind"));
        let params = Params::of(kind, admission);
        let object = str_at(wanted, "/name");
        let verb = if object.is_empty() { "list" } else { "get" };
        if self.may(admission.user, verb, &params, str_at(wanted, "/namespace"), object).await {
            return Ok(());
        }
        let who = described(admission.user);
        Err(match stored {
            None => format!(
                "unable to get policy {name} to determine minimum required permissions and user {who} does not have \"{verb}\" permission for all groups, versions and resources"
            ),
            Some(_) => {
                format!("user {who} does not have \"{verb}\" permission on the object referenced by paramRef")
            }
        })
    }

    async fn may(&self, user: &User, verb: &str, params: &Params, namespace: &str, name: &str) -> bool {
        let Params { group, version, resource } = params;
        let wanted = Attributes { verb, group, version, resource, namespace, name, ..Attributes::default() };
        self.authorization.decide(user, &wanted).await.decision == Decision::Allow
    }
}

/// The resource of parameters; `*` for all where it is not known.
struct Params {
    group: String,
    version: String,
    resource: String,
}

impl Params {
    fn of(kind: Option<&Value>, admission: &Admission<'_>) -> Self {
        let all = || "*".to_owned();
        let Some(kind) = kind else { return Params { group: all(), version: all(), resource: all() } };
        let version = str_at(kind, "/apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = admission.call.registry.by_kind(group, version, str_at(kind, "/kind"));
        let resource = resource.map_or_else(all, |resource| resource.plural.clone());
        Params { group: group.to_owned(), version: version.to_owned(), resource }
    }
}

/// Returns an object in another one. Null is as good as none.
fn part<'a>(object: &'a Value, pointer: &str) -> Option<&'a Value> {
    object.pointer(pointer).filter(|part| part.is_object())
}

/// Returns a user as Go prints it.
fn described(user: &User) -> String {
    let extra: Vec<String> =
        user.extra.iter().map(|(key, all)| format!("{key}:[{}]", all.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}
