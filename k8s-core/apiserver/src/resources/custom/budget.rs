//! How much work a CEL rule can be, at most, before it is run.
//!
//! The evaluator cannot be stopped half-way, so a rule is only run on a value when a bound on its work is within the budget. The bound comes from the
//! rule's shape (how deep its loops are nested, how many operations it has, what makes texts longer) and the value's size (its widest list or
//! map, its bytes): a loop goes over a list or map of the value or over what was made from one, and linear operations over parts of a value add up to
//! its bytes for each time they are done.

use kube_cel::cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, MapExpr, StructExpr};
use serde_json::Value;

/// Most steps that a rule may need. A step takes some 100 ns.
const STEPS: u64 = 10_000_000;
/// Longest text that a rule may make, bytes.
const LONGEST: u64 = 16 << 20;
/// Longest rule, bytes.
const MAX_RULE: usize = 8 << 10;
/// How deep a rule's parentheses may be nested, and how long its chains of operators may be.
const MAX_NESTING: usize = 48;
const MAX_OPERATORS: usize = 384;

/// Whether a rule's text is one that the recursive parser can take.
///
/// # Errors
/// What is too much about it.
pub(super) fn check_text(rule: &str) -> Result<(), String> {
    if rule.len() > MAX_RULE {
        return Err(format!("may not be longer than {MAX_RULE} bytes"));
    }
    let (mut depth, mut deepest, mut operators) = (0usize, 0usize, 0usize);
    for c in rule.chars() {
        match c {
            '(' | '[' | '{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '+' | '-' | '*' | '/' | '%' | '!' | '?' | '|' | '&' | '<' | '>' | '=' | '.' => operators += 1,
            _ => {}
        }
    }
    if deepest > MAX_NESTING {
        return Err(format!("may not be nested deeper than {MAX_NESTING}"));
    }
    if operators > MAX_OPERATORS {
        return Err(format!("may not have more than {MAX_OPERATORS} operators"));
    }
    Ok(())
}

/// What decides how much work a rule is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Shape {
    operations: u64,
    /// How deep loops are nested.
    depth: u32,
    /// Sums: each makes a text or a list at most twice as long as the longest there is.
    sums: u32,
    /// Calls that can make a text longer by a factor.
    growing: u32,
    /// Calls that make one text of a list of texts.
    joins: u32,
    /// The longest literal, bytes, or entries of a literal range.
    literal: u64,
    /// It takes texts apart, or has a range that is not literal.
    splits: bool,
}

/// What a pattern that is not written in the rule may take to compile, steps.
const PATTERN: u64 = 50_000;

impl Shape {
    /// The shape of an expression that is evaluated inside of `around` loops.
    pub(super) fn of(expression: &IdedExpr, around: u32) -> Self {
        let mut shape = Shape { depth: around, ..Shape::default() };
        shape.visit(expression, around, "");
        shape
    }

    fn repeated(&mut self, parts: usize) {
        self.sums += parts.checked_next_power_of_two().map_or(usize::BITS, usize::trailing_zeros);
    }

    fn deep(&mut self, depth: u32) {
        self.depth = self.depth.max(depth);
    }

    /// `accumulated` is the name of the innermost loop's own result: what the loop adds to that is counted with the loop.
    fn visit(&mut self, expression: &IdedExpr, loops: u32, accumulated: &str) {
        self.operations += 1;
        match &expression.expr {
            Expr::Call(call) => {
                self.call(call, loops, accumulated);
                call.target.iter().for_each(|target| self.visit(target, loops, accumulated));
                call.args.iter().for_each(|arg| self.visit(arg, loops, accumulated));
            }
            Expr::Comprehension(one) => {
                // A list that grows by one element is copied for each of them.
                let copies = matches!(one.accu_init.expr, Expr::List(_) | Expr::Map(_));
                self.deep(loops + 1 + u32::from(copies));
                self.visit(&one.iter_range, loops, accumulated);
                self.visit(&one.accu_init, loops, accumulated);
                self.visit(&one.result, loops, &one.accu_var);
                self.visit(&one.loop_cond, loops + 1, &one.accu_var);
                self.visit(&one.loop_step, loops + 1, &one.accu_var);
            }
            Expr::List(list) => {
                self.literal = self.literal.max(list.elements.len() as u64);
                // What is put into a list several times makes it that much longer to go through.
                let parts = list.elements.iter().filter(|e| !matches!(e.expr, Expr::Literal(_))).count();
                self.repeated(parts);
                list.elements.iter().for_each(|element| self.visit(element, loops, accumulated));
            }
            Expr::Select(select) => self.visit(&select.operand, loops, accumulated),
            Expr::Literal(LiteralValue::String(text)) => {
                self.literal = self.literal.max(text.inner().len() as u64);
            }
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
            Expr::Map(MapExpr { entries }) | Expr::Struct(StructExpr { entries, .. }) => {
                self.repeated(entries.len());
                for entry in entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) => {
                            self.visit(&entry.key, loops, accumulated);
                            self.visit(&entry.value, loops, accumulated);
                        }
                        EntryExpr::StructField(field) => self.visit(&field.value, loops, accumulated),
                    }
                }
            }
        }
    }

    fn call(&mut self, call: &CallExpr, loops: u32, accumulated: &str) {
        let last = call.args.last().map(|a| &a.expr);
        let is_accumulated = |e: &IdedExpr| matches!(&e.expr, Expr::Ident(name) if name == accumulated);
        match call.func_name.as_str() {
            "_+_" if call.args.first().is_some_and(is_accumulated) => {}
            "_+_" => self.sums += 1,
            "replace" | "format" | "quote" | "strings.quote" => self.growing += 1,
            "join" => self.joins += 1,
            "split" | "findAll" => self.splits = true,
            // Of a list of the value it gives no more than the value has; of one that the rule makes it could give anything.
            "flatten" => match &call.target {
                Some(target) if is_path(target) => self.splits = true,
                _ => self.literal = u64::MAX,
            },
            "range" | "lists.range" => match last {
                Some(Expr::Literal(LiteralValue::Int(n))) => {
                    self.literal = self.literal.max(n.inner().unsigned_abs());
                }
                _ => self.literal = u64::MAX,
            },
            // They look at every element, or at every pair.
            "@in" if !matches!(last, Some(Expr::List(_))) => self.deep(loops + 1),
            "matches" | "find" => {
                self.deep(loops + 1);
                if !matches!(last, Some(Expr::Literal(_))) {
                    self.operations += PATTERN;
                }
            }
            "contains" | "indexOf" | "lastIndexOf" | "isSorted" | "min" | "max" | "sum" => {
                self.deep(loops + 1)
            }
            "sort" | "distinct" | "equivalent" | "intersects" | "sets.contains" | "sets.equivalent"
            | "sets.intersects" => self.deep(loops + 2),
            _ => {}
        }
    }

    /// Whether it has more than so many operations.
    pub(super) fn is_larger_than(&self, operations: u64) -> bool {
        self.operations > operations
    }

    /// Whether the work for a value is within the budget.
    pub(super) fn fits(&self, size: Size) -> bool {
        self.steps(size).is_some_and(|steps| steps <= STEPS)
    }

    /// A bound on the steps for a value; `None`: it could make a text or list of any length.
    pub(super) fn steps(&self, size: Size) -> Option<u64> {
        if self.literal > STEPS {
            return None;
        }
        let doubled = 1u64.checked_shl(self.sums).unwrap_or(u64::MAX);
        let widest = size.widest.max(self.literal).max(1).saturating_mul(doubled);
        let longest = (self.literal.min(1 << 20) + 2)
            .saturating_pow(self.growing)
            .saturating_mul(widest.saturating_pow(self.joins))
            .saturating_mul(size.bytes.max(self.literal).max(1))
            .saturating_mul(doubled);
        if longest > LONGEST {
            return None;
        }
        let widest = if self.splits { widest.max(longest) } else { widest };
        let loops = widest.saturating_pow(self.depth);
        let linear = widest.saturating_pow(self.depth.saturating_sub(1)).saturating_mul(longest / 64);
        Some(self.operations.saturating_mul(loops.saturating_add(linear)))
    }
}

/// Whether an expression only names a part of the value.
fn is_path(expression: &IdedExpr) -> bool {
    match &expression.expr {
        Expr::Ident(name) => name == "self" || name == "oldSelf",
        Expr::Select(select) => is_path(&select.operand),
        _ => false,
    }
}

/// What of a value's size decides how much work rules over it are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Size {
    /// The most entries that a list or map in it has.
    widest: u64,
    /// About the bytes of its JSON.
    bytes: u64,
}

impl Size {
    /// Of two values together.
    pub(super) fn of(value: &Value, old: Option<&Value>) -> Self {
        let mut size = Size::default();
        size.add(value);
        old.into_iter().for_each(|old| size.add(old));
        size
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::Array(items) => {
                self.widest = self.widest.max(items.len() as u64);
                self.bytes += items.len() as u64;
                items.iter().for_each(|item| self.add(item));
            }
            Value::Object(map) => {
                self.widest = self.widest.max(map.len() as u64);
                for (key, value) in map {
                    self.bytes += key.len() as u64 + 4;
                    self.add(value);
                }
            }
            Value::String(text) => self.bytes += text.len() as u64,
            Value::Null | Value::Bool(_) | Value::Number(_) => self.bytes += 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube_cel::cel::Program;
    use serde_json::json;

    use super::*;

    fn fits(rule: &str, value: &Value) -> bool {
        let program = Program::compile(rule).unwrap();
        Shape::of(program.expression(), 0).fits(Size::of(value, None))
    }

    #[test]
    fn what_people_write_fits_and_what_runs_for_hours_does_not() {
        let items = |n: usize| json!({"items": vec![json!({"name": "abcdefgh", "port": 80}); n]});
        for rule in [
            "self.items.size() > 0",
            "self.items.all(x, x.name.startsWith('a') && x.port in [80, 443])",
            "self.items.all(x, self.items.exists_one(y, x.name == y.name))",
            "self.items.map(x, x.name).join(',').size() < 100",
        ] {
            assert!(fits(rule, &items(64)), "{rule}");
        }
        assert!(fits("self.items.all(x, x.port > 0)", &items(20_000)));
        for rule in [
            "self.items.all(x, self.items.all(y, self.items.all(z, x.port + y.port + z.port > 0)))",
            "self.items.all(x, self.items.all(y, x.name == y.name))",
            "self.items.map(x, x.port + 1).size() > 0",
            "self.items.map(x, self.items).flatten().size() > 0",
            "[self.items[0].name].map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x)[0] != ''",
            "self.items.exists(x, 'abc'.matches(x.name))",
            "[self.items].map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]).map(v, [v, v]) != []",
            "{'a': self.items.all(x, self.items.all(y, x.name == y.name))}.a",
            "lists.range(1000000000).size() > 0",
            "self.items[0].name.replace('a', 'aaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaa').size() > 0",
        ] {
            assert!(!fits(rule, &items(20_000)), "{rule}");
        }
    }

    #[test]
    fn texts_that_the_parser_could_not_take() {
        assert!(check_text("self.a > (1 + 2)").is_ok());
        assert!(check_text(&"(".repeat(1000)).is_err());
        assert!(check_text(&"!".repeat(1000)).is_err());
        assert!(check_text(&"a".repeat(10_000)).is_err());
    }
}
