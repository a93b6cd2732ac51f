//! The framework against an API server in the same process, in virtual time.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(clippy::unwrap_used, missing_docs)]

mod framework;
