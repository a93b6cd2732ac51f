//! Settings of the DNS server: the parts of a Corefile that act.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// TTL of answers about services and pods, in seconds, unless the Corefile has another.
pub(super) const TTL: u32 = 5;
/// Upper limit of the TTL in the cache of forwarded answers, in seconds, unless the Corefile has another.
const CACHED_TTL: u32 = 30;
/// Number of answers that a cache keeps, unless the Corefile has another.
pub(super) const CAPACITY: usize = 9984;

/// Settings of the DNS server. The block with the longest zone that has a name answers for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSettings {
    pub(super) blocks: Vec<Block>,
}

/// A server block of a Corefile. Zones are in lower case without trailing dot; the empty one is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Block {
    pub(super) zones: Vec<String>,
    pub(super) hosts: Option<Hosts>,
    pub(super) kubernetes: Option<Kubernetes>,
    pub(super) forwards: Vec<Forward>,
    pub(super) cache: Option<CacheLimits>,
}

/// Directive `kubernetes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kubernetes {
    /// The cluster domain, or reverse zones, or both.
    pub(super) zones: Vec<String>,
    /// Seconds.
    pub(super) ttl: u32,
    /// True if `10-42-0-5.NAMESPACE.pod.DOMAIN` is answered.
    pub(super) pods: bool,
    pub(super) fallthrough: Fallthrough,
}

/// Directive `hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hosts {
    pub(super) zones: Vec<String>,
    /// Addresses by name, in lower case without trailing dot.
    pub(super) entries: BTreeMap<String, Vec<IpAddr>>,
    /// Seconds.
    pub(super) ttl: u32,
    /// True if addresses lead back to names.
    pub(super) reverse: bool,
    pub(super) fallthrough: Fallthrough,
}

/// Directive `forward`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Forward {
    pub(super) from: String,
    pub(super) to: Vec<SocketAddr>,
    pub(super) except: Vec<String>,
    pub(super) policy: Policy,
    pub(super) force_tcp: bool,
    /// Failures in a row after which a server counts as down. 0: never.
    pub(super) max_fails: u32,
}

/// Order in which servers are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Policy {
    /// Begins with another server each time, by chance.
    #[default]
    Random,
    /// Begins with the next server each time.
    RoundRobin,
    /// Always begins with the first server.
    Sequential,
}

/// Names that a directive leaves to the next one when it has no answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fallthrough {
    /// None.
    #[default]
    Never,
    /// Those below one of the zones.
    Zones(Vec<String>),
}

impl Fallthrough {
    /// Reports whether a name is left to the next directive.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Fallthrough::Never => false,
            Fallthrough::Zones(zones) => zones.iter().any(|zone| is_below(name, zone)),
        }
    }
}

/// Directive `cache`. TTLs in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheLimits {
    pub(super) ttl: u32,
    pub(super) denial_ttl: u32,
    pub(super) capacity: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        CacheLimits { ttl: CACHED_TTL, denial_ttl: CACHED_TTL, capacity: CAPACITY }
    }
}

/// Reports whether a name is a zone's apex or below it. Both are in lower case without trailing dot.
pub(super) fn is_below(name: &str, zone: &str) -> bool {
    zone.is_empty() || name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl DnsSettings {
    /// Answers for the cluster domain and forwards all other names to `servers`.
    #[must_use]
    pub fn standard(cluster_domain: &str, servers: Vec<SocketAddr>) -> Self {
        let backwards = || vec!["in-addr.arpa".to_owned(), "ip6.arpa".to_owned()];
        let kubernetes = Kubernetes {
            zones: [vec![cluster_domain.to_owned()], backwards()].concat(),
            ttl: TTL,
            pods: true,
            fallthrough: Fallthrough::Zones(backwards()),
        };
        let forward = Forward {
            from: String::new(),
            to: servers,
            except: Vec::new(),
            policy: Policy::Sequential,
            force_tcp: false,
            max_fails: 2,
        };
        let block = Block {
            zones: vec![String::new()],
            hosts: None,
            kubernetes: Some(kubernetes),
            forwards: vec![forward],
            cache: Some(CacheLimits::default()),
        };
        DnsSettings { blocks: vec![block] }
    }

    /// Returns the position of the block that answers for a name.
    pub(super) fn block_of(&self, name: &str) -> Option<usize> {
        let longest = |block: &Block| {
            block.zones.iter().filter(|zone| is_below(name, zone)).map(|zone| zone.len() + 1).max()
        };
        let sized = self.blocks.iter().enumerate().filter_map(|(at, block)| Some((longest(block)?, at)));
        sized.max_by_key(|(length, at)| (*length, std::cmp::Reverse(*at))).map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_zone_answers() {
        let block =
            |zone: &str| Block { zones: vec![zone.to_owned(), "also.test".to_owned()], ..Block::default() };
        let settings = DnsSettings { blocks: vec![block("org"), block("example.org")] };
        for (name, at) in [
            ("a.example.org", Some(1)),
            ("example.org", Some(1)),
            ("anexample.org", Some(0)),
            ("x.also.test", Some(0)),
            ("com", None),
        ] {
            assert_eq!(settings.block_of(name), at, "{name}");
        }
        assert_eq!(DnsSettings::standard("cluster.local", Vec::new()).block_of("com"), Some(0));
    }
}
