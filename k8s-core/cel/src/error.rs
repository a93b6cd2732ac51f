//! Compile-time and evaluation errors.

use std::fmt;

/// A compile-time error with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// Line number, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Upstream's message, without position.
    pub message: String,
    source: String,
}

/// Maximum length of a quoted line.
const QUOTED: usize = 1000;

impl CompileError {
    /// Creates an error at a byte offset of the text.
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

/// All errors of an expression, in the order of the text.
///
/// ```
/// // All of them at once, in the order of the text.
/// let errors = k8s_cel::Env::new().compile("a + b").unwrap_err();
/// assert_eq!(errors.0.len(), 2);
/// assert!(errors.to_string().contains("undeclared reference to 'a'"));
/// ```
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

/// Errors of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The meter's limit was exceeded.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
    /// A function has no overload for the given values.
    #[error("no such overload")]
    NoSuchOverload,
    /// A map has no such key, or an object no such field.
    #[error("no such key: {0}")]
    NoSuchKey(String),
    /// An answer of an [`Authority`](crate::Authority) is not there yet.
    #[error("an authorization check waits for its answer")]
    Pending,
    /// Any other failure (a missing key, an overflow, an index), as upstream's text.
    #[error("{0}")]
    Failed(String),
}

impl EvalError {
    pub(super) fn failed<T>(message: impl Into<String>) -> Result<T, Self> {
        Err(EvalError::Failed(message.into()))
    }
}

/// Returns at most the first 100 characters of a text, for error messages.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
