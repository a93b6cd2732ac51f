//! The ports that the node itself uses: those of listening programs and the host ports of pods.
//!
//! Services are not answered on them (see `rules::OWN`): whoever may create a Service could otherwise take
//! the API server's or the SSH daemon's port. A port stays the node's for [`HOLD`] after it was last seen, so
//! that a program may restart.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs, io,
    net::Ipv4Addr,
    str::FromStr,
    time::{Duration, Instant},
};

use crate::{
    bridge::rules::{HOST_PORTS, HOST_PORTS_AT, table_beside},
    netlink::{NLM_F_DUMP, Socket, attr_of},
    nft::Nft,
};

/// Interval at which the node's ports are read.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// Time for which a port that is no longer in use stays the node's.
const HOLD: Duration = Duration::from_secs(30);

const SOCK_DIAG: i32 = 4;
const BY_FAMILY: u16 = 20;
const V6_ONLY: u16 = 11;
const LISTEN: u32 = 1 << 10;
/// UDP sockets that are not connected.
const CLOSED: u32 = 1 << 7;

/// A port in use. Its text is `TCP/22`, or `UDP/192.0.2.2:53` for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortUse {
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// `None`: all addresses of the node.
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) port: u16,
}

impl fmt::Display for PortUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = crate::protocol_name(self.protocol);
        match self.address {
            None => write!(f, "{protocol}/{}", self.port),
            Some(address) => write!(f, "{protocol}/{address}:{}", self.port),
        }
    }
}

impl PortUse {
    /// Returns a port in use on an address or, if that is unspecified, on all. `None`: it is not reachable
    /// from outside of the node.
    fn reachable(protocol: u8, address: Ipv4Addr, port: u16) -> Option<Self> {
        let address = Some(address).filter(|address| !address.is_unspecified());
        let is_reachable = port != 0 && !address.is_some_and(|address| address.is_loopback());
        is_reachable.then_some(PortUse { protocol, address, port })
    }
}

/// A text that is no port in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoPort;

impl FromStr for PortUse {
    type Err = NoPort;

    fn from_str(text: &str) -> Result<Self, NoPort> {
        let (protocol, rest) = text.split_once('/').ok_or(NoPort)?;
        let (address, port) = match rest.split_once(':') {
            Some((address, port)) => (Some(address.parse().map_err(|_| NoPort)?), port),
            None => (None, rest),
        };
        let protocol = crate::protocol_number(protocol).ok_or(NoPort)?;
        Ok(PortUse { protocol, address, port: port.parse().map_err(|_| NoPort)? })
    }
}

/// Reads the node's ports, and keeps them for [`HOLD`].
#[derive(Debug)]
pub(super) struct OwnPorts {
    pods: String,
    always: BTreeSet<PortUse>,
    seen: HashMap<PortUse, Instant>,
    /// Ports that services wanted at the last reading.
    wanted: BTreeSet<(u8, u16)>,
}

impl OwnPorts {
    /// Of the node whose service table is `table`; `always` are the node's even if nothing listens.
    pub(super) fn new(table: &str, always: BTreeSet<PortUse>) -> Self {
        OwnPorts { pods: table_beside(table), always, seen: HashMap::new(), wanted: BTreeSet::new() }
    }

    /// Returns true if services want a port that was not looked for yet.
    pub(super) fn is_new(&self, wanted: &BTreeSet<(u8, u16)>) -> bool {
        !wanted.is_subset(&self.wanted)
    }

    /// Reads the ports in use. Those from which the kernel chooses ports of clients count only if a service
    /// wants them: they come and go.
    pub(super) fn read(
        &mut self,
        nft: &mut Nft,
        wanted: BTreeSet<(u8, u16)>,
        now: Instant,
    ) -> io::Result<BTreeSet<PortUse>> {
        let mut found = listening()?;
        let ephemeral = ephemeral();
        found.retain(|p| !ephemeral.contains(&p.port) || wanted.contains(&(p.protocol, p.port)));
        found.extend(host_ports(nft, &self.pods)?);
        self.wanted = wanted;
        self.seen.extend(found.into_iter().map(|port| (port, now)));
        self.seen.retain(|_, seen| *seen + HOLD > now);
        Ok(self.seen.keys().chain(&self.always).copied().collect())
    }
}

/// Reads the ports on which TCP sockets listen and UDP sockets receive, except those of loopback addresses.
fn listening() -> io::Result<BTreeSet<PortUse>> {
    let mut found = BTreeSet::new();
    for (protocol, states) in [(6u8, LISTEN), (17, CLOSED)] {
        for family in [libc::AF_INET, libc::AF_INET6] {
            match by_netlink(protocol, family, states) {
                Ok(ports) => found.extend(ports),
                // The kernel has no socket diagnosis, or no IPv6.
                Err(_) => found.extend(by_proc(protocol, family)?),
            }
        }
    }
    Ok(found)
}

fn by_netlink(protocol: u8, family: i32, states: u32) -> io::Result<Vec<PortUse>> {
    let mut found = Vec::new();
    let mut request = [0; 56];
    request[0] = u8::try_from(family).unwrap_or_default();
    request[1] = protocol;
    request[4..8].copy_from_slice(&states.to_ne_bytes());
    Socket::open(SOCK_DIAG)?.dump(
        |m, seq| {
            m.begin(BY_FAMILY, NLM_F_DUMP, seq, &request).end();
        },
        |_, body| found.extend(port_of(protocol, body)),
    )?;
    Ok(found)
}

/// As [`by_netlink`], from `/proc/net`, which lists all connections and does not tell IPv6-only sockets.
fn by_proc(protocol: u8, family: i32) -> io::Result<Vec<PortUse>> {
    let name = if protocol == 6 { "tcp" } else { "udp" };
    let suffix = if family == libc::AF_INET { "" } else { "6" };
    match fs::read_to_string(format!("/proc/thread-self/net/{name}{suffix}")) {
        Ok(text) => Ok(text.lines().skip(1).filter_map(|line| port_of_line(protocol, line)).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Reads a line: number, local address and port, remote ones, state, ...
fn port_of_line(protocol: u8, line: &str) -> Option<PortUse> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    if state != if protocol == 6 { "0A" } else { "07" } {
        return None;
    }
    // Words of the machine's own byte order.
    let words =
        address.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let address = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(bytes) => Ipv4Addr::from(bytes),
        Err(_) => mapped(<[u8; 16]>::try_from(bytes).ok()?)?,
    };
    PortUse::reachable(protocol, address, u16::from_str_radix(port, 16).ok()?)
}

/// Returns the IPv4 address of an IPv6 socket.
fn mapped(bytes: [u8; 16]) -> Option<Ipv4Addr> {
    let address = std::net::Ipv6Addr::from(bytes);
    if address.is_unspecified() { Some(Ipv4Addr::UNSPECIFIED) } else { address.to_ipv4_mapped() }
}

/// Reads an `inet_diag_msg`. `None`: not reachable by IPv4 from outside of the node.
fn port_of(protocol: u8, message: &[u8]) -> Option<PortUse> {
    let port = u16::from_be_bytes(message.get(4..6)?.try_into().ok()?);
    let bytes: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    let address = if i32::from(*message.first()?) == libc::AF_INET6 {
        let only = message.get(72..).and_then(|rest| attr_of(rest, V6_ONLY)).and_then(<[u8]>::first);
        if only.is_some_and(|only| *only != 0) {
            return None;
        }
        mapped(bytes)?
    } else {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])
    };
    PortUse::reachable(protocol, address, port)
}

/// Returns the ports from which the kernel chooses those of clients.
fn ephemeral() -> std::ops::RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().filter_map(|end| end.parse().ok());
    ends.next().unwrap_or(32_768)..=ends.next().unwrap_or(60_999)
}

/// Reads the host ports of pods.
fn host_ports(nft: &mut Nft, table: &str) -> io::Result<Vec<PortUse>> {
    let mut keys = |set| match nft.keys(table, set) {
        // The pod network is of another program, or not there yet.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        other => other,
    };
    let port = |address, tail: &[u8]| {
        let port = u16::from_be_bytes(tail.get(4..6)?.try_into().ok()?);
        Some(PortUse { protocol: *tail.first()?, address, port })
    };
    let any = keys(HOST_PORTS)?;
    let at = keys(HOST_PORTS_AT)?;
    let at = at.iter().filter_map(|key| {
        let address: [u8; 4] = key.get(..4)?.try_into().ok()?;
        port(Some(address.into()), key.get(4..)?)
    });
    Ok(any.iter().filter_map(|key| port(None, key)).chain(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: i32, port: u16, address: [u8; 16], only: Option<u8>) -> Vec<u8> {
        let mut bytes = vec![0; 72];
        bytes[0] = u8::try_from(family).unwrap();
        bytes[4..6].copy_from_slice(&port.to_be_bytes());
        bytes[8..24].copy_from_slice(&address);
        if let Some(only) = only {
            bytes.extend_from_slice(&[5, 0, 11, 0, only, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn only_what_ipv4_reaches_from_outside_is_the_nodes() {
        let v4 = |a: [u8; 4]| [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 2];
        let text = |message: Vec<u8>| port_of(6, &message).map(|port| port.to_string());
        let (inet, inet6) = (libc::AF_INET, libc::AF_INET6);
        assert_eq!(text(message(inet, 22, [0; 16], None)).as_deref(), Some("TCP/22"));
        assert_eq!(text(message(inet, 53, v4([192, 0, 2, 2]), None)).as_deref(), Some("TCP/192.0.2.2:53"));
        assert_eq!(text(message(inet, 53, v4([127, 0, 0, 53]), None)), None);
        assert_eq!(text(message(inet6, 22, [0; 16], Some(0))).as_deref(), Some("TCP/22"));
        assert_eq!(text(message(inet6, 22, [0; 16], Some(1))), None);
        assert_eq!(text(message(inet6, 22, mapped, None)).as_deref(), Some("TCP/192.0.2.2:22"));
        assert_eq!(text(message(inet6, 22, [1; 16], None)), None);
        for cut in 0..72 {
            let _ = port_of(6, &message(inet6, 22, mapped, Some(1))[..cut]);
        }
    }

    #[test]
    fn lines_of_proc_say_the_same() {
        let line = |address: &str, state: &str| {
            let line =
                format!("   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 1");
            port_of_line(6, &line).map(|port| port.to_string())
        };
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let (zero, node) = (word([0; 4]), word([192, 0, 2, 2]));
        assert_eq!(line(&format!("{zero}:0016"), "0A").as_deref(), Some("TCP/22"));
        assert_eq!(line(&format!("{node}:0035"), "0A").as_deref(), Some("TCP/192.0.2.2:53"));
        assert_eq!(line(&format!("{node}:0035"), "01"), None, "a connection");
        assert_eq!(line(&format!("{}:0035", word([127, 0, 0, 1])), "0A"), None);
        assert_eq!(line(&format!("{}:0016", zero.repeat(4)), "0A").as_deref(), Some("TCP/22"));
        let mapped = format!("{zero}{zero}{}{node}:0016", word([0, 0, 255, 255]));
        assert_eq!(line(&mapped, "0A").as_deref(), Some("TCP/192.0.2.2:22"));
        for nonsense in ["", "x", "0:", "é:1", "zzzzzzzz:0016"] {
            assert_eq!(line(nonsense, "0A"), None, "{nonsense}");
        }
    }

    /// Both readings see a socket of this test. (Other programs' sockets come and go.)
    #[test]
    fn the_kernel_tells_both_ways() {
        let socket = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = PortUse { protocol: 6, address: None, port };
        assert!(by_proc(6, libc::AF_INET).unwrap().contains(&own));
        assert!(listening().unwrap().contains(&own));
        drop(socket);
        assert!(!listening().unwrap().contains(&own));
    }

    #[test]
    fn texts_are_read_back_and_nonsense_is_refused() {
        for text in ["TCP/22", "UDP/192.0.2.2:53", "SCTP/9"] {
            assert_eq!(text.parse::<PortUse>().map(|p| p.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "22", "TCP/", "TCP/70000", "XXX/1", "TCP/1.2.3:4", "TCP/1.2.3.4:"] {
            assert_eq!(text.parse::<PortUse>(), Err(NoPort), "{text}");
        }
    }
}
