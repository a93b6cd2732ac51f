//! A pod's host name, `/etc/hosts` and `/etc/resolv.conf`.

use std::{fmt::Write, net::IpAddr, path::Path};

use k8s_core::meta::ObjectExt;

use crate::{config::Config, types::*};

const LONGEST_LABEL: usize = 63;

/// Returns a pod's host name and its domain. The domain is empty without `subdomain`.
pub(crate) fn host_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.spec.as_ref();
    let wanted = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty());
    let mut host = wanted.unwrap_or(pod.name()).to_owned();
    if host.len() > LONGEST_LABEL {
        host.truncate(LONGEST_LABEL);
        host.truncate(host.trim_end_matches(['-', '.']).len());
    }
    let domain = spec
        .and_then(|s| s.subdomain.as_deref())
        .filter(|s| !s.is_empty())
        .map(|s| format!("{s}.{}.svc.{cluster_domain}", pod.namespace()));
    (host, domain.unwrap_or_default())
}

/// Returns the host name of the pod's sandbox.
pub(crate) fn hostname(pod: &Pod, config: &Config) -> String {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.host_network) == Some(true) {
        return config.node_name.clone();
    }
    let (host, domain) = host_and_domain(pod, &config.cluster_domain);
    match spec.and_then(|s| s.set_hostname_as_fqdn) {
        Some(true) if !domain.is_empty() => format!("{host}.{domain}"),
        _ => host,
    }
}

/// Returns the contents of the pod's `/etc/hosts`. With `hostNetwork` it is a copy of the host's.
pub(crate) fn hosts_file(pod: &Pod, config: &Config, ips: &[IpAddr]) -> String {
    let spec = pod.spec.as_ref();
    let mut text = String::new();
    if spec.and_then(|s| s.host_network) == Some(true) {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(&std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    } else {
        text.push_str("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n");
        text.push_str(
            "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n",
        );
        text.push_str("fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let (host, domain) = host_and_domain(pod, &config.cluster_domain);
        for ip in ips {
            // Writing to a `String` does not fail.
            let _ = match domain.as_str() {
                "" => writeln!(text, "{ip}\t{host}"),
                domain => writeln!(text, "{ip}\t{host}.{domain}\t{host}"),
            };
        }
    }
    if let Some(aliases) = spec.and_then(|s| s.host_aliases.as_ref()).filter(|a| !a.is_empty()) {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(
                text,
                "{}\t{}",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            );
        }
    }
    text
}

/// The contents of a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) nameservers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Resolver {
    /// Parses a `resolv.conf`. Unknown lines are ignored.
    pub(crate) fn parse(text: &str) -> Self {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.nameservers.extend(words.next()),
                Some("search" | "domain") => resolver.searches = words.filter(|s| s != ".").collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    /// Reads the host's `resolv.conf`. If it names only systemd-resolved's local stub, which a pod cannot
    /// reach, the upstream servers are read instead.
    fn of_host(path: &Path) -> Self {
        let read =
            |path: &Path| std::fs::read_to_string(path).map(|t| Resolver::parse(&t)).unwrap_or_default();
        let resolver = read(path);
        if resolver.nameservers.iter().all(|n| n == "127.0.0.53") && !resolver.nameservers.is_empty() {
            let upstream = read(Path::new("/run/systemd/resolve/resolv.conf"));
            if !upstream.nameservers.is_empty() {
                return upstream;
            }
        }
        resolver
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for server in &self.nameservers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }

    fn merge(&mut self, config: &PodDNSConfig) {
        let add = |to: &mut Vec<String>, from: &Option<Vec<String>>| {
            for item in from.iter().flatten() {
                if !to.contains(item) {
                    to.push(item.clone());
                }
            }
        };
        add(&mut self.nameservers, &config.nameservers);
        add(&mut self.searches, &config.searches);
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            self.options.retain(|o| o.split(':').next() != Some(name));
            self.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
}

/// Returns the contents of the pod's `/etc/resolv.conf`, by its `dnsPolicy`.
pub(crate) fn resolv_conf(pod: &Pod, config: &Config) -> String {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    } && !config.cluster_dns.is_empty();
    let mut resolver = if cluster {
        let domain = &config.cluster_domain;
        let mut searches =
            vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
        for search in Resolver::of_host(&config.resolv_conf).searches {
            if !searches.contains(&search) {
                searches.push(search);
            }
        }
        Resolver {
            nameservers: config.cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else if policy == "None" {
        Resolver::default()
    } else {
        Resolver::of_host(&config.resolv_conf)
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        resolver.merge(config);
    }
    resolver.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: PodSpec) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some("web-0".into()),
                namespace: Some("shop".into()),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: None,
        }
    }

    fn config() -> Config {
        Config {
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            resolv_conf: "/nonexistent".into(),
            ..Config::default()
        }
    }

    #[test]
    fn cluster_first_with_additions() {
        let dns_config = PodDNSConfig {
            nameservers: Some(vec!["1.1.1.1".into()]),
            searches: Some(vec!["example.com".into()]),
            options: Some(vec![PodDNSConfigOption { name: Some("ndots".into()), value: Some("2".into()) }]),
        };
        let have =
            resolv_conf(&pod(PodSpec { dns_config: Some(dns_config), ..PodSpec::default() }), &config());
        assert_eq!(
            have,
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.com\n\
             nameserver 10.43.0.10\nnameserver 1.1.1.1\noptions ndots:2\n"
        );
        let none = PodSpec { dns_policy: Some("None".into()), ..PodSpec::default() };
        assert_eq!(resolv_conf(&pod(none), &config()), "");
    }

    #[test]
    fn hosts() {
        let spec = PodSpec {
            subdomain: Some("web".into()),
            host_aliases: Some(vec![HostAlias {
                ip: "1.2.3.4".into(),
                hostnames: Some(vec!["a".into(), "b".into()]),
            }]),
            ..PodSpec::default()
        };
        let text = hosts_file(&pod(spec), &config(), &["10.42.0.5".parse().unwrap()]);
        assert!(text.contains("10.42.0.5\tweb-0.web.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }

    #[test]
    fn long_names_are_cut_at_a_label() {
        let mut long = pod(PodSpec::default());
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(20)));
        assert_eq!(hostname(&long, &config()), "a".repeat(62));
    }
}
