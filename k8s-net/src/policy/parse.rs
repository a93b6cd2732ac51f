//! Reads a NetworkPolicy into selectors, address blocks and ports. Pure.
//!
//! A part that cannot be read allows nothing and is reported in [`Parsed::problems`]: the pods that the
//! policy selects stay isolated.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use k8s_core::{
    api::{
        api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
        apimachinery::pkg::{apis::meta::v1::LabelSelector as ApiSelector, util::intstr::IntOrString},
    },
    meta::{ObjectExt, selector::LabelSelector},
};

use super::ports::{Ports, Span};

/// The namespaces of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Namespaces {
    /// The policy's own namespace.
    Own(String),
    /// Namespaces with these labels.
    Matching(LabelSelector),
    /// All namespaces.
    All,
}

/// Pods that a policy names as peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) namespaces: Namespaces,
    pub(crate) pods: LabelSelector,
    /// Only those with an address in this block.
    pub(crate) block: Option<Block>,
}

impl Group {
    /// All pods.
    pub(crate) fn everywhere() -> Self {
        Group { namespaces: Namespaces::All, pods: LabelSelector::default(), block: None }
    }
}

/// Addresses that a policy names as peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Block {
    pub(crate) range: Ipv4Net,
    pub(crate) except: Vec<Ipv4Net>,
}

impl Block {
    /// Returns true if the block contains the address.
    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        self.range.contains(&address) && !self.except.iter().any(|range| range.contains(&address))
    }
}

/// Peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Pods(Group),
    Block(Block),
}

/// A rule: connections with one of the peers on one of the ports are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    /// `None`: everyone.
    pub(crate) peers: Option<Vec<Peer>>,
    pub(crate) ports: Ports,
}

/// A policy in the form that plans use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) namespace: String,
    pub(crate) selector: LabelSelector,
    /// `None`: the policy does not isolate pods for this direction.
    pub(crate) ingress: Option<Vec<Rule>>,
    pub(crate) egress: Option<Vec<Rule>>,
    /// Parts that could not be read, each with the path of its field.
    pub(crate) problems: Vec<String>,
}

/// Direction of a connection, seen from the selected pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Parsed {
    pub(crate) fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Number of peers, exceptions and ports of one policy, at most. What is beyond allows nothing. Each may
/// become many elements of the kernel's table, for each pod that the policy selects.
pub(crate) const MOST_PARTS: usize = 10_000;

/// Parts that a policy may still have, of [`MOST_PARTS`].
struct Room {
    parts: usize,
    told: bool,
}

impl Room {
    /// Takes a number of parts of the element `number`; false if there is no room for them, and none for
    /// others then.
    fn take(&mut self, parts: usize, path: &str, number: usize, problems: &mut Vec<String>) -> bool {
        let fits = self.parts >= parts;
        self.parts = if fits { self.parts - parts } else { 0 };
        if !fits && !std::mem::replace(&mut self.told, true) {
            problems.push(format!(
                "{path}[{number}]: a policy has at most {MOST_PARTS} peers, exceptions and ports, and what follows \
                 is left out"
            ));
        }
        fits
    }
}

/// Reads a policy.
pub(crate) fn parse(policy: &NetworkPolicy) -> Parsed {
    let spec = policy.spec.clone().unwrap_or_default();
    let (mut problems, mut room) = (Vec::new(), Room { parts: MOST_PARTS, told: false });
    let namespace = policy.namespace().to_owned();
    let everything = ApiSelector::default();
    let selector = LabelSelector::from_api(spec.pod_selector.as_ref().unwrap_or(&everything));
    let selector = selector.map_err(|e| problems.push(format!("spec.podSelector: {e}")));
    let types = spec.policy_types.clone().filter(|types| !types.is_empty());
    let has = |name: &str, default: bool| match &types {
        Some(types) => types.iter().any(|t| t == name),
        None => default,
    };
    let is_for_ingress = has("Ingress", true);
    let is_for_egress = has("Egress", spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    let mut of = |direction: &str, rules: Vec<RawRule>| -> Vec<Rule> {
        let read = |(number, (peers, ports)): (usize, RawRule)| {
            let path = format!("spec.{direction}[{number}]");
            let side = if direction == "ingress" { "from" } else { "to" };
            let peers = read_peers(&namespace, &format!("{path}.{side}"), peers, &mut room, &mut problems);
            let ports = read_ports(&format!("{path}.ports"), ports, &mut room, &mut problems);
            Rule { peers, ports }
        };
        rules.into_iter().enumerate().map(read).collect()
    };
    let ingress = spec.ingress.into_iter().flatten().map(|rule| (rule.from, rule.ports)).collect();
    let ingress = is_for_ingress.then(|| of("ingress", ingress));
    let egress = spec.egress.into_iter().flatten().map(|rule| (rule.to, rule.ports)).collect();
    let egress = is_for_egress.then(|| of("egress", egress));
    match selector {
        Ok(selector) => Parsed { namespace, selector, ingress, egress, problems },
        // The pods that were meant are unknown: all are isolated.
        Err(()) => Parsed {
            namespace,
            selector: LabelSelector::default(),
            ingress: is_for_ingress.then(Vec::new),
            egress: is_for_egress.then(Vec::new),
            problems,
        },
    }
}

type RawRule = (Option<Vec<NetworkPolicyPeer>>, Option<Vec<NetworkPolicyPort>>);

/// Returns `None` for everyone.
fn read_peers(
    namespace: &str,
    path: &str,
    peers: Option<Vec<NetworkPolicyPeer>>,
    room: &mut Room,
    problems: &mut Vec<String>,
) -> Option<Vec<Peer>> {
    let peers = peers.filter(|peers| !peers.is_empty())?;
    let mut read = Vec::new();
    for (number, peer) in peers.iter().enumerate() {
        let excepted = peer.ip_block.as_ref().and_then(|block| block.except.as_ref()).map_or(0, Vec::len);
        if !room.take(1 + excepted, path, number, problems) {
            break;
        }
        match read_peer(namespace, peer) {
            Ok(peer) => read.extend(peer),
            Err(problem) => problems.push(format!("{path}[{number}]{problem}")),
        }
    }
    Some(read)
}

/// Returns `None` for a peer that no IPv4 address is in.
fn read_peer(namespace: &str, peer: &NetworkPolicyPeer) -> Result<Option<Peer>, String> {
    let selector = |name: &str, selector: &Option<ApiSelector>| {
        let read = selector.as_ref().map(LabelSelector::from_api).transpose();
        read.map_err(|e| format!(".{name}: {e}"))
    };
    let pods = selector("podSelector", &peer.pod_selector)?;
    let namespaces = selector("namespaceSelector", &peer.namespace_selector)?;
    match (&peer.ip_block, pods, namespaces) {
        (Some(block), None, None) => {
            let range = |name: &str, text: &str| {
                let read = text.parse::<IpNet>();
                read.map_err(|_| {
                    format!(".ipBlock.{name}: {text:?} is not an address range such as 10.0.0.0/8")
                })
            };
            let whole = range("cidr", &block.cidr)?;
            let except = block.except.iter().flatten();
            let except = except.map(|text| range("except", text)).collect::<Result<Vec<_>, _>>()?;
            let IpNet::V4(whole) = whole else { return Ok(None) };
            let except = except.into_iter().filter_map(|range| match range {
                IpNet::V4(range) => Some(range.trunc()),
                IpNet::V6(_) => None,
            });
            Ok(Some(Peer::Block(Block { range: whole.trunc(), except: except.collect() })))
        }
        (None, None, None) => Err(": it names no peer".to_owned()),
        (None, pods, namespaces) => {
            let namespaces =
                namespaces.map_or_else(|| Namespaces::Own(namespace.into()), Namespaces::Matching);
            Ok(Some(Peer::Pods(Group { namespaces, pods: pods.unwrap_or_default(), block: None })))
        }
        (Some(_), ..) => Err(": ipBlock cannot be combined with a selector".to_owned()),
    }
}

fn read_ports(
    path: &str,
    ports: Option<Vec<NetworkPolicyPort>>,
    room: &mut Room,
    problems: &mut Vec<String>,
) -> Ports {
    let Some(ports) = ports.filter(|ports| !ports.is_empty()) else { return Ports::all() };
    let (mut spans, mut names) = (Vec::new(), BTreeSet::new());
    for (number, port) in ports.iter().enumerate() {
        if !room.take(1, path, number, problems) {
            break;
        }
        match read_port(port) {
            Ok(Port::Span(span)) => spans.push(span),
            Ok(Port::Name(protocol, name)) => {
                names.insert((protocol, name));
            }
            Err(problem) => problems.push(format!("{path}[{number}].{problem}")),
        }
    }
    Ports::new(spans, names)
}

enum Port {
    Span(Span),
    Name(u8, String),
}

fn read_port(port: &NetworkPolicyPort) -> Result<Port, String> {
    let name = port.protocol.as_deref().unwrap_or_default();
    let protocol =
        crate::protocol_number(name).ok_or_else(|| format!("protocol: {name:?} is not TCP, UDP or SCTP"))?;
    let number = |field: &str, value: i32| {
        let valid = u16::try_from(value).ok().filter(|value| *value > 0);
        valid.ok_or_else(|| format!("{field}: {value} is not between 1 and 65535"))
    };
    match (&port.port, port.end_port) {
        (None, None) => Ok(Port::Span(Span { protocol, first: 0, last: u16::MAX })),
        (Some(IntOrString::String(name)), None) => Ok(Port::Name(protocol, name.clone())),
        (Some(IntOrString::Int(first)), end) => {
            let first = number("port", *first)?;
            let last = end.map_or(Ok(first), |end| number("endPort", end))?;
            if last < first {
                return Err(format!("endPort: {last} is below port {first}"));
            }
            Ok(Port::Span(Span { protocol, first, last }))
        }
        (Some(IntOrString::String(_)) | None, Some(_)) => Err("endPort: it needs a numeric port".to_owned()),
    }
}
