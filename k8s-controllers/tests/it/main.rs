//! The framework against a small API server of the tests' own, in virtual time.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(clippy::unwrap_used, missing_docs)]

mod fake;
mod framework;
