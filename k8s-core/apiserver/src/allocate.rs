//! Allocation of cluster addresses and node ports to Services.
//!
//! Allocations are kept in memory and loaded from the store at the start. A reservation whose write failed is
//! released on drop.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::{Value, json};

use crate::{
    invalid::FieldErrors,
    value::{array_at, bool_at, child, int_at, str_at},
};

#[derive(Debug, Default)]
struct Used {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

/// Allocator of cluster addresses and node ports.
#[derive(Clone, Debug)]
pub struct ServiceAllocator {
    network: u32,
    /// Number of addresses in the range.
    size: u32,
    ports: (u16, u16),
    used: Arc<Mutex<Used>>,
}

/// Addresses and ports taken by one write. Released on drop unless kept.
#[derive(Debug)]
pub struct Reservation {
    allocator: ServiceAllocator,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    /// Released when the write is done: the object no longer uses them.
    released: (Vec<Ipv4Addr>, Vec<u16>),
}

impl Reservation {
    /// Keeps the reservation after the write.
    pub fn keep(&mut self) {
        self.addresses = std::mem::take(&mut self.released.0);
        self.ports = std::mem::take(&mut self.released.1);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.allocator.lock();
        for address in &self.addresses {
            used.addresses.remove(address);
        }
        for port in &self.ports {
            used.ports.remove(port);
        }
    }
}

fn addresses(service: &Value) -> Vec<Ipv4Addr> {
    let mut all: Vec<Ipv4Addr> =
        array_at(service, "/spec/clusterIPs").iter().filter_map(|v| v.as_str()?.parse().ok()).collect();
    if let Ok(one) = str_at(service, "/spec/clusterIP").parse()
        && !all.contains(&one)
    {
        all.push(one);
    }
    all
}

fn node_ports(service: &Value) -> Vec<u16> {
    let mut all: Vec<u16> = array_at(service, "/spec/ports")
        .iter()
        .filter_map(|p| u16::try_from(int_at(p, "/nodePort")?).ok())
        .filter(|p| *p > 0)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Returns `true` if an address is in the network with this prefix length.
pub(crate) fn in_range(address: Ipv4Addr, network: Ipv4Addr, prefix: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    (u32::from(address) ^ u32::from(network)) & mask == 0
}

impl ServiceAllocator {
    /// Creates an allocator of an address range and a port range (both ends included).
    #[must_use]
    pub fn new(network: Ipv4Addr, prefix: u8, ports: (u16, u16)) -> Self {
        let size = 1u32.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(u32::MAX);
        ServiceAllocator {
            network: u32::from(network) & !(size.wrapping_sub(1)),
            size,
            ports,
            used: Arc::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Marks the addresses and ports of the stored Services as used.
    pub(crate) fn load(&self, store: &Store) {
        let mut used = self.lock();
        for stored in store.snapshot("services").range("", "") {
            if let Ok(service) = serde_json::from_slice::<Value>(&stored.json) {
                used.addresses.extend(addresses(&service));
                used.ports.extend(node_ports(&service));
            }
        }
    }

    /// Returns the first address of the range, which belongs to the `kubernetes` Service.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// Returns true if an address is in the range.
    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address).wrapping_sub(self.network) < self.size
    }

    /// Releases the addresses and ports of a deleted Service.
    pub(crate) fn release(&self, service: &Value) {
        let mut used = self.lock();
        for address in addresses(service) {
            used.addresses.remove(&address);
        }
        for port in node_ports(service) {
            used.ports.remove(&port);
        }
    }

    /// Allocates the addresses and ports that a new or changed Service asks for or needs.
    ///
    /// # Errors
    /// 422 for values that are out of range or taken; 500 when the range is full.
    pub(crate) fn reserve(&self, service: &mut Value, old: Option<&Value>) -> Result<Reservation, ApiStatus> {
        let mut reservation = Reservation {
            allocator: self.clone(),
            addresses: Vec::new(),
            ports: Vec::new(),
            released: (Vec::new(), Vec::new()),
        };
        let name = str_at(service, "/metadata/name").to_owned();
        let kind = str_at(service, "/spec/type").to_owned();
        let (had, had_ports) = old.map_or((Vec::new(), Vec::new()), |o| (addresses(o), node_ports(o)));
        let mut errors = FieldErrors::default();
        if kind == "ExternalName" {
            if let Some(spec) = child(service, "spec").and_then(Value::as_object_mut) {
                for field in
                    ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
                {
                    spec.remove(field);
                }
            }
        } else if str_at(service, "/spec/clusterIP") != "None" {
            self.address(service, &had, &mut reservation, &mut errors)?;
        } else if let Some(spec) = child(service, "spec") {
            spec["clusterIPs"] = json!(["None"]);
        }
        let wants_ports = kind == "NodePort"
            || (kind == "LoadBalancer"
                && (bool_at(service, "/spec/allocateLoadBalancerNodePorts")
                    || !node_ports(service).is_empty()));
        if wants_ports {
            self.node_ports(service, &had_ports, &mut reservation, &mut errors)?;
        } else {
            for port in service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten()
            {
                if let Some(map) = port.as_object_mut() {
                    map.remove("nodePort");
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors.into_status("", "Service", &name));
        }
        let (now, now_ports) = (addresses(service), node_ports(service));
        reservation.released = (
            had.into_iter().filter(|a| !now.contains(a)).collect(),
            had_ports.into_iter().filter(|p| !now_ports.contains(p)).collect(),
        );
        Ok(reservation)
    }

    fn address(
        &self,
        service: &mut Value,
        had: &[Ipv4Addr],
        reservation: &mut Reservation,
        errors: &mut FieldErrors,
    ) -> Result<(), ApiStatus> {
        let wanted = str_at(service, "/spec/clusterIP").to_owned();
        let mut used = self.lock();
        let address = match wanted.parse::<Ipv4Addr>() {
            Ok(address) if had.contains(&address) => address,
            Ok(address) => {
                let offset = u32::from(address).wrapping_sub(self.network);
                let problem = if offset == 0 || offset >= self.size - 1 {
                    Some("the provided network does not match the current range")
                } else if used.addresses.contains(&address) {
                    Some("provided IP is already allocated")
                } else {
                    None
                };
                if let Some(problem) = problem {
                    errors.invalid(
                        "spec.clusterIPs",
                        json!([wanted]),
                        format!("failed to allocate IP {address}: {problem}"),
                    );
                    return Ok(());
                }
                used.addresses.insert(address);
                reservation.addresses.push(address);
                address
            }
            Err(_) => {
                // Upstream leaves the low part of the range to Services that ask for an address.
                let low = (self.size / 16).clamp(16, 256).min(self.size / 2);
                let start = k8s_core::random::range(low..self.size - 1);
                let free = (0..self.size - 2)
                    .map(|i| 1 + (start - 1 + i) % (self.size - 2))
                    .map(|offset| Ipv4Addr::from(self.network + offset))
                    .find(|a| !used.addresses.contains(a));
                let Some(address) = free else {
                    return Err(ApiStatus::internal("failed to allocate a serviceIP: range is full"));
                };
                used.addresses.insert(address);
                reservation.addresses.push(address);
                address
            }
        };
        if let Some(spec) = child(service, "spec") {
            spec["clusterIP"] = address.to_string().into();
            spec["clusterIPs"] = json!([address.to_string()]);
        }
        Ok(())
    }

    fn node_ports(
        &self,
        service: &mut Value,
        had: &[u16],
        reservation: &mut Reservation,
        errors: &mut FieldErrors,
    ) -> Result<(), ApiStatus> {
        let (first, last) = self.ports;
        let mut used = self.lock();
        // TCP and UDP of a Service may share a port number.
        let mut mine: Vec<u16> = had.to_vec();
        let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for (i, port) in ports.into_iter().flatten().enumerate() {
            match int_at(port, "/nodePort") {
                Some(wanted) if wanted != 0 => {
                    let field = format!("spec.ports[{i}].nodePort");
                    match u16::try_from(wanted) {
                        Ok(p) if mine.contains(&p) => {}
                        Ok(p) if (first..=last).contains(&p) => {
                            if used.ports.insert(p) {
                                reservation.ports.push(p);
                                mine.push(p);
                            } else {
                                errors.invalid(field, wanted, "provided port is already allocated");
                            }
                        }
                        _ => errors.invalid(
                            field,
                            wanted,
                            format!("provided port is not in the valid range. The range of valid ports is {first}-{last}"),
                        ),
                    }
                }
                _ => {
                    let span = last - first + 1;
                    let start = k8s_core::random::range(0..span);
                    let free =
                        (0..span).map(|i| first + (start + i) % span).find(|p| !used.ports.contains(p));
                    let Some(free) = free else {
                        return Err(ApiStatus::internal("failed to allocate a nodePort: range is full"));
                    };
                    used.ports.insert(free);
                    reservation.ports.push(free);
                    mine.push(free);
                    port["nodePort"] = free.into();
                }
            }
        }
        Ok(())
    }
}
