//! Versions and cipher suites of a server, with Go's names.

use rustls::{
    CipherSuite, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::CryptoProvider,
    version::{TLS12, TLS13},
};

/// The flag of the least version, as upstream names it.
const MIN_VERSION: &str = "tls-min-version";
/// The flag of the cipher suites.
const SUITES: &str = "tls-cipher-suites";

/// Go's names of the cipher suites of TLS 1.2 that there are here.
const TLS12_SUITES: [(&str, CipherSuite); 6] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// The cipher suites of TLS 1.3. They are always on, as in Go.
const TLS13_SUITES: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Names that upstream keeps for compatibility, and the current ones.
const OLD_NAMES: [(&str, &str); 2] = [
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Cipher suites of Go without known weakness that there are not here.
const MISSING: [&str; 4] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

/// Cipher suites that Go calls insecure.
const INSECURE: [&str; 12] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// A version or cipher suite that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct PolicyError {
    /// Upstream's flag without dashes: `tls-min-version` or `tls-cipher-suites`.
    pub setting: &'static str,
    /// The problem, with the values that there are.
    pub reason: String,
}

/// The versions and cipher suites that a server accepts. Default: TLS 1.2 and 1.3 with all suites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    only_tls13: bool,
    /// Suites of TLS 1.2. `None`: all.
    suites: Option<Vec<CipherSuite>>,
}

impl Policy {
    /// Parses Go's names: `VersionTLS12` or `VersionTLS13` (empty: `VersionTLS12`), and cipher suites (empty:
    /// all). The suites of TLS 1.3 are always accepted, as in Go.
    ///
    /// ```
    /// use k8s_tls::Policy;
    /// assert!(Policy::parse("VersionTLS13", &[]).is_ok());
    /// let suites = ["TLS_RSA_WITH_RC4_128_SHA".to_owned()];
    /// let error = Policy::parse("", &suites).unwrap_err();
    /// assert!(error.to_string().starts_with("tls-cipher-suites: TLS_RSA_WITH_RC4_128_SHA is insecure"));
    /// ```
    ///
    /// # Errors
    /// An unknown, insecure or missing name; the error lists the names that there are.
    pub fn parse(min_version: &str, cipher_suites: &[String]) -> Result<Self, PolicyError> {
        let only_tls13 = match min_version {
            "" | "VersionTLS12" => false,
            "VersionTLS13" => true,
            "VersionTLS10" | "VersionTLS11" => {
                let reason = format!(
                    "{min_version} is insecure and not supported: choose VersionTLS12 or VersionTLS13"
                );
                return Err(PolicyError { setting: MIN_VERSION, reason });
            }
            other => {
                let reason = format!("unknown tls version {other:?}: choose VersionTLS12 or VersionTLS13");
                return Err(PolicyError { setting: MIN_VERSION, reason });
            }
        };
        let mut suites = Vec::new();
        for name in cipher_suites {
            suites.extend(suite(name)?);
        }
        Ok(Policy { only_tls13, suites: (!cipher_suites.is_empty()).then_some(suites) })
    }

    /// Returns the names of all cipher suites that there are.
    #[must_use]
    pub fn cipher_suites() -> Vec<&'static str> {
        TLS13_SUITES.into_iter().chain(TLS12_SUITES.map(|(name, _)| name)).collect()
    }

    /// Returns the cryptography of this policy, with the fastest suites first: AES-128 like Go's servers is a
    /// third less work than AES-256 for both sides of a large response.
    pub(crate) fn provider(&self) -> CryptoProvider {
        let mut provider = rustls::crypto::ring::default_provider();
        if let Some(suites) = &self.suites {
            let accepts =
                |suite: &SupportedCipherSuite| suite.tls13().is_some() || suites.contains(&suite.suite());
            provider.cipher_suites.retain(accepts);
        }
        provider.cipher_suites.sort_by_key(|suite| {
            !matches!(
                suite.suite(),
                CipherSuite::TLS13_AES_128_GCM_SHA256
                    | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                    | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
            )
        });
        provider
    }

    pub(crate) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        if self.only_tls13 { &BOTH[..1] } else { &BOTH }
    }
}

/// Returns the suite of a name; `None` for one of TLS 1.3, which is always on.
fn suite(name: &str) -> Result<Option<CipherSuite>, PolicyError> {
    let current = OLD_NAMES.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new);
    if let Some((_, suite)) = TLS12_SUITES.iter().find(|(known, _)| *known == current) {
        return Ok(Some(*suite));
    }
    if TLS13_SUITES.contains(&name) {
        return Ok(None);
    }
    let why = if INSECURE.contains(&name) {
        "is insecure and not supported"
    } else if MISSING.contains(&name) {
        "is not supported"
    } else {
        "is no cipher suite"
    };
    let reason = format!("{name} {why}: choose from {}", Policy::cipher_suites().join(", "));
    Err(PolicyError { setting: SUITES, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites(names: &[&str]) -> Result<Policy, String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Policy::parse("", &names).map_err(|e| e.to_string())
    }

    #[test]
    fn every_suite_has_its_go_name_and_can_be_chosen_alone() {
        let all = Policy::default().provider();
        assert_eq!(all.cipher_suites.len(), Policy::cipher_suites().len());
        for (name, suite) in TLS12_SUITES {
            let chosen = suites(&[name]).unwrap().provider();
            let tls12: Vec<_> =
                chosen.cipher_suites.iter().filter(|s| s.tls13().is_none()).map(|s| s.suite()).collect();
            assert_eq!(tls12, [suite], "{name}");
            assert_eq!(suite.as_str(), Some(name));
            assert_eq!(chosen.cipher_suites.len(), 4, "with those of TLS 1.3");
        }
        let none_of_12 = suites(&TLS13_SUITES).unwrap().provider();
        assert_eq!(none_of_12.cipher_suites.len(), 3);
        assert_eq!(
            suites(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"]),
            suites(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"])
        );
    }

    #[test]
    fn other_names_are_refused_with_the_reason_and_a_list() {
        for (name, why) in [
            ("TLS_RSA_WITH_AES_128_GCM_SHA256", "is insecure and not supported"),
            ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "is not supported"),
            ("tls_aes_128_gcm_sha256", "is no cipher suite"),
        ] {
            let error = suites(&["TLS_AES_128_GCM_SHA256", name]).unwrap_err();
            assert!(
                error.starts_with(&format!("tls-cipher-suites: {name} {why}: choose from TLS_AES")),
                "{error}"
            );
        }
        for (version, why) in
            [("VersionTLS11", "VersionTLS11 is insecure"), ("1.3", "unknown tls version \"1.3\"")]
        {
            let error = Policy::parse(version, &[]).unwrap_err();
            assert!(error.setting == "tls-min-version" && error.reason.starts_with(why), "{error}");
        }
        assert_eq!(Policy::parse("VersionTLS13", &[]).unwrap().versions().len(), 1);
    }
}
