//! The lab, as its users have it, and what it promises to them.

mod counters;
mod elections;
mod existing;
mod framework;
mod kit;
mod kube_rs;
mod speed;
mod storms;

/// A lab decodes and encodes all day: what gives out memory counts.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
