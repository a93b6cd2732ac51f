//! The kubelet: runs the pods that are bound to its node, and reports their status.
//!
//! Flow: a cache holds the node's pods. Each pod has a worker, which passes messages to a pure state machine
//! (the pod's world) and performs the effects that it returns. Long work (pulling, starting, stopping,
//! mounting) runs in tasks whose results are messages, and so are runtime events, probe results and timers.
//! Nothing polls. The status is computed from the world alone, and one writer per pod sends it to the API
//! server.
//!
//! Guarantees:
//! 1. A shutdown or crash of the kubelet leaves the containers running; the next start adopts them.
//! 2. At most one operation runs on a container at a time. Operations on different containers and pods run in
//!    parallel.
//! 3. A pod's object is deleted only after its containers have exited, its network is detached and its
//!    volumes are unmounted.
//! 4. A pod that does not fit the node is never started; it fails with upstream's reason.
//! 5. A resize changes a running pod only after it has room for it, and containers restart for it only if
//!    their resize policy says so.
//! 6. Pods beyond their limits of local storage, and pods on a node that runs out of memory, disk or process
//!    ids, are evicted.
//! 7. The newest status reaches the API server eventually, however often a write fails.
//!
//! Not here: container creation ([`k8s_runtime`]), pod networks (`k8s-net`), static pods, image garbage
//! collection by age.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod allocation;
mod backoff;
mod cgroups;
mod config;
mod context;
mod dns;
mod duration;
mod env;
mod error;
mod eviction;
mod evictor;
mod facts;
mod images;
mod kubelet;
mod ledger;
mod logs;
mod metrics;
mod node;
mod orphans;
mod pod;
mod pod_certificates;
mod probe;
mod resizes;
mod resources;
mod samples;
mod server;
mod sources;
mod sysctls;
mod tokens;
mod trust;
mod view;
mod volumes;

pub use config::Config;
pub use error::KubeletError;
pub use eviction::{
    plan::{Observation, Observations},
    signals::Signals,
    thresholds::{Eviction, EvictionError, EvictionSettings, Signal},
};
pub use kubelet::{Builder, Kubelet};
pub use server::KubeletApi;
pub use volumes::local_path::LOCAL_PATH;

/// API types under short names.
mod types {
    pub(crate) use jiff::Timestamp;
    pub(crate) use k8s_core::api::{
        ByteString,
        api::{
            authentication::v1::{
                BoundObjectReference, TokenRequest, TokenRequestSpec, TokenReview, TokenReviewSpec,
                TokenReviewStatus,
            },
            authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
            certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest, PodCertificateRequestSpec},
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
