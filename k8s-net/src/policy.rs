//! Network policies: which connections of pods are allowed.
//!
//! Not here: pod networks (see [`crate::bridge`]) and services (see [`crate::proxy`]).

mod blocks;
mod elements;
pub(crate) mod facts;
#[cfg(test)]
pub(crate) mod model;
mod pairs;
mod parse;
mod plan;
mod ports;
#[cfg(test)]
mod tests;
