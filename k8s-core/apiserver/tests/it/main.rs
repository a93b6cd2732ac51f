//! The API server in this process, called without sockets.

mod aggregation;
mod contention;
mod conversion;
mod crd;
mod decoding;
mod encoding;
mod facts;
mod golden;
mod kube_rs;
mod limits;
mod lists;
mod mutations;
mod peer;
mod proto;
mod stages;
mod support;
mod validation;
mod versions;
mod watches;
