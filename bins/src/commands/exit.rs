//! Exit of a program: a one-line message with the problem and its remedy, and an exit code for its kind.

use std::{fmt, io, process::ExitCode};

use k8s_store::OpenError;

use crate::ClusterError;

/// Exit codes (DESIGN, conventions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
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
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) code: Code,
    /// The problem and its remedy, in one line.
    pub(crate) message: String,
}

impl Failure {
    /// Creates a failure.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    /// For `map_err`: a failure with code 1 and `what` as context.
    pub(crate) fn because<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |e| Failure::new(Code::Failed, format!("{what}: {e}"))
    }

    /// For `map_err` of I/O errors: `PermissionDenied` becomes [`Code::Permission`].
    pub(crate) fn io(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
        move |e| {
            let denied = e.kind() == std::io::ErrorKind::PermissionDenied;
            let code = if denied { Code::Permission } else { Code::Failed };
            Failure::new(code, format!("{what}: {e}"))
        }
    }

    /// Prints the message and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
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

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        let denied = |e: &io::Error| e.kind() == io::ErrorKind::PermissionDenied;
        let code = match &error {
            ClusterError::Invalid { .. } => Code::Usage,
            ClusterError::ApiServer(e) if e.is_invalid() => Code::Usage,
            ClusterError::Permission(_) => Code::Permission,
            ClusterError::Directory { source, .. }
            | ClusterError::Listen { source, .. }
            | ClusterError::Io { source, .. }
                if denied(source) =>
            {
                Code::Permission
            }
            ClusterError::AddressInUse { .. }
            | ClusterError::KubeletPortInUse { .. }
            | ClusterError::DirectoryInUse { .. }
            | ClusterError::Store(OpenError::InUse { .. }) => Code::InUse,
            ClusterError::Directory { .. }
            | ClusterError::NewerFormat { .. }
            | ClusterError::OtherDistribution { .. }
            | ClusterError::NoDataDirectory { .. }
            | ClusterError::Machine { .. }
            | ClusterError::StateLost { .. }
            | ClusterError::Store(OpenError::Newer { .. }) => Code::Preflight,
            _ => Code::Failed,
        };
        Failure::new(code, error.to_string())
    }
}
