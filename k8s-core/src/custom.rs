//! Custom resources from Rust types: what a type says of itself, and the CustomResourceDefinition that this makes.
//!
//! An API server of this project serves such a type directly (`ApiServer::builder(store).resource::<T>()`), with what its methods say as rules; any
//! other Kubernetes serves it by the definition, in which the schema and the CEL rules are.
//!
//! ```
//! use k8s_core::{
//!     api::{Metadata, NamespaceResourceScope, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta},
//!     custom::{CustomResource, PrinterColumn, Problems, Rule},
//! };
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Serialize, Deserialize, JsonSchema)]
//! struct Database {
//!     metadata: ObjectMeta,
//!     spec: DatabaseSpec,
//! }
//!
//! #[derive(Clone, Serialize, Deserialize, JsonSchema)]
//! #[serde(rename_all = "camelCase")]
//! struct DatabaseSpec {
//!     engine: String,
//!     storage_gb: Option<u32>,
//! }
//!
//! impl Resource for Database {
//!     const API_VERSION: &'static str = "stable.example.com/v1";
//!     const GROUP: &'static str = "stable.example.com";
//!     const KIND: &'static str = "Database";
//!     const VERSION: &'static str = "v1";
//!     const URL_PATH_SEGMENT: &'static str = "databases";
//!     type Scope = NamespaceResourceScope;
//! }
//! impl Metadata for Database {
//!     type Ty = ObjectMeta;
//!     fn metadata(&self) -> &ObjectMeta { &self.metadata }
//!     fn metadata_mut(&mut self) -> &mut ObjectMeta { &mut self.metadata }
//! }
//!
//! impl CustomResource for Database {
//!     const NAMESPACED: bool = true;
//!     const COLUMNS: &'static [PrinterColumn] = &[PrinterColumn::new("Engine", "string", ".spec.engine")];
//!     const RULES: &'static [Rule] = &[Rule::new("self.spec.storageGb >= 10", "too small to be useful")];
//!
//!     fn default(&mut self) {
//!         self.spec.storage_gb.get_or_insert(20);
//!     }
//!     fn validate(&self, old: Option<&Self>, problems: &mut Problems) {
//!         if old.is_some_and(|old| old.spec.engine != self.spec.engine) {
//!             problems.add("spec.engine", "may not change");
//!         }
//!     }
//! }
//!
//! let definition = Database::definition();
//! assert_eq!(definition["metadata"]["name"], "databases.stable.example.com");
//! let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
//! assert_eq!(schema["properties"]["spec"]["properties"]["storageGb"]["nullable"], true);
//! ```

mod kube;
mod structural;

pub use structural::structural_schema;

/// What derived code names.
#[doc(hidden)]
pub mod __derive {
    pub use schemars;
    pub use serde;
    pub use serde_json;
}

use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::meta::Object;

/// A column that `kubectl get` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrinterColumn {
    /// Heading.
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// JSON path of its value, such as `.spec.engine`.
    pub path: &'static str,
    /// Shown with `-o wide` only.
    pub wide: bool,
}

impl PrinterColumn {
    /// A column that is always shown.
    #[must_use]
    pub const fn new(name: &'static str, kind: &'static str, path: &'static str) -> Self {
        PrinterColumn { name, kind, path, wide: false }
    }
}

/// A CEL rule over the whole object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The expression; `self` is the object, `oldSelf` the object before an update.
    pub rule: &'static str,
    /// What a user reads when it does not hold.
    pub message: &'static str,
}

impl Rule {
    /// A rule and its message.
    #[must_use]
    pub const fn new(rule: &'static str, message: &'static str) -> Self {
        Rule { rule, message }
    }
}

/// Where the scale subresource finds its numbers: JSON paths such as `.spec.replicas`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Desired replicas.
    pub spec: &'static str,
    /// Present replicas.
    pub status: &'static str,
    /// The selector as text; empty: none.
    pub selector: &'static str,
}

/// What is wrong with an object, all of it: the answer names every field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// A field (`spec.engine`) and what is wrong with it.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push((field.into(), message.into()));
    }

    /// Each problem's field and message.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(field, message)| (field.as_str(), message.as_str()))
    }
}

/// A custom resource that a Rust type describes. Its JSON schema must be that of the whole object (`metadata`, `spec`, `status`).
pub trait CustomResource: Object + JsonSchema {
    /// Objects live in namespaces.
    const NAMESPACED: bool;
    /// Its name for one; empty: the kind in lower case.
    const SINGULAR: &'static str = "";
    /// Short names for kubectl.
    const SHORT_NAMES: &'static [&'static str] = &[];
    /// Groups of resources that it is listed with, such as `all`.
    const CATEGORIES: &'static [&'static str] = &[];
    /// The status is written by itself, and not with the rest.
    const STATUS: bool = true;
    /// It can be scaled.
    const SCALE: Option<ScalePaths> = None;
    /// Columns beside the name.
    const COLUMNS: &'static [PrinterColumn] = &[];
    /// Rules that hold wherever it is served.
    const RULES: &'static [Rule] = &[];
    /// The same, in which `self` is the object's `spec`.
    const SPEC_RULES: &'static [Rule] = &[];
    /// Versions that it is served in beside its own.
    const OTHER_VERSIONS: &'static [&'static str] = &[];

    /// Fills in what is absent.
    fn default(&mut self) {}

    /// Says what is wrong with an object, or with an update of `old`.
    fn validate(&self, _old: Option<&Self>, _problems: &mut Problems) {}

    /// Says what is wrong with a new status.
    fn validate_status(&self, _old: &Self, _problems: &mut Problems) {}

    /// Makes this type's form of an object in another version.
    fn from_version(_version: &str, _object: &mut Value) {}

    /// Makes another version's form of an object.
    fn to_version(_version: &str, _object: &mut Value) {}

    /// Its `apiextensions.k8s.io/v1` CustomResourceDefinition, to be applied to any cluster. Other versions are served with the same schema: a cluster
    /// that is not ours converts by webhook or not at all.
    #[must_use]
    fn definition() -> Value {
        let mut schema = structural_schema::<Self>();
        let of = |rules: &[Rule]| -> Value {
            rules.iter().map(|r| json!({"rule": r.rule, "message": r.message})).collect()
        };
        if !Self::RULES.is_empty() {
            schema["x-kubernetes-validations"] = of(Self::RULES);
        }
        if !Self::SPEC_RULES.is_empty() {
            schema["properties"]["spec"]["x-kubernetes-validations"] = of(Self::SPEC_RULES);
        }
        let singular =
            if Self::SINGULAR.is_empty() { Self::KIND.to_lowercase() } else { Self::SINGULAR.to_owned() };
        let columns = Self::COLUMNS.iter().map(
            |c| json!({"name": c.name, "type": c.kind, "jsonPath": c.path, "priority": i32::from(c.wide)}),
        );
        let mut version = json!({
            "name": Self::VERSION, "served": true, "storage": true,
            "schema": {"openAPIV3Schema": schema}, "subresources": {},
            "additionalPrinterColumns": columns.collect::<Value>(),
        });
        if Self::STATUS {
            version["subresources"]["status"] = json!({});
        }
        if let Some(scale) = Self::SCALE {
            version["subresources"]["scale"] = json!({
                "specReplicasPath": scale.spec, "statusReplicasPath": scale.status,
                "labelSelectorPath": scale.selector,
            });
        }
        let others = Self::OTHER_VERSIONS.iter().map(|name| {
            let mut other = version.clone();
            other["name"] = (*name).into();
            other["storage"] = false.into();
            other
        });
        let versions: Value = std::iter::once(version.clone()).chain(others).collect();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{}", Self::URL_PATH_SEGMENT, Self::GROUP)},
            "spec": {
                "group": Self::GROUP,
                "scope": if Self::NAMESPACED { "Namespaced" } else { "Cluster" },
                "names": {
                    "plural": Self::URL_PATH_SEGMENT, "singular": singular, "kind": Self::KIND,
                    "listKind": format!("{}List", Self::KIND),
                    "shortNames": Self::SHORT_NAMES, "categories": Self::CATEGORIES,
                },
                "versions": versions,
            },
        })
    }
}
