//! Resources: the table of built-in ones, those made at run time, and what each is.
//!
//! A [`Row`] is the static description of a resource; a [`Resource`] is a row that is being served in one version, with its compiled schema.
//! CustomResourceDefinitions and ThirdPartyResources make the same [`Resource`] at run time.

pub mod columns;
pub mod convert;
pub mod custom;
pub mod strategy;
mod table;
pub(crate) mod typed;
pub mod types;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, RwLock},
};

use k8s_core::api::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_schema::{self as schema, Generate, Schema};
use k8s_store::Meta;
use serde_json::Value;

use columns::Column;
use convert::Conversion;
use strategy::Strategy;

/// A special subresource: name, kind, verbs joined by commas.
pub type Special = (&'static str, &'static str, &'static str);

/// The static description of a built-in resource.
#[derive(Debug)]
pub struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short: &'static [&'static str],
    category: &'static str,
    status: bool,
    scale: bool,
    special: &'static [Special],
    fields: &'static [&'static str],
    columns: &'static [Column],
    strategy: &'static Strategy,
    generate: Generate,
}

impl Row {
    const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        generate: Generate,
    ) -> Self {
        Row {
            group,
            version,
            kind,
            plural,
            namespaced: true,
            short: &[],
            category: "",
            status: false,
            scale: false,
            special: &[],
            fields: &[],
            columns: &columns::DEFAULT,
            strategy: &strategy::core::PLAIN,
            generate,
        }
    }
    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }
    const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short = names;
        self
    }
    const fn category(mut self, name: &'static str) -> Self {
        self.category = name;
        self
    }
    const fn status(mut self) -> Self {
        self.status = true;
        self
    }
    const fn scale(mut self) -> Self {
        self.scale = true;
        self
    }
    const fn special(mut self, special: &'static [Special]) -> Self {
        self.special = special;
        self
    }
    const fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = fields;
        self
    }
    const fn columns(mut self, columns: &'static [Column]) -> Self {
        self.columns = columns;
        self
    }
    const fn strategy(mut self, strategy: &'static Strategy) -> Self {
        self.strategy = strategy;
        self
    }
}

/// A subresource as discovery lists it.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Name, such as `status`.
    pub name: String,
    /// Kind of its requests.
    pub kind: String,
    /// Group and version of that kind, where it is another than the resource's.
    pub group_version: Option<(String, String)>,
    /// Verbs.
    pub verbs: Vec<String>,
}

/// Where a scale subresource finds its numbers, as JSON pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Desired replicas.
    pub spec: String,
    /// Present replicas.
    pub status: String,
    /// Selector: a label selector, a map of labels, or its string form. Empty: none.
    pub selector: String,
}

/// How a resource's rows are printed.
#[derive(Clone, Debug)]
pub enum Columns {
    /// A row's own.
    Static(&'static [Column]),
    /// A custom resource's.
    Custom(Arc<[columns::CustomColumn]>),
}

/// A resource that is served in one version.
#[derive(Debug)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Plural name.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs of the resource itself.
    pub verbs: Vec<&'static str>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// The name under which objects are stored: `plural.group` of the stored form.
    pub storage: Arc<str>,
    /// `apiVersion` of the stored form.
    pub storage_version: String,
    /// Has a status subresource.
    pub has_status: bool,
    /// Has a scale subresource.
    pub scale: Option<ScalePaths>,
    /// Selectable fields beside metadata.name and metadata.namespace, in the order of [`k8s_store::Stored::fields`].
    pub fields: Arc<[String]>,
    /// Their names in this version, in the same order.
    pub field_names: Arc<[String]>,
    /// Printer columns.
    pub columns: Columns,
    /// Type of the stored form.
    pub schema: Schema,
    /// Type of the served form, where it differs.
    pub served_schema: Option<Schema>,
    /// Behaviour.
    pub strategy: &'static Strategy,
    /// From and to the stored form.
    pub conversion: Option<&'static Conversion>,
    /// Defined at run time (by a CRD or ThirdPartyResource).
    pub custom: bool,
    /// What makes objects in this version of stored ones, where that is a webhook.
    pub(crate) webhook: Option<Arc<custom::Webhook>>,
    /// Its definition is going: no new objects are made.
    pub terminating: bool,
    /// The Rust type that describes it.
    pub(crate) typed: Option<Arc<dyn typed::Typed>>,
    /// What its definition demands of objects, for resources defined at run time.
    pub(crate) rules: Option<custom::Rules>,
    /// JSON schema for OpenAPI, for resources defined at run time.
    pub open_api: Option<Arc<Value>>,
    /// Makes the JSON schema for OpenAPI, for built-in ones.
    pub generate: Option<Generate>,
}

impl Resource {
    /// `apiVersion` as objects carry it.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Key of an object in the store.
    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }

    /// Group of the stored form.
    #[must_use]
    pub fn storage_group(&self) -> &str {
        self.storage_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// Whether the served form is the stored form.
    #[must_use]
    pub fn is_storage_version(&self) -> bool {
        self.api_version() == self.storage_version
    }

    /// Kind with its group, as messages name it: `Deployment.apps`.
    #[must_use]
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The type of what clients send.
    #[must_use]
    pub fn request_schema(&self) -> &Schema {
        self.served_schema.as_ref().unwrap_or(&self.schema)
    }

    /// The subresource of that name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Fills in what a stored form leaves out.
    pub(crate) fn default(&self, object: &mut Value) {
        self.schema.default(object);
        (self.strategy.default)(object);
        self.schema.complete(object);
        if let Some(typed) = &self.typed {
            typed.default(object);
        }
    }

    /// The stored form of a request's object.
    pub fn to_storage(&self, object: &mut Value) {
        if self.is_storage_version() {
            return;
        }
        if let Some(conversion) = self.conversion {
            (conversion.to_storage)(object);
        }
        if let Some(typed) = &self.typed {
            typed.stored_form(&self.version, object);
        }
        object["apiVersion"] = self.storage_version.clone().into();
    }

    /// The served form of a stored object.
    pub fn from_storage(&self, object: &mut Value) {
        if self.is_storage_version() {
            return;
        }
        if let Some(conversion) = self.conversion {
            (conversion.from_storage)(object);
        }
        if let Some(typed) = &self.typed {
            typed.served_form(&self.version, object);
        }
        object["apiVersion"] = self.api_version().into();
        if self.custom && self.typed.is_none() {
            // A version shows the fields that it has itself.
            self.schema.normalize(object, true);
            self.schema.default(object);
        }
    }
}

/// The verbs that every stored resource has.
const ALL_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn storage_name(group: &str, plural: &str) -> Arc<str> {
    if group.is_empty() { plural.into() } else { format!("{plural}.{group}").into() }
}

/// The static rows as resources, built once.
static BUILT_IN: LazyLock<Vec<Arc<Resource>>> = LazyLock::new(|| {
    let generates: Vec<Generate> =
        table::ROWS.iter().map(|r| r.generate).chain([schema::generate::<ObjectMeta> as Generate]).collect();
    let schemas = schema::builtin(&generates);
    let stored: Vec<Resource> =
        table::ROWS.iter().zip(&schemas).map(|(row, schema)| built_in(row, schema.clone())).collect();
    let legacy: Vec<Resource> = table::LEGACY
        .iter()
        .filter_map(|old| {
            let row = table::ROWS.iter().find(|r| r.group == old.storage_group && r.plural == old.plural)?;
            let of = stored.iter().find(|s| s.group == row.group && s.plural == row.plural)?;
            Some(legacy(row, of, old))
        })
        .collect();
    stored.into_iter().chain(legacy).map(Arc::new).collect()
});

fn built_in(row: &'static Row, schema: Schema) -> Resource {
    let mut subresources = Vec::new();
    let mut add = |name: &str, kind: &str, group_version: Option<(&str, &str)>, verbs: &str| {
        subresources.push(Subresource {
            name: name.into(),
            kind: kind.into(),
            group_version: group_version.map(|(g, v)| (g.to_owned(), v.to_owned())),
            verbs: verbs.split(',').map(str::to_owned).collect(),
        });
    };
    for (name, kind, verbs) in row.special {
        let group_version = match *name {
            "eviction" => Some(("policy", "v1")),
            "token" => Some(("authentication.k8s.io", "v1")),
            _ => None,
        };
        add(name, kind, group_version, verbs);
    }
    if row.scale {
        add("scale", "Scale", Some(("autoscaling", "v1")), "get,patch,update");
    }
    if row.status {
        add("status", row.kind, None, "get,patch,update");
    }
    subresources.sort_by(|a, b| a.name.cmp(&b.name));
    let api_version =
        if row.group.is_empty() { row.version.to_owned() } else { format!("{}/{}", row.group, row.version) };
    Resource {
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        list_kind: format!("{}List", row.kind),
        plural: row.plural.into(),
        singular: row.kind.to_lowercase(),
        // Kinds that moved on have their short names in their new group; kubectl warns about names that two groups have.
        short_names: match row.group {
            "extensions" => Vec::new(),
            _ => row.short.iter().map(|s| (*s).to_owned()).collect(),
        },
        categories: row.category.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
        namespaced: row.namespaced,
        verbs: ALL_VERBS
            .into_iter()
            .filter(|v| !(row.plural == "namespaces" && *v == "deletecollection"))
            .collect(),
        subresources,
        storage: storage_name(row.group, row.plural),
        storage_version: api_version,
        has_status: row.status,
        scale: row.scale.then(|| ScalePaths {
            spec: "/spec/replicas".into(),
            status: "/status/replicas".into(),
            selector: "/spec/selector".into(),
        }),
        field_names: row.fields.iter().map(|f| (*f).to_owned()).collect(),
        fields: row.fields.iter().map(|f| (*f).to_owned()).collect(),
        columns: Columns::Static(row.columns),
        schema,
        served_schema: None,
        strategy: row.strategy,
        conversion: None,
        custom: false,
        webhook: None,
        terminating: false,
        typed: None,
        rules: None,
        open_api: None,
        generate: Some(row.generate),
    }
}

fn legacy(row: &'static Row, of: &Resource, old: &'static convert::Legacy) -> Resource {
    let mut resource = built_in(row, of.schema.clone());
    resource.group = old.group.into();
    resource.version = old.version.into();
    resource.conversion = old.conversion;
    if !old.fields.is_empty() {
        resource.field_names = old.fields.iter().map(|f| (*f).to_owned()).collect();
    }
    if old.group == "extensions" {
        // Short names and categories mean the newer group.
        resource.short_names.clear();
        resource.categories.clear();
    }
    if let Some(generate) = old.conversion.and_then(|c| c.generate) {
        resource.served_schema = schema::builtin(&[generate]).pop();
        resource.generate = Some(generate);
    }
    if old.group == "extensions" || old.group == "apps" {
        for subresource in resource.subresources.iter_mut().filter(|s| s.name == "scale") {
            subresource.group_version = Some((old.group.into(), old.version.into()));
        }
    }
    resource
}

/// Whether built-in objects are stored under this name.
pub(crate) fn is_built_in(storage: &str) -> bool {
    BUILT_IN.iter().any(|r| *r.storage == *storage)
}

/// Everything that is served now.
#[derive(Debug, Default)]
pub struct Registry {
    served: BTreeMap<(String, String, String), Arc<Resource>>,
    /// Group names and versions in the order that discovery has them.
    groups: Vec<(String, Vec<String>)>,
}

impl Registry {
    /// Built-in resources and `custom` ones.
    #[must_use]
    pub fn new(custom: &[Arc<Resource>]) -> Self {
        let mut registry = Registry::default();
        for resource in BUILT_IN.iter().chain(custom) {
            let at = registry.groups.iter().position(|(g, _)| *g == resource.group).unwrap_or_else(|| {
                registry.groups.push((resource.group.clone(), Vec::new()));
                registry.groups.len() - 1
            });
            let versions = &mut registry.groups[at].1;
            if !versions.contains(&resource.version) {
                versions.push(resource.version.clone());
            }
            let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
            registry.served.insert(key, resource.clone());
        }
        // Groups that hold only reviews, which are not stored.
        for group in ["authentication.k8s.io", "authorization.k8s.io"] {
            registry.groups.push((group.into(), vec!["v1".into()]));
        }
        // Old names come last, so that `kubectl get deployments` means apps.
        if let Some(at) = registry.groups.iter().position(|(g, _)| g == "extensions") {
            let old = registry.groups.remove(at);
            registry.groups.push(old);
        }
        registry
    }

    /// One resource.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.served.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The resource of a kind.
    #[must_use]
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.served.values().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// All resources of a group and version, by plural name.
    pub fn in_version<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.served
            .range((group.to_owned(), version.to_owned(), String::new())..)
            .take_while(move |((g, v, _), _)| g == group && v == version)
            .map(|(_, r)| r)
    }

    /// Every resource.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.served.values()
    }

    /// Groups with their versions, preferred first.
    #[must_use]
    pub fn groups(&self) -> &[(String, Vec<String>)] {
        &self.groups
    }
}

/// The registry that changes as CRDs come and go. Readers hold a snapshot.
#[derive(Debug)]
pub struct SharedRegistry {
    now: RwLock<Arc<Registry>>,
    custom: RwLock<HashMap<String, Vec<Arc<Resource>>>>,
}

impl Default for SharedRegistry {
    fn default() -> Self {
        SharedRegistry { now: RwLock::new(Arc::new(Registry::new(&[]))), custom: RwLock::default() }
    }
}

impl SharedRegistry {
    /// What is served now.
    #[must_use]
    pub fn now(&self) -> Arc<Registry> {
        self.now.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Serves what a definition (named so) makes, in place of what it made before; an empty list takes it away. Built-in resources cannot be redefined.
    pub fn define(&self, definition: &str, mut resources: Vec<Arc<Resource>>) {
        resources.retain(|r| !is_built_in(&r.storage));
        let mut custom = self.custom.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if resources.is_empty() {
            custom.remove(definition);
        } else {
            custom.insert(definition.to_owned(), resources);
        }
        let mut all: Vec<Arc<Resource>> = custom.values().flatten().cloned().collect();
        all.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
        *self.now.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(Registry::new(&all));
    }
}

/// The values of a resource's selectable fields in an object's stored form.
#[must_use]
pub fn selectable(fields: &[String], object: &Value) -> Box<[Box<str>]> {
    fields.iter().map(|path| field_text(object, path).into()).collect()
}

/// The labels, selectable fields and uid of an object, which the store keeps beside its JSON.
pub(crate) fn meta_of(object: &Value, fields: &[String]) -> Meta {
    let labels = crate::value::map(object, "/metadata/labels").into_iter().flatten();
    Meta {
        uid: crate::value::text(object, "/metadata/uid").into(),
        labels: labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect(),
        fields: selectable(fields, object),
    }
}

/// A field's value as selectors compare it; empty where it is absent.
#[must_use]
pub fn field_text(object: &Value, path: &str) -> String {
    if path == "source" && object.get("involvedObject").is_some() {
        let source = object.pointer("/source/component").or_else(|| object.get("reportingComponent"));
        return source.and_then(Value::as_str).unwrap_or_default().to_owned();
    }
    let path = if path == "status.successful" { "status.succeeded" } else { path };
    let value = path.split('.').try_fold(object, |at, part| at.get(part));
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(_) | Value::Number(_)) => value.map(Value::to_string).unwrap_or_default(),
        _ if path == "spec.unschedulable" || path == "spec.hostNetwork" => "false".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_is_consistent() {
        let registry = Registry::new(&[]);
        let mut seen = HashSet::new();
        for r in registry.all() {
            assert!(seen.insert((&r.group, &r.version, &r.kind)), "{} listed twice", r.kind);
            let k8s_schema::Kind::Object { fields, .. } = &r.request_schema().root().kind else {
                panic!("{} has no object schema", r.kind)
            };
            assert!(fields.contains_key("metadata"), "{} has no metadata", r.kind);
            assert!(
                registry
                    .find(r.storage_group(), r.storage_version.rsplit('/').next().unwrap(), &r.plural)
                    .is_some()
            );
        }
        assert_eq!(
            registry.by_kind("extensions", "v1beta1", "Deployment").unwrap().storage.as_ref(),
            "deployments.apps"
        );
    }
}
