//! HTTP proxies (`proxy-url`).

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Longest response of a proxy, in bytes.
const LONGEST: usize = 8 << 10;

/// An HTTP proxy, which is asked for a tunnel with CONNECT.
#[derive(Clone)]
pub struct Proxy {
    host: String,
    port: u16,
    /// Value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

/// A proxy's URL that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The text is no URL.
    #[error(transparent)]
    Url(#[from] http::uri::InvalidUri),
    /// The scheme is another than `http`.
    #[error("only http:// proxies are supported")]
    Scheme,
}

impl Proxy {
    /// Parses `http://[USER:PASSWORD@]HOST[:PORT]`; the port defaults to 80.
    ///
    /// # Errors
    /// Another scheme, such as socks5 or https, or no URL.
    pub fn parse(url: &str) -> Result<Self, ProxyError> {
        let uri: Uri = url.parse()?;
        if uri.scheme_str() != Some("http") {
            return Err(ProxyError::Scheme);
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let user = uri.authority().and_then(|a| a.as_str().rsplit_once('@')).map(|(user, _)| user);
        let authorization = user.map(|user| {
            let user: Vec<u8> = percent_encoding::percent_decode_str(user).collect();
            format!("Basic {}", STANDARD.encode(user))
        });
        Ok(Proxy { host, port: uri.port_u16().unwrap_or(80), authorization })
    }

    /// Opens a tunnel to a host and port.
    pub(super) async fn connect(&self, host: &str, port: u16) -> std::io::Result<TcpStream> {
        let bad =
            |message: String| std::io::Error::other(format!("proxy {}:{}: {message}", self.host, self.port));
        let mut stream =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| bad(e.to_string()))?;
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = &self.authorization {
            request += &format!("Proxy-Authorization: {authorization}\r\n");
        }
        stream.write_all((request + "\r\n").as_bytes()).await?;
        // Byte by byte: what follows the head belongs to the tunnel.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == LONGEST {
                return Err(bad("its response is too long".into()));
            }
            head.push(stream.read_u8().await.map_err(|e| bad(e.to_string()))?);
        }
        let head = String::from_utf8_lossy(&head);
        let first = head.lines().next().unwrap_or_default();
        match first.split(' ').nth(1) {
            Some(code) if code.starts_with('2') => Ok(stream),
            _ => Err(bad(format!("it refused the tunnel to {target}: {first}"))),
        }
    }
}
