//! One pod: what is known about it, what to do next, and what to say about it.
//!
//! Flow: a [`worker`] gives each message (the pod changed, a container ended, a start finished, a probe
//! turned, time has passed) to the pod's state machine, [`world::World::on`]. It changes what is known, has
//! [`plan::decide`] say what to do next, and returns effects, which the worker performs. What takes time
//! ([`start`], [`stop`], [`sandbox`], volumes) runs in tasks of its own and comes back as a message.
//! [`status::compute`] says what the API server is told.
//!
//! `on`, `decide` and `compute` are pure: they take the time as an argument and do no I/O.

pub(crate) mod admit;
pub(crate) mod container_spec;
pub(crate) mod life;
pub(crate) mod plan;
mod probes;
pub(crate) mod records;
pub(crate) mod sandbox;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
mod watches;
pub(crate) mod worker;
pub(crate) mod world;
pub(crate) mod writer;
