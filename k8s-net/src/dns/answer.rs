//! Answers a query from the index. Pure.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use super::index::{Data, Index, undashed};
use ipnet::Ipv4Net;

const TTL: u32 = 5;
/// UDP response limit in bytes for clients without EDNS.
const SMALLEST: u16 = 512;
/// UDP response limit in bytes that we advertise and honour: small enough to avoid IP fragments.
const LARGEST: u16 = 1232;

/// The cluster domain and the CIDRs it is authoritative for.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    /// Lower case, without trailing dot.
    pub(super) name: String,
    pub(super) address: IpAddr,
    /// CIDRs whose reverse lookups are answered here.
    pub(super) ranges: Vec<Ipv4Net>,
}

/// The next step for a query.
#[derive(Debug)]
pub(super) enum Plan {
    /// Send this response.
    Answer(Message),
    /// Forward the query: the name is outside of the cluster domain.
    Forward,
    /// CNAME to a name outside of the cluster: resolve its target upstream and send both.
    Follow(Message, Query),
}

fn plain(name: &Name) -> String {
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

/// Plans the response to a query; `index` is `None` until the caches are synced.
pub(super) fn plan(question: &Message, zone: &Zone, index: Option<&Index>) -> Plan {
    if question.metadata.op_code != OpCode::Query {
        return Plan::Answer(reply(question, ResponseCode::NotImp));
    }
    let [query] = &question.queries[..] else {
        return Plan::Answer(reply(question, ResponseCode::FormErr));
    };
    let name = plain(query.name());
    let in_zone = is_below(&name, &zone.name);
    let backwards = name.ends_with(".arpa");
    let ours = in_zone
        || (backwards
            && reverse_address(&name).is_some_and(|ip| zone.ranges.iter().any(|r| r.contains(&ip))));
    if !ours {
        // A reverse lookup outside of our CIDRs is forwarded unless the index has the address: no upstream
        // server has it.
        let known = backwards && index.is_some_and(|i| i.get(&name).is_some());
        if !known {
            return Plan::Forward;
        }
    }
    let Some(index) = index else { return Plan::Answer(reply(question, ResponseCode::ServFail)) };
    if query.query_class() != DNSClass::IN {
        return Plan::Answer(reply(question, ResponseCode::Refused));
    }
    answer(question, query, name, zone, index)
}

fn is_below(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn reverse_address(name: &str) -> Option<std::net::Ipv4Addr> {
    let labels: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').rev().collect();
    labels.join(".").parse().ok()
}

fn answer(question: &Message, query: &Query, mut name: String, zone: &Zone, index: &Index) -> Plan {
    let mut message = reply(question, ResponseCode::NoError);
    message.metadata.authoritative = true;
    let mut owner = query.name().clone();
    let wanted = query.query_type();
    // A CNAME may lead to further CNAMEs of ours; the limit breaks loops.
    for _ in 0..8 {
        let facts = facts(&name, zone, index);
        let Some(facts) = facts else {
            message.metadata.response_code = ResponseCode::NXDomain;
            break;
        };
        let turn = usize::from(question.metadata.id) % facts.len().max(1);
        let (first, second) = facts.split_at(turn);
        let matching: Vec<RData> =
            second.iter().chain(first).filter_map(|fact| data_of(fact, wanted, &mut message)).collect();
        if !matching.is_empty() {
            message
                .add_answers(matching.into_iter().map(|data| Record::from_rdata(owner.clone(), TTL, data)));
            return Plan::Answer(message);
        }
        let alias =
            facts.iter().find_map(|f| if let Data::Alias(target) = f { Some(target.clone()) } else { None });
        let Some((target, target_name)) = alias.and_then(|t| Some((parse(&t)?, t))) else { break };
        message.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
        if wanted == RecordType::CNAME {
            return Plan::Answer(message);
        }
        if !is_below(&target_name, &zone.name) {
            return Plan::Follow(message, Query::query(target, wanted));
        }
        (name, owner) = (target_name, target);
    }
    if let Some(record) = authority(&name, zone) {
        message.add_authority(record);
    }
    Plan::Answer(message)
}

/// Returns the records of a name. `None`: NXDOMAIN.
fn facts(name: &str, zone: &Zone, index: &Index) -> Option<Vec<Data>> {
    if let Some(facts) = index.get(name) {
        return Some(facts.to_vec());
    }
    let rest = name.strip_suffix(&zone.name)?.trim_end_matches('.');
    match rest.split('.').collect::<Vec<_>>()[..] {
        ["" | "svc" | "pod" | "dns" | "dns-version"] => Some(vec![Data::Exists]),
        ["ns", "dns"] => Some(vec![Data::Address(zone.address)]),
        [_, "pod"] => Some(vec![Data::Exists]),
        [address, _, "pod"] => Some(vec![Data::Address(undashed(address)?)]),
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

/// The SOA and NS records of the zone apex.
pub(super) fn apex(question: &Message, zone: &Zone) -> Option<Message> {
    let [query] = &question.queries[..] else { return None };
    if plain(query.name()) != zone.name {
        return None;
    }
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
