//! The API server in this process, called without sockets.

mod crd;
mod facts;
mod golden;
mod lists;

mod mutations;
mod stages;
mod support;
mod watches;
