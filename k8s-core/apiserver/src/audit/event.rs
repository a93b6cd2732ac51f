//! Audit events (audit.k8s.io/v1), and their forms in a log.

use std::collections::BTreeMap;

use k8s_core::api::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Serialize;
use serde_json::Value;

use crate::{request::RequestInfo, user::User};

/// A user in an event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EventUser {
    /// User name; empty if authentication failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Unique id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Further attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl From<&User> for EventUser {
    fn from(user: &User) -> Self {
        EventUser {
            username: user.name.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
        }
    }
}

/// The object of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Plural name of the resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// Namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Uid, if the request's body has it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    /// API version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Resource version, if the request's body has it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Subresource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

impl From<&RequestInfo> for ObjectRef {
    fn from(info: &RequestInfo) -> Self {
        ObjectRef {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            api_group: info.group.clone(),
            api_version: info.version.clone(),
            subresource: info.subresource.clone(),
            ..ObjectRef::default()
        }
    }
}

/// An event about a stage of a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `Event`.
    pub kind: &'static str,
    /// `audit.k8s.io/v1`.
    pub api_version: &'static str,
    /// Level at which the request is recorded.
    pub level: &'static str,
    /// Id of the request, as in the response's `Audit-Id` header.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// Stage of the request.
    pub stage: &'static str,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Verb, or for non-resource paths the method in lower case.
    pub verb: String,
    /// User whose credentials the request has.
    pub user: EventUser,
    /// User that it impersonates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<EventUser>,
    /// Addresses of the client and of proxies; empty for callers in the same process.
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    /// `User-Agent` header, at most 1024 bytes and a mark that it was cut.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    /// Object of the request; `None` for other paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    /// Status of the response; only its code for a success. `None` before the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<Value>,
    /// Body of the request as the client sent it, from level Request on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Value>,
    /// Body of the response, at level RequestResponse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Value>,
    /// Time at which the request was received.
    pub request_received_timestamp: MicroTime,
    /// Time of the stage.
    pub stage_timestamp: MicroTime,
    /// Annotations of authorization and admission.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Event {
    /// Returns the line of the format `legacy`, without a line feed.
    #[must_use]
    pub fn legacy(&self) -> String {
        let none = "<none>".to_owned();
        let list = |all: &[String]| all.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(",");
        let (user, groups) = match (&self.user.username, self.user.groups.is_empty()) {
            (name, _) if name.is_empty() => (none.clone(), none.clone()),
            (name, true) => (name.clone(), none.clone()),
            (name, false) => (name.clone(), list(&self.user.groups)),
        };
        let (other, other_groups) = match &self.impersonated_user {
            None => ("<self>".to_owned(), "<lookup>".to_owned()),
            Some(other) => (other.username.clone(), list(&other.groups)),
        };
        let namespace = self.object_ref.as_ref().map(|object| &object.namespace).filter(|n| !n.is_empty());
        let response = self.response_status.as_ref().map(|status| status["code"].to_string());
        format!(
            "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={user:?} groups={groups:?} as={other:?} asgroups={other_groups:?} user-agent={:?} namespace={:?} uri={:?} response=\"{}\"",
            self.request_received_timestamp.0,
            self.audit_id,
            self.stage,
            self.source_ips.first().map_or("<unknown>", String::as_str),
            self.verb,
            self.user_agent,
            namespace.unwrap_or(&none),
            self.request_uri,
            response.as_deref().unwrap_or("<deferred>"),
        )
    }
}
