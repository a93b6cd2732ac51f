//! The part of Go's text templates that kwok's own Stages use: fields, variables, `if`, `with`, `range`,
//! pipelines, and the functions of [`functions::NAMES`].
//!
//! Guarantees: a template of any text is parsed or refused with its line. Evaluation ends: its steps, its
//! output, and the sizes and the nesting of its values are bounded. Fields of null are null, where Go's
//! templates have an error.

mod eval;
mod functions;
mod parse;

use serde_json::Value;

pub(crate) use functions::Place;

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Print(Pipeline),
    /// `$name := pipeline`, or `=` for a variable that exists.
    Set {
        name: String,
        declares: bool,
        value: Pipeline,
    },
    If {
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        /// Variables of index and item.
        names: (Option<String>, Option<String>),
        values: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands; the result of each is the last argument of the next.
#[derive(Clone, Debug, PartialEq)]
struct Pipeline(Vec<Command>);

#[derive(Clone, Debug, PartialEq)]
enum Command {
    Value(Operand),
    Call { function: &'static str, arguments: Vec<Operand> },
}

#[derive(Clone, Debug, PartialEq)]
struct Operand {
    base: Base,
    /// Fields of the base.
    path: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Base {
    Dot,
    /// Empty name: the object that the template was called with.
    Variable(String),
    Literal(Value),
    Pipeline(Pipeline),
    Call(&'static str),
}

impl Template {
    /// # Errors
    /// The text is not of the supported part; the message has the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        parse::template(text).map(Template)
    }

    /// Returns the text for an object.
    ///
    /// # Errors
    /// A function cannot be called so, or the template runs too long or makes too large values.
    pub(crate) fn text(&self, object: &Value, place: &dyn Place) -> Result<String, String> {
        eval::run(&self.0, object, place)
    }

    /// Returns the text, read as YAML.
    ///
    /// # Errors
    /// As [`Template::text`], or it is not YAML.
    pub(crate) fn value(&self, object: &Value, place: &dyn Place) -> Result<Value, String> {
        let text = self.text(object, place)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_saphyr::from_str(&text).map_err(|e| format!("what the template made is no YAML: {e}"))
    }
}

#[cfg(test)]
mod tests;
