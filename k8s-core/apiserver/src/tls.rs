//! TLS of outgoing connections: to webhooks, aggregated API servers, kubelets and pods.
//!
//! Without the feature `tls` there is none, and every such connection is an error that says so.

use std::sync::Arc;

use tokio::net::TcpStream;

/// Client certificate and key (PEM) for calls to other servers.
#[derive(Clone)]
pub struct ClientIdentity {
    /// Certificate chain as PEM, leaf first.
    pub certificate: String,
    /// Private key as PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: String,
}

impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientIdentity { <key> }")
    }
}

/// The client certificate of connections, which can be replaced. Clones share it.
#[derive(Clone)]
pub(crate) struct ClientKeys(imp::Keys);

impl ClientKeys {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// The unusable part.
    pub(crate) fn new(identity: &ClientIdentity) -> Result<Self, String> {
        imp::keys(identity).map(ClientKeys)
    }

    /// Uses another certificate for new connections.
    ///
    /// # Errors
    /// The unusable part; the former certificate stays in use.
    pub(crate) fn replace(&self, identity: &ClientIdentity) -> Result<(), String> {
        imp::replace(&self.0, identity)
    }
}

/// The servers that a connection trusts.
pub(crate) enum Trust {
    /// Servers whose certificate one of these CAs (PEM) signed.
    Pem(Vec<u8>),
    /// Servers that the machine's own CAs vouch for.
    System,
    /// Any server (`insecureSkipTLSVerify`).
    Anyone,
}

/// The TLS settings of an outgoing connection. Only HTTP/1.1 is offered: upgrades need it.
#[derive(Clone)]
pub(crate) struct Tls(Arc<imp::Config>);

/// A connection after the handshake.
pub(crate) type Stream = imp::Stream;

impl Tls {
    /// Reads certificates and key.
    ///
    /// # Errors
    /// The unusable part.
    pub(crate) fn new(trust: &Trust, identity: Option<&ClientKeys>) -> Result<Self, String> {
        imp::config(trust, identity.map(|keys| &keys.0)).map(|config| Tls(Arc::new(config)))
    }

    /// Takes a configuration that was made elsewhere.
    #[cfg(feature = "tls")]
    pub(crate) fn of(config: k8s_tls::ClientConfig) -> Self {
        Tls(Arc::new(config))
    }

    /// Makes the handshake with `host`, a DNS name or IP address.
    pub(crate) async fn connect(&self, host: &str, tcp: TcpStream) -> std::io::Result<Stream> {
        imp::connect(self.0.clone(), host, tcp).await
    }
}

#[cfg(feature = "tls")]
mod imp {
    use std::sync::Arc;

    use tokio::net::TcpStream;

    use super::{ClientIdentity, Trust};

    pub(super) type Config = k8s_tls::ClientConfig;
    pub(super) type Stream = k8s_tls::TlsStream<TcpStream>;
    pub(super) type Keys = k8s_tls::ClientIdentity;

    fn pem(identity: &ClientIdentity) -> k8s_tls::Identity {
        k8s_tls::Identity {
            certificate: identity.certificate.clone().into_bytes(),
            key: identity.key.clone().into_bytes(),
        }
    }

    pub(super) fn keys(identity: &ClientIdentity) -> Result<Keys, String> {
        Keys::new(&pem(identity)).map_err(|e| e.to_string())
    }

    pub(super) fn replace(keys: &Keys, identity: &ClientIdentity) -> Result<(), String> {
        keys.replace(&pem(identity)).map_err(|e| e.to_string())
    }

    pub(super) fn config(trust: &Trust, identity: Option<&Keys>) -> Result<Config, String> {
        let system = match trust {
            Trust::System => {
                k8s_tls::system_bundle().and_then(|path| std::fs::read(path).ok()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let trust = match trust {
            Trust::Pem(pem) => k8s_tls::Trust::Pem(pem),
            Trust::System => k8s_tls::Trust::Bundle(&system),
            Trust::Anyone => k8s_tls::Trust::Anyone,
        };
        let config = match identity {
            Some(keys) => k8s_tls::client_of(&trust, keys, &[b"http/1.1"]),
            None => k8s_tls::client(&trust, None, &[b"http/1.1"]),
        };
        config.map_err(|e| e.to_string())
    }

    pub(super) async fn connect(config: Arc<Config>, host: &str, tcp: TcpStream) -> std::io::Result<Stream> {
        k8s_tls::connect(config, host, tcp).await
    }
}

#[cfg(not(feature = "tls"))]
mod imp {
    use std::{io, sync::Arc};

    use tokio::net::TcpStream;

    use super::{ClientIdentity, Trust};

    pub(super) struct Config;
    pub(super) type Stream = TcpStream;
    pub(super) type Keys = ();

    pub(super) fn keys(_: &ClientIdentity) -> Result<Keys, String> {
        Ok(())
    }

    pub(super) fn replace((): &Keys, _: &ClientIdentity) -> Result<(), String> {
        Ok(())
    }

    pub(super) fn config(trust: &Trust, _: Option<&Keys>) -> Result<Config, String> {
        match trust {
            Trust::Pem(pem) if pem.is_empty() => Err("CA certificate: empty".into()),
            Trust::Pem(_) | Trust::System | Trust::Anyone => Ok(Config),
        }
    }

    pub(super) async fn connect(_: Arc<Config>, host: &str, _: TcpStream) -> io::Result<Stream> {
        let why =
            format!("{host}: TLS needs k8s-apiserver's feature \"tls\", which this program is built without");
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }
}
