//! Reads the Corefile of the ConfigMap `kube-system/coredns`.
//!
//! A directive is acted on, or it is left out with a [`Warning`] and the rest goes on. Directives about
//! CoreDNS' own process (`errors`, `health`, `ready`, `loop`, `reload`, `loadbalance`) are accepted and do
//! nothing: this server has no process that they could configure, and it does by itself what the last three
//! ask for.

mod syntax;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::settings::{
    Block, CacheLimits, DnsSettings, Fallthrough, Forward, Hosts, Kubernetes, Policy, TTL,
};
use syntax::Directive;

/// TTL of the directive `hosts`, in seconds.
const HOSTS_TTL: u32 = 3600;
/// Failures in a row after which a server counts as down.
const MAX_FAILS: u32 = 2;
/// Upper limits of what a ConfigMap may ask for.
const MOST_CAPACITY: usize = 100_000;
const LONGEST_TTL: u32 = 7 * 24 * 3600;
/// Directives without an effect of their own here.
const OF_THE_PROCESS: [&str; 6] = ["errors", "health", "ready", "loop", "reload", "loadbalance"];

/// Something of a Corefile that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Warning {
    /// Number of the line, from 1.
    pub(super) line: usize,
    pub(super) what: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// Facts that a Corefile does not have itself.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    /// The cluster domain, in lower case without trailing dot.
    pub(super) domain: &'a str,
    /// Servers of the node's `resolv.conf`.
    pub(super) resolv_conf: &'a [SocketAddr],
    /// The ConfigMap's other keys, which are files beside the Corefile.
    pub(super) files: &'a BTreeMap<String, String>,
    /// This server's own address.
    pub(super) own: IpAddr,
}

/// Reads a Corefile.
///
/// # Errors
/// The text of a syntax error. The settings of before stay in use then.
pub(super) fn read(text: &str, around: &Surroundings<'_>) -> Result<(DnsSettings, Vec<Warning>), String> {
    let mut reader = Reader { around, warnings: Vec::new() };
    let servers = syntax::read(text).map_err(|error| error.to_string())?;
    let blocks: Vec<Block> = servers.iter().filter_map(|server| reader.server(server)).collect();
    if blocks.is_empty() {
        return Err("it has no server block for port 53".into());
    }
    Ok((DnsSettings { blocks }, reader.warnings))
}

struct Reader<'a> {
    around: &'a Surroundings<'a>,
    warnings: Vec<Warning>,
}

fn zone(text: &str) -> String {
    text.trim_matches('.').to_lowercase()
}

/// Returns the zones of words: names, or CIDRs of whole octets.
fn zones(words: &[String]) -> Vec<String> {
    words.iter().map(|word| reverse_zone(word).unwrap_or_else(|| zone(word))).collect()
}

/// Returns the reverse zone of a CIDR (`10.42.0.0/16`).
fn reverse_zone(text: &str) -> Option<String> {
    let IpNet::V4(net) = text.parse().ok()? else { return None };
    let octets = usize::from(net.prefix_len() / 8);
    let named: Vec<String> = net.network().octets()[..octets].iter().rev().map(u8::to_string).collect();
    Some([named.as_slice(), &["in-addr.arpa".to_owned()]].concat().join("."))
}

/// Parses a duration in seconds or in Go's form (`30`, `30s`, `1h30m`), rounded down to seconds.
fn seconds(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let (mut total, mut rest) = (0f64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit = &rest[end..];
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        total += number
            * match &unit[..length] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &unit[length..];
    }
    // Saturates; NaN is not possible.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates at the limits")]
    Some(total as u32)
}

impl Reader<'_> {
    fn warn(&mut self, directive: &Directive, what: impl Into<String>) {
        self.warnings.push(Warning { line: directive.line, what: what.into() });
    }

    fn unknown(&mut self, directive: &Directive, of: &str) {
        self.warn(directive, format!("{:?} of {of:?} is not supported and is left out", directive.words[0]));
    }

    fn server(&mut self, server: &Directive) -> Option<Block> {
        let mut block = Block::default();
        for key in server.words.iter().flat_map(|word| word.split(',')).filter(|key| !key.is_empty()) {
            let key = key.strip_prefix("dns://").unwrap_or(key);
            let (name, port) = key.rsplit_once(':').unwrap_or((key, "53"));
            if key.contains("://") || port != "53" {
                self.warn(server, format!("{key:?} is left out: only DNS on port 53 is served"));
            } else if key.starts_with('(') {
                self.warn(server, "snippets are not supported");
            } else {
                block.zones.extend(zones(&[name.to_owned()]));
            }
        }
        if block.zones.is_empty() {
            return None;
        }
        for directive in &server.body {
            self.directive(directive, &mut block);
        }
        Some(block)
    }

    fn directive(&mut self, directive: &Directive, block: &mut Block) {
        match directive.words[0].as_str() {
            "kubernetes" => block.kubernetes = self.kubernetes(directive, &block.zones),
            "hosts" => block.hosts = Some(self.hosts(directive, &block.zones)),
            "forward" => block.forwards.extend(self.forward(directive)),
            "cache" => block.cache = self.cache(directive),
            name if OF_THE_PROCESS.contains(&name) => {}
            name => self.warn(directive, format!("directive {name:?} is not supported and is left out")),
        }
    }

    fn fallthrough(words: &[String], own: &[String]) -> Fallthrough {
        Fallthrough::Zones(if words.len() > 1 { zones(&words[1..]) } else { own.to_vec() })
    }

    fn ttl(&mut self, directive: &Directive) -> Option<u32> {
        let ttl = directive.words.get(1).and_then(|text| text.parse().ok()).filter(|ttl| *ttl <= LONGEST_TTL);
        if ttl.is_none() {
            self.warn(directive, format!("ttl must be 0 to {LONGEST_TTL} seconds"));
        }
        ttl
    }

    fn kubernetes(&mut self, directive: &Directive, outer: &[String]) -> Option<Kubernetes> {
        let named = if directive.words.len() > 1 { zones(&directive.words[1..]) } else { outer.to_vec() };
        let domain = self.around.domain;
        let (own, others): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|zone| zone == domain || zone.ends_with(".arpa"));
        if !others.is_empty() {
            let others = others.join(", ");
            let what =
                format!("zones {others} are left out: the cluster domain is {domain} (--cluster-domain)");
            self.warn(directive, what);
        }
        if own.is_empty() {
            return None;
        }
        let mut settings = Kubernetes { zones: own, ttl: TTL, pods: false, fallthrough: Fallthrough::Never };
        for option in &directive.body {
            match option.words[0].as_str() {
                "ttl" => settings.ttl = self.ttl(option).unwrap_or(settings.ttl),
                "fallthrough" => settings.fallthrough = Self::fallthrough(&option.words, &settings.zones),
                "pods" => match option.words.get(1).map(String::as_str) {
                    Some("disabled") => settings.pods = false,
                    Some("insecure") => settings.pods = true,
                    // Names of pods that do not exist must not be answered: none is.
                    Some("verified") => {
                        self.warn(option, "pods verified is not supported: no pod has a name")
                    }
                    _ => self.warn(option, "pods must be disabled, insecure or verified"),
                },
                _ => self.unknown(option, "kubernetes"),
            }
        }
        Some(settings)
    }

    fn hosts(&mut self, directive: &Directive, outer: &[String]) -> Hosts {
        let mut words = &directive.words[1..];
        let mut hosts = Hosts { ttl: HOSTS_TTL, reverse: true, ..Hosts::default() };
        if let Some(path) = words.first().filter(|word| word.contains('/') && reverse_zone(word).is_none()) {
            let key = path.rsplit('/').next().unwrap_or_default();
            match self.around.files.get(key) {
                Some(text) => {
                    for line in text.lines() {
                        let line = line.split('#').next().unwrap_or_default();
                        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                        if !words.is_empty() && !enter(&mut hosts, &words) {
                            self.warn(directive, format!("{key}: {line:?} is not an address with names"));
                        }
                    }
                }
                None => {
                    self.warn(directive, format!("{path:?} is left out: the ConfigMap has no key {key:?}"))
                }
            }
            words = &words[1..];
        }
        hosts.zones = if words.is_empty() { outer.to_vec() } else { zones(words) };
        for option in &directive.body {
            match option.words[0].as_str() {
                "ttl" => hosts.ttl = self.ttl(option).unwrap_or(hosts.ttl),
                "no_reverse" => hosts.reverse = false,
                // The ConfigMap is watched.
                "reload" => {}
                "fallthrough" => hosts.fallthrough = Self::fallthrough(&option.words, &hosts.zones),
                _ if enter(&mut hosts, &option.words) => {}
                first => self.warn(option, format!("{first:?} is neither an address nor an option of hosts")),
            }
        }
        hosts
    }

    fn forward(&mut self, directive: &Directive) -> Option<Forward> {
        let [_, from, to @ ..] = &directive.words[..] else {
            self.warn(directive, "forward needs a zone and servers");
            return None;
        };
        let mut settings = Forward {
            from: zones(std::slice::from_ref(from)).remove(0),
            to: Vec::new(),
            except: Vec::new(),
            policy: Policy::default(),
            force_tcp: false,
            max_fails: MAX_FAILS,
        };
        for server in to {
            match self.servers(server) {
                Ok(servers) => settings.to.extend(servers),
                Err(what) => self.warn(directive, what),
            }
        }
        for option in &directive.body {
            let words = &option.words;
            match (words[0].as_str(), words.get(1).map(String::as_str)) {
                ("except", Some(_)) => settings.except.extend(zones(&words[1..])),
                ("force_tcp", None) => settings.force_tcp = true,
                ("prefer_udp", None) => settings.force_tcp = false,
                ("policy", Some("random")) => settings.policy = Policy::Random,
                ("policy", Some("round_robin")) => settings.policy = Policy::RoundRobin,
                ("policy", Some("sequential")) => settings.policy = Policy::Sequential,
                ("max_fails", Some(number)) => match number.parse() {
                    Ok(number) => settings.max_fails = number,
                    Err(_) => self.warn(option, "max_fails must be a number"),
                },
                // Connections are not kept, queries test the servers, and the limit is one for all.
                ("expire" | "health_check" | "max_concurrent", Some(_)) => {}
                _ => self.unknown(option, "forward"),
            }
        }
        Some(settings)
    }

    /// Returns the servers of a word: an address, or the node's `resolv.conf`.
    fn servers(&self, text: &str) -> Result<Vec<SocketAddr>, String> {
        if text == "/etc/resolv.conf" {
            return Ok(self.around.resolv_conf.to_vec());
        }
        let plain = text.strip_prefix("dns://").unwrap_or(text);
        let address = plain.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| plain.parse());
        match address {
            Ok(address) if address.ip() == self.around.own => {
                Err(format!("server {text:?} is left out: it is this one"))
            }
            Ok(address) if address.ip().is_unspecified() || address.port() == 0 => {
                Err(format!("server {text:?} is left out: nothing can be sent to it"))
            }
            Ok(address) => Ok(vec![address]),
            Err(_) if text.contains("://") => {
                Err(format!("server {text:?} is left out: only plain DNS is sent"))
            }
            Err(_) => Err(format!("server {text:?} is neither an address nor /etc/resolv.conf")),
        }
    }

    fn cache(&mut self, directive: &Directive) -> Option<CacheLimits> {
        let mut limits = CacheLimits::default();
        let mut words = &directive.words[1..];
        if let Some(ttl) = words.first().and_then(|word| seconds(word)) {
            (limits.ttl, limits.denial_ttl) = (ttl.min(LONGEST_TTL), ttl.min(LONGEST_TTL));
            words = &words[1..];
        }
        if !words.is_empty() {
            self.warn(directive, "zones of cache are not supported: all zones of the block are cached");
        }
        for option in &directive.body {
            let words = &option.words;
            let capacity = words.get(1).and_then(|word| word.parse::<usize>().ok());
            let ttl = words.get(2).and_then(|word| seconds(word)).map(|ttl| ttl.min(LONGEST_TTL));
            match words[0].as_str() {
                kind @ ("success" | "denial") => {
                    let Some(capacity) = capacity else {
                        self.warn(option, format!("{kind} needs a capacity"));
                        continue;
                    };
                    let capacity = capacity.clamp(1, MOST_CAPACITY);
                    if kind == "success" {
                        (limits.capacity, limits.ttl) = (capacity, ttl.unwrap_or(limits.ttl));
                    } else {
                        limits.denial_ttl = ttl.unwrap_or(limits.denial_ttl);
                    }
                }
                // Answers about the cluster are never kept beyond a change.
                "disable" if words.get(2).is_some_and(|zone_| zone(zone_) == self.around.domain) => {}
                "disable" if words.len() == 2 => match words[1].as_str() {
                    "success" => limits.ttl = 0,
                    "denial" => limits.denial_ttl = 0,
                    _ => self.unknown(option, "cache"),
                },
                _ => self.unknown(option, "cache"),
            }
        }
        Some(limits)
    }
}

/// Adds a line of a hosts file. `false`: it is none.
fn enter(hosts: &mut Hosts, words: &[String]) -> bool {
    let Some(address) = words.first().and_then(|word| word.parse::<IpAddr>().ok()) else { return false };
    for name in &words[1..] {
        hosts.entries.entry(zone(name)).or_default().push(address);
    }
    words.len() > 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(text: &str) -> (DnsSettings, Vec<String>) {
        let files = [("NodeHosts".to_owned(), "192.0.2.9 node-1 # the node\nx\n".to_owned())].into();
        let resolv_conf = ["192.0.2.53:53".parse().unwrap()];
        let own = "10.43.0.10".parse().unwrap();
        let around = Surroundings { domain: "cluster.local", resolv_conf: &resolv_conf, files: &files, own };
        let (settings, warnings) = read(text, &around).unwrap();
        (settings, warnings.iter().map(Warning::to_string).collect())
    }

    #[test]
    fn the_corefile_of_kubeadm_has_no_warning_but_for_prometheus() {
        let text = ".:53 {
            errors
            health {
               lameduck 5s
            }
            ready
            kubernetes cluster.local in-addr.arpa ip6.arpa {
               pods insecure
               fallthrough in-addr.arpa ip6.arpa
               ttl 30
            }
            prometheus :9153
            forward . /etc/resolv.conf {
               max_concurrent 1000
            }
            cache 30 {
               disable success cluster.local
               disable denial cluster.local
            }
            loop
            reload
            loadbalance
        }";
        let (settings, warnings) = read_all(text);
        assert_eq!(warnings, ["line 12: directive \"prometheus\" is not supported and is left out"]);
        let [block] = &settings.blocks[..] else { panic!("{settings:?}") };
        let kubernetes = block.kubernetes.as_ref().unwrap();
        assert_eq!((kubernetes.ttl, kubernetes.pods), (30, true));
        assert_eq!(kubernetes.zones, ["cluster.local", "in-addr.arpa", "ip6.arpa"]);
        assert_eq!(block.forwards[0].to, ["192.0.2.53:53".parse().unwrap()]);
        assert_eq!(block.cache.unwrap().ttl, 30);
    }

    #[test]
    fn stub_domains_and_hosts() {
        let (settings, warnings) = read_all(
            "corp.example:53, 10.9.0.0/16 {\n forward . 192.0.2.1 dns://192.0.2.2:5353 {\n  policy sequential\n  except a.corp.example\n }\n}\n\
             . {\n hosts /etc/coredns/NodeHosts {\n  192.0.2.7 DB.corp db\n  ttl 60\n  fallthrough\n }\n cache 1h30m {\n  success 500 60\n  denial 10 5s\n }\n}\n",
        );
        let [stub, root] = &settings.blocks[..] else { panic!("{settings:?}") };
        assert_eq!(stub.zones, ["corp.example", "9.10.in-addr.arpa"]);
        assert_eq!(stub.forwards[0].to.len(), 2);
        assert_eq!(stub.forwards[0].except, ["a.corp.example"]);
        let hosts = root.hosts.as_ref().unwrap();
        assert_eq!(hosts.entries.keys().collect::<Vec<_>>(), ["db", "db.corp", "node-1"]);
        assert_eq!((hosts.ttl, hosts.fallthrough.has("x")), (60, true));
        let cache = root.cache.unwrap();
        assert_eq!((cache.capacity, cache.ttl, cache.denial_ttl), (500, 60, 5));
        assert_eq!(warnings, ["line 8: NodeHosts: \"x\" is not an address with names"]);
    }

    #[test]
    fn what_is_not_done_is_said_and_the_rest_goes_on() {
        let (settings, warnings) = read_all(
            ". tls://x:853 {\n kubernetes other.local cluster.local {\n  pods verified\n  namespaces a\n }\n forward . 10.43.0.10 tls://9.9.9.9 bogus {\n  max_fails x\n }\n rewrite name a b\n hosts {\n  nonsense\n  ttl -1\n }\n}\n",
        );
        assert_eq!(settings.blocks[0].kubernetes.as_ref().unwrap().zones, ["cluster.local"]);
        let wanted = [
            "line 1: \"tls://x:853\" is left out: only DNS on port 53 is served",
            "line 2: zones other.local are left out: the cluster domain is cluster.local (--cluster-domain)",
            "line 3: pods verified is not supported: no pod has a name",
            "line 4: \"namespaces\" of \"kubernetes\" is not supported and is left out",
            "line 6: server \"10.43.0.10\" is left out: it is this one",
            "line 6: server \"tls://9.9.9.9\" is left out: only plain DNS is sent",
            "line 6: server \"bogus\" is neither an address nor /etc/resolv.conf",
            "line 7: max_fails must be a number",
            "line 9: directive \"rewrite\" is not supported and is left out",
            "line 11: \"nonsense\" is neither an address nor an option of hosts",
            "line 12: ttl must be 0 to 604800 seconds",
        ];
        assert_eq!(warnings, wanted);
    }

    proptest! {
        #[test]
        fn no_corefile_breaks_the_reader(
            lines in proptest::collection::vec(
                "(kubernetes|hosts|forward|cache|ttl|pods|except|success|denial|disable|policy|\\}|\\.|x)( [0-9.:/a-z{]{0,6}){0,3}( \\{)?",
                0..12,
            )
        ) {
            let files = BTreeMap::new();
            let around =
                Surroundings { domain: "c", resolv_conf: &[], files: &files, own: [10, 0, 0, 1].into() };
            let _ = read(&lines.join("\n"), &around);
        }
    }
}
