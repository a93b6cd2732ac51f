//! Checks macros that bind names.

use std::sync::Arc;

use super::{Checked, Checker, Scope, declared_size};
use crate::{
    ast::{Id, Loop, LoopKind},
    cost::{self, Estimate, Size},
    plan::{LoopOp, Op},
    types::Type,
};

impl Checker<'_> {
    /// Runs `f` with a name bound.
    fn with<T>(&mut self, name: &str, what: Checked, f: impl FnOnce(&mut Self, usize) -> T) -> T {
        let slot = self.scopes.len();
        self.scopes.push(Scope { name: name.to_owned(), what, slot });
        self.plan.locals = self.plan.locals.max(slot + 1);
        let result = f(self, slot);
        self.scopes.pop();
        result
    }

    /// Returns the loop variables' declarations: keys or indexes, and elements.
    fn ranged(&mut self, range: &Checked, at: u32) -> (Checked, Checked) {
        let known = range.known();
        let inner = range.decl.as_deref().and_then(|decl| decl.element.clone());
        let (key, value) = match &range.ty {
            Type::List(of) => (Type::Int, (**of).clone()),
            Type::Map(entry) => (entry.0.clone(), entry.1.clone()),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            ty => {
                let message = format!(
                    "expression of type '{ty}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.error(at, message);
                (Type::Dyn, Type::Dyn)
            }
        };
        let mut value = Checked { ty: value, decl: inner, size: None, element: None, ..range.clone() };
        if declared_size(value.decl.as_deref()).is_none() {
            value.size = Some(known.element);
        }
        // Key lengths are not declared. As upstream, keys of a declared map count as empty, and those of
        // other maps have the size limit of a request.
        let is_declared = matches!(range.ty, Type::Map(_)) && range.decl.is_some();
        let size = match key {
            Type::String if is_declared => Some(Size::fixed(0)),
            Type::String | Type::Dyn => Some(Size::up_to(3 << 20)),
            _ => None,
        };
        let key = Checked { ty: key, decl: None, size, element: None, ..range.clone() };
        (key, value)
    }

    pub(super) fn loop_(&mut self, one: &Loop, at: u32) -> Checked {
        let range = self.expr(one.range);
        let (key, value) = self.ranged(&range, self.ast.node(one.range).at);
        let list = matches!(range.ty, Type::List(_));
        match &one.second {
            Some(second) => self.with(&one.variable, key, |checker, slot| {
                checker.with(second, value, |checker, second| {
                    checker.looped(one, at, &range, (slot, Some(second)))
                })
            }),
            None => {
                let only = match (&range.ty, list) {
                    (Type::Dyn, _) => Checked { decl: None, ..value },
                    (_, true) => value,
                    (_, false) => key,
                };
                self.with(&one.variable, only, |checker, slot| checker.looped(one, at, &range, (slot, None)))
            }
        }
    }

    fn boolean(&mut self, id: Id) -> Checked {
        let checked = self.expr(id);
        if !Type::Bool.accepts(&checked.ty) {
            let message = format!("expected type 'bool' but found '{}'", checked.ty);
            self.error(self.ast.node(id).at, message);
        }
        checked
    }

    fn looped(&mut self, one: &Loop, at: u32, range: &Checked, slots: (usize, Option<usize>)) -> Checked {
        let filter = one.filter.map(|id| self.boolean(id));
        let body = match one.kind {
            LoopKind::All | LoopKind::Exists | LoopKind::ExistsOne | LoopKind::Filter => {
                self.boolean(one.body)
            }
            LoopKind::Map | LoopKind::TransformMap | LoopKind::TransformMapEntry => self.expr(one.body),
        };
        let keys = match &range.ty {
            Type::List(_) => Type::Int,
            Type::Map(entry) => entry.0.clone(),
            _ => Type::Dyn,
        };
        let ty = match one.kind {
            LoopKind::All | LoopKind::Exists | LoopKind::ExistsOne => Type::Bool,
            LoopKind::Map => Type::list(body.ty.clone()),
            LoopKind::Filter => match &range.ty {
                Type::Map(entry) => Type::list(entry.0.clone()),
                Type::List(_) => range.ty.clone(),
                _ => Type::list(Type::Dyn),
            },
            LoopKind::TransformMap => Type::Map(Arc::new((keys, body.ty.clone()))),
            LoopKind::TransformMapEntry => match &body.ty {
                Type::Map(_) | Type::Dyn => body.ty.clone(),
                ty => {
                    let message = format!("expected type 'map(dyn, dyn)' but found '{ty}'");
                    return self.error(at, message);
                }
            },
        };
        let (begin, each, taken, end) = cost::of_loop(one.kind);
        let filtered = filter.as_ref().map_or(Estimate::default(), |filter| filter.cost);
        let step = body.cost.plus(filtered).plus(Estimate { min: each, max: each + taken });
        let count = range.known().size;
        let op = Op::Loop(Box::new(LoopOp {
            kind: one.kind,
            range: range.op,
            slot: slots.0,
            second: slots.1,
            filter: filter.map(|filter| filter.op),
            body: body.op,
        }));
        let mut done = self.done(ty, op, 0);
        // The loop may end at its first element.
        let steps = Estimate { min: step.min.saturating_mul(count.min.min(1)), max: step.times(count).max };
        done.cost = range.cost.plus(Estimate::fixed(begin + end)).plus(steps);
        match one.kind {
            LoopKind::Filter => {
                done.size = Some(Size::up_to(count.max));
                let keys = matches!(range.ty, Type::Map(_));
                done.decl = None;
                done.element = Some(if keys { Size::up_to(3 << 20) } else { range.known().element });
            }
            LoopKind::Map | LoopKind::TransformMap | LoopKind::TransformMapEntry => {
                done.size = Some(Size::up_to(count.max));
                done.element = Some(body.known().size);
            }
            LoopKind::All | LoopKind::Exists | LoopKind::ExistsOne => {}
        }
        done
    }

    pub(super) fn bind(&mut self, name: &str, value: Id, body: Id) -> Checked {
        let value = self.expr(value);
        let what = value.clone();
        let (inner, slot) = self.with(name, what, |checker, slot| (checker.expr(body), slot));
        let mut done = self.done(inner.ty.clone(), Op::Bind { slot, value: value.op, body: inner.op }, 0);
        done.cost = value.cost.plus(inner.cost);
        Checked { op: done.op, cost: done.cost, ..inner }
    }

    pub(super) fn opt_map(&mut self, operand: Id, name: &str, body: Id, flat: bool) -> Checked {
        let at = self.ast.node(operand).at;
        let of = self.expr(operand);
        let inner = match &of.ty {
            Type::Optional(inner) => (**inner).clone(),
            Type::Dyn => Type::Dyn,
            ty => {
                let message = format!("found no matching overload for 'hasValue' applied to '{ty}.()'");
                return self.error(at, message);
            }
        };
        let decl = of.decl.as_deref().and_then(|decl| decl.element.clone());
        let what = Checked { ty: inner, decl, ..of.clone() };
        let (body, slot) = self.with(name, what, |checker, slot| (checker.expr(body), slot));
        let ty = match (&body.ty, flat) {
            (ty, false) => Type::optional(ty.clone()),
            (Type::Optional(_) | Type::Dyn, true) => body.ty.clone(),
            (ty, true) => {
                let message = format!("expected type 'optional_type({ty})' but found '{ty}'");
                return self.error(at, message);
            }
        };
        let mut done = self.done(ty, Op::OptMap { operand: of.op, slot, body: body.op, flat }, 0);
        // The cost of hasValue, value and of, to which the macro expands.
        done.cost = of
            .cost
            .times(Estimate { min: 1, max: 2 })
            .plus(Estimate::up_to(3))
            .plus(Estimate::up_to(body.cost.max));
        let known = body.known();
        (done.size, done.element) = (Some(known.size), Some(known.element));
        done
    }
}
