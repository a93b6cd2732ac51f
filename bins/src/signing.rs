//! Flags of the signers of certificate requests, with upstream's names.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use k8s_builtin::{Authority, Signing};

use crate::error::ClusterError;

/// CAs of the signers, and the time that their certificates are valid.
#[derive(Clone, Debug, Args)]
pub(crate) struct SigningFlags {
    /// CA certificate (PEM) that signs for all of Kubernetes' signers. Without any CA no request is signed.
    #[arg(long)]
    cluster_signing_cert_file: Option<PathBuf>,
    /// Key (PEM, PKCS #8) of the CA certificate.
    #[arg(long)]
    cluster_signing_key_file: Option<PathBuf>,
    /// CA certificate of the signer kubernetes.io/kubelet-serving, in place of the one for all.
    #[arg(long)]
    cluster_signing_kubelet_serving_cert_file: Option<PathBuf>,
    /// Key of the CA of kubernetes.io/kubelet-serving.
    #[arg(long)]
    cluster_signing_kubelet_serving_key_file: Option<PathBuf>,
    /// CA certificate of the signer kubernetes.io/kube-apiserver-client-kubelet, in place of the one for all.
    #[arg(long)]
    cluster_signing_kubelet_client_cert_file: Option<PathBuf>,
    /// Key of the CA of kubernetes.io/kube-apiserver-client-kubelet.
    #[arg(long)]
    cluster_signing_kubelet_client_key_file: Option<PathBuf>,
    /// CA certificate of the signer kubernetes.io/kube-apiserver-client, in place of the one for all.
    #[arg(long)]
    cluster_signing_kube_apiserver_client_cert_file: Option<PathBuf>,
    /// Key of the CA of kubernetes.io/kube-apiserver-client.
    #[arg(long)]
    cluster_signing_kube_apiserver_client_key_file: Option<PathBuf>,
    /// CA certificate of the signer kubernetes.io/legacy-unknown, in place of the one for all.
    #[arg(long)]
    cluster_signing_legacy_unknown_cert_file: Option<PathBuf>,
    /// Key of the CA of kubernetes.io/legacy-unknown.
    #[arg(long)]
    cluster_signing_legacy_unknown_key_file: Option<PathBuf>,
    /// Longest time that a signed certificate is valid; a request may ask for less.
    #[arg(long, default_value = "8760h", value_parser = crate::duration::parse)]
    cluster_signing_duration: Duration,
}

fn invalid(flag: &str, why: impl Into<String>) -> ClusterError {
    ClusterError::invalid(format!("--{flag}"), why.into())
}

impl SigningFlags {
    /// Reads the CAs.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] with the flag.
    pub(crate) fn signing(&self) -> Result<Signing, ClusterError> {
        type Add = fn(Signing, Authority) -> Signing;
        let own: [(&str, &Option<PathBuf>, &Option<PathBuf>, Add); 4] = [
            (
                "kubelet-serving",
                &self.cluster_signing_kubelet_serving_cert_file,
                &self.cluster_signing_kubelet_serving_key_file,
                Signing::kubelet_serving,
            ),
            (
                "kubelet-client",
                &self.cluster_signing_kubelet_client_cert_file,
                &self.cluster_signing_kubelet_client_key_file,
                Signing::kubelet_client,
            ),
            (
                "kube-apiserver-client",
                &self.cluster_signing_kube_apiserver_client_cert_file,
                &self.cluster_signing_kube_apiserver_client_key_file,
                Signing::kube_apiserver_client,
            ),
            (
                "legacy-unknown",
                &self.cluster_signing_legacy_unknown_cert_file,
                &self.cluster_signing_legacy_unknown_key_file,
                Signing::legacy_unknown,
            ),
        ];
        let all = ("cluster-signing", &self.cluster_signing_cert_file, &self.cluster_signing_key_file);
        let mut signing = authority(all.0, all.1, all.2)?.map(Signing::all).unwrap_or_default();
        for (signer, certificate, key, add) in own {
            let prefix = format!("cluster-signing-{signer}");
            let Some(authority) = authority(&prefix, certificate, key)? else { continue };
            if all.1.is_some() {
                let why = "cannot be combined with --cluster-signing-cert-file, which is for all signers";
                return Err(invalid(&format!("{prefix}-cert-file"), why));
            }
            signing = add(signing, authority);
        }
        signing.duration = self.cluster_signing_duration;
        if signing.duration.is_zero() {
            return Err(invalid("cluster-signing-duration", "must be longer than 0s"));
        }
        Ok(signing)
    }
}

/// Reads a CA; `None` without files.
fn authority(
    prefix: &str,
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
) -> Result<Option<Authority>, ClusterError> {
    let read = |part: &str, file: &Path| {
        std::fs::read_to_string(file)
            .map_err(|e| invalid(&format!("{prefix}-{part}-file"), format!("read {}: {e}", file.display())))
    };
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err(invalid(&format!("{prefix}-key-file"), "the key of the certificate is needed"))
        }
        (None, Some(_)) => {
            Err(invalid(&format!("{prefix}-cert-file"), "the certificate of the key is needed"))
        }
        (Some(certificate), Some(key)) => {
            let made = Authority::from_pem(&read("cert", certificate)?, &read("key", key)?);
            made.map(Some).map_err(|e| invalid(&format!("{prefix}-cert-file"), e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    #[test]
    fn cas_come_in_pairs_and_for_all_or_each() {
        let directory = tempfile::tempdir().unwrap();
        let pki = crate::pki::Pki::open("test", directory.path()).unwrap();
        pki.client("other", "other", "").unwrap();
        let flag = |name: &str, file: &str| {
            format!("--cluster-signing{name}-file={}", directory.path().join(file).display())
        };
        let signing = |args: &[String]| {
            let command = SigningFlags::augment_args(Command::new("x").no_binary_name(true));
            let flags = SigningFlags::from_arg_matches(&command.get_matches_from(args)).unwrap();
            flags.signing().map(|signing| format!("{signing:?}")).map_err(|e| e.to_string())
        };
        assert!(!signing(&[]).unwrap().contains("kubernetes.io/"));
        let all = [flag("-cert", "ca.crt"), flag("-key", "ca.key")];
        assert_eq!(signing(&all).unwrap().matches("kubernetes.io/").count(), 4);
        let one = [flag("-kubelet-client-cert", "ca.crt"), flag("-kubelet-client-key", "ca.key")];
        assert_eq!(signing(&one).unwrap().matches("kubernetes.io/").count(), 1);
        let error = |args: &[String]| signing(args).unwrap_err();
        assert!(error(&all[..1]).starts_with("--cluster-signing-key-file"));
        assert!(error(&one[1..]).starts_with("--cluster-signing-kubelet-client-cert-file"));
        assert!(error(&[&all[..], &one[..]].concat()).contains("cannot be combined"));
        let foreign = [flag("-cert", "ca.crt"), flag("-key", "other.key")];
        assert!(error(&foreign).contains("the CA key is not that of the CA certificate"));
        assert!(error(&[flag("-cert", "none"), flag("-key", "ca.key")]).contains("read "));
    }
}
