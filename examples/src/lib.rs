//! Example programs, one file each beside `Cargo.toml`; `README.md` lists them with their commands, and
//! `tests/run.rs` runs them all.
//!
//! Shared parts: [`rds`] is a custom resource and its controller, [`kube_operator`] the same controller
//! written with kube-rs. `manifests/` has the manifests that `hyperkube demo` applies.

pub mod kube_operator;
pub mod rds;

/// The snippets of the repository's README are compiled, and run where they can, as they stand.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
