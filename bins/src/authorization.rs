//! Flags of authorization, with upstream's names.

use std::path::{Path, PathBuf};

use clap::{Args, Command, FromArgMatches};
use k8s_apiserver::auth::{AuthorizationMode, abac::Policies};

use crate::error::ClusterError;

/// The authorizers of an API server, and their files.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuthorizationFlags {
    /// Authorizers, asked in this order: Node, RBAC, ABAC, AlwaysAllow, AlwaysDeny. The first that allows or
    /// denies a request decides; a request that none allows is refused.
    #[arg(long, value_delimiter = ',', default_value = "Node,RBAC")]
    authorization_mode: Vec<String>,
    /// Policies of the mode ABAC: a file with one `Policy` of abac.authorization.kubernetes.io/v1beta1 a line.
    #[arg(long)]
    authorization_policy_file: Option<PathBuf>,
}

impl Default for AuthorizationFlags {
    fn default() -> Self {
        let command = AuthorizationFlags::augment_args(Command::new("defaults"));
        AuthorizationFlags::from_arg_matches(&command.get_matches_from(["defaults"]))
            .expect("every flag is optional or has a valid default")
    }
}

fn invalid(flag: &str, why: impl Into<String>) -> ClusterError {
    ClusterError::invalid(flag.to_owned(), why.into())
}

/// Reads a flag's file as text.
fn read(flag: &str, file: &Path) -> Result<String, ClusterError> {
    std::fs::read_to_string(file).map_err(|e| invalid(flag, format!("read {}: {e}", file.display())))
}

impl AuthorizationFlags {
    /// Returns the authorizers in their order.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] with the flag.
    pub(crate) fn modes(&self) -> Result<Vec<AuthorizationMode>, ClusterError> {
        let flag = "--authorization-mode";
        let mut modes = Vec::new();
        for (at, name) in self.authorization_mode.iter().enumerate() {
            if self.authorization_mode[..at].contains(name) {
                return Err(invalid(flag, format!("{name} is given more than once")));
            }
            modes.push(match name.as_str() {
                "Node" => AuthorizationMode::Node,
                "RBAC" => AuthorizationMode::Rbac,
                "ABAC" => AuthorizationMode::Abac(self.policies()?),
                "AlwaysAllow" => AuthorizationMode::AlwaysAllow,
                "AlwaysDeny" => AuthorizationMode::AlwaysDeny,
                other => {
                    let known = "Node, RBAC, ABAC, AlwaysAllow and AlwaysDeny";
                    return Err(invalid(flag, format!("{other:?} is no mode: {known} are")));
                }
            });
        }
        if modes.is_empty() {
            return Err(invalid(flag, "at least one mode is needed, such as Node,RBAC"));
        }
        if self.authorization_policy_file.is_some() && !self.authorization_mode.iter().any(|m| m == "ABAC") {
            return Err(invalid("--authorization-policy-file", "add ABAC to --authorization-mode"));
        }
        Ok(modes)
    }

    fn policies(&self) -> Result<Policies, ClusterError> {
        let flag = "--authorization-policy-file";
        let file = self.authorization_policy_file.as_deref();
        let file = file.ok_or_else(|| invalid(flag, "the mode ABAC needs a policy file"))?;
        let text = read(flag, file)?;
        Policies::parse(&text).map_err(|e| invalid(flag, format!("{}: {e}", file.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(args: &[&str]) -> Result<String, String> {
        let command = AuthorizationFlags::augment_args(Command::new("x").no_binary_name(true));
        let flags = AuthorizationFlags::from_arg_matches(&command.get_matches_from(args)).unwrap();
        flags.modes().map(|modes| format!("{modes:?}")).map_err(|e| e.to_string())
    }

    #[test]
    fn modes_keep_their_order_and_wrong_ones_are_named() {
        assert_eq!(modes(&[]).unwrap(), "[Node, Rbac]");
        assert_eq!(modes(&["--authorization-mode=RBAC,Node"]).unwrap(), "[Rbac, Node]");
        assert_eq!(modes(&["--authorization-mode", "AlwaysDeny"]).unwrap(), "[AlwaysDeny]");
        let error = |args: &[&str]| modes(args).unwrap_err();
        assert!(error(&["--authorization-mode=Rbac"]).contains("\"Rbac\" is no mode"));
        assert!(error(&["--authorization-mode=RBAC,RBAC"]).contains("more than once"));
        assert!(error(&["--authorization-mode=ABAC"]).contains("needs a policy file"));
        assert!(error(&["--authorization-policy-file=/x"]).contains("add ABAC"));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policies");
        std::fs::write(&file, "\n{}\n").unwrap();
        let flag = format!("--authorization-policy-file={}", file.display());
        assert!(error(&["--authorization-mode=ABAC", &flag]).contains("line 2"));
    }
}
