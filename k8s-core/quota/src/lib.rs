//! Resource quotas: the usage of objects, and the decision about a charge.
//!
//! ```
//! use k8s_quota::Quota;
//! use serde_json::json;
//!
//! let quota = Quota::of(&json!({"metadata": {"name": "small"}, "status": {
//!     "hard": {"pods": "2", "requests.cpu": "1"},
//!     "used": {"pods": "1", "requests.cpu": "700m"},
//! }}));
//! let pod = |cpu: &str| {
//!     json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
//! };
//! let now = jiff::Timestamp::UNIX_EPOCH;
//! assert_eq!(quota.charge("pods", &pod("200m"), None, now)?.to_string(), "pods=1,requests.cpu=200m");
//! let refusal = quota.charge("pods", &pod("400m"), None, now).unwrap_err().to_string();
//! assert!(refusal.starts_with("exceeded quota: small, requested: requests.cpu=400m, used: "));
//! # Ok::<(), k8s_quota::Refusal>(())
//! ```
//!
//! Flow: the admission plugin of the API server asks each [`Quota`] of a namespace for the charge of a write
//! and adds it to `status.used`; the controller sums the [`usage`] of the objects that exist. Both use this
//! crate, so they agree.
//!
//! Guarantees: names and messages are upstream's; arithmetic is exact. Objects are JSON in the version in
//! which they are stored, and resources are named as in the store: `pods`, `deployments.apps`. Malformed
//! quantities count as 0, because the API server does not admit them.
//!
//! Not here: storing the charge, and devices of ResourceClaims (only their number is counted).

mod amounts;
mod kinds;
pub mod pod;
mod quota;
mod scopes;

pub use amounts::Amounts;
pub use kinds::{resource_of, usage};
pub use quota::{Quota, Refusal};
pub use scopes::Selector;

#[cfg(test)]
mod tests;
