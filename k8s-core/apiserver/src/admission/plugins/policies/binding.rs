//! A binding of a policy: where it applies, with which parameters, and what follows.

use k8s_core::{json, meta::LabelSelector, status::ApiStatus};
use k8s_store::Store;
use serde_json::Value;

use super::policy::Policy;
use crate::{
    admission::{
        event::Event,
        matching::{Matcher, constraints},
    },
    value::{array_at, str_at},
};

/// A binding of a policy of either kind.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) policy: String,
    matcher: Option<Matcher>,
    param: Option<ParamRef>,
    pub(super) denies: bool,
    pub(super) warns: bool,
    pub(super) audits: bool,
    /// `validationActions`, as they are.
    pub(super) actions: Value,
}

/// A reference to parameters.
#[derive(Debug)]
struct ParamRef {
    name: String,
    /// Empty: the namespace of the request.
    namespace: String,
    selector: Option<LabelSelector>,
    /// Absent parameters refuse the request; otherwise the binding does not apply.
    denies: bool,
}

impl Binding {
    pub(super) fn new(binding: &Value) -> Self {
        let has = |action: &str| array_at(binding, "/spec/validationActions").iter().any(|a| a == action);
        let param = binding.pointer("/spec/paramRef").filter(|param| param.is_object());
        let matched = constraints(binding, "matchResources");
        Binding {
            name: str_at(binding, "/metadata/name").to_owned(),
            policy: str_at(binding, "/spec/policyName").to_owned(),
            matcher: matched.is_object().then(|| Matcher::new(matched)),
            param: param.map(|param| ParamRef {
                name: str_at(param, "/name").to_owned(),
                namespace: str_at(param, "/namespace").to_owned(),
                selector: param
                    .get("selector")
                    .and_then(|selector| json::from_value(selector).ok())
                    .and_then(|selector| LabelSelector::from_api(&selector).ok()),
                denies: str_at(param, "/parameterNotFoundAction") != "Allow",
            }),
            denies: has("Deny"),
            warns: has("Warn"),
            audits: has("Audit"),
            actions: binding.pointer("/spec/validationActions").cloned().unwrap_or_default(),
        }
    }

    /// Returns true if an event that the policy is about is meant.
    ///
    /// # Errors
    /// 404 if the namespace is gone.
    pub(super) fn is_for(&self, event: &Event<'_>, store: &Store) -> Result<bool, ApiStatus> {
        match &self.matcher {
            None => Ok(true),
            Some(matcher) if matcher.has_rules() => Ok(matcher.find(event, store)?.is_some()),
            Some(matcher) => matcher.selects(event, store),
        }
    }

    /// Returns the parameters for an event: null for a policy without them, and none if they are absent and
    /// need not be there.
    ///
    /// # Errors
    /// The reason for which they cannot be found.
    pub(super) fn params(
        &self,
        policy: &Policy,
        event: &Event<'_>,
        store: &Store,
    ) -> Result<Vec<Value>, String> {
        let (Some((version, kind)), Some(param)) = (&policy.param_kind, &self.param) else {
            return Ok(vec![Value::Null]);
        };
        let (group, of_group) = version.split_once('/').unwrap_or(("", version));
        let resource = event
            .call
            .registry
            .by_kind(group, of_group, kind)
            .ok_or_else(|| format!("paramKind kind `{version}, Kind={kind}` not known"))?;
        let namespace = match (resource.namespaced, param.namespace.as_str()) {
            (false, "") => "",
            (false, _) => {
                return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
            }
            (true, "") if event.namespace.is_empty() => {
                let why =
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
                return Err(why.into());
            }
            (true, "") => event.namespace,
            (true, namespace) => namespace,
        };
        let read = |json: &[u8]| {
            let mut object: Value = serde_json::from_slice(json).ok()?;
            resource.from_storage(&mut object);
            Some(object)
        };
        let found: Vec<Value> = if param.name.is_empty() {
            let prefix = if resource.namespaced { format!("{namespace}/") } else { String::new() };
            let all = store.snapshot(&resource.storage);
            let selected = |object: &Value| {
                let labels = Event::labels(object);
                let label = |key: &str| labels?.get(key)?.as_str();
                param.selector.as_ref().is_none_or(|selector| selector.matches_with(label))
            };
            all.range(&prefix, "").filter_map(|stored| read(&stored.json)).filter(selected).collect()
        } else {
            let stored = store.get(&resource.storage, &resource.key(namespace, &param.name));
            stored.and_then(|stored| read(&stored.json)).into_iter().collect()
        };
        if found.is_empty() && param.denies {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found)
    }
}
