//! Properties of the machine (CPUs, memory, addresses, names), read once at the start.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
};

use k8s_core::meta::Quantity;

use crate::{
    config::Config,
    eviction::{plan::Observation, thresholds::Signal},
    types::ApiQuantity,
};

/// Properties that the Node object publishes.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) cpus: i64,
    /// Memory, bytes.
    pub(crate) memory: i64,
    /// Size of the file system of the pod directories, bytes.
    pub(crate) disk: i64,
    /// Bytes of memory and of disk that hard thresholds of eviction keep free.
    reserved: (i64, i64),
    pub(crate) max_pods: u32,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) hostname: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// Reads a value from `/proc/meminfo` and converts it from KiB to bytes.
pub(crate) fn meminfo(key: &str) -> Option<i64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<i64>().ok()?.checked_mul(1024)
}

fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |n| n.trim_matches('"').to_owned())
}

/// Returns the source address of the default route; no packet is sent. Without a route it returns an
/// interface's address, else the loopback address.
fn primary_address() -> IpAddr {
    let ask = |bind: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((to, 53)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    // Documentation addresses (RFC 5737, RFC 3849): only the route lookup matters.
    ask(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into())
        .or_else(|| ask(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()))
        .or_else(interface_address)
        .unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Returns an address of any interface other than the loopback interface.
fn interface_address() -> Option<IpAddr> {
    nix::ifaddrs::getifaddrs().ok()?.find_map(|interface| {
        let ip = IpAddr::from(interface.address?.as_sockaddr_in()?.ip());
        (!ip.is_loopback()).then_some(ip)
    })
}

impl Facts {
    /// Reads the machine's properties.
    pub(crate) fn read(config: &Config) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1));
        let memory = meminfo("MemTotal").unwrap_or(0);
        let disk = disk(&config.root_dir).map_or(0, |disk| disk.bytes.capacity);
        let hostname = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned());
        Facts {
            cpus,
            memory,
            disk,
            reserved: (
                config.eviction.reserved(Signal::MemoryAvailable, memory),
                config.eviction.reserved(Signal::NodeFsAvailable, disk),
            ),
            max_pods: config.max_pods,
            ips: if config.node_ips.is_empty() { vec![primary_address()] } else { config.node_ips.clone() },
            hostname: hostname.unwrap_or_else(|_| config.node_name.clone()),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(),
            machine_id: line("/etc/machine-id"),
            system_uuid: {
                let uuid = line("/sys/class/dmi/id/product_uuid");
                if uuid.is_empty() { line("/etc/machine-id") } else { uuid }
            },
            boot_id: line("/proc/sys/kernel/random/boot_id"),
        }
    }

    /// Capacity of the node.
    pub(crate) fn capacity(&self) -> BTreeMap<String, ApiQuantity> {
        let kibi = |bytes: i64| ApiQuantity(format!("{}Ki", bytes / 1024));
        [
            ("cpu".to_owned(), Quantity::from_units(self.cpus).to_api()),
            ("memory".to_owned(), kibi(self.memory)),
            ("ephemeral-storage".to_owned(), kibi(self.disk)),
            ("pods".to_owned(), Quantity::from_units(self.max_pods.into()).to_api()),
            ("hugepages-1Gi".to_owned(), ApiQuantity("0".into())),
            ("hugepages-2Mi".to_owned(), ApiQuantity("0".into())),
        ]
        .into()
    }

    /// Allocatable resources: the capacity minus what hard thresholds of eviction keep free.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, ApiQuantity> {
        let mut list = self.capacity();
        let memory = self.memory.saturating_sub(self.reserved.0).max(0);
        list.insert("memory".into(), ApiQuantity(format!("{}Ki", memory / 1024)));
        let disk = self.disk.saturating_sub(self.reserved.1).max(0);
        list.insert("ephemeral-storage".into(), ApiQuantity(disk.to_string()));
        list
    }
}

/// Space and inodes of a file system.
pub(crate) struct Disk {
    pub(crate) bytes: Observation,
    pub(crate) inodes: Observation,
}

/// Reads the file system of a directory, or of the nearest existing one above it.
pub(crate) fn disk(directory: &Path) -> Option<Disk> {
    let there = directory.ancestors().find(|p| p.exists())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let bytes = |blocks: u64| number(blocks.saturating_mul(stat.fragment_size()));
    Some(Disk {
        bytes: Observation { available: bytes(stat.blocks_available()), capacity: bytes(stat.blocks()) },
        inodes: Observation { available: number(stat.files_available()), capacity: number(stat.files()) },
    })
}
