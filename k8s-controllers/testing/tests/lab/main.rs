//! The lab, as its users have it, and what it promises to them.

mod counters;
mod kit;
mod speed;
