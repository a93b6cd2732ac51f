//! Named formats.

/// A named format, such as `dns1123Label`.
#[derive(Debug)]
pub struct Format {
    pub(crate) name: &'static str,
    /// Returns the violations of a text.
    pub(crate) check: fn(&str) -> Vec<String>,
}
