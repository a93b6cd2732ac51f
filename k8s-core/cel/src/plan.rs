//! The execution plan of a checked expression: names are resolved to slots, calls to functions.

use std::sync::Arc;

use regex::Regex;

use super::{ast::LoopKind, library::Function, types::declared::Decl, value::Value};

/// Index of an operation in its plan.
pub(super) type OpId = u32;

/// A comprehension (`all`, `exists`, `map`, `filter`) with its accumulator.
#[derive(Clone, Debug)]
pub(super) struct LoopOp {
    pub(super) kind: LoopKind,
    pub(super) range: OpId,
    pub(super) slot: usize,
    pub(super) second: Option<usize>,
    pub(super) filter: Option<OpId>,
    pub(super) body: OpId,
}

/// Name of a field in the expression, and its unescaped property name.
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
    /// The value of an optional, or another expression; with `flat` that is optional, too (`or`, `orValue`).
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

/// The instructions of an expression, with constants and compiled patterns.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) ops: Vec<Op>,
    pub(super) root: OpId,
    /// Names and declarations of the used variables, by slot.
    pub(super) variables: Vec<(String, Arc<Decl>)>,
    /// Maximum number of simultaneously bound names.
    pub(super) locals: usize,
    /// Literal patterns of `matches`, compiled once.
    pub(super) patterns: Vec<(String, Regex)>,
}
