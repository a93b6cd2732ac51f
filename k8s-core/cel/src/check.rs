//! Type checker: determines the type and cost of every expression, and builds the execution plan.

mod calls;
mod loops;
mod objects;

use std::sync::Arc;

use super::{
    ast::{Ast, Expr, Id, Literal},
    cost::{self, Estimate, Known, LIST, MAP, Size},
    error::{CompileError, CompileErrors},
    library,
    names::unescape,
    plan::{FieldName, Op, OpId, Plan},
    types::Type,
    types::declared::Decl,
    value::{Text, Value},
};

/// An expression with its result type, cost estimate and plan.
pub(super) struct Program {
    pub(super) plan: Plan,
    pub(super) ty: Type,
    pub(super) estimate: Estimate,
}

/// Maximum number of reported errors.
const MOST: usize = 30;

/// Checks a tree with the declared variables.
pub(super) fn check(
    ast: &Ast,
    text: &str,
    variables: &[(String, Arc<Decl>)],
    makes_objects: bool,
) -> Result<Program, CompileErrors> {
    let mut checker = Checker {
        ast,
        text,
        variables,
        scopes: Vec::new(),
        plan: Plan::default(),
        errors: Vec::new(),
        mixed: false,
        makes_objects,
    };
    let root = checker.expr(ast.root);
    checker.plan.root = root.op;
    let Checker { plan, mut errors, .. } = checker;
    if errors.is_empty() {
        return Ok(Program { plan, ty: root.ty, estimate: root.cost });
    }
    errors.sort_by_key(|error| (error.line, error.column));
    Err(CompileErrors(errors))
}

/// Result of checking an expression.
#[derive(Clone, Debug)]
struct Checked {
    ty: Type,
    op: OpId,
    cost: Estimate,
    /// Declaration, if the value comes from a variable.
    decl: Option<Arc<Decl>>,
    /// Size, if the value does not come from a variable.
    size: Option<Size>,
    element: Option<Size>,
}

impl Checked {
    fn known(&self) -> Known {
        let size = self
            .size
            .or_else(|| declared_size(self.decl.as_deref()))
            .unwrap_or_else(|| cost::of_type(&self.ty));
        let inner = self.decl.as_deref().and_then(|decl| decl.element.as_deref());
        let element = self.element.or_else(|| declared_size(inner));
        let element = element.unwrap_or_else(|| match &self.ty {
            Type::List(of) => cost::of_type(of),
            Type::Map(entry) => cost::of_type(&entry.1),
            _ => Size::up_to(u64::MAX),
        });
        Known { size, element }
    }
}

fn declared_size(decl: Option<&Decl>) -> Option<Size> {
    let decl = decl?;
    Some(match &decl.ty {
        Type::String | Type::Bytes | Type::List(_) | Type::Map(_) | Type::Dyn => Size::up_to(decl.max),
        Type::Optional(_) => return declared_size(decl.element.as_deref()),
        _ => Size::fixed(1),
    })
}

/// A name bound by a macro.
struct Scope {
    name: String,
    what: Checked,
    slot: usize,
}

struct Checker<'a> {
    ast: &'a Ast,
    text: &'a str,
    variables: &'a [(String, Arc<Decl>)],
    scopes: Vec<Scope>,
    plan: Plan,
    errors: Vec<CompileError>,
    /// The next list literal may have elements of different types.
    mixed: bool,
    makes_objects: bool,
}

impl Checker<'_> {
    fn error(&mut self, at: u32, message: impl Into<String>) -> Checked {
        let error = CompileError::at(self.text, at as usize, message);
        if self.errors.len() < MOST && !self.errors.contains(&error) {
            self.errors.push(error);
        }
        self.done(Type::Dyn, Op::Const(Value::Null), 0)
    }

    fn op(&mut self, op: Op) -> OpId {
        self.plan.ops.push(op);
        OpId::try_from(self.plan.ops.len() - 1).unwrap_or(OpId::MAX)
    }

    fn done(&mut self, ty: Type, op: Op, cost: u64) -> Checked {
        let op = self.op(op);
        Checked { ty, op, cost: Estimate::fixed(cost), decl: None, size: None, element: None }
    }

    fn expr(&mut self, id: Id) -> Checked {
        let node = self.ast.node(id);
        let at = node.at;
        let mixed = std::mem::take(&mut self.mixed);
        match &node.expr {
            Expr::Literal(literal) => self.literal(literal),
            Expr::Ident(name) => self.ident(name, at),
            Expr::Select { operand, field, optional } => self.select(id, *operand, field, *optional),
            Expr::Has { operand, field } => self.has(at, *operand, field),
            Expr::Call { function, target, args } => self.call(at, function, *target, args),
            Expr::And(terms) => self.logic(at, terms, true),
            Expr::Or(terms) => self.logic(at, terms, false),
            Expr::Conditional(test, yes, no) => self.conditional(at, [*test, *yes, *no]),
            Expr::List(elements) => self.list(elements, mixed),
            Expr::Map(entries) => self.map(entries),
            Expr::Struct { name, fields } => self.object(at, name, fields),
            Expr::Loop(one) => self.loop_(one, at),
            Expr::Bind { name, value, body } => self.bind(name, *value, *body),
            Expr::OptMap { operand, name, body, flat } => self.opt_map(*operand, name, *body, *flat),
        }
    }

    fn literal(&mut self, literal: &Literal) -> Checked {
        let (ty, value, size) = match literal {
            Literal::Null => (Type::Null, Value::Null, 1),
            Literal::Bool(b) => (Type::Bool, Value::Bool(*b), 1),
            Literal::Int(n) => (Type::Int, Value::Int(*n), 1),
            Literal::Uint(n) => (Type::Uint, Value::Uint(*n), 1),
            Literal::Double(n) => (Type::Double, Value::Double(*n), 1),
            Literal::String(text) => {
                (Type::String, Value::String(Text::Shared(text.as_str().into())), text.len() as u64)
            }
            Literal::Bytes(bytes) => (Type::Bytes, Value::Bytes(bytes.as_slice().into()), bytes.len() as u64),
        };
        let mut done = self.done(ty, Op::Const(value), 0);
        done.size = Some(Size::fixed(size));
        done
    }

    /// Resolves a name to a local, a variable or a type.
    fn resolve(&mut self, name: &str) -> Option<Checked> {
        let rooted = name.strip_prefix('.');
        if rooted.is_none()
            && let Some(scope) = self.scopes.iter().rev().find(|scope| scope.name == name)
        {
            let (mut what, slot) = (scope.what.clone(), scope.slot);
            what.op = self.op(Op::Local(slot));
            what.cost = Estimate::fixed(1);
            return Some(what);
        }
        let name = rooted.unwrap_or(name);
        if let Some((_, decl)) = self.variables.iter().find(|(known, _)| known == name) {
            let used = self.plan.variables.iter().position(|(known, _)| known == name);
            let index = used.unwrap_or_else(|| {
                self.plan.variables.push((name.to_owned(), decl.clone()));
                self.plan.variables.len() - 1
            });
            let mut done = self.done(decl.ty.clone(), Op::Variable(index), 1);
            done.decl = Some(decl.clone());
            return Some(done);
        }
        let name = library::type_name(name)?;
        Some(self.done(Type::Type, Op::Const(Value::Type(Text::Borrowed(name))), 1))
    }

    fn ident(&mut self, name: &str, at: u32) -> Checked {
        match self.resolve(name) {
            Some(found) => found,
            None => {
                let name = name.strip_prefix('.').unwrap_or(name);
                self.error(at, format!("undeclared reference to '{name}' (in container '')"))
            }
        }
    }

    /// Returns true if `a.b.c` is a field of a local or of a variable `a`: no variable is named `a.b.c`.
    fn is_field(&self, dotted: &str) -> bool {
        let name = dotted.trim_start_matches('.');
        let head = name.split('.').next().unwrap_or_default();
        let declared = |name: &str| self.variables.iter().any(|(known, _)| known == name);
        self.scopes.iter().any(|scope| scope.name == head) || (declared(head) && !declared(name))
    }

    fn select(&mut self, id: Id, operand: Id, field: &str, optional: bool) -> Checked {
        if let Some(name) = self.ast.dotted(id).filter(|name| !self.is_field(name))
            && let Some(found) = self.resolve(&name)
        {
            return found;
        }
        let at = self.ast.node(id).at;
        let of = self.expr(operand);
        let Some((ty, decl)) = self.field(&of, field, at) else {
            return self.done(Type::Dyn, Op::Const(Value::Null), 0);
        };
        let chained = matches!(of.ty, Type::Optional(_));
        let wrap = chained || optional;
        let op = Op::Select { operand: of.op, field: field_name(field), optional };
        let mut done = self.done(if wrap { Type::optional(ty) } else { ty }, op, 1);
        done.cost = done.cost.plus(of.cost);
        done.size = if decl.is_none() { of.element } else { None };
        done.decl = if wrap { decl.map(|decl| Arc::new(Decl::clone(&decl).optional())) } else { decl };
        done
    }

    /// Returns the type of a field. `None`: no such field; the error is recorded.
    fn field(&mut self, of: &Checked, field: &str, at: u32) -> Option<(Type, Option<Arc<Decl>>)> {
        let (ty, decl) = match &of.ty {
            Type::Optional(inner) => {
                ((**inner).clone(), of.decl.as_ref().and_then(|decl| decl.element.clone()))
            }
            ty => (ty.clone(), of.decl.clone()),
        };
        match &ty {
            Type::Dyn => Some((Type::Dyn, None)),
            Type::Map(entry) => Some((entry.1.clone(), decl.and_then(|decl| decl.element.clone()))),
            Type::Object(object) => match object.field(field) {
                Some(found) => Some((found.decl.ty.clone(), Some(found.decl.clone()))),
                None if object.is_open() => Some((Type::Dyn, Some(Arc::new(Decl::any())))),
                None => {
                    self.error(at, format!("undefined field '{field}'"));
                    None
                }
            },
            ty => {
                self.error(at, format!("type '{ty}' does not support field selection"));
                None
            }
        }
    }

    fn has(&mut self, at: u32, operand: Id, field: &str) -> Checked {
        let of = self.expr(operand);
        self.field(&of, field, at);
        let mut done = self.done(Type::Bool, Op::Has { operand: of.op, field: field_name(field) }, 0);
        done.cost = of.cost;
        done
    }

    fn logic(&mut self, at: u32, terms: &[Id], and: bool) -> Checked {
        let mut ops = Vec::with_capacity(terms.len());
        let mut types = Vec::new();
        let mut total: Option<Estimate> = None;
        for term in terms {
            let term = self.expr(*term);
            ops.push(term.op);
            // Short-circuit: the first term may decide.
            total = Some(match total {
                None => term.cost,
                Some(total) => Estimate { min: total.min, max: total.plus(term.cost).max },
            });
            types.push(term.ty);
        }
        if let Some(wrong) = types.iter().position(|ty| !Type::Bool.accepts(ty) || matches!(ty, Type::Null)) {
            let name = if and { "_&&_" } else { "_||_" };
            let pair = if wrong == 0 { types.get(0..2) } else { types.get(wrong - 1..=wrong) };
            let pair = calls::signature(pair.unwrap_or_default(), false);
            return self.error(at, format!("found no matching overload for '{name}' applied to '{pair}'"));
        }
        let op = if and { Op::And(ops.into()) } else { Op::Or(ops.into()) };
        let mut done = self.done(Type::Bool, op, 0);
        done.cost = total.unwrap_or_default();
        done
    }

    fn conditional(&mut self, at: u32, parts: [Id; 3]) -> Checked {
        let [test, yes, no] = parts.map(|id| self.expr(id));
        if !Type::Bool.accepts(&test.ty) || !yes.ty.accepts(&no.ty) {
            let types = calls::signature(&[test.ty, yes.ty, no.ty], false);
            return self.error(at, format!("found no matching overload for '_?_:_' applied to '{types}'"));
        }
        let mut done = self.done(yes.ty.join(&no.ty), Op::Conditional(test.op, yes.op, no.op), 0);
        done.cost = test.cost.plus(yes.cost.or(no.cost));
        let (a, b) = (yes.known(), no.known());
        (done.size, done.element) = (Some(a.size.or(b.size)), Some(a.element.or(b.element)));
        done
    }

    /// Unifies the type of the next list element with that of the previous ones.
    fn homogeneous(&mut self, known: &mut Option<Type>, next: &Checked, at: u32, mixed: bool) {
        match known {
            None => *known = Some(next.ty.clone()),
            Some(ty) if ty.accepts(&next.ty) => *known = Some(ty.join(&next.ty)),
            Some(_) if mixed => *known = Some(Type::Dyn),
            Some(ty) => {
                let message = format!("expected type '{ty}' but found '{}'", next.ty);
                self.error(at, message);
            }
        }
    }

    /// Returns the type of an element; for an optional element that of its value.
    fn unwrapped(&mut self, mut checked: Checked, optional: bool, at: u32) -> Checked {
        if optional {
            match &checked.ty {
                Type::Optional(of) => checked.ty = (**of).clone(),
                Type::Dyn => {}
                ty => {
                    let message = format!("expected type 'optional_type({ty})' but found '{ty}'");
                    self.error(at, message);
                }
            }
        }
        checked
    }

    fn list(&mut self, elements: &[(Id, bool)], mixed: bool) -> Checked {
        let mut ops = Vec::with_capacity(elements.len());
        let (mut ty, mut total, mut size): (Option<Type>, Estimate, Option<Size>) =
            (None, Estimate::fixed(LIST), None);
        for (id, optional) in elements {
            let at = self.ast.node(*id).at;
            let element = self.expr(*id);
            let element = self.unwrapped(element, *optional, at);
            self.homogeneous(&mut ty, &element, at, mixed);
            total = total.plus(element.cost);
            let known = element.known().size;
            size = Some(size.map_or(known, |size| size.or(known)));
            ops.push((element.op, *optional));
        }
        let constant: Option<Vec<Value<'static>>> = ops
            .iter()
            .map(|(op, optional)| match self.plan.ops.get(*op as usize) {
                Some(Op::Const(value)) if !optional => Some(value.clone()),
                _ => None,
            })
            .collect();
        let op = match constant {
            Some(values) if !values.is_empty() => Op::Const(values.into()),
            _ => Op::List(ops.into()),
        };
        let mut done = self.done(Type::list(ty.unwrap_or(Type::Dyn)), op, 0);
        let least = elements.iter().filter(|(_, optional)| !optional).count() as u64;
        done.cost = total;
        done.size = Some(Size { min: least, max: elements.len() as u64 });
        done.element = Some(size.unwrap_or_default());
        done
    }

    fn map(&mut self, entries: &[(Id, Id, bool)]) -> Checked {
        let mut ops = Vec::with_capacity(entries.len());
        let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
        let (mut total, mut size): (Estimate, Option<Size>) = (Estimate::fixed(MAP), None);
        for (key, value, optional) in entries {
            let (key_at, value_at) = (self.ast.node(*key).at, self.ast.node(*value).at);
            let (key, value) = (self.expr(*key), self.expr(*value));
            let value = self.unwrapped(value, *optional, value_at);
            if !matches!(key.ty, Type::Bool | Type::Int | Type::Uint | Type::String | Type::Dyn) {
                self.error(key_at, format!("unsupported key type: {}", key.ty));
            }
            self.homogeneous(&mut keys, &key, key_at, false);
            self.homogeneous(&mut values, &value, value_at, false);
            total = total.plus(key.cost).plus(value.cost);
            let known = value.known().size;
            size = Some(size.map_or(known, |size| size.or(known)));
            ops.push((key.op, value.op, *optional));
        }
        let ty = Type::Map(Arc::new((keys.unwrap_or(Type::Dyn), values.unwrap_or(Type::Dyn))));
        let mut done = self.done(ty, Op::Map(ops.into()), 0);
        done.cost = total;
        done.size = Some(Size::up_to(entries.len() as u64));
        done.element = Some(size.unwrap_or_default());
        done
    }
}

fn field_name(name: &str) -> FieldName {
    let property = unescape(name).unwrap_or_else(|| name.to_owned());
    FieldName { name: name.into(), property: property.into() }
}
