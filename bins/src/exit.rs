//! How programs end: one line that says what is wrong and how to mend it, and an exit code that says which kind it is.

use std::{fmt, process::ExitCode};

/// Exit codes, as DESIGN's conventions have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Something failed.
    Failed = 1,
    /// The command line or configuration is wrong.
    Usage = 2,
    /// The machine lacks something.
    Preflight = 3,
    /// An address, port or directory is in use.
    InUse = 4,
    /// Not allowed.
    Permission = 7,
}

/// Why a program ends.
#[derive(Debug)]
pub struct Failure {
    /// Which kind.
    pub code: Code,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    /// For `map_err`: a plain failure with what was being done.
    pub fn because<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |e| Failure::new(Code::Failed, format!("{what}: {e}"))
    }

    /// For `map_err` of the system's answers: what is not allowed has a code of its own.
    pub fn io(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
        move |e| {
            let denied = e.kind() == std::io::ErrorKind::PermissionDenied;
            let code = if denied { Code::Permission } else { Code::Failed };
            Failure::new(code, format!("{what}: {e}"))
        }
    }

    /// Prints the line and gives the code.
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
