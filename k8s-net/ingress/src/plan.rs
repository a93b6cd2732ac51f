//! The plan: from objects of the API to a routing table. Pure, without I/O.
//!
//! Invariants:
//! 1. Of two Ingresses that want one path of a host, or a certificate for one name, the older has it; the
//!    other is told.
//! 2. An Ingress uses Secrets and Services of its own namespace only, the one that `auth-url` names too.
//! 3. A part of an Ingress that cannot be used is left out and told; the rest goes on.
//! 4. Only the namespace of a host's oldest Ingress has patterns for it: they go before the prefixes of all.

mod backends;
mod class;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use jiff::Timestamp;
use k8s_core::{
    api::api::{
        core::v1::{Secret, Service},
        discovery::v1::EndpointSlice,
        networking::v1::{Ingress, IngressBackend, IngressClass, ServiceBackendPort},
    },
    meta::{ObjectExt, ObjectKey},
};

use self::backends::Backends;
pub(crate) use self::backends::may_be_reached;
pub use self::class::{CONTROLLER, Classes};
use crate::{
    access::AuthTarget,
    annotations::{PREFIXES, Problem},
    backend::Backend,
    certificates::Certificate,
    paths::Match,
    patterns::{MOST_OF_ONE, Patterns},
    settings::{Settings, read_with},
    table::{Host, Route, Table},
};

/// Returns the objects of a namespace and a name.
pub type Lookup<'a, T> = &'a dyn Fn(&str, &str) -> T;

/// The objects that a table is made of.
pub struct Objects<'a> {
    /// Name of the class that is always served.
    pub class: &'a str,
    /// All Ingresses.
    pub ingresses: &'a [Arc<Ingress>],
    /// All IngressClasses.
    pub classes: &'a [Arc<IngressClass>],
    /// A Service.
    pub service: Lookup<'a, Option<Arc<Service>>>,
    /// The EndpointSlices of a Service.
    pub slices: Lookup<'a, Vec<Arc<EndpointSlice>>>,
    /// A Secret.
    pub secret: Lookup<'a, Option<Arc<Secret>>>,
    /// Reads a Secret's certificate. [`Certificate::read`], or one that remembers.
    pub certificate: &'a dyn Fn(&Secret) -> Result<Arc<Certificate>, String>,
    /// Patterns that were compiled for the table before, and will be for this one.
    pub patterns: &'a Patterns,
    /// Addresses that are no endpoints, whatever slices say: those of the proxy itself.
    pub refused: &'a [SocketAddr],
    /// Current time, for certificates that have ended.
    pub now: Timestamp,
    /// Number of the endpoint that gets the first request.
    pub seed: usize,
}

/// A table, and what there is to say about the Ingresses.
#[derive(Debug, Default)]
pub struct Plan {
    /// The table.
    pub table: Table,
    /// The Ingresses that it serves, the oldest first, with what their owners should know.
    pub served: Vec<(Arc<Ingress>, Vec<Problem>)>,
    /// The Services that it was made of, and those that were looked for.
    pub services: BTreeSet<ObjectKey>,
    /// The Secrets that it was made of, and those that were looked for.
    pub secrets: BTreeSet<ObjectKey>,
}

/// Makes the table.
#[must_use]
pub fn plan(objects: &Objects<'_>) -> Plan {
    objects.patterns.begin();
    let classes = Classes::read(objects.class, objects.classes);
    let mut ours: Vec<_> =
        objects.ingresses.iter().filter(|one| classes.has(one) && !one.is_deleting()).cloned().collect();
    ours.sort_by_cached_key(|one| (one.metadata.creation_timestamp.as_ref().map(|time| time.0), one.key()));
    let mut maker = Maker {
        objects,
        backends: Backends::default(),
        drafts: BTreeMap::new(),
        owners: HashMap::new(),
        table: Table::default(),
        secrets: BTreeSet::new(),
    };
    let mut served = Vec::new();
    let mut canaries = Vec::new();
    for ingress in ours {
        let none = BTreeMap::new();
        let annotations = ingress.metadata.annotations.as_ref().unwrap_or(&none);
        let (settings, mut problems) = read_with(annotations, objects.patterns);
        let settings = maker.with_service_to_ask(&ingress, settings, &mut problems);
        if settings.canary.is_some() {
            canaries.push((served.len(), ingress.clone(), settings));
        } else {
            maker.add(&ingress, &settings, &mut problems);
        }
        served.push((ingress, problems));
    }
    for (at, ingress, settings) in canaries {
        maker.add_canary(&ingress, &settings, &mut served[at].1);
    }
    let (services, secrets) = (maker.backends.services(), std::mem::take(&mut maker.secrets));
    Plan { table: maker.finish(), served, services, secrets }
}

/// The place of a rule: its host (empty: any), and matching and path.
type Place = (String, (u8, String));

struct Draft {
    matching: Match,
    route: Route,
}

struct Maker<'a> {
    objects: &'a Objects<'a>,
    backends: Backends,
    drafts: BTreeMap<Place, Draft>,
    /// The oldest Ingress of each host.
    owners: HashMap<String, ObjectKey>,
    table: Table,
    secrets: BTreeSet<ObjectKey>,
}

impl Maker<'_> {
    /// Resolves the Service that `auth-url` names. One of another namespace is not asked, and nobody is let
    /// in: NetworkPolicies do not filter what the node sends.
    fn with_service_to_ask(
        &mut self,
        ingress: &Ingress,
        mut settings: Settings,
        problems: &mut Vec<Problem>,
    ) -> Settings {
        let Some(auth) = &mut settings.auth else { return settings };
        if let Some((name, namespace, port)) = auth.service() {
            if namespace != ingress.namespace() {
                let message = format!(
                    "annotation {}auth-url: Service {namespace}/{name} must be in the namespace of the Ingress, {}",
                    PREFIXES[0],
                    ingress.namespace()
                );
                problems.push(Problem::new("InvalidAnnotation", message));
                auth.uri = None;
                return settings;
            }
            let key = ObjectKey::new(namespace, name);
            let port = ServiceBackendPort { number: Some(port.into()), name: None };
            auth.target = AuthTarget::Service(self.backends.of(self.objects, key, &port).0);
        }
        settings
    }

    fn backend(
        &mut self,
        ingress: &Ingress,
        backend: &IngressBackend,
        problems: &mut Vec<Problem>,
    ) -> Option<Arc<Backend>> {
        let Some(service) = &backend.service else {
            let kind = backend.resource.as_ref().map(|resource| &*resource.kind).unwrap_or_default();
            let message = format!("backend resource {kind}: only Services are served");
            problems.push(Problem::new("BackendRefused", message));
            return None;
        };
        let key = ObjectKey::new(ingress.namespace(), &service.name);
        let port = service.port.clone().unwrap_or_default();
        let (backend, problem) = self.backends.of(self.objects, key, &port);
        if let Some(problem) = problem.filter(|problem| !problems.contains(problem)) {
            problems.push(problem);
        }
        Some(backend)
    }

    fn add(&mut self, ingress: &Ingress, settings: &Settings, problems: &mut Vec<Problem>) {
        let Some(spec) = &ingress.spec else { return };
        let shared = Arc::new(settings.clone());
        let route = |pattern, backend| Route {
            ingress: ingress.key(),
            settings: shared.clone(),
            pattern,
            backend,
            canaries: Vec::new(),
        };
        let default = spec.default_backend.as_ref().and_then(|b| self.backend(ingress, b, problems));
        let default = default.map(|backend| Arc::new(route(None, backend)));
        if spec.rules.iter().flatten().next().is_none() && self.table.default.is_none() {
            self.table.default.clone_from(&default);
        }
        let mut patterns = 0;
        for rule in spec.rules.iter().flatten() {
            let host = host_of(rule.host.as_deref());
            let owner = self.owners.entry(host.clone()).or_insert_with(|| ingress.key()).clone();
            let entry = self.table.entry(&host);
            if entry.default.is_none() {
                entry.default.clone_from(&default);
            }
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let text = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
                if settings.patterns {
                    if owner.namespace != ingress.namespace() {
                        let message = format!(
                            "host \"{host}\" and path \"{text}\": the host belongs to ingress {owner}, and only Ingresses of its namespace have patterns for it"
                        );
                        problems.push(Problem::new("PathConflict", message));
                        continue;
                    }
                    patterns += 1;
                    if patterns > MOST_OF_ONE {
                        let message = format!(
                            "an Ingress has at most {MOST_OF_ONE} patterns; the others have no effect"
                        );
                        let problem = Problem::new("InvalidPath", message);
                        if !problems.contains(&problem) {
                            problems.push(problem);
                        }
                        continue;
                    }
                }
                let matching = match matching(&path.path_type, text, settings, self.objects.patterns) {
                    Ok(matching) => matching,
                    Err(why) => {
                        let shown: String = text.chars().take(100).collect();
                        let message = format!("path {shown:?} is no pattern that can be used: {why}");
                        problems.push(Problem::new("InvalidPath", message));
                        continue;
                    }
                };
                let Some(backend) = self.backend(ingress, &path.backend, problems) else { continue };
                let pattern =
                    if let Match::Pattern(pattern, _) = &matching { Some(pattern.clone()) } else { None };
                let place = (host.clone(), place(&path.path_type, text, settings.patterns));
                if let Some(there) = self.drafts.get(&place) {
                    let message = format!(
                        "host \"{host}\" and path \"{text}\" is already defined in ingress {}",
                        there.route.ingress
                    );
                    problems.push(Problem::new("PathConflict", message));
                    continue;
                }
                self.drafts.insert(place, Draft { matching, route: route(pattern, backend) });
            }
        }
        self.add_certificates(ingress, problems);
    }

    /// Adds an Ingress' backends to the routes that it is a canary of: those of its own namespace.
    fn add_canary(&mut self, ingress: &Ingress, settings: &Settings, problems: &mut Vec<Problem>) {
        let Some(rule) = settings.canary.clone() else { return };
        for host_rule in ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten()) {
            let host = host_of(host_rule.host.as_deref());
            for path in host_rule.http.iter().flat_map(|http| &http.paths) {
                let text = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
                // The main Ingress may have patterns, or not.
                let places =
                    [false, true].map(|patterns| (host.clone(), place(&path.path_type, text, patterns)));
                let Some(backend) = self.backend(ingress, &path.backend, problems) else { continue };
                let place = places.into_iter().find(|place| self.drafts.contains_key(place));
                let draft = place.and_then(|place| self.drafts.get_mut(&place));
                match draft.filter(|draft| draft.route.ingress.namespace == ingress.namespace()) {
                    Some(draft) => draft.route.canaries.push((rule.clone(), backend)),
                    None => {
                        let message = format!(
                            "host \"{host}\" and path \"{text}\": there is no Ingress in this namespace of which it is a canary"
                        );
                        problems.push(Problem::new("CanaryRefused", message));
                    }
                }
            }
        }
    }

    fn add_certificates(&mut self, ingress: &Ingress, problems: &mut Vec<Problem>) {
        let Some(spec) = &ingress.spec else { return };
        for tls in spec.tls.iter().flatten() {
            // Without a name, the hosts are served with the certificate of the controller.
            let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else { continue };
            self.secrets.insert(ObjectKey::new(ingress.namespace(), name));
            let Some(secret) = (self.objects.secret)(ingress.namespace(), name) else {
                let message = format!("Secret {name} is not there; TLS has the controller's own certificate");
                problems.push(Problem::new("CertificateMissing", message));
                continue;
            };
            let certificate = match (self.objects.certificate)(&secret) {
                Ok(certificate) => certificate,
                Err(why) => {
                    let message = format!("Secret {name}: {why}");
                    problems.push(Problem::new("InvalidCertificate", message));
                    continue;
                }
            };
            if certificate.not_after < self.objects.now {
                let message = format!("Secret {name}: the certificate ended at {}", certificate.not_after);
                problems.push(Problem::new("ExpiredCertificate", message));
            }
            let listed: Vec<String> = tls
                .hosts
                .iter()
                .flatten()
                .map(|host| host_of(Some(host)))
                .filter(|h| !h.is_empty())
                .collect();
            let of_rules = || {
                let hosts = spec.rules.iter().flatten().map(|rule| host_of(rule.host.as_deref()));
                hosts.filter(|host| !host.is_empty() && certificate.is_for(host)).collect()
            };
            for host in if listed.is_empty() { of_rules() } else { listed } {
                if !certificate.is_for(&host) {
                    let message = format!("Secret {name}: the certificate is not for the host {host}");
                    problems.push(Problem::new("InvalidCertificate", message));
                    continue;
                }
                use std::collections::hash_map::Entry;
                match self.table.certificates.entry(host.into_boxed_str()) {
                    Entry::Vacant(free) => drop(free.insert(certificate.clone())),
                    Entry::Occupied(there) if Arc::ptr_eq(there.get(), &certificate) => {}
                    Entry::Occupied(there) => {
                        let message = format!("host {} has the certificate of an older Ingress", there.key());
                        problems.push(Problem::new("CertificateConflict", message));
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Table {
        for ((host, _), draft) in self.drafts {
            // The places differ, so that none is there already.
            let _ = self.table.entry(&host).paths.add(draft.matching, Arc::new(draft.route));
        }
        self.table
    }
}

impl Table {
    fn entry(&mut self, host: &str) -> &mut Host {
        match host.strip_prefix("*.") {
            _ if host.is_empty() => &mut self.any,
            Some(domain) => self.wildcards.entry(domain.into()).or_default(),
            None => self.hosts.entry(host.into()).or_default(),
        }
    }
}

/// Returns the key of a rule's host; empty for any.
fn host_of(host: Option<&str>) -> String {
    host.unwrap_or_default().trim_end_matches('.').to_ascii_lowercase()
}

/// Returns the matching of a rule.
fn matching(path_type: &str, path: &str, settings: &Settings, patterns: &Patterns) -> Result<Match, String> {
    Ok(match path_type {
        _ if settings.patterns => Match::Pattern(patterns.get(&anchored(path_type, path))?, path.len()),
        "Exact" => Match::Exact(path.to_owned()),
        "Prefix" => Match::Prefix(path.to_owned()),
        _ => Match::Start(path.to_owned()),
    })
}

/// Returns a pattern's text. As ingress-nginx: only `Exact` is the whole path.
fn anchored(path_type: &str, path: &str) -> String {
    format!("^{path}{}", if path_type == "Exact" { "$" } else { "" })
}

/// Returns what tells rules of a host apart.
fn place(path_type: &str, path: &str, patterns: bool) -> (u8, String) {
    match path_type {
        _ if patterns => (3, anchored(path_type, path)),
        "Exact" => (0, path.to_owned()),
        "Prefix" => (1, path.trim_end_matches('/').to_owned()),
        _ => (2, path.to_owned()),
    }
}
