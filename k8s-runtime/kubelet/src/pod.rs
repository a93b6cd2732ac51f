//! One pod: what is known about it, what to do next, and what to say about it.
//!
//! Flow: a [`worker`] owns a [`world::World`]. Every message (the pod changed, a container ended, a start finished, a probe turned, a timer)
//! changes the world; then [`plan::decide`] says what to do, [`status::compute`] says what to report, and the worker does both. Whatever
//! takes time ([`start`], [`stop`], [`sandbox`], volumes) runs in tasks of its own and comes back as a message.
//!
//! `decide` and `compute` are pure: they take the time as an argument and do no I/O.

pub(crate) mod admit;
pub(crate) mod container_spec;
pub(crate) mod life;
pub(crate) mod plan;
pub(crate) mod records;
pub(crate) mod sandbox;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod worker;
pub(crate) mod world;
pub(crate) mod writer;
