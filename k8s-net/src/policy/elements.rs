//! The content of the policy table's sets and maps, and its changes since the last transaction. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::ports::{PortSet, Span};

/// Key of an element. Profiles, classes and port sets are numbers that [`super::pairs`] gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// An isolated pod's address, for connections to it. Value: profile.
    Ingress(Ipv4Addr),
    /// An isolated pod's address, for connections from it. Value: profile.
    Egress(Ipv4Addr),
    /// An isolated pod, which always reaches itself.
    Own(Ipv4Addr),
    /// A pod's address. Value: class.
    Peer(Ipv4Addr),
    /// All addresses from the first to the last. Value: class.
    Block(Ipv4Addr, Ipv4Addr),
    /// Profile and class of its peer. Value: port set.
    Allow(u32, u32),
    /// Profile, for every peer. Value: port set.
    Any(u32),
    /// Port set and ports in it; `None`: every packet.
    Ports(u32, Option<Span>),
}

/// Elements to remove and to add, each with its value (0 for sets).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) remove: Vec<(Key, u32)>,
    pub(crate) add: Vec<(Key, u32)>,
}

/// The wanted content, and the former values of what changed.
#[derive(Debug, Default)]
pub(crate) struct Elements {
    content: BTreeMap<Key, u32>,
    before: BTreeMap<Key, Option<u32>>,
}

impl Elements {
    /// Sets or removes an element.
    pub(crate) fn put(&mut self, key: Key, value: Option<u32>) {
        let old = match value {
            Some(value) => self.content.insert(key, value),
            None => self.content.remove(&key),
        };
        if old != value {
            self.before.entry(key).or_insert(old);
        }
    }

    /// Adds or removes the elements of a port set.
    pub(crate) fn put_ports(&mut self, id: u32, set: &PortSet, add: bool) {
        let value = add.then_some(0);
        match set {
            PortSet::All => self.put(Key::Ports(id, None), value),
            PortSet::Spans(spans) => {
                for span in spans {
                    self.put(Key::Ports(id, Some(*span)), value);
                }
            }
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<u32> {
        self.content.get(&key).copied()
    }

    /// Returns the class of the block that has an address.
    pub(crate) fn block_of(&self, address: Ipv4Addr) -> Option<u32> {
        let below = Key::Block(address, Ipv4Addr::BROADCAST);
        match self.content.range(..=below).next_back() {
            Some((Key::Block(first, last), class)) if (*first..=*last).contains(&address) => Some(*class),
            _ => None,
        }
    }

    /// Returns true if a port set has the port.
    pub(crate) fn has_port(&self, id: u32, protocol: u8, port: u16) -> bool {
        let above = Key::Ports(id, Some(Span { protocol, first: port, last: u16::MAX }));
        let spans = self.content.range(Key::Ports(id, None)..=above);
        spans.rev().take_while(|(key, _)| matches!(key, Key::Ports(..))).any(|(key, _)| match key {
            Key::Ports(_, None) => true,
            Key::Ports(_, Some(s)) => s.protocol == protocol && (s.first..=s.last).contains(&port),
            _ => false,
        })
    }

    /// Returns the addresses of isolated pods.
    pub(crate) fn isolated(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let range = Key::Own(Ipv4Addr::UNSPECIFIED)..=Key::Own(Ipv4Addr::BROADCAST);
        self.content.range(range).filter_map(|(key, _)| match key {
            Key::Own(address) => Some(*address),
            _ => None,
        })
    }

    /// Returns the changes since the last call, the removals first.
    pub(crate) fn take_delta(&mut self) -> Delta {
        let mut delta = Delta::default();
        for (key, old) in std::mem::take(&mut self.before) {
            let new = self.content.get(&key).copied();
            if old != new {
                delta.remove.extend(old.map(|value| (key, value)));
                delta.add.extend(new.map(|value| (key, value)));
            }
        }
        delta
    }

    /// Returns the whole content as additions, and forgets the changes.
    pub(crate) fn take_all(&mut self) -> Delta {
        self.before.clear();
        Delta { remove: Vec::new(), add: self.content.iter().map(|(key, value)| (*key, *value)).collect() }
    }

    /// Returns the number of elements.
    pub(crate) fn len(&self) -> usize {
        self.content.len()
    }
}
