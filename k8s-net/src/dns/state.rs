//! The state of a DNS server, and its next step for a query.

#![expect(clippy::disallowed_methods, reason = "names are answered in real time")]

use std::{
    io,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::DNSClass,
};
use k8s_core::meta::ObjectKey;

use super::{
    answer::{self, Plan, Zone},
    cache::{AnswerCache, Key},
    feed::{Entries, Sink},
    forward::Group,
    index::Index,
    limits::Limits,
    packets::Reuse,
    settings::{DnsSettings, Hosts, Kubernetes},
};

/// Longest time for which a forwarded answer is given again without a look at its time to live.
const ABOUT_A_SECOND: Duration = Duration::from_secs(1);

/// A server block in use.
#[derive(Debug)]
struct Block {
    hosts: Option<Hosts>,
    kubernetes: Option<Kubernetes>,
    groups: Vec<Arc<Group>>,
    cache: Option<Arc<AnswerCache>>,
}

#[derive(Debug)]
struct Active {
    settings: DnsSettings,
    blocks: Vec<Block>,
}

impl Active {
    fn new(settings: DnsSettings) -> Self {
        let block = |block: &super::settings::Block| Block {
            hosts: block.hosts.clone(),
            kubernetes: block.kubernetes.clone(),
            groups: block.forwards.iter().map(|forward| Arc::new(Group::new(forward.clone()))).collect(),
            cache: block.cache.map(|limits| Arc::new(AnswerCache::new(limits))),
        };
        let blocks = settings.blocks.iter().map(block).collect();
        Active { settings, blocks }
    }
}

/// The state of a server. Queries read it, a feed changes it.
#[derive(Debug)]
pub(super) struct State {
    zone: Zone,
    /// `None` until the first feed is complete.
    index: RwLock<Option<Index>>,
    active: RwLock<Arc<Active>>,
    /// Changes with everything above.
    version: AtomicU64,
    /// Of queries that wait for other servers.
    pub(super) forwarded: Arc<Limits>,
    /// Of TCP connections.
    pub(super) connections: Arc<Limits>,
}

/// A query that another server has to answer.
#[derive(Debug)]
pub(super) struct Pending {
    question: Message,
    /// The CNAME record that led to the query, if it is not the client's own.
    alias: Option<Message>,
    query: Vec<u8>,
    group: Arc<Group>,
    cache: Option<(Arc<AnswerCache>, Key)>,
}

/// The next step for a query.
#[derive(Debug)]
pub(super) enum Step {
    /// Send these bytes, if there are any.
    Done(Option<Vec<u8>>, Reuse),
    /// Ask another server.
    Ask(Box<Pending>),
}

/// An answer that is known, or the group of servers to ask.
enum Found {
    Known(Plan),
    Kept(Message, Instant),
    Elsewhere(Arc<Group>, Option<(Arc<AnswerCache>, Key)>),
}

impl State {
    pub(super) fn new(zone: Zone, settings: DnsSettings) -> Arc<Self> {
        Arc::new(State {
            zone,
            index: RwLock::default(),
            active: RwLock::new(Arc::new(Active::new(settings))),
            version: AtomicU64::new(1),
            forwarded: Limits::new(1024, 256),
            connections: Limits::new(512, 32),
        })
    }

    /// Returns the version. An answer belongs to the version from before it was made.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Reports whether names of the cluster are known.
    pub(super) fn is_complete(&self) -> bool {
        self.index.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn find(&self, question: &Message, query: &Query, now: Instant) -> Found {
        let known = |code| Found::Known(Plan::Answer { reply: answer::reply(question, code), ordered: true });
        let name = answer::plain(query.name());
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(block) = active.settings.block_of(&name).map(|at| &active.blocks[at]) else {
            return known(ResponseCode::Refused);
        };
        if query.query_class() == DNSClass::IN {
            if let Some(plan) = block.hosts.as_ref().and_then(|hosts| hosts.plan(question, query)) {
                return Found::Known(plan);
            }
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let kubernetes = block.kubernetes.as_ref();
            if let Some(plan) = kubernetes.and_then(|k| k.plan(question, query, &self.zone, index.as_ref())) {
                return Found::Known(plan);
            }
        }
        let groups = block.groups.iter().filter_map(|group| Some((group.has(&name)?, group)));
        let Some((_, group)) = groups.max_by_key(|(length, _)| *length) else {
            return known(ResponseCode::Refused);
        };
        let cache = block.cache.clone().and_then(|cache| Some((cache, Key::of(question)?)));
        let kept = cache.as_ref().and_then(|(cache, key)| cache.get(key, question, now));
        match kept {
            Some((message, end)) => Found::Kept(message, end),
            None => Found::Elsewhere(group.clone(), cache),
        }
    }

    /// Returns the next step for a query of a client.
    pub(super) fn step(&self, bytes: &[u8], tcp: bool, now: Instant) -> Step {
        let Ok(question) = Message::from_vec(bytes) else {
            return Step::Done(form_error(bytes), Reuse::Never);
        };
        if question.metadata.message_type != MessageType::Query {
            return Step::Done(None, Reuse::Never);
        }
        let refuse =
            |code| Step::Done(answer::encode(&question, &answer::reply(&question, code), tcp), Reuse::Never);
        if question.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [query] = &question.queries[..] else { return refuse(ResponseCode::FormErr) };
        match self.find(&question, query, now) {
            Found::Known(Plan::Answer { reply, ordered }) => {
                let bytes = answer::encode(&question, &reply, tcp);
                let is_failure = reply.metadata.response_code == ResponseCode::ServFail;
                Step::Done(bytes, if is_failure { Reuse::Never } else { Reuse::WhileUnchanged { ordered } })
            }
            Found::Known(Plan::Follow(alias, query)) => self.follow(question, alias, query, (tcp, now)),
            Found::Kept(reply, end) => {
                let bytes = answer::encode(&question, &reply, tcp);
                Step::Done(bytes, Reuse::Until(end.min(now + ABOUT_A_SECOND)))
            }
            Found::Elsewhere(group, cache) => {
                let query = bytes.to_vec();
                Step::Ask(Box::new(Pending { question, alias: None, query, group, cache }))
            }
        }
    }

    /// Resolves the target of a CNAME record that leads out of the cluster.
    fn follow(&self, question: Message, alias: Message, target: Query, (tcp, now): (bool, Instant)) -> Step {
        let mut next = Message::query();
        next.metadata.recursion_desired = true;
        next.add_query(target.clone());
        let reply = match self.find(&next, &target, now) {
            Found::Known(Plan::Answer { reply, .. }) | Found::Kept(reply, _) => joined(alias, &reply),
            // A further CNAME is the client's to follow.
            Found::Known(Plan::Follow(further, _)) => joined(alias, &further),
            Found::Elsewhere(group, cache) => match next.to_vec() {
                Ok(query) => {
                    return Step::Ask(Box::new(Pending {
                        question,
                        alias: Some(alias),
                        query,
                        group,
                        cache,
                    }));
                }
                Err(_) => alias,
            },
        };
        Step::Done(answer::encode(&question, &reply, tcp), Reuse::Never)
    }
}

/// Adds an answer about its target to a CNAME record.
fn joined(mut alias: Message, found: &Message) -> Message {
    alias.add_answers(found.answers.iter().cloned());
    alias
}

impl Pending {
    /// Asks another server; a failure is SERVFAIL.
    pub(super) async fn answer(self, tcp: bool) -> Option<Vec<u8>> {
        // The client cannot ask for a target again by TCP.
        let found = self.group.ask(&self.query, tcp || self.alias.is_some()).await;
        let message = found.as_ref().and_then(|bytes| Message::from_vec(bytes).ok());
        if let (Some((cache, key)), Some(message)) = (self.cache, &message) {
            cache.put(key, message, found.as_deref().unwrap_or_default(), Instant::now());
        }
        let Some(alias) = self.alias else {
            let failure = || answer::reply(&self.question, ResponseCode::ServFail);
            return found.or_else(|| answer::encode(&self.question, &failure(), tcp));
        };
        // If the target cannot be resolved, the CNAME alone is returned: the client may know another server.
        let reply = match &message {
            Some(message) => joined(alias, message),
            None => alias,
        };
        answer::encode(&self.question, &reply, tcp)
    }
}

impl Sink for State {
    async fn replace(&self, all: Vec<(ObjectKey, Entries)>) -> io::Result<()> {
        let mut index = Index::default();
        for (key, entries) in all {
            index.set(key, entries);
        }
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Some(index);
        self.version.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    async fn set(&self, key: ObjectKey, entries: Entries) -> io::Result<()> {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.get_or_insert_default().set(key, entries);
        drop(index);
        self.version.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    async fn settings(&self, settings: DnsSettings) -> io::Result<()> {
        let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
        if active.settings != settings {
            *active = Arc::new(Active::new(settings));
            drop(active);
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }
}

/// FORMERR for a query that cannot be parsed; `None` if even its id is missing.
fn form_error(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = bytes.get(..12).filter(|h| h[2] & 0x80 == 0)?;
    Some(vec![head[0], head[1], 0x80 | (head[2] & 0x79), 1, 0, 0, 0, 0, 0, 0, 0, 0])
}
