//! The stand-in of kube-apiserver for Go's envtest, with the flags that it passes.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{
    ApiServer,
    auth::{Authenticator, PublicKey, ServiceAccountTokens},
    listen::{self, TlsFiles},
};
use k8s_store::Store;
use tokio_util::sync::CancellationToken;

use crate::{
    authorization::AuthorizationFlags,
    commands::{
        exit::{Code, Failure},
        stop_signal,
    },
    control_plane::{bind, limits},
    ranges,
    versions::VersionSettings,
};

/// Flags of upstream's kube-apiserver that are accepted without effect. All others are refused.
#[derive(Debug, clap::Args)]
struct WithoutEffect {
    /// No effect.
    #[arg(long, value_name = "VALUE")]
    advertise_address: Option<String>,
    /// No effect: privileged pods are admitted.
    #[arg(long, value_name = "VALUE")]
    allow_privileged: Option<String>,
    /// No effect.
    #[arg(long, value_name = "VALUE")]
    enable_admission_plugins: Option<String>,
    /// No effect: objects are in memory.
    #[arg(long, value_name = "VALUE")]
    etcd_servers: Option<String>,
    /// No effect.
    #[arg(long, value_name = "VALUE")]
    feature_gates: Option<String>,
}

impl WithoutEffect {
    /// Tells of the flags that a suite has chosen itself: Go's envtest passes the others always.
    fn tell(&self) {
        let chosen = [
            ("enable-admission-plugins", &self.enable_admission_plugins),
            ("feature-gates", &self.feature_gates),
        ];
        for (name, _) in chosen.iter().filter(|(_, value)| value.is_some()) {
            eprintln!("warning: --{name} has no effect in this stand-in of kube-apiserver");
        }
    }
}

/// Stand-in of kube-apiserver for Go's envtest: objects are in memory.
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct KubeApiServer {
    /// Listen address.
    #[arg(long, default_value = "127.0.0.1")]
    bind_address: IpAddr,
    /// Listen port.
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Directory of apiserver.crt and apiserver.key.
    #[arg(long)]
    cert_dir: Option<PathBuf>,
    /// Server certificate (default: apiserver.crt in the certificate directory).
    #[arg(long)]
    tls_cert_file: Option<PathBuf>,
    /// Server key (default: apiserver.key in the certificate directory).
    #[arg(long)]
    tls_private_key_file: Option<PathBuf>,
    /// CA of client certificates.
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// Static token file: lines of `token,user,uid[,"group1,group2"]`.
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Private key (PEM) that signs service account tokens (default: a new one).
    #[arg(long)]
    service_account_signing_key_file: Option<PathBuf>,
    /// Issuer of service account tokens. May be repeated: the first is in new tokens, all are accepted.
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    service_account_issuer: Vec<String>,
    /// File of PEM keys that verify service account tokens, beside the signing key. May be repeated.
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    /// Service CIDR.
    #[arg(long, default_value = ranges::SERVICES, value_parser = ranges::parse)]
    service_cluster_ip_range: Ipv4Net,
    #[command(flatten)]
    authorization: AuthorizationFlags,
    /// Admission plugins to turn off; may be repeated.
    #[arg(long, value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    #[command(flatten)]
    versions: VersionSettings,
    #[command(flatten)]
    without_effect: WithoutEffect,
}

impl KubeApiServer {
    /// Serves until a signal.
    pub(in crate::commands) async fn run(self) -> Result<(), Failure> {
        self.without_effect.tell();
        let authorization = self.authorization.modes()?;
        let tokens = match &self.token_auth_file {
            None => HashMap::new(),
            Some(file) => Authenticator::parse_token_file(&String::from_utf8_lossy(&read(file)?))
                .map_err(|e| Failure::new(Code::Usage, format!("{}: {e}", file.display())))?,
        };
        let mut account_tokens = ServiceAccountTokens {
            issuers: self.service_account_issuer.clone(),
            external_address: Some(SocketAddr::new(self.bind_address, self.secure_port).to_string()),
            ..ServiceAccountTokens::default()
        };
        for file in &self.service_account_key_file {
            let invalid = format!("--service-account-key-file {}", file.display());
            let keys = PublicKey::parse_pem(&String::from_utf8_lossy(&read(file)?));
            account_tokens.keys.extend(keys.map_err(Failure::because(invalid))?);
        }
        let server = self
            .versions
            .apply(ApiServer::builder(Store::memory()))
            .service_account_tokens(account_tokens)
            .authenticator(Authenticator::new(tokens, true))
            .authorization(authorization)
            .service_range(self.service_cluster_ip_range)
            .without_plugins(self.disable_admission_plugins.iter().filter(|name| !name.is_empty()))
            .limits(limits());
        let server = match &self.service_account_signing_key_file {
            None => server,
            Some(file) => server.service_account_key(read(file)?),
        };
        let files = TlsFiles {
            certificate: read(&self.certificate_file(&self.tls_cert_file, "apiserver.crt")?)?,
            key: read(&self.certificate_file(&self.tls_private_key_file, "apiserver.key")?)?,
            client_ca: self.client_ca_file.as_deref().map(read).transpose()?,
        };
        let tls = listen::tls_config(&files).map_err(Failure::because("the server certificate"))?;
        let listener = bind(SocketAddr::new(self.bind_address, self.secure_port)).await?;
        let server = server.build().await.map_err(Failure::because("start the API server"))?;
        let stop = CancellationToken::new();
        tokio::select! {
            ended = listen::serve(server, listener, Arc::new(tls), stop) => {
                ended.map_err(Failure::io("serve"))
            }
            () = stop_signal() => Ok(()),
        }
    }

    fn certificate_file(&self, given: &Option<PathBuf>, name: &str) -> Result<PathBuf, Failure> {
        let default = || self.cert_dir.as_ref().map(|directory| directory.join(name));
        given.clone().or_else(default).ok_or_else(|| {
            Failure::new(Code::Usage, "--cert-dir, or --tls-cert-file and --tls-private-key-file are needed")
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(Failure::io(format!("read {}", path.display())))
}
