//! The framework against a small API server of the tests' own, in virtual time.
#![allow(clippy::unwrap_used, missing_docs)]

mod fake;
mod framework;
