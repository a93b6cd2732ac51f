//! `#[derive(Resource)]`: a custom resource type from the struct of its spec.
//!
//! From `struct DatabaseSpec` with `kind = "RdsDatabase"` it generates `struct RdsDatabase { metadata, spec,
//! status }`. The type implements `k8s_openapi`'s `Resource` and `Metadata`, so that clients, caches and
//! controllers accept it, and `k8s_core::custom::CustomResource`, which yields its CustomResourceDefinition
//! and lets an API server serve it.
//!
//! ```
//! use k8s_core::{Resource, custom::CustomResource};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
//! #[resource(group = "stable.example.com", version = "v1", kind = "RdsDatabase", namespaced, status = DatabaseStatus)]
//! #[resource(column(name = "Engine", path = ".spec.engine"), rule("self.storageGb >= 10", "too small to be useful"))]
//! #[serde(rename_all = "camelCase")]
//! struct DatabaseSpec {
//!     engine: String,
//!     storage_gb: u32,
//! }
//!
//! #[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default)]
//! struct DatabaseStatus {
//!     endpoint: String,
//! }
//!
//! let orders = RdsDatabase::new("orders", DatabaseSpec { engine: "postgres".into(), storage_gb: 20 });
//! assert_eq!(serde_json::to_value(&orders).unwrap()["apiVersion"], "stable.example.com/v1");
//! assert_eq!(RdsDatabase::definition()["metadata"]["name"], "rdsdatabases.stable.example.com");
//! ```
//!
//! Arguments of `#[resource(...)]`, in one attribute or several:
//!
//! | | |
//! | --- | --- |
//! | `group`, `version`, `kind` | strings; required |
//! | `namespaced` | namespaced scope; default: cluster scope |
//! | `status = Type` | type of the status; enables the status subresource |
//! | `plural`, `singular` | strings; default: formed from the kind |
//! | `short_names("db", ...)`, `categories("all", ...)` | names for kubectl |
//! | `column(name = "...", path = "...", type = "integer", wide)` | a printer column; `type` defaults to `string` |
//! | `rule("CEL", "message")` | a validation rule on the spec (`self`) |
//! | `object_rule("CEL", "message")` | a validation rule on the whole object |
//! | `scale(spec = "...", status = "...", selector = "...")` | JSON paths of the scale subresource |
//! | `versions("v1beta1", ...)` | further served versions |
//! | `default`, `validate`, `validate_status`, `from_version`, `to_version` `= function` | methods of `CustomResource` |
//! | `crate = path` | path of `k8s_core`, if it is renamed or re-exported |

mod attributes;
mod expand;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Derives a custom resource from the struct of its spec. See the crate's page.
#[proc_macro_derive(Resource, attributes(resource))]
pub fn resource(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    let expanded =
        attributes::Attributes::read(&input).and_then(|attributes| expand::expand(&input, &attributes));
    expanded.unwrap_or_else(syn::Error::into_compile_error).into()
}
