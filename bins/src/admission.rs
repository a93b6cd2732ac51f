//! Flags that choose and configure admission plugins.

use std::path::PathBuf;

use k8s_apiserver::{
    Builder,
    admission::{Configuration, default_plugins, plugins},
};

use crate::error::ClusterError;

/// The choice and configuration of admission plugins; a cluster in code chooses with
/// [`Extensions`](crate::extensions::Extensions)' server.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct AdmissionSettings {
    #[arg(long, value_delimiter = ',', value_name = "NAMES", help = enable_help())]
    enable_admission_plugins: Vec<String>,
    /// Admission plugins to turn off; repeatable, or comma-separated.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    disable_admission_plugins: Vec<String>,
    /// AdmissionConfiguration file: the configuration of plugins by name.
    #[arg(long, value_name = "FILE")]
    admission_control_config_file: Option<PathBuf>,
}

fn enable_help() -> String {
    let default: Vec<&str> = default_plugins().collect();
    let others: Vec<&str> = plugins().filter(|name| !default.contains(name)).collect();
    format!(
        "Admission plugins to turn on beside the default ones; repeatable, or comma-separated. On by default: {}. Off by default: {}",
        default.join(", "),
        if others.is_empty() { "none".to_owned() } else { others.join(", ") }
    )
}

impl AdmissionSettings {
    /// Applies the settings to a server.
    ///
    /// # Errors
    /// A configuration file that cannot be read or is wrong.
    pub(crate) fn apply(&self, server: Builder) -> Result<Builder, ClusterError> {
        let server = server
            .with_plugins(self.enable_admission_plugins.iter().filter(|name| !name.is_empty()))
            .without_plugins(self.disable_admission_plugins.iter().filter(|name| !name.is_empty()));
        let Some(file) = &self.admission_control_config_file else { return Ok(server) };
        let configuration = Configuration::read(file).map_err(|e| ClusterError::Invalid {
            setting: format!("--admission-control-config-file {}", file.display()),
            reason: e.to_string(),
        })?;
        Ok(server.plugin_configuration(configuration))
    }
}
