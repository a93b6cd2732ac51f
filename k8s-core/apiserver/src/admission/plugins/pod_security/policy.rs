//! Policy of a namespace: levels and versions, from its labels and the cluster's defaults.

use std::fmt;

/// Prefix of the labels of namespaces.
pub(super) const PREFIX: &str = "pod-security.kubernetes.io/";

/// A level of the Pod Security Standards, from lax to strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Nothing is refused.
    Privileged,
    /// Known ways out of a container are refused.
    Baseline,
    /// Pods must be hardened.
    Restricted,
}

impl Level {
    /// # Errors
    /// The detail of an "Invalid value" error.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "privileged" => Ok(Level::Privileged),
            "baseline" => Ok(Level::Baseline),
            "restricted" => Ok(Level::Restricted),
            _ => Err("must be one of privileged, baseline, restricted"),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })
    }
}

/// Version of the standards: a minor version of Kubernetes 1, or the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// `latest`.
    Latest,
    /// `v1.N`.
    Minor(u32),
}

impl Version {
    /// # Errors
    /// The detail of an "Invalid value" error.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const WRONG: &str = "must be \"latest\" or \"v1.x\"";
        if text == "latest" {
            return Ok(Version::Latest);
        }
        let digits = text.strip_prefix("v1.").ok_or(WRONG)?;
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        digits.parse().ok().filter(|_| plain).map(Version::Minor).ok_or(WRONG)
    }

    /// Returns the minor version; the greatest number for `latest`.
    pub(super) fn minor(self) -> u32 {
        match self {
            Version::Latest => u32::MAX,
            Version::Minor(minor) => minor,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Latest => f.write_str("latest"),
            Version::Minor(minor) => write!(f, "v1.{minor}"),
        }
    }
}

/// A level in a version, such as `restricted:latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    pub(super) version: Version,
}

impl LevelVersion {
    pub(super) const PRIVILEGED: Self = LevelVersion { level: Level::Privileged, version: Version::Latest };

    fn is_same(&self, other: &Self) -> bool {
        self == other || self.level == Level::Privileged && other.level == Level::Privileged
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level, self.version)
    }
}

/// A label with a value that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WrongLabel {
    pub(super) label: String,
    pub(super) value: String,
    pub(super) detail: &'static str,
}

impl WrongLabel {
    /// Returns the path of the label.
    pub(super) fn field(&self) -> String {
        format!("metadata.labels[{}]", self.label)
    }
}

impl fmt::Display for WrongLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: Invalid value: {:?}: {}", self.field(), self.value, self.detail)
    }
}

/// The levels of the three modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Refuses pods.
    pub(super) enforce: LevelVersion,
    /// Annotates audit events.
    pub(super) audit: LevelVersion,
    /// Warns clients.
    pub(super) warn: LevelVersion,
}

impl Policy {
    pub(super) const PRIVILEGED: Self = Policy {
        enforce: LevelVersion::PRIVILEGED,
        audit: LevelVersion::PRIVILEGED,
        warn: LevelVersion::PRIVILEGED,
    };

    /// Returns the three modes with the names of their labels.
    pub(super) fn modes(&self) -> [(&'static str, LevelVersion); 3] {
        [("enforce", self.enforce), ("audit", self.audit), ("warn", self.warn)]
    }

    pub(super) fn is_privileged(&self) -> bool {
        self.modes().iter().all(|(_, mode)| mode.level == Level::Privileged)
    }

    /// Returns true if both policies have the same effect.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.modes().iter().zip(other.modes()).all(|((_, one), (_, two))| one.is_same(&two))
    }

    /// Returns the policy of a namespace, with labels in front of defaults. A wrong level is the strictest
    /// for `enforce` and the laxest for the other modes; a wrong version is the newest.
    pub(super) fn of_labels<'a>(
        label: impl Fn(&str) -> Option<&'a str>,
        defaults: &Policy,
    ) -> (Self, Vec<WrongLabel>) {
        let mut wrong = Vec::new();
        let text = |name: &str| label(&format!("{PREFIX}{name}"));
        let mut read = |mode: &str, mut of: LevelVersion, fallback: Level| {
            let version = format!("{mode}-version");
            let mut note = |name: &str, value: &str, detail| {
                wrong.push(WrongLabel { label: format!("{PREFIX}{name}"), value: value.to_owned(), detail });
            };
            if let Some(value) = text(mode) {
                of.level = Level::parse(value).unwrap_or_else(|detail| {
                    note(mode, value, detail);
                    fallback
                });
            }
            if let Some(value) = text(&version) {
                of.version = Version::parse(value).unwrap_or_else(|detail| {
                    note(&version, value, detail);
                    Version::Latest
                });
            }
            of
        };
        let enforce = read("enforce", defaults.enforce, Level::Restricted);
        let audit = read("audit", defaults.audit, Level::Privileged);
        let mut warn = read("warn", defaults.warn, Level::Privileged);
        // Who enforces a level is warned of it, unless the labels say otherwise.
        let enforces = text("enforce").is_some_and(|level| Level::parse(level).is_ok());
        if text("warn").is_none() && enforces && enforce.level > warn.level {
            warn.level = enforce.level;
            if text("warn-version").is_none() {
                warn.version = enforce.version;
            }
        }
        (Policy { enforce, audit, warn }, wrong)
    }
}
