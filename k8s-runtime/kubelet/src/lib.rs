//! The node agent: runs the pods that are bound to its node, and says how they are.
//!
//! Flow: a cache holds the node's pods. Each pod has one worker, which gives messages to a pure state machine
//! (the pod's world) and performs the effects that it returns. Long work (pulling, starting, stopping,
//! mounting) runs beside it and comes back as a message, as do runtime events, probe results and timers.
//! Nothing polls. A pod's status follows from the world alone, and one writer per pod keeps the API server's
//! copy current.
//!
//! Guarantees:
//! 1. A shutdown or crash touches no container; at the next start running containers are adopted as they are.
//! 2. Work on one container is never done twice at once; work on different containers and pods runs in
//!    parallel.
//! 3. A pod's object is deleted only after its containers have ended, its network is detached and its volumes
//!    are gone.
//! 4. The newest status is written in the end, however often a write fails.
//!
//! Not here: how containers are made ([`k8s_runtime`]), how pods are connected (`k8s-net`), static pods,
//! evictions, image removal.

mod backoff;
mod config;
mod context;
mod dns;
mod duration;
mod env;
mod error;
mod facts;
mod images;
mod kubelet;
mod logs;
mod node;
mod orphans;
mod pod;
mod probe;
mod resources;
mod server;
mod sources;
mod sysctls;
mod tokens;
mod volumes;

pub use config::Config;
pub use error::KubeletError;
pub use kubelet::{Builder, Kubelet};
pub use server::KubeletApi;

/// The API's types, under short names.
mod types {
    pub(crate) use jiff::Timestamp;
    pub(crate) use k8s_core::api::{
        api::{
            authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
            authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
            coordination::v1::Lease,
            core::v1::*,
            node::v1::RuntimeClass,
        },
        apimachinery::pkg::{
            api::resource::Quantity as ApiQuantity,
            apis::meta::v1::{ObjectMeta, OwnerReference, Time},
            util::intstr::IntOrString,
        },
    };
}
