//! The Kubernetes types, as every kube-rs user has them: those of `k8s-openapi`, flat.
//!
//! ```
//! use k8s_core::api::{Container, Deployment, LabelSelector, Pod, PodSpec};
//! // The same type by its path in k8s-openapi.
//! let pod: k8s_core::api::api::core::v1::Pod = Pod::default();
//! # let _ = (pod, PodSpec::default(), Container::default(), Deployment::default(), LabelSelector::default());
//! ```
//!
//! Flat are the newest stable versions of the groups that workloads use. Where two groups have a type of one name, the flat
//! name is that of the core group, or else of the group listed first. Everything else is in [`api`] and [`apimachinery`] by
//! group and version.

pub use k8s_openapi::*;

pub use k8s_openapi::{
    api::{
        apps::v1::*, autoscaling::v2::*, batch::v1::*, coordination::v1::*, core::v1::*, discovery::v1::*,
        networking::v1::*, policy::v1::*, rbac::v1::*, scheduling::v1::*, storage::v1::*,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::*, util::intstr::IntOrString},
};

// In core and in discovery.
pub use k8s_openapi::api::core::v1::EndpointPort;
