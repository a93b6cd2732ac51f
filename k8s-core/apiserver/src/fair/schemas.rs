//! Flow schemas: the flow that a request belongs to, and its level.

use std::sync::Arc;

use http::HeaderValue;
use k8s_core::api::api::flowcontrol::v1::{
    FlowSchema, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

use super::metrics::SchemaMetrics;
use crate::{request::RequestInfo, user::User};

/// Precedence of a schema that has none.
const PRECEDENCE: i32 = 1000;

/// A flow schema, compiled.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) name: Arc<str>,
    /// Name of its priority level.
    pub(super) level: Arc<str>,
    /// Values of the response headers with the uids of the schema and its level.
    pub(crate) uids: [HeaderValue; 2],
    pub(super) precedence: i32,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
    pub(super) metrics: SchemaMetrics,
}

/// Attribute that divides the requests of a schema into flows.
#[derive(Clone, Copy, Debug)]
enum Distinguisher {
    User,
    Namespace,
    /// All requests are one flow.
    None,
}

impl Schema {
    pub(super) fn new(object: &FlowSchema, level_uid: &str, metrics: SchemaMetrics) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let method = spec.distinguisher_method.map(|method| method.type_);
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        Schema {
            name: object.metadata.name.as_deref().unwrap_or_default().into(),
            level: spec.priority_level_configuration.name.into(),
            uids: [uid, level_uid]
                .map(|uid| HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))),
            precedence: spec.matching_precedence.unwrap_or(PRECEDENCE),
            distinguisher: match method.as_deref() {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: spec.rules.unwrap_or_default().into_iter().map(Rule::new).collect(),
            metrics,
        }
    }

    /// Returns true if the schema is that of a user's request.
    pub(super) fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, info))
    }

    /// Returns the name of a request's flow among those of the schema, by its user and namespace.
    pub(super) fn flow<'a>(&self, user: &'a str, namespace: &'a str) -> &'a str {
        match self.distinguisher {
            Distinguisher::User => user,
            Distinguisher::Namespace => namespace,
            Distinguisher::None => "",
        }
    }
}

/// Names of a rule; `*` alone means all.
#[derive(Debug)]
enum Names {
    All,
    Of(Vec<String>),
}

impl Names {
    fn new(names: Vec<String>) -> Self {
        if matches!(names.as_slice(), [one] if one == "*") { Names::All } else { Names::Of(names) }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::Of(names) => names.iter().any(|known| known == name),
        }
    }
}

/// Subjects, and the requests of theirs that are meant.
#[derive(Debug)]
struct Rule {
    subjects: Vec<Who>,
    resources: Vec<Resources>,
    paths: Vec<Paths>,
}

#[derive(Debug)]
enum Who {
    Everyone,
    User(String),
    Group(String),
    /// Prefix of the names of a namespace's service accounts.
    ServiceAccounts(String),
    /// A kind of subject that is not known, or one without a name.
    Nobody,
}

#[derive(Debug)]
struct Resources {
    verbs: Names,
    groups: Names,
    /// Resources, or `resource/subresource`.
    resources: Names,
    namespaces: Names,
    /// True if requests without a namespace are meant.
    cluster: bool,
}

#[derive(Debug)]
struct Paths {
    verbs: Names,
    paths: Vec<String>,
}

impl Rule {
    fn new(rule: PolicyRulesWithSubjects) -> Self {
        Rule {
            subjects: rule.subjects.into_iter().map(Who::new).collect(),
            resources: rule.resource_rules.unwrap_or_default().into_iter().map(Resources::new).collect(),
            paths: rule.non_resource_rules.unwrap_or_default().into_iter().map(Paths::new).collect(),
        }
    }

    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        self.subjects.iter().any(|who| who.is(user))
            && if info.is_resource {
                self.resources.iter().any(|rule| rule.matches(info))
            } else {
                self.paths.iter().any(|rule| rule.matches(info))
            }
    }
}

impl Who {
    fn new(subject: Subject) -> Self {
        let account = |namespace: &str, name: &str| format!("system:serviceaccount:{namespace}:{name}");
        match (&*subject.kind, subject.user, subject.group, subject.service_account) {
            ("User", Some(user), ..) if user.name == "*" => Who::Everyone,
            ("User", Some(user), ..) => Who::User(user.name),
            ("Group", _, Some(group), _) if group.name == "*" => Who::Everyone,
            ("Group", _, Some(group), _) => Who::Group(group.name),
            ("ServiceAccount", .., Some(a)) if a.name == "*" => {
                Who::ServiceAccounts(account(&a.namespace, ""))
            }
            ("ServiceAccount", .., Some(a)) => Who::User(account(&a.namespace, &a.name)),
            _ => Who::Nobody,
        }
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Who::Everyone => true,
            Who::User(name) => user.name == *name,
            Who::Group(name) => user.groups.contains(name),
            Who::ServiceAccounts(prefix) => user.name.starts_with(prefix),
            Who::Nobody => false,
        }
    }
}

impl Resources {
    fn new(rule: ResourcePolicyRule) -> Self {
        Resources {
            verbs: Names::new(rule.verbs),
            groups: Names::new(rule.api_groups),
            resources: Names::new(rule.resources),
            namespaces: Names::new(rule.namespaces.unwrap_or_default()),
            cluster: rule.cluster_scope.unwrap_or_default(),
        }
    }

    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb)
            && self.groups.has(&info.group)
            && match info.namespace.is_empty() {
                true => self.cluster,
                false => self.namespaces.has(&info.namespace),
            }
            && self.has_resource(&info.resource, &info.subresource)
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        match &self.resources {
            Names::All => true,
            Names::Of(_) if subresource.is_empty() => self.resources.has(resource),
            Names::Of(names) => {
                names.iter().any(|name| name.split_once('/') == Some((resource, subresource)))
            }
        }
    }
}

impl Paths {
    fn new(rule: NonResourcePolicyRule) -> Self {
        Paths { verbs: Names::new(rule.verbs), paths: rule.non_resource_urls }
    }

    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb) && self.paths.iter().any(|path| is_at_or_below(&info.path, path))
    }
}

/// Returns true for the path itself and for those below it; `*` at its end changes nothing, alone it
/// means all.
fn is_at_or_below(path: &str, of: &str) -> bool {
    if of == "*" || path == of {
        return true;
    }
    let of = of.strip_suffix('*').unwrap_or(of);
    let of = of.strip_suffix('/').unwrap_or(of);
    path.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_what_is_below_it() {
        for (path, of, want) in [
            ("/healthz", "/healthz", true),
            ("/healthz/ping", "/healthz", true),
            ("/healthz/ping", "/healthz/*", true),
            ("/healthz", "/healthz/*", false),
            ("/healthzz", "/healthz", false),
            ("/anything", "*", true),
            ("/", "/", true),
            ("/a", "/", true),
        ] {
            assert_eq!(is_at_or_below(path, of), want, "{path} {of}");
        }
    }
}
