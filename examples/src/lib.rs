//! Programs a user would write, each in a file of its own beside `Cargo.toml`; `tests/run.rs` runs them all.
//!
//! `embed_cluster`: a cluster inside a program. `custom_controller`: a resource of one's own and the controller for it. `admission`: a function that
//! sees every write. The manifests that the demo applies are under `manifests/`.
