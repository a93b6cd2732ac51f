//! Configuration files that are read again while a server runs: those of `--authentication-config` and
//! `--authorization-config`.
//!
//! Guarantee: a file that cannot be used is told in the log and counted once; the former configuration stays
//! in use.

use std::{path::PathBuf, time::Duration};

use k8s_core::clock::Clock;
use k8s_metrics::{Counter, Family, Gauge, Registry};
use sha2::{Digest, Sha256};

use crate::error::ClusterError;

/// Time between two reads, as upstream.
const REREAD: Duration = Duration::from_secs(60);

/// Takes the text of a changed file.
type Apply = Box<dyn Fn(&str) -> Result<(), ClusterError> + Send + Sync>;

/// Names and help texts of the metrics of a kind of file.
type Names = [(&'static str, &'static str); 3];

/// The metrics of `--authentication-config`.
pub(crate) const AUTHENTICATION: Names = [
    (
        "apiserver_authentication_config_controller_automatic_reloads_total",
        "Total number of automatic reloads of authentication configuration split by status and apiserver identity.",
    ),
    (
        "apiserver_authentication_config_controller_automatic_reload_last_timestamp_seconds",
        "Timestamp of the last automatic reload of authentication configuration split by status and apiserver identity.",
    ),
    (
        "apiserver_authentication_config_controller_last_config_info",
        "Information about the last applied authentication configuration with hash as label, split by apiserver identity.",
    ),
];

/// The metrics of `--authorization-config`.
pub(crate) const AUTHORIZATION: Names = [
    (
        "apiserver_authorization_config_controller_automatic_reloads_total",
        "Total number of automatic reloads of authorization configuration split by status and apiserver identity.",
    ),
    (
        "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds",
        "Timestamp of the last automatic reload of authorization configuration split by status and apiserver identity.",
    ),
    (
        "apiserver_authorization_config_controller_last_config_info",
        "Information about the last applied authorization configuration with hash as label, split by apiserver identity.",
    ),
];

/// A file that is read again.
pub(crate) struct Reloaded {
    file: PathBuf,
    apply: Apply,
    /// The text of the last read.
    text: String,
    /// The last read failed.
    unreadable: bool,
    clock: Clock,
    /// Hash of this server's name.
    server: String,
    reloads: Family<2, Counter>,
    last: Family<2, Gauge<f64>>,
    info: Family<2, Gauge>,
    hash: String,
}

fn hash(text: &str) -> String {
    use std::fmt::Write;
    let mut hash = String::from("sha256:");
    for byte in Sha256::digest(text) {
        let _ = write!(hash, "{byte:02x}");
    }
    hash
}

impl Reloaded {
    /// Takes a file that is in use with its text of now.
    pub(crate) fn new(
        file: PathBuf,
        clock: Clock,
        (names, registry): (Names, &Registry),
        apply: impl Fn(&str) -> Result<(), ClusterError> + Send + Sync + 'static,
    ) -> Self {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let [reloads, last, info] = names;
        let host = nix::unistd::gethostname().unwrap_or_default();
        let mut new = Reloaded {
            file,
            apply: Box::new(apply),
            hash: String::new(),
            unreadable: false,
            clock,
            server: hash(&format!("kube-apiserver-{}", host.to_string_lossy())),
            reloads: registry.register(reloads.0, reloads.1, Family::new(["status", "apiserver_id_hash"])),
            last: registry.register(last.0, last.1, Family::new(["status", "apiserver_id_hash"])),
            info: registry.register(info.0, info.1, Family::new(["apiserver_id_hash", "hash"])),
            text,
        };
        new.in_use();
        new
    }

    /// Notes the hash of the configuration in use.
    fn in_use(&mut self) {
        let hash = hash(&self.text);
        self.info.remove(&[&self.server, &self.hash]);
        self.info.get_or_create(&[&self.server, &hash]).set(1);
        self.hash = hash;
    }

    fn count(&self, status: &str) {
        let labels = [status, &self.server];
        self.reloads.get_or_create(&labels).inc();
        // Seconds of centuries are exact in a float.
        self.last.get_or_create(&labels).set(self.clock.now().as_duration().as_secs_f64());
    }

    /// Reads the file again, and takes it if it has changed.
    fn check(&mut self) {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) => {
                self.count("failure");
                if !std::mem::replace(&mut self.unreadable, true) {
                    tracing::error!(file = ?self.file, %error, "not reloaded; the former configuration stays in use");
                }
                return;
            }
        };
        self.unreadable = false;
        if text == self.text {
            return;
        }
        // The same broken text is not tried again.
        self.text = text;
        match (self.apply)(&self.text) {
            Ok(()) => {
                self.count("success");
                self.in_use();
                tracing::info!(file = ?self.file, "reloaded");
            }
            Err(error) => {
                self.count("failure");
                tracing::error!(%error, "not reloaded; the former configuration stays in use");
            }
        }
    }

    /// Reads the file again each minute, for ever.
    pub(crate) async fn run(mut self) {
        loop {
            self.clock.sleep(REREAD).await;
            self.check();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_taken_once_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("configuration.yaml");
        fs::write(&file, "one").unwrap();
        let (registry, taken) = (Registry::default(), Arc::new(Mutex::new(Vec::new())));
        let clock = Clock::starting_at("2026-11-28T00:00:00Z".parse().unwrap());
        let takes = taken.clone();
        let reloaded = Reloaded::new(file.clone(), clock.clone(), (AUTHORIZATION, &registry), move |text| {
            takes.lock().unwrap().push(text.to_owned());
            if text == "broken" { Err(ClusterError::invalid("a", "b")) } else { Ok(()) }
        });
        let running = tokio::spawn(reloaded.run());
        let after = async |text: &str| {
            if text.is_empty() {
                fs::remove_file(&file).unwrap();
            } else {
                fs::write(&file, text).unwrap();
            }
            clock.sleep(3 * REREAD).await;
            taken.lock().unwrap().clone()
        };
        assert!(after("one").await.is_empty());
        assert_eq!(after("two").await, ["two"]);
        assert_eq!(after("broken").await, ["two", "broken"]);
        assert_eq!(after("").await.len(), 2);
        assert_eq!(after("two").await, ["two", "broken", "two"]);
        let mut text = String::new();
        k8s_metrics::encode(&mut text, &registry);
        let value = |name: &str, label: &str| {
            let line = text.lines().find(|line| line.starts_with(name) && line.contains(label)).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let reloads = "apiserver_authorization_config_controller_automatic_reloads_total{";
        assert_eq!(value(reloads, "success"), "2");
        // One of the broken text, and one for each look at a file that is gone.
        assert_eq!(value(reloads, "failure"), "4");
        let info = "apiserver_authorization_config_controller_last_config_info{";
        assert_eq!(text.matches(info).count(), 1, "{text}");
        assert!(text.contains(&format!("hash=\"{}\"}} 1", hash("two"))), "{text}");
        running.abort();
    }
}
