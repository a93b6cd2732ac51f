//! The Kubernetes API server as a `tower::Service`.

pub mod invalid;
pub mod resources;
pub mod value;
