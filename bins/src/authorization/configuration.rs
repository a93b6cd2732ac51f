//! The file of `--authorization-config`: a chain of authorizers (`kind: AuthorizationConfiguration`).
//!
//! A server reads the file again each minute (`reload`). Not here: authorizers of the connection type
//! `InClusterConfig`.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use k8s_apiserver::auth::{
    AuthorizationMode,
    access_webhook::{FailurePolicy, ReviewVersion, WebhookSettings},
};
use serde::Deserialize;

use super::{AuthorizationFlags, webhook};
use crate::error::ClusterError;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    authorizers: Vec<Authorizer>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Authorizer {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    webhook: Option<Webhook>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Webhook {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: Option<String>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: Option<String>,
    #[serde(default = "yes")]
    cache_authorized_requests: bool,
    #[serde(default = "yes")]
    cache_unauthorized_requests: bool,
    timeout: Option<String>,
    #[serde(default)]
    subject_access_review_version: String,
    #[serde(default)]
    match_condition_subject_access_review_version: String,
    #[serde(default)]
    failure_policy: String,
    connection_info: Connection,
    #[serde(default)]
    match_conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Connection {
    #[serde(rename = "type")]
    kind: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    expression: String,
}

fn yes() -> bool {
    true
}

/// Versions of the configuration's API. They have the same fields.
const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// Reads the authorizers of a configuration.
///
/// # Errors
/// The field and its problem.
pub(super) fn parse(text: &str, flags: &AuthorizationFlags) -> Result<Vec<AuthorizationMode>, String> {
    let configuration: Configuration = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let Configuration { api_version, kind, authorizers } = configuration;
    if !VERSIONS.contains(&api_version.as_str()) || kind != "AuthorizationConfiguration" {
        return Err(format!(
            "apiVersion {api_version:?}, kind {kind:?}: {} AuthorizationConfiguration is needed",
            VERSIONS[0]
        ));
    }
    if authorizers.is_empty() {
        return Err("authorizers: at least one authorization mode must be defined".to_owned());
    }
    let (mut types, mut names, mut modes) = (HashSet::new(), HashSet::new(), Vec::new());
    for (at, authorizer) in authorizers.into_iter().enumerate() {
        let field = format!("authorizers[{at}]");
        let is_webhook = authorizer.kind == "Webhook";
        if !types.insert(authorizer.kind.clone()) && !is_webhook {
            return Err(format!("{field}.type: {:?} is there twice", authorizer.kind));
        }
        if !is_subdomain(&authorizer.name) {
            return Err(format!(
                "{field}.name: {:?} is no lower-case name such as webhook.example.com",
                authorizer.name
            ));
        }
        if !names.insert(authorizer.name.clone()) {
            return Err(format!("{field}.name: {:?} is there twice", authorizer.name));
        }
        modes.push(match (authorizer.webhook, is_webhook) {
            (Some(settings), true) => {
                of_webhook(&authorizer.name, settings).map_err(|why| format!("{field}.webhook.{why}"))?
            }
            (None, true) => return Err(format!("{field}.webhook: required when type=Webhook")),
            (Some(_), false) => {
                return Err(format!("{field}.webhook: may only be specified when type=Webhook"));
            }
            (None, false) => {
                flags.mode(&authorizer.kind).map_err(|e| format!("{field}.type: {}", reason(&e)))?
            }
        });
    }
    Ok(modes)
}

fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        ends(label.chars().next())
            && ends(label.chars().last())
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// # Errors
/// The field below `webhook` and its problem.
fn of_webhook(name: &str, config: Webhook) -> Result<AuthorizationMode, String> {
    let duration = |field: &str, text: Option<String>, default: Option<Duration>| match (text, default) {
        (None, None) => Err(format!("{field}: is required")),
        (None, Some(default)) => Ok(default),
        (Some(text), _) => match crate::duration::parse(&text) {
            Ok(Duration::ZERO) => Err(format!("{field}: must be > 0s")),
            parsed => parsed.map_err(|why| format!("{field}: {why}")),
        },
    };
    let default = WebhookSettings::default();
    let kept = |ttl, keeps: bool| if keeps { ttl } else { Duration::ZERO };
    let authorized = duration("authorizedTTL", config.authorized_ttl, Some(default.authorized_ttl))?;
    let unauthorized = duration("unauthorizedTTL", config.unauthorized_ttl, Some(default.unauthorized_ttl))?;
    let timeout = duration("timeout", config.timeout, None)?;
    if timeout > Duration::from_secs(30) {
        return Err("timeout: must be > 0s and <= 30s".to_owned());
    }
    let conditions = &config.match_conditions;
    match config.match_condition_subject_access_review_version.as_str() {
        "v1" => {}
        "" if conditions.is_empty() => {}
        other => {
            let field = "matchConditionSubjectAccessReviewVersion";
            return Err(format!("{field}: {other:?} where v1 is needed"));
        }
    }
    let settings = WebhookSettings {
        name: name.to_owned(),
        authorized_ttl: kept(authorized, config.cache_authorized_requests),
        unauthorized_ttl: kept(unauthorized, config.cache_unauthorized_requests),
        timeout,
        version: version(&config.subject_access_review_version)
            .map_err(|why| format!("subjectAccessReviewVersion: {why}"))?,
        failure_policy: match config.failure_policy.as_str() {
            "NoOpinion" => FailurePolicy::NoOpinion,
            "Deny" => FailurePolicy::Deny,
            other => return Err(format!("failurePolicy: {other:?}: NoOpinion or Deny is needed")),
        },
        match_conditions: config.match_conditions.into_iter().map(|condition| condition.expression).collect(),
    };
    match (config.connection_info.kind.as_str(), config.connection_info.kube_config_file) {
        ("KubeConfigFile", Some(file)) if file.is_absolute() => webhook(&file, settings),
        ("KubeConfigFile", _) => Err("connectionInfo.kubeConfigFile: an absolute path is needed".to_owned()),
        (other, _) => Err(format!("connectionInfo.type: {other:?} where KubeConfigFile is needed")),
    }
}

/// # Errors
/// The known versions.
pub(super) fn version(text: &str) -> Result<ReviewVersion, String> {
    match text {
        "v1" => Ok(ReviewVersion::V1),
        "v1beta1" => Ok(ReviewVersion::V1beta1),
        other => Err(format!("{other:?}: v1 or v1beta1 is needed")),
    }
}

/// Returns the text of an invalid setting without the setting.
fn reason(error: &ClusterError) -> String {
    match error {
        ClusterError::Invalid { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}
