//! The PROXY protocol, versions 1 and 2: the client's address, as a proxy in front tells it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of the line of version 1 at most, with its end.
const LONGEST_LINE: usize = 107;
/// Bytes behind the head of version 2 at most.
const LONGEST: usize = 2048;

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("PROXY protocol: {what}"))
}

/// Reads the preface of a connection, and nothing behind it. Returns the client's address; `None` if the
/// proxy speaks for itself.
///
/// # Errors
/// The connection does not begin with a preface.
pub(crate) async fn read<T: AsyncRead + Unpin>(stream: &mut T) -> io::Result<Option<IpAddr>> {
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    if head == SIGNATURE {
        return version2(stream).await;
    }
    if !head.starts_with(b"PROXY ") {
        return Err(wrong("it is missing"));
    }
    let mut line = head.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LONGEST_LINE {
            return Err(wrong("the line is too long"));
        }
        // One by one: what is behind the line is the client's.
        line.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&line).map_err(|_| wrong("the line is no text"))?;
    let parts: Vec<_> = text.trim_end().split(' ').collect();
    match parts[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", "TCP4" | "TCP6", source, _, _, _] => {
            source.parse().map(Some).map_err(|_| wrong("the source is no address"))
        }
        _ => Err(wrong("the line is malformed")),
    }
}

async fn version2<T: AsyncRead + Unpin>(stream: &mut T) -> io::Result<Option<IpAddr>> {
    let command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let length = usize::from(stream.read_u16().await?);
    if length > LONGEST {
        return Err(wrong("it is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match (command, family >> 4) {
        (0x20, _) => Ok(None),
        (0x21, 1) if length >= 12 => {
            Ok(rest.first_chunk::<4>().map(|bytes| IpAddr::V4(Ipv4Addr::from(*bytes))))
        }
        (0x21, 2) if length >= 36 => {
            Ok(rest.first_chunk::<16>().map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes))))
        }
        (0x21, 0 | 3) => Ok(None),
        _ => Err(wrong("the head is malformed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_versions_and_what_is_behind_stays() {
        let mut second = SIGNATURE.to_vec();
        second.extend([0x21, 0x11, 0, 12, 192, 0, 2, 7, 10, 0, 0, 1, 0, 80, 0, 80]);
        let mut own = SIGNATURE.to_vec();
        own.extend([0x20, 0, 0, 0]);
        for (text, want) in [
            (&b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\r\n"[..], Some("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::1 ::1 5000 80\r\n", Some("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n", None),
            (&second, Some("192.0.2.7")),
            (&own, None),
        ] {
            let whole = [text, b"GET /"].concat();
            let mut left = &whole[..];
            let got = read(&mut left).await.unwrap();
            assert_eq!(got.map(|ip| ip.to_string()).as_deref(), want);
            assert_eq!(left, b"GET /");
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let mut long = SIGNATURE.to_vec();
        long.extend([0x21, 0x11, 0xff, 0xff]);
        let endless = format!("PROXY TCP4 {}", "1".repeat(500));
        for text in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 x y 1 2\r\n",
            b"PROXY TCP4\r\n",
            b"PROX",
            &long,
            endless.as_bytes(),
        ] {
            assert!(read(&mut &*text).await.is_err());
        }
    }
}
