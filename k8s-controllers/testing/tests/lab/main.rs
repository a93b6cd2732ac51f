//! The lab, as its users have it, and what it promises to them.

mod counters;
mod elections;
mod existing;
mod framework;
mod kit;
mod kube_rs;
mod speed;
mod storms;
