//! Limits of the work that waits at a time, in all and for one client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Limits of one kind of work. A [`Permit`] is a part of it.
#[derive(Debug)]
pub(super) struct Limits {
    most: usize,
    /// For one client, so that one pod does not take the names of all others.
    most_of_one: usize,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// Work that has begun; dropping it ends the count.
#[derive(Debug)]
pub(super) struct Permit {
    limits: Arc<Limits>,
    client: IpAddr,
}

impl Limits {
    /// Creates limits for all clients together, and for each.
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Limits { most, most_of_one, clients: Mutex::default() })
    }

    /// Counts a client's work. `None`: there is too much of it.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = clients.values().sum();
        let own = clients.get(&client).copied().unwrap_or_default();
        if all >= self.most || own >= self.most_of_one {
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
        let limits = Limits::new(100, 25);
        let of = |last: u8| limits.enter(IpAddr::from([10, 42, 0, last]));
        let mut held: Vec<_> = std::iter::from_fn(|| of(1)).collect();
        assert_eq!(held.len(), 25);
        held.push(of(2).expect("another client is served"));
        for client in 3..10 {
            held.extend(std::iter::from_fn(|| of(client)));
        }
        assert_eq!(held.len(), 100);
        assert!(of(20).is_none());
        held.clear();
        assert!(limits.clients.lock().unwrap().is_empty());
    }
}
