//! Credential plugins (`client.authentication.k8s.io`): programs that print a token or a client certificate.
//!
//! They run with the feature `tls` only, without which there is no server that would take a credential.

#[cfg(feature = "tls")]
use std::process::Stdio;
use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// Maximum run time of a plugin: a log-in in a browser takes minutes.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Maximum size of a plugin's output, in bytes.
#[cfg(feature = "tls")]
const MOST_OUTPUT: u64 = 1 << 20;

/// Size of the start of a plugin's error output that its error shows, in bytes.
#[cfg(feature = "tls")]
const MOST_MESSAGE: u64 = 16 << 10;

/// The command line of a credential plugin.
#[derive(Clone, Debug)]
pub struct ExecPlugin {
    settings: Settings,
    /// The field and file of the plugin, for errors.
    place: String,
    /// `spec.cluster` of the plugin's input, if it asks for it.
    cluster: Option<Value>,
    timeout: Duration,
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
        Ok(ExecPlugin { settings, place, cluster, timeout: TIMEOUT })
    }

    /// Runs the plugin without a terminal. Dropping the future kills the plugin.
    ///
    /// # Errors
    /// This program is built without the feature `tls`, or the plugin cannot be started, fails, runs for more
    /// than five minutes, or prints no credential or more than 1 MiB. The message names the field, the file
    /// and the command, and has the start of the plugin's error output.
    pub(super) async fn run(&self) -> Result<Issued, String> {
        self.issue()
            .await
            .map_err(|message| format!("{}: {}: {message}", self.place, self.settings.command.display()))
    }

    async fn issue(&self) -> Result<Issued, String> {
        let Settings { api_version, install_hint, .. } = &self.settings;
        let output = tokio::time::timeout(self.timeout, run(self.command()))
            .await
            .map_err(|_| format!("it was stopped after {} s without a credential", self.timeout.as_secs()))?
            .map_err(|e| match install_hint.as_str() {
                hint if e.kind() == io::ErrorKind::NotFound && !hint.is_empty() => format!("{e}\n{hint}"),
                _ => e.to_string(),
            })?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.message);
            return Err(format!("{}: {}", output.status, text.trim()));
        }
        // Without the output itself: it may hold a credential.
        let printed: Output = serde_json::from_slice(&output.printed)
            .map_err(|e| format!("its output is no ExecCredential (line {})", e.line()))?;
        if printed.api_version != *api_version {
            return Err(format!("it printed apiVersion {:?}, not {api_version:?}", printed.api_version));
        }
        let issued = printed.status.unwrap_or_default();
        match (&issued.token, &issued.client_certificate_data, &issued.client_key_data) {
            (_, Some(_), Some(_)) | (Some(_), None, None) => Ok(issued),
            (_, None, None) => Err("it printed neither status.token nor a client certificate".into()),
            _ => Err("status.clientCertificateData and status.clientKeyData go together".into()),
        }
    }

    fn command(&self) -> Command {
        let Settings { command, args, env, api_version, .. } = &self.settings;
        let mut spec = json!({"interactive": false});
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
        }
        let info = json!({"apiVersion": api_version, "kind": "ExecCredential", "spec": spec});
        let mut command = Command::new(command);
        command
            .args(args.iter().flatten())
            .envs(env.iter().flatten().map(|v| (&v.name, &v.value)))
            .env("KUBERNETES_EXEC_INFO", info.to_string());
        command
    }
}

#[cfg(not(feature = "tls"))]
async fn run(_: Command) -> io::Result<Finished> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "credential plugins need k8s-core's feature \"tls\", which this program is built without",
    ))
}

#[cfg(feature = "tls")]
async fn run(command: Command) -> io::Result<Finished> {
    use tokio::io::AsyncReadExt;

    let mut child = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let printed = async {
        let mut printed = Vec::new();
        if let Some(stream) = stdout {
            stream.take(MOST_OUTPUT + 1).read_to_end(&mut printed).await?;
        }
        if printed.len() as u64 > MOST_OUTPUT {
            let kind = io::ErrorKind::InvalidData;
            return Err(io::Error::new(kind, format!("it printed more than {MOST_OUTPUT} bytes")));
        }
        Ok(printed)
    };
    let message = async {
        let mut message = Vec::new();
        if let Some(mut stream) = stderr {
            (&mut stream).take(MOST_MESSAGE).read_to_end(&mut message).await?;
            // The rest is dropped, so that the plugin does not block.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        }
        Ok(message)
    };
    let (printed, message) = tokio::try_join!(printed, message)?;
    Ok(Finished { status: child.wait().await?, printed, message })
}

/// The end of a plugin's run.
struct Finished {
    status: ExitStatus,
    printed: Vec<u8>,
    message: Vec<u8>,
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use std::time::Instant;

    use super::*;

    fn plugin(script: &str) -> ExecPlugin {
        let exec = json!({
            "command": "/bin/sh",
            "args": ["-c", script],
            "apiVersion": "client.authentication.k8s.io/v1",
        });
        ExecPlugin::parse(&exec, Path::new("/"), "users[u].user.exec".into(), Value::Null).unwrap()
    }

    async fn refusal(plugin: &ExecPlugin) -> String {
        plugin.run().await.err().unwrap()
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_or_floods_is_stopped_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let alive = directory.path().join("alive");
        // `exec`: the process that is killed is the one that would write.
        let hangs = format!("exec sh -c 'sleep 1; echo x > {}'", alive.display());
        let mut hanging = plugin(&hangs);
        hanging.timeout = Duration::from_millis(100);
        let begun = Instant::now();
        let refused = refusal(&hanging).await;
        assert!(refused.starts_with("users[u].user.exec: /bin/sh: it was stopped after"), "{refused}");
        // Dropping the call stops it as well.
        let dropped = plugin(&hangs);
        assert!(tokio::time::timeout(Duration::from_millis(100), dropped.run()).await.is_err());
        assert!(begun.elapsed() < Duration::from_millis(900));
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(!alive.exists(), "a stopped plugin went on");

        let floods = refusal(&plugin("exec head -c 3000000 /dev/zero")).await;
        assert!(floods.ends_with("it printed more than 1048576 bytes"), "{floods}");
        let loud = refusal(&plugin("echo log in first >&2; head -c 3000000 /dev/zero >&2; exit 3")).await;
        assert!(loud.contains("exit status: 3: log in first") && loud.len() < 20_000, "{}", loud.len());
    }
}
