//! Configuration of the plugin: a PodSecurityConfiguration with defaults and exemptions.

use serde::Deserialize;
use serde_json::Value;

use super::policy::{Level, LevelVersion, Policy, Version};
use crate::{invalid::names, value::str_at};

/// Versions of the kind PodSecurityConfiguration.
const VERSIONS: [&str; 3] = [
    "pod-security.admission.config.k8s.io/v1",
    "pod-security.admission.config.k8s.io/v1beta1",
    "pod-security.admission.config.k8s.io/v1alpha1",
];

/// Defaults of namespaces without labels, and requests that are let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration {
    pub(super) defaults: Policy,
    pub(super) exempt: Exemptions,
}

/// Requests that are let through without evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Exemptions {
    pub(super) usernames: Vec<String>,
    pub(super) namespaces: Vec<String>,
    pub(super) runtime_classes: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    defaults: Defaults,
    exemptions: Exemptions,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

impl Configuration {
    /// Reads a configuration. Null is the default: nothing is refused where labels do not ask for it.
    ///
    /// # Errors
    /// The field, and its problem.
    pub(super) fn of(value: &Value) -> Result<Self, String> {
        if value.is_null() {
            return Ok(Configuration { defaults: Policy::PRIVILEGED, exempt: Exemptions::default() });
        }
        let (version, kind) = (str_at(value, "/apiVersion"), str_at(value, "/kind"));
        if kind != "PodSecurityConfiguration" || !VERSIONS.contains(&version) {
            return Err(format!(
                "want a PodSecurityConfiguration of {}, not {kind:?} of {version:?}",
                VERSIONS[0]
            ));
        }
        let File { defaults, exemptions: exempt, .. } =
            File::deserialize(value).map_err(|e| e.to_string())?;
        let mode = |name: &str, level: &str, version: &str| {
            let wrong = |field: &str, value: &str, detail| {
                format!("defaults.{field}: Invalid value: {value:?}: {detail}")
            };
            let mut of = LevelVersion::PRIVILEGED;
            if !level.is_empty() {
                of.level = Level::parse(level).map_err(|detail| wrong(name, level, detail))?;
            }
            if !version.is_empty() {
                let field = format!("{name}-version");
                of.version = Version::parse(version).map_err(|detail| wrong(&field, version, detail))?;
            }
            Ok::<_, String>(of)
        };
        let defaults = Policy {
            enforce: mode("enforce", &defaults.enforce, &defaults.enforce_version)?,
            audit: mode("audit", &defaults.audit, &defaults.audit_version)?,
            warn: mode("warn", &defaults.warn, &defaults.warn_version)?,
        };
        check("usernames", &exempt.usernames, "username must not be empty", |name| !name.is_empty())?;
        check("namespaces", &exempt.namespaces, "must be a DNS label", names::is_label)?;
        check("runtimeClasses", &exempt.runtime_classes, "must be a DNS subdomain", names::is_subdomain)?;
        Ok(Configuration { defaults, exempt })
    }
}

/// # Errors
/// An element that is not valid, or is there twice.
fn check(field: &str, all: &[String], detail: &str, is_valid: fn(&str) -> bool) -> Result<(), String> {
    for (i, name) in all.iter().enumerate() {
        if !is_valid(name) {
            return Err(format!("exemptions.{field}[{i}]: Invalid value: {name:?}: {detail}"));
        }
        if all.iter().take(i).any(|other| other == name) {
            return Err(format!("exemptions.{field}[{i}]: Duplicate value: {name:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(defaults: &Value, exemptions: &Value) -> Result<Configuration, String> {
        Configuration::of(&json!({"apiVersion": VERSIONS[0], "kind": "PodSecurityConfiguration",
            "defaults": defaults, "exemptions": exemptions}))
    }

    #[test]
    fn files_are_read_and_problems_name_the_field() {
        let read =
            file(&json!({"enforce": "baseline", "enforce-version": "v1.30"}), &json!({"usernames": ["ann"]}));
        let read = read.unwrap();
        assert_eq!(read.defaults.enforce.to_string(), "baseline:v1.30");
        assert_eq!(read.defaults.warn, LevelVersion::PRIVILEGED);
        assert_eq!(read.exempt.usernames, ["ann"]);
        let wrong = |defaults: Value, exemptions: Value| file(&defaults, &exemptions).unwrap_err();
        assert_eq!(
            wrong(json!({"warn-version": "1.2"}), json!({})),
            "defaults.warn-version: Invalid value: \"1.2\": must be \"latest\" or \"v1.x\""
        );
        assert_eq!(
            wrong(json!({}), json!({"namespaces": ["a", "a"]})),
            "exemptions.namespaces[1]: Duplicate value: \"a\""
        );
        assert!(
            wrong(json!({}), json!({"namespaces": ["A"]})).starts_with("exemptions.namespaces[0]: Invalid")
        );
        assert!(wrong(json!({"level": "x"}), json!({})).contains("unknown field `level`"));
        assert!(Configuration::of(&json!({"kind": "Pod"})).is_err());
        assert!(Configuration::of(&Value::Null).unwrap().defaults.is_privileged());
    }
}
