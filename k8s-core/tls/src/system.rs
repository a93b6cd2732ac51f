//! The certificate authorities that this machine trusts.

use std::path::PathBuf;

/// Places of the system's bundle, by distribution: Debian, Fedora, openSUSE, RHEL, Alpine.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Returns the file with the machine's certificate authorities (PEM): the one that `SSL_CERT_FILE` names,
/// else the first of the usual places that exists. `None`: there is none.
#[must_use]
pub fn system_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()))
}
