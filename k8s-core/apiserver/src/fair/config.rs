//! The stored flow schemas and priority levels, compiled once per change.

use std::{collections::BTreeMap, sync::Arc};

use k8s_core::api::api::flowcontrol::v1::{
    FlowSchema, LimitedPriorityLevelConfiguration, PriorityLevelConfiguration,
};
use k8s_store::Store;
use serde::de::DeserializeOwned;

use super::{
    CATCH_ALL, EXEMPT,
    borrow::Shares,
    metrics::Metrics,
    queues::{Discipline, Queuing},
    schemas::Schema,
};
use crate::{
    request::RequestInfo,
    resources::flow_defaults::{LEVELS, SCHEMAS, flow_defaults},
    user::User,
};

/// Configuration of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) shares: Shares,
    pub(super) discipline: Discipline,
}

/// Flow schemas in the order of their precedence, and the levels that they name.
#[derive(Debug)]
pub(crate) struct Config {
    /// Number of the compilation; a higher one is newer.
    pub(super) number: u64,
    schemas: Vec<Arc<Schema>>,
    pub(super) levels: BTreeMap<Arc<str>, Plan>,
}

impl Config {
    /// Compiles the objects of a store. Mandatory objects that are missing are as their defaults; schemas
    /// whose level is missing are without effect.
    pub(super) fn load(store: &Store, number: u64, metrics: &Metrics) -> Self {
        Self::new(objects(store, SCHEMAS), objects(store, LEVELS), number, metrics)
    }

    pub(super) fn new(
        mut schemas: Vec<FlowSchema>,
        mut levels: Vec<PriorityLevelConfiguration>,
        number: u64,
        metrics: &Metrics,
    ) -> Self {
        let mandatory = |resource| {
            flow_defaults().filter(move |default| default.resource == resource && default.is_mandatory())
        };
        for default in mandatory(SCHEMAS) {
            if !schemas.iter().any(|schema| schema.metadata.name.as_ref() == Some(&default.name)) {
                schemas.extend(serde_json::from_value(default.object.clone()).ok());
            }
        }
        for default in mandatory(LEVELS) {
            if !levels.iter().any(|level| level.metadata.name.as_ref() == Some(&default.name)) {
                levels.extend(serde_json::from_value(default.object.clone()).ok());
            }
        }
        let mut uids: BTreeMap<String, String> = BTreeMap::new();
        let mut plans = BTreeMap::new();
        for level in levels {
            let name = level.metadata.name.clone().unwrap_or_default();
            if let Some(plan) = plan(&level) {
                plans.insert(name.as_str().into(), plan);
                uids.insert(name, level.metadata.uid.unwrap_or_default());
            }
        }
        let mut schemas: Vec<Arc<Schema>> = schemas
            .iter()
            .filter_map(|object| {
                let level = &object.spec.as_ref()?.priority_level_configuration.name;
                let name = object.metadata.name.as_deref().unwrap_or_default();
                Some(Arc::new(Schema::new(object, uids.get(level)?, metrics.of(level, name))))
            })
            .collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Config { number, schemas, levels: plans }
    }

    /// Returns the schema of a user's request: the first that matches, else the last.
    pub(super) fn classify(&self, user: &User, info: &RequestInfo) -> Option<&Arc<Schema>> {
        let found = self.schemas.iter().find(|schema| schema.matches(user, info));
        found.or_else(|| self.schemas.iter().find(|schema| &*schema.name == CATCH_ALL))
    }
}

/// Returns the objects of a resource that can be decoded.
pub(super) fn objects<T: DeserializeOwned>(store: &Store, resource: &str) -> Vec<T> {
    let snapshot = store.snapshot(resource);
    snapshot.range("", "").filter_map(|stored| serde_json::from_slice(&stored.json).ok()).collect()
}

/// Returns the plan of a level; `None` if it contradicts itself, and counts as missing.
pub(super) fn plan(level: &PriorityLevelConfiguration) -> Option<Plan> {
    let spec = level.spec.as_ref()?;
    let number = |value: Option<i32>, default: u32| value.map_or(default, |n| u32::try_from(n).unwrap_or(0));
    let is_exempt = level.metadata.name.as_deref() == Some(EXEMPT);
    match (&*spec.type_, &spec.exempt, &spec.limited) {
        ("Exempt", exempt, None) if is_exempt => {
            let exempt = exempt.clone().unwrap_or_default();
            let shares = Shares {
                shares: number(exempt.nominal_concurrency_shares, 0),
                lendable: number(exempt.lendable_percent, 0),
                borrowing: None,
            };
            Some(Plan { shares, discipline: Discipline::Exempt })
        }
        ("Limited", None, Some(limited)) if !is_exempt => {
            let shares = Shares {
                shares: number(limited.nominal_concurrency_shares, 30),
                lendable: number(limited.lendable_percent, 0),
                borrowing: limited.borrowing_limit_percent.map(|n| u32::try_from(n).unwrap_or(0)),
            };
            Some(Plan { shares, discipline: discipline(limited)? })
        }
        _ => None,
    }
}

fn discipline(limited: &LimitedPriorityLevelConfiguration) -> Option<Discipline> {
    let response = limited.limit_response.as_ref()?;
    match (&*response.type_, &response.queuing) {
        ("Reject", None) => Some(Discipline::Reject),
        ("Queue", Some(queuing)) => {
            let number = |value: Option<i32>, default: usize| {
                value.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
            };
            let queues = number(queuing.queues, 64);
            let hand = number(queuing.hand_size, 8).min(queues);
            Some(Discipline::Queue(Queuing { queues, hand, length: number(queuing.queue_length_limit, 50) }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::request::Query;

    fn config(more: &[(&str, Value)]) -> Config {
        let objects = |resource: &str| -> Vec<Value> {
            let defaults = flow_defaults().filter(|d| d.resource == resource).map(|d| d.object.clone());
            defaults.chain(more.iter().filter(|(of, _)| *of == resource).map(|(_, o)| o.clone())).collect()
        };
        let decode = |objects: Vec<Value>| serde_json::from_value(objects.into()).unwrap();
        let levels = serde_json::from_value(objects(LEVELS).into()).unwrap();
        Config::new(decode(objects(SCHEMAS)), levels, 1, &Metrics::default())
    }

    /// Returns schema, level and flow of a request.
    fn classify(config: &Config, user: &User, request: &str) -> String {
        let (method, path) = request.split_once(' ').unwrap();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let info = RequestInfo::parse(&method.parse::<Method>().unwrap(), path, &Query::parse(query));
        let schema = config.classify(user, &info).unwrap();
        format!("{} {} {}", schema.name, schema.level, schema.flow(&user.name, &info.namespace))
    }

    #[test]
    fn requests_are_classified_as_upstream() {
        let config = config(&[]);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
        let pods = "GET /api/v1/namespaces/shop/pods";
        let eve = User::new("eve", &[]);
        let node = User::node("n");
        let dns = User::service_account("kube-system", "dns");
        let app = User::service_account("shop", "app");
        let scheduler = User::new("system:kube-scheduler", &[]);
        for (user, request, want) in [
            (&User::admin(), pods, "exempt exempt "),
            (&User::admin(), "GET /metrics", "exempt exempt "),
            (&eve, "GET /livez", "probes exempt "),
            (&eve, "GET /readyz/ping", "probes exempt "),
            (&User::anonymous(), "GET /healthz", "probes exempt "),
            (&eve, "GET /metrics", "global-default global-default eve"),
            (&eve, pods, "global-default global-default eve"),
            (&User::anonymous(), pods, "global-default global-default system:anonymous"),
            (&node, "PATCH /api/v1/nodes/n/status", "system-node-high node-high system:node:n"),
            (&node, &format!("PUT {lease}"), "system-node-high node-high system:node:n"),
            (&node, "GET /api/v1/nodes/n/proxy/x", "system-nodes system system:node:n"),
            (&node, pods, "system-nodes system system:node:n"),
            (&scheduler, pods, "kube-scheduler workload-high shop"),
            (
                &scheduler,
                &format!("PUT {lease}"),
                "system-leader-election leader-election system:kube-scheduler",
            ),
            (&scheduler, &format!("DELETE {lease}"), "kube-scheduler workload-high kube-node-lease"),
            (
                &dns,
                &format!("GET {lease}"),
                "system-leader-election leader-election system:serviceaccount:kube-system:dns",
            ),
            (&dns, "GET /apis", "kube-system-service-accounts workload-high "),
            (&app, pods, "service-accounts workload-low system:serviceaccount:shop:app"),
            (&app, "GET /apis", "service-accounts workload-low system:serviceaccount:shop:app"),
            (&User::default(), pods, "catch-all catch-all "),
        ] {
            assert_eq!(classify(&config, user, request), want, "{} {request}", user.name);
        }
    }

    #[test]
    fn own_schemas_are_matched_by_precedence_and_those_without_a_level_never() {
        let schema = |name: &str, precedence: i32, level: &str, rule: Value| {
            let spec = json!({"matchingPrecedence": precedence, "rules": [rule],
                "priorityLevelConfiguration": {"name": level}});
            (SCHEMAS, json!({"metadata": {"name": name, "uid": format!("{name}-uid")}, "spec": spec}))
        };
        let everyone = json!([{"kind": "User", "user": {"name": "*"}}]);
        let of = |verbs: Value, resources: Value, namespaces: Value| {
            json!({"subjects": everyone, "resourceRules": [
            {"verbs": verbs, "apiGroups": ["apps"], "resources": resources, "namespaces": namespaces}]})
        };
        let account = json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "a", "name": "b"}});
        let config = config(&[
            schema("lists", 50, "system", of(json!(["list"]), json!(["*"]), json!(["a"]))),
            schema("absent", 10, "none", of(json!(["*"]), json!(["*"]), json!(["*"]))),
            schema("b-scales", 40, "system", of(json!(["*"]), json!(["deployments/scale"]), json!(["*"]))),
            schema("a-scales", 40, "system", of(json!(["*"]), json!(["deployments/scale"]), json!(["a"]))),
            schema(
                "one",
                45,
                "system",
                json!({"subjects": [account], "nonResourceRules":
                [{"verbs": ["get"], "nonResourceURLs": ["/apis/*"]}]}),
            ),
        ]);
        let eve = User::new("eve", &[]);
        let apps = "/apis/apps/v1/namespaces";
        let check = |user: &User, request: String, want: &str| {
            let got = classify(&config, user, &request);
            assert_eq!(got.split(' ').next(), Some(want), "{request}");
        };
        check(&eve, format!("GET {apps}/a/deployments"), "lists");
        check(&eve, format!("GET {apps}/b/deployments"), "global-default");
        check(&eve, "GET /apis/apps/v1/deployments".into(), "global-default");
        check(&eve, format!("PUT {apps}/a/deployments/x/scale"), "a-scales");
        check(&eve, format!("PUT {apps}/b/deployments/x/scale"), "b-scales");
        check(&eve, format!("PUT {apps}/a/deployments/x/status"), "global-default");
        check(&User::service_account("a", "b"), "GET /apis/x".into(), "one");
        check(&User::service_account("a", "bb"), "GET /apis/x".into(), "service-accounts");
        let (method, query) = (Method::GET, Query::default());
        let info = RequestInfo::parse(&method, &format!("{apps}/a/deployments"), &query);
        assert_eq!(config.classify(&eve, &info).unwrap().uids[0], "lists-uid");
    }

    #[test]
    fn missing_mandatory_objects_are_as_their_defaults() {
        let config = Config::new(Vec::new(), Vec::new(), 1, &Metrics::default());
        assert_eq!(config.levels.len(), 2);
        assert_eq!(classify(&config, &User::admin(), "GET /apis"), "exempt exempt ");
        assert_eq!(classify(&config, &User::new("eve", &[]), "GET /apis"), "catch-all catch-all eve");
    }

    #[test]
    fn a_level_that_contradicts_itself_is_missing() {
        let check = |name: &str, spec: Value, there: bool| {
            let level = json!({"metadata": {"name": name}, "spec": spec});
            assert_eq!(plan(&serde_json::from_value(level.clone()).unwrap()).is_some(), there, "{level}");
        };
        let limited = json!({"limitResponse": {"type": "Queue", "queuing": {}}});
        check("a", json!({"type": "Limited", "limited": limited}), true);
        check("exempt", json!({"type": "Limited", "limited": limited}), false);
        check("a", json!({"type": "Exempt", "exempt": {}}), false);
        check("a", json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue"}}}), false);
    }
}
