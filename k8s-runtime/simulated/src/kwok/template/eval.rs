//! The evaluation of templates.

use serde_json::Value;

use super::{
    Base, Command, Node, Operand, Pipeline,
    functions::{self, Place, is_true, show},
};

/// Most steps of one evaluation.
const STEPS: usize = 100_000;
/// Longest output, bytes.
const LONGEST: usize = 1 << 20;

/// Returns the text of a template for an object.
pub(super) fn run(nodes: &[Node], object: &Value, place: &dyn Place) -> Result<String, String> {
    let mut run = Run { root: object, place, variables: Vec::new(), out: String::new(), steps: 0 };
    run.nodes(nodes, object)?;
    Ok(run.out)
}

struct Run<'a> {
    root: &'a Value,
    place: &'a dyn Place,
    /// Variables in order of declaration; a block's own are dropped at its end.
    variables: Vec<(String, Value)>,
    out: String,
    steps: usize,
}

impl Run<'_> {
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS || self.out.len() > LONGEST {
            return Err(format!("a template ends after {STEPS} steps or {LONGEST} bytes"));
        }
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let known = self.variables.len();
        for node in nodes {
            self.step()?;
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(pipeline) => {
                    let text = show(&self.pipeline(pipeline, dot)?);
                    self.out.push_str(&text);
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
            self.variables.push((name.to_owned(), value));
            return Ok(());
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
            self.variables.extend(names.0.clone().map(|name| (name, index)));
            self.variables.extend(names.1.clone().map(|name| (name, item.clone())));
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
                    functions::call(function, values, self.place)?
                }
            });
        }
        Ok(result.unwrap_or_default())
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        let base = match &operand.base {
            Base::Dot => return Ok(field(dot, &operand.path)),
            Base::Variable(name) if name.is_empty() => return Ok(field(self.root, &operand.path)),
            Base::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = known.ok_or_else(|| format!("variable ${name} is not declared"))?;
                return Ok(field(value, &operand.path));
            }
            Base::Literal(value) => value.clone(),
            Base::Pipeline(pipeline) => self.pipeline(pipeline, dot)?,
            Base::Call(function) => functions::call(function, Vec::new(), self.place)?,
        };
        Ok(field(&base, &operand.path))
    }
}

fn field(value: &Value, path: &[String]) -> Value {
    let found = path.iter().try_fold(value, |value, name| value.get(name));
    found.cloned().unwrap_or_default()
}
