//! KubeSchedulerConfiguration: profiles, plugins and their arguments, extenders.

mod extenders;

pub use self::extenders::{ExtenderConfig, ExtenderTls, ManagedResource};

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Plugin, Points,
    decide::{Enough, MOST_PLUGINS, Profile},
    extender::Extenders,
    plugins::ROWS,
};

/// The configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ConfigError {
    /// Path of the field, such as `profiles[0].pluginConfig[1].args`.
    pub path: String,
    /// The reason.
    pub reason: String,
}

fn error(path: impl Into<String>, reason: impl Into<String>) -> ConfigError {
    ConfigError { path: path.into(), reason: reason.into() }
}

/// A file of `kind: KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`).
///
/// Unknown fields are errors. `parallelism` has no effect, because one thread decides.
///
/// ```
/// use k8s_scheduler::{Configuration, Scheduler};
/// let file: Configuration = serde_json::from_value(serde_json::json!({
///     "apiVersion": "kubescheduler.config.k8s.io/v1",
///     "kind": "KubeSchedulerConfiguration",
///     "profiles": [
///         {"schedulerName": "default-scheduler"},
///         {
///             "schedulerName": "packer",
///             "plugins": {"score": {
///                 "disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit"}],
///             }},
///             "pluginConfig": [{
///                 "name": "NodeResourcesFit",
///                 "args": {"scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu"}]}},
///             }],
///         },
///     ],
/// }))?;
/// let scheduler = Scheduler::builder().configured(file)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Configuration {
    /// `kubescheduler.config.k8s.io/v1`.
    pub api_version: String,
    /// `KubeSchedulerConfiguration`.
    pub kind: String,
    /// Accepted without effect.
    pub parallelism: Option<i64>,
    /// Leader election, for the program.
    pub leader_election: LeaderElection,
    /// The connection, for the program.
    pub client_connection: ClientConnection,
    /// Feasible nodes after which a search stops, in percent of all, but at least 100 nodes. 0, the
    /// default, and 100 examine all nodes; with extenders 0 stops at 100 feasible nodes.
    pub percentage_of_nodes_to_score: Option<usize>,
    /// First back-off of a pod in seconds. Default: 1.
    pub pod_initial_backoff_seconds: u64,
    /// Longest back-off of a pod in seconds. Default: 10.
    pub pod_max_backoff_seconds: u64,
    /// The profiles, one per `schedulerName`. Default: one for `default-scheduler`.
    pub profiles: Vec<ProfileConfig>,
    /// Webhooks that take part in the decisions of all profiles. Default: none.
    pub extenders: Vec<ExtenderConfig>,
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration {
            api_version: String::new(),
            kind: String::new(),
            parallelism: None,
            leader_election: LeaderElection::default(),
            client_connection: ClientConnection::default(),
            percentage_of_nodes_to_score: None,
            pod_initial_backoff_seconds: 1,
            pod_max_backoff_seconds: 10,
            profiles: Vec::new(),
            extenders: Vec::new(),
        }
    }
}

/// `leaderElection` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderElection {
    /// True if only the leader schedules.
    pub leader_elect: Option<bool>,
}

/// `clientConnection` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientConnection {
    /// Path of the kubeconfig.
    pub kubeconfig: Option<String>,
}

/// A profile: the plugins for the pods of one `schedulerName`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProfileConfig {
    /// The `schedulerName`. Default: `default-scheduler`.
    pub scheduler_name: Option<String>,
    /// As the field of the configuration, for this profile.
    pub percentage_of_nodes_to_score: Option<usize>,
    /// Plugins to enable and to disable, beside the default ones.
    pub plugins: PluginSets,
    /// Arguments of plugins.
    pub plugin_config: Vec<PluginArgs>,
}

/// Arguments of a plugin.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluginArgs {
    /// Name of the plugin.
    pub name: String,
    /// The arguments.
    #[serde(default)]
    pub args: Value,
}

/// Plugins to enable and to disable, by extension point.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the fields are the extension points")]
pub struct PluginSets {
    pub multi_point: PluginSet,
    pub pre_enqueue: PluginSet,
    pub queue_sort: PluginSet,
    pub pre_filter: PluginSet,
    pub filter: PluginSet,
    pub post_filter: PluginSet,
    pub pre_score: PluginSet,
    pub score: PluginSet,
    pub reserve: PluginSet,
    pub permit: PluginSet,
    pub pre_bind: PluginSet,
    pub bind: PluginSet,
    pub post_bind: PluginSet,
}

/// Plugins to enable and to disable at an extension point.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PluginSet {
    /// Plugins to enable, or to give another weight.
    pub enabled: Vec<PluginRef>,
    /// Plugins to disable; `*` disables all.
    pub disabled: Vec<PluginRef>,
}

/// A plugin by its name.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluginRef {
    /// Name of the plugin.
    pub name: String,
    /// Weight of its score. Default: that of the plugin.
    #[serde(default)]
    pub weight: Option<i64>,
}

impl PluginSet {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|p| p.name == name || p.name == "*")
    }
}

/// Takes an extension point out of a row.
type Clear = fn(&mut Points);
/// Copies an extension point of a plugin to a row; false if it has none.
type Copy = fn(&Points, &mut Points) -> bool;

macro_rules! point {
    ($sets:expr, $name:literal, $field:ident) => {
        (
            $name,
            &$sets.$field,
            (|row| row.$field = None) as Clear,
            (|from, to| {
                to.$field.clone_from(&from.$field);
                from.$field.is_some()
            }) as Copy,
        )
    };
}

impl PluginSets {
    fn points(&self) -> [(&'static str, &PluginSet, Clear, Copy); 12] {
        [
            point!(self, "preEnqueue", pre_enqueue),
            point!(self, "queueSort", queue_sort),
            point!(self, "preFilter", pre_filter),
            point!(self, "filter", filter),
            point!(self, "postFilter", post_filter),
            point!(self, "preScore", pre_score),
            point!(self, "score", score),
            point!(self, "reserve", reserve),
            point!(self, "permit", permit),
            point!(self, "preBind", pre_bind),
            point!(self, "bind", bind),
            point!(self, "postBind", post_bind),
        ]
    }
}

impl Configuration {
    /// Returns the first and the longest back-off.
    pub(crate) fn backoff(&self) -> (Duration, Duration) {
        (
            Duration::from_secs(self.pod_initial_backoff_seconds),
            Duration::from_secs(self.pod_max_backoff_seconds),
        )
    }

    /// Makes the profiles. `added` has the plugins of the program, which every profile has unless it disables
    /// them. With `bare` there are no built-in ones but those for the queue and the binding.
    ///
    /// # Errors
    /// The path of the first field that cannot be used.
    pub(crate) fn profiles(&self, added: &[Points], bare: bool) -> Result<Vec<Profile>, ConfigError> {
        self.check()?;
        let default = [ProfileConfig::default()];
        let configs = if self.profiles.is_empty() { &default[..] } else { &self.profiles };
        let ignored = extenders::ignored(&self.extenders);
        let mut profiles: Vec<Profile> = Vec::new();
        for (at, config) in configs.iter().enumerate() {
            let path = format!("profiles[{at}]");
            let profile = config.profile(&path, self.percentage_of_nodes_to_score, &ignored, added, bare)?;
            if profiles.iter().any(|p| p.name == profile.name) {
                let reason = format!("{:?} is the name of another profile", profile.name);
                return Err(error(format!("{path}.schedulerName"), reason));
            }
            let sorts = |p: &Profile| p.rows.iter().find(|r| r.queue_sort.is_some()).map(|r| r.name.clone());
            if profiles.first().is_some_and(|first| sorts(first) != sorts(&profile)) {
                let reason = "must be the same for all profiles, because they share one queue";
                return Err(error(format!("{path}.plugins.queueSort"), reason));
            }
            profiles.push(profile);
        }
        Ok(profiles)
    }

    /// Makes the extenders; reads the files of their certificates, and opens no connection.
    ///
    /// # Errors
    /// The path of the first field that cannot be used.
    pub(crate) fn extenders(&self) -> Result<Extenders, ConfigError> {
        extenders::connect(&self.extenders)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wanted = "kubescheduler.config.k8s.io/v1";
        if !self.api_version.is_empty() && self.api_version != wanted {
            return Err(error(
                "apiVersion",
                format!("{:?} is not supported, only {wanted:?}", self.api_version),
            ));
        }
        if self.pod_initial_backoff_seconds == 0 {
            return Err(error("podInitialBackoffSeconds", "must be greater than 0"));
        }
        if self.pod_max_backoff_seconds < self.pod_initial_backoff_seconds {
            return Err(error(
                "podMaxBackoffSeconds",
                "must be greater than or equal to podInitialBackoffSeconds",
            ));
        }
        check_percentage("percentageOfNodesToScore", self.percentage_of_nodes_to_score)
    }
}

fn check_percentage(path: &str, percentage: Option<usize>) -> Result<(), ConfigError> {
    match percentage {
        Some(part) if part > 100 => Err(error(path, format!("{part} is not in the range 0-100"))),
        _ => Ok(()),
    }
}

impl ProfileConfig {
    fn profile(
        &self,
        path: &str,
        percentage: Option<usize>,
        ignored: &[&str],
        added: &[Points],
        bare: bool,
    ) -> Result<Profile, ConfigError> {
        let name = self.scheduler_name.clone().unwrap_or_else(|| "default-scheduler".into());
        if name.is_empty() {
            return Err(error(format!("{path}.schedulerName"), "must not be empty"));
        }
        check_percentage(&format!("{path}.percentageOfNodesToScore"), self.percentage_of_nodes_to_score)?;
        let known = self.known(path, ignored, added)?;
        let is_default = |name: &str| {
            !bare
                || matches!(name, "SchedulingGates" | "PrioritySort" | "DefaultBinder")
                || added.iter().any(|p| p.name == name)
        };
        let find = |path: &str, name: &str| {
            known.iter().find(|p| p.name == name).ok_or_else(|| {
                let names: Vec<&str> = known.iter().map(|p| &*p.name).collect();
                error(format!("{path}.name"), format!("no plugin {name:?}; there are {}", names.join(", ")))
            })
        };
        let multi = &self.plugins.multi_point;
        let mut rows: Vec<Points> =
            known.iter().filter(|p| is_default(&p.name) && !multi.disables(&p.name)).cloned().collect();
        for (at, wanted) in multi.enabled.iter().enumerate() {
            let path = format!("{path}.plugins.multiPoint.enabled[{at}]");
            let mut plugin = find(&path, &wanted.name)?.clone();
            plugin.weight = weight(&path, wanted)?.unwrap_or(plugin.weight);
            match rows.iter_mut().find(|row| row.name == plugin.name) {
                Some(row) => *row = plugin,
                None => rows.push(plugin),
            }
        }
        for (point, set, clear, copy) in self.plugins.points() {
            rows.iter_mut().filter(|row| set.disables(&row.name)).for_each(clear);
            for (at, wanted) in set.enabled.iter().enumerate() {
                let path = format!("{path}.plugins.{point}.enabled[{at}]");
                let plugin = find(&path, &wanted.name)?;
                let index = rows.iter().position(|row| row.name == plugin.name).unwrap_or_else(|| {
                    let mut row = Points::of(()).points();
                    row.name.clone_from(&plugin.name);
                    row.weight = plugin.weight;
                    row.enqueue.clone_from(&plugin.enqueue);
                    rows.push(row);
                    rows.len() - 1
                });
                let row = &mut rows[index];
                if !copy(plugin, row) {
                    return Err(error(path, format!("{} has no extension point {point}", plugin.name)));
                }
                if point == "score" {
                    row.normalize.clone_from(&plugin.normalize);
                    row.pre_score.clone_from(&plugin.pre_score);
                    row.weight = weight(&path, wanted)?.unwrap_or(row.weight);
                }
                if point == "filter" {
                    row.pre_filter.clone_from(&plugin.pre_filter);
                }
            }
        }
        if rows.len() > MOST_PLUGINS {
            return Err(error(format!("{path}.plugins"), format!("more than {MOST_PLUGINS} plugins")));
        }
        if !rows.iter().any(|row| row.bind.is_some()) {
            return Err(error(format!("{path}.plugins.bind"), "no plugin binds; enable DefaultBinder"));
        }
        if rows.iter().filter(|row| row.queue_sort.is_some()).count() != 1 {
            return Err(error(format!("{path}.plugins.queueSort"), "exactly one plugin must be enabled"));
        }
        let enough = match self.percentage_of_nodes_to_score.or(percentage) {
            None | Some(0) => Enough::All,
            Some(part) => Enough::Percentage(part),
        };
        Ok(Profile { name, rows, enough })
    }

    /// Makes all plugins that a profile may enable, with their arguments. `ignored` has the resources that
    /// only extenders check.
    fn known(&self, path: &str, ignored: &[&str], added: &[Points]) -> Result<Vec<Points>, ConfigError> {
        let mut args: BTreeMap<&str, (usize, &Value)> = BTreeMap::new();
        for (at, config) in self.plugin_config.iter().enumerate() {
            let path = format!("{path}.pluginConfig[{at}].name");
            if !ROWS.iter().any(|row| row.name == config.name) {
                return Err(error(path, format!("no built-in plugin {:?}", config.name)));
            }
            if args.insert(&config.name, (at, &config.args)).is_some() {
                return Err(error(path, format!("{:?} is listed twice", config.name)));
            }
        }
        let mut known = Vec::new();
        for row in &ROWS {
            let (at, value) = args.get(row.name).copied().unwrap_or((0, &Value::Null));
            let made = match row.name {
                "NodeResourcesFit" if !ignored.is_empty() => {
                    let mut value = if value.is_null() { json!({}) } else { value.clone() };
                    if let Value::Object(args) = &mut value {
                        args.insert("ignoredResources".into(), json!(ignored));
                    }
                    (row.make)(&value)
                }
                _ => (row.make)(value),
            };
            known.push(made.map_err(|reason| error(format!("{path}.pluginConfig[{at}].args"), reason))?);
        }
        for plugin in added {
            match known.iter_mut().find(|k| k.name == plugin.name) {
                Some(known) => *known = plugin.clone(),
                None => known.push(plugin.clone()),
            }
        }
        Ok(known)
    }
}

fn weight(path: &str, plugin: &PluginRef) -> Result<Option<i64>, ConfigError> {
    match plugin.weight {
        Some(weight) if weight < 0 => Err(error(format!("{path}.weight"), "must not be negative")),
        // As upstream, 0 means that none was given.
        other => Ok(other.filter(|weight| *weight != 0)),
    }
}

#[cfg(test)]
mod tests;
