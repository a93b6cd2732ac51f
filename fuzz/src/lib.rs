//! Fuzz targets for every parser of external bytes.
//!
//! A target is a row of [`TARGETS`]: a name, seed inputs, and a function that must neither panic nor hang on
//! any bytes, and that checks the parser's laws (such as round trips). `fuzz_targets/` exposes the rows to
//! cargo-fuzz (nightly, hours); `tests/` runs seeded random and mutated bytes through each on stable, two
//! seconds per target with `cargo test` and 15 with `cargo xtask test`.

mod credentials;
mod images;
mod ingress;
mod patches;
mod requests;
mod text;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Unique name.
    pub name: &'static str,
    /// Seed inputs.
    pub seeds: &'static [&'static [u8]],
    /// The function under test; panics on a bug.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    requests::JSON,
    requests::TYPED_JSON,
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
    credentials::TOKEN,
    credentials::KEYS,
    credentials::USERS,
    credentials::CONFIGURATION,
    ingress::PATH,
    ingress::ANNOTATIONS,
];

/// Runs a target by name.
///
/// # Panics
/// The target does not exist, or found a bug.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name);
    (target.unwrap_or_else(|| panic!("no target {name}")).run)(data);
}
