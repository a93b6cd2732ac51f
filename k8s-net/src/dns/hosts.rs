//! Names and addresses of the directive `hosts`.

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR},
    },
};

use super::{
    answer::{Plan, plain, reply},
    index::reverse,
    settings::{Hosts, is_below},
};

impl Hosts {
    /// Plans the response to a query of class IN. `None`: the next directive answers.
    pub(super) fn plan(&self, question: &Message, query: &Query) -> Option<Plan> {
        let name = plain(query.name());
        if !self.zones.iter().any(|zone| is_below(&name, zone)) {
            return None;
        }
        let mut message = reply(question, ResponseCode::NoError);
        message.metadata.authoritative = true;
        let record = |data| Record::from_rdata(query.name().clone(), self.ttl, data);
        let is_known = match query.query_type() {
            RecordType::PTR if self.reverse => {
                let names = self.entries.iter().filter(|(_, all)| all.iter().any(|ip| reverse(*ip) == name));
                let names = names.filter_map(|(name, _)| Name::from_ascii(format!("{name}.")).ok());
                message.add_answers(names.map(|name| record(RData::PTR(PTR(name)))));
                !message.answers.is_empty()
            }
            kind => {
                let addresses = self.entries.get(&name);
                let wanted = addresses.into_iter().flatten().filter_map(|address| match address {
                    IpAddr::V4(ip) if kind == RecordType::A => Some(RData::A(A(*ip))),
                    IpAddr::V6(ip) if kind == RecordType::AAAA => Some(RData::AAAA(AAAA(*ip))),
                    _ => None,
                });
                message.add_answers(wanted.map(record));
                addresses.is_some()
            }
        };
        if !is_known {
            if self.fallthrough.has(&name) {
                return None;
            }
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        Some(Plan::Answer { reply: message, ordered: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::settings::Fallthrough;

    #[test]
    fn a_host_is_answered_both_ways_and_others_fall_through_only_if_asked_for() {
        let mut hosts = Hosts {
            zones: vec![String::new()],
            entries: [(
                "db.corp".to_owned(),
                vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            )]
            .into(),
            ttl: 60,
            reverse: true,
            fallthrough: Fallthrough::Never,
        };
        let ask = |hosts: &Hosts, name: &str, kind| {
            let mut question = Message::query();
            let query = Query::query(Name::from_ascii(name).unwrap(), kind);
            question.add_query(query.clone());
            hosts.plan(&question, &query).map(|plan| {
                let Plan::Answer { reply, .. } = plan else { panic!("{plan:?}") };
                let data: Vec<_> = reply.answers.iter().map(|r| r.data.to_string()).collect();
                (reply.metadata.response_code, data)
            })
        };
        let found = |data: &str| Some((ResponseCode::NoError, vec![data.to_owned()]));
        assert_eq!(ask(&hosts, "DB.corp.", RecordType::A), found("192.0.2.7"));
        assert_eq!(ask(&hosts, "db.corp.", RecordType::AAAA), found("2001:db8::7"));
        assert_eq!(ask(&hosts, "db.corp.", RecordType::MX), Some((ResponseCode::NoError, Vec::new())));
        assert_eq!(ask(&hosts, "7.2.0.192.in-addr.arpa.", RecordType::PTR), found("db.corp."));
        assert_eq!(ask(&hosts, "x.corp.", RecordType::A), Some((ResponseCode::NXDomain, Vec::new())));
        hosts.fallthrough = Fallthrough::Zones(vec!["corp".into()]);
        assert_eq!(ask(&hosts, "x.corp.", RecordType::A), None);
        assert_eq!(ask(&hosts, "x.other.", RecordType::A), Some((ResponseCode::NXDomain, Vec::new())));
        hosts.zones = vec!["corp".into()];
        assert_eq!(ask(&hosts, "x.other.", RecordType::A), None);
    }
}
