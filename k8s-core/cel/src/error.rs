//! What can be wrong with an expression, and with its evaluation.

use std::fmt;

/// A problem of an expression, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    source: String,
}

/// Longest line that is quoted with a problem.
const QUOTED: usize = 1000;

impl CompileError {
    /// A problem at a byte of a text.
    pub(super) fn at(text: &str, at: usize, message: impl Into<String>) -> Self {
        let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let (before, after) = text.split_at(at);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let column = before.get(start..).unwrap_or_default().chars().count() + 1;
        let end = at + after.find('\n').unwrap_or(after.len());
        let source = text.get(start..end).unwrap_or_default();
        CompileError { line, column, message: message.into(), source: source.chars().take(QUOTED).collect() }
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERROR: <input>:{}:{}: {}", self.line, self.column, self.message)?;
        if self.column <= QUOTED {
            write!(f, "\n | {}\n | {:.<2$}^", self.source, "", self.column - 1)?;
        }
        Ok(())
    }
}

/// Every problem of an expression, in the order of the text as it is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CompileErrors(pub Vec<CompileError>);

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The meter ran out.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
    /// A function was given values that it has no meaning for.
    #[error("no such overload")]
    NoSuchOverload,
    /// A map has no such key, an object no such field.
    #[error("no such key: {0}")]
    NoSuchKey(String),
    /// Any other failure.
    #[error("{0}")]
    Failed(String),
}

impl EvalError {
    pub(super) fn failed<T>(message: impl Into<String>) -> Result<T, Self> {
        Err(EvalError::Failed(message.into()))
    }
}
