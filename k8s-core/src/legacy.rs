//! Types of old API versions that k8s-openapi no longer has and that manifests since Kubernetes 1.5 use.
//!
//! Only types with a different structure are here; an old version with today's structure is served with
//! today's type.

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
    /// `extensions/v1beta1` or `networking.k8s.io/v1beta1`.
    pub api_version: String,
    /// Always `Ingress`; items of a list may leave it out.
    pub kind: String,
    /// Name and namespace, labels, annotations, owners.
    pub metadata: ObjectMeta,
    /// Rules that the Ingress controller carries out.
    pub spec: IngressSpec,
    /// Addresses of the load balancer.
    pub status: Option<IngressStatus>,
}

/// Desired rules of an Ingress.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.IngressSpec")
)]
pub struct IngressSpec {
    /// Name of the IngressClass, which names the controller. Default: the class marked as default.
    pub ingress_class_name: Option<String>,
    /// Default backend for requests that match no rule.
    pub backend: Option<IngressBackend>,
    /// Certificates, each a Secret, with the hosts that they are for. Default: plain HTTP.
    pub tls: Option<Vec<IngressTLS>>,
    /// Routing rules by host name. Default: all requests go to `backend`.
    pub rules: Option<Vec<IngressRule>>,
}

/// Destination of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.IngressBackend")
)]
pub struct IngressBackend {
    /// Name of a Service in the same namespace.
    pub service_name: Option<String>,
    /// Port of the Service, by number or name.
    pub service_port: Option<IntOrString>,
    /// Another object in the same namespace instead of a Service.
    pub resource: Option<TypedLocalObjectReference>,
}

/// Routing rules of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.IngressRule")
)]
pub struct IngressRule {
    /// Host name; empty matches any.
    pub host: Option<String>,
    /// Routing rules by path. Default: all paths go to the default backend.
    pub http: Option<HttpIngressRuleValue>,
}

/// Routing rules by path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.HTTPIngressRuleValue")
)]
pub struct HttpIngressRuleValue {
    /// Path rules, at least one. The longest matching path wins.
    pub paths: Vec<HttpIngressPath>,
}

/// A path rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.HTTPIngressPath")
)]
pub struct HttpIngressPath {
    /// URL path; empty matches all.
    pub path: Option<String>,
    /// Matching: `Exact`, `Prefix` or `ImplementationSpecific`.
    pub path_type: Option<String>,
    /// Destination of matching requests.
    pub backend: IngressBackend,
}

/// `extensions/v1beta1` ThirdPartyResource: a kind defined at run time, the predecessor of
/// CustomResourceDefinition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.ThirdPartyResource")
)]
pub struct ThirdPartyResource {
    /// Always `extensions/v1beta1`.
    pub api_version: String,
    /// Always `ThirdPartyResource`; items of a list may leave it out.
    pub kind: String,
    /// Metadata; the name is `<kind-in-kebab-case>.<group>`.
    pub metadata: ObjectMeta,
    /// Description for users; the API server does not read it.
    pub description: Option<String>,
    /// Versions, all served with the same content. The first is stored. Without one nothing is served.
    pub versions: Option<Vec<ApiVersion>>,
}

/// A version of a ThirdPartyResource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.extensions.v1beta1.APIVersion")
)]
pub struct ApiVersion {
    /// Version name, such as `v1`.
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
    /// Always `apiextensions.k8s.io/v1beta1`.
    pub api_version: String,
    /// Always `CustomResourceDefinition`; items of a list may leave it out.
    pub kind: String,
    /// The name is `<spec.names.plural>.<spec.group>`.
    pub metadata: ObjectMeta,
    /// Names, versions and schemas of the custom resource.
    pub spec: CustomResourceDefinitionSpec,
    /// Accepted names, conditions, and versions in which objects may be stored.
    pub status: Option<CustomResourceDefinitionStatus>,
}

/// Spec of a v1beta1 CustomResourceDefinition.
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
    /// API group of the resource, such as `stable.example.com`.
    pub group: String,
    /// Name of the only version, or of the first.
    pub version: Option<String>,
    /// Versions in any order. Default: `version` alone, served and stored.
    pub versions: Option<Vec<CustomResourceDefinitionVersion>>,
    /// Plural, singular, kind, short names and categories.
    pub names: CustomResourceDefinitionNames,
    /// `Namespaced` or `Cluster`. Default: `Namespaced`.
    pub scope: Option<String>,
    /// Schema of all versions; not together with a schema of a version.
    pub validation: Option<CustomResourceValidation>,
    /// `status` and `scale` of all versions; not together with those of a version.
    pub subresources: Option<CustomResourceSubresources>,
    /// Printer columns of all versions; not together with those of a version. Default: the age.
    pub additional_printer_columns: Option<Vec<CustomResourceColumnDefinition>>,
    /// Conversion between versions. Default: only `apiVersion` changes.
    pub conversion: Option<CustomResourceConversion>,
    /// Keep fields that the schema does not specify.
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
    /// Version name, such as `v1`.
    pub name: String,
    /// True if the API serves the version.
    pub served: bool,
    /// True for the stored version.
    pub storage: bool,
    /// Schema of this version. Default: the schema of all versions.
    pub schema: Option<CustomResourceValidation>,
    /// `status` and `scale` of this version. Default: those of all versions.
    pub subresources: Option<CustomResourceSubresources>,
    /// Printer columns of this version. Default: those of all versions.
    pub additional_printer_columns: Option<Vec<CustomResourceColumnDefinition>>,
}

/// A printer column of a v1beta1 CustomResourceDefinition.
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
    /// Heading of the column in tables.
    pub name: String,
    /// OpenAPI type of the values: `integer`, `number`, `string`, `boolean` or `date`.
    #[serde(rename = "type")]
    pub type_: String,
    /// OpenAPI format of the values, such as `int32` or `date-time`. Default: none.
    pub format: Option<String>,
    /// Description of the column for users. Default: none.
    pub description: Option<String>,
    /// Above 0: shown in wide tables only.
    pub priority: Option<i32>,
    /// JSON path of the value.
    #[serde(rename = "JSONPath")]
    pub json_path: String,
}

/// Conversion of a v1beta1 CustomResourceDefinition.
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
    /// `None`: only `apiVersion` changes. `Webhook`: the webhook converts.
    pub strategy: String,
    /// Connection to the conversion webhook.
    pub webhook_client_config: Option<WebhookClientConfig>,
    /// ConversionReview versions that the webhook supports.
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
    /// Always `autoscaling/v2beta1`.
    pub api_version: String,
    /// Always `HorizontalPodAutoscaler`; items of a list may leave it out.
    pub kind: String,
    /// Name and namespace, labels, annotations, owners.
    pub metadata: ObjectMeta,
    /// Object to scale, limits and metrics.
    pub spec: HorizontalPodAutoscalerSpecV2beta1,
    /// Current and desired replicas, metrics and conditions, as JSON in the form of this version.
    pub status: Option<serde_json::Value>,
}

/// Spec of a v2beta1 HorizontalPodAutoscaler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(
    feature = "derive",
    derive(JsonSchema),
    schemars(rename = "io.k8s.api.autoscaling.v2beta1.HorizontalPodAutoscalerSpec")
)]
pub struct HorizontalPodAutoscalerSpecV2beta1 {
    /// Object whose `scale` subresource is written.
    pub scale_target_ref: CrossVersionObjectReference,
    /// Minimum number of replicas. Default: 1.
    pub min_replicas: Option<i32>,
    /// Maximum number of replicas, at least `min_replicas`.
    pub max_replicas: i32,
    /// Metrics; validated in the current version's form.
    pub metrics: Option<Vec<serde_json::Value>>,
}

/// Returns kind and group from a ThirdPartyResource's name: `rds-database.stable.example.com` is
/// `RdsDatabase` in `stable.example.com`.
///
/// `None` if the name has no group.
///
/// ```
/// let found = k8s_core::legacy::third_party_kind("rds-database.stable.example.com");
/// assert_eq!(found, Some(("RdsDatabase".into(), "stable.example.com".into())));
/// assert_eq!(k8s_core::legacy::third_party_kind("database"), None);
/// ```
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
