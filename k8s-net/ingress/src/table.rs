//! The routing table: immutable, and looked up once for each request.
//!
//! Guarantees: a lookup costs a few hashes, whatever the number of hosts and paths; only patterns
//! (`use-regex`) are tried one after the other. Its time is linear in the length of the request's path.

use std::{collections::HashMap, sync::Arc};

use k8s_core::meta::ObjectKey;

use crate::{
    access::CanaryRule, backend::Backend, certificates::Certificate, paths::Paths, settings::Settings,
};

/// The routes of all Ingresses of a controller, as of one moment.
#[derive(Debug, Default)]
pub struct Table {
    /// By name, in lower case.
    pub(crate) hosts: HashMap<Box<str>, Host>,
    /// By the part of the name behind `*.`.
    pub(crate) wildcards: HashMap<Box<str>, Host>,
    /// Rules without a host.
    pub(crate) any: Host,
    /// Backend of requests that nothing else matches.
    pub(crate) default: Option<Arc<Route>>,
    /// Certificates by name, which may begin with `*.`.
    pub(crate) certificates: HashMap<Box<str>, Arc<Certificate>>,
}

/// The routes of a host.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) paths: Paths<Arc<Route>>,
    /// Default backend of an Ingress with rules for this host.
    pub(crate) default: Option<Arc<Route>>,
}

/// A destination of requests, and the settings of its Ingress.
#[derive(Debug)]
pub struct Route {
    /// The Ingress.
    pub ingress: ObjectKey,
    /// Settings of its annotations.
    pub settings: Arc<Settings>,
    /// Pattern of the path, whose groups `rewrite-target` uses.
    pub(crate) pattern: Option<Arc<regex::bytes::Regex>>,
    /// Its Service.
    pub backend: Arc<Backend>,
    /// Backends that get a part of the requests.
    pub(crate) canaries: Vec<(CanaryRule, Arc<Backend>)>,
}

impl Table {
    /// Returns the route of a request, and true if its host is one that a rule names. `host` is in lower
    /// case and has no port; `path` is normalized ([`crate::paths::normalize`]).
    ///
    /// Order: the rules of the host, else those of its wildcard, else those without host; then the default
    /// backend of an Ingress with rules for the host, then that of all.
    #[must_use]
    pub fn route(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let wildcard = || host.split_once('.').and_then(|(_, domain)| self.wildcards.get(domain));
        let found = self.hosts.get(host).or_else(wildcard).unwrap_or(&self.any);
        found.paths.find(path).or(found.default.as_ref()).or(self.default.as_ref())
    }

    /// Returns the certificate for a host in lower case.
    #[must_use]
    pub fn certificate(&self, host: &str) -> Option<&Arc<Certificate>> {
        self.certificates.get(host).or_else(|| {
            let (_, domain) = host.split_once('.')?;
            self.certificates.get(&*format!("*.{domain}"))
        })
    }

    /// Returns the number of hosts that rules name.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.hosts.len() + self.wildcards.len()
    }
}
