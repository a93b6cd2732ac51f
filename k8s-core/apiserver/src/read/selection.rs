//! Selection of objects by namespace, labels and fields, with the store's indexes.

use std::sync::Arc;

use k8s_core::{
    meta::{
        FieldSelector, LabelSelector,
        selector::{Operator, SelectorError},
    },
    status::ApiStatus,
};
use k8s_store::{Snapshot, Store, StoreError, Stored, Term};
use serde_json::Value;

use crate::{
    call::Call,
    resources::{Field, Resource},
};

/// The namespace, labels and fields that a request selects.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    namespace: String,
    namespaced: bool,
    name: String,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Names of the resource's selectable fields, and where they are.
    known: Arc<[String]>,
    places: Arc<[Field]>,
    /// The store indexes selectable fields. A custom resource may declare one after its objects were stored.
    indexed: bool,
}

impl Selection {
    pub(crate) fn from_call(call: &Call, resource: &Resource) -> Result<Self, ApiStatus> {
        let labels: LabelSelector = call
            .query
            .get("labelSelector")
            .parse()
            .map_err(|e: SelectorError| ApiStatus::bad_request(e.0))?;
        let fields: FieldSelector = call
            .query
            .get("fieldSelector")
            .parse()
            .map_err(|e: SelectorError| ApiStatus::bad_request(e.0))?;
        for (path, _, _) in &fields.terms {
            let plain = path == "metadata.name" || (path == "metadata.namespace" && resource.namespaced);
            if !plain && !resource.field_names.iter().any(|f| f == path) {
                let mut known = vec!["metadata.name"];
                if resource.namespaced {
                    known.push("metadata.namespace");
                }
                known.extend(resource.field_names.iter().map(String::as_str));
                let known: Vec<String> = known.iter().map(|k| format!("\"{k}\"")).collect();
                return Err(ApiStatus::bad_request(format!(
                    "\"{path}\" is not a known field selector: only {}",
                    known.join(", ")
                )));
            }
        }
        let name = match fields.required("metadata.name") {
            // A user who is authorized for the name in the path must not read another object.
            Some(name) if !call.info.name.is_empty() && name != call.info.name => {
                return Err(ApiStatus::bad_request(
                    "fieldSelector metadata.name doesn't match requested name",
                ));
            }
            Some(name) => name.to_owned(),
            None => call.info.name.clone(),
        };
        let namespace = match fields.required("metadata.namespace") {
            Some(namespace) if call.info.namespace.is_empty() => namespace.to_owned(),
            _ => call.info.namespace.clone(),
        };
        Ok(Selection {
            namespace,
            namespaced: resource.namespaced,
            name,
            labels,
            fields,
            known: resource.field_names.clone(),
            places: resource.fields.clone(),
            indexed: !resource.custom,
        })
    }

    /// Returns true if only the namespace narrows the selection.
    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.terms.is_empty() && self.name.is_empty()
    }

    /// The start of every selected key.
    fn prefix(&self) -> String {
        if self.namespaced && !self.namespace.is_empty() {
            format!("{}/", self.namespace)
        } else {
            String::new()
        }
    }

    /// Terms that a selected object has, for the store's index: one of each element's.
    fn wanted(&self) -> Vec<Vec<Term<'_>>> {
        let labels = self.labels.requirements.iter().filter_map(|r| match &r.operator {
            Operator::In(values) => Some(values.iter().map(|v| Term::Label(&r.key, v)).collect()),
            _ => None,
        });
        let fields = self.known.iter().enumerate().filter(|_| self.indexed).filter_map(|(at, path)| {
            let value = self.fields.required(path).filter(|v| !v.is_empty())?;
            Some(vec![Term::Field(at, value)])
        });
        labels.chain(fields).collect()
    }

    /// The selected objects now, or at an older revision.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when history does not reach back that far.
    pub(crate) fn select(
        &self,
        store: &Store,
        storage: &str,
        at: Option<u64>,
    ) -> Result<Selected, StoreError> {
        let make =
            |snapshot, keys| Selected { snapshot, keys, prefix: self.prefix(), selection: self.clone() };
        if !self.name.is_empty() && (!self.namespaced || !self.namespace.is_empty()) {
            // One object at most.
            let (snapshot, _) = store.select(storage, at, &[])?;
            let key =
                if self.namespaced { format!("{}/{}", self.namespace, self.name) } else { self.name.clone() };
            return Ok(make(snapshot, Some(vec![key.into()])));
        }
        let (snapshot, keys) = store.select(storage, at, &self.wanted())?;
        Ok(make(snapshot, keys))
    }

    pub(crate) fn accepts(&self, stored: &Stored) -> bool {
        (!self.namespaced || self.namespace.is_empty() || stored.namespace() == self.namespace)
            && (self.name.is_empty() || stored.name() == self.name)
            && self.labels.matches_with(|key| stored.label(key))
            && (self.fields.terms.is_empty() || self.fields.matches_with(|path| self.field(stored, path)))
    }

    fn field(&self, stored: &Stored, path: &str) -> String {
        match path {
            "metadata.name" => stored.name().to_owned(),
            "metadata.namespace" => stored.namespace().to_owned(),
            _ => match self.known.iter().position(|f| f == path) {
                None => String::new(),
                Some(at) if stored.fields.len() == self.known.len() => stored.fields[at].to_string(),
                // Stored before the field was declared selectable.
                Some(at) => serde_json::from_slice::<Value>(&stored.json)
                    .map(|object| self.places[at].text(&object))
                    .unwrap_or_default(),
            },
        }
    }
}

/// The objects of a selection at one moment.
#[derive(Debug)]
pub(crate) struct Selected {
    snapshot: Snapshot,
    /// Keys of candidate objects. `None`: all objects are candidates.
    keys: Option<Vec<Arc<str>>>,
    prefix: String,
    selection: Selection,
}

impl Selected {
    /// The revision of the whole store that it shows.
    pub(crate) fn revision(&self) -> u64 {
        self.snapshot.revision
    }

    /// Returns the number of objects of the type, selected or not.
    pub(super) fn total(&self) -> usize {
        self.snapshot.len()
    }

    /// Returns true if every object of the type is selected.
    pub(super) fn is_all(&self) -> bool {
        self.prefix.is_empty() && self.selection.is_everything()
    }

    /// Returns true if only the namespace narrows the selection.
    pub(super) fn is_whole_namespace(&self) -> bool {
        self.selection.is_everything()
    }

    /// The selected objects whose keys come after `after`, in key order.
    pub(crate) fn after<'a>(
        &'a self,
        after: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Stored>> + Send + 'a> {
        let all: Box<dyn Iterator<Item = &'a Arc<Stored>> + Send> = match &self.keys {
            Some(keys) => {
                let from = keys.partition_point(|key| !after.is_empty() && **key <= *after);
                Box::new(keys.get(from..).unwrap_or_default().iter().filter_map(|key| self.snapshot.get(key)))
            }
            None => Box::new(self.snapshot.range(&self.prefix, after)),
        };
        Box::new(all.filter(|stored| self.selection.accepts(stored)))
    }
}
