//! The file of `--authentication-config`: issuers of JSON Web Tokens, and anonymous requests.
//!
//! Flow: YAML or JSON is read with all problems at once, each with the path of its field; expressions are
//! compiled here, once.

use std::{collections::BTreeSet, fmt};

use serde_json::{Map, Value};

use super::{
    anonymous::Anonymous,
    oidc::{Authentication, ClaimRule, Expression, Issuer, Mapping, Rules},
};

/// Versions of the configuration's API.
const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// Largest number of issuers, as upstream.
const MOST_ISSUERS: usize = 64;

/// A configuration cannot be used: all problems, each as `path: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigurationError {
    /// The problems.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

/// A valid AuthenticationConfiguration.
#[derive(Debug, Default)]
pub struct AuthenticationConfiguration {
    pub(super) jwt: Vec<Authentication>,
    pub(super) anonymous: Option<Anonymous>,
}

/// One issuer as `--oidc-*` flags describe it.
#[derive(Clone, Debug, Default)]
pub struct OidcSettings {
    /// URL of the issuer (https).
    pub issuer_url: String,
    /// Audience that tokens must have.
    pub client_id: String,
    /// CA certificates (PEM) of the issuer's server. Default: the system's.
    pub ca: Option<String>,
    /// Claim with the user name; empty: `sub`.
    pub username_claim: String,
    /// Prefix of user names; `-`: none. Empty: the issuer and `#`, but none for the claim `email`.
    pub username_prefix: String,
    /// Claim with the groups; empty: none.
    pub groups_claim: String,
    /// Prefix of groups.
    pub groups_prefix: String,
    /// Signature algorithms; empty: RS256.
    pub signing_algs: Vec<String>,
    /// Claims that tokens must have, with these values.
    pub required_claims: Vec<(String, String)>,
}

impl AuthenticationConfiguration {
    /// Reads a configuration, YAML or JSON. `reserved` are issuers that others verify: those of service
    /// account tokens.
    ///
    /// ```
    /// use k8s_apiserver::auth::AuthenticationConfiguration;
    /// let text = "
    /// apiVersion: apiserver.config.k8s.io/v1
    /// kind: AuthenticationConfiguration
    /// jwt:
    /// - issuer: {url: https://issuer.example.com, audiences: [shop]}
    ///   claimMappings:
    ///     username: {expression: 'claims.subject'}
    /// anonymous: {enabled: true, conditions: [{path: /livez}]}
    /// ";
    /// assert!(AuthenticationConfiguration::parse(text, &[]).is_ok());
    /// let error = AuthenticationConfiguration::parse(&text.replace("https", "http"), &[]).unwrap_err();
    /// assert!(error.to_string().starts_with("jwt[0].issuer.url: Invalid value"));
    /// ```
    ///
    /// # Errors
    /// All problems with their fields.
    pub fn parse(text: &str, reserved: &[String]) -> Result<Self, ConfigurationError> {
        let value = crate::decode::yaml(text.as_bytes())
            .map_err(|e| ConfigurationError { problems: vec![e.to_string()] })?;
        let mut reader = Reader::default();
        let configuration = reader.configuration(&value, reserved);
        match reader.problems.is_empty() {
            true => Ok(configuration),
            false => Err(ConfigurationError { problems: reader.problems }),
        }
    }

    /// Returns the configuration of `--oidc-*` flags.
    ///
    /// # Errors
    /// All problems, as for a file; `jwt[0]` is the issuer of the flags.
    pub fn of_oidc(settings: OidcSettings, reserved: &[String]) -> Result<Self, ConfigurationError> {
        let claim = match settings.username_claim.as_str() {
            "" => "sub".to_owned(),
            claim => claim.to_owned(),
        };
        let prefix = match (settings.username_prefix.as_str(), claim.as_str()) {
            ("-", _) | ("", "email") => String::new(),
            ("", _) => format!("{}#", settings.issuer_url),
            (prefix, _) => prefix.to_owned(),
        };
        let mut reader = Reader::default();
        let mut algorithms = Vec::new();
        for name in &settings.signing_algs {
            match super::keys::Algorithm::named(name) {
                Some(algorithm) => algorithms.push(algorithm),
                None => reader.invalid("signingAlgs", &name.as_str().into(), "unsupported signing alg"),
            }
        }
        if algorithms.is_empty() {
            algorithms.push(super::keys::Algorithm::Rs256);
        }
        let issuer = serde_json::json!({
            "url": settings.issuer_url, "audiences": [settings.client_id],
            "certificateAuthority": settings.ca.unwrap_or_default(),
        });
        let issuer = reader.issuer(Some(&issuer), "jwt[0].issuer", reserved);
        let groups = Some(settings.groups_claim).filter(|claim| !claim.is_empty());
        let rules = Rules {
            username: Mapping::Claim { claim, prefix },
            groups: groups.map(|claim| Mapping::Claim { claim, prefix: settings.groups_prefix }),
            uid: None,
            extra: Vec::new(),
            claims: settings
                .required_claims
                .into_iter()
                .map(|(claim, value)| ClaimRule::Required { claim, value })
                .collect(),
            users: Vec::new(),
        };
        if !reader.problems.is_empty() {
            return Err(ConfigurationError { problems: reader.problems });
        }
        let jwt = issuer.map(|issuer| Authentication::new(issuer, rules, Some(algorithms)));
        Ok(AuthenticationConfiguration { jwt: jwt.into_iter().collect(), anonymous: None })
    }

    /// Returns true if the file decides about anonymous requests.
    #[must_use]
    pub fn has_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }

    /// Returns true if the file has issuers.
    #[must_use]
    pub fn has_issuers(&self) -> bool {
        !self.jwt.is_empty()
    }
}

/// Reads values and collects problems.
#[derive(Default)]
struct Reader {
    problems: Vec<String>,
}

type Object<'a> = Option<&'a Map<String, Value>>;

impl Reader {
    fn invalid(&mut self, path: &str, value: &Value, why: &str) {
        self.problems.push(format!("{path}: Invalid value: {value}: {why}"));
    }

    fn required(&mut self, path: &str, why: &str) {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        self.problems.push(format!("{path}: Required value{why}"));
    }

    fn duplicate(&mut self, path: &str, value: &str) {
        self.problems.push(format!("{path}: Duplicate value: {value:?}"));
    }

    /// Returns an object with these fields only.
    fn object<'a>(&mut self, value: Option<&'a Value>, path: &str, known: &[&str]) -> Object<'a> {
        let object = match value {
            None | Some(Value::Null) => return None,
            Some(Value::Object(object)) => object,
            Some(other) => {
                self.invalid(path, other, "must be an object");
                return None;
            }
        };
        for field in object.keys().filter(|field| !known.contains(&field.as_str())) {
            let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            self.problems.push(format!("{path}: unknown field"));
        }
        Some(object)
    }

    fn text(&mut self, object: Object<'_>, path: &str, field: &str) -> String {
        self.optional_text(object, path, field).unwrap_or_default()
    }

    fn optional_text(&mut self, object: Object<'_>, path: &str, field: &str) -> Option<String> {
        match object?.get(field) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => {
                self.invalid(&format!("{path}.{field}"), other, "must be a string");
                None
            }
        }
    }

    fn list<'a>(&mut self, object: Object<'a>, path: &str, field: &str) -> &'a [Value] {
        match object.and_then(|object| object.get(field)) {
            None | Some(Value::Null) => &[],
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.invalid(&format!("{path}{field}"), other, "must be a list");
                &[]
            }
        }
    }

    fn configuration(&mut self, value: &Value, reserved: &[String]) -> AuthenticationConfiguration {
        let root = self.object(Some(value), "", &["apiVersion", "kind", "jwt", "anonymous"]);
        let (version, kind) = (self.text(root, "", "apiVersion"), self.text(root, "", "kind"));
        if !VERSIONS.contains(&version.as_str()) {
            self.problems
                .push(format!("apiVersion: Unsupported value: {version:?}: supported values: {VERSIONS:?}"));
        }
        if kind != "AuthenticationConfiguration" {
            self.invalid("kind", &kind.into(), "must be AuthenticationConfiguration");
        }
        let issuers = self.list(root, "", "jwt");
        if issuers.len() > MOST_ISSUERS {
            self.problems
                .push(format!("jwt: Too many: {}: must have at most {MOST_ISSUERS} items", issuers.len()));
        }
        let mut jwt = Vec::new();
        let (mut urls, mut discoveries) = (BTreeSet::new(), BTreeSet::new());
        for (i, one) in issuers.iter().take(MOST_ISSUERS).enumerate() {
            let path = format!("jwt[{i}]");
            let known = ["issuer", "claimValidationRules", "claimMappings", "userValidationRules"];
            let one = self.object(Some(one), &path, &known);
            let issuer =
                self.issuer(one.and_then(|one| one.get("issuer")), &format!("{path}.issuer"), reserved);
            let rules = self.rules(one, &path);
            let Some((issuer, rules)) = issuer.zip(rules) else { continue };
            if !urls.insert(issuer.url.clone()) {
                self.duplicate(&format!("{path}.issuer.url"), &issuer.url);
            }
            if let Some(url) = &issuer.discovery_url
                && !discoveries.insert(url.clone())
            {
                self.duplicate(&format!("{path}.issuer.discoveryURL"), url);
            }
            jwt.push(Authentication::new(issuer, rules, None));
        }
        let anonymous = self.anonymous(root.and_then(|root| root.get("anonymous")));
        AuthenticationConfiguration { jwt, anonymous }
    }

    fn anonymous(&mut self, value: Option<&Value>) -> Option<Anonymous> {
        let object = self.object(value, "anonymous", &["enabled", "conditions"]);
        object?;
        let enabled = match object.and_then(|object| object.get("enabled")) {
            Some(Value::Bool(enabled)) => *enabled,
            None => false,
            Some(other) => {
                self.invalid("anonymous.enabled", other, "must be a boolean");
                false
            }
        };
        let mut paths = Vec::new();
        for (i, condition) in self.list(object, "anonymous.", "conditions").iter().enumerate() {
            let at = format!("anonymous.conditions[{i}]");
            let condition = self.object(Some(condition), &at, &["path"]);
            let path = self.text(condition, &at, "path");
            if path.is_empty() {
                self.required(&format!("{at}.path"), "");
            }
            paths.push(path);
        }
        if !enabled && !paths.is_empty() {
            let why = "enabled should be set to true when conditions are defined";
            self.invalid("anonymous.conditions", &paths.clone().into(), why);
        }
        Some(match (enabled, paths.is_empty()) {
            (false, _) => Anonymous::Never,
            (true, true) => Anonymous::Always,
            (true, false) => Anonymous::At(paths),
        })
    }

    fn issuer(&mut self, value: Option<&Value>, path: &str, reserved: &[String]) -> Option<Issuer> {
        let before = self.problems.len();
        let known = [
            "url",
            "discoveryURL",
            "certificateAuthority",
            "audiences",
            "audienceMatchPolicy",
            "egressSelectorType",
        ];
        let object = self.object(value, path, &known);
        let url = self.text(object, path, "url");
        if self.problems.len() > before {
            return None;
        }
        if url.is_empty() {
            self.required(&format!("{path}.url"), "");
        } else {
            if reserved.contains(&url) {
                let why = format!("URL must not overlap with disallowed issuers: {reserved:?}");
                self.invalid(&format!("{path}.url"), &url.as_str().into(), &why);
            }
            self.url(&url, &format!("{path}.url"));
        }
        let discovery_url = Some(self.text(object, path, "discoveryURL")).filter(|url| !url.is_empty());
        if let Some(other) = &discovery_url {
            let at = format!("{path}.discoveryURL");
            if other.trim_end_matches('/') == url.trim_end_matches('/') {
                self.invalid(&at, &other.as_str().into(), "discoveryURL must be different from URL");
            }
            self.url(other, &at);
        }
        let ca = Some(self.text(object, path, "certificateAuthority")).filter(|ca| !ca.is_empty());
        let trust = ca
            .as_ref()
            .map_or(crate::tls::Trust::System, |ca| crate::tls::Trust::Pem(ca.clone().into_bytes()));
        let has_certificate = ca.as_ref().is_none_or(|ca| ca.contains("-----BEGIN CERTIFICATE-----"));
        let tls = match (crate::tls::Tls::new(&trust, None), has_certificate) {
            (Ok(tls), true) => Some(tls),
            (Ok(_), false) => {
                let why = "data does not contain any valid RSA or ECDSA certificates";
                self.invalid(&format!("{path}.certificateAuthority"), &"<omitted>".into(), why);
                None
            }
            (Err(why), _) => {
                self.invalid(&format!("{path}.certificateAuthority"), &"<omitted>".into(), &why);
                None
            }
        };
        let audiences = self.audiences(object, path);
        if !self.text(object, path, "egressSelectorType").is_empty() {
            let why = "egress selectors are not supported: remove the field";
            self.invalid(&format!("{path}.egressSelectorType"), &object?["egressSelectorType"], why);
        }
        if self.problems.len() > before {
            return None;
        }
        Some(Issuer { url, discovery_url, audiences, tls: tls? })
    }

    fn url(&mut self, text: &str, path: &str) {
        let value = Value::from(text);
        let (plain, fragment) = text.split_once('#').map_or((text, ""), |(plain, rest)| (plain, rest));
        match plain.parse::<http::Uri>() {
            Err(e) => self.invalid(path, &value, &e.to_string()),
            Ok(url) => {
                if url.scheme_str() != Some("https") {
                    self.invalid(path, &value, "URL scheme must be https");
                }
                if url.authority().is_none_or(|authority| authority.as_str().contains('@')) {
                    self.invalid(
                        path,
                        &value,
                        "URL must not contain a username or password, and have a host",
                    );
                }
                if url.query().is_some_and(|query| !query.is_empty()) {
                    self.invalid(path, &value, "URL must not contain a query");
                }
                if !fragment.is_empty() {
                    self.invalid(path, &value, "URL must not contain a fragment");
                }
            }
        }
    }

    fn audiences(&mut self, object: Object<'_>, path: &str) -> Vec<String> {
        let at = format!("{path}.audiences");
        let items = self.list(object, &format!("{path}."), "audiences");
        if items.is_empty() {
            self.required(&at, &format!("at least one {at} is required"));
        }
        let mut audiences: Vec<String> = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match item.as_str() {
                Some("") => self.required(&format!("{at}[{i}]"), ""),
                Some(text) if audiences.iter().any(|known| known == text) => {
                    self.duplicate(&format!("{at}[{i}]"), text);
                }
                Some(text) => audiences.push(text.to_owned()),
                None => self.invalid(&format!("{at}[{i}]"), item, "must be a string"),
            }
        }
        let policy = self.text(object, path, "audienceMatchPolicy");
        let why = match (items.len(), policy.as_str()) {
            (_, "MatchAny") | (0 | 1, "") => return audiences,
            (0 | 1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        self.invalid(&format!("{path}.audienceMatchPolicy"), &policy.into(), why);
        audiences
    }

    /// Compiles an expression over the claims, or over the user. `is_condition`: it must be a boolean.
    fn expression(
        &mut self,
        text: &str,
        path: &str,
        of_user: bool,
        is_condition: bool,
    ) -> Option<Expression> {
        match Expression::compile(text, of_user, is_condition) {
            Ok(expression) => Some(expression),
            Err(why) => {
                self.invalid(path, &text.into(), &why);
                None
            }
        }
    }

    fn rules(&mut self, one: Object<'_>, path: &str) -> Option<Rules> {
        let before = self.problems.len();
        let claims = self.claim_rules(one, path);
        let at = format!("{path}.claimMappings");
        let mappings = one.and_then(|one| one.get("claimMappings"));
        let mappings = self.object(mappings, &at, &["username", "groups", "uid", "extra"]);
        let username = self.mapping(mappings, &at, "username", true);
        if username.is_none() && self.problems.len() == before {
            self.required(&format!("{at}.username"), "claim or expression is required");
        }
        let groups = self.mapping(mappings, &at, "groups", true);
        let uid = self.mapping(mappings, &at, "uid", false);
        let extra = self.extra(mappings, &at);
        if let Some(Mapping::Expression(expression)) = &username
            && expression.reads_claim("email")
        {
            let mut verified = claims.iter().filter_map(|rule| match rule {
                ClaimRule::Condition { expression, .. } => Some(expression),
                ClaimRule::Required { .. } => None,
            });
            let verified = verified.any(|e| e.reads_claim("email_verified"))
                || extra.iter().any(|(_, e)| e.reads_claim("email_verified"))
                || expression.reads_claim("email_verified");
            if !verified {
                let why = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";
                self.invalid(&format!("{at}.username.expression"), &expression.text().into(), why);
            }
        }
        let users = self.user_rules(one, path);
        (self.problems.len() == before).then_some(())?;
        Some(Rules { username: username?, groups, uid, extra, claims, users })
    }

    fn claim_rules(&mut self, one: Object<'_>, path: &str) -> Vec<ClaimRule> {
        let mut rules = Vec::new();
        let mut seen = BTreeSet::new();
        for (i, rule) in self.list(one, &format!("{path}."), "claimValidationRules").iter().enumerate() {
            let at = format!("{path}.claimValidationRules[{i}]");
            let rule = self.object(Some(rule), &at, &["claim", "requiredValue", "expression", "message"]);
            let [claim, value, expression, message] =
                ["claim", "requiredValue", "expression", "message"].map(|field| self.text(rule, &at, field));
            match (claim.is_empty(), expression.is_empty()) {
                (false, false) => {
                    self.invalid(&at, &claim.into(), "claim and expression can't both be set");
                }
                (true, true) => self.required(&at, "claim or expression is required"),
                (false, true) => {
                    if !message.is_empty() {
                        let why = "may not be specified when claim is set";
                        self.invalid(&format!("{at}.message"), &message.into(), why);
                    }
                    if !seen.insert(claim.clone()) {
                        self.duplicate(&format!("{at}.claim"), &claim);
                    }
                    rules.push(ClaimRule::Required { claim, value });
                }
                (true, false) => {
                    if !value.is_empty() {
                        let why = "may not be specified when expression is set";
                        self.invalid(&format!("{at}.requiredValue"), &value.into(), why);
                    }
                    if !seen.insert(expression.clone()) {
                        self.duplicate(&format!("{at}.expression"), &expression);
                        continue;
                    }
                    let compiled = self.expression(&expression, &format!("{at}.expression"), false, true);
                    rules.extend(compiled.map(|expression| ClaimRule::Condition { expression, message }));
                }
            }
        }
        rules
    }

    fn user_rules(&mut self, one: Object<'_>, path: &str) -> Vec<(Expression, String)> {
        let mut rules: Vec<(Expression, String)> = Vec::new();
        let mut seen = BTreeSet::new();
        for (i, rule) in self.list(one, &format!("{path}."), "userValidationRules").iter().enumerate() {
            let at = format!("{path}.userValidationRules[{i}]");
            let rule = self.object(Some(rule), &at, &["expression", "message"]);
            let [expression, message] = ["expression", "message"].map(|field| self.text(rule, &at, field));
            let at = format!("{at}.expression");
            if expression.is_empty() {
                self.required(&at, "");
            } else if !seen.insert(expression.clone()) {
                self.duplicate(&at, &expression);
            } else {
                let compiled = self.expression(&expression, &at, true, true);
                rules.extend(compiled.map(|compiled| (compiled, message)));
            }
        }
        rules
    }

    fn mapping(&mut self, mappings: Object<'_>, path: &str, field: &str, prefixed: bool) -> Option<Mapping> {
        let at = format!("{path}.{field}");
        let known: &[&str] =
            if prefixed { &["claim", "prefix", "expression"] } else { &["claim", "expression"] };
        let object = self.object(mappings.and_then(|m| m.get(field)), &at, known);
        let (claim, expression) = (self.text(object, &at, "claim"), self.text(object, &at, "expression"));
        let prefix = self.optional_text(object, &at, "prefix");
        match (claim.is_empty(), expression.is_empty()) {
            (true, true) => None,
            (false, false) => {
                self.invalid(&at, &"".into(), "claim and expression can't both be set");
                None
            }
            (true, false) => {
                if let Some(prefix) = prefix {
                    let why = "may not be specified when expression is set";
                    self.invalid(&format!("{at}.prefix"), &prefix.into(), why);
                }
                self.expression(&expression, &format!("{at}.expression"), false, false)
                    .map(Mapping::Expression)
            }
            (false, true) => {
                if prefixed && prefix.is_none() {
                    let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    self.required(&format!("{at}.prefix"), why);
                }
                Some(Mapping::Claim { claim, prefix: prefix.unwrap_or_default() })
            }
        }
    }

    fn extra(&mut self, mappings: Object<'_>, path: &str) -> Vec<(String, Expression)> {
        let mut extra: Vec<(String, Expression)> = Vec::new();
        let mut seen = BTreeSet::new();
        for (i, item) in self.list(mappings, &format!("{path}."), "extra").iter().enumerate() {
            let at = format!("{path}.extra[{i}]");
            let item = self.object(Some(item), &at, &["key", "valueExpression"]);
            let (key, expression) = (self.text(item, &at, "key"), self.text(item, &at, "valueExpression"));
            let key_at = format!("{at}.key");
            let domain = key.split_once('/').filter(|(domain, rest)| {
                let labels = domain.split('.');
                let is_label = |label: &str| {
                    !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                };
                !rest.is_empty() && labels.clone().count() > 0 && labels.clone().all(is_label)
            });
            match domain {
                _ if key.is_empty() => self.required(&key_at, ""),
                None => {
                    let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
                    self.invalid(&key_at, &key.as_str().into(), why);
                }
                Some((domain, _)) => {
                    let is_below = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
                    if is_below("k8s.io") || is_below("kubernetes.io") {
                        let why =
                            "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                        self.invalid(&key_at, &key.as_str().into(), why);
                    }
                }
            }
            if key != key.to_lowercase() {
                self.invalid(&key_at, &key.as_str().into(), "must be lowercase");
            }
            if !seen.insert(key.clone()) {
                self.duplicate(&key_at, &key);
            } else if expression.is_empty() {
                self.required(&format!("{at}.valueExpression"), "");
            } else {
                let compiled = self.expression(&expression, &format!("{at}.valueExpression"), false, false);
                extra.extend(compiled.map(|compiled| (key, compiled)));
            }
        }
        extra
    }
}
