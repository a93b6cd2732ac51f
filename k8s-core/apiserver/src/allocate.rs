//! Allocation of cluster addresses and node ports to Services.
//!
//! Each address is a stored IPAddress and each node port a stored object of its own that names its Service.
//! Whoever creates that object has it, so that several API servers cannot give one twice. Addresses come from
//! the ranges of all ServiceCIDRs that are ready.
//!
//! A write of a Service first takes what it needs ([`reserve`]), and then either keeps it
//! and gives back what the Service has no more, or gives all of it back. What a crash leaves over is found
//! later ([`repair`]).

mod claims;
pub(crate) mod repair;

use std::{collections::HashMap, net::Ipv4Addr, sync::Arc};

use k8s_core::status::ApiStatus;
use serde_json::{Value, json};

use self::claims::{Claim, Owner};
use crate::{
    invalid::FieldErrors,
    service_ranges::{self, ServiceRanges},
    state::State,
    value::{array_at, bool_at, child, int_at, str_at},
};

/// Node port that a dry run shows where a free one would be chosen, as upstream.
const DRY_PORT: u16 = 32769;
const PORTS_FULL: &str = "failed to allocate a nodePort: range is full";

/// Addresses and ports that one write took.
pub(crate) struct Reservation {
    state: Arc<State>,
    /// The write may be under way. It goes on if its request is dropped, so nothing is given back then; what
    /// is left over is found later.
    complete: bool,
    owner: Owner,
    taken: Vec<Claim>,
    /// Given back when the write is done: the Service no longer has them.
    left: Vec<Claim>,
}

impl Reservation {
    /// Keeps what was taken, after the write; gives back what the Service has no more.
    pub(crate) async fn keep(mut self) {
        self.taken.clear();
        for claim in std::mem::take(&mut self.left) {
            claim.give_back(&self.state, &self.owner).await;
        }
    }

    /// Gives back what was taken: there was no write.
    pub(crate) async fn abandon(mut self) {
        for claim in std::mem::take(&mut self.taken) {
            claim.give_back(&self.state, &self.owner).await;
        }
    }
}

impl Drop for Reservation {
    /// For a request that is dropped before it has all that it needs.
    fn drop(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        let idle = self.complete || taken.is_empty();
        if let (false, Ok(runtime)) = (idle, tokio::runtime::Handle::try_current()) {
            let (state, owner) = (self.state.clone(), self.owner.clone());
            runtime.spawn(async move {
                for claim in taken {
                    claim.give_back(&state, &owner).await;
                }
            });
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

/// Returns the node ports of a Service's ports.
fn ports_of_ports(service: &Value) -> Vec<u16> {
    let ports = array_at(service, "/spec/ports").iter().filter_map(|port| int_at(port, "/nodePort"));
    ports.filter_map(|p| u16::try_from(p).ok()).filter(|p| *p > 0).collect()
}

/// Returns the node ports of a Service, that of its health check included.
fn node_ports(service: &Value) -> Vec<u16> {
    let health = int_at(service, "/spec/healthCheckNodePort").and_then(|p| u16::try_from(p).ok());
    let mut all: Vec<u16> = ports_of_ports(service).into_iter().chain(health.filter(|p| *p > 0)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A write that takes addresses and ports.
struct Taking {
    reservation: Reservation,
    ranges: ServiceRanges,
    /// Nothing is taken.
    dry_run: bool,
    /// The highest node port of a dry run.
    dry_port: Option<u16>,
    errors: FieldErrors,
}

/// Takes the addresses and ports that a new or changed Service asks for or needs, and writes them into it.
///
/// # Errors
/// 422 for values that are out of range or taken; 500 when a range is full; 503 without the store.
pub(crate) async fn reserve(
    state: &Arc<State>,
    service: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Reservation, ApiStatus> {
    let owner = Owner::of(service);
    let reservation =
        Reservation { state: state.clone(), complete: false, owner, taken: Vec::new(), left: Vec::new() };
    let mut taking = Taking {
        reservation,
        ranges: state.services,
        dry_run,
        dry_port: None,
        errors: FieldErrors::default(),
    };
    match taking.all(service, old).await {
        Ok(()) if taking.errors.is_empty() => {}
        failed => {
            let name = str_at(service, "/metadata/name").to_owned();
            let Taking { reservation, errors, .. } = taking;
            reservation.abandon().await;
            return Err(failed.err().unwrap_or_else(|| errors.into_status("", "Service", &name)));
        }
    }
    let mut reservation = taking.reservation;
    if let (Some(old), false) = (old, dry_run) {
        let now: Vec<Claim> = repair::held(service).collect();
        reservation.left = repair::held(old).filter(|claim| !now.contains(claim)).collect();
    }
    reservation.complete = true;
    Ok(reservation)
}

/// Returns true for a Service whose load balancer asks a port of the node whether it has endpoints.
fn has_health_port(service: &Value) -> bool {
    str_at(service, "/spec/type") == "LoadBalancer"
        && str_at(service, "/spec/externalTrafficPolicy") == "Local"
}

impl Taking {
    async fn all(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), ApiStatus> {
        let kind = str_at(service, "/spec/type").to_owned();
        if kind == "ExternalName" {
            if let Some(spec) = child(service, "spec").and_then(Value::as_object_mut) {
                for field in
                    ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
                {
                    spec.remove(field);
                }
            }
        } else if str_at(service, "/spec/clusterIP") != "None" {
            self.address(service, &old.map(addresses).unwrap_or_default()).await?;
        } else if let Some(spec) = child(service, "spec") {
            spec["clusterIPs"] = json!(["None"]);
        }
        let had = old.map(ports_of_ports).unwrap_or_default();
        let any = kind == "NodePort"
            || (kind == "LoadBalancer" && bool_at(service, "/spec/allocateLoadBalancerNodePorts"));
        if any || kind == "LoadBalancer" {
            self.node_ports(service, had, any, old.is_none()).await?;
        } else {
            for port in service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten()
            {
                if let Some(map) = port.as_object_mut() {
                    map.remove("nodePort");
                }
            }
        }
        if has_health_port(service) && !old.is_some_and(has_health_port) {
            self.health_port(service).await?;
        }
        Ok(())
    }

    /// Takes something. Returns false if somebody has it. In a dry run everything is free that nobody has.
    async fn take(&mut self, claim: Claim) -> Result<bool, ApiStatus> {
        let Reservation { state, owner, taken, .. } = &mut self.reservation;
        if self.dry_run {
            return Ok(claim.stored(state).is_none());
        }
        match claim.take(state, owner).await {
            Ok(is_free) => {
                if is_free {
                    taken.push(claim);
                }
                Ok(is_free)
            }
            Err(e) => Err(crate::errors::unavailable(&e)),
        }
    }

    async fn address(&mut self, service: &mut Value, had: &[Ipv4Addr]) -> Result<(), ApiStatus> {
        let wanted = str_at(service, "/spec/clusterIP").to_owned();
        let address = match wanted.parse::<Ipv4Addr>() {
            Ok(address) if had.contains(&address) => address,
            Ok(address) => {
                if let Some(problem) = self.claim_address(address).await? {
                    let why = format!("failed to allocate IP {address}: {problem}");
                    self.errors.invalid("spec.clusterIPs", json!([wanted]), why);
                    return Ok(());
                }
                address
            }
            Err(_) if wanted.is_empty() => self.any_address(str_at(service, "/metadata/name")).await?,
            Err(_) => {
                let why = format!(
                    "failed to allocate IP {wanted}: the provided network does not match the current range"
                );
                self.errors.invalid("spec.clusterIPs", json!([wanted]), why);
                return Ok(());
            }
        };
        if let Some(spec) = child(service, "spec") {
            spec["clusterIP"] = address.to_string().into();
            spec["clusterIPs"] = json!([address.to_string()]);
        }
        Ok(())
    }

    /// Takes the address that a Service asks for. Returns why it cannot have it.
    async fn claim_address(&mut self, address: Ipv4Addr) -> Result<Option<String>, ApiStatus> {
        let all = service_ranges::usable(&self.reservation.state.store, self.ranges.addresses);
        let Some(range) = all.iter().find(|range| range.contains(&address)) else {
            return Ok(Some("the provided network does not match the current range".to_owned()));
        };
        let number = u32::from(address);
        if !service_ranges::bounds(*range).is_some_and(|(first, last)| (first..=last).contains(&number)) {
            return Ok(Some(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        // Upstream's dry run does not look further.
        let is_free = self.dry_run || self.take(Claim::Address(address)).await?;
        Ok((!is_free).then(|| "provided IP is already allocated".to_owned()))
    }

    async fn any_address(&mut self, name: &str) -> Result<Ipv4Addr, ApiStatus> {
        let all = service_ranges::usable(&self.reservation.state.store, self.ranges.addresses);
        if let (true, Some(range)) = (self.dry_run, all.first()) {
            return Ok(range.network());
        }
        for range in all {
            for address in service_ranges::candidates(range) {
                if self.take(Claim::Address(address)).await? {
                    return Ok(address);
                }
            }
        }
        let why = format!("failed to allocate a serviceIP for Service {name:?}: range is full");
        Err(ApiStatus::internal(why))
    }

    /// Takes the node ports that the ports of a Service ask for, and with `any` one for each other port. In a
    /// new Service ports of one number share a node port, as TCP and UDP of DNS.
    async fn node_ports(
        &mut self,
        service: &mut Value,
        mut mine: Vec<u16>,
        any: bool,
        is_new: bool,
    ) -> Result<(), ApiStatus> {
        let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        let Some(ports) = ports else { return Ok(()) };
        let asked: Vec<(Option<i64>, Option<i64>)> = ports
            .iter()
            .map(|port| (int_at(port, "/port"), int_at(port, "/nodePort").filter(|p| *p != 0)))
            .collect();
        let (first, last) = self.ranges.ports;
        if any && asked.len() > usize::from(last.saturating_sub(first)) + 1 {
            // One after the other they would be taken from everybody else for a while.
            return Err(ApiStatus::internal(PORTS_FULL));
        }
        let mut of_numbers: HashMap<Option<i64>, i64> = HashMap::new();
        for (i, (number, own)) in asked.iter().copied().enumerate() {
            if own.is_none() && !any {
                ports[i].as_object_mut().map(|port| port.remove("nodePort"));
                continue;
            }
            let wanted = match of_numbers.get(&number).copied() {
                Some(shared) if own.is_none_or(|own| own == shared) => {
                    ports[i]["nodePort"] = shared.into();
                    continue;
                }
                None if is_new => asked.iter().find_map(|(other, port)| port.filter(|_| *other == number)),
                _ => own,
            };
            let got = match wanted {
                Some(wanted) => match self.claim_port(wanted, &mut mine).await? {
                    Ok(port) => port,
                    Err(why) => {
                        self.errors.invalid(format!("spec.ports[{i}].nodePort"), wanted, why);
                        continue;
                    }
                },
                None => self.any_port().await?,
            };
            ports[i]["nodePort"] = got.into();
            if is_new {
                of_numbers.entry(number).or_insert(got.into());
            }
        }
        Ok(())
    }

    /// Takes the node port that a Service asks for, or returns why it cannot have it. One that is the
    /// Service's already (`mine`) needs nothing.
    async fn claim_port(
        &mut self,
        wanted: i64,
        mine: &mut Vec<u16>,
    ) -> Result<Result<u16, String>, ApiStatus> {
        let (first, last) = self.ranges.ports;
        match u16::try_from(wanted) {
            Ok(port) if mine.contains(&port) => Ok(Ok(port)),
            Ok(port) if (first..=last).contains(&port) => {
                if !self.take(Claim::Port(port)).await? {
                    return Ok(Err("provided port is already allocated".to_owned()));
                }
                self.dry_port = self.dry_port.max(Some(port));
                mine.push(port);
                Ok(Ok(port))
            }
            _ => Ok(Err(format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            ))),
        }
    }

    async fn any_port(&mut self) -> Result<u16, ApiStatus> {
        if self.dry_run {
            // Upstream's guess, which nobody relies on.
            let port = self.dry_port.map_or(DRY_PORT, |port| port.saturating_add(1));
            self.dry_port = Some(port);
            return Ok(port);
        }
        for port in service_ranges::ports(self.ranges.ports) {
            if self.take(Claim::Port(port)).await? {
                return Ok(port);
            }
        }
        Err(ApiStatus::internal(PORTS_FULL))
    }

    async fn health_port(&mut self, service: &mut Value) -> Result<(), ApiStatus> {
        let port = match int_at(service, "/spec/healthCheckNodePort").filter(|port| *port != 0) {
            None => self.any_port().await?,
            Some(wanted) => self.claim_port(wanted, &mut Vec::new()).await?.map_err(|why| {
                let what = "failed to allocate requested HealthCheck NodePort";
                ApiStatus::internal(format!("{what} {wanted}: {why}"))
            })?,
        };
        if let Some(spec) = child(service, "spec") {
            spec["healthCheckNodePort"] = port.into();
        }
        Ok(())
    }
}
