//! The holders of ports of addresses.
//!
//! Law: a port of an address has at most one holder. A holder keeps it until it no longer wants it; after a
//! start, holders are those of the Services' status, the older first.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_core::meta::ObjectKey;

use super::plan::Port;

/// The holders.
#[derive(Debug, Default)]
pub(super) struct Claims {
    holders: HashMap<(IpAddr, Port), ObjectKey>,
    of: HashMap<ObjectKey, BTreeSet<(IpAddr, Port)>>,
}

impl Claims {
    /// Takes all ports of an address for a Service, or none: then returns the port and its holder.
    /// `still_wants` says whether another holder still wants an address and port; if not, it loses it.
    pub(super) fn take(
        &mut self,
        service: &ObjectKey,
        address: IpAddr,
        ports: &[Port],
        still_wants: impl Fn(&ObjectKey, IpAddr, &Port) -> bool,
    ) -> Result<(), (Port, ObjectKey)> {
        for port in ports {
            let holder = self.holders.get(&(address, port.clone()));
            if let Some(holder) = holder.filter(|h| *h != service && still_wants(h, address, port)) {
                return Err((port.clone(), holder.clone()));
            }
        }
        for port in ports {
            let place = (address, port.clone());
            if let Some(before) = self.holders.insert(place.clone(), service.clone())
                && before != *service
                && let Some(others) = self.of.get_mut(&before)
            {
                others.remove(&place);
            }
            self.of.entry(service.clone()).or_default().insert(place);
        }
        Ok(())
    }

    /// Gives back what a Service holds, except these ports of these addresses.
    pub(super) fn keep(&mut self, service: &ObjectKey, addresses: &[IpAddr], ports: &[Port]) {
        let Some(held) = self.of.get_mut(service) else { return };
        held.retain(|place| {
            let stays = addresses.contains(&place.0) && ports.contains(&place.1);
            if !stays {
                self.holders.remove(place);
            }
            stays
        });
        if held.is_empty() {
            self.of.remove(service);
        }
    }

    /// Returns true if a Service holds a port of an address.
    pub(super) fn has(&self, service: &ObjectKey, address: IpAddr, port: &Port) -> bool {
        self.holders.get(&(address, port.clone())) == Some(service)
    }

    /// Returns true if a Service holds anything.
    pub(super) fn holds_any(&self, service: &ObjectKey) -> bool {
        self.of.contains_key(service)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> ObjectKey {
        ObjectKey::new("demo", &format!("s{number}"))
    }

    proptest! {
        /// Both maps say the same, and a port has no two holders.
        #[test]
        fn a_port_of_an_address_has_one_holder(
            steps in prop::collection::vec((0..4u8, 0..2u8, prop::collection::vec(0..4i32, 0..3), any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut claims = Claims::default();
            for (service, address, numbers, release, wants) in steps {
                let address = IpAddr::from([192, 0, 2, address]);
                let ports: Vec<Port> = numbers.iter().map(|n| Port { protocol: "TCP".into(), number: *n }).collect();
                if release {
                    claims.keep(&key(service), &[address], &ports);
                } else {
                    let free = ports.iter().all(|p| {
                        claims.holders.get(&(address, p.clone())).is_none_or(|h| *h == key(service))
                    });
                    let taken = claims.take(&key(service), address, &ports, |_, _, _| wants);
                    prop_assert_eq!(taken.is_ok(), free || !wants);
                }
                let listed: usize = claims.of.values().map(BTreeSet::len).sum();
                prop_assert_eq!(listed, claims.holders.len());
                for (service, places) in &claims.of {
                    for place in places {
                        prop_assert_eq!(claims.holders.get(place), Some(service));
                    }
                }
            }
        }
    }
}
