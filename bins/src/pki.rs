//! The cluster's certificates: one CA, a server certificate, client certificates for the components, and the
//! service account key.
//!
//! Files are created once, with mode 0600 in one directory; certificates are signed again at each start.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_builtin::{Authority, AuthorityError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Errors of certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path:?}: {source}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// A file holds a damaged key or certificate. Removing the file creates a new one.
    #[error("{path:?} is damaged ({source}); remove it to have a new one made")]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// The parse error.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate cannot be created.
    #[error("make a certificate for {name}: {source}")]
    Make {
        /// Name of the certificate.
        name: String,
        /// Error of the signature.
        #[source]
        source: rcgen::Error,
    },
}

/// A certificate and its private key.
#[derive(Clone)]
pub struct Identity {
    /// Certificate, PEM.
    pub certificate: String,
    /// Private key, PEM.
    pub key: String,
}

impl Identity {
    /// The identity as TLS takes it.
    #[must_use]
    pub fn tls(&self) -> k8s_tls::Identity {
        k8s_tls::Identity {
            certificate: self.certificate.clone().into_bytes(),
            key: self.key.clone().into_bytes(),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity { <key> }")
    }
}

/// A directory of certificates and keys.
#[derive(Debug)]
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    ca_key: KeyPair,
}

/// Creates a temporary file of mode 0600 beside `path`, to be renamed to it. Its name is random, and it is
/// never an existing file that another user planted.
///
/// # Errors
/// The I/O error.
pub(crate) fn private_file(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".hyperkube-").tempfile_in(directory)
}

/// Writes a file with mode 0600 atomically. An identical file is left alone, so that a full disk does not
/// prevent a start.
///
/// # Errors
/// The I/O error.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let own = nix::unistd::geteuid().as_raw();
    let same = fs::symlink_metadata(path).is_ok_and(|m| {
        m.is_file()
            && m.uid() == own
            && m.permissions().mode() & 0o777 == 0o600
            && m.len() == contents.len() as u64
    }) && fs::read(path).is_ok_and(|have| have == contents);
    if same {
        return Ok(());
    }
    let mut file = private_file(path)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

/// Writes a file that every start rewrites, as [`write_private`]. If the disk is full, an existing file
/// stays.
///
/// # Errors
/// The I/O error.
pub fn refresh_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    match write_private(path, contents) {
        Err(e) if e.kind() == io::ErrorKind::StorageFull && path.exists() => {
            tracing::warn!(?path, error = %e, "file not rewritten: the disk is full");
            Ok(())
        }
        other => other,
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PkiError + '_ {
    move |source| PkiError::Io { path: path.to_owned(), source }
}

impl Pki {
    /// Opens a directory of certificates; creates the CA `NAME-ca` if it is missing.
    ///
    /// # Errors
    /// A file cannot be read or written, or is damaged.
    pub fn open(name: &str, directory: &Path) -> Result<Self, PkiError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error(directory))?;
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let ca_key = key_at(&key_path)?;
        let ca_pem = match fs::read_to_string(&certificate_path) {
            Ok(pem) => pem,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let make = |source| PkiError::Make { name: "ca".into(), source };
                let mut params = CertificateParams::new(Vec::new()).map_err(make)?;
                params.distinguished_name.push(DnType::CommonName, format!("{name}-ca"));
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![
                    KeyUsagePurpose::KeyCertSign,
                    KeyUsagePurpose::CrlSign,
                    KeyUsagePurpose::DigitalSignature,
                ];
                params.not_after = rcgen::date_time_ymd(2046, 1, 1);
                let pem = params.self_signed(&ca_key).map_err(make)?.pem();
                write_private(&certificate_path, pem.as_bytes()).map_err(io_error(&certificate_path))?;
                pem
            }
            Err(e) => return Err(io_error(&certificate_path)(e)),
        };
        Ok(Pki { directory: directory.to_owned(), ca_pem, ca_key })
    }

    /// Returns the CA certificate, PEM.
    #[must_use]
    pub fn ca(&self) -> &str {
        &self.ca_pem
    }

    /// Returns the CA, for the signers of certificate requests.
    ///
    /// # Errors
    /// The certificate is not that of the key.
    pub fn authority(&self) -> Result<Authority, AuthorityError> {
        Authority::from_pem(&self.ca_pem, &self.ca_key.serialize_pem())
    }

    /// Returns the private key that signs service account tokens, PKCS#8.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn service_account_key(&self) -> Result<Vec<u8>, PkiError> {
        Ok(key_at(&self.directory.join("service-account.key"))?.serialize_der())
    }

    /// Returns a server certificate for these names and addresses, stored under `name`.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn server(&self, name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Identity, PkiError> {
        let make = |source| PkiError::Make { name: name.into(), source };
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())
            .map_err(make)?;
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name.push(DnType::CommonName, name);
        // A kubelet's serving certificate is also its client certificate.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(name, params)
    }

    /// Returns a client certificate for a user in a group (empty: none), stored under `file`.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn client(&self, file: &str, user: &str, group: &str) -> Result<Identity, PkiError> {
        let make = |source| PkiError::Make { name: user.into(), source };
        let mut params = CertificateParams::new(Vec::new()).map_err(make)?;
        params.distinguished_name.push(DnType::CommonName, user);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, params)
    }

    /// Signs a certificate. It is signed again at each start; its key is kept.
    fn sign(&self, name: &str, mut params: CertificateParams) -> Result<Identity, PkiError> {
        let make = |source| PkiError::Make { name: name.into(), source };
        let key = key_at(&self.directory.join(format!("{name}.key")))?;
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2036, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, &self.ca_key).map_err(make)?;
        let certificate = params.signed_by(&key, &issuer).map_err(make)?.pem();
        let path = self.directory.join(format!("{name}.crt"));
        refresh_private(&path, certificate.as_bytes()).map_err(io_error(&path))?;
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

/// Reads the key in a file; creates it if it is missing.
fn key_at(path: &Path) -> Result<KeyPair, PkiError> {
    match fs::read_to_string(path) {
        Ok(pem) => {
            KeyPair::from_pem(&pem).map_err(|source| PkiError::Damaged { path: path.to_owned(), source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()
                .map_err(|source| PkiError::Make { name: path.display().to_string(), source })?;
            write_private(path, key.serialize_pem().as_bytes()).map_err(io_error(path))?;
            Ok(key)
        }
        Err(e) => Err(io_error(path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// In a directory that others can write, an existing file planted by another user must not receive the
    /// keys.
    #[test]
    fn private_files_go_through_no_name_that_can_be_guessed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, trap) = (directory.path().join("x.yaml"), directory.path().join("x.tmp"));
        let stranger = directory.path().join("stranger");
        fs::write(&trap, "").unwrap();
        fs::set_permissions(&trap, fs::Permissions::from_mode(0o666)).unwrap();
        std::os::unix::fs::symlink(&stranger, &path).unwrap();
        write_private(&path, b"keys").unwrap();
        assert_eq!(fs::read(&trap).unwrap(), b"");
        assert!(!stranger.exists(), "a link in the place of the file is replaced, not followed");
        let made = fs::symlink_metadata(&path).unwrap();
        assert_eq!((made.is_file(), made.permissions().mode() & 0o777), (true, 0o600));
    }

    #[test]
    fn certificates_survive_and_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::open("hyperkube", directory.path()).unwrap();
        let identity = first.client("admin", "admin", "system:masters").unwrap();
        let again = Pki::open("hyperkube", directory.path()).unwrap();
        assert_eq!(first.ca(), again.ca());
        assert_eq!(first.service_account_key().unwrap(), again.service_account_key().unwrap());
        assert_eq!(identity.key, again.client("admin", "admin", "system:masters").unwrap().key);
        for entry in fs::read_dir(directory.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600);
        }
        fs::write(directory.path().join("ca.key"), "junk").unwrap();
        assert!(matches!(Pki::open("hyperkube", directory.path()), Err(PkiError::Damaged { .. })));
    }
}
