//! Exit of a program: a one-line message with the problem and its remedy, and an exit code for its kind.

use std::{fmt, process::ExitCode};

/// Exit codes (DESIGN, conventions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Any other failure.
    Failed = 1,
    /// Invalid command line or configuration.
    Usage = 2,
    /// The machine lacks a requirement.
    Preflight = 3,
    /// An address, port or directory is in use.
    InUse = 4,
    /// Missing permission.
    Permission = 7,
}

/// Reason for which a program ends.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: Code,
    /// The problem and its remedy, in one line.
    pub message: String,
}

impl Failure {
    /// Creates a failure.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    /// For `map_err`: a failure with code 1 and `what` as context.
    pub fn because<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |e| Failure::new(Code::Failed, format!("{what}: {e}"))
    }

    /// For `map_err` of I/O errors: `PermissionDenied` becomes [`Code::Permission`].
    pub fn io(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
        move |e| {
            let denied = e.kind() == std::io::ErrorKind::PermissionDenied;
            let code = if denied { Code::Permission } else { Code::Failed };
            Failure::new(code, format!("{what}: {e}"))
        }
    }

    /// Prints the message and returns the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
