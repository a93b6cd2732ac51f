//! Flags of the audit webhook.

use std::{path::PathBuf, time::Duration};

use clap::ArgAction;
use k8s_apiserver::audit::{AuditWebhookSettings, Throttle, Truncation, Webhook};
use k8s_core::client::Kubeconfig;

use super::limits;
use crate::error::ClusterError;

/// The server that audit events are posted to.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct AuditWebhookFlags {
    /// Kubeconfig of the server that audit events are posted to, in batches (EventList of audit.k8s.io/v1).
    #[arg(long, value_name = "FILE")]
    audit_webhook_config_file: Option<PathBuf>,
    /// Relation of requests to the audit webhook: only batch, from a buffer beside the requests.
    #[arg(long, value_name = "MODE", value_parser = ["batch"])]
    audit_webhook_mode: Option<String>,
    /// Wait before a failed batch is sent again; each further wait is half as long again [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = crate::duration::parse)]
    audit_webhook_initial_backoff: Option<Duration>,
    /// Events in the buffer; more of them are lost and counted [default: 10000].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    audit_webhook_batch_buffer_size: Option<u32>,
    /// Events in a batch, at most [default: 400].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    audit_webhook_batch_max_size: Option<u32>,
    /// Time that an event waits for its batch to fill, at most [default: 30s].
    #[arg(long, value_name = "DURATION", value_parser = crate::duration::parse)]
    audit_webhook_batch_max_wait: Option<Duration>,
    /// Bound the rate of batches [default: true].
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    audit_webhook_batch_throttle_enable: Option<bool>,
    /// Batches per second on average [default: 10].
    #[arg(long, value_name = "NUMBER", value_parser = positive)]
    audit_webhook_batch_throttle_qps: Option<f32>,
    /// Batches at once after a pause [default: 15].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    audit_webhook_batch_throttle_burst: Option<u32>,
    /// Take the request and response objects off events that are too large.
    #[arg(long)]
    audit_webhook_truncate_enabled: bool,
    /// Largest event, bytes [default: 102400].
    #[arg(long, value_name = "BYTES")]
    audit_webhook_truncate_max_event_size: Option<u32>,
    /// Largest sum of the events of a batch, bytes [default: 10485760].
    #[arg(long, value_name = "BYTES")]
    audit_webhook_truncate_max_batch_size: Option<u32>,
}

/// Parses a number above zero.
fn positive(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| format!("{text:?} is no number above 0"))
}

impl AuditWebhookFlags {
    /// Returns true if a server is named.
    pub(super) fn is_set(&self) -> bool {
        self.audit_webhook_config_file.is_some()
    }

    /// Starts the backend; `None` without a server.
    ///
    /// # Errors
    /// The kubeconfig, or sizes that contradict each other.
    pub(super) fn open(&self) -> Result<Option<Webhook>, ClusterError> {
        let Some(settings) = self.settings()? else { return Ok(None) };
        let unusable = |e| ClusterError::invalid("--audit-webhook-config-file", e);
        Webhook::open(&settings).map(Some).map_err(unusable)
    }

    fn settings(&self) -> Result<Option<AuditWebhookSettings>, ClusterError> {
        let Some(file) = &self.audit_webhook_config_file else { return Ok(None) };
        let setting = format!("--audit-webhook-config-file {}", file.display());
        let config = Kubeconfig::read(file).and_then(|config| config.remote(None));
        let mut config = config.map_err(|e| ClusterError::invalid(&setting, e))?;
        if config.ca.is_none() {
            config.ca = k8s_tls::system_bundle().and_then(|bundle| std::fs::read(bundle).ok());
        }
        let default = AuditWebhookSettings::new(config);
        let count = |asked: Option<u32>, default: usize| asked.map_or(default, |n| n as usize);
        let rate = Throttle::default();
        let throttle = Throttle {
            per_second: self.audit_webhook_batch_throttle_qps.unwrap_or(rate.per_second),
            burst: self.audit_webhook_batch_throttle_burst.unwrap_or(rate.burst),
        };
        Ok(Some(AuditWebhookSettings {
            initial_backoff: self.audit_webhook_initial_backoff.unwrap_or(default.initial_backoff),
            buffer: count(self.audit_webhook_batch_buffer_size, default.buffer),
            max_size: count(self.audit_webhook_batch_max_size, default.max_size),
            max_wait: self.audit_webhook_batch_max_wait.unwrap_or(default.max_wait),
            throttle: self.audit_webhook_batch_throttle_enable.unwrap_or(true).then_some(throttle),
            truncation: self.truncation()?,
            ..default
        }))
    }

    fn truncation(&self) -> Result<Option<Truncation>, ClusterError> {
        let sizes = (self.audit_webhook_truncate_max_event_size, self.audit_webhook_truncate_max_batch_size);
        limits("audit-webhook", self.audit_webhook_truncate_enabled, sizes)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        webhook: AuditWebhookFlags,
    }

    fn parsed(flags: &[&str]) -> AuditWebhookFlags {
        Flags::try_parse_from([&["a"], flags].concat()).unwrap().webhook
    }

    #[test]
    fn defaults_and_flags_are_upstreams() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        let text = "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:9/x'}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\nusers: [{name: a, user: {}}]\n";
        std::fs::write(&file, text).unwrap();
        let file = format!("--audit-webhook-config-file={}", file.display());
        let settings = parsed(&[&file]).settings().unwrap().unwrap();
        assert_eq!(settings.remote.server, "http://127.0.0.1:9/x");
        assert_eq!((settings.buffer, settings.max_size, settings.max_wait.as_secs()), (10_000, 400, 30));
        assert_eq!((settings.initial_backoff.as_secs(), settings.truncation), (10, None));
        assert_eq!(settings.throttle, Some(Throttle { per_second: 10.0, burst: 15 }));
        let settings = parsed(&[
            &file,
            "--audit-webhook-mode=batch",
            "--audit-webhook-initial-backoff=1s",
            "--audit-webhook-batch-buffer-size=2",
            "--audit-webhook-batch-max-size=3",
            "--audit-webhook-batch-max-wait=4s",
            "--audit-webhook-batch-throttle-enable=false",
            "--audit-webhook-truncate-enabled",
            "--audit-webhook-truncate-max-event-size=5",
            "--audit-webhook-truncate-max-batch-size=6",
        ]);
        let settings = settings.settings().unwrap().unwrap();
        assert_eq!((settings.buffer, settings.max_size, settings.max_wait.as_secs()), (2, 3, 4));
        assert_eq!((settings.initial_backoff.as_secs(), settings.throttle), (1, None));
        assert_eq!(settings.truncation, Some(Truncation { max_event: 5, max_batch: 6 }));
    }

    #[test]
    fn what_cannot_be_used_refuses_the_start() {
        assert!(Flags::try_parse_from(["a", "--audit-webhook-mode=blocking"]).is_err());
        assert!(Flags::try_parse_from(["a", "--audit-webhook-batch-throttle-qps=0"]).is_err());
        let refused = |flags: &[&str]| parsed(flags).open().map(drop).unwrap_err().to_string();
        let why = refused(&["--audit-webhook-config-file=/nowhere/a"]);
        assert!(why.contains("--audit-webhook-config-file /nowhere/a"), "{why}");
        let sizes = ["--audit-webhook-truncate-enabled", "--audit-webhook-truncate-max-batch-size=1"];
        let why = parsed(&sizes).truncation().unwrap_err().to_string();
        assert!(why.contains("audit-webhook-truncate-max-batch-size"), "{why}");
    }
}
