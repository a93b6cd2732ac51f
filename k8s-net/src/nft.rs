//! nf_tables over netlink: tables, chains, sets, maps and rules, committed as atomic transactions.
//!
//! Flow: a [`Batch`] collects changes; [`Nft::commit`] applies it. Packets see the rules from before or
//! after, nothing between. Only tables of our own name in the `ip` family are touched.
//!
//! Ours, because no kept crate builds rules without the program `nft` or the C library libnftnl, and because
//! a sync of many thousand rules is one buffer here.
//!
//! Not here: the rules themselves (see `proxy::rules`, `policy::rules` and `bridge::rules`). [`expr`] has the
//! expressions.

use std::io;

use crate::netlink::{Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Socket};

pub(crate) mod expr;
pub(crate) use expr::{Rule, Verdict};

const NETLINK_NETFILTER: i32 = 12;
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DEL_ELEMENT: u16 = 14;
/// Address family `ip` (NFPROTO_IPV4).
pub(crate) const FAMILY: u8 = 2;
/// Address families `ip` and `ip6` in one (NFPROTO_INET).
pub(crate) const INET: u8 = 1;

/// Elements per message: the list is one attribute, which is limited to 64 KiB.
const CHUNK: usize = 400;

/// Type, hook and priority of a base chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
}

pub(crate) const PREROUTING: u32 = 0;
pub(crate) const INPUT: u32 = 1;
pub(crate) const FORWARD: u32 = 2;
pub(crate) const OUTPUT: u32 = 3;
pub(crate) const POSTROUTING: u32 = 4;
/// Before connection tracking.
pub(crate) const RAW: i32 = -300;
pub(crate) const DSTNAT: i32 = -100;
pub(crate) const SRCNAT: i32 = 100;
pub(crate) const FILTER: i32 = 0;

/// Value type of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// No values: a set.
    None,
    /// Values of this many bytes.
    Bytes(u32),
    /// Verdicts (`jump`, `drop`, ...).
    Verdicts,
}

/// Declaration of a set or map. Keys are 32-bit words: shorter fields are padded at the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetSpec {
    pub(crate) name: &'static str,
    pub(crate) key_length: u32,
    pub(crate) values: Values,
    /// Rules may add elements, which expire.
    pub(crate) dynamic: bool,
    /// An element is a range of keys: see [`range`].
    pub(crate) intervals: bool,
}

/// Returns the two elements of a range of keys in a set with intervals. The last word of its keys must end
/// with a byte that is zero in every key: the end is one more than the last key.
pub(crate) fn range(first: Vec<u8>, mut last: Vec<u8>, value: Value) -> [(Vec<u8>, Value); 2] {
    if let Some(byte) = last.last_mut() {
        *byte = 1;
    }
    [(first, value), (last, Value::End)]
}

/// Value of a map element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    None,
    Bytes(Vec<u8>),
    Verdict(Verdict),
    /// The first key after a range.
    End,
}

/// A list of changes to one table.
#[derive(Debug)]
pub(crate) struct Batch {
    family: u8,
    table: String,
    messages: Messages,
    sequence: u32,
    /// Offset of the last message, which will request the acknowledgement.
    last: usize,
    set_ids: u32,
}

fn head(resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [FAMILY, 0, resource[0], resource[1]]
}

/// A base chain of any program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    /// `filter`, `nat` or `route`.
    pub(crate) kind: String,
    pub(crate) hook: u32,
    /// Packets that no rule decides about are dropped.
    pub(crate) drops: bool,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

impl Batch {
    pub(crate) fn new(table: &str) -> Self {
        Self::in_family(FAMILY, table)
    }

    /// A list of changes to a table of this address family.
    pub(crate) fn in_family(family: u8, table: &str) -> Self {
        let mut messages = Messages::default();
        let mut begin = head(10);
        begin[0] = 0;
        messages.begin(BATCH_BEGIN, 0, 1, &begin).end();
        Batch { family, table: table.to_owned(), messages, sequence: 1, last: 0, set_ids: 0 }
    }

    /// Returns true if the batch has no changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.last == 0
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Messages, &str)) {
        self.sequence += 1;
        self.last = self.messages.bytes().len();
        let [_, rest @ ..] = head(0);
        let head = [self.family, rest[0], rest[1], rest[2]];
        self.messages.begin(SUBSYSTEM | kind, flags, self.sequence, &head);
        fill(&mut self.messages, &self.table);
        self.messages.end();
    }

    /// Creates the table if it does not exist.
    pub(crate) fn table(&mut self) {
        self.message(NEW_TABLE, NLM_F_CREATE, |m, table| {
            m.attr_str(1, table).attr_be32(2, 0);
        });
    }

    /// Deletes the table with its content. It must exist (create it first in the same batch).
    pub(crate) fn del_table(&mut self) {
        self.message(DEL_TABLE, 0, |m, table| {
            m.attr_str(1, table);
        });
    }

    /// Creates a chain; with a hook it is a base chain.
    pub(crate) fn chain(&mut self, name: &str, hook: Option<Hook>) {
        self.message(NEW_CHAIN, NLM_F_CREATE, |m, table| {
            m.attr_str(1, table).attr_str(3, name);
            if let Some(hook) = hook {
                m.nest(4, |m| {
                    m.attr_be32(1, hook.hook).attr(2, &hook.priority.to_be_bytes());
                });
                m.attr_be32(5, 1); // policy: accept
                m.attr_str(7, hook.kind);
            }
        });
    }

    /// Appends a rule to a chain.
    pub(crate) fn rule(&mut self, chain: &str, rule: &Rule) {
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |m, table| {
            m.attr_str(1, table).attr_str(2, chain);
            m.nest(4, |m| {
                m.raw(rule.bytes());
            });
        });
    }

    /// Inserts a rule before the others of a chain, with a comment that `nft` and `iptables` show.
    pub(crate) fn insert_rule(&mut self, chain: &str, rule: &Rule, comment: &str) {
        self.message(NEW_RULE, NLM_F_CREATE, |m, table| {
            m.attr_str(1, table).attr_str(2, chain);
            m.nest(4, |m| {
                m.raw(rule.bytes());
            });
            m.attr(7, &comment_data(comment));
        });
    }

    /// Deletes a rule by its handle.
    pub(crate) fn del_rule(&mut self, chain: &str, handle: u64) {
        self.message(DEL_RULE, 0, |m, table| {
            m.attr_str(1, table).attr_str(2, chain).attr(3, &handle.to_be_bytes());
        });
    }

    /// Creates a set or map.
    pub(crate) fn set(&mut self, spec: &SetSpec) {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        self.set_ids += 1;
        let id = self.set_ids;
        let map = if spec.values == Values::None { 0 } else { MAP };
        let dynamic = if spec.dynamic { TIMEOUT | EVAL } else { 0 };
        let intervals = if spec.intervals { INTERVAL } else { 0 };
        self.message(NEW_SET, NLM_F_CREATE | NLM_F_EXCL, |m, table| {
            m.attr_str(1, table).attr_str(2, spec.name).attr_be32(3, map | dynamic | intervals);
            m.attr_be32(4, 4).attr_be32(5, spec.key_length);
            match spec.values {
                Values::None => {}
                Values::Bytes(length) => {
                    m.attr_be32(6, 4).attr_be32(7, length);
                }
                Values::Verdicts => {
                    m.attr_be32(6, 0xffff_ff00);
                }
            }
            if spec.dynamic {
                m.nest(9, |m| {
                    m.attr_be32(1, 65_536);
                });
            }
            m.attr_be32(10, id);
        });
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[(Vec<u8>, Value)]) {
        for chunk in elements.chunks(CHUNK) {
            self.message(kind, flags, |m, table| {
                m.attr_str(1, table).attr_str(2, set);
                m.nest(3, |m| {
                    for (key, value) in chunk {
                        m.nest(1, |m| {
                            m.nest(1, |m| {
                                m.attr(1, key);
                            });
                            match value {
                                Value::None => {}
                                Value::End => {
                                    m.attr_be32(3, 1);
                                }
                                Value::Bytes(bytes) => {
                                    m.nest(2, |m| {
                                        m.attr(1, bytes);
                                    });
                                }
                                Value::Verdict(verdict) => {
                                    m.nest(2, |m| verdict.write(m));
                                }
                            }
                        });
                    }
                });
            });
        }
    }

    /// Adds elements; an existing one is an error.
    pub(crate) fn create(&mut self, set: &str, elements: &[(Vec<u8>, Value)]) {
        self.elements(NEW_ELEMENT, NLM_F_CREATE | NLM_F_EXCL, set, elements);
    }

    /// Adds elements; an existing one with another value is an error.
    pub(crate) fn add(&mut self, set: &str, elements: &[(Vec<u8>, Value)]) {
        self.elements(NEW_ELEMENT, NLM_F_CREATE, set, elements);
    }

    /// Removes elements. They must exist.
    pub(crate) fn remove(&mut self, set: &str, elements: &[(Vec<u8>, Value)]) {
        self.elements(DEL_ELEMENT, 0, set, elements);
    }

    fn finish(mut self) -> (Messages, u32) {
        let last = self.sequence;
        self.messages.set_flag(self.last, NLM_F_ACK);
        let mut end = head(10);
        end[0] = 0;
        self.messages.begin(BATCH_END, 0, last + 1, &end).end();
        (self.messages, last)
    }
}

/// Encodes a comment as the programs do: type 0, length, text with a final zero.
fn comment_data(comment: &str) -> Vec<u8> {
    let bytes: Vec<u8> = comment.bytes().filter(|b| *b != 0).take(200).chain([0]).collect();
    [&[0, u8::try_from(bytes.len()).unwrap_or_default()], &bytes[..]].concat()
}

fn comment_of(mut data: &[u8]) -> Option<String> {
    loop {
        let (kind, length) = (*data.first()?, usize::from(*data.get(1)?));
        let value = data.get(2..2 + length)?;
        if kind == 0 {
            return Some(text(value));
        }
        data = data.get(2 + length..)?;
    }
}

/// An nf_tables connection to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Nft(Socket);

impl Nft {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Nft(Socket::open(NETLINK_NETFILTER)?))
    }

    /// Commits a batch atomically; on failure returns the first error.
    pub(crate) fn commit(&mut self, batch: Batch) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (messages, last) = batch.finish();
        self.0.batch(&messages, last)
    }

    /// Returns true if the table exists. An error means that the kernel has no nf_tables.
    pub(crate) fn has_table(&mut self, name: &str) -> io::Result<bool> {
        let mut found = false;
        let flags = crate::netlink::NLM_F_DUMP;
        self.0.dump(
            |m, seq| {
                m.begin(SUBSYSTEM | GET_TABLE, flags, seq, &head(0)).end();
            },
            |_, body| {
                let listed = body.get(4..).and_then(|rest| crate::netlink::attr_of(rest, 1));
                found |= listed.is_some_and(|n| n.strip_suffix(b"\0") == Some(name.as_bytes()));
            },
        )?;
        Ok(found)
    }

    /// Returns the base chains of all tables.
    pub(crate) fn base_chains(&mut self) -> io::Result<Vec<BaseChain>> {
        use crate::netlink::{NLM_F_DUMP, attr_of};
        let mut found = Vec::new();
        self.0.dump(
            |m, seq| {
                m.begin(SUBSYSTEM | GET_CHAIN, NLM_F_DUMP, seq, &[0; 4]).end();
            },
            |_, body| {
                let (Some(family), Some(rest)) = (body.first(), body.get(4..)) else { return };
                let chain = || {
                    Some(BaseChain {
                        family: *family,
                        table: text(attr_of(rest, 1)?),
                        name: text(attr_of(rest, 3)?),
                        kind: text(attr_of(rest, 7)?),
                        hook: number(attr_of(attr_of(rest, 4)?, 1)?)?,
                        drops: attr_of(rest, 5).and_then(number) == Some(0),
                    })
                };
                found.extend(chain());
            },
        )?;
        Ok(found)
    }

    /// Returns handle and comment (empty without one) of the rules of a chain.
    pub(crate) fn comments(&mut self, chain: &BaseChain) -> io::Result<Vec<(u64, String)>> {
        use crate::netlink::{NLM_F_DUMP, attr_of};
        let mut found = Vec::new();
        self.0.dump(
            |m, seq| {
                m.begin(SUBSYSTEM | GET_RULE, NLM_F_DUMP, seq, &[chain.family, 0, 0, 0]);
                m.attr_str(1, &chain.table).attr_str(2, &chain.name).end();
            },
            |_, body| {
                let rest = body.get(4..).unwrap_or_default();
                let rule = || {
                    let is_of_chain = text(attr_of(rest, 2)?) == chain.name;
                    let handle = u64::from_be_bytes(attr_of(rest, 3)?.try_into().ok()?);
                    let comment = attr_of(rest, 7).and_then(comment_of).unwrap_or_default();
                    Some((handle, comment)).filter(|_| is_of_chain)
                };
                found.extend(rule());
            },
        )?;
        Ok(found)
    }

    /// Returns the keys of a set or map; `NotFound` if there is none of that name.
    pub(crate) fn keys(&mut self, table: &str, set: &str) -> io::Result<Vec<Vec<u8>>> {
        use crate::netlink::{attr_of, attrs};
        let mut keys = Vec::new();
        self.0.dump(
            |m, seq| {
                m.begin(SUBSYSTEM | GET_ELEMENT, crate::netlink::NLM_F_DUMP, seq, &head(0));
                m.attr_str(1, table).attr_str(2, set).end();
            },
            |_, body| {
                let elements = body.get(4..).and_then(|rest| attr_of(rest, 3)).unwrap_or_default();
                let key = |element| attr_of(attr_of(element, 1)?, 1);
                keys.extend(attrs(elements).filter_map(|(_, element)| key(element)).map(<[u8]>::to_vec));
            },
        )?;
        Ok(keys)
    }

    /// Deletes a table if it exists.
    pub(crate) fn drop_table(&mut self, name: &str) -> io::Result<()> {
        if !self.has_table(name)? {
            return Ok(());
        }
        let mut batch = Batch::new(name);
        batch.table();
        batch.del_table();
        self.commit(batch)
    }
}
