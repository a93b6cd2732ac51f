//! Checks calls: resolves the function and selects its overload.

use super::{Checked, Checker};
use crate::{
    ast::{Expr, Id, Literal},
    cost::{self, Estimate, Known},
    library::{self, Function},
    plan::Op,
    types::{Params, Type},
};

/// Formats argument types for messages.
pub(super) fn signature(types: &[Type], member: bool) -> String {
    let (target, rest) = match types.split_first() {
        Some((target, rest)) if member => (format!("{target}."), rest),
        _ => (String::new(), types),
    };
    let rest: Vec<String> = rest.iter().map(Type::to_string).collect();
    format!("{target}({})", rest.join(", "))
}

impl Checker<'_> {
    pub(super) fn call(&mut self, at: u32, name: &str, target: Option<Id>, args: &[Id]) -> Checked {
        // `math.greatest(1, 2)` is a function with a qualified name.
        let qualified = target
            .and_then(|target| self.ast.dotted(target))
            .filter(|dotted| !self.is_field(dotted))
            .map(|dotted| format!("{}.{name}", dotted.trim_start_matches('.')))
            .and_then(|full| library::find(&full, false));
        let bare = name.trim_start_matches('.');
        let (function, target) = match qualified {
            Some(function) => (Some(function), None),
            None => (library::find(bare, target.is_some()), target),
        };
        let member = target.is_some();
        let mut checked = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            checked.push(self.expr(target));
        }
        for arg in args {
            self.mixed = bare == "format";
            let arg = self.expr(*arg);
            checked.push(arg);
        }
        self.mixed = false;
        let Some(function) = function else {
            if library::is_known(bare) {
                return self.no_overload(at, bare, &checked, member);
            }
            return self.error(at, format!("undeclared reference to '{bare}' (in container '')"));
        };
        let Some(ty) = overload(function, &checked) else {
            return self.no_overload(at, function.name, &checked, member);
        };
        self.literals(function, args);
        self.finish(function, ty, checked)
    }

    fn no_overload(&mut self, at: u32, name: &str, args: &[Checked], member: bool) -> Checked {
        let types: Vec<Type> = args.iter().map(|arg| arg.ty.clone()).collect();
        let types = signature(&types, member);
        self.error(at, format!("found no matching overload for '{name}' applied to '{types}'"))
    }

    fn finish(&mut self, function: &'static Function, ty: Type, args: Vec<Checked>) -> Checked {
        let known: Vec<Known> = args.iter().map(Checked::known).collect();
        let first = args.first().map(|arg| arg.ty.clone());
        let op = match (function.name, &args[..]) {
            ("orValue" | "or", [operand, other]) => {
                Op::Otherwise { operand: operand.op, other: other.op, flat: function.name == "or" }
            }
            _ => Op::Call { function, args: args.iter().map(|arg| arg.op).collect() },
        };
        let sum = args.iter().fold(Estimate::default(), |sum, arg| sum.plus(arg.cost));
        let mut done = self.done(ty, op, 0);
        done.cost = sum.plus(cost::of_call(function, &known, first.as_ref()));
        // An element of a declared value is declared, too.
        let looked_up = matches!(function.name, "_[_]" | "_[?_]" | "value" | "min" | "max");
        let inner = args.first().and_then(|arg| arg.decl.clone()).filter(|_| looked_up);
        done.decl = inner.and_then(|decl| decl.element.clone());
        if done.decl.is_none() {
            done.size = match done.ty {
                Type::String | Type::Bytes | Type::List(_) | Type::Map(_) | Type::Dyn | Type::Optional(_) => {
                    Some(cost::result_size(function, &known, first.as_ref()))
                }
                _ => None,
            };
            done.element = Some(cost::result_element(function, &known));
        }
        done
    }

    /// Checks literal arguments, such as patterns, at compile time.
    fn literals(&mut self, function: &Function, args: &[Id]) {
        let Some((id, Expr::Literal(Literal::String(text)))) =
            args.last().map(|id| (*id, self.ast.expr(*id)))
        else {
            return;
        };
        let good = match function.name {
            "duration" => crate::value::time::parse_duration(text).is_some(),
            "timestamp" => crate::value::time::parse_timestamp(text).is_some(),
            "matches" | "find" | "findAll" => match library::compile(text) {
                Ok(pattern) => {
                    self.plan.patterns.push((text.clone(), pattern));
                    true
                }
                Err(_) => false,
            },
            _ => true,
        };
        if !good {
            self.error(self.ast.node(id).at, format!("invalid {} argument", function.name));
        }
    }
}

/// Returns the result type of the matching overload; `None` if there is none.
fn overload(function: &Function, args: &[Checked]) -> Option<Type> {
    let mut found: Option<Type> = None;
    for (wanted, result) in function.overloads {
        let mut params = Params::default();
        let fits = wanted.len() == args.len()
            && wanted.iter().zip(args).all(|(wanted, arg)| wanted.fits(&arg.ty, &mut params));
        if fits {
            let result = result.result(&params);
            found = Some(match found {
                None => result,
                Some(before) => before.join(&result),
            });
        }
    }
    found
}
