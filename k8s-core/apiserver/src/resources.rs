//! Resources: the table of built-in ones, and those that definitions add at run time.
//!
//! A [`Row`] is the static description of a resource. A [`Resource`] is a row served in one version, with its
//! compiled schema. CustomResourceDefinitions and ThirdPartyResources create the same [`Resource`] at run
//! time.

pub mod columns;
pub mod convert;
pub mod custom;
mod enablement;
mod fields;
pub(crate) mod flow_defaults;
mod registry;
mod reviews;
pub mod strategy;
mod table;
pub(crate) mod typed;
mod types;

pub(crate) use enablement::Enablement;
pub use enablement::RuntimeConfigError;
pub(crate) use fields::meta_of;
pub use fields::{Field, selectable};
pub use registry::{Registry, SharedRegistry};
pub(crate) use reviews::review;

use std::sync::{Arc, LazyLock};

use k8s_core::api::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_schema::{self as schema, Generate, Schema};
use serde_json::Value;

use columns::Column;
use convert::Conversion;
use strategy::Strategy;

/// A special subresource: name, `group/version` of its kind (empty: the resource's own), kind,
/// comma-separated verbs.
pub type Special = (&'static str, &'static str, &'static str, &'static str);

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
    without: &'static [&'static str],
    fields: &'static [&'static str],
    columns: &'static [Column],
    strategy: &'static Strategy,
    off_by_default: bool,
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
            without: &[],
            fields: &[],
            columns: &columns::DEFAULT,
            strategy: &strategy::core::PLAIN,
            off_by_default: false,
            generate,
        }
    }
    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }
    /// Serves the resource only where `--runtime-config` turns it on.
    const fn off(mut self) -> Self {
        self.off_by_default = true;
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
    /// Leaves out verbs of the resource itself.
    const fn without(mut self, verbs: &'static [&'static str]) -> Self {
        self.without = verbs;
        self
    }
    /// Sets the selectable fields, in the notation of [`Field::named`].
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
    /// Verbs in discovery, such as `get` and `patch`.
    pub verbs: Vec<String>,
}

/// JSON pointers of a scale subresource's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Pointer to the desired replicas, such as `/spec/replicas`.
    pub spec: String,
    /// Pointer to the observed replicas, such as `/status/replicas`.
    pub status: String,
    /// Pointer to the selector: a label selector, a map of labels, or its string form. Empty: none.
    pub selector: String,
}

/// Printer columns of a resource.
#[derive(Clone, Debug)]
pub enum Columns {
    /// Columns of a built-in resource.
    Static(&'static [Column]),
    /// Columns of a custom resource: `additionalPrinterColumns`.
    Custom(Arc<[columns::CustomColumn]>),
}

/// A resource that is served in one version.
#[derive(Debug)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: String,
    /// API version, such as `v1` or `v2beta1`.
    pub version: String,
    /// Kind of the objects, such as `Deployment`.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Plural name in paths, such as `deployments`.
    pub plural: String,
    /// Singular name for kubectl, such as `deployment`.
    pub singular: String,
    /// Short names for kubectl, such as `deploy`.
    pub short_names: Vec<String>,
    /// Categories for kubectl, such as `all`.
    pub categories: Vec<String>,
    /// True for namespaced resources.
    pub namespaced: bool,
    /// Verbs of the resource itself.
    pub verbs: Vec<&'static str>,
    /// Subresources in discovery, such as `status` and `scale`.
    pub subresources: Vec<Subresource>,
    /// The name under which objects are stored: `plural.group` of the stored form.
    pub storage: Arc<str>,
    /// `apiVersion` of the stored form.
    pub storage_version: String,
    /// Has a status subresource.
    pub has_status: bool,
    /// Has a scale subresource.
    pub scale: Option<ScalePaths>,
    /// Selectable fields other than metadata.name and metadata.namespace, in the order of
    /// [`k8s_store::Stored::fields`].
    pub fields: Arc<[Field]>,
    /// Their names in this version, in the same order.
    pub field_names: Arc<[String]>,
    /// Columns of the `Table` format.
    pub columns: Columns,
    /// Type of the stored form.
    pub schema: Schema,
    /// Type of the served form, where it differs.
    pub served_schema: Option<Schema>,
    /// Validation, defaults and hooks of the resource.
    pub strategy: &'static Strategy,
    /// From and to the stored form.
    pub conversion: Option<&'static Conversion>,
    /// Defined at run time (by a CRD or ThirdPartyResource).
    pub custom: bool,
    /// Conversion webhook for this version, if any.
    pub(crate) webhook: Option<Arc<custom::Webhook>>,
    /// The definition is being deleted: no new objects are created.
    pub terminating: bool,
    /// Served only where `--runtime-config` turns it on.
    pub off_by_default: bool,
    /// Rust type of the resource, if any.
    pub(crate) typed: Option<Arc<dyn typed::Typed>>,
    /// Validation rules of the definition, for resources defined at run time.
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

    /// Returns true if the served form is the stored form.
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

    /// Sets the defaults of the schema, then those of the strategy.
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
            // A version shows only the fields that it has.
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
    for (name, group_version, kind, verbs) in row.special {
        add(name, kind, group_version.split_once('/'), verbs);
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
        // Kinds that moved to a new group have their short names there; kubectl warns about names in two
        // groups.
        short_names: match row.group {
            "extensions" => Vec::new(),
            _ => row.short.iter().map(|s| (*s).to_owned()).collect(),
        },
        categories: row.category.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
        namespaced: row.namespaced,
        verbs: ALL_VERBS.into_iter().filter(|verb| !row.without.contains(verb)).collect(),
        subresources,
        storage: storage_name(row.group, row.plural),
        storage_version: api_version,
        has_status: row.status,
        scale: row.scale.then(|| ScalePaths {
            spec: "/spec/replicas".into(),
            status: "/status/replicas".into(),
            selector: "/spec/selector".into(),
        }),
        field_names: row.fields.iter().map(|f| Field::named(f).0).collect(),
        fields: row.fields.iter().map(|f| Field::named(f).1).collect(),
        columns: Columns::Static(row.columns),
        schema,
        served_schema: None,
        strategy: row.strategy,
        conversion: None,
        custom: false,
        webhook: None,
        terminating: false,
        off_by_default: row.off_by_default,
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
    resource.off_by_default = old.off_by_default;
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

/// Returns true if built-in objects are stored under this name.
pub(crate) fn is_built_in(storage: &str) -> bool {
    BUILT_IN.iter().any(|r| *r.storage == *storage)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn puts_create_and_are_conditional_as_upstreams() {
        let with = |is: fn(&Strategy) -> bool| -> Vec<&str> {
            table::ROWS.iter().filter(|row| is(row.strategy)).map(|row| row.plural).collect()
        };
        let mut creating = with(|strategy| strategy.allow_create_on_update);
        creating.sort_unstable();
        assert_eq!(
            creating,
            [
                "clusterrolebindings",
                "clusterroles",
                "endpoints",
                "events",
                "leases",
                "limitranges",
                "priorityclasses",
                "rolebindings",
                "roles",
                "services",
            ]
        );
        let mut conditional = with(|strategy| !strategy.allow_unconditional_update);
        conditional.sort_unstable();
        assert_eq!(
            conditional,
            [
                "apiservices",
                "clustertrustbundles",
                "csidrivers",
                "csinodes",
                "customresourcedefinitions",
                "leases",
                "mutatingwebhookconfigurations",
                "podcertificaterequests",
                "poddisruptionbudgets",
                "runtimeclasses",
                "validatingadmissionpolicies",
                "validatingadmissionpolicybindings",
                "validatingwebhookconfigurations",
                "volumeattachments",
            ]
        );
        let mut fixed = with(|strategy| strategy.fixed_by_status.len() == 4);
        fixed.sort_unstable();
        assert_eq!(
            fixed,
            [
                "apiservices",
                "customresourcedefinitions",
                "flowschemas",
                "podcertificaterequests",
                "prioritylevelconfigurations",
                "resourceclaims",
                "servicecidrs",
                "validatingadmissionpolicies",
                "volumeattachments",
            ]
        );
    }

    #[test]
    fn the_table_is_consistent() {
        let registry = Registry::whole();
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
