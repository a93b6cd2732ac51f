//! The API server in this process, called without sockets.

mod golden;

mod mutations;
mod support;
