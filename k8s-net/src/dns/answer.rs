//! Answers a query from the index. Pure.

use std::{borrow::Cow, net::IpAddr};

use hickory_proto::{
    op::{Edns, Message, MessageType, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use ipnet::Ipv4Net;

use super::{
    index::{Data, Index, undashed},
    packets,
    settings::{Kubernetes, TTL, is_below},
};

/// UDP response limit in bytes for clients without EDNS.
const SMALLEST: u16 = 512;
/// Addresses in an answer, and records with names. A TCP response has 64 KiB at most.
const MOST_ADDRESSES: usize = 3500;
const MOST_NAMES: usize = 400;
/// UDP response limit in bytes that we advertise and honour: small enough to avoid IP fragments.
const LARGEST: u16 = 1232;

/// Names and addresses that a server is for, independent of its settings.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    /// The cluster domain, in lower case without trailing dot.
    pub(super) name: String,
    /// Address of this server.
    pub(super) address: IpAddr,
    /// CIDRs whose reverse lookups are never forwarded.
    pub(super) ranges: Vec<Ipv4Net>,
}

/// The next step for a query.
#[derive(Debug)]
pub(super) enum Plan {
    /// Send this response.
    Answer {
        /// The response.
        reply: Message,
        /// It has no more than one record whose place could change.
        ordered: bool,
    },
    /// CNAME to a name outside of the cluster: resolve its target and send both.
    Follow(Message, Query),
}

/// Returns a name in lower case without trailing dot.
pub(super) fn plain(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

fn parse(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

/// Returns an empty response to a query.
pub(super) fn reply(question: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(question.queries.iter().cloned());
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST).set_version(0);
        reply.set_edns(edns);
    }
    reply
}

/// Encodes a response; over UDP it is truncated to the client's limit.
pub(super) fn encode(question: &Message, reply: &Message, tcp: bool) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    let limit = question.edns.as_ref().map_or(SMALLEST, |e| e.max_payload().clamp(SMALLEST, LARGEST));
    if tcp || bytes.len() <= usize::from(limit) { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

impl Kubernetes {
    /// Plans the response to a query of class IN; `index` is `None` until the caches are synced. `None`: the
    /// next directive answers.
    pub(super) fn plan(
        &self,
        question: &Message,
        query: &Query,
        zone: &Zone,
        index: Option<&Index>,
    ) -> Option<Plan> {
        let name = plain(query.name());
        if !self.zones.iter().any(|zone| is_below(&name, zone)) {
            return None;
        }
        let in_domain = is_below(&name, &zone.name);
        // No other server has the addresses of pods and services.
        let in_ranges =
            || reverse_address(&name).is_some_and(|ip| zone.ranges.iter().any(|r| r.contains(&ip)));
        let known = || index.is_some_and(|index| index.get(&name).is_some());
        if !in_domain && !in_ranges() && !known() && self.fallthrough.has(&name) {
            return None;
        }
        let Some(index) = index else {
            return Some(Plan::Answer { reply: reply(question, ResponseCode::ServFail), ordered: true });
        };
        if name == zone.name
            && let Some(reply) = apex(question, query, zone)
        {
            return Some(Plan::Answer { reply, ordered: true });
        }
        let plan = answer(question, query, name.clone(), (self, zone), index);
        let is_denied = matches!(&plan, Plan::Answer { reply, .. }
            if reply.metadata.response_code == ResponseCode::NXDomain);
        if is_denied && in_domain && self.fallthrough.has(&name) { None } else { Some(plan) }
    }
}

fn reverse_address(name: &str) -> Option<std::net::Ipv4Addr> {
    let labels: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').rev().collect();
    labels.join(".").parse().ok()
}

fn answer(
    question: &Message,
    query: &Query,
    mut name: String,
    (settings, zone): (&Kubernetes, &Zone),
    index: &Index,
) -> Plan {
    let mut message = reply(question, ResponseCode::NoError);
    message.metadata.authoritative = true;
    let mut owner = query.name().clone();
    let wanted = query.query_type();
    let has_addresses = matches!(wanted, RecordType::A | RecordType::AAAA);
    let most = if has_addresses { MOST_ADDRESSES } else { MOST_NAMES };
    // A CNAME may lead to further CNAMEs of ours; the limit breaks loops.
    for _ in 0..8 {
        let facts = facts(&name, (settings, zone), index);
        let Some(facts) = facts else {
            message.metadata.response_code = ResponseCode::NXDomain;
            break;
        };
        let turn = packets::turn(question.metadata.id) % facts.len().max(1);
        let (first, second) = facts.split_at(turn);
        let matching: Vec<RData> = second
            .iter()
            .chain(first)
            .filter_map(|fact| data_of(fact, wanted, &mut message))
            .take(most)
            .collect();
        if !matching.is_empty() {
            let ordered = matching.len() == 1;
            let record = |data| Record::from_rdata(owner.clone(), settings.ttl, data);
            message.add_answers(matching.into_iter().map(record));
            return Plan::Answer { reply: message, ordered };
        }
        let alias =
            facts.iter().find_map(|f| if let Data::Alias(target) = f { Some(target.clone()) } else { None });
        let Some((target, target_name)) = alias.and_then(|t| Some((parse(&t)?, t))) else { break };
        message.add_answer(Record::from_rdata(owner, settings.ttl, RData::CNAME(CNAME(target.clone()))));
        if wanted == RecordType::CNAME {
            return Plan::Answer { reply: message, ordered: true };
        }
        if !is_below(&target_name, &zone.name) {
            return Plan::Follow(message, Query::query(target, wanted));
        }
        (name, owner) = (target_name, target);
    }
    if let Some(record) = authority(&name, zone) {
        message.add_authority(record);
    }
    Plan::Answer { reply: message, ordered: true }
}

/// Returns the records of a name. `None`: NXDOMAIN.
fn facts<'a>(
    name: &str,
    (settings, zone): (&Kubernetes, &Zone),
    index: &'a Index,
) -> Option<Cow<'a, [Data]>> {
    if let Some(facts) = index.get(name) {
        return Some(Cow::Borrowed(facts));
    }
    own_facts(name, settings, zone).map(Cow::Owned)
}

/// Returns the records of a name that belongs to no service. `None`: NXDOMAIN.
fn own_facts(name: &str, settings: &Kubernetes, zone: &Zone) -> Option<Vec<Data>> {
    let rest = name.strip_suffix(&zone.name)?.trim_end_matches('.');
    match rest.split('.').collect::<Vec<_>>()[..] {
        ["" | "svc" | "pod" | "dns" | "dns-version"] => Some(vec![Data::Exists]),
        ["ns", "dns"] => Some(vec![Data::Address(zone.address)]),
        [_, "pod"] if settings.pods => Some(vec![Data::Exists]),
        [address, _, "pod"] if settings.pods => Some(vec![Data::Address(undashed(address)?)]),
        _ => {
            // A bare pod or port label that has no entry of its own does not exist; parents such as `_tcp`
            // are in the index as `Exists`.
            None
        }
    }
}

fn data_of(fact: &Data, wanted: RecordType, message: &mut Message) -> Option<RData> {
    let any = wanted == RecordType::ANY;
    match fact {
        Data::Address(IpAddr::V4(ip)) if wanted == RecordType::A || any => Some(RData::A(A(*ip))),
        Data::Address(IpAddr::V6(ip)) if wanted == RecordType::AAAA || any => Some(RData::AAAA(AAAA(*ip))),
        Data::Service { port, target } if wanted == RecordType::SRV || any => {
            Some(RData::SRV(SRV::new(0, 100, *port, parse(target)?)))
        }
        Data::Pointer(target) if wanted == RecordType::PTR || any => Some(RData::PTR(PTR(parse(target)?))),
        Data::Exists => {
            let query = message.queries.first()?;
            let name = plain(query.name());
            let is_version = name.starts_with("dns-version.") && wanted == RecordType::TXT;
            is_version.then(|| RData::TXT(TXT::new(vec!["1.1.0".to_owned()])))
        }
        Data::Address(_) | Data::Service { .. } | Data::Pointer(_) | Data::Alias(_) => None,
    }
}

/// The SOA record, whose minimum TTL says how long a negative answer may be cached.
fn authority(name: &str, zone: &Zone) -> Option<Record> {
    let apex = if is_below(name, &zone.name) { zone.name.as_str() } else { "in-addr.arpa" };
    let server = parse(&format!("ns.dns.{}", zone.name))?;
    let mail = parse(&format!("hostmaster.{}", zone.name))?;
    let soa = SOA::new(server, mail, 1, 7200, 1800, 86_400, TTL);
    Some(Record::from_rdata(parse(apex)?, TTL, RData::SOA(soa)))
}

/// Returns the SOA or NS record of the zone apex.
fn apex(question: &Message, query: &Query, zone: &Zone) -> Option<Message> {
    let mut message = reply(question, ResponseCode::NoError);
    message.metadata.authoritative = true;
    match query.query_type() {
        RecordType::SOA => message.add_answer(authority(&zone.name, zone)?),
        RecordType::NS => {
            let server = NS(parse(&format!("ns.dns.{}", zone.name))?);
            message.add_answer(Record::from_rdata(query.name().clone(), TTL, RData::NS(server)))
        }
        _ => return None,
    };
    Some(message)
}
