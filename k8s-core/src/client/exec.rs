//! Credential plugins (`client.authentication.k8s.io`): programs that print a token or a client certificate.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// The command line of a credential plugin.
#[derive(Clone, Debug)]
pub struct ExecPlugin {
    settings: Settings,
    /// The field and file of the plugin, for errors.
    place: String,
    /// `spec.cluster` of the plugin's input, if it asks for it.
    cluster: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    command: PathBuf,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    api_version: String,
    #[serde(default)]
    provide_cluster_info: bool,
    #[serde(default)]
    install_hint: String,
    #[serde(default)]
    interactive_mode: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// A credential that a plugin printed.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Issued {
    pub(super) token: Option<String>,
    pub(super) client_certificate_data: Option<String>,
    pub(super) client_key_data: Option<String>,
    pub(super) expiration_timestamp: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    api_version: String,
    status: Option<Issued>,
}

impl ExecPlugin {
    /// Reads `exec` of a kubeconfig's user. `directory` is the one of the kubeconfig, `cluster` the cluster
    /// as the plugin sees it. The error is a field below `exec` (or empty) and a message.
    pub(super) fn parse(
        exec: &Value,
        directory: &Path,
        place: String,
        cluster: Value,
    ) -> Result<Self, (&'static str, String)> {
        let mut settings =
            serde_json::from_value::<Settings>(exec.clone()).map_err(|e| ("", e.to_string()))?;
        if !VERSIONS.contains(&settings.api_version.as_str()) {
            return Err((".apiVersion", format!("{:?} is not one of {VERSIONS:?}", settings.api_version)));
        }
        if settings.interactive_mode == "Always" {
            return Err((".interactiveMode", "plugins get no terminal here".into()));
        }
        if settings.command.components().count() > 1 {
            settings.command = directory.join(&settings.command);
        }
        let cluster = settings.provide_cluster_info.then_some(cluster);
        Ok(ExecPlugin { settings, place, cluster })
    }

    /// Runs the plugin without a terminal.
    ///
    /// # Errors
    /// It cannot be started, fails, or prints no credential. The message names the field, the file and the
    /// command, and has what the plugin wrote to its error output.
    pub(super) async fn run(&self) -> Result<Issued, String> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.run_blocking())
            .await
            .map_err(|e| format!("{}: {e}", self.place))?
    }

    fn run_blocking(&self) -> Result<Issued, String> {
        let Settings { command, args, env, api_version, install_hint, .. } = &self.settings;
        let bad = |message: String| format!("{}: {}: {message}", self.place, command.display());
        let mut spec = json!({"interactive": false});
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
        }
        let info = json!({"apiVersion": api_version, "kind": "ExecCredential", "spec": spec});
        let output = Command::new(command)
            .args(args.iter().flatten())
            .envs(env.iter().flatten().map(|v| (&v.name, &v.value)))
            .env("KUBERNETES_EXEC_INFO", info.to_string())
            .stdin(Stdio::null())
            .output()
            .map_err(|e| {
                let hint = if install_hint.is_empty() { String::new() } else { format!("\n{install_hint}") };
                bad(format!("{e}{hint}"))
            })?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(bad(format!("{}: {}", output.status, text.trim())));
        }
        // Without the output itself: it may hold a credential.
        let printed: Output = serde_json::from_slice(&output.stdout)
            .map_err(|e| bad(format!("its output is no ExecCredential (line {})", e.line())))?;
        if printed.api_version != *api_version {
            return Err(bad(format!("it printed apiVersion {:?}, not {api_version:?}", printed.api_version)));
        }
        let issued = printed.status.unwrap_or_default();
        match (&issued.token, &issued.client_certificate_data, &issued.client_key_data) {
            (_, Some(_), Some(_)) | (Some(_), None, None) => Ok(issued),
            (_, None, None) => Err(bad("it printed neither status.token nor a client certificate".into())),
            _ => Err(bad("status.clientCertificateData and status.clientKeyData go together".into())),
        }
    }
}
