//! The part of jq that keys of Stages use: paths, iteration, `select`, comparisons, `and`, `or`, `not`,
//! `length`, `//`, literals, parentheses and `|`.
//!
//! Guarantees: a query of any text is parsed or refused with its place; nesting is bounded. As in kwok, an
//! error while it is evaluated (iteration of null) yields no values, and null is no value.

use serde_json::Value;

/// Deepest nesting of a query.
const DEEPEST: usize = 64;

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

/// A value cannot be used as the query wants.
struct Failed;

impl Query {
    /// # Errors
    /// The text is not of the supported part; the message has the place.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0, depth: 0 };
        let term = parser.pipe()?;
        parser.space();
        if parser.at < text.len() {
            return Err(parser.refuse("jq that is not supported"));
        }
        Ok(Query(term))
    }

    /// Returns the values that are not null; none after an error.
    pub(crate) fn values(&self, input: &Value) -> Vec<Value> {
        let mut all = run(&self.0, input).unwrap_or_default();
        all.retain(|value| !value.is_null());
        all
    }
}

fn truthy(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

fn each(values: Vec<Value>, f: impl Fn(&Value) -> Result<Vec<Value>, Failed>) -> Result<Vec<Value>, Failed> {
    let mut all = Vec::new();
    for value in &values {
        all.extend(f(value)?);
    }
    Ok(all)
}

fn run(term: &Term, input: &Value) -> Result<Vec<Value>, Failed> {
    Ok(match term {
        Term::This => vec![input.clone()],
        Term::Literal(value) => vec![value.clone()],
        Term::Field(of, name) => each(run(of, input)?, |value| match value {
            Value::Null => Ok(vec![Value::Null]),
            Value::Object(map) => Ok(vec![map.get(name).cloned().unwrap_or_default()]),
            _ => Err(Failed),
        })?,
        Term::Index(of, at) => each(run(of, input)?, |value| match value {
            Value::Null => Ok(vec![Value::Null]),
            Value::Array(list) => {
                let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                let at = if *at < 0 { length + at } else { *at };
                Ok(vec![usize::try_from(at).ok().and_then(|at| list.get(at)).cloned().unwrap_or_default()])
            }
            _ => Err(Failed),
        })?,
        Term::Each(of) => each(run(of, input)?, |value| match value {
            Value::Array(list) => Ok(list.clone()),
            Value::Object(map) => Ok(map.values().cloned().collect()),
            _ => Err(Failed),
        })?,
        Term::Try(of) => run(of, input).unwrap_or_default(),
        Term::Pipe(first, then) => each(run(first, input)?, |value| run(then, value))?,
        Term::Either(first, other) => {
            let found: Vec<Value> =
                run(first, input).unwrap_or_default().into_iter().filter(truthy).collect();
            if found.is_empty() { run(other, input)? } else { found }
        }
        Term::Both(left, op, right) => {
            let rights = run(right, input)?;
            each(run(left, input)?, |left| {
                Ok(rights.iter().map(|right| Value::Bool(holds(left, *op, right))).collect())
            })?
        }
        Term::Select(condition) => {
            let chosen = run(condition, input)?;
            chosen.iter().filter(|value| truthy(value)).map(|_| input.clone()).collect()
        }
        Term::Not => vec![Value::Bool(!truthy(input))],
        Term::Length => vec![match input {
            Value::Null => 0.into(),
            Value::String(text) => text.chars().count().into(),
            Value::Array(list) => list.len().into(),
            Value::Object(map) => map.len().into(),
            Value::Number(_) => input.clone(),
            Value::Bool(_) => return Err(Failed),
        }],
    })
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
        format!("{what} at {:?} (character {} of {:?})", self.rest(), self.at + 1, self.text)
    }

    fn pipe(&mut self) -> Result<Term, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.refuse("jq that is nested too deeply"));
        }
        let mut left = self.either()?;
        while self.takes("|") {
            left = Term::Pipe(left.into(), self.either()?.into());
        }
        self.depth -= 1;
        Ok(left)
    }

    fn either(&mut self) -> Result<Term, String> {
        let mut left = self.or()?;
        while self.takes("//") {
            left = Term::Either(left.into(), self.or()?.into());
        }
        Ok(left)
    }

    fn or(&mut self) -> Result<Term, String> {
        let mut left = self.and()?;
        while self.takes_word("or") {
            left = Term::Both(left.into(), Op::Or, self.and()?.into());
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Term, String> {
        let mut left = self.comparison()?;
        while self.takes_word("and") {
            left = Term::Both(left.into(), Op::And, self.comparison()?.into());
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Term, String> {
        let left = self.postfix()?;
        let ops =
            [("==", Op::Eq), ("!=", Op::Ne), ("<=", Op::Le), (">=", Op::Ge), ("<", Op::Lt), (">", Op::Gt)];
        for (symbol, op) in ops {
            if self.takes(symbol) {
                return Ok(Term::Both(left.into(), op, self.postfix()?.into()));
            }
        }
        Ok(left)
    }

    fn postfix(&mut self) -> Result<Term, String> {
        let mut term = self.primary()?;
        loop {
            if self.rest().starts_with('.') || self.rest().starts_with('[') {
                term = self.suffix(term)?;
            } else if self.rest().starts_with('?') {
                self.at += 1;
                term = Term::Try(term.into());
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
        assert_eq!(Query::parse(query).expect("a query").values(&pod), wanted, "{query}");
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

    proptest! {
        #[test]
        fn no_text_panics(text in "[.a\\[\\]\"|()?/ =<>01-]{0,40}|.{0,40}") {
            if let Ok(query) = Query::parse(&text) {
                query.values(&json!({"a": [{"a": 1}, null, "x"]}));
            }
        }
    }
}
