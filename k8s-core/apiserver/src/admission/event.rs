//! A request as policies and webhooks see it, whatever its operation.

use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::{Map, Value, json};

use super::{Admission, Connection, Deletion, Operation};
use crate::{call::Call, resources::Resource};

/// A request for one object, with the object before and after.
pub(crate) struct Event<'a> {
    pub(crate) operation: Operation,
    pub(crate) call: &'a Call,
    pub(crate) resource: &'a Resource,
    /// The subresource; empty for none.
    pub(crate) part: &'a str,
    /// The namespace; empty for none.
    pub(crate) namespace: &'a str,
    /// The name; empty for an object that has none yet.
    pub(crate) name: &'a str,
    /// The object after, in its stored form or of the subresource's own kind. `None` for a deletion.
    pub(crate) object: Option<&'a Value>,
    /// The object before.
    pub(crate) old: Option<&'a Value>,
    /// The options of the request.
    pub(crate) options: Value,
    pub(crate) dry_run: bool,
}

/// Group, version and kind; or group, version and plural name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) name: String,
}

impl Named {
    fn json(&self, field: &str) -> Value {
        json!({"group": self.group, "version": self.version, field: self.name})
    }
}

impl<'a> Event<'a> {
    /// A create or update.
    pub(crate) fn of_write(admission: &'a Admission<'_>) -> Self {
        let call = admission.call;
        let namespaced = admission.resource.namespaced;
        Event {
            operation: admission.operation,
            call,
            resource: admission.resource,
            part: &call.info.subresource,
            namespace: if namespaced { &call.info.namespace } else { "" },
            name: admission.name(),
            object: Some(admission.object),
            old: admission.old,
            options: options(call, admission.operation, admission.dry_run),
            dry_run: admission.dry_run,
        }
    }

    /// A deletion of `old`.
    pub(crate) fn of_deletion(deletion: &'a Deletion<'_>, old: &'a Value) -> Self {
        let mut sent = deletion.options.as_object().cloned().unwrap_or_default();
        let query = options(deletion.call, Operation::Delete, deletion.dry_run);
        for (name, value) in query.as_object().into_iter().flatten() {
            sent.entry(name.clone()).or_insert_with(|| value.clone());
        }
        sent.insert("kind".into(), "DeleteOptions".into());
        sent.insert("apiVersion".into(), "meta.k8s.io/v1".into());
        Event {
            operation: Operation::Delete,
            call: deletion.call,
            resource: deletion.resource,
            part: "",
            namespace: deletion.namespace,
            name: deletion.name,
            object: None,
            old: Some(old),
            options: Value::Object(sent),
            dry_run: deletion.dry_run,
        }
    }

    /// A connection. Its object is the options.
    pub(crate) fn of_connection(connection: &'a Connection<'_>) -> Self {
        let info = connection.request;
        Event {
            operation: Operation::Connect,
            call: connection.call,
            resource: connection.resource,
            part: &info.subresource,
            namespace: if connection.resource.namespaced { &info.namespace } else { "" },
            name: &info.name,
            object: Some(connection.options),
            old: None,
            options: Value::Null,
            dry_run: false,
        }
    }

    /// Returns the kind of the object where the resource is `resource`, an equivalent of this one.
    pub(crate) fn kind(&self, resource: &Resource) -> Named {
        let part = resource.subresource(self.part).filter(|_| !self.part.is_empty());
        let own = part.filter(|part| part.kind != resource.kind);
        let (group, version) = match own.map(|part| &part.group_version) {
            Some(Some((group, version))) => (group.clone(), version.clone()),
            // The kinds of the core group's subresources are in the core group.
            _ => (resource.group.clone(), resource.version.clone()),
        };
        let name = own.map_or(&resource.kind, |part| &part.kind).clone();
        Named { group, version, name }
    }

    /// Returns true if objects of this request are of the resource's own kind.
    pub(crate) fn is_whole(&self) -> bool {
        let part = self.resource.subresource(self.part).filter(|_| !self.part.is_empty());
        self.operation != Operation::Connect && part.is_none_or(|part| part.kind == self.resource.kind)
    }

    /// Returns the resource that the client named.
    pub(crate) fn requested(&self) -> &'a Resource {
        self.call.asked.as_deref().unwrap_or(self.resource)
    }

    /// Returns an object of this request as `resource` serves it; null for none.
    ///
    /// # Errors
    /// 500 if the webhook that converts it fails.
    pub(crate) async fn served(
        &self,
        resource: &Resource,
        object: Option<&Value>,
        store: &Store,
    ) -> Result<Value, ApiStatus> {
        let Some(mut object) = object.cloned() else { return Ok(Value::Null) };
        if !self.is_whole() {
            return Ok(object);
        }
        if let Some(webhook) = &resource.webhook {
            let mut all = webhook.convert(store, &resource.api_version(), vec![object]).await?;
            return Ok(all.pop().unwrap_or_default());
        }
        resource.from_storage(&mut object);
        Ok(object)
    }

    /// Returns the request without its objects, as in an AdmissionReview, where `resource` is the one that a
    /// rule names.
    pub(crate) fn request(&self, resource: &Resource) -> Value {
        let user = &self.call.user;
        let named = |resource: &Resource| Named {
            group: resource.group.clone(),
            version: resource.version.clone(),
            name: resource.plural.clone(),
        };
        let mut info = json!({"username": user.name, "groups": user.groups});
        if !user.uid.is_empty() {
            info["uid"] = user.uid.clone().into();
        }
        if !user.extra.is_empty() {
            info["extra"] = json!(user.extra);
        }
        let mut request = json!({
            "kind": self.kind(resource).json("kind"),
            "resource": named(resource).json("resource"),
            "requestKind": self.kind(self.requested()).json("kind"),
            "requestResource": named(self.requested()).json("resource"),
            "operation": self.operation.name(),
            "userInfo": info,
            "dryRun": self.dry_run,
            "options": self.options,
        });
        let texts = [
            ("name", self.name),
            ("namespace", self.namespace),
            ("subResource", self.part),
            ("requestSubResource", self.part),
        ];
        for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            request[field] = text.into();
        }
        if self.resource.storage.as_ref() == "namespaces" {
            // As upstream: a Namespace is in itself.
            request["namespace"] = self.name.into();
        }
        request
    }

    /// The refusal of this request: 403 for its object.
    pub(crate) fn forbidden(&self, why: &str) -> ApiStatus {
        ApiStatus::forbidden(&self.resource.group, &self.resource.plural, self.name, why)
    }

    /// Returns the labels of an object of this request.
    pub(crate) fn labels(object: &Value) -> Option<&Map<String, Value>> {
        object.get("metadata")?.get("labels")?.as_object()
    }
}

impl Operation {
    /// Returns the name in rules and reviews.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// Returns the options in a request's query.
fn options(call: &Call, operation: Operation, dry_run: bool) -> Value {
    let kind = match operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if dry_run {
        options["dryRun"] = json!(["All"]);
    }
    for field in ["fieldManager", "fieldValidation"] {
        let text = call.query.get(field);
        if !text.is_empty() && operation != Operation::Delete {
            options[field] = text.into();
        }
    }
    options
}
