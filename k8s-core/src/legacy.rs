//! Types of API versions that k8s-openapi no longer has and that manifests since Kubernetes 1.5 use.
//!
//! Only shapes that differ from today's are here; a version whose shape is today's is served with today's type.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        autoscaling::v2::CrossVersionObjectReference,
        core::v1::TypedLocalObjectReference,
        networking::v1::{IngressStatus, IngressTLS},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinitionNames, CustomResourceDefinitionStatus, CustomResourceSubresources,
        CustomResourceValidation, WebhookClientConfig,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
#[cfg(feature = "derive")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `extensions/v1beta1` and `networking.k8s.io/v1beta1` Ingress.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.Ingress")
)]
pub struct Ingress {
    /// apiVersion.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What leads where.
    pub spec: IngressSpec,
    /// The addresses it is reachable at.
    pub status: Option<IngressStatus>,
}

/// What leads where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.IngressSpec")
)]
pub struct IngressSpec {
    /// The class of controllers that serve it.
    pub ingress_class_name: Option<String>,
    /// Takes what no rule matches.
    pub backend: Option<IngressBackend>,
    /// Certificates.
    pub tls: Option<Vec<IngressTLS>>,
    /// Rules by host.
    pub rules: Option<Vec<IngressRule>>,
}

/// Where requests go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.IngressBackend")
)]
pub struct IngressBackend {
    /// A Service in the same namespace.
    pub service_name: Option<String>,
    /// Its port, by number or name.
    pub service_port: Option<IntOrString>,
    /// Another object in the same namespace instead of a Service.
    pub resource: Option<TypedLocalObjectReference>,
}

/// What one host's paths lead to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.IngressRule")
)]
pub struct IngressRule {
    /// Host name; empty: any.
    pub host: Option<String>,
    /// Its paths.
    pub http: Option<HttpIngressRuleValue>,
}

/// Paths.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.HTTPIngressRuleValue")
)]
pub struct HttpIngressRuleValue {
    /// Paths.
    pub paths: Vec<HttpIngressPath>,
}

/// One path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.HTTPIngressPath")
)]
pub struct HttpIngressPath {
    /// Path; empty: all.
    pub path: Option<String>,
    /// How it matches.
    pub path_type: Option<String>,
    /// Where it leads.
    pub backend: IngressBackend,
}

/// `extensions/v1beta1` ThirdPartyResource: a kind defined at run time, before CustomResourceDefinitions were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.ThirdPartyResource")
)]
pub struct ThirdPartyResource {
    /// apiVersion.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Metadata; the name is `<kind-in-kebab-case>.<group>`.
    pub metadata: ObjectMeta,
    /// What it is for.
    pub description: Option<String>,
    /// The versions it is served in.
    pub versions: Option<Vec<ApiVersion>>,
}

/// One version of a ThirdPartyResource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.APIVersion")
)]
pub struct ApiVersion {
    /// Name, such as `v1`.
    pub name: Option<String>,
}

/// `apiextensions.k8s.io/v1beta1` CustomResourceDefinition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(
        rename = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1beta1.CustomResourceDefinition"
    )
)]
pub struct CustomResourceDefinition {
    /// apiVersion.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it defines.
    pub spec: CustomResourceDefinitionSpec,
    /// Whether it is served.
    pub status: Option<CustomResourceDefinitionStatus>,
}

/// What a v1beta1 CustomResourceDefinition defines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(
        rename = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1beta1.CustomResourceDefinitionSpec"
    )
)]
pub struct CustomResourceDefinitionSpec {
    /// API group.
    pub group: String,
    /// The only version, or the first.
    pub version: Option<String>,
    /// The versions.
    pub versions: Option<Vec<CustomResourceDefinitionVersion>>,
    /// Names.
    pub names: CustomResourceDefinitionNames,
    /// `Namespaced` or `Cluster`.
    pub scope: Option<String>,
    /// The schema of all versions.
    pub validation: Option<CustomResourceValidation>,
    /// The subresources of all versions.
    pub subresources: Option<CustomResourceSubresources>,
    /// The columns of all versions.
    pub additional_printer_columns: Option<Vec<CustomResourceColumnDefinition>>,
    /// How versions are made of each other.
    pub conversion: Option<CustomResourceConversion>,
    /// Fields that no schema names are kept.
    pub preserve_unknown_fields: Option<bool>,
}

/// A version of a v1beta1 CustomResourceDefinition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(
        rename = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1beta1.CustomResourceDefinitionVersion"
    )
)]
pub struct CustomResourceDefinitionVersion {
    /// Name.
    pub name: String,
    /// Whether it is served.
    pub served: bool,
    /// Whether objects are stored in it.
    pub storage: bool,
    /// Its schema.
    pub schema: Option<CustomResourceValidation>,
    /// Its subresources.
    pub subresources: Option<CustomResourceSubresources>,
    /// Its columns.
    pub additional_printer_columns: Option<Vec<CustomResourceColumnDefinition>>,
}

/// A column of a v1beta1 CustomResourceDefinition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(
        rename = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1beta1.CustomResourceColumnDefinition"
    )
)]
pub struct CustomResourceColumnDefinition {
    /// Title.
    pub name: String,
    /// OpenAPI type.
    #[serde(rename = "type")]
    pub type_: String,
    /// OpenAPI format.
    pub format: Option<String>,
    /// What it shows.
    pub description: Option<String>,
    /// Above 0: only wide tables have it.
    pub priority: Option<i32>,
    /// Where it finds its value.
    #[serde(rename = "JSONPath")]
    pub json_path: String,
}

/// How versions of a v1beta1 CustomResourceDefinition are made of each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(
        rename = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1beta1.CustomResourceConversion"
    )
)]
pub struct CustomResourceConversion {
    /// `None` or `Webhook`.
    pub strategy: String,
    /// The webhook.
    pub webhook_client_config: Option<WebhookClientConfig>,
    /// The review versions that it knows.
    pub conversion_review_versions: Option<Vec<String>>,
}

/// `autoscaling/v2beta1` HorizontalPodAutoscaler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.autoscaling.v2beta1.HorizontalPodAutoscaler")
)]
pub struct HorizontalPodAutoscalerV2beta1 {
    /// apiVersion.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What it aims at.
    pub spec: HorizontalPodAutoscalerSpecV2beta1,
    /// What it sees.
    pub status: Option<serde_json::Value>,
}

/// What a v2beta1 autoscaler aims at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.autoscaling.v2beta1.HorizontalPodAutoscalerSpec")
)]
pub struct HorizontalPodAutoscalerSpecV2beta1 {
    /// What it scales.
    pub scale_target_ref: CrossVersionObjectReference,
    /// Lower limit.
    pub min_replicas: Option<i32>,
    /// Upper limit.
    pub max_replicas: i32,
    /// What it measures; checked in today's form.
    pub metrics: Option<Vec<serde_json::Value>>,
}

/// Kind and group of a ThirdPartyResource's name: `rds-database.stable.example.com` is `RdsDatabase` in `stable.example.com`.
///
/// `None` when the name has no group.
#[must_use]
pub fn third_party_kind(name: &str) -> Option<(String, String)> {
    let (kebab, group) = name.split_once('.')?;
    if kebab.is_empty() || !group.contains('.') {
        return None;
    }
    let kind = kebab
        .split('-')
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
        })
        .collect();
    Some((kind, group.to_owned()))
}

/// Annotations that later became fields: annotation, JSON pointer of the field.
#[must_use]
pub fn annotation_fields() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([("volume.beta.kubernetes.io/storage-class", "/spec/storageClassName")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn third_party_names() {
        assert_eq!(
            third_party_kind("rds-database.stable.example.com"),
            Some(("RdsDatabase".into(), "stable.example.com".into()))
        );
        assert_eq!(third_party_kind("plain"), None);
        assert_eq!(third_party_kind("a.b"), None);
    }
}
