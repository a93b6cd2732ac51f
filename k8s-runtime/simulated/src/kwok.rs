//! kwok's Stages (`kwok.x-k8s.io/v1alpha1`): objects that say what becomes of pods and nodes.
//!
//! Flow: [`watch`] reads the Stages and says in each one's status whether it is accepted; [`drive`] applies
//! them to one object after the other.
//!
//! Guarantees: a Stage that uses what is not supported is refused whole, by its condition `Accepted` with the
//! field and the place. A Stage cannot make the simulation stop: the operations, the nesting, the values
//! and the output of each evaluation are bounded.
//! Not here: CEL, `apply` steps, impersonation, kinds other than Pod and Node.

pub(crate) mod drive;
mod query;
mod stage;
mod template;
pub(crate) mod watch;

pub(crate) use stage::{Kind, Stage};
