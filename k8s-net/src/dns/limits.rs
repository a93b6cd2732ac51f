//! Limits of the work that waits at a time, in all and for one client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Forwarded queries and TCP connections at a time.
const MOST: usize = 1024;
/// Of them for one client, so that one pod does not take the names of all others.
const MOST_OF_ONE: usize = 256;

/// The counts. A [`Permit`] is one of them.
#[derive(Debug, Default)]
pub(super) struct Limits {
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// Work that has begun; dropping it ends the count.
#[derive(Debug)]
pub(super) struct Permit {
    limits: Arc<Limits>,
    client: IpAddr,
}

impl Limits {
    /// Counts a client's work. `None`: there is too much of it.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = clients.values().sum();
        let own = clients.get(&client).copied().unwrap_or_default();
        if all >= MOST || own >= MOST_OF_ONE {
            return None;
        }
        clients.insert(client, own + 1);
        Some(Permit { limits: self.clone(), client })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut clients = self.limits.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_all() {
        let limits = Arc::new(Limits::default());
        let of = |last: u8| limits.enter(IpAddr::from([10, 42, 0, last]));
        let mut held: Vec<_> = std::iter::from_fn(|| of(1)).collect();
        assert_eq!(held.len(), MOST_OF_ONE);
        held.push(of(2).expect("another client is served"));
        for client in 3..10 {
            held.extend(std::iter::from_fn(|| of(client)));
        }
        assert_eq!(held.len(), MOST);
        assert!(of(20).is_none());
        held.clear();
        assert!(limits.clients.lock().unwrap().is_empty());
    }
}
