//! `#[derive(Resource)]`: a custom resource from the struct of its spec.
//!
//! From `struct DatabaseSpec` with `kind = "RdsDatabase"` comes the whole type: `struct RdsDatabase { metadata, spec, status }`, which implements
//! `k8s_openapi`'s `Resource` and `Metadata` (so that clients, caches and controllers take it) and `k8s_core::custom::CustomResource` (so that an API
//! server serves it, and so that it has a CustomResourceDefinition).
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
//! What `#[resource(...)]` takes, in one attribute or several:
//!
//! | | |
//! | --- | --- |
//! | `group`, `version`, `kind` | texts; needed |
//! | `namespaced` | its objects live in namespaces |
//! | `status = Type` | the type of its status, which is then a subresource |
//! | `plural`, `singular` | names, where they do not follow from the kind |
//! | `short_names("db", ...)`, `categories("all", ...)` | for kubectl |
//! | `column(name = "...", path = "...", type = "integer", wide)` | a column of kubectl's; `type` is `string` where it is absent |
//! | `rule("CEL", "message")` | what must hold; `self` is the spec |
//! | `object_rule("CEL", "message")` | the same over the whole object |
//! | `scale(spec = "...", status = "...", selector = "...")` | the paths of its scale subresource |
//! | `versions("v1beta1", ...)` | versions that it is served in beside its own |
//! | `default`, `validate`, `validate_status`, `from_version`, `to_version` `= function` | as the methods of `CustomResource` |
//! | `crate = path` | where `k8s_core` is, if not there |

mod attributes;
mod expand;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Makes a custom resource of the struct of its spec. See the crate's page.
#[proc_macro_derive(Resource, attributes(resource))]
pub fn resource(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    let expanded =
        attributes::Attributes::read(&input).and_then(|attributes| expand::expand(&input, &attributes));
    expanded.unwrap_or_else(syn::Error::into_compile_error).into()
}
