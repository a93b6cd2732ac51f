//! The server side.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientCertVerifierBuilder, ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};

use crate::{Identity, Policy, TlsError, names::names_of, roots};

/// The client certificates that a server asks for.
#[derive(Clone, Copy, Debug)]
pub enum ClientAuth<'a> {
    /// No client certificate is requested.
    Off,
    /// A certificate signed by one of these CAs (PEM), or none. Any other fails the handshake.
    Optional(&'a [u8]),
    /// A certificate signed by one of these CAs (PEM). Anything else fails the handshake.
    Required(&'a [u8]),
}

/// A certificate for some of a server's names (SNI).
#[derive(Clone, Debug)]
pub struct NamedIdentity {
    /// Certificate chain and key.
    pub identity: Identity,
    /// DNS names, `*.` and a domain, or addresses of this machine. Empty: the names in the certificate.
    pub names: Vec<String>,
}

/// Settings of a server beside its own certificate.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings<'a> {
    /// Client certificates.
    pub clients: ClientAuth<'a>,
    /// Application protocols in order of preference.
    pub alpn: &'a [&'a [u8]],
    /// Certificates for names. Names that are given go before names in certificates, and earlier entries
    /// before later ones.
    pub named: &'a [NamedIdentity],
    /// Versions and cipher suites.
    pub policy: &'a Policy,
}

/// The configurations of a server: one for each address that has a certificate of its own, and the default.
#[derive(Clone, Debug)]
pub struct ServerConfigs {
    default: Arc<ServerConfig>,
    by_address: HashMap<IpAddr, Arc<ServerConfig>>,
}

impl ServerConfigs {
    /// Returns the configuration for connections to an address of this machine.
    #[must_use]
    pub fn at(&self, local: Option<IpAddr>) -> Arc<ServerConfig> {
        let own = local.and_then(|address| self.by_address.get(&address.to_canonical()));
        own.unwrap_or(&self.default).clone()
    }
}

impl From<Arc<ServerConfig>> for ServerConfigs {
    fn from(default: Arc<ServerConfig>) -> Self {
        ServerConfigs { default, by_address: HashMap::new() }
    }
}

/// Builds a server's TLS configuration, with the server's order of cipher suites. `alpn` lists the
/// application protocols in order of preference.
///
/// ```
/// use k8s_tls::{ClientAuth, Identity, server};
///
/// let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
/// let certificate = made.cert.pem().into_bytes();
/// let identity = Identity { certificate, key: made.signing_key.serialize_pem().into_bytes() };
/// let ca = identity.certificate.clone();
/// let config = server(&identity, &ClientAuth::Optional(&ca), &[b"h2", b"http/1.1"])?;
/// assert_eq!(config.alpn_protocols.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A CA, certificate or key that is not usable PEM; the error names the part.
pub fn server(
    identity: &Identity,
    clients: &ClientAuth<'_>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let policy = Policy::default();
    let settings = ServerSettings { clients: *clients, alpn, named: &[], policy: &policy };
    let key = Arc::new(identity.certified(&policy.provider())?);
    config(&settings, Arc::new(ByName { default: key, names: HashMap::new() }))
}

/// Builds the configurations of a server with certificates for names, and with a policy.
///
/// ```
/// use k8s_tls::{ClientAuth, Identity, NamedIdentity, Policy, ServerSettings, server_with};
///
/// let made = |name: &str| {
///     let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
///     let key = made.signing_key.serialize_pem().into_bytes();
///     Ok::<_, rcgen::Error>(Identity { certificate: made.cert.pem().into_bytes(), key })
/// };
/// let named = [NamedIdentity { identity: made("shop.example.com")?, names: Vec::new() }];
/// let policy = Policy::parse("VersionTLS13", &[])?;
/// let clients = ClientAuth::Off;
/// let settings = ServerSettings { clients, alpn: &[b"h2"], named: &named, policy: &policy };
/// let configs = server_with(&made("localhost")?, &settings)?;
/// assert_eq!(configs.at(None).alpn_protocols, [b"h2".to_vec()]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`server`]. The message has the number of an entry of `named`, from 0 on.
pub fn server_with(identity: &Identity, settings: &ServerSettings<'_>) -> Result<ServerConfigs, TlsError> {
    let provider = settings.policy.provider();
    let default = Arc::new(identity.certified(&provider)?);
    let (mut explicit, mut implicit) = (HashMap::new(), HashMap::new());
    for (at, named) in settings.named.iter().enumerate() {
        let key = named.identity.certified(&provider).map_err(|e| TlsError {
            part: e.part,
            message: format!("SNI certificate {at}: {}", e.message),
        })?;
        let key = Arc::new(key);
        let (into, names) = match &named.names[..] {
            [] => (&mut implicit, key.cert.first().map(|leaf| names_of(leaf)).unwrap_or_default()),
            names => (&mut explicit, names.to_vec()),
        };
        for name in names {
            into.entry(name.to_ascii_lowercase()).or_insert_with(|| key.clone());
        }
    }
    let mut names: HashMap<String, Arc<CertifiedKey>> = implicit;
    names.extend(explicit);
    let with = |default: &Arc<CertifiedKey>| {
        let resolver = ByName { default: default.clone(), names: names.clone() };
        config(settings, Arc::new(resolver)).map(Arc::new)
    };
    let mut by_address = HashMap::new();
    for (name, key) in &names {
        if let Ok(address) = name.parse::<IpAddr>() {
            let resolver = ByAddress {
                without_name: key.clone(),
                with_name: ByName { default: default.clone(), names: names.clone() },
            };
            by_address.insert(address.to_canonical(), Arc::new(config(settings, Arc::new(resolver))?));
        }
    }
    Ok(ServerConfigs { default: with(&default)?, by_address })
}

fn config(
    settings: &ServerSettings<'_>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(settings.policy.provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(settings.policy.versions())
        .map_err(TlsError::of("TLS"))?;
    let builder = match settings.clients {
        ClientAuth::Off => builder.with_no_client_auth(),
        ClientAuth::Optional(pem) => {
            let verifier = verifier(pem, provider)?.allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(TlsError::of("CA certificate"))?)
        }
        ClientAuth::Required(pem) => {
            let verifier = verifier(pem, provider)?.build();
            builder.with_client_cert_verifier(verifier.map_err(TlsError::of("CA certificate"))?)
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.ignore_client_order = true;
    config.alpn_protocols = settings.alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn verifier(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<ClientCertVerifierBuilder, TlsError> {
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider))
}

/// Chooses a certificate by the name that the client asks for: the name, then the name with `*` for its first
/// label, then the default.
#[derive(Debug)]
struct ByName {
    default: Arc<CertifiedKey>,
    names: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    fn of(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let found = name.filter(|_| !self.names.is_empty()).and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wild = || name.split_once('.').map_or("*".to_owned(), |(_, domain)| format!("*.{domain}"));
            self.names.get(&name).or_else(|| self.names.get(&wild()))
        });
        found.unwrap_or(&self.default).clone()
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.of(hello.server_name()))
    }
}

/// Chooses as [`ByName`], and for clients that ask for no name the certificate of the address.
#[derive(Debug)]
struct ByAddress {
    without_name: Arc<CertifiedKey>,
    with_name: ByName,
}

impl ResolvesServerCert for ByAddress {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            None => Some(self.without_name.clone()),
            name => Some(self.with_name.of(name)),
        }
    }
}
