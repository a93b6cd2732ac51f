//! Settings of a program that are not settings of its cluster.

/// A program: its name, and its idle work.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub(crate) name: &'static str,
    pub(crate) when_idle: Option<fn()>,
}
