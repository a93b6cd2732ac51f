//! The requests that a webhook or policy is about: rules, and selectors of namespaces and objects.

use std::sync::Arc;

use k8s_core::{
    json,
    meta::LabelSelector,
    status::{ApiStatus, Reason},
};
use k8s_store::Store;
use serde_json::{Map, Value};

use super::{Operation, event::Event};
use crate::{
    resources::Resource,
    value::{array_at, str_at},
};

/// A rule: operations and resources.
#[derive(Debug)]
struct Rule {
    /// Empty: all.
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resources and subresources.
    resources: Vec<(String, String)>,
    /// Object names; empty: all.
    names: Vec<String>,
    /// `Some(true)`: namespaced resources only.
    namespaced: Option<bool>,
}

fn texts(rule: &Value, field: &str) -> Vec<String> {
    let all = rule.get(field).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|text| text == "*" || text == value)
}

impl Rule {
    fn new(rule: &Value) -> Self {
        let split = |text: String| match text.split_once('/') {
            Some((resource, part)) => (resource.to_owned(), part.to_owned()),
            None => (text, String::new()),
        };
        Rule {
            operations: texts(rule, "operations"),
            groups: texts(rule, "apiGroups"),
            versions: texts(rule, "apiVersions"),
            resources: texts(rule, "resources").into_iter().map(split).collect(),
            names: texts(rule, "resourceNames"),
            namespaced: match str_at(rule, "/scope") {
                "Namespaced" => Some(true),
                "Cluster" => Some(false),
                _ => None,
            },
        }
    }

    /// Returns true if the rule is about an event, were it one of `resource`.
    fn matches(&self, event: &Event<'_>, resource: &Resource) -> bool {
        has(&self.operations, event.operation.name())
            && has(&self.groups, &resource.group)
            && has(&self.versions, &resource.version)
            && self.resources.iter().any(|(plural, part)| {
                (plural == "*" || *plural == resource.plural) && (part == "*" || part == event.part)
            })
            && (self.names.is_empty() || self.names.iter().any(|name| name == event.name))
            && self.namespaced.is_none_or(|namespaced| namespaced == resource.namespaced)
    }
}

/// Selects requests.
#[derive(Debug)]
pub(crate) struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Rules are about other versions of a resource, too.
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

/// Reads a selector. Validation refuses one that cannot be read; such a one selects everything.
fn selector(of: &Value, field: &str) -> LabelSelector {
    let parsed = of.get(field).and_then(|selector| json::from_value(selector).ok());
    parsed.and_then(|parsed| LabelSelector::from_api(&parsed).ok()).unwrap_or_default()
}

impl Matcher {
    /// Reads the rules of a webhook (`rules`), or the constraints of a policy (`resourceRules`,
    /// `excludeResourceRules`).
    pub(crate) fn new(of: &Value) -> Self {
        let rules = |field: &str| {
            let all = of.get(field).and_then(Value::as_array).into_iter().flatten();
            all.map(Rule::new).collect::<Vec<_>>()
        };
        Matcher {
            rules: rules("rules").into_iter().chain(rules("resourceRules")).collect(),
            excluded: rules("excludeResourceRules"),
            equivalent: str_at(of, "/matchPolicy") != "Exact",
            namespaces: selector(of, "namespaceSelector"),
            objects: selector(of, "objectSelector"),
        }
    }

    /// Returns the groups and resources of the rules, `*` for all; to find a matcher by them.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().flat_map(|rule| {
            let of_group =
                move |group| rule.resources.iter().map(move |(plural, _)| (group, plural.as_str()));
            rule.groups.iter().map(String::as_str).flat_map(of_group)
        })
    }

    /// Returns true if there are no rules: every request that the selectors select is meant.
    pub(crate) fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Returns the resource that a rule names, if the event is meant: the request's, or an equivalent one.
    ///
    /// # Errors
    /// 404 if the namespace is gone, for an event that is meant otherwise.
    pub(crate) fn find(&self, event: &Event<'_>, store: &Store) -> Result<Option<Place>, ApiStatus> {
        let named = |rules: &[Rule]| {
            if rules.iter().any(|rule| rule.matches(event, event.requested())) {
                return Some(event.call.asked.clone().map_or(Place::Own, Place::Other));
            }
            let others = || equivalents(event).filter(|_| self.equivalent);
            rules.iter().find_map(|rule| {
                others().find(|other| rule.matches(event, other)).map(|other| Place::Other(other.clone()))
            })
        };
        let Some(place) = named(&self.rules) else { return Ok(None) };
        if named(&self.excluded).is_some() || !self.selects_object(event) {
            return Ok(None);
        }
        Ok(self.selects_namespace(event, store)?.then_some(place))
    }

    /// Returns true if the selectors select an event, whatever the rules say.
    ///
    /// # Errors
    /// 404 if the namespace is gone.
    pub(crate) fn selects(&self, event: &Event<'_>, store: &Store) -> Result<bool, ApiStatus> {
        Ok(self.selects_object(event) && self.selects_namespace(event, store)?)
    }

    fn selects_object(&self, event: &Event<'_>) -> bool {
        if self.objects.is_everything() {
            return true;
        }
        [event.object, event.old]
            .into_iter()
            .flatten()
            .any(|object| object.get("metadata").is_some() && selects(&self.objects, Event::labels(object)))
    }

    fn selects_namespace(&self, event: &Event<'_>, store: &Store) -> Result<bool, ApiStatus> {
        if self.namespaces.is_everything() {
            return Ok(true);
        }
        if event.resource.storage.as_ref() == "namespaces" && matches!(event.part, "" | "status" | "finalize")
        {
            // A subresource must not leave the namespace unselected by the labels that it sets.
            let object = if event.part.is_empty() { event.object.or(event.old) } else { event.old };
            return Ok(selects(&self.namespaces, object.and_then(Event::labels)));
        }
        if event.namespace.is_empty() {
            // Objects of the whole cluster are never left out by a selector of namespaces.
            return Ok(true);
        }
        match namespace(store, event.namespace) {
            Some(namespace) => Ok(selects(&self.namespaces, Event::labels(&namespace))),
            None if event.operation == Operation::Delete => Ok(true),
            None => {
                let why = format!("namespaces {:?} not found", event.namespace);
                Err(ApiStatus::of(Reason::NotFound, why).about("", "namespaces", event.namespace))
            }
        }
    }
}

/// The resource in whose version an event is presented.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The request's own.
    Own,
    /// Another version of it.
    Other(Arc<Resource>),
}

impl Place {
    /// Returns the resource.
    pub(crate) fn of<'a>(&'a self, event: &Event<'a>) -> &'a Resource {
        self.or(event.resource)
    }

    /// Returns the resource, where the request's own is `own`.
    pub(crate) fn or<'a>(&'a self, own: &'a Resource) -> &'a Resource {
        match self {
            Place::Own => own,
            Place::Other(other) => other,
        }
    }

    /// Returns an object in the stored form, where the request's own resource is `own`.
    ///
    /// # Errors
    /// 500 if the webhook that converts it fails.
    pub(crate) async fn stored(
        &self,
        own: &Resource,
        mut object: Value,
        store: &Store,
    ) -> Result<Value, ApiStatus> {
        let resource = self.or(own);
        if let Some(webhook) = &resource.webhook {
            let mut all = webhook.convert(store, &own.api_version(), vec![object]).await?;
            return Ok(all.pop().unwrap_or_default());
        }
        resource.to_storage(&mut object);
        Ok(object)
    }
}

/// The other resources with the same stored objects.
fn equivalents<'a>(event: &Event<'a>) -> impl Iterator<Item = &'a Arc<Resource>> + use<'a> {
    let own = event.requested();
    event.call.registry.all().filter(move |other| {
        other.storage == own.storage
            && (other.group != own.group || other.version != own.version || other.plural != own.plural)
    })
}

fn selects(selector: &LabelSelector, labels: Option<&Map<String, Value>>) -> bool {
    selector.matches_with(|key| labels?.get(key)?.as_str())
}

/// Reads a namespace.
pub(crate) fn namespace(store: &Store, name: &str) -> Option<Value> {
    serde_json::from_slice(&store.get("namespaces", name)?.json).ok()
}

/// Returns the rules of match resources in a policy or binding (`spec.matchConstraints`,
/// `spec.matchResources`); null if absent.
pub(crate) fn constraints<'a>(object: &'a Value, field: &str) -> &'a Value {
    object.pointer(&format!("/spec/{field}")).unwrap_or(&Value::Null)
}

/// Returns the sorted conditions of a list: name and expression.
pub(crate) fn expressions<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    array_at(of, field).iter().map(|one| (str_at(one, "/name"), str_at(one, "/expression")))
}
