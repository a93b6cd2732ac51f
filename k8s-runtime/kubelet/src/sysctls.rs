//! Sysctls that pods of this node may set: the safe ones, and those that the configuration allows.

use k8s_runtime::sysctl::{self, Namespace};

use crate::types::PodSpec;

/// Safe sysctls: namespaced, and without effect on other pods. (Upstream requires kernels above 4.15 for some
/// of them; the runtime requires a newer one anyway.)
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];
const LONGEST_PATTERN: usize = 253;

/// Allowed sysctls of this node.
#[derive(Clone, Debug)]
pub(crate) struct Sysctls {
    names: Vec<(String, Namespace)>,
    prefixes: Vec<(String, Namespace)>,
}

impl Default for Sysctls {
    fn default() -> Self {
        let safe = SAFE_SYSCTLS.into_iter();
        let names = safe.filter_map(|s| Some((s.to_owned(), sysctl::namespace_of(s)?))).collect();
        Sysctls { names, prefixes: Vec::new() }
    }
}

impl Sysctls {
    /// Parses the allowed unsafe sysctls: names, and patterns that end in `*`.
    pub(crate) fn new(unsafe_ones: &[String]) -> Result<Self, String> {
        let mut all = Sysctls::default();
        for pattern in unsafe_ones {
            let name = sysctl::normalize(pattern);
            let (body, is_prefix) = name.strip_suffix('*').map_or((&*name, false), |body| (body, true));
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./".contains(c);
            if pattern.len() > LONGEST_PATTERN || !body.chars().all(plain) {
                return Err(format!("{pattern:?} is not the name of a sysctl or a pattern of names"));
            }
            let (list, namespace) = match is_prefix {
                true => (&mut all.prefixes, sysctl::namespace_of_prefix(body)),
                false => (&mut all.names, sysctl::namespace_of(body)),
            };
            let namespace =
                namespace.ok_or_else(|| format!("the sysctls {body:?} are not known to be namespaced"))?;
            list.push((body.to_owned(), namespace));
        }
        Ok(all)
    }

    /// Rejects a sysctl that is not allowed, or whose namespace is the host's. The message is upstream's.
    pub(crate) fn check(&self, name: &str, spec: &PodSpec) -> Result<(), String> {
        let name = sysctl::normalize(name);
        let exact = self.names.iter().find(|(known, _)| *known == name);
        let found = exact.or_else(|| self.prefixes.iter().find(|(prefix, _)| name.starts_with(prefix)));
        let Some((_, namespace)) = found else { return Err(format!("{name:?} not allowlisted")) };
        let shared = match namespace {
            Namespace::Ipc => spec.host_ipc == Some(true),
            Namespace::Net => spec.host_network == Some(true),
        };
        if shared {
            return Err(format!("{name:?} not allowed with host {} enabled", namespace.name()));
        }
        Ok(())
    }
}
