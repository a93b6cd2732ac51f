//! The cluster's certificates: one CA, a server certificate, client certificates for the components, and the
//! service account key.
//!
//! Keys are created once, with mode 0600 in one directory. Certificates are valid for a year, from five
//! minutes before now on. They are signed again at each start, and while a program runs (`renewal`). The CA
//! is valid for ten years; a start in the last third of its time signs it again, with its name and key, so
//! that what it signed stays valid.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use k8s_builtin::{Authority, AuthorityError};
use k8s_core::clock::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::{pem::parse_x509_pem, prelude::X509Certificate};

/// Time before now from which certificates are valid, for clocks that are late.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Time that a certificate is valid, as with upstream's kubeadm.
pub(crate) const LEAF: Duration = Duration::from_secs(365 * 24 * 3600);
/// Time that a CA is valid.
const CA: Duration = Duration::from_secs(3650 * 24 * 3600);

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

/// The time in which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

impl Validity {
    fn of(now: Timestamp, life: Duration) -> Self {
        let not_before = now.saturating_sub(BACKDATE).unwrap_or(now);
        Validity { not_before, not_after: now.saturating_add(life).unwrap_or(now) }
    }

    /// Returns true in the last third of the time, and before it begins. A time that is longer than `most`
    /// counts as `most`.
    pub(crate) fn is_due(&self, now: Timestamp, most: Duration) -> bool {
        let life = Duration::try_from(self.not_after.duration_since(self.not_before)).unwrap_or_default();
        let left = Duration::try_from(self.not_after.duration_since(now)).unwrap_or_default();
        left < life.min(most) / 3 || now < self.not_before
    }
}

/// A directory of certificates and keys.
#[derive(Debug)]
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    ca_key: KeyPair,
    /// End of the CA's time.
    ca_ends: Timestamp,
    clock: Clock,
}

fn seconds(time: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0))
}

/// Sets the time in which a certificate is valid.
fn valid(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(validity.not_before);
    params.not_after = epoch + seconds(validity.not_after);
}

/// The facts about a CA in PEM.
struct Facts {
    validity: Validity,
    /// Signed by its own key, and with no other name than this.
    only_name: Option<String>,
    public_key: Vec<u8>,
}

/// Returns the facts about a CA; `None` if it is no certificate.
fn facts(pem: &str) -> Option<Facts> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate: X509Certificate<'_> = pem.parse_x509().ok()?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let subject = certificate.subject();
    let own = certificate.issuer().as_raw() == subject.as_raw() && subject.iter_attributes().count() == 1;
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
    Some(Facts {
        validity: Validity {
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
        },
        only_name: name.filter(|_| own).map(str::to_owned),
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
    })
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
        Pki::open_at(name, directory, Clock::system())
    }

    /// As [`Pki::open`], with certificates for the time of a clock.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn open_at(name: &str, directory: &Path, clock: Clock) -> Result<Self, PkiError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error(directory))?;
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let ca_key = key_at(&key_path)?;
        let name = format!("{name}-ca");
        let now = clock.now();
        let ca_pem = match fs::read_to_string(&certificate_path) {
            Ok(pem) if !may_renew(&pem, &name, &ca_key, now) => pem,
            Ok(_) => {
                let pem = sign_ca(&name, &ca_key, now)?;
                refresh_private(&certificate_path, pem.as_bytes()).map_err(io_error(&certificate_path))?;
                tracing::info!(path = ?certificate_path, "the CA is renewed; what it signed stays valid");
                pem
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let pem = sign_ca(&name, &ca_key, now)?;
                write_private(&certificate_path, pem.as_bytes()).map_err(io_error(&certificate_path))?;
                pem
            }
            Err(e) => return Err(io_error(&certificate_path)(e)),
        };
        let ca_ends = facts(&ca_pem).map_or(Timestamp::MAX, |facts| facts.validity.not_after);
        if ca_ends < now.saturating_add(30 * DAY).unwrap_or(now) {
            tracing::warn!(path = ?certificate_path, ends = %ca_ends, "the CA ends soon; put another one in its place");
        }
        Ok(Pki { directory: directory.to_owned(), ca_pem, ca_key, ca_ends, clock })
    }

    /// Returns the clock that certificates are made by.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the time for which certificates are signed now: a year, and no longer than the CA's.
    pub(crate) fn validity(&self) -> Validity {
        let validity = Validity::of(self.clock.now(), LEAF);
        Validity { not_after: validity.not_after.min(self.ca_ends), ..validity }
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

    /// Signs a certificate that is valid for a year; its key is kept.
    fn sign(&self, name: &str, mut params: CertificateParams) -> Result<Identity, PkiError> {
        let make = |source| PkiError::Make { name: name.into(), source };
        let key = key_at(&self.directory.join(format!("{name}.key")))?;
        valid(&mut params, self.validity());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, &self.ca_key).map_err(make)?;
        let certificate = params.signed_by(&key, &issuer).map_err(make)?.pem();
        let path = self.directory.join(format!("{name}.crt"));
        refresh_private(&path, certificate.as_bytes()).map_err(io_error(&path))?;
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

/// Returns true if a CA is in the last third of its time, and is one that [`sign_ca`] made with this name and
/// key. Another CA is renewed by those who made it.
fn may_renew(pem: &str, name: &str, key: &KeyPair, now: Timestamp) -> bool {
    facts(pem).is_some_and(|facts| {
        facts.validity.is_due(now, CA)
            && facts.only_name.as_deref() == Some(name)
            && facts.public_key == key.public_key_raw()
    })
}

/// Returns a CA certificate (PEM).
fn sign_ca(name: &str, key: &KeyPair, now: Timestamp) -> Result<String, PkiError> {
    let make = |source| PkiError::Make { name: "ca".into(), source };
    let mut params = CertificateParams::new(Vec::new()).map_err(make)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid(&mut params, Validity::of(now, CA));
    Ok(params.self_signed(key).map_err(make)?.pem())
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

    fn at(time: &str) -> Clock {
        Clock::starting_at(time.parse().unwrap())
    }

    fn times(pem: &str) -> (String, String) {
        let validity = facts(pem).unwrap().validity;
        (validity.not_before.to_string(), validity.not_after.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_are_for_a_year_from_five_minutes_ago() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open_at("shop", directory.path(), at("2027-03-01T12:00:00Z")).unwrap();
        let of = |from: &str, until: &str| (from.to_owned(), until.to_owned());
        assert_eq!(times(pki.ca()), of("2027-03-01T11:55:00Z", "2037-02-26T12:00:00Z"));
        for identity in [pki.client("a", "a", "").unwrap(), pki.server("b", &["b"], &[]).unwrap()] {
            let want = of("2027-03-01T11:55:00Z", "2028-02-29T12:00:00Z");
            assert_eq!(times(&identity.certificate), want);
        }
        // Half a year later the CA is the same, and what it signs is new.
        let later = Pki::open_at("shop", directory.path(), at("2027-09-01T00:00:00Z")).unwrap();
        assert_eq!(later.ca(), pki.ca());
        let again = later.client("a", "a", "").unwrap();
        assert_eq!(times(&again.certificate), of("2027-08-31T23:55:00Z", "2028-08-31T00:00:00Z"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ca_is_renewed_in_its_last_third_and_what_it_signed_stays_valid() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::open_at("shop", directory.path(), at("2026-01-01T00:00:00Z")).unwrap();
        let before = Pki::open_at("shop", directory.path(), at("2032-08-29T00:00:00Z")).unwrap();
        assert_eq!(before.ca(), first.ca());
        let leaf = before.client("a", "a", "").unwrap();
        // Another distribution does not renew it: the name would be another.
        let other = Pki::open_at("other", directory.path(), at("2035-01-01T00:00:00Z")).unwrap();
        assert_eq!(other.ca(), first.ca());
        // No certificate outlives its CA.
        let short = other.client("b", "b", "").unwrap();
        assert_eq!(times(&short.certificate).1, "2035-12-30T00:00:00Z");
        let renewed = Pki::open_at("shop", directory.path(), at("2032-09-03T00:00:00Z")).unwrap();
        assert_eq!(times(renewed.ca()).1, "2042-09-01T00:00:00Z");
        let parse = |pem: &str| parse_x509_pem(pem.as_bytes()).unwrap().1;
        let (leaf, ca) = (parse(&leaf.certificate), parse(renewed.ca()));
        let (leaf, ca) = (leaf.parse_x509().unwrap(), ca.parse_x509().unwrap());
        assert_eq!(leaf.issuer(), ca.subject());
        leaf.verify_signature(Some(ca.public_key())).unwrap();
    }

    /// Directories of earlier versions: a CA from 1975 until 2046, and certificates from 2024 until 2036.
    #[tokio::test(start_paused = true)]
    async fn directories_with_fixed_dates_keep_working() {
        let directory = tempfile::tempdir().unwrap();
        let key = key_at(&directory.path().join("ca.key")).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "hyperkube-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(2046, 1, 1);
        let pem = params.self_signed(&key).unwrap().pem();
        fs::write(directory.path().join("ca.crt"), &pem).unwrap();
        for (now, same) in [("2026-11-28T00:00:00Z", true), ("2043-01-01T00:00:00Z", false)] {
            let pki = Pki::open_at("hyperkube", directory.path(), at(now)).unwrap();
            assert_eq!(pki.ca() == pem, same, "{now}");
            let leaf = pki.client("admin", "admin", "system:masters").unwrap();
            let leaf = parse_x509_pem(leaf.certificate.as_bytes()).unwrap().1;
            let ca = parse_x509_pem(pem.as_bytes()).unwrap().1;
            let ca = ca.parse_x509().unwrap();
            leaf.parse_x509().unwrap().verify_signature(Some(ca.public_key())).unwrap();
        }
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
