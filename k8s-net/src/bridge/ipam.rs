//! Host-local IP address management (IPAM): assigns addresses of the node's pod CIDR to sandboxes.
//!
//! Each allocation is a small file named after its address and created by an atomic rename, so allocations
//! survive a restart and a kill -9. Addresses are handed out round-robin: a freed address is reused as late
//! as possible, because peers may still hold connections to its previous owner.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::cidr;

/// A host port of a pod, as stored in the allocation file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptPort {
    /// IP protocol number.
    pub(crate) protocol: u8,
    pub(crate) host_ip: Option<Ipv4Addr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
}

/// Content of an allocation file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    pub(crate) sandbox: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<KeptPort>,
}

/// Errors of an address allocation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IpamError {
    #[error("no free address in {0}")]
    Exhausted(Ipv4Net),
    #[error("{path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The address allocations of one node.
#[derive(Debug)]
pub(crate) struct Ipam {
    range: Ipv4Net,
    folder: PathBuf,
    by_address: BTreeMap<Ipv4Addr, Allocation>,
    by_sandbox: HashMap<String, Ipv4Addr>,
    /// Addresses that are in the nf_tables pod table.
    announced: BTreeSet<Ipv4Addr>,
    /// Offset of the next candidate address.
    cursor: u64,
}

impl Ipam {
    /// Reads the allocations. Other files in the folder are ignored and left alone.
    pub(crate) fn open(folder: &Path, range: Ipv4Net) -> Result<Self, IpamError> {
        let failed = |source| IpamError::Io { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut ipam = Ipam {
            range,
            folder: folder.to_owned(),
            by_address: BTreeMap::new(),
            by_sandbox: HashMap::new(),
            announced: BTreeSet::new(),
            cursor: FIRST,
        };
        let mut newest = None;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(address) = name.to_str().and_then(|n| n.parse::<Ipv4Addr>().ok()) else { continue };
            let Some(offset) = cidr::offset_of(range, address) else { continue };
            let Ok(bytes) = fs::read(entry.path()) else { continue };
            let Ok(allocation) = serde_json::from_slice::<Allocation>(&bytes) else { continue };
            let made = entry.metadata().and_then(|m| m.modified()).ok();
            if made >= newest {
                newest = made;
                ipam.cursor = offset + 1;
            }
            ipam.by_sandbox.insert(allocation.sandbox.clone(), address);
            ipam.by_address.insert(address, allocation);
            ipam.announced.insert(address);
        }
        Ok(ipam)
    }

    /// Returns the sandbox's address, or allocates a free one.
    pub(crate) fn allocate(&mut self, sandbox: &str, ports: Vec<KeptPort>) -> Result<Ipv4Addr, IpamError> {
        let allocation = Allocation { sandbox: sandbox.to_owned(), ports };
        let address = match self.by_sandbox.get(sandbox) {
            Some(have) if self.by_address.get(have) == Some(&allocation) => return Ok(*have),
            Some(have) => *have,
            None => self.free_address().ok_or(IpamError::Exhausted(self.range))?,
        };
        self.write(address, &allocation)?;
        self.cursor = cidr::offset_of(self.range, address).map_or(FIRST, |o| o + 1);
        self.by_sandbox.insert(sandbox.to_owned(), address);
        self.by_address.insert(address, allocation);
        Ok(address)
    }

    /// Frees the address of a sandbox and returns it.
    pub(crate) fn release(&mut self, sandbox: &str) -> Result<Option<(Ipv4Addr, Allocation)>, IpamError> {
        let Some(address) = self.by_sandbox.get(sandbox).copied() else { return Ok(None) };
        let path = self.folder.join(address.to_string());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(IpamError::Io { path, source });
            }
            _ => {}
        }
        self.by_sandbox.remove(sandbox);
        self.announced.remove(&address);
        Ok(self.by_address.remove(&address).map(|allocation| (address, allocation)))
    }

    /// Returns the address of a sandbox.
    pub(crate) fn address_of(&self, sandbox: &str) -> Option<Ipv4Addr> {
        self.by_sandbox.get(sandbox).copied()
    }

    /// Returns the host ports stored for a sandbox.
    pub(crate) fn ports_of(&self, sandbox: &str) -> &[KeptPort] {
        let kept = self.address_of(sandbox).and_then(|a| self.by_address.get(&a));
        kept.map(|allocation| &allocation.ports[..]).unwrap_or_default()
    }

    /// Returns true if the pod table has the address.
    pub(crate) fn is_announced(&self, address: Ipv4Addr) -> bool {
        self.announced.contains(&address)
    }

    /// Records that the pod table has the address.
    pub(crate) fn set_announced(&mut self, address: Ipv4Addr) {
        self.announced.insert(address);
    }

    pub(crate) fn allocations(&self) -> impl Iterator<Item = (Ipv4Addr, &Allocation)> {
        self.by_address.iter().map(|(address, allocation)| (*address, allocation))
    }

    fn free_address(&self) -> Option<Ipv4Addr> {
        // The network address, the gateway and the broadcast address are never allocated.
        let end = cidr::size(self.range).saturating_sub(1);
        (self.cursor.clamp(FIRST, end.max(FIRST))..end)
            .chain(FIRST..end)
            .filter_map(|offset| cidr::nth(self.range, offset))
            .find(|address| !self.by_address.contains_key(address))
    }

    fn write(&self, address: Ipv4Addr, allocation: &Allocation) -> Result<(), IpamError> {
        let path = self.folder.join(address.to_string());
        let draft = self.folder.join(format!("{address}.tmp"));
        let bytes = serde_json::to_vec(allocation).unwrap_or_default();
        fs::write(&draft, bytes)
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|source| IpamError::Io { path, source })
    }
}

/// Offset of the first pod address: 0 is the network, 1 the gateway.
const FIRST: u64 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u8),
        Release(u8),
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<u8>().prop_map(|s| Step::Allocate(s % 20)),
            2 => any::<u8>().prop_map(|s| Step::Release(s % 20)),
            1 => Just(Step::Reopen),
        ];
        proptest::collection::vec(step, 0..60)
    }

    fn folder() -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::env::temp_dir().join(format!("k8s-net-ipam-{}-{number}", std::process::id()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// No two sandboxes share an address; a sandbox keeps its own over restarts; a /28 holds 13 pods.
        #[test]
        fn addresses_are_unique_and_stable(steps in steps()) {
            let folder = folder();
            let range: Ipv4Net = "10.1.2.16/28".parse().expect("valid");
            let mut ipam = Ipam::open(&folder, range).expect("opens");
            let mut model: HashMap<u8, Ipv4Addr> = HashMap::new();
            for step in steps {
                match step {
                    Step::Allocate(s) => match ipam.allocate(&s.to_string(), Vec::new()) {
                        Ok(address) => {
                            prop_assert!(range.contains(&address));
                            let offset = cidr::offset_of(range, address).expect("inside");
                            prop_assert!((2..15).contains(&offset));
                            let before = model.insert(s, address);
                            prop_assert!(before.is_none_or(|b| b == address));
                            prop_assert!(model.iter().all(|(k, v)| *k == s || *v != address));
                        }
                        Err(IpamError::Exhausted(_)) => prop_assert!(model.len() == 13 && !model.contains_key(&s)),
                        Err(e) => return Err(TestCaseError::fail(e.to_string())),
                    },
                    Step::Release(s) => {
                        let freed = ipam.release(&s.to_string()).expect("releases").map(|(a, _)| a);
                        prop_assert_eq!(freed, model.remove(&s));
                    }
                    Step::Reopen => ipam = Ipam::open(&folder, range).expect("opens"),
                }
            }
            prop_assert_eq!(ipam.allocations().count(), model.len());
            fs::remove_dir_all(&folder).expect("removed");
        }
    }

    #[test]
    fn a_freed_address_rests() {
        let folder = folder();
        let mut ipam = Ipam::open(&folder, "10.1.2.0/28".parse().expect("valid")).expect("opens");
        let first = ipam.allocate("a", Vec::new()).expect("free");
        ipam.release("a").expect("releases");
        assert_ne!(ipam.allocate("b", Vec::new()).expect("free"), first);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
