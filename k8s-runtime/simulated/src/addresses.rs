//! Addresses of pods: each is given to one pod at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Most addresses of a range that are used.
const MOST: u128 = 1 << 22;
/// The first host addresses, which a real network gives to its bridge.
const RESERVED: u128 = 2;

/// The addresses of one range. Memory grows with the highest that was given.
#[derive(Debug)]
pub(crate) struct Pool {
    range: IpNet,
    /// One bit per host number.
    used: Vec<u64>,
    /// Host number to try first. Addresses are given in turn, so that one is not used again at once.
    next: u128,
}

impl Pool {
    pub(crate) fn new(range: IpNet) -> Self {
        Pool { range: range.trunc(), used: Vec::new(), next: RESERVED }
    }

    pub(crate) fn range(&self) -> IpNet {
        self.range
    }

    /// Number of host numbers, the broadcast address excepted.
    fn hosts(&self) -> u128 {
        let bits = u32::from(self.range.max_prefix_len() - self.range.prefix_len());
        1_u128.checked_shl(bits).unwrap_or(u128::MAX).saturating_sub(1).min(MOST)
    }

    /// Gives the next free address; `None`: all are in use.
    pub(crate) fn take(&mut self) -> Option<IpAddr> {
        let hosts = self.hosts();
        let tries = (self.next..hosts).chain(RESERVED..self.next.min(hosts));
        let free = tries.into_iter().find(|host| !self.is_used(*host))?;
        self.mark(free, true);
        self.next = free + 1;
        address(self.range, free)
    }

    /// Marks an address as in use. Returns false if it is already, or is not of this range.
    pub(crate) fn keep(&mut self, address: IpAddr) -> bool {
        match self.host(address) {
            Some(host) if !self.is_used(host) => {
                self.mark(host, true);
                true
            }
            _ => false,
        }
    }

    /// Gives an address back.
    pub(crate) fn give_back(&mut self, address: IpAddr) {
        if let Some(host) = self.host(address) {
            self.mark(host, false);
        }
    }

    fn host(&self, address: IpAddr) -> Option<u128> {
        let host = match (address, self.range.network()) {
            (IpAddr::V4(a), IpAddr::V4(base)) => u128::from(a.to_bits().checked_sub(base.to_bits())?),
            (IpAddr::V6(a), IpAddr::V6(base)) => a.to_bits().checked_sub(base.to_bits())?,
            _ => return None,
        };
        (host < self.hosts()).then_some(host)
    }

    fn is_used(&self, host: u128) -> bool {
        let (word, bit) = place(host);
        self.used.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn mark(&mut self, host: u128, used: bool) {
        let (word, bit) = place(host);
        if used && self.used.len() <= word {
            self.used.resize(word + 1, 0);
        }
        if let Some(bits) = self.used.get_mut(word) {
            *bits = if used { *bits | bit } else { *bits & !bit };
        }
    }
}

/// Word and bit of a host number, which is below [`MOST`].
fn place(host: u128) -> (usize, u64) {
    (usize::try_from(host / 64).unwrap_or(usize::MAX), 1 << (host % 64))
}

fn address(range: IpNet, host: u128) -> Option<IpAddr> {
    Some(match range.network() {
        IpAddr::V4(base) => {
            IpAddr::V4(Ipv4Addr::from(base.to_bits().checked_add(u32::try_from(host).ok()?)?))
        }
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(base.to_bits().checked_add(host)?)),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_end_and_come_back_in_turn() {
        let mut pool = Pool::new("10.1.2.0/29".parse().expect("a range"));
        let all: Vec<String> = std::iter::from_fn(|| pool.take()).map(|a| a.to_string()).collect();
        assert_eq!(all, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        pool.give_back("10.1.2.3".parse().expect("an address"));
        assert_eq!(pool.take().map(|a| a.to_string()).as_deref(), Some("10.1.2.3"));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn kept_addresses_are_not_given() {
        let mut pool = Pool::new("fd00::/64".parse().expect("a range"));
        assert!(pool.keep("fd00::2".parse().expect("an address")));
        assert!(!pool.keep("fd00::2".parse().expect("an address")));
        assert!(!pool.keep("10.0.0.1".parse().expect("an address")));
        assert_eq!(pool.take().map(|a| a.to_string()).as_deref(), Some("fd00::3"));
        assert_eq!(Pool::new("10.0.0.1/32".parse().expect("a range")).take(), None);
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice(steps in proptest::collection::vec(any::<(bool, usize)>(), 0..200)) {
            let mut pool = Pool::new("10.0.0.0/26".parse().expect("a range"));
            let mut given = BTreeSet::new();
            for (take, which) in steps {
                if take {
                    match pool.take() {
                        Some(address) => {
                            prop_assert!(pool.range().contains(&address));
                            prop_assert!(given.insert(address));
                        }
                        None => prop_assert_eq!(given.len(), 61),
                    }
                } else if let Some(address) = given.iter().nth(which % given.len().max(1)).copied() {
                    given.remove(&address);
                    pool.give_back(address);
                }
            }
        }
    }
}
