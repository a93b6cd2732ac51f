//! Custom resources from Rust types, and their CustomResourceDefinitions.
//!
//! An API server of this project serves such a type directly (`ApiServer::builder(store).resource::<T>()`),
//! with its methods for defaulting and validation. Any other Kubernetes serves it by the
//! CustomResourceDefinition, which has the schema and the CEL rules.
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

/// Crates that generated code refers to.
#[doc(hidden)]
pub mod __derive {
    pub use schemars;
    pub use serde;
    pub use serde_json;
}

use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::meta::Object;

/// A column of `kubectl get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrinterColumn {
    /// Column heading, as kubectl prints it in upper case.
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// JSON path of the value, such as `.spec.engine`.
    pub path: &'static str,
    /// Shown only with `-o wide`.
    pub wide: bool,
}

impl PrinterColumn {
    /// Creates a column that is always shown.
    #[must_use]
    pub const fn new(name: &'static str, kind: &'static str, path: &'static str) -> Self {
        PrinterColumn { name, kind, path, wide: false }
    }
}

/// A CEL validation rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The expression; `self` is the object, `oldSelf` the object before an update.
    pub rule: &'static str,
    /// Message for users if the rule is violated.
    pub message: &'static str,
}

impl Rule {
    /// Creates a rule with its message.
    #[must_use]
    pub const fn new(rule: &'static str, message: &'static str) -> Self {
        Rule { rule, message }
    }
}

/// JSON paths of the scale subresource, such as `.spec.replicas`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Path of the desired replicas.
    pub spec: &'static str,
    /// Path of the current replicas.
    pub status: &'static str,
    /// Path of the selector as text; empty if there is none.
    pub selector: &'static str,
}

/// Validation errors of an object. The response lists all of them by field.
///
/// ```
/// use k8s_core::custom::Problems;
/// let mut problems = Problems::default();
/// problems.add("spec.engine", "oracle is not licensed");
/// assert_eq!(problems.iter().next(), Some(("spec.engine", "oracle is not licensed")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// Adds an error of a field (`spec.engine`).
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push((field.into(), message.into()));
    }

    /// Iterates over fields and messages.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(field, message)| (field.as_str(), message.as_str()))
    }
}

/// A custom resource defined by a Rust type. Its JSON schema must describe the whole object (`metadata`,
/// `spec`, `status`).
///
/// ```
/// use k8s_core::{Resource, custom::{CustomResource, Problems}};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
/// #[resource(group = "example.com", version = "v1", kind = "Shop", namespaced, validate = opening_hours)]
/// struct ShopSpec { opens: u8, closes: u8 }
///
/// /// A rule beyond the schema; our API server calls it, any other cluster needs it as a CEL rule.
/// fn opening_hours(shop: &Shop, _old: Option<&Shop>, problems: &mut Problems) {
///     if shop.spec.closes <= shop.spec.opens {
///         problems.add("spec.closes", "must be after opens");
///     }
/// }
///
/// let mut problems = Problems::default();
/// Shop::new("corner", ShopSpec { opens: 18, closes: 9 }).validate(None, &mut problems);
/// assert_eq!(problems.iter().count(), 1);
/// assert_eq!(Shop::definition()["spec"]["names"]["plural"], "shops");
/// ```
pub trait CustomResource: Object + JsonSchema {
    /// True for namespaced scope.
    const NAMESPACED: bool;
    /// Singular name; empty means the kind in lower case.
    const SINGULAR: &'static str = "";
    /// Short names for kubectl.
    const SHORT_NAMES: &'static [&'static str] = &[];
    /// Categories, such as `all`.
    const CATEGORIES: &'static [&'static str] = &[];
    /// Has a status subresource.
    const STATUS: bool = true;
    /// Paths of the scale subresource, if there is one.
    const SCALE: Option<ScalePaths> = None;
    /// Printer columns besides the name.
    const COLUMNS: &'static [PrinterColumn] = &[];
    /// CEL rules on the whole object.
    const RULES: &'static [Rule] = &[];
    /// CEL rules on the object's `spec` (`self`).
    const SPEC_RULES: &'static [Rule] = &[];
    /// Further served versions, such as `v1beta1`; the type's own is stored.
    const OTHER_VERSIONS: &'static [&'static str] = &[];

    /// Sets defaults of absent fields.
    fn default(&mut self) {}

    /// Validates a new object, or an update of `old`.
    fn validate(&self, _old: Option<&Self>, _problems: &mut Problems) {}

    /// Validates a new status.
    fn validate_status(&self, _old: &Self, _problems: &mut Problems) {}

    /// Converts an object of another version to this type's.
    fn from_version(_version: &str, _object: &mut Value) {}

    /// Converts an object of this type to another version.
    fn to_version(_version: &str, _object: &mut Value) {}

    /// Returns the `apiextensions.k8s.io/v1` CustomResourceDefinition, to be applied to any cluster. Other
    /// versions have the same schema: other clusters convert by webhook or not at all.
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
