//! Field selectors of a converted version: its fields are known only after the conversion.

use std::{collections::HashSet, sync::Arc};

use k8s_core::{meta::FieldSelector, status::ApiStatus};
use serde_json::Value;

use crate::{
    call::Call,
    read::Selection,
    resources::Resource,
    value::{array_at, str_at},
};

/// The objects that a request selects by fields of the version that it asks for.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    fields: FieldSelector,
    resource: Arc<Resource>,
}

impl Chosen {
    /// Splits a request's field selector: the terms of the version's own fields, and the text of the others,
    /// which the stored version has as well. `Ok(None)`: there is no own one.
    ///
    /// # Errors
    /// 400 for a field that the version does not have.
    pub(super) fn of(call: &Call, resource: &Arc<Resource>) -> Result<Option<(Self, String)>, ApiStatus> {
        let text = call.query.get("fieldSelector");
        if text.is_empty() || !matches!(call.info.verb.as_str(), "list" | "watch" | "deletecollection") {
            return Ok(None);
        }
        Selection::from_call(call, resource)?;
        let selector: FieldSelector = text.parse().unwrap_or_default();
        let (common, own): (Vec<_>, Vec<_>) =
            selector.terms.into_iter().partition(|(path, ..)| path.starts_with("metadata."));
        if own.is_empty() {
            return Ok(None);
        }
        let common: Vec<String> = common
            .iter()
            .map(|(path, equal, value)| format!("{path}{}{value}", if *equal { "=" } else { "!=" }))
            .collect();
        Ok(Some((
            Chosen { fields: FieldSelector { terms: own }, resource: resource.clone() },
            common.join(","),
        )))
    }

    /// Returns true if an object of the requested version is selected.
    pub(super) fn accepts(&self, object: &Value) -> bool {
        self.fields.matches_with(|path| {
            let at = self.resource.field_names.iter().position(|name| name == path);
            at.and_then(|at| self.resource.fields.get(at)).map(|field| field.text(object)).unwrap_or_default()
        })
    }
}

/// What a watch with such a selector has shown.
#[derive(Debug)]
pub(super) struct Shown {
    chosen: Chosen,
    keys: HashSet<(String, String)>,
}

fn key(object: &Value) -> (String, String) {
    (str_at(object, "/metadata/namespace").to_owned(), str_at(object, "/metadata/name").to_owned())
}

impl Shown {
    /// Begins with the objects that the client knows already: a list in the requested version.
    pub(super) fn new(chosen: Chosen, list: &Value) -> Self {
        let known =
            array_at(list, "/items").iter().filter(|object| chosen.accepts(object)).map(key).collect();
        Shown { chosen, keys: known }
    }

    /// Returns what an event is to the client: an object that is selected no longer is deleted to it. `None`:
    /// the client is not told.
    pub(super) fn event(&mut self, kind: &str, object: &Value) -> Option<&'static str> {
        let key = key(object);
        let before = self.keys.contains(&key);
        let now = kind != "DELETED" && self.chosen.accepts(object);
        if now {
            self.keys.insert(key);
        } else {
            self.keys.remove(&key);
        }
        match (before, now) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }
}
