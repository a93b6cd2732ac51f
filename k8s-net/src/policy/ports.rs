//! Sets of protocols and ports.

use std::collections::BTreeSet;

/// Ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    /// IP protocol number.
    pub(crate) protocol: u8,
    pub(crate) first: u16,
    pub(crate) last: u16,
}

/// A set of protocols and ports. Equal sets are equal values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PortSet {
    /// Every packet, whatever its protocol.
    All,
    /// Sorted spans that neither overlap nor touch.
    Spans(Vec<Span>),
}

impl Default for PortSet {
    fn default() -> Self {
        PortSet::Spans(Vec::new())
    }
}

impl PortSet {
    /// Creates the union of these spans.
    pub(crate) fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable();
        let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match merged.last_mut() {
                Some(last)
                    if last.protocol == span.protocol
                        && u32::from(span.first) <= u32::from(last.last) + 1 =>
                {
                    last.last = last.last.max(span.last);
                }
                _ => merged.push(span),
            }
        }
        PortSet::Spans(merged)
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == PortSet::default()
    }

    /// Adds another set.
    pub(crate) fn extend(&mut self, other: &PortSet) {
        *self = match (std::mem::take(self), other) {
            (PortSet::All, _) | (_, PortSet::All) => PortSet::All,
            (PortSet::Spans(mut spans), PortSet::Spans(others)) => {
                if others.is_empty() {
                    PortSet::Spans(spans)
                } else {
                    spans.extend(others);
                    PortSet::new(spans)
                }
            }
        };
    }
}

/// Ports of a rule: numbers, and names that a pod's containers give to numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ports {
    pub(crate) set: PortSet,
    /// Protocol and name.
    pub(crate) names: BTreeSet<(u8, String)>,
}

/// A named port of a pod's container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NamedPort {
    pub(crate) protocol: u8,
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl Ports {
    /// Every packet.
    pub(crate) fn all() -> Self {
        Ports { set: PortSet::All, names: BTreeSet::new() }
    }

    pub(crate) fn new(spans: Vec<Span>, names: BTreeSet<(u8, String)>) -> Self {
        Ports { set: PortSet::new(spans), names }
    }

    /// Returns the number of spans and names.
    pub(crate) fn size(&self) -> usize {
        let spans = match &self.set {
            PortSet::All => 1,
            PortSet::Spans(spans) => spans.len(),
        };
        spans + self.names.len()
    }

    pub(crate) fn extend(&mut self, other: &Ports) {
        self.set.extend(&other.set);
        self.names.extend(other.names.iter().cloned());
    }

    /// Returns the set, with names looked up in a pod's named ports.
    pub(crate) fn resolve(&self, named: &[NamedPort]) -> PortSet {
        let mut set = self.set.clone();
        if !self.names.is_empty() {
            let meant = named.iter().filter(|n| {
                self.names.iter().any(|(protocol, name)| *protocol == n.protocol && *name == n.name)
            });
            let spans = meant.map(|n| Span { protocol: n.protocol, first: n.port, last: n.port });
            set.extend(&PortSet::new(spans.collect()));
        }
        set
    }
}
