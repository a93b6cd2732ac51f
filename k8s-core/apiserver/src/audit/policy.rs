//! Audit policies (`--audit-policy-file`): the level and the stages at which a request is recorded.

use serde_json::Value;

use crate::{decode, request::RequestInfo, user::User};

/// API version of policies and events.
pub(super) const VERSION: &str = "audit.k8s.io/v1";

/// Amount of information in an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No event.
    #[default]
    None,
    /// User, time, resource, verb and response code, without bodies.
    Metadata,
    /// Metadata and the request's body.
    Request,
    /// Metadata and the bodies of request and response.
    RequestResponse,
}

impl Level {
    const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    /// Returns upstream's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// A point in the life of a request at which an event is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the request is handled.
    RequestReceived,
    /// The response's headers are known and its body follows: watches, logs, exec and the like.
    ResponseStarted,
    /// The response is complete.
    ResponseComplete,
    /// The handler panicked.
    Panic,
}

impl Stage {
    const ALL: [Stage; 4] =
        [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];

    /// Returns upstream's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

/// An audit policy cannot be used: all problems, each as `path: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct PolicyError {
    /// The problems.
    pub problems: Vec<String>,
}

/// Treatment of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Treatment {
    pub(super) level: Level,
    pub(super) omit_stages: Vec<Stage>,
    pub(super) omit_managed_fields: bool,
}

/// A valid audit policy. The first rule that matches a request decides; without one nothing is recorded.
///
/// ```
/// use k8s_apiserver::audit::Policy;
/// let text = "
/// apiVersion: audit.k8s.io/v1
/// kind: Policy
/// omitStages: [RequestReceived]
/// rules:
/// - {level: None, users: ['system:apiserver']}
/// - {level: Metadata, resources: [{group: '', resources: [secrets, 'pods/*']}]}
/// ";
/// assert!(Policy::parse(text).is_ok());
/// let error = Policy::parse(&text.replace("Metadata", "All")).unwrap_err();
/// assert!(error.to_string().starts_with("rules[1].level: Unsupported value: \"All\""));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    namespaces: Vec<String>,
    resources: Vec<Resources>,
    urls: Vec<String>,
    treatment: Treatment,
}

#[derive(Clone, Debug, PartialEq)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

impl Policy {
    /// Reads a policy, YAML or JSON. An unknown field is logged and ignored, as upstream does.
    ///
    /// # Errors
    /// All problems with their fields.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let value =
            decode::yaml(text.as_bytes()).map_err(|e| PolicyError { problems: vec![e.to_string()] })?;
        let mut reader = Reader::default();
        let policy = reader.policy(&value);
        match reader.problems.is_empty() {
            true => Ok(policy),
            false => Err(PolicyError { problems: reader.problems }),
        }
    }

    /// Returns the treatment of a request; `user` is `None` if authentication failed.
    pub(super) fn treatment(&self, user: Option<&User>, info: &RequestInfo) -> Treatment {
        let rule = self.rules.iter().find(|rule| rule.matches(user, info));
        rule.map_or_else(Treatment::default, |rule| rule.treatment.clone())
    }
}

impl Rule {
    fn matches(&self, user: Option<&User>, info: &RequestInfo) -> bool {
        let among = |list: &[String], value: &str| list.is_empty() || list.iter().any(|item| item == value);
        let by_user = self.users.is_empty() || user.is_some_and(|user| among(&self.users, &user.name));
        let by_group = self.groups.is_empty()
            || user.is_some_and(|user| user.groups.iter().any(|group| self.groups.contains(group)));
        if !by_user || !by_group || !among(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && among(&self.namespaces, &info.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.match_request(info)));
        }
        self.urls.is_empty() || (!info.is_resource && self.urls.iter().any(|url| is_below(url, &info.path)))
    }
}

impl Resources {
    fn match_request(&self, info: &RequestInfo) -> bool {
        if self.group != "*" && self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.names.is_empty() && !self.names.contains(&info.name) {
            return false;
        }
        self.resources.iter().any(|wanted| match wanted.split_once('/') {
            None => wanted == "*" || (info.subresource.is_empty() && *wanted == info.resource),
            // All of a resource, the resource itself among them.
            Some((resource, "*")) => resource == info.resource,
            Some((resource, subresource)) => {
                !info.subresource.is_empty()
                    && subresource == info.subresource
                    && (resource == "*" || resource == info.resource)
            }
        })
    }
}

/// Returns true if a URL pattern, exact or with a `*` at its end, matches a path.
fn is_below(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == path, |start| path.starts_with(start))
}

#[derive(Default)]
struct Reader {
    problems: Vec<String>,
}

impl Reader {
    fn policy(&mut self, value: &Value) -> Policy {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("kind") != "Policy" || text("apiVersion") != VERSION {
            let (version, kind) = (text("apiVersion"), text("kind"));
            self.problems
                .push(format!("apiVersion, kind: want Policy of {VERSION}, not {kind:?} of {version:?}"));
        }
        self.known(
            value,
            "",
            &["apiVersion", "kind", "metadata", "omitStages", "omitManagedFields", "rules"],
        );
        let omit_stages = self.stages(value, "");
        let omit_managed = self.flag(value, "", "omitManagedFields").unwrap_or_default();
        let rules = self.list(value, "", "rules");
        if rules.is_empty() {
            self.problems.push("rules: Required value: a policy needs a rule".to_owned());
        }
        let rules = rules.iter().enumerate();
        Policy { rules: rules.map(|(i, rule)| self.rule(rule, i, &omit_stages, omit_managed)).collect() }
    }

    fn rule(&mut self, rule: &Value, number: usize, omit_stages: &[Stage], omit_managed: bool) -> Rule {
        let path = format!("rules[{number}]");
        self.known(
            rule,
            &path,
            &[
                "level",
                "users",
                "userGroups",
                "verbs",
                "resources",
                "namespaces",
                "nonResourceURLs",
                "omitStages",
                "omitManagedFields",
            ],
        );
        let level = self.level(rule, &path);
        let resources: Vec<Resources> = self
            .list(rule, &path, "resources")
            .iter()
            .enumerate()
            .map(|(i, item)| self.resources(item, &format!("{path}.resources[{i}]")))
            .collect();
        let namespaces = self.strings(rule, &path, "namespaces");
        let urls = self.strings(rule, &path, "nonResourceURLs");
        for (i, url) in urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            let place = format!("{path}.nonResourceURLs[{i}]: Invalid value: {url:?}");
            if !url.starts_with('/') {
                self.problems
                    .push(format!("{place}: non-resource URL rules must begin with a '/' character"));
            }
            if url.find('*').is_some_and(|at| at + 1 < url.len()) {
                let why = "non-resource URL wildcards '*' must be the final character of the rule";
                self.problems.push(format!("{place}: {why}"));
            }
        }
        let for_resources = !resources.is_empty() || !namespaces.is_empty();
        if for_resources && !urls.is_empty() {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            self.problems.push(format!("{path}.nonResourceURLs: Invalid value: {urls:?}: {why}"));
        }
        let mut all = self.stages(rule, &path);
        all.extend(omit_stages);
        Rule {
            users: self.strings(rule, &path, "users"),
            groups: self.strings(rule, &path, "userGroups"),
            verbs: self.strings(rule, &path, "verbs"),
            namespaces,
            resources,
            urls,
            treatment: Treatment {
                level,
                omit_stages: all,
                omit_managed_fields: self.flag(rule, &path, "omitManagedFields").unwrap_or(omit_managed),
            },
        }
    }

    fn level(&mut self, rule: &Value, path: &str) -> Level {
        let named = match rule.get("level") {
            None | Some(Value::Null) => "",
            Some(Value::String(text)) => text,
            Some(other) => {
                self.problems.push(format!("{path}.level: Invalid value: {other}: want a string"));
                return Level::None;
            }
        };
        if let Some(level) = Level::ALL.into_iter().find(|level| level.name() == named) {
            return level;
        }
        let supported = Level::ALL.map(|level| format!("{:?}", level.name())).join(", ");
        self.problems.push(match named {
            "" => format!("{path}.level: Required value: one of {supported}"),
            named => format!("{path}.level: Unsupported value: {named:?}: supported values: {supported}"),
        });
        Level::None
    }

    fn resources(&mut self, item: &Value, path: &str) -> Resources {
        self.known(item, path, &["group", "resources", "resourceNames"]);
        let group = item.get("group").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (resources, names) =
            (self.strings(item, path, "resources"), self.strings(item, path, "resourceNames"));
        if !group.is_empty() && group != "*" && !is_dns_subdomain(&group) {
            let why = "want the name of a group without a version, in lower case (rbac.authorization.k8s.io)";
            self.problems.push(format!("{path}.group: Invalid value: {group:?}: {why}"));
        }
        if resources.is_empty() && !names.is_empty() {
            let why = "using resourceNames requires at least one resource";
            self.problems.push(format!("{path}.resourceNames: Invalid value: {names:?}: {why}"));
        }
        Resources { group, resources, names }
    }

    fn stages(&mut self, value: &Value, path: &str) -> Vec<Stage> {
        let mut stages = Vec::new();
        for (i, named) in self.strings(value, path, "omitStages").iter().enumerate() {
            match Stage::ALL.into_iter().find(|stage| stage.name() == named) {
                Some(stage) => stages.push(stage),
                None => {
                    let allowed = Stage::ALL.map(Stage::name).join(",");
                    let place = at(path, "omitStages");
                    self.problems.push(format!(
                        "{place}[{i}]: Invalid value: {named:?}: allowed stages are {allowed}"
                    ));
                }
            }
        }
        stages
    }

    fn flag(&mut self, value: &Value, path: &str, field: &str) -> Option<bool> {
        match value.get(field) {
            None | Some(Value::Null) => None,
            Some(Value::Bool(flag)) => Some(*flag),
            Some(other) => {
                self.problems
                    .push(format!("{}: Invalid value: {other}: want true or false", at(path, field)));
                None
            }
        }
    }

    fn list<'a>(&mut self, value: &'a Value, path: &str, field: &str) -> &'a [Value] {
        match value.get(field) {
            None | Some(Value::Null) => &[],
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.problems.push(format!("{}: Invalid value: {other}: want a list", at(path, field)));
                &[]
            }
        }
    }

    fn strings(&mut self, value: &Value, path: &str, field: &str) -> Vec<String> {
        let mut all = Vec::new();
        for (i, item) in self.list(value, path, field).iter().enumerate() {
            match item.as_str() {
                Some(text) => all.push(text.to_owned()),
                None => {
                    self.problems
                        .push(format!("{}[{i}]: Invalid value: {item}: want a string", at(path, field)));
                }
            }
        }
        all
    }

    fn known(&mut self, value: &Value, path: &str, fields: &[&str]) {
        let Some(map) = value.as_object() else {
            self.problems.push(format!("{path}: Invalid value: want an object"));
            return;
        };
        for field in map.keys().filter(|field| !fields.contains(&field.as_str())) {
            tracing::warn!(field = at(path, field), "unknown field of the audit policy");
        }
    }
}

fn at(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn is_dns_subdomain(name: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.split('.').map(str::as_bytes).all(|label| {
            end(label.first())
                && end(label.last())
                && label.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    fn policy(rules: &str) -> Result<Policy, String> {
        Policy::parse(&format!("apiVersion: {VERSION}\nkind: Policy\n{rules}")).map_err(|e| e.to_string())
    }

    #[test]
    fn rules_match_as_upstream() {
        let eve = User::new("eve", &["shop"]);
        for (rule, method, path, want) in [
            ("users: [eve]", "GET", "/version", true),
            ("users: [bob]", "GET", "/version", false),
            ("userGroups: [bank, shop]", "GET", "/version", true),
            ("userGroups: [bank]", "GET", "/version", false),
            ("verbs: [list]", "GET", "/api/v1/pods", true),
            ("verbs: [list]", "GET", "/api/v1/namespaces/a/pods/b", false),
            ("namespaces: [a]", "GET", "/api/v1/namespaces/a/pods/b", true),
            ("namespaces: [a]", "GET", "/api/v1/pods", false),
            ("namespaces: ['']", "GET", "/api/v1/pods", true),
            ("namespaces: [a]", "GET", "/version", false),
            ("resources: [{}]", "GET", "/api/v1/pods", true),
            ("resources: [{}]", "GET", "/apis/apps/v1/deployments", false),
            ("resources: [{group: '*'}]", "GET", "/apis/apps/v1/deployments", true),
            ("resources: [{resources: [pods]}]", "GET", "/api/v1/namespaces/a/pods/b", true),
            ("resources: [{resources: [pods]}]", "GET", "/api/v1/namespaces/a/pods/b/log", false),
            ("resources: [{resources: [pods/log]}]", "GET", "/api/v1/namespaces/a/pods/b/log", true),
            ("resources: [{resources: [pods/log]}]", "GET", "/api/v1/namespaces/a/pods/b", false),
            ("resources: [{resources: ['pods/*']}]", "GET", "/api/v1/namespaces/a/pods/b", true),
            ("resources: [{resources: ['pods/*']}]", "GET", "/api/v1/namespaces/a/pods/b/log", true),
            ("resources: [{resources: ['*/log']}]", "GET", "/api/v1/namespaces/a/pods/b/log", true),
            ("resources: [{resources: ['*/log']}]", "GET", "/api/v1/namespaces/a/pods/b", false),
            ("resources: [{resources: ['*']}]", "GET", "/api/v1/namespaces/a/pods/b/log", true),
            (
                "resources: [{resources: [pods], resourceNames: [b]}]",
                "GET",
                "/api/v1/namespaces/a/pods/b",
                true,
            ),
            (
                "resources: [{resources: [pods], resourceNames: [c]}]",
                "GET",
                "/api/v1/namespaces/a/pods/b",
                false,
            ),
            ("nonResourceURLs: ['/healthz*']", "GET", "/healthz/ping", true),
            ("nonResourceURLs: [/healthz]", "GET", "/healthz/ping", false),
            ("nonResourceURLs: ['*']", "GET", "/version", true),
            ("nonResourceURLs: ['*']", "GET", "/api/v1/pods", false),
        ] {
            let policy = policy(&format!("rules:\n- level: Metadata\n  {rule}\n")).unwrap();
            let method = method.parse().unwrap();
            let info = RequestInfo::parse(&method, path, &Query::default());
            let level = policy.treatment(Some(&eve), &info).level;
            assert_eq!(level == Level::Metadata, want, "{rule} {path}");
        }
        let named = policy("rules: [{level: Metadata, users: [eve]}]").unwrap();
        assert_eq!(
            named.treatment(None, &RequestInfo::default()).level,
            Level::None,
            "authentication failed"
        );
    }

    #[test]
    fn the_first_rule_decides_and_omissions_are_joined() {
        let policy = policy(
            "omitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n- {level: Request, verbs: [get], omitStages: [Panic], omitManagedFields: false}\n- {level: Metadata}\n",
        )
        .unwrap();
        let of = |verb: &str| {
            policy.treatment(None, &RequestInfo { verb: verb.to_owned(), ..RequestInfo::default() })
        };
        let (get, other) = (of("get"), of("post"));
        assert_eq!((get.level, get.omit_managed_fields), (Level::Request, false));
        assert_eq!(get.omit_stages, [Stage::Panic, Stage::RequestReceived]);
        assert_eq!((other.level, other.omit_managed_fields), (Level::Metadata, true));
        assert_eq!(other.omit_stages, [Stage::RequestReceived]);
    }

    #[test]
    fn problems_name_the_field() {
        for (text, problem) in [
            ("rules: []", "rules: Required value"),
            ("rules: {}", "rules: Invalid value: {}: want a list"),
            ("rules: [{}]", "rules[0].level: Required value"),
            ("rules: [{level: All}]", "rules[0].level: Unsupported value: \"All\""),
            ("rules: [{level: 1}]", "rules[0].level: Invalid value: 1"),
            ("rules: [{level: None, users: eve}]", "rules[0].users: Invalid value: \"eve\": want a list"),
            ("rules: [{level: None, verbs: [1]}]", "rules[0].verbs[0]: Invalid value: 1: want a string"),
            (
                "rules: [{level: None, nonResourceURLs: [a]}]",
                "rules[0].nonResourceURLs[0]: Invalid value: \"a\"",
            ),
            ("rules: [{level: None, nonResourceURLs: ['/*/a']}]", "must be the final character"),
            ("rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]", "cannot apply to both"),
            (
                "rules: [{level: None, omitStages: [Begin]}]",
                "rules[0].omitStages[0]: Invalid value: \"Begin\"",
            ),
            ("omitStages: [Begin]\nrules: [{level: None}]", "omitStages[0]: Invalid value: \"Begin\""),
            (
                "rules: [{level: None, resources: [{group: apps/v1}]}]",
                "rules[0].resources[0].group: Invalid value",
            ),
            ("rules: [{level: None, resources: [{resourceNames: [a]}]}]", "requires at least one resource"),
        ] {
            let error = policy(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        assert!(
            Policy::parse("kind: Policy\nrules: [{level: None}]").unwrap_err().to_string().contains(VERSION)
        );
        assert!(
            policy("rules: [{level: None, more: 1}]").is_ok(),
            "unknown fields are ignored, as upstream does"
        );
    }
}
