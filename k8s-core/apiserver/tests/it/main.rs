//! The API server in this process, called without sockets.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]

mod aggregation;
mod attacks;
mod audit;
mod audit_webhook;
mod authentication;
mod authorization;
mod cases;
mod contention;
mod conversion;
mod crd;
mod dry_run;
mod encoding;
mod escalation;
mod evictions;
mod facts;
mod fairness;
mod golden;
mod identity_provider;
mod kube_rs;
mod limit_ranger;
mod limits;
mod lists;
mod metrics;
mod mutations;
mod node_restriction;
mod patches;
mod peer;
mod plugins;
mod pod_security;
mod policies;
mod proto;
mod proxies;
mod resource_quota;
mod signers;
mod stages;
mod support;
mod token_webhook;
mod tokens;
mod unenforced;
mod validation;
mod versions;
mod views;
mod watches;
mod webhooks;
