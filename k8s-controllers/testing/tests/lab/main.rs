//! The lab through its public API, and its guarantees.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]

mod counters;
mod elections;
mod existing;
mod extenders;
mod framework;
mod kit;
mod kube_rs;
mod operators;
mod scheduling;
mod speed;
mod storms;

/// A lab decodes and encodes all the time, so the allocator matters.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
