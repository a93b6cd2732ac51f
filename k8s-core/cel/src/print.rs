//! Prints an expression as text with the same meaning.

use std::fmt::Write;

use super::{
    ast::{Ast, Expr, Id, Literal, Loop},
    parser::operator,
};

/// Precedences: an operand of lower precedence needs parentheses.
const CONDITIONAL: u8 = 0;
const OR: u8 = 1;
const AND: u8 = 2;
/// Offset of a binary operator's precedence.
const BINARY: u8 = 2;
const UNARY: u8 = 6;
const MEMBER: u8 = 7;

pub(super) fn print(ast: &Ast) -> String {
    let mut printer = Printer { ast, out: String::new() };
    printer.expr(ast.root, CONDITIONAL);
    printer.out
}

struct Printer<'a> {
    ast: &'a Ast,
    out: String,
}

fn strength(expr: &Expr) -> u8 {
    match expr {
        Expr::Conditional(..) => CONDITIONAL,
        Expr::Or(_) => OR,
        Expr::And(_) => AND,
        Expr::Call { function, .. } => match function.as_str() {
            "!_" | "-_" => UNARY,
            name => operator(name).map_or(MEMBER, |(_, strength)| BINARY + strength),
        },
        // A negative literal is printed with unary precedence.
        Expr::Literal(Literal::Int(n)) if *n < 0 => UNARY,
        Expr::Literal(Literal::Double(n)) if n.is_sign_negative() => UNARY,
        _ => MEMBER,
    }
}

impl Printer<'_> {
    fn expr(&mut self, id: Id, least: u8) {
        let ast = self.ast;
        let expr = ast.expr(id);
        if strength(expr) < least {
            self.out.push('(');
            self.bare(expr);
            self.out.push(')');
        } else {
            self.bare(expr);
        }
    }

    fn list(&mut self, ids: &[Id]) {
        for (i, id) in ids.iter().enumerate() {
            if i > 0 {
                self.out.push_str(", ");
            }
            self.expr(*id, CONDITIONAL);
        }
    }

    fn chain(&mut self, terms: &[Id], sign: &str, least: u8) {
        for (i, term) in terms.iter().enumerate() {
            if i > 0 {
                self.out.push_str(sign);
            }
            self.expr(*term, least);
        }
    }

    fn separate<T>(&mut self, all: &[T], one: impl Fn(&mut Self, &T)) {
        for (i, item) in all.iter().enumerate() {
            if i > 0 {
                self.out.push_str(", ");
            }
            one(self, item);
        }
    }

    fn mark(&mut self, optional: bool) {
        if optional {
            self.out.push('?');
        }
    }

    fn bare(&mut self, expr: &Expr) {
        match expr {
            Expr::Literal(literal) => self.literal(literal),
            Expr::Ident(name) => self.out.push_str(name),
            Expr::Select { operand, field, optional } => {
                self.expr(*operand, MEMBER);
                self.out.push('.');
                self.mark(*optional);
                self.out.push_str(field);
            }
            Expr::Has { operand, field } => {
                self.out.push_str("has(");
                self.expr(*operand, MEMBER);
                let _ = write!(self.out, ".{field})");
            }
            Expr::Call { function, target, args } => self.call(function, *target, args),
            Expr::And(terms) => self.chain(terms, " && ", AND + 1),
            Expr::Or(terms) => self.chain(terms, " || ", OR + 1),
            Expr::Conditional(test, yes, no) => {
                self.expr(*test, OR);
                self.out.push_str(" ? ");
                self.expr(*yes, OR);
                self.out.push_str(" : ");
                self.expr(*no, CONDITIONAL);
            }
            Expr::List(elements) => {
                self.out.push('[');
                self.separate(elements, |p, (id, optional)| {
                    p.mark(*optional);
                    p.expr(*id, CONDITIONAL);
                });
                self.out.push(']');
            }
            Expr::Map(entries) => {
                self.out.push('{');
                self.separate(entries, |p, (key, value, optional)| {
                    p.mark(*optional);
                    p.expr(*key, CONDITIONAL);
                    p.out.push_str(": ");
                    p.expr(*value, CONDITIONAL);
                });
                self.out.push('}');
            }
            Expr::Struct { name, fields } => {
                self.out.push_str(name);
                self.out.push('{');
                self.separate(fields, |p, (field, value, optional)| {
                    p.mark(*optional);
                    let _ = write!(p.out, "{field}: ");
                    p.expr(*value, CONDITIONAL);
                });
                self.out.push('}');
            }
            Expr::Loop(one) => self.loop_(one),
            Expr::Bind { name, value, body } => {
                let _ = write!(self.out, "cel.bind({name}, ");
                self.list(&[*value, *body]);
                self.out.push(')');
            }
            Expr::OptMap { operand, name, body, flat } => {
                self.expr(*operand, MEMBER);
                let _ = write!(self.out, ".{}({name}, ", if *flat { "optFlatMap" } else { "optMap" });
                self.expr(*body, CONDITIONAL);
                self.out.push(')');
            }
        }
    }

    fn loop_(&mut self, one: &Loop) {
        self.expr(one.range, MEMBER);
        let _ = write!(self.out, ".{}({}, ", one.name, one.variable);
        if let Some(second) = &one.second {
            let _ = write!(self.out, "{second}, ");
        }
        if let Some(filter) = one.filter {
            self.expr(filter, CONDITIONAL);
            self.out.push_str(", ");
        }
        self.expr(one.body, CONDITIONAL);
        self.out.push(')');
    }

    fn call(&mut self, function: &str, target: Option<Id>, args: &[Id]) {
        match (function, args) {
            ("!_", [operand]) => {
                self.out.push('!');
                self.expr(*operand, UNARY + 1);
            }
            ("-_", [operand]) => {
                self.out.push('-');
                let start = self.out.len();
                self.expr(*operand, UNARY + 1);
                // Parentheses: a minus before a number would become part of the literal.
                if self.out.get(start..).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
                    self.out.insert(start, '(');
                    self.out.push(')');
                }
            }
            ("_[_]" | "_[?_]", [operand, index]) => {
                self.expr(*operand, MEMBER);
                self.out.push('[');
                self.mark(function == "_[?_]");
                self.expr(*index, CONDITIONAL);
                self.out.push(']');
            }
            (_, [left, right]) if let Some((sign, strength)) = operator(function) => {
                self.expr(*left, BINARY + strength);
                let _ = write!(self.out, " {sign} ");
                self.expr(*right, BINARY + strength + 1);
            }
            _ => {
                if let Some(target) = target {
                    self.expr(target, MEMBER);
                    self.out.push('.');
                }
                let _ = write!(self.out, "{function}(");
                self.list(args);
                self.out.push(')');
            }
        }
    }

    fn literal(&mut self, literal: &Literal) {
        let _ = match literal {
            Literal::Null => write!(self.out, "null"),
            Literal::Bool(b) => write!(self.out, "{b}"),
            Literal::Int(n) => write!(self.out, "{n}"),
            Literal::Uint(n) => write!(self.out, "{n}u"),
            Literal::Double(n) => write!(self.out, "{n:?}"),
            Literal::String(text) => {
                self.out.push('"');
                for c in text.chars() {
                    match c {
                        '"' => self.out.push_str("\\\""),
                        '\\' => self.out.push_str("\\\\"),
                        '\n' => self.out.push_str("\\n"),
                        c if c.is_control() => {
                            let _ = write!(self.out, "\\U{:08x}", u32::from(c));
                        }
                        c => self.out.push(c),
                    }
                }
                self.out.push('"');
                Ok(())
            }
            Literal::Bytes(bytes) => {
                self.out.push_str("b\"");
                for b in bytes {
                    let _ = write!(self.out, "\\x{b:02x}");
                }
                self.out.push('"');
                Ok(())
            }
        };
    }
}
