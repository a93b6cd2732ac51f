//! Macros: calls expanded at parse time, which bind names or take arguments unevaluated.

use super::Parser;
use crate::{
    ast::{Expr, Id, Loop, LoopKind},
    error::CompileError,
};

/// Loop macros: name, number of arguments, kind, number of bound names, and true if the last but one argument
/// is a filter.
const LOOPS: [(&str, usize, LoopKind, usize, bool); 15] = [
    ("all", 2, LoopKind::All, 1, false),
    ("exists", 2, LoopKind::Exists, 1, false),
    ("exists_one", 2, LoopKind::ExistsOne, 1, false),
    ("existsOne", 2, LoopKind::ExistsOne, 1, false),
    ("map", 2, LoopKind::Map, 1, false),
    ("map", 3, LoopKind::Map, 1, true),
    ("filter", 2, LoopKind::Filter, 1, false),
    ("all", 3, LoopKind::All, 2, false),
    ("exists", 3, LoopKind::Exists, 2, false),
    ("exists_one", 3, LoopKind::ExistsOne, 2, false),
    ("existsOne", 3, LoopKind::ExistsOne, 2, false),
    ("transformList", 3, LoopKind::Map, 2, false),
    ("transformList", 4, LoopKind::Map, 2, true),
    ("transformMap", 3, LoopKind::TransformMap, 2, false),
    ("transformMap", 4, LoopKind::TransformMap, 2, true),
];
const ENTRIES: [(&str, usize, LoopKind, usize, bool); 2] = [
    ("transformMapEntry", 3, LoopKind::TransformMapEntry, 2, false),
    ("transformMapEntry", 4, LoopKind::TransformMapEntry, 2, true),
];

fn name_of(parser: &Parser<'_>, id: Id) -> Result<String, CompileError> {
    match parser.ast.expr(id) {
        Expr::Ident(name) if !name.starts_with('.') => Ok(name.clone()),
        _ => parser.error(parser.ast.node(id).at as usize, "argument must be a simple name"),
    }
}

/// Expands a call without a target.
pub(super) fn global(
    parser: &mut Parser<'_>,
    name: &str,
    args: Vec<Id>,
    at: usize,
) -> Result<Id, CompileError> {
    if let ("has", &[arg]) = (name, &args[..]) {
        return match parser.ast.expr(arg).clone() {
            Expr::Select { operand, field, optional: false } => parser.add(Expr::Has { operand, field }, at),
            _ => parser.error(at, "invalid argument to has() macro"),
        };
    }
    parser.add(Expr::Call { function: name.into(), target: None, args }, at)
}

/// Expands a call on a target.
pub(super) fn member(
    parser: &mut Parser<'_>,
    target: Id,
    name: &str,
    args: Vec<Id>,
    at: usize,
) -> Result<Id, CompileError> {
    let on_cel = matches!(parser.ast.expr(target), Expr::Ident(ident) if ident == "cel");
    match (name, &args[..]) {
        ("bind", &[variable, value, body]) if on_cel => {
            let name = name_of(parser, variable)?;
            return parser.add(Expr::Bind { name, value, body }, at);
        }
        ("optMap" | "optFlatMap", &[variable, body]) => {
            let flat = name == "optFlatMap";
            let name = name_of(parser, variable)?;
            return parser.add(Expr::OptMap { operand: target, name, body, flat }, at);
        }
        _ => {}
    }
    let found = LOOPS
        .iter()
        .chain(&ENTRIES)
        .find(|(loop_name, count, ..)| *loop_name == name && *count == args.len());
    let Some((name, _, kind, names, filtered)) = found else {
        return parser.add(Expr::Call { function: name.into(), target: Some(target), args }, at);
    };
    // The table guarantees the number of arguments.
    let (variable, second) = match (names, &args[..]) {
        (2, [first, second, ..]) => (name_of(parser, *first)?, Some(name_of(parser, *second)?)),
        (_, [first, ..]) => (name_of(parser, *first)?, None),
        _ => return parser.error(at, "argument must be a simple name"),
    };
    if second.as_ref() == Some(&variable) {
        return parser.error(at, format!("duplicate variable name: {variable}"));
    }
    let body = args.last().copied().unwrap_or(target);
    let filter = if *filtered { args.get(args.len().wrapping_sub(2)).copied() } else { None };
    let one = Loop { kind: *kind, name, range: target, variable, second, filter, body };
    parser.add(Expr::Loop(one), at)
}
