//! Encryption of Secrets in the store: the default key, and EncryptionConfiguration files.
//!
//! By default Secrets are sealed with a key that is made at the first start, `encryption.key` beside the
//! other keys. A file (`--encryption-provider-config`) names types, providers and keys instead. Each start
//! rewrites records whose form differs from that of new ones, so a rotation ends with a start.
//!
//! Guarantee: a key that is missing or wrong refuses the start and changes nothing.

mod configuration;
mod kms;

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_store::{
    Embedded,
    sealed::{Algorithm, Key, Provider, Rule, Sealer, is_sealed, new_secret},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{error::ClusterError, pki::write_private};

/// Name of the key's file in the directory of keys.
const FILE: &str = "encryption.key";
/// Types that are sealed by default.
const DEFAULT: &str = "secrets";

/// Settings of encryption at rest.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct EncryptionSettings {
    /// EncryptionConfiguration file: types, providers (aesgcm, secretbox, aescbc, kms of version 2, identity)
    /// and keys (default: Secrets are encrypted with a key of the cluster's own, pki/encryption.key).
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
}

fn invalid(setting: impl Into<String>, reason: impl Into<String>) -> ClusterError {
    ClusterError::Invalid { setting: setting.into(), reason: reason.into() }
}

impl EncryptionSettings {
    /// Returns the log, with every record in the form of new ones, and the sealer for new records.
    ///
    /// # Errors
    /// A configuration, a key or a record that cannot be used. The log stays as it is.
    pub(crate) fn seal(&self, log: Embedded, keys: &Path) -> Result<(Embedded, Sealer), ClusterError> {
        let rules = match &self.encryption_provider_config {
            None => vec![Rule::new([DEFAULT], vec![Provider::keys(vec![own_key(&log, keys)?])])],
            Some(file) => {
                let mut rules = configured(file)?;
                // Records that the cluster's own key sealed before are still read.
                if keys.join(FILE).exists() {
                    let secret = read_key(&keys.join(FILE))?;
                    for rule in &mut rules {
                        rule.providers_mut().push(Provider::keys(vec![own(&secret, &keys.join(FILE))?]));
                    }
                    let rest =
                        vec![Provider::Identity, Provider::keys(vec![own(&secret, &keys.join(FILE))?])];
                    rules.push(Rule::new(["*.*"], rest));
                }
                rules
            }
        };
        let sealer = Sealer::new(rules);
        let unusable = |e: k8s_store::BackendError| invalid("the encrypted store", e.to_string());
        let (log, changed) = log
            .convert(&mut |resource, key, record| sealer.renewed(resource, key, record))
            .map_err(unusable)?;
        if changed > 0 {
            tracing::info!(
                objects = changed,
                "objects in the store were written anew, encrypted as configured"
            );
        }
        Ok((log, sealer))
    }
}

/// Returns the cluster's own key; makes it if there is none and nothing was sealed yet.
fn own_key(log: &Embedded, keys: &Path) -> Result<Key, ClusterError> {
    let path = keys.join(FILE);
    if !path.exists() {
        let sealed = log.any(is_sealed).map_err(|e| invalid("the store", e.to_string()))?;
        if sealed {
            return Err(invalid(
                path.display().to_string(),
                "the key is missing, and objects in the store are encrypted: put the file back; without it they cannot be read",
            ));
        }
        let secret = new_secret().map_err(|e| invalid(path.display().to_string(), e.to_string()))?;
        write_private(&path, format!("{}\n", STANDARD.encode(secret)).as_bytes())
            .map_err(ClusterError::io(format!("write {}", path.display())))?;
    }
    own(&read_key(&path)?, &path)
}

fn read_key(path: &Path) -> Result<Vec<u8>, ClusterError> {
    let text = fs::read_to_string(path).map_err(ClusterError::io(format!("read {}", path.display())))?;
    let secret = STANDARD.decode(text.trim()).ok().filter(|secret| secret.len() == 32);
    secret.ok_or_else(|| {
        let reason = "the file is damaged: it must hold 32 bytes in base64; put the right one back";
        invalid(path.display().to_string(), reason)
    })
}

/// Makes a key whose name tells it from others: the beginning of its digest.
fn own(secret: &[u8], path: &Path) -> Result<Key, ClusterError> {
    let digest = Sha256::digest(secret);
    let name: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Key::new(Algorithm::AesGcm, &format!("own-{name}"), secret)
        .map_err(|e| invalid(path.display().to_string(), e.to_string()))
}

/// Reads an EncryptionConfiguration.
fn configured(file: &Path) -> Result<Vec<Rule>, ClusterError> {
    let setting = format!("--encryption-provider-config {}", file.display());
    let text = fs::read_to_string(file).map_err(ClusterError::io(format!("read {}", file.display())))?;
    let parsed: Value = serde_saphyr::from_str(&text).map_err(|e| invalid(setting.clone(), e.to_string()))?;
    configuration::rules(&parsed).map_err(|reason| invalid(setting, reason))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn log(directory: &Path) -> Embedded {
        for _ in 0..500 {
            if let Ok(log) = Embedded::open(&directory.join("state.redb")) {
                return log;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the file stays open");
    }

    /// Opens a store with a Secret in it.
    async fn written(directory: &Path, settings: &EncryptionSettings) {
        let (log, sealer) = settings.seal(log(directory), directory).unwrap();
        let backend = k8s_store::sealed::Sealed::new(k8s_store::Local::new(log), sealer);
        let store = k8s_store::Store::open(backend, k8s_store::Opaque).unwrap();
        let expect = match store.get("secrets", "a/b") {
            Some(stored) => {
                assert_eq!(stored.json, "canary");
                k8s_store::Expect::Revision(stored.revision)
            }
            None => k8s_store::Expect::Absent,
        };
        store.put("secrets", "a/b", expect, k8s_store::Meta::default(), |_| "canary".into()).await.unwrap();
    }

    fn holds(directory: &Path, text: &str) -> bool {
        let file = fs::read(directory.join("state.redb")).unwrap();
        file.windows(text.len()).any(|part| part == text.as_bytes())
    }

    #[tokio::test]
    async fn the_key_is_made_once_and_a_missing_or_damaged_one_refuses_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let (path, settings) = (directory.path(), EncryptionSettings::default());
        written(path, &settings).await;
        let key = path.join(FILE);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let good = fs::read_to_string(&key).unwrap();
        written(path, &settings).await;
        assert!(!holds(path, "canary") && fs::read_to_string(&key).unwrap() == good);
        let refused = |content: Option<&str>| {
            match content {
                Some(text) => fs::write(&key, text).unwrap(),
                None => fs::remove_file(&key).unwrap(),
            }
            settings.seal(log(path), path).map(drop).unwrap_err().to_string()
        };
        assert!(refused(None).contains("the key is missing"), "a new one is not made");
        assert!(!key.exists());
        assert!(refused(Some("damaged")).contains("the file is damaged"));
        let other = STANDARD.encode([1; 32]);
        let (log_now, sealer) = {
            fs::write(&key, &other).unwrap();
            match settings.seal(log(path), path) {
                Ok(_) => panic!("another key opens nothing"),
                Err(e) => {
                    assert!(e.to_string().contains("is encrypted with the key"), "{e}");
                    fs::write(&key, &good).unwrap();
                    settings.seal(log(path), path).unwrap()
                }
            }
        };
        drop((log_now, sealer));
        written(path, &settings).await;
    }

    #[tokio::test]
    async fn a_configuration_takes_over_and_rotates() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        written(path, &EncryptionSettings::default()).await;
        let file = path.join("encryption.yaml");
        let settings = EncryptionSettings { encryption_provider_config: Some(file.clone()) };
        let key =
            |name: &str| format!("{{name: {name}, secret: {}}}", STANDARD.encode(format!("{name:0>32}")));
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n";
        for (keys, found) in [(vec!["k1"], "v1:k1:"), (vec!["k2", "k1"], "v1:k2:"), (vec!["k2"], "v1:k2:")] {
            let keys: Vec<String> = keys.into_iter().map(key).collect();
            let rule = format!(
                "- resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{}]}}}}]\n",
                keys.join(", ")
            );
            fs::write(&file, format!("{head}{rule}")).unwrap();
            written(path, &settings).await;
            assert!(holds(path, found) && !holds(path, "canary"), "{found}");
        }
        fs::write(&file, format!("{head}- resources: [secrets]\n  providers: [{{identity: {{}}}}]\n"))
            .unwrap();
        let refused = settings.seal(log(path), path).map(drop).unwrap_err();
        assert!(refused.to_string().contains("\"k2\""), "{refused}");
    }
}
