//! The part of jq that keys of Stages use: paths, iteration, `select`, comparisons, `and`, `or`, `not`,
//! `length`, `//`, literals, parentheses and `|`.
//!
//! Guarantees: a query of any text is parsed or refused with its place. Its nesting, its operations and the
//! values that it makes are bounded ([`DEEPEST`], [`MOST_OPERATIONS`], [`MOST_VALUES`]). Evaluation copies
//! nothing of the object. As in kwok, an error while it is evaluated (iteration of null, too many values)
//! yields no values, and null is no value.

use std::borrow::Cow;

use serde_json::Value;

/// Deepest nesting of parentheses.
const DEEPEST: usize = 64;
/// Most operations of a query. Each can be nested in the next, so this bounds recursion too.
const MOST_OPERATIONS: usize = 256;
/// Most values that the operations of one evaluation make together.
const MOST_VALUES: usize = 10_000;
/// What the comparison of two lists or objects costs, in values.
const COMPARISON: usize = 100;
/// Characters of a text that a refusal repeats.
const SHOWN: usize = 60;

static NULL: Value = Value::Null;
static TRUE: Value = Value::Bool(true);
static FALSE: Value = Value::Bool(false);

/// A parsed query.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Query(Term);

#[derive(Clone, Debug, PartialEq)]
enum Term {
    This,
    Literal(Value),
    Field(Box<Term>, String),
    Index(Box<Term>, i64),
    Each(Box<Term>),
    /// Errors inside yield nothing.
    Try(Box<Term>),
    Pipe(Box<Term>, Box<Term>),
    Either(Box<Term>, Box<Term>),
    Both(Box<Term>, Op, Box<Term>),
    Select(Box<Term>),
    Not,
    Length,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
}

/// A value cannot be used as the query wants, or there are too many.
struct Failed;

/// A part of the object or of the query; owned numbers are lengths.
type Found<'a> = Cow<'a, Value>;

impl Query {
    /// # Errors
    /// The text is not of the supported part; the message has the place.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0, depth: 0, operations: 0 };
        let term = parser.pipe()?;
        parser.space();
        if parser.at < text.len() {
            return Err(parser.refuse("jq that is not supported"));
        }
        Ok(Query(term))
    }

    /// Returns the values that are not null; none after an error.
    pub(crate) fn values<'a>(&'a self, input: &'a Value) -> Vec<Cow<'a, Value>> {
        let mut evaluation = Evaluation { left: MOST_VALUES, exhausted: false };
        let mut all = evaluation.run(&self.0, input).unwrap_or_default();
        if evaluation.exhausted {
            return Vec::new();
        }
        all.retain(|value| !value.is_null());
        all
    }
}

fn truthy(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

fn truth(holds: bool) -> Found<'static> {
    Cow::Borrowed(if holds { &TRUE } else { &FALSE })
}

struct Evaluation {
    /// Values that may still be made.
    left: usize,
    /// More were wanted. Neither `?` nor `//` makes up for it.
    exhausted: bool,
}

impl Evaluation {
    fn charge(&mut self, values: usize) -> Result<(), Failed> {
        match self.left.checked_sub(values) {
            Some(left) if !self.exhausted => {
                self.left = left;
                Ok(())
            }
            _ => {
                self.exhausted = true;
                Err(Failed)
            }
        }
    }

    fn one<'a>(&mut self, value: &'a Value) -> Result<Vec<Found<'a>>, Failed> {
        self.charge(1)?;
        Ok(vec![Cow::Borrowed(value)])
    }

    fn run<'a>(&mut self, term: &'a Term, input: &'a Value) -> Result<Vec<Found<'a>>, Failed> {
        match term {
            Term::This => self.one(input),
            Term::Literal(value) => self.one(value),
            Term::Field(of, name) => self.parts(of, input, |value| match value {
                Value::Null => Ok(&NULL),
                Value::Object(map) => Ok(map.get(name).unwrap_or(&NULL)),
                _ => Err(Failed),
            }),
            Term::Index(of, at) => self.parts(of, input, |value| match value {
                Value::Null => Ok(&NULL),
                Value::Array(list) => {
                    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                    let at = if *at < 0 { length + at } else { *at };
                    Ok(usize::try_from(at).ok().and_then(|at| list.get(at)).unwrap_or(&NULL))
                }
                _ => Err(Failed),
            }),
            Term::Each(of) => {
                let mut all = Vec::new();
                for value in self.run(of, input)? {
                    // What is owned is a number.
                    let Cow::Borrowed(value) = value else { return Err(Failed) };
                    match value {
                        Value::Array(list) => {
                            self.charge(list.len())?;
                            all.extend(list.iter().map(Cow::Borrowed));
                        }
                        Value::Object(map) => {
                            self.charge(map.len())?;
                            all.extend(map.values().map(Cow::Borrowed));
                        }
                        _ => return Err(Failed),
                    }
                }
                Ok(all)
            }
            Term::Try(of) => Ok(self.run(of, input).unwrap_or_default()),
            Term::Pipe(first, then) => self.pipe(first, then, input),
            Term::Either(first, other) => {
                let mut found = self.run(first, input).unwrap_or_default();
                found.retain(|value| truthy(value));
                if found.is_empty() { self.run(other, input) } else { Ok(found) }
            }
            Term::Both(left, op, right) => self.both(left, *op, right, input),
            Term::Select(condition) => {
                let chosen = self.run(condition, input)?.iter().filter(|value| truthy(value)).count();
                self.charge(chosen)?;
                Ok(vec![Cow::Borrowed(input); chosen])
            }
            Term::Not => {
                self.charge(1)?;
                Ok(vec![truth(!truthy(input))])
            }
            Term::Length => {
                self.charge(1)?;
                let length = match input {
                    Value::Null => 0,
                    Value::String(text) => text.chars().count(),
                    Value::Array(list) => list.len(),
                    Value::Object(map) => map.len(),
                    Value::Number(_) => return Ok(vec![Cow::Borrowed(input)]),
                    Value::Bool(_) => return Err(Failed),
                };
                Ok(vec![Cow::Owned(length.into())])
            }
        }
    }

    /// Takes a part of each value.
    fn parts<'a>(
        &mut self,
        of: &'a Term,
        input: &'a Value,
        part: impl Fn(&'a Value) -> Result<&'a Value, Failed>,
    ) -> Result<Vec<Found<'a>>, Failed> {
        let values = self.run(of, input)?;
        self.charge(values.len())?;
        let part = |value| match value {
            Cow::Borrowed(value) => part(value).map(Cow::Borrowed),
            // It is a number, and has no parts.
            Cow::Owned(_) => Err(Failed),
        };
        values.into_iter().map(part).collect()
    }

    fn pipe<'a>(
        &mut self,
        first: &'a Term,
        then: &'a Term,
        input: &'a Value,
    ) -> Result<Vec<Found<'a>>, Failed> {
        let mut all = Vec::new();
        for value in self.run(first, input)? {
            match value {
                Cow::Borrowed(value) => all.extend(self.run(then, value)?),
                Cow::Owned(number) => {
                    // What comes of a number is a number, a truth or a literal of the query.
                    for made in self.run(then, &number)? {
                        self.charge(made.as_str().map_or(0, str::len))?;
                        all.push(Cow::Owned(made.into_owned()));
                    }
                }
            }
        }
        Ok(all)
    }

    /// Compares each value on the left with each on the right.
    fn both<'a>(
        &mut self,
        left: &'a Term,
        op: Op,
        right: &'a Term,
        input: &'a Value,
    ) -> Result<Vec<Found<'a>>, Failed> {
        let rights = self.run(right, input)?;
        let lefts = self.run(left, input)?;
        let pairs = lefts.len().saturating_mul(rights.len());
        self.charge(pairs)?;
        let mut all = Vec::with_capacity(pairs);
        for left in &lefts {
            for right in &rights {
                if matches!(op, Op::Eq | Op::Ne) {
                    self.charge(cost(left, right))?;
                }
                all.push(truth(holds(left, op, right)));
            }
        }
        Ok(all)
    }
}

/// Returns what the comparison of two values costs beside its result.
fn cost(left: &Value, right: &Value) -> usize {
    let lists = matches!((left, right), (Value::Array(_), Value::Array(_)));
    let objects = matches!((left, right), (Value::Object(_), Value::Object(_)));
    if lists || objects { COMPARISON } else { 0 }
}

fn holds(left: &Value, op: Op, right: &Value) -> bool {
    let order = || match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => rank(left).partial_cmp(&rank(right)),
    };
    let equal = || match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => left == right,
    };
    match op {
        Op::Eq => equal(),
        Op::Ne => !equal(),
        Op::Lt => order().is_some_and(std::cmp::Ordering::is_lt),
        Op::Le => order().is_some_and(std::cmp::Ordering::is_le),
        Op::Gt => order().is_some_and(std::cmp::Ordering::is_gt),
        Op::Ge => order().is_some_and(std::cmp::Ordering::is_ge),
        Op::And => truthy(left) && truthy(right),
        Op::Or => truthy(left) || truthy(right),
    }
}

/// jq's order of types.
fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        Value::Array(_) => 5,
        Value::Object(_) => 6,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    operations: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Takes a symbol, after white space.
    fn takes(&mut self, symbol: &str) -> bool {
        self.space();
        let there = self.rest().starts_with(symbol);
        self.at += if there { symbol.len() } else { 0 };
        there
    }

    /// Takes a word that is not the beginning of a longer one.
    fn takes_word(&mut self, word: &str) -> bool {
        self.space();
        let after = self.rest().strip_prefix(word).map(|rest| rest.chars().next());
        let there = after.is_some_and(|next| !next.is_some_and(|c| c.is_alphanumeric() || c == '_'));
        self.at += if there { word.len() } else { 0 };
        there
    }

    fn refuse(&self, what: &str) -> String {
        format!("{what} at {:?} (character {} of {:?})", shown(self.rest()), self.at + 1, shown(self.text))
    }

    /// Counts an operation.
    fn made(&mut self, term: Term) -> Result<Term, String> {
        self.operations += 1;
        if self.operations > MOST_OPERATIONS {
            return Err(self.refuse(&format!("jq of more than {MOST_OPERATIONS} operations")));
        }
        Ok(term)
    }

    fn pipe(&mut self) -> Result<Term, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.refuse("jq that is nested too deeply"));
        }
        let mut left = self.either()?;
        while self.takes("|") {
            let then = self.either()?;
            left = self.made(Term::Pipe(left.into(), then.into()))?;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn either(&mut self) -> Result<Term, String> {
        let mut left = self.or()?;
        while self.takes("//") {
            let other = self.or()?;
            left = self.made(Term::Either(left.into(), other.into()))?;
        }
        Ok(left)
    }

    fn or(&mut self) -> Result<Term, String> {
        let mut left = self.and()?;
        while self.takes_word("or") {
            let right = self.and()?;
            left = self.made(Term::Both(left.into(), Op::Or, right.into()))?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Term, String> {
        let mut left = self.comparison()?;
        while self.takes_word("and") {
            let right = self.comparison()?;
            left = self.made(Term::Both(left.into(), Op::And, right.into()))?;
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Term, String> {
        let left = self.postfix()?;
        let ops =
            [("==", Op::Eq), ("!=", Op::Ne), ("<=", Op::Le), (">=", Op::Ge), ("<", Op::Lt), (">", Op::Gt)];
        for (symbol, op) in ops {
            if self.takes(symbol) {
                let right = self.postfix()?;
                return self.made(Term::Both(left.into(), op, right.into()));
            }
        }
        Ok(left)
    }

    fn postfix(&mut self) -> Result<Term, String> {
        let term = self.primary()?;
        let mut term = self.made(term)?;
        loop {
            if self.rest().starts_with('.') || self.rest().starts_with('[') {
                let part = self.suffix(term)?;
                term = self.made(part)?;
            } else if self.rest().starts_with('?') {
                self.at += 1;
                term = self.made(Term::Try(term.into()))?;
            } else {
                return Ok(term);
            }
        }
    }

    /// Reads `.name`, `."name"`, `[...]` or `.[...]` after a term.
    fn suffix(&mut self, of: Term) -> Result<Term, String> {
        if self.rest().starts_with('.') {
            self.at += 1;
        }
        if self.rest().starts_with('"') {
            return Ok(Term::Field(of.into(), self.string()?));
        }
        if self.rest().starts_with('[') {
            self.at += 1;
            if self.takes("]") {
                return Ok(Term::Each(of.into()));
            }
            self.space();
            let term = if self.rest().starts_with('"') {
                Term::Field(of.into(), self.string()?)
            } else {
                let end = self.rest().find(']').unwrap_or(0);
                let at = self.rest()[..end].trim().parse().map_err(|_| self.refuse("no name or number"))?;
                self.at += end;
                Term::Index(of.into(), at)
            };
            return if self.takes("]") { Ok(term) } else { Err(self.refuse("no `]`")) };
        }
        let length =
            self.rest().find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest().len());
        if length == 0 {
            return Err(self.refuse("no field name"));
        }
        let name = self.rest()[..length].to_owned();
        self.at += length;
        Ok(Term::Field(of.into(), name))
    }

    fn primary(&mut self) -> Result<Term, String> {
        self.space();
        let first = self.rest().chars().next();
        match first {
            Some('(') => {
                self.at += 1;
                let term = self.pipe()?;
                if self.takes(")") { Ok(term) } else { Err(self.refuse("no `)`")) }
            }
            Some('.') => {
                let after = self.rest().chars().nth(1);
                let has_name = after.is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '_' | '"' | '['));
                if has_name {
                    return self.suffix(Term::This);
                }
                self.at += 1;
                Ok(Term::This)
            }
            Some('"') => Ok(Term::Literal(self.string()?.into())),
            Some(c) if c.is_ascii_digit() || c == '-' => {
                let digits = |c: char| c.is_ascii_digit() || c == '.';
                let length = 1 + self.rest()[1..].find(|c| !digits(c)).unwrap_or(self.rest().len() - 1);
                let number = self.rest()[..length].parse::<serde_json::Number>();
                let number = number.map_err(|_| self.refuse("no number"))?;
                self.at += length;
                Ok(Term::Literal(Value::Number(number)))
            }
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Term, String> {
        for (word, value) in
            [("true", Value::Bool(true)), ("false", Value::Bool(false)), ("null", Value::Null)]
        {
            if self.takes_word(word) {
                return Ok(Term::Literal(value));
            }
        }
        if self.takes_word("not") {
            return Ok(Term::Not);
        }
        if self.takes_word("length") {
            return Ok(Term::Length);
        }
        if self.takes_word("select") {
            if !self.takes("(") {
                return Err(self.refuse("no `(`"));
            }
            let condition = self.pipe()?;
            return if self.takes(")") {
                Ok(Term::Select(condition.into()))
            } else {
                Err(self.refuse("no `)`"))
            };
        }
        Err(self.refuse("jq that is not supported"))
    }

    /// Reads a JSON string.
    fn string(&mut self) -> Result<String, String> {
        let mut strings = serde_json::Deserializer::from_str(self.rest()).into_iter::<String>();
        let read = strings.next().and_then(Result::ok);
        let length = strings.byte_offset();
        let text = read.ok_or_else(|| self.refuse("no string"))?;
        self.at += length;
        Ok(text)
    }
}

/// Returns the beginning of a text.
fn shown(text: &str) -> &str {
    text.char_indices().nth(SHOWN).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(query: &str, wanted: &[Value]) {
        let pod = json!({
            "metadata": {"annotations": {"a.b/c": "5"}, "labels": {}, "ownerReferences": [{"kind": "Job"}]},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "priority": 7},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "False"},
            ]},
        });
        let query = Query::parse(query).expect("a query");
        let found: Vec<Value> = query.values(&pod).into_iter().map(Cow::into_owned).collect();
        assert_eq!(found, wanted, "{query:?}");
    }

    #[test]
    fn keys_of_stages() {
        check(".metadata.deletionTimestamp", &[]);
        check(".status.phase", &[json!("Running")]);
        check(".status.conditions.[] | select( .type == \"Ready\" ) | .status", &[json!("True")]);
        check(".metadata.ownerReferences.[].kind", &[json!("Job")]);
        check(".metadata.annotations[\"a.b/c\"]", &[json!("5")]);
        check(".metadata.labels[\"a\"]", &[]);
        check(".status.initContainerStatuses.[].state.waiting.reason", &[]);
        check(".spec.containers[1].name", &[json!("b")]);
        check(".spec.containers | length == 2", &[json!(true)]);
        check("(.spec.missing // \"no\")", &[json!("no")]);
        check(".status.phase == \"Running\" and (.spec.priority >= 7 | not)", &[json!(false)]);
        check(".spec.priority[]?", &[]);
        check(".spec.containers[-1].name", &[json!("b")]);
        check(".spec.containers | length | . >= 2", &[json!(true)]);
        check(".spec.containers | length | \"x\"", &[json!("x")]);
        check(".spec.containers | length | .name", &[]);
    }

    #[test]
    fn other_jq_is_refused_with_its_place() {
        for text in ["", ".a | map(.b)", ".a[", "(.a", "select .a", ".a b", "$x", ".[\"a"] {
            assert!(Query::parse(text).is_err(), "{text}");
        }
        let refused = Query::parse(".a | map(.b)").unwrap_err();
        assert!(refused.contains("\"map(.b)\" (character 6"), "{refused}");
        assert!(Query::parse(&"(".repeat(100_000)).unwrap_err().contains("nested too deeply"));
    }

    #[test]
    fn chains_are_bounded() {
        for link in [".a", "?", "[]", "|.", "//.", " and .", " or ."] {
            let refused = Query::parse(&format!(".a{}", link.repeat(5000))).unwrap_err();
            assert!(refused.contains("more than 256 operations"), "{link}: {refused}");
            assert!(refused.len() < 500, "{refused}");
            // The longest chain, on a thread with the least stack.
            let longest = format!(".a{}", link.repeat(120));
            let run = move || Query::parse(&longest).expect("a query").values(&json!({"a": null})).len();
            let small = std::thread::Builder::new().stack_size(1 << 20);
            small.spawn(run).expect("a thread").join().expect("no overflow");
        }
    }

    #[test]
    fn values_are_bounded() {
        let object = json!({"c": vec![1; 50], "long": vec![1; 9000], "x": [1], "y": [1]});
        let count = |text: &str| Query::parse(text).expect("a query").values(&object).len();
        assert_eq!(count("(.c[] == .c[])"), 2500);
        assert_eq!(count("(.c[] == .c[]) and (.c[] == .c[])"), 0);
        assert_eq!(count("(.c[] == .c[]) or (.c[] == .c[])"), 0);
        assert_eq!(count(".long[] == .long[]"), 0);
        assert_eq!(count(".long[]"), 9000);
        assert_eq!(count(".long[] | ."), 0);
        assert_eq!(count("select(.c[]) | select(.c[]) | select(.c[])"), 0);
        // Not what a part of the query made before it ended.
        assert_eq!(count("(.long[] == .long[]) // 1"), 0);
        assert_eq!(count("(.long[] == .long[] | not)? // 1"), 0);
        assert_eq!(count("select(.c[]) | (select(.c[]) | select(.c[]))?"), 0);
        // A comparison of lists costs more than one of numbers.
        assert_eq!(count("select(.c[]) | .x == .y"), 50);
        assert_eq!(count("select(.c[]) | .x == .y or .y == .x"), 0);
        let literal = format!("select(.c[]) | length | \"{}\"", "a".repeat(1000));
        assert_eq!(count(&literal), 0);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[.a\\[\\]\"|()?/ =<>01-]{0,40}|.{0,40}") {
            if let Ok(query) = Query::parse(&text) {
                query.values(&json!({"a": [{"a": 1}, null, "x"]}));
            }
        }
    }
}
