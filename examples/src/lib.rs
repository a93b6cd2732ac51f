//! Example programs, one file each beside `Cargo.toml`; `tests/run.rs` runs them all.
//!
//! `embed_cluster`: a cluster inside a program. `custom_controller`: a custom resource and its controller
//! ([`rds`]), tested in `tests/rds.rs`. `kube_controller`: an unmodified kube-rs controller on a cluster in
//! the same process. `admission`: a function that sees every write. `distribution`: a custom `hyperkube`.
//! `manifests/` has the manifests that the demo applies.

pub mod rds;
