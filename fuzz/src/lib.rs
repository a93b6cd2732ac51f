//! Fuzz targets over every parser that reads bytes from outside.
//!
//! A target is a row of [`TARGETS`]: a name, seeds to begin from, and a function that must neither panic nor hang on any bytes, and that checks the
//! parser's laws where it has any. `fuzz_targets/` hands the rows to cargo-fuzz (nightly, hours); `tests/` throws seeded random and mutated bytes
//! at each (stable): for two seconds wherever tests are run, for a minute in CI.

mod images;
mod patches;
mod requests;
mod text;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Inputs to begin from.
    pub seeds: &'static [&'static [u8]],
    /// What is tried on any bytes.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    requests::JSON,
    requests::YAML,
    requests::PROTOBUF,
    requests::PATH,
    requests::KUBECONFIG,
    requests::CONTINUE,
    text::LABEL_SELECTOR,
    text::FIELD_SELECTOR,
    text::QUANTITY,
    text::IMAGE_REFERENCE,
    text::CEL,
    patches::JSON_PATCH,
    patches::MERGE_PATCH,
    patches::STRATEGIC_MERGE,
    patches::APPLY,
    patches::SCHEMA,
    patches::RULES,
    images::ARCHIVE,
];

/// Runs the target of a name.
///
/// # Panics
/// When there is none, or the target found something.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name);
    (target.unwrap_or_else(|| panic!("no target {name}")).run)(data);
}
