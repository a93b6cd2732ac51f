//! A pod: its state, the next steps, and its status.
//!
//! Flow: a [`worker`] passes each message (pod changed, container exited, start finished, probe verdict,
//! timer) to the pod's state machine, [`world::World::on`]. It updates the state, asks [`plan::decide`] for
//! the next steps, and returns effects, which the worker performs. Long work ([`start`], [`stop`],
//! [`sandbox`], volumes) runs in tasks and returns its result as a message. [`status::compute`] computes the
//! status for the API server.
//!
//! `on`, `decide` and `compute` are pure: the time is an argument, and they do no I/O.

mod actuate;
pub(crate) mod admit;
pub(crate) mod allocate;
mod claims;
pub(crate) mod container_spec;
pub(crate) mod life;
pub(crate) mod plan;
mod probes;
pub(crate) mod records;
pub(crate) mod resize;
#[cfg(test)]
mod samples;
pub(crate) mod sandbox;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
mod watches;
pub(crate) mod worker;
pub(crate) mod world;
pub(crate) mod writer;
