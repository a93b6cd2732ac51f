//! Forwards queries outside of the cluster domain to upstream servers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Timeout per upstream server. Resolvers give up after 5 s, so two servers must fit.
const TIMEOUT: Duration = Duration::from_millis(2000);

/// Parses the name servers of a `resolv.conf`, without `own` (it would be a loop).
pub(super) fn servers(resolv_conf: &str, own: IpAddr) -> Vec<SocketAddr> {
    let addresses = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    addresses.filter(|a| *a != own && !a.is_unspecified()).take(3).map(|a| SocketAddr::new(a, 53)).collect()
}

/// Forwards a query unchanged and returns the first response; `None` if no server responds in time.
pub(super) async fn ask(servers: &[SocketAddr], question: &[u8], tcp: bool) -> Option<Vec<u8>> {
    for server in servers.iter().take(2) {
        let answer =
            async { if tcp { over_tcp(*server, question).await } else { over_udp(*server, question).await } };
        if let Ok(Ok(answer)) = timeout(TIMEOUT, answer).await {
            return Some(answer);
        }
    }
    None
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // The socket is connected, so only this server's packets arrive; the id must match the query's.
        if length >= 12 && buffer[..2] == question[..2] && buffer[2] & 0x80 != 0 {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_address_is_no_upstream() {
        let text = "# c\nnameserver 10.43.0.10\nnameserver 192.0.2.53\nsearch a b\nnameserver x\n";
        let own = "10.43.0.10".parse().expect("ip");
        assert_eq!(servers(text, own), ["192.0.2.53:53".parse().expect("address")]);
    }
}
