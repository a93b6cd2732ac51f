//! Semantic versions.

use std::{cmp::Ordering, fmt};

use semver::Version;

/// A semantic version (semver.org, 2.0.0).
#[derive(Debug, PartialEq, Eq)]
pub struct Semver(Version);

impl Semver {
    /// Parses `major.minor.patch[-pre-release][+build]`, without a leading `v`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Version::parse(text).map(Semver).map_err(|e| format!("{e}: {:?}", crate::error::short(text)))
    }

    /// Returns major, minor and patch.
    pub(crate) fn numbers(&self) -> [u64; 3] {
        [self.0.major, self.0.minor, self.0.patch]
    }

    /// Compares by precedence; build metadata is ignored.
    pub(crate) fn order(&self, other: &Semver) -> Ordering {
        self.0.cmp_precedence(&other.0)
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
