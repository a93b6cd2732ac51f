//! The evaluation of templates.
//!
//! Guarantee: the values of one evaluation have at most [`MOST_BYTES`] together, because every value that is
//! copied or made is charged. What a function makes is charged after the call; text may grow sevenfold by
//! quotes, so the room for that must be there before it.

use serde_json::Value;

use super::{
    Base, Command, Node, Operand, Pipeline,
    functions::{self, Place, is_true, show},
};

/// Most steps of one evaluation.
const STEPS: usize = 100_000;
/// Longest output, bytes.
const LONGEST: usize = 1 << 20;
/// Bytes of all values that one evaluation copies or makes, also of those that are gone.
const MOST_BYTES: usize = 16 << 20;
/// Deepest nesting of a value.
const DEEPEST: usize = 64;
/// Most variables at one time.
const MOST_VARIABLES: usize = 256;
/// The most that quoting multiplies a text by: a control character becomes `\u0001`, whose backslash is quoted
/// again if the text was in a list or an object.
const QUOTED: usize = 7;
/// Bytes of an error's text.
const LONGEST_ERROR: usize = 1024;

/// Returns the text of a template for an object.
pub(super) fn run(nodes: &[Node], object: &Value, place: &dyn Place) -> Result<String, String> {
    let mut run = Run {
        root: object,
        place,
        variables: Vec::new(),
        out: String::new(),
        steps: 0,
        bytes: Budget(MOST_BYTES),
    };
    match run.nodes(nodes, object) {
        Ok(()) => Ok(run.out),
        // Errors show values.
        Err(mut error) => {
            error.truncate(error.floor_char_boundary(LONGEST_ERROR));
            Err(error)
        }
    }
}

/// Returns the bytes of a value in memory. `None`: it is nested too deeply.
fn size(value: &Value, depth: usize) -> Option<usize> {
    let inner = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(_) | Value::Object(_) if depth == DEEPEST => return None,
        Value::Array(list) => list.iter().try_fold(0, |sum, item| Some(sum + size(item, depth + 1)?))?,
        Value::Object(map) => map.iter().try_fold(0, |sum, (key, item)| {
            Some(sum + size_of::<String>() + key.len() + size(item, depth + 1)?)
        })?,
    };
    Some(size_of::<Value>() + inner)
}

struct Run<'a> {
    root: &'a Value,
    place: &'a dyn Place,
    /// Variables in order of declaration; a block's own are dropped at its end.
    variables: Vec<(String, Value)>,
    out: String,
    steps: usize,
    bytes: Budget,
}

/// Bytes that values may still have.
struct Budget(usize);

impl Budget {
    fn charge(&mut self, value: &Value) -> Result<(), String> {
        let size = size(value, 0).ok_or_else(too_deep)?;
        self.0 = self.0.checked_sub(size).ok_or_else(too_large)?;
        Ok(())
    }
}

fn too_long() -> String {
    format!("a template ends after {STEPS} steps or {LONGEST} bytes")
}

fn too_deep() -> String {
    format!("a value is nested more than {DEEPEST} levels deep")
}

fn too_large() -> String {
    format!("the values of a template have more than {MOST_BYTES} bytes")
}

impl Run<'_> {
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS || self.out.len() > LONGEST {
            return Err(too_long());
        }
        Ok(())
    }

    fn write(&mut self, text: &str) -> Result<(), String> {
        if self.out.len() + text.len() > LONGEST {
            return Err(too_long());
        }
        self.out.push_str(text);
        Ok(())
    }

    /// Calls a function with arguments that are charged already.
    fn call(&mut self, function: &str, arguments: Vec<Value>) -> Result<Value, String> {
        if matches!(function, "Quote" | "quote" | "YAML" | "printf") {
            let size = arguments.iter().try_fold(0, |sum, value| Some(sum + size(value, 0)?));
            if size.ok_or_else(too_deep)?.saturating_mul(QUOTED) > self.bytes.0 {
                return Err(too_large());
            }
        }
        let made = functions::call(function, arguments, self.place)?;
        self.bytes.charge(&made)?;
        Ok(made)
    }

    fn declare(&mut self, name: &str, value: Value) -> Result<(), String> {
        if self.variables.len() == MOST_VARIABLES {
            return Err(format!("more than {MOST_VARIABLES} variables"));
        }
        self.variables.push((name.to_owned(), value));
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let known = self.variables.len();
        for node in nodes {
            self.step()?;
            match node {
                Node::Text(text) => self.write(text)?,
                Node::Print(pipeline) => {
                    let text = show(&self.pipeline(pipeline, dot)?);
                    self.write(&text)?;
                }
                Node::Set { name, declares, value } => self.set(name, *declares, value, dot)?,
                Node::If { condition, then, otherwise } => {
                    let holds = is_true(&self.pipeline(condition, dot)?);
                    self.nodes(if holds { then } else { otherwise }, dot)?;
                }
                Node::With { value, then, otherwise } => {
                    let value = self.pipeline(value, dot)?;
                    if is_true(&value) { self.nodes(then, &value)? } else { self.nodes(otherwise, dot)? }
                }
                Node::Range { names, values, body, otherwise } => {
                    let values = self.pipeline(values, dot)?;
                    self.range(names, values, (body, otherwise), dot)?;
                }
            }
        }
        self.variables.truncate(known);
        Ok(())
    }

    fn set(&mut self, name: &str, declares: bool, value: &Pipeline, dot: &Value) -> Result<(), String> {
        let value = self.pipeline(value, dot)?;
        if declares {
            return self.declare(name, value);
        }
        match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some((_, known)) => {
                *known = value;
                Ok(())
            }
            None => Err(format!("variable ${name} is not declared")),
        }
    }

    fn range(
        &mut self,
        names: &(Option<String>, Option<String>),
        values: Value,
        (body, otherwise): (&[Node], &[Node]),
        dot: &Value,
    ) -> Result<(), String> {
        let items: Vec<(Value, Value)> = match values {
            Value::Array(list) => list.into_iter().enumerate().map(|(i, value)| (i.into(), value)).collect(),
            Value::Object(map) => map.into_iter().map(|(key, value)| (key.into(), value)).collect(),
            Value::Null => Vec::new(),
            other => return Err(format!("range over {}", show(&other))),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (index, item) in items {
            let known = self.variables.len();
            if let Some(name) = &names.0 {
                self.declare(name, index)?;
            }
            if let Some(name) = &names.1 {
                self.bytes.charge(&item)?;
                self.declare(name, item.clone())?;
            }
            self.nodes(body, &item)?;
            self.variables.truncate(known);
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut result: Option<Value> = None;
        for command in &pipeline.0 {
            self.step()?;
            result = Some(match command {
                Command::Value(operand) => {
                    if result.is_some() {
                        return Err("a value after `|`, where a function belongs".into());
                    }
                    self.operand(operand, dot)?
                }
                Command::Call { function, arguments } => {
                    let mut values = Vec::with_capacity(arguments.len() + 1);
                    for argument in arguments {
                        values.push(self.operand(argument, dot)?);
                    }
                    values.extend(result);
                    self.call(function, values)?
                }
            });
        }
        Ok(result.unwrap_or_default())
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        let path = &operand.path;
        match &operand.base {
            Base::Dot => self.copy(field(dot, path)),
            Base::Variable(name) if name.is_empty() => self.copy(field(self.root, path)),
            Base::Variable(name) => {
                let place = self.variables.iter().rposition(|(known, _)| known == name);
                let place = place.ok_or_else(|| format!("variable ${name} is not declared"))?;
                let found = field(&self.variables[place].1, path);
                self.bytes.charge(found)?;
                Ok(found.clone())
            }
            Base::Literal(value) => self.copy(field(value, path)),
            Base::Pipeline(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.part(value, path)
            }
            Base::Call(function) => {
                let value = self.call(function, Vec::new())?;
                self.part(value, path)
            }
        }
    }

    fn copy(&mut self, value: &Value) -> Result<Value, String> {
        self.bytes.charge(value)?;
        Ok(value.clone())
    }

    fn part(&mut self, value: Value, path: &[String]) -> Result<Value, String> {
        if path.is_empty() { Ok(value) } else { self.copy(field(&value, path)) }
    }
}

fn field<'a>(value: &'a Value, path: &[String]) -> &'a Value {
    path.iter().try_fold(value, |value, name| value.get(name)).unwrap_or(&Value::Null)
}
