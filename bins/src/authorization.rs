//! Flags of authorization, with upstream's names.

mod configuration;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Command, FromArgMatches};
use k8s_apiserver::auth::{
    AuthorizationMode,
    abac::Policies,
    access_webhook::{WebhookAuthorizer, WebhookSettings},
};
use k8s_core::client::{Client, Kubeconfig, Remote};

use crate::error::ClusterError;

/// The modes that are on unless others are named.
const DEFAULT: &str = "Node,RBAC";

/// The authorizers of an API server, and their files.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuthorizationFlags {
    /// Authorizers, asked in this order: Node, RBAC, ABAC, Webhook, AlwaysAllow, AlwaysDeny. The first that
    /// allows or denies a request decides; a request that none allows is refused.
    #[arg(long, value_delimiter = ',', default_value = DEFAULT)]
    authorization_mode: Vec<String>,
    /// Policies of the mode ABAC: a file with one `Policy` (abac.authorization.kubernetes.io/v1beta1) a line.
    #[arg(long)]
    authorization_policy_file: Option<PathBuf>,
    /// Kubeconfig of the mode Webhook: URL of the webhook, its CA, and the client's credentials.
    #[arg(long)]
    authorization_webhook_config_file: Option<PathBuf>,
    /// Time for which answers of the webhook that allow are kept.
    #[arg(long, default_value = "5m", value_parser = crate::duration::parse)]
    authorization_webhook_cache_authorized_ttl: Duration,
    /// Time for which other answers of the webhook are kept.
    #[arg(long, default_value = "30s", value_parser = crate::duration::parse)]
    authorization_webhook_cache_unauthorized_ttl: Duration,
    /// Version of the SubjectAccessReviews that are sent to the webhook: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1")]
    authorization_webhook_version: String,
    /// File with an AuthorizationConfiguration, in place of `--authorization-mode` and the webhook's flags.
    #[arg(long)]
    authorization_config: Option<PathBuf>,
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
        let named = |mode: &str| self.authorization_mode.iter().any(|name| name == mode);
        let webhook = "--authorization-webhook-config-file";
        if let Some(file) = &self.authorization_config {
            let flag = "--authorization-config";
            if self.authorization_mode.join(",") != DEFAULT
                || self.authorization_webhook_config_file.is_some()
            {
                return Err(invalid(
                    flag,
                    "cannot be combined with --authorization-mode or the webhook's flags",
                ));
            }
            return self.configured(&read(flag, file)?);
        }
        let flag = "--authorization-mode";
        let mut modes = Vec::new();
        for (at, name) in self.authorization_mode.iter().enumerate() {
            if self.authorization_mode[..at].contains(name) {
                return Err(invalid(flag, format!("{name} is given more than once")));
            }
            modes.push(match name.as_str() {
                "Webhook" => self.webhook()?,
                name => self.mode(name)?,
            });
        }
        if modes.is_empty() {
            return Err(invalid(flag, "at least one mode is needed, such as Node,RBAC"));
        }
        if self.authorization_policy_file.is_some() && !named("ABAC") {
            return Err(invalid("--authorization-policy-file", "add ABAC to --authorization-mode"));
        }
        if self.authorization_webhook_config_file.is_some() && !named("Webhook") {
            return Err(invalid(webhook, "add Webhook to --authorization-mode"));
        }
        Ok(modes)
    }

    /// Returns the file of --authorization-config.
    pub(crate) fn configuration_file(&self) -> Option<PathBuf> {
        self.authorization_config.clone()
    }

    /// Returns the authorizers of the text of that file.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] with the flag.
    pub(crate) fn configured(&self, text: &str) -> Result<Vec<AuthorizationMode>, ClusterError> {
        let file = self.authorization_config.as_deref().unwrap_or(Path::new(""));
        let why = |why| invalid("--authorization-config", format!("{}: {why}", file.display()));
        configuration::parse(text, self).map_err(why)
    }

    /// As [`AuthorizationFlags::configured`], for a server that was started with `started`.
    ///
    /// # Errors
    /// Also an authorizer other than a webhook that was not among them, which needs a restart.
    pub(crate) fn reconfigured(
        &self,
        text: &str,
        started: &[AuthorizationMode],
    ) -> Result<Vec<AuthorizationMode>, ClusterError> {
        let modes = self.configured(text)?;
        let kind = std::mem::discriminant::<AuthorizationMode>;
        let is_new = |mode: &&AuthorizationMode| {
            !matches!(mode, AuthorizationMode::Webhook(_)) && started.iter().all(|s| kind(s) != kind(mode))
        };
        match modes.iter().find(is_new) {
            None => Ok(modes),
            Some(mode) => {
                let name = match mode {
                    AuthorizationMode::Node => "Node",
                    AuthorizationMode::Rbac => "RBAC",
                    AuthorizationMode::Abac(_) => "ABAC",
                    AuthorizationMode::AlwaysAllow => "AlwaysAllow",
                    _ => "AlwaysDeny",
                };
                let why = format!(
                    "authorizer type {name} is not allowed if it was not enabled at initial server startup"
                );
                Err(invalid("--authorization-config", why))
            }
        }
    }

    /// Returns an authorizer that is no webhook.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] with the flag.
    fn mode(&self, name: &str) -> Result<AuthorizationMode, ClusterError> {
        match name {
            "Node" => Ok(AuthorizationMode::Node),
            "RBAC" => Ok(AuthorizationMode::Rbac),
            "ABAC" => Ok(AuthorizationMode::Abac(self.policies()?)),
            "AlwaysAllow" => Ok(AuthorizationMode::AlwaysAllow),
            "AlwaysDeny" => Ok(AuthorizationMode::AlwaysDeny),
            other => {
                let known = "Node, RBAC, ABAC, Webhook, AlwaysAllow and AlwaysDeny";
                Err(invalid("--authorization-mode", format!("{other:?} is no mode: {known} are")))
            }
        }
    }

    fn policies(&self) -> Result<Policies, ClusterError> {
        let flag = "--authorization-policy-file";
        let file = self.authorization_policy_file.as_deref();
        let file = file.ok_or_else(|| invalid(flag, "the mode ABAC needs a policy file"))?;
        let text = read(flag, file)?;
        Policies::parse(&text).map_err(|e| invalid(flag, format!("{}: {e}", file.display())))
    }

    fn webhook(&self) -> Result<AuthorizationMode, ClusterError> {
        let flag = "--authorization-webhook-config-file";
        let file = self.authorization_webhook_config_file.as_deref();
        let file = file.ok_or_else(|| invalid(flag, "the mode Webhook needs a kubeconfig"))?;
        let version = configuration::version(&self.authorization_webhook_version);
        let settings = WebhookSettings {
            authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
            unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
            version: version.map_err(|why| invalid("--authorization-webhook-version", why))?,
            ..WebhookSettings::default()
        };
        webhook(file, settings).map_err(|why| invalid(flag, why))
    }
}

/// Returns the authorizer that posts to the URL of a kubeconfig.
///
/// # Errors
/// The kubeconfig or a match condition cannot be used.
fn webhook(kubeconfig: &Path, settings: WebhookSettings) -> Result<AuthorizationMode, String> {
    let unusable = |e: &dyn std::fmt::Display| format!("{}: {e}", kubeconfig.display());
    let config = Kubeconfig::read(kubeconfig).map_err(|e| unusable(&e))?;
    let remote = config.remote(None).map_err(|e| unusable(&e))?;
    let url: http::Uri = remote.server.parse().map_err(|e| unusable(&e))?;
    let path = url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let client = Client::new(Remote::new(&remote).map_err(|e| unusable(&e))?).named("kube-apiserver");
    WebhookAuthorizer::new(client, &path, settings).map(AuthorizationMode::Webhook).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
