//! Programs a user would write, each in a file of its own beside `Cargo.toml`; `tests/run.rs` runs them all.
//!
//! `embed_cluster`: a cluster inside a program. `custom_controller`: a resource of one's own and the controller for it ([`rds`]), whose tests are
//! `tests/rds.rs`. `kube_controller`: an unmodified kube-rs controller on a cluster in the same process. `admission`: a function that sees every
//! write. `distribution`: a `hyperkube` of one's own. The manifests that the demo applies are under `manifests/`.

pub mod rds;
