//! A checked expression as it is run: names are places, calls are functions.

use std::sync::Arc;

use regex::Regex;

use super::{ast::LoopKind, library::Function, schema::Decl, value::Value};

/// An operation's place in its plan.
pub(super) type OpId = u32;

/// A loop, ready to run.
#[derive(Clone, Debug)]
pub(super) struct LoopOp {
    pub(super) kind: LoopKind,
    pub(super) range: OpId,
    pub(super) slot: usize,
    pub(super) second: Option<usize>,
    pub(super) filter: Option<OpId>,
    pub(super) body: OpId,
}

/// A field's name as it is written, and the property that it means.
#[derive(Clone, Debug)]
pub(super) struct FieldName {
    pub(super) name: Box<str>,
    pub(super) property: Box<str>,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Const(Value<'static>),
    Variable(usize),
    Local(usize),
    Select {
        operand: OpId,
        field: FieldName,
        optional: bool,
    },
    Has {
        operand: OpId,
        field: FieldName,
    },
    Call {
        function: &'static Function,
        args: Box<[OpId]>,
    },
    /// What is optional, or something else; flat: that is optional too.
    Otherwise {
        operand: OpId,
        other: OpId,
        flat: bool,
    },
    And(Box<[OpId]>),
    Or(Box<[OpId]>),
    Conditional(OpId, OpId, OpId),
    List(Box<[(OpId, bool)]>),
    Map(Box<[(OpId, OpId, bool)]>),
    Loop(Box<LoopOp>),
    Bind {
        slot: usize,
        value: OpId,
        body: OpId,
    },
    OptMap {
        operand: OpId,
        slot: usize,
        body: OpId,
        flat: bool,
    },
}

/// An expression, ready to run.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) ops: Vec<Op>,
    pub(super) root: OpId,
    /// The variables that it uses.
    pub(super) variables: Vec<(String, Arc<Decl>)>,
    /// How many names it binds at once, at most.
    pub(super) locals: usize,
    /// Patterns that are written in it.
    pub(super) patterns: Vec<(String, Regex)>,
}
