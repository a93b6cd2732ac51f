//! Settings of authentication: flags of `kube-apiserver`, `up` and `server`, with upstream's names.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgAction, Args, Command, FromArgMatches};
use k8s_apiserver::{
    User,
    auth::{
        AuthenticationConfiguration, Authenticator, OidcSettings, Passwords, PublicKey, ReviewVersion,
        ServiceAccountTokens, TokenWebhook,
        tokens::{TokenIssuer, TokenSubject},
    },
};

use k8s_builtin::{Signer, TokenSigner};
use k8s_core::client::Kubeconfig;

use crate::error::ClusterError;

/// One issuer of JSON Web Tokens.
#[derive(Clone, Debug, Default, Args)]
struct OidcFlags {
    /// URL of an OpenID Connect issuer (https), whose JSON Web Tokens are accepted.
    #[arg(long)]
    oidc_issuer_url: Option<String>,
    /// Audience that tokens of the OpenID Connect issuer must have.
    #[arg(long)]
    oidc_client_id: Option<String>,
    /// CA (PEM) of the OpenID Connect issuer's server (default: the system's CAs).
    #[arg(long)]
    oidc_ca_file: Option<PathBuf>,
    /// Claim with the user name.
    #[arg(long, default_value = "sub")]
    oidc_username_claim: String,
    /// Prefix of user names; `-` means none (default: the issuer and `#`, and none for the claim email).
    #[arg(long, allow_hyphen_values = true)]
    oidc_username_prefix: Option<String>,
    /// Claim with the groups: a string or a list of strings.
    #[arg(long)]
    oidc_groups_claim: Option<String>,
    /// Prefix of groups.
    #[arg(long)]
    oidc_groups_prefix: Option<String>,
    /// Accepted signature algorithms, comma-separated: RS256, RS384, RS512, PS256, PS384, PS512, ES256,
    /// ES384.
    #[arg(long, value_delimiter = ',', default_value = "RS256")]
    oidc_signing_algs: Vec<String>,
    /// Claim that tokens must have, as `key=value`. May be repeated.
    #[arg(long, value_parser = pair)]
    oidc_required_claim: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is no key=value"))
}

impl OidcFlags {
    /// Returns the issuer of the flags; `None` without any.
    fn settings(&self) -> Result<Option<OidcSettings>, ClusterError> {
        let (issuer_url, client_id) = match (&self.oidc_issuer_url, &self.oidc_client_id) {
            (Some(issuer), Some(client)) => (issuer.clone(), client.clone()),
            (None, None) if !self.is_used() => return Ok(None),
            _ => {
                let why = "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set";
                return Err(ClusterError::invalid("--oidc-issuer-url", why));
            }
        };
        let ca = self
            .oidc_ca_file
            .as_deref()
            .map(|file| parsed("oidc-ca-file", file, |text| Ok::<_, String>(text.to_owned())));
        Ok(Some(OidcSettings {
            issuer_url,
            client_id,
            ca: ca.transpose()?,
            username_claim: self.oidc_username_claim.clone(),
            username_prefix: self.oidc_username_prefix.clone().unwrap_or_default(),
            groups_claim: self.oidc_groups_claim.clone().unwrap_or_default(),
            groups_prefix: self.oidc_groups_prefix.clone().unwrap_or_default(),
            signing_algs: self.oidc_signing_algs.clone(),
            required_claims: self.oidc_required_claim.clone(),
        }))
    }

    fn is_used(&self) -> bool {
        self.oidc_ca_file.is_some()
            || self.oidc_username_prefix.is_some()
            || self.oidc_groups_claim.is_some()
            || self.oidc_groups_prefix.is_some()
            || !self.oidc_required_claim.is_empty()
    }
}

/// Settings of authentication. Files are read at the start.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuthenticationSettings {
    /// Accept requests without credentials as system:anonymous; never with AlwaysAllow (default: true).
    #[arg(long, action = ArgAction::Set)]
    anonymous_auth: Option<bool>,
    /// AuthenticationConfiguration file: issuers of JSON Web Tokens, and anonymous requests. Instead of
    /// --oidc-* flags and --anonymous-auth.
    #[arg(long)]
    authentication_config: Option<PathBuf>,
    #[command(flatten)]
    oidc: OidcFlags,
    /// Kubeconfig of a webhook that reviews bearer tokens which this server does not know.
    #[arg(long)]
    authentication_token_webhook_config_file: Option<PathBuf>,
    /// Time for which an answer of the token webhook is used.
    #[arg(long, default_value = "2m", value_parser = crate::duration::parse)]
    authentication_token_webhook_cache_ttl: Duration,
    /// Version of the TokenReview for the token webhook: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1")]
    authentication_token_webhook_version: ReviewVersion,
    /// Static token file: lines of `token,user,uid[,"group1,group2"]`.
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Password file for HTTP basic authentication: lines of `password,user,uid[,"group1,group2"]`.
    #[arg(long)]
    basic_auth_file: Option<PathBuf>,
    /// Accept the bootstrap tokens in Secrets of type bootstrap.kubernetes.io/token in kube-system.
    #[arg(long)]
    enable_bootstrap_token_auth: bool,
    /// Issuer of service account tokens. May be repeated: the first is in new tokens, all are accepted.
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    service_account_issuer: Vec<String>,
    /// Audiences of service account tokens for the API server, comma-separated (default: the issuers).
    #[arg(long, value_delimiter = ',')]
    api_audiences: Vec<String>,
    /// File of PEM keys (RSA, P-256, P-384; public or private) that verify service account tokens, beside
    /// the signing key. May be repeated.
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    /// Private key (PEM) that signs service account tokens (default: service-account.key in the certificate
    /// directory).
    #[arg(long)]
    service_account_signing_key_file: Option<PathBuf>,
    /// URL of the token keys in /.well-known/openid-configuration (default: /openid/v1/jwks at the advertised
    /// address).
    #[arg(long)]
    service_account_jwks_uri: Option<String>,
    /// Longest lifetime of a service account token (`24h`), from an hour on; longer requests get it. 0 means
    /// no limit.
    #[arg(long, default_value = "0s", value_parser = crate::duration::parse)]
    service_account_max_token_expiration: Duration,
}

impl Default for AuthenticationSettings {
    fn default() -> Self {
        let matches = Self::augment_args(Command::new("defaults")).get_matches_from(["defaults"]);
        Self::from_arg_matches(&matches).expect("every setting is optional or has a valid default")
    }
}

impl AuthenticationSettings {
    /// Returns the authenticator of these settings.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub(crate) fn authenticator(&self) -> Result<Authenticator, ClusterError> {
        let tokens = match &self.token_auth_file {
            Some(file) => parsed("token-auth-file", file, Authenticator::parse_token_file)?,
            None => HashMap::<String, User>::new(),
        };
        let passwords = match &self.basic_auth_file {
            Some(file) => parsed("basic-auth-file", file, Passwords::parse)?,
            None => Passwords::default(),
        };
        let authenticator = Authenticator::new(tokens, self.anonymous_auth.unwrap_or(true))
            .passwords(passwords)
            .bootstrap_tokens(self.enable_bootstrap_token_auth);
        let authenticator = match self.webhook()? {
            Some(webhook) => authenticator.token_webhook(webhook),
            None => authenticator,
        };
        let configurations = self.configurations()?.into_iter();
        Ok(configurations.fold(authenticator, Authenticator::configured))
    }

    fn webhook(&self) -> Result<Option<TokenWebhook>, ClusterError> {
        let Some(file) = &self.authentication_token_webhook_config_file else { return Ok(None) };
        let setting = format!("--authentication-token-webhook-config-file {}", file.display());
        let config = Kubeconfig::read(file).and_then(|config| config.remote(None));
        let mut config = config.map_err(|e| ClusterError::invalid(&setting, e))?;
        if config.ca.is_none() {
            config.ca = k8s_tls::system_bundle().and_then(|bundle| fs::read(bundle).ok());
        }
        let ttl = self.authentication_token_webhook_cache_ttl;
        let webhook = TokenWebhook::new(&config, self.authentication_token_webhook_version, ttl);
        webhook.map(Some).map_err(|e| ClusterError::invalid(&setting, e))
    }

    /// Returns the file of --authentication-config.
    pub(crate) fn configuration_file(&self) -> Option<PathBuf> {
        self.authentication_config.clone()
    }

    /// Returns the AuthenticationConfiguration of the file, and the issuer of the flags.
    fn configurations(&self) -> Result<Vec<AuthenticationConfiguration>, ClusterError> {
        match &self.authentication_config {
            Some(file) => parsed("authentication-config", file, |text| Ok::<_, String>(text.to_owned()))
                .and_then(|text| self.configurations_of(Some(&text))),
            None => self.configurations_of(None),
        }
    }

    /// As [`AuthenticationSettings::configurations`], with the text of the file.
    ///
    /// # Errors
    /// The text or a flag cannot be used.
    pub(crate) fn configurations_of(
        &self,
        text: Option<&str>,
    ) -> Result<Vec<AuthenticationConfiguration>, ClusterError> {
        let reserved = &self.service_account_issuer;
        let mut all = Vec::new();
        if let (Some(text), Some(file)) = (text, &self.authentication_config) {
            let invalid = |e| ClusterError::invalid(format!("--authentication-config {}", file.display()), e);
            all.push(AuthenticationConfiguration::parse(text, reserved).map_err(invalid)?);
        }
        let flags = self.oidc.settings()?;
        let file = all.first();
        let why = if file.is_some_and(AuthenticationConfiguration::has_anonymous)
            && self.anonymous_auth.is_some()
        {
            "the file decides about anonymous requests: leave out --anonymous-auth"
        } else if file.is_some_and(AuthenticationConfiguration::has_issuers) && flags.is_some() {
            "authentication-config file and oidc-* flags are mutually exclusive"
        } else {
            let flags = flags.map(|flags| AuthenticationConfiguration::of_oidc(flags, reserved));
            all.extend(flags.transpose().map_err(|e| ClusterError::invalid("--oidc-issuer-url", e))?);
            return Ok(all);
        };
        Err(ClusterError::invalid("--authentication-config", why))
    }

    /// Returns the settings of service account tokens. `address` is this server's for clients elsewhere.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub(crate) fn service_account_tokens(
        &self,
        address: Option<SocketAddr>,
    ) -> Result<ServiceAccountTokens, ClusterError> {
        let mut keys = Vec::new();
        for file in &self.service_account_key_file {
            keys.extend(parsed("service-account-key-file", file, PublicKey::parse_pem)?);
        }
        if let Some(wrong) = self.service_account_issuer.iter().find(|issuer| issuer.is_empty()) {
            return Err(ClusterError::invalid("--service-account-issuer", format!("{wrong:?} is no issuer")));
        }
        let most = self.service_account_max_token_expiration;
        if !most.is_zero() && !(Duration::from_secs(3600)..=Duration::from_secs(1 << 32)).contains(&most) {
            let why = "must be between 1 hour and 2^32 seconds";
            return Err(ClusterError::invalid("--service-account-max-token-expiration", why));
        }
        Ok(ServiceAccountTokens {
            issuers: self.service_account_issuer.clone(),
            audiences: self.api_audiences.clone(),
            keys,
            jwks_uri: self.service_account_jwks_uri.clone(),
            external_address: address.map(|address| address.to_string()),
            max_seconds: i64::try_from(most.as_secs()).ok().filter(|seconds| *seconds > 0),
        })
    }

    /// Returns the key that signs service account tokens, if it is chosen.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn signing_key(&self) -> Result<Option<Vec<u8>>, ClusterError> {
        let file = self.service_account_signing_key_file.as_deref();
        file.map(|file| read("service-account-signing-key-file", file)).transpose()
    }
}

/// Signs tokens of Secrets with a private key.
struct SecretTokens(TokenIssuer);

impl TokenSigner for SecretTokens {
    fn sign(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> Result<String, String> {
        let subject = TokenSubject {
            namespace: namespace.into(),
            name: account.into(),
            uid: uid.into(),
            ..TokenSubject::default()
        };
        self.0.issue_legacy(&subject, secret).map_err(|e| e.to_string())
    }
}

/// Returns the signer of tokens in Secrets.
///
/// # Errors
/// The key is damaged or unsupported.
pub(crate) fn token_signer(key: &[u8]) -> Result<Signer, ClusterError> {
    let issuer = TokenIssuer::new(Some(key)).map_err(ClusterError::of("service account tokens"))?;
    Ok(Signer::new(SecretTokens(issuer)))
}

/// Reads the file of a flag.
fn read(flag: &str, file: &Path) -> Result<Vec<u8>, ClusterError> {
    fs::read(file).map_err(|e| ClusterError::invalid(format!("--{flag} {}", file.display()), e))
}

/// Reads and parses the text file of a flag.
fn parsed<T, E: std::fmt::Display>(
    flag: &str,
    file: &Path,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, ClusterError> {
    let bytes = read(flag, file)?;
    let invalid =
        |e: &dyn std::fmt::Display| ClusterError::invalid(format!("--{flag} {}", file.display()), e);
    let text = std::str::from_utf8(&bytes).map_err(|e| invalid(&e))?;
    parse(text).map_err(|e| invalid(&e))
}
