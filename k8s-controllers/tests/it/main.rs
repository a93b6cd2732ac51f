//! The framework against an API server in the same process, in virtual time.
#![allow(clippy::unwrap_used, missing_docs)]

mod framework;
