//! Requests without credentials.

/// The requests without credentials that are accepted as `system:anonymous`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Anonymous {
    /// None.
    #[default]
    Never,
    /// All.
    Always,
    /// Those of these paths.
    At(Vec<String>),
}

impl Anonymous {
    /// Returns true if a request of this path is accepted.
    pub(super) fn allows(&self, path: &str) -> bool {
        match self {
            Anonymous::Never => false,
            Anonymous::Always => true,
            Anonymous::At(paths) => paths.iter().any(|known| known == path),
        }
    }
}
