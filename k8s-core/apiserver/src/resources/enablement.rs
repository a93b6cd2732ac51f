//! Versions and resources that are served (`--runtime-config`).
//!
//! Each entry of the flag is `KEY=true|false`; a key without a value means true. A resource's own entry
//! decides before its version's, that before `api/ga`, `api/beta` and `api/alpha`, and those before
//! `api/all`. Without an entry, a resource is served unless its row says otherwise. Resources of definitions
//! are always served.

use std::collections::{BTreeMap, BTreeSet};

use super::{BUILT_IN, table::UNSTORED};

/// A `--runtime-config` that cannot be used; the messages are upstream's. Correct the entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeConfigError {
    /// Nothing would be served.
    #[error("invalid runtime-config with only api/all=false")]
    Nothing,
    /// A key that is neither `GROUP/VERSION` nor `GROUP/VERSION/RESOURCE`.
    #[error("runtime-config invalid key {0}")]
    Key(String),
    /// Groups, each with its version, that this server does not have.
    #[error("unknown api groups {}", .0.join(","))]
    Groups(Vec<String>),
    /// A version that this server does not have.
    #[error("group version {0} that has not been registered")]
    Version(String),
    /// A resource that this server does not have in that version.
    #[error("resource {0} that has not been registered")]
    Resource(String),
    /// A resource with upper-case letters.
    #[error(
        "invalid key {key}: group/version/resource and resource is always lowercase plural, not {resource:?}"
    )]
    Case {
        /// Key as given.
        key: String,
        /// Its resource.
        resource: String,
    },
    /// A value of `api/all`, `api/ga`, `api/beta` or `api/alpha` other than `true` and `false`.
    #[error("invalid value {key}={value}")]
    Stage {
        /// Key as given.
        key: String,
        /// Value as given.
        value: String,
    },
    /// A value that is no boolean.
    #[error("invalid value of {key}: {value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    Value {
        /// Key as given.
        key: String,
        /// Value as given.
        value: String,
    },
}

/// Stability of a version, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Stable,
    Beta,
    Alpha,
}

impl Stage {
    /// The stage of `v1`, `v2beta1` or `v1alpha2`; `None` for names of another form.
    fn of(version: &str) -> Option<Self> {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let rest = version.strip_prefix('v')?;
        let pair = |by: &str| rest.split_once(by).is_some_and(|(a, b)| number(a) && number(b));
        match () {
            () if number(rest) => Some(Stage::Stable),
            () if pair("beta") => Some(Stage::Beta),
            () if pair("alpha") => Some(Stage::Alpha),
            () => None,
        }
    }
}

/// The choice of what is served. The default serves what upstream serves by default, and old versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Enablement {
    all: Option<bool>,
    stages: BTreeMap<Stage, bool>,
    versions: BTreeMap<(String, String), bool>,
    resources: BTreeMap<(String, String, String), bool>,
}

impl Enablement {
    /// Serves everything that this server has.
    pub(crate) fn everything() -> Self {
        Enablement { all: Some(true), ..Enablement::default() }
    }

    /// Reads entries; each may hold several, separated by commas. The last entry of a key counts.
    ///
    /// # Errors
    /// An unknown group, version or resource, or a wrong value.
    pub(crate) fn parse(entries: &[String]) -> Result<Self, RuntimeConfigError> {
        let mut given = BTreeMap::new();
        for entry in entries.iter().flat_map(|all| all.split(',')).filter(|entry| !entry.is_empty()) {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            match key.trim() {
                // Deprecated and without effect, as upstream.
                "api/legacy" => {}
                key => drop(given.insert(core(key), value.trim())),
            }
        }
        if given.len() == 1 && given.get("api/all") == Some(&"false") {
            return Err(RuntimeConfigError::Nothing);
        }
        let stage = |key: &str| -> Result<Option<bool>, RuntimeConfigError> {
            match given.get(key) {
                None => Ok(None),
                Some(&"true") => Ok(Some(true)),
                Some(&"false") => Ok(Some(false)),
                Some(value) => {
                    Err(RuntimeConfigError::Stage { key: key.to_owned(), value: (*value).to_owned() })
                }
            }
        };
        let mut chosen = Enablement { all: stage("api/all")?, ..Enablement::default() };
        for (key, of) in [("api/ga", Stage::Stable), ("api/beta", Stage::Beta), ("api/alpha", Stage::Alpha)] {
            chosen.stages.extend(stage(key)?.map(|on| (of, on)));
        }
        let single = given.iter().filter(|(key, _)| !STAGES.contains(&key.as_str()));
        let single: Vec<(&String, Vec<&str>, &str)> =
            single.map(|(key, value)| (key, key.split('/').collect(), *value)).collect();
        if let Some((key, ..)) = single.iter().find(|(_, parts, _)| !matches!(parts.len(), 2 | 3)) {
            return Err(RuntimeConfigError::Key((*key).clone()));
        }
        let known = Known::new();
        let unknown: BTreeSet<String> = single
            .iter()
            .filter(|(_, parts, _)| !known.groups.contains(parts[0]))
            .map(|(_, parts, _)| format!("{}/{}", parts[0], parts[1]))
            .collect();
        if !unknown.is_empty() {
            return Err(RuntimeConfigError::Groups(unknown.into_iter().collect()));
        }
        for (key, parts, value) in single {
            let (group, version) = (parts[0], parts[1]);
            if !known.versions.contains(&(group, version)) {
                let name = format!("{group}/{version}");
                return Err(RuntimeConfigError::Version(name.trim_start_matches('/').to_owned()));
            }
            let on = boolean(key, value)?;
            let Some(plural) = parts.get(2) else {
                chosen.versions.insert((group.into(), version.into()), on);
                continue;
            };
            if plural.to_lowercase() != **plural {
                return Err(RuntimeConfigError::Case { key: key.clone(), resource: (*plural).into() });
            }
            if !known.resources.contains(&(group, version, plural)) {
                return Err(RuntimeConfigError::Resource(key.trim_start_matches('/').to_owned()));
            }
            chosen.resources.insert((group.into(), version.into(), (*plural).into()), on);
        }
        Ok(chosen)
    }

    /// Returns true if a built-in resource is served; `by_default` decides where no entry does.
    pub(crate) fn serves(&self, group: &str, version: &str, plural: &str, by_default: bool) -> bool {
        let of_version = (group.to_owned(), version.to_owned());
        let of_resource = (group.to_owned(), version.to_owned(), plural.to_owned());
        let own = self.resources.get(&of_resource).or_else(|| self.versions.get(&of_version));
        let stage = || Stage::of(version).and_then(|stage| self.stages.get(&stage));
        own.or_else(stage).copied().or(self.all).unwrap_or(by_default)
    }
}

/// Keys that are about all versions of a stage.
const STAGES: [&str; 4] = ["api/all", "api/ga", "api/beta", "api/alpha"];

/// Gives a key of the core group the form of the others.
fn core(key: &str) -> String {
    let name = key.strip_prefix("api/").unwrap_or(key);
    if name == "v1" || name.starts_with("v1/") { format!("/{name}") } else { key.to_owned() }
}

/// Reads a boolean as Go does; an empty one means true.
fn boolean(key: &str, value: &str) -> Result<bool, RuntimeConfigError> {
    match value {
        "" | "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(RuntimeConfigError::Value { key: key.to_owned(), value: value.to_owned() }),
    }
}

/// The names of everything that this server has, served or not.
struct Known<'a> {
    groups: BTreeSet<&'a str>,
    versions: BTreeSet<(&'a str, &'a str)>,
    resources: BTreeSet<(&'a str, &'a str, &'a str)>,
}

impl Known<'static> {
    fn new() -> Self {
        let stored = BUILT_IN.iter().map(|r| (r.group.as_str(), r.version.as_str(), r.plural.as_str()));
        let unstored = UNSTORED.iter().map(|(group, plural, ..)| (*group, "v1", *plural));
        let resources: BTreeSet<_> = stored.chain(unstored).collect();
        Known {
            groups: resources.iter().map(|(group, ..)| *group).collect(),
            versions: resources.iter().map(|(group, version, _)| (*group, *version)).collect(),
            resources,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Enablement, String> {
        Enablement::parse(&[text.to_owned()]).map_err(|error| error.to_string())
    }

    /// The resources that a configuration turns on and off, of those that the default serves or not.
    fn serves(text: &str, name: &str, by_default: bool) -> bool {
        let parts: Vec<&str> = name.split('/').collect();
        parse(text).unwrap().serves(parts[0], parts[1], parts[2], by_default)
    }

    #[test]
    fn the_narrowest_entry_decides() {
        let bundles = "certificates.k8s.io/v1beta1/clustertrustbundles";
        for (config, name, by_default, want) in [
            ("", bundles, false, false),
            ("", "apps/v1/deployments", true, true),
            ("api/all=true", bundles, false, true),
            ("api/beta=true", bundles, false, true),
            ("api/alpha=true", bundles, false, false),
            ("api/ga=false", "apps/v1/deployments", true, false),
            ("api/all=true,api/beta=false", bundles, false, false),
            ("api/beta=false,api/all=true", "apps/v1beta1/deployments", true, false),
            ("api/beta=false,certificates.k8s.io/v1beta1", bundles, false, true),
            (
                "certificates.k8s.io/v1beta1=1,certificates.k8s.io/v1beta1/clustertrustbundles=F",
                bundles,
                false,
                false,
            ),
            ("certificates.k8s.io/v1beta1/clustertrustbundles=true", bundles, false, true),
            ("api/all=false,v1=true", "/v1/pods", true, true),
            ("api/all=false,api/v1/pods", "/v1/secrets", true, false),
            ("api/all=false,v1/pods", "/v1/pods", true, true),
            ("api/legacy=false", "/v1/pods", true, true),
            ("apps/v1=false, apps/v1 = true", "apps/v1/deployments", true, true),
        ] {
            assert_eq!(serves(config, name, by_default), want, "{config}: {name}");
        }
    }

    #[test]
    fn wrong_entries_are_told_in_upstreams_words() {
        for (config, want) in [
            ("api/all=false", "invalid runtime-config with only api/all=false"),
            ("api/all=maybe,apps/v1=true", "invalid value api/all=maybe"),
            ("api/beta", "invalid value api/beta="),
            ("apps", "runtime-config invalid key apps"),
            ("a/b/c/d=true", "runtime-config invalid key a/b/c/d"),
            ("zoo/v1=true,nope/v1/x", "unknown api groups nope/v1,zoo/v1"),
            ("apps/v7=true", "group version apps/v7 that has not been registered"),
            ("v2=true", "runtime-config invalid key v2"),
            ("apps/v1/things", "resource apps/v1/things that has not been registered"),
            (
                "apps/v1/Deployments",
                "invalid key apps/v1/Deployments: group/version/resource and resource is always lowercase plural, not \"Deployments\"",
            ),
            (
                "apps/v1=yes",
                "invalid value of apps/v1: yes, err: strconv.ParseBool: parsing \"yes\": invalid syntax",
            ),
        ] {
            assert_eq!(parse(config).unwrap_err(), want, "{config}");
        }
    }

    #[test]
    fn versions_have_stages() {
        for (version, want) in [
            ("v1", Some(Stage::Stable)),
            ("v12beta3", Some(Stage::Beta)),
            ("v1alpha1", Some(Stage::Alpha)),
            ("v1beta", None),
            ("vx", None),
            ("1", None),
        ] {
            assert_eq!(Stage::of(version), want, "{version}");
        }
    }
}
