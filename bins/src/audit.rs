//! Flags of audit: the policy, and the log and webhook backends.

mod webhook;

use std::path::PathBuf;

use clap::ValueEnum;
use k8s_apiserver::{
    Builder,
    audit::{Format, Log, LogSettings, Mode, Policy, Truncation},
};

use self::webhook::AuditWebhookFlags;
use crate::error::ClusterError;

/// The audit policy, and the log and the server that get the events.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct AuditSettings {
    /// Audit policy file (`kind: Policy` of audit.k8s.io/v1): which requests are recorded, and how much of
    /// them. It is read at start. Without it nothing is recorded.
    #[arg(long, value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    /// File that audit events are appended to, with mode 0600; `-`: standard output.
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<PathBuf>,
    /// Form of the lines of the audit log [default: json].
    #[arg(long, value_enum, value_name = "FORMAT", hide_default_value = true)]
    audit_log_format: Option<LogFormat>,
    /// Relation of requests to the audit log [default: blocking].
    #[arg(long, value_enum, value_name = "MODE", hide_default_value = true)]
    audit_log_mode: Option<LogMode>,
    /// Events in the buffer of mode batch; more of them are lost and counted [default: 10000].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    audit_log_batch_buffer_size: Option<u32>,
    /// Size from which the audit log is rotated, megabytes; 0: never [default: 100].
    #[arg(long, value_name = "MB")]
    audit_log_maxsize: Option<u32>,
    /// Rotated audit logs that are kept; 0: all [default: 100].
    #[arg(long, value_name = "NUMBER")]
    audit_log_maxbackup: Option<u32>,
    /// Age from which rotated audit logs are removed, days; 0: never [default: 366].
    #[arg(long, value_name = "DAYS")]
    audit_log_maxage: Option<u32>,
    /// Compress rotated audit logs with gzip.
    #[arg(long)]
    audit_log_compress: bool,
    /// Take the request and response objects off events that are too large for the audit log.
    #[arg(long)]
    audit_log_truncate_enabled: bool,
    /// Largest event in the audit log, bytes [default: 102400].
    #[arg(long, value_name = "BYTES")]
    audit_log_truncate_max_event_size: Option<u32>,
    #[command(flatten)]
    webhook: AuditWebhookFlags,
}

/// Returns the limits of the sizes of events, `None` if they are not enabled. `sizes`: of an event, of a
/// batch, bytes.
///
/// # Errors
/// A size of zero, or a batch that is smaller than an event.
fn limits(
    backend: &str,
    enabled: bool,
    sizes: (Option<u32>, Option<u32>),
) -> Result<Option<Truncation>, ClusterError> {
    let default = Truncation::default();
    let size = |asked: Option<u32>, default: usize| asked.map_or(default, |n| n as usize);
    let limits = Truncation {
        max_event: size(sizes.0, default.max_event),
        max_batch: size(sizes.1, default.max_batch),
    };
    if limits.max_event == 0 {
        let why = "must be a positive number";
        return Err(ClusterError::invalid(format!("--{backend}-truncate-max-event-size"), why));
    }
    if limits.max_batch < limits.max_event {
        let why = format!("must be at least the largest event ({})", limits.max_event);
        return Err(ClusterError::invalid(format!("--{backend}-truncate-max-batch-size"), why));
    }
    Ok(enabled.then_some(limits))
}

/// Form of the lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// A JSON object for each event.
    Json,
    /// A line of words for each event, without bodies and annotations.
    Legacy,
}

/// Relation of requests to the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogMode {
    /// Events are written from a buffer, beside the requests.
    Batch,
    /// A request waits until its events are written.
    Blocking,
    /// As blocking, and a request is refused if its first event cannot be written.
    BlockingStrict,
}

impl AuditSettings {
    /// Applies the settings to a server.
    ///
    /// # Errors
    /// A policy that cannot be read or is wrong, or a log that cannot be opened.
    pub(crate) fn apply(&self, mut server: Builder) -> Result<Builder, ClusterError> {
        let Some(file) = &self.audit_policy_file else {
            if self.audit_log_path.is_some() || self.webhook.is_set() {
                tracing::warn!("no audit event is recorded without --audit-policy-file");
            }
            return Ok(server);
        };
        let wrong = |flag: &str, file: &PathBuf, reason: String| ClusterError::Invalid {
            setting: format!("--{flag} {}", file.display()),
            reason,
        };
        let policy = std::fs::read_to_string(file)
            .map_err(|e| e.to_string())
            .and_then(|text| Policy::parse(&text).map_err(|e| e.to_string()))
            .map_err(|why| wrong("audit-policy-file", file, why))?;
        server = server.audit_policy(policy);
        if let Some(path) = &self.audit_log_path {
            let log = Log::open(&LogSettings { truncation: self.log_limits()?, ..self.log(path) });
            server = server.audit_sink(log.map_err(|e| wrong("audit-log-path", path, e.to_string()))?);
        }
        Ok(match self.webhook.open()? {
            Some(webhook) => server.audit_sink(webhook),
            None => server,
        })
    }

    fn log_limits(&self) -> Result<Option<Truncation>, ClusterError> {
        let sizes = (self.audit_log_truncate_max_event_size, None);
        limits("audit-log", self.audit_log_truncate_enabled, sizes)
    }

    fn log(&self, path: &PathBuf) -> LogSettings {
        let default = LogSettings::new(path);
        let count = |asked: Option<u32>, default: usize| asked.map_or(default, |n| n as usize);
        LogSettings {
            format: match self.audit_log_format {
                Some(LogFormat::Legacy) => Format::Legacy,
                Some(LogFormat::Json) | None => Format::Json,
            },
            mode: match self.audit_log_mode {
                Some(LogMode::Batch) => Mode::Batch,
                Some(LogMode::BlockingStrict) => Mode::BlockingStrict,
                Some(LogMode::Blocking) | None => Mode::Blocking,
            },
            max_size: self.audit_log_maxsize.map_or(default.max_size, u64::from),
            max_backups: count(self.audit_log_maxbackup, default.max_backups),
            max_age: self.audit_log_maxage.unwrap_or(default.max_age),
            compress: self.audit_log_compress,
            buffer: count(self.audit_log_batch_buffer_size, default.buffer),
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use k8s_apiserver::ApiServer;
    use k8s_store::Store;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        audit: AuditSettings,
    }

    fn settings(flags: &[&str]) -> AuditSettings {
        Flags::try_parse_from([&["a"], flags].concat()).unwrap().audit
    }

    #[test]
    fn the_log_has_upstreams_defaults_and_flags() {
        let default = settings(&[]).log(&"-".into());
        assert_eq!((default.max_size, default.max_backups, default.max_age), (100, 100, 366));
        assert_eq!((default.format, default.mode, default.compress), (Format::Json, Mode::Blocking, false));
        let flags = [
            "--audit-log-format=legacy",
            "--audit-log-mode=blocking-strict",
            "--audit-log-maxsize=1",
            "--audit-log-maxbackup=2",
            "--audit-log-maxage=3",
            "--audit-log-batch-buffer-size=4",
            "--audit-log-compress",
        ];
        let asked = settings(&flags).log(&"-".into());
        assert_eq!((asked.max_size, asked.max_backups, asked.max_age, asked.buffer), (1, 2, 3, 4));
        assert_eq!((asked.format, asked.mode, asked.compress), (Format::Legacy, Mode::BlockingStrict, true));
        assert!(Flags::try_parse_from(["a", "--audit-log-batch-buffer-size=0"]).is_err());
    }

    #[test]
    fn a_wrong_policy_or_log_refuses_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let policy = directory.path().join("policy.yaml");
        let refused = |flags: &[&str]| {
            settings(flags).apply(ApiServer::builder(Store::memory())).unwrap_err().to_string()
        };
        let flag = format!("--audit-policy-file={}", policy.display());
        assert!(refused(&[&flag]).contains("policy.yaml"));
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]\n")
            .unwrap();
        let why = refused(&[&flag]);
        assert!(why.contains("rules[0].level: Unsupported value: \"All\""), "{why}");
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None}]\n")
            .unwrap();
        let why = refused(&[&flag, "--audit-log-path=/nowhere/a"]);
        assert!(why.contains("--audit-log-path /nowhere/a"), "{why}");
    }
}
