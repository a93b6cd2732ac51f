use k8s_store::{Expect, Meta};
use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn rules() {
    let rule = Rule {
        verbs: vec!["get".into()],
        groups: vec!["".into()],
        resources: vec!["pods".into(), "pods/log".into(), "*/scale".into()],
        names: vec![],
        paths: vec!["/healthz/*".into()],
    };
    let ask = |verb, resource, subresource| {
        rule.allows(&Attributes { verb, resource, subresource, ..Attributes::default() })
    };
    assert!(ask("get", "pods", ""));
    assert!(ask("get", "pods", "log"));
    assert!(ask("get", "things", "scale"));
    assert!(!ask("get", "pods", "exec"));
    assert!(!ask("list", "pods", ""));
    assert!(rule.allows(&Attributes { verb: "get", path: "/healthz/x", ..Attributes::default() }));
    assert!(!rule.allows(&Attributes { verb: "get", path: "/metrics", ..Attributes::default() }));
}

/// Objects of a cluster with few names, so that they meet.
#[derive(Clone, Debug)]
struct Cluster {
    /// Resource, namespace, name, object.
    objects: Vec<(usize, &'static str, &'static str, Value)>,
}

fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(words)
}

fn some_of(words: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(words, 0..=words.len().min(2))
}

const NAMESPACES: &[&str] = &["n1", "n2"];
const NAMES: &[&str] = &["a", "b"];

fn rule() -> impl Strategy<Value = Value> {
    let resource = (
        some_of(&["get", "list", "*"]),
        some_of(&["", "apps", "*"]),
        some_of(&["pods", "pods/log", "*/log", "*", "nodes"]),
        some_of(NAMES),
    )
        .prop_map(|(verbs, groups, resources, names)| {
            json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names})
        });
    let path = (some_of(&["get", "*"]), some_of(&["/a", "/a/*", "*", "/a*"]))
        .prop_map(|(verbs, paths)| json!({"verbs": verbs, "nonResourceURLs": paths}));
    prop_oneof![3 => resource, 1 => path]
}

fn subject() -> impl Strategy<Value = Value> {
    prop_oneof![
        one_of(NAMES).prop_map(|name| json!({"kind": "User", "name": name})),
        one_of(NAMES).prop_map(|name| json!({"kind": "Group", "name": name})),
        (one_of(NAMES), one_of(&["", "n1", "n2"]))
            .prop_map(|(name, at)| json!({"kind": "ServiceAccount", "name": name, "namespace": at})),
    ]
}

fn object() -> impl Strategy<Value = (usize, &'static str, &'static str, Value)> {
    let rules = proptest::collection::vec(rule(), 0..3);
    let subjects = proptest::collection::vec(subject(), 0..3);
    let parts = (0usize..4, one_of(NAMESPACES), one_of(NAMES), rules, subjects, one_of(NAMES), any::<bool>());
    parts.prop_map(|(resource, namespace, name, rules, subjects, role, of_cluster)| {
        let kind = if of_cluster || resource == 1 { "ClusterRole" } else { "Role" };
        let object = match resource {
            0 | 2 => json!({"rules": rules}),
            _ => json!({"subjects": subjects, "roleRef": {"kind": kind, "name": role}}),
        };
        (resource, namespace, name, object)
    })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    proptest::collection::vec(object(), 0..12).prop_map(|objects| Cluster { objects })
}

impl Cluster {
    /// The newest object of a name. Cluster-scoped ones have no namespace.
    fn find(&self, resource: usize, namespace: &str, name: &str) -> Option<&Value> {
        let mine = |o: &&(usize, &str, &str, Value)| {
            o.0 == resource && (resource < 2 || o.1 == namespace) && o.2 == name
        };
        self.objects.iter().rev().find(mine).map(|o| &o.3)
    }

    /// The answer by the definition of RBAC, without any index.
    fn allows(&self, user: &User, a: &Attributes<'_>) -> bool {
        let spaces = if a.path.is_empty() { NAMESPACES } else { &[] };
        let here = spaces.iter().filter(|namespace| **namespace == a.namespace);
        let bindings = NAMES
            .iter()
            .map(|name| (1, "", *name))
            .chain(here.flat_map(|namespace| NAMES.iter().map(|name| (3, *namespace, *name))));
        bindings.into_iter().any(|(resource, namespace, name)| {
            let Some(binding) = self.find(resource, namespace, name) else { return false };
            let subjects = binding["subjects"].as_array().unwrap();
            let role = binding["roleRef"]["name"].as_str().unwrap();
            let role = match binding["roleRef"]["kind"].as_str().unwrap() {
                "Role" => self.find(2, namespace, role),
                _ => self.find(0, "", role),
            };
            subjects.iter().any(|subject| is_subject(user, subject, namespace))
                && role
                    .is_some_and(|role| role["rules"].as_array().unwrap().iter().any(|rule| grants(rule, a)))
        })
    }
}

fn is_subject(user: &User, subject: &Value, namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap();
    match subject["kind"].as_str().unwrap() {
        "User" => user.name == name,
        "Group" => user.groups.iter().any(|group| group == name),
        _ => {
            let own = subject["namespace"].as_str().unwrap();
            let at = if own.is_empty() { namespace } else { own };
            !at.is_empty() && user.name == ["system:serviceaccount", at, name].join(":")
        }
    }
}

fn grants(rule: &Value, a: &Attributes<'_>) -> bool {
    let listed = |field: &str| -> Vec<&str> {
        rule[field].as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
    };
    let lists = |field: &str, value: &str| listed(field).iter().any(|text| *text == "*" || *text == value);
    if !lists("verbs", a.verb) {
        return false;
    }
    if !a.path.is_empty() {
        return listed("nonResourceURLs").iter().any(|url| match url.split_once('*') {
            Some((before, _)) => a.path.starts_with(before),
            None => *url == a.path,
        });
    }
    let full = [a.resource, a.subresource].join("/");
    let resources = if a.subresource.is_empty() {
        lists("resources", a.resource)
    } else {
        lists("resources", &full) || listed("resources").contains(&["*", a.subresource].join("/").as_str())
    };
    let names = listed("resourceNames");
    resources && lists("apiGroups", a.group) && (names.is_empty() || names.contains(&a.name))
}

proptest! {
    #[test]
    fn decisions_are_those_of_a_naive_model(cluster in cluster()) {
        let store = Store::memory();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let rbac = Rbac::default();
        for (resource, namespace, name, object) in &cluster.objects {
            let key = if *resource < 2 { (*name).to_owned() } else { format!("{namespace}/{name}") };
            let there = store.get(RESOURCES[*resource], &key);
            let expect = there.map_or(Expect::Absent, |stored| Expect::Revision(stored.revision));
            let bytes = object.to_string();
            let put = store.put(RESOURCES[*resource], &key, expect, Meta::default(), |_| bytes.into());
            runtime.block_on(put).unwrap();
            // Compiled in between, so that changes must be noticed.
            let _ = rbac.allows(&store, &User::new("a", &[]), &Attributes::default());
        }
        let users = [
            User::new("a", &[]), User::new("b", &["a"]), User::service_account("n1", "a"),
            User::service_account("n2", "b"), User::anonymous(), User::new("c", &["a", "b"]),
        ];
        for user in &users {
            for verb in ["get", "list"] {
                for path in ["/a", "/a/b", "/ab", "/b"] {
                    let wanted = Attributes { verb, path, ..Attributes::default() };
                    prop_assert_eq!(rbac.allows(&store, user, &wanted), cluster.allows(user, &wanted), "{} {:?}", user.name, wanted);
                }
                for (group, resource, subresource) in
                    [("", "pods", ""), ("", "pods", "log"), ("apps", "pods", ""), ("", "nodes", "log"), ("", "nodes", "")]
                {
                    for namespace in ["", "n1", "n2", "n3"] {
                        for name in ["", "a", "c"] {
                            let wanted = Attributes { verb, group, resource, subresource, namespace, name, ..Attributes::default() };
                            let allowed = rbac.allows(&store, user, &wanted);
                            prop_assert_eq!(allowed, cluster.allows(user, &wanted), "{} {:?}", user.name, wanted);
                            let told = rbac.reason(&store, user, &wanted);
                            prop_assert_eq!(told.is_ok_and(|why| why.starts_with("RBAC: allowed by ")), allowed);
                        }
                    }
                }
            }
        }
    }
}
