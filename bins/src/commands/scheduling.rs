//! The scheduler's configuration file, and `explain-scheduling`.

use std::path::{Path, PathBuf};

use k8s_core::client::{Client, Kubeconfig, Remote};
use k8s_scheduler::{Builder, Configuration};

use super::exit::{Code, Failure};
use crate::extensions::Extensions;

/// Flag of the scheduler's configuration.
#[derive(Debug, clap::Args)]
pub(super) struct SchedulerConfig {
    /// File of `kind: KubeSchedulerConfiguration`: profiles, plugins and their arguments.
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
}

impl SchedulerConfig {
    /// Applies the file to a scheduler.
    ///
    /// # Errors
    /// The file cannot be read, or has a field that cannot be used.
    pub(super) fn apply(&self, scheduler: Builder) -> Result<Builder, Failure> {
        let Some(path) = &self.scheduler_config else { return Ok(scheduler) };
        let text = std::fs::read_to_string(path).map_err(|e| unusable(path, &e))?;
        let file: Configuration = serde_saphyr::from_str(&text).map_err(|e| unusable(path, &e))?;
        if file.kind != "KubeSchedulerConfiguration" {
            let reason = format!("kind: {:?} is not \"KubeSchedulerConfiguration\"", file.kind);
            return Err(unusable(path, &reason));
        }
        scheduler.configured(file).map_err(|e| unusable(path, &e))
    }
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Usage, format!("--scheduler-config {}: {reason}", path.display()))
}

/// Explain the scheduling of a pod: for each node the plugin that refuses it, or its score.
///
/// The decision is made anew, by the scheduler's own code, over the cluster as it is now. A pod that has a
/// node is treated as if it had none.
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// `pod NAME` or `pod/NAME`.
    #[arg(required = true, num_args = 1..=2, value_name = "pod NAME")]
    pod: Vec<String>,
    /// Namespace of the pod.
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Path of the kubeconfig (default: as kubectl's).
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    config: SchedulerConfig,
    /// Output format: `text` or `json`.
    #[arg(long, short, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Explain {
    fn name(&self) -> Option<&str> {
        match &self.pod[..] {
            [one] => one.strip_prefix("pod/").or_else(|| one.strip_prefix("pods/")),
            [kind, name] if matches!(kind.as_str(), "pod" | "pods" | "po") => Some(name),
            _ => None,
        }
    }

    fn client(&self) -> Result<Client, Failure> {
        let usage = |e: String| Failure::new(Code::Usage, format!("--kubeconfig: {e}"));
        let Some(path) = &self.kubeconfig else {
            return Client::try_default().map_err(|e| usage(e.to_string()));
        };
        let config = Kubeconfig::read(path).map_err(|e| usage(e.to_string()))?;
        let remote = config.remote(None).map_err(|e| usage(e.to_string()))?;
        Ok(Client::new(Remote::new(&remote).map_err(|e| usage(e.to_string()))?))
    }

    pub(super) async fn run(self, extensions: Extensions) -> Result<(), Failure> {
        let name = self.name().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| {
            let message = format!("{:?} is no pod; say `pod NAME` or `pod/NAME`", self.pod.join(" "));
            Failure::new(Code::Usage, message)
        })?;
        let scheduler = self.config.apply(extensions.scheduler)?;
        let explanation = scheduler
            .explain_pod(&self.client()?, &self.namespace, name)
            .await
            .map_err(Failure::because(format!("pod {}/{name}", self.namespace)))?;
        match self.output.as_str() {
            "json" => {
                let text = serde_json::to_string_pretty(&explanation);
                println!("{}", text.map_err(Failure::because("the explanation"))?);
            }
            _ => print!("{explanation}"),
        }
        Ok(())
    }
}
