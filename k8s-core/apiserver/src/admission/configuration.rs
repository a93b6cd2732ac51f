//! AdmissionConfiguration files (`--admission-control-config-file`): the configuration of plugins by name.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::{
    decode,
    value::{array_at, str_at},
};

/// An admission configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// A file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// Path of the file.
        path: String,
        /// Reason.
        source: std::io::Error,
    },
    /// A file is not YAML or JSON.
    #[error("{path}: {problem}")]
    Syntax {
        /// Path of the file; empty for a text.
        path: String,
        /// Position and problem.
        problem: String,
    },
    /// A field has a wrong value.
    #[error("admission configuration: {0}")]
    Field(String),
}

/// Configurations of admission plugins by name.
///
/// ```
/// use k8s_apiserver::admission::Configuration;
///
/// let text = "
/// apiVersion: apiserver.config.k8s.io/v1
/// kind: AdmissionConfiguration
/// plugins:
/// - name: EventRateLimit
///   configuration:
///     apiVersion: eventratelimit.admission.k8s.io/v1alpha1
///     kind: Configuration
///     limits: [{type: Server, qps: 50, burst: 100}]
/// ";
/// assert_eq!(Configuration::parse(text)?.names().collect::<Vec<_>>(), ["EventRateLimit"]);
/// assert!(Configuration::parse("kind: Pod").is_err());
/// # Ok::<(), k8s_apiserver::admission::ConfigurationError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration(BTreeMap<String, Value>);

/// Versions of the kind AdmissionConfiguration.
const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1", "apiserver.config.k8s.io/v1alpha1"];

impl Configuration {
    /// Reads an AdmissionConfiguration file. Paths in it are relative to its directory.
    ///
    /// # Errors
    /// A file that cannot be read or decoded, or a field with a wrong value.
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::with_files(&file(path)?, &|named| file(&directory.join(named)))
    }

    /// Parses the text of an AdmissionConfiguration, whose configurations are all in the text.
    ///
    /// # Errors
    /// A text that cannot be decoded, or a field with a wrong value.
    pub fn parse(text: &str) -> Result<Self, ConfigurationError> {
        Self::with_files(&decoded("", text)?, &|named| {
            Err(ConfigurationError::Field(format!("plugins: path {named:?} needs a file to be relative to")))
        })
    }

    fn with_files(
        all: &Value,
        file: &dyn Fn(&str) -> Result<Value, ConfigurationError>,
    ) -> Result<Self, ConfigurationError> {
        let (version, kind) = (str_at(all, "/apiVersion"), str_at(all, "/kind"));
        if kind != "AdmissionConfiguration" || !VERSIONS.contains(&version) {
            let why =
                format!("want an AdmissionConfiguration of {}, not {kind:?} of {version:?}", VERSIONS[0]);
            return Err(ConfigurationError::Field(why));
        }
        let mut found = BTreeMap::new();
        for (i, plugin) in array_at(all, "/plugins").iter().enumerate() {
            let (name, path) = (str_at(plugin, "/name"), str_at(plugin, "/path"));
            if name.is_empty() {
                return Err(ConfigurationError::Field(format!("plugins[{i}].name: required")));
            }
            let configuration = match plugin.get("configuration") {
                Some(inline) if !inline.is_null() => inline.clone(),
                _ if path.is_empty() => Value::Null,
                _ => file(path)?,
            };
            if found.insert(name.to_owned(), configuration).is_some() {
                return Err(ConfigurationError::Field(format!("plugins[{i}].name: {name} is there twice")));
            }
        }
        Ok(Configuration(found))
    }

    /// Returns the names of the configured plugins.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns the configuration of a plugin; null if there is none.
    pub(crate) fn of(&self, plugin: &str) -> &Value {
        self.0.get(plugin).unwrap_or(&Value::Null)
    }
}

fn file(path: &Path) -> Result<Value, ConfigurationError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigurationError::Read { path: shown.clone(), source })?;
    decoded(&shown, &text)
}

fn decoded(path: &str, text: &str) -> Result<Value, ConfigurationError> {
    let problem = |e: &dyn std::fmt::Display| ConfigurationError::Syntax {
        path: path.to_owned(),
        problem: e.to_string(),
    };
    decode::yaml(text.as_bytes()).map_err(|e| problem(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n";

    #[test]
    fn paths_are_relative_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admission.yaml");
        std::fs::write(&path, format!("{HEAD}plugins: [{{name: PodSecurity, path: pods.yaml}}]\n")).unwrap();
        let missing = Configuration::read(&path).unwrap_err().to_string();
        assert!(missing.contains("pods.yaml"), "{missing}");
        std::fs::write(directory.path().join("pods.yaml"), "kind: X\n").unwrap();
        assert_eq!(Configuration::read(&path).unwrap().of("PodSecurity")["kind"], "X");
    }

    #[test]
    fn problems_name_the_field() {
        for (text, problem) in [
            ("plugins: [{}]", "plugins[0].name: required"),
            ("plugins: [{name: A}, {name: A}]", "plugins[1].name: A is there twice"),
            ("plugins: [{name: A, path: b}]", "path \"b\" needs a file"),
        ] {
            let error = Configuration::parse(&format!("{HEAD}{text}")).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        assert!(Configuration::parse("kind: [").is_err());
    }
}
