//! The plan against the model, with random objects that come, change and go.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_core::{
    api::api::networking::v1::NetworkPolicy,
    meta::{ObjectExt, ObjectKey},
};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use super::{
    elements::Delta,
    facts::PodFacts,
    model::{Model, ModelPod},
    parse::{self, parse},
    plan::Plan,
    ports::NamedPort,
};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const OUTSIDE: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(10, 42, 0, 200)];

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let pair = (select(vec!["app", "tier"]), select(vec!["a", "b", "c"]));
    prop::collection::btree_map(pair.0.prop_map(str::to_owned), pair.1.prop_map(str::to_owned), 0..3)
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => Just(json!({})),
        3 => labels().prop_map(|labels| json!({"matchLabels": labels})),
        1 => (select(vec!["app", "tier"]), select(vec!["In", "NotIn"]), select(vec!["a", "b"]))
            .prop_map(|(key, operator, value)| json!({"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]})),
        1 => select(vec!["Exists", "DoesNotExist"])
            .prop_map(|operator| json!({"matchExpressions": [{"key": "app", "operator": operator}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let block = select(vec![
        json!({"cidr": "0.0.0.0/0"}),
        json!({"cidr": "0.0.0.0/0", "except": ["10.42.0.0/16", "192.0.2.0/24"]}),
        json!({"cidr": "10.42.0.0/29", "except": ["10.42.0.3/32"]}),
        json!({"cidr": "192.0.2.0/24"}),
        json!({"cidr": "2001:db8::/32"}),
    ]);
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector())
            .prop_map(|(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})),
        block.prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    select(vec![
        json!({"port": 80}),
        json!({"port": 81, "protocol": "UDP"}),
        json!({"port": 80, "endPort": 82, "protocol": "UDP"}),
        json!({"port": 81, "endPort": 65535}),
        json!({"protocol": "SCTP"}),
        json!({"port": "web"}),
        json!({"port": "web", "protocol": "UDP"}),
        json!({"port": "none"}),
        json!({"port": 80, "protocol": "TCP"}),
    ])
}

fn rules(side: &'static str) -> impl Strategy<Value = Value> {
    let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
    let rule = rule.prop_map(move |(peers, ports)| json!({side: peers, "ports": ports}));
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn policy() -> impl Strategy<Value = Value> {
    let types =
        select(vec![json!(null), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    (selector(), types, rules("from"), rules("to")).prop_map(|(pods, types, ingress, egress)| {
        json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress})
    })
}

#[derive(Clone, Debug)]
enum Step {
    Namespace(usize, Option<BTreeMap<String, String>>),
    /// Number, namespace, labels, port of the name `web`, local, address.
    Pod(u8, usize, BTreeMap<String, String>, u16, bool, u8),
    NoPod(u8, usize),
    Policy(u8, usize, Value),
    NoPolicy(u8, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..3usize, prop::option::weighted(0.9, labels())).prop_map(|(n, labels)| Step::Namespace(n, labels)),
        4 => (0..4u8, 0..3usize, labels(), 80..82u16, prop::bool::weighted(0.8), 0..2u8)
            .prop_map(|(number, n, labels, web, local, a)| Step::Pod(number, n, labels, web, local, a)),
        1 => (0..4u8, 0..3usize).prop_map(|(number, n)| Step::NoPod(number, n)),
        4 => (0..3u8, 0..3usize, policy()).prop_map(|(number, n, spec)| Step::Policy(number, n, spec)),
        1 => (0..3u8, 0..3usize).prop_map(|(number, n)| Step::NoPolicy(number, n)),
    ]
}

#[derive(Default)]
struct Both {
    plan: Plan,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: BTreeMap<ObjectKey, PodFacts>,
    policies: BTreeMap<ObjectKey, NetworkPolicy>,
}

impl Both {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Namespace(n, labels) => {
                self.plan.set_namespace(NAMESPACES[n], labels.clone());
                match labels {
                    Some(labels) => self.namespaces.insert(NAMESPACES[n].into(), labels),
                    None => self.namespaces.remove(NAMESPACES[n]),
                };
            }
            Step::Pod(number, n, labels, web, is_local, other) => {
                let key = ObjectKey::new(NAMESPACES[n], &format!("p{number}"));
                let place = u8::try_from(n).expect("small") * 8 + number * 2 + other;
                let port = |protocol| NamedPort { protocol, name: "web".into(), port: web };
                let facts = PodFacts {
                    labels,
                    addresses: vec![Ipv4Addr::new(10, 42, 0, place)],
                    ports: vec![port(6), port(17)],
                    is_local,
                };
                self.plan.set_pod(&key, Some(facts.clone()));
                self.pods.insert(key, facts);
            }
            Step::NoPod(number, n) => {
                let key = ObjectKey::new(NAMESPACES[n], &format!("p{number}"));
                self.plan.set_pod(&key, None);
                self.pods.remove(&key);
            }
            Step::Policy(number, n, spec) => {
                let object = json!({"metadata": {"name": format!("n{number}"), "namespace": NAMESPACES[n]}, "spec": spec});
                let object: NetworkPolicy = serde_json::from_value(object).expect("policy");
                let parsed = parse(&object);
                assert_eq!(parsed.problems, Vec::<String>::new());
                self.plan.set_policy(&object.key(), Some(parsed));
                self.policies.insert(object.key(), object);
            }
            Step::NoPolicy(number, n) => {
                let key = ObjectKey::new(NAMESPACES[n], &format!("n{number}"));
                self.plan.set_policy(&key, None);
                self.policies.remove(&key);
            }
        }
    }

    fn model(&self) -> Model {
        let pods = self
            .pods
            .iter()
            .map(|(key, facts)| ModelPod { namespace: key.namespace.clone(), facts: facts.clone() });
        Model {
            namespaces: self.namespaces.clone(),
            pods: pods.collect(),
            policies: self.policies.values().cloned().collect(),
        }
    }
}

fn apply(table: &mut BTreeMap<super::elements::Key, u32>, delta: Delta) {
    for (key, value) in delta.remove {
        assert_eq!(table.remove(&key), Some(value), "{key:?} is removed, but was not there");
    }
    for (key, value) in delta.add {
        assert_eq!(table.insert(key, value), None, "{key:?} is added, but was there");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    #[test]
    fn the_plan_allows_what_the_model_does(steps in prop::collection::vec(step(), 1..40)) {
        let mut both = Both::default();
        let mut table = BTreeMap::new();
        for step in steps {
            both.apply(step);
            apply(&mut table, both.plan.take_delta());
        }
        let model = both.model();
        let mut addresses: Vec<Ipv4Addr> = both.pods.values().flat_map(|f| f.addresses.clone()).collect();
        addresses.extend(OUTSIDE);
        for (from, to) in addresses.iter().flat_map(|from| addresses.iter().map(move |to| (*from, *to))) {
            for (protocol, port) in [(6, 80), (6, 81), (6, 82), (17, 80), (17, 81), (17, 82), (132, 9), (1, 0)] {
                // ICMP has no ports.
                let want = model.allows(from, to, protocol, port);
                prop_assert_eq!(both.plan.allows(from, to, protocol, port), want, "{} to {}:{} ({})", from, to, port, protocol);
            }
        }
        // The kernel was told the same as a new table gets, and nothing is left when all is gone.
        prop_assert_eq!(&table, &both.plan.take_all().add.into_iter().collect());
        for key in both.policies.keys() {
            both.plan.set_policy(key, None);
        }
        prop_assert_eq!(both.plan.len(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    /// With a small budget never more is allowed than without; namespaces that are open have all of it.
    #[test]
    fn a_budget_closes_whole_namespaces(steps in prop::collection::vec(step(), 1..40), most in 5usize..60) {
        let mut both = Both { plan: Plan::with_most(most), ..Both::default() };
        let mut table = BTreeMap::new();
        for step in steps {
            both.apply(step);
            both.plan.reopen();
            apply(&mut table, both.plan.take_delta());
            let allows_nothing = |policy: &NetworkPolicy| {
                let parsed = parse(policy);
                parsed.ingress.iter().chain(&parsed.egress).all(Vec::is_empty)
            };
            let mut all = both.policies.values();
            let all_closed = all.all(|p| both.plan.is_closed(p.namespace()) || allows_nothing(p));
            prop_assert!(both.plan.len() <= most || all_closed, "{} elements", both.plan.len());
        }
        let model = both.model();
        let owner = |address| both.pods.iter().find(|(_, f)| f.addresses.contains(&address)).map(|(key, _)| key);
        let is_closed = |address| owner(address).is_some_and(|key| both.plan.is_closed(&key.namespace));
        let mut addresses: Vec<Ipv4Addr> = both.pods.values().flat_map(|f| f.addresses.clone()).collect();
        addresses.extend(OUTSIDE);
        for (from, to) in addresses.iter().flat_map(|from| addresses.iter().map(move |to| (*from, *to))) {
            for (protocol, port) in [(6, 80), (6, 81), (17, 80), (17, 81), (132, 9), (1, 0)] {
                let (got, want) =
                    (both.plan.allows(from, to, protocol, port), model.allows(from, to, protocol, port));
                let closed = is_closed(from) || is_closed(to);
                prop_assert!(got == want || closed && !got, "{} to {}:{} ({})", from, to, port, protocol);
            }
        }
        prop_assert_eq!(&table, &both.plan.take_all().add.into_iter().collect());
        for key in both.policies.keys() {
            both.plan.set_policy(key, None);
        }
        both.plan.reopen();
        prop_assert_eq!(both.plan.len(), 0);
        prop_assert!(!NAMESPACES.iter().any(|name| both.plan.is_closed(name)));
    }
}

/// Local pod of a namespace, of which the number is a part of its address.
fn local(plan: &mut Plan, namespace: &str, number: u8) -> Ipv4Addr {
    let address = Ipv4Addr::new(10, 42, namespace.as_bytes()[0], number);
    let facts = PodFacts {
        labels: [("number".to_owned(), number.to_string())].into(),
        addresses: vec![address],
        ports: Vec::new(),
        is_local: true,
    };
    plan.set_pod(&ObjectKey::new(namespace, &format!("p{number}")), Some(facts));
    address
}

fn set(plan: &mut Plan, namespace: &str, name: &str, spec: Value) {
    let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    let object: NetworkPolicy = serde_json::from_value(object).expect("policy");
    plan.set_policy(&object.key(), Some(parse(&object)));
}

fn block(n: u32) -> Value {
    json!({"ipBlock": {"cidr": format!("{}/32", Ipv4Addr::from(0xc633_0000 + 2 * n))}})
}

/// Many blocks, and for each pod a policy of another port: the product is more than the kernel takes.
#[test]
fn a_namespace_with_too_many_elements_is_closed_alone() {
    let mut plan = Plan::with_most(60_000);
    let outside = Ipv4Addr::from(0xc633_0000);
    let good = local(&mut plan, "good", 1);
    let everyone_on_80 = json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 80}]}]);
    set(&mut plan, "good", "n", json!({"podSelector": {}, "ingress": everyone_on_80}));
    let bad: Vec<_> = (1..=6).map(|number| local(&mut plan, "bad", number)).collect();
    for number in 1..=6 {
        let ports = json!([{"ports": [{"port": 1000 + number}]}]);
        let selector = json!({"matchLabels": {"number": number.to_string()}});
        set(&mut plan, "bad", &format!("n{number}"), json!({"podSelector": selector, "ingress": ports}));
    }
    plan.reopen();
    assert!(!plan.is_closed("bad") && plan.allows(outside, bad[0], 6, 1001));
    let blocks: Vec<Value> = (0..9000).map(block).collect();
    set(&mut plan, "bad", "blocks", json!({"podSelector": {}, "ingress": [{"from": blocks}]}));
    plan.reopen();
    assert!(plan.len() <= plan.most(), "{}", plan.len());
    assert!(plan.is_closed("bad") && !plan.is_closed("good"));
    assert!(bad.iter().all(|pod| !plan.allows(outside, *pod, 6, 1001) && plan.isolated().any(|a| a == *pod)));
    assert!(plan.allows(outside, good, 6, 80) && !plan.allows(outside, good, 6, 81));
    // Of the closed namespace the heaviest policy is told.
    assert_eq!(plan.take_turned(), [ObjectKey::new("bad", "blocks")]);
    // A later change of it does not open it, and a smaller policy does.
    set(&mut plan, "bad", "more", json!({"podSelector": {}, "ingress": [{"from": [block(1)]}]}));
    plan.reopen();
    assert!(plan.is_closed("bad"));
    set(&mut plan, "bad", "blocks", json!({"podSelector": {}, "ingress": [{"from": [block(0)]}]}));
    plan.reopen();
    assert!(!plan.is_closed("bad") && plan.allows(outside, bad[0], 6, 9));
    assert_eq!(plan.take_turned().len(), 8);
}

#[test]
fn parts_of_a_policy_beyond_a_limit_allow_nothing_and_are_told() {
    let most = u32::try_from(parse::MOST_PARTS).expect("small");
    let read = |spec: Value| {
        let object = json!({"metadata": {"name": "n", "namespace": "x"}, "spec": spec});
        parse(&serde_json::from_value(object).expect("policy"))
    };
    let peers = |parsed: &parse::Parsed| -> Vec<usize> {
        let rules = parsed.ingress.iter().flatten();
        rules.map(|rule| rule.peers.as_ref().map_or(usize::MAX, Vec::len)).collect()
    };
    let blocks = |number: u32| (0..number).map(block).collect::<Vec<_>>();
    let fits = read(json!({"ingress": [{"from": blocks(most)}]}));
    assert_eq!((peers(&fits), fits.problems), (vec![parse::MOST_PARTS], Vec::new()));
    let more =
        read(json!({"ingress": [{"from": blocks(most + 5)}, {"from": [block(0)], "ports": [{"port": 80}]}]}));
    // Without its ports and peers the second rule allows nothing, not everything.
    assert_eq!(peers(&more), [parse::MOST_PARTS, 0]);
    assert!(more.ingress.iter().flatten().nth(1).is_some_and(|rule| rule.ports.set.is_empty()));
    assert_eq!(
        more.problems[0],
        "spec.ingress[0].from[10000]: a policy has at most 10000 peers, exceptions and ports, and what follows \
         is left out"
    );
    assert_eq!(more.problems.len(), 1, "it is told once: {:?}", more.problems);
    // A block is never read without one of its exceptions.
    let except: Vec<String> = (0..most).map(|n| format!("{}/32", Ipv4Addr::from(0x0a00_0000 + n))).collect();
    let excepted =
        read(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": except}}]}]}));
    assert_eq!((peers(&excepted), excepted.problems.len()), (vec![0], 1));
}

#[test]
fn what_cannot_be_read_isolates_and_is_told() {
    let check = |spec: Value, ingress: bool, egress: bool, problems: &[&str]| {
        let object = json!({"metadata": {"name": "n", "namespace": "x"}, "spec": spec});
        let parsed = parse(&serde_json::from_value(object).expect("policy"));
        assert_eq!((parsed.ingress.is_some(), parsed.egress.is_some()), (ingress, egress), "{spec}");
        assert_eq!(parsed.problems, problems, "{spec}");
    };
    let from = |peer: Value| json!({"podSelector": {}, "ingress": [{"from": [peer]}]});
    let ports = |port: Value| json!({"podSelector": {}, "egress": [{"ports": [port]}]});
    check(json!({}), true, false, &[]);
    check(
        from(json!({"ipBlock": {"cidr": "10.0.0.0/33"}})),
        true,
        false,
        &["spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\" is not an address range such as 10.0.0.0/8"],
    );
    check(from(json!({})), true, false, &["spec.ingress[0].from[0]: it names no peer"]);
    check(
        ports(json!({"port": 80, "endPort": 79})),
        true,
        true,
        &["spec.egress[0].ports[0].endPort: 79 is below port 80"],
    );
    check(
        ports(json!({"port": "web", "endPort": 80})),
        true,
        true,
        &["spec.egress[0].ports[0].endPort: it needs a numeric port"],
    );
    check(
        ports(json!({"port": 70000})),
        true,
        true,
        &["spec.egress[0].ports[0].port: 70000 is not between 1 and 65535"],
    );
    check(
        ports(json!({"protocol": "ICMP"})),
        true,
        true,
        &["spec.egress[0].ports[0].protocol: \"ICMP\" is not TCP, UDP or SCTP"],
    );
    check(
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]}}),
        true,
        false,
        &["spec.podSelector: \"Like\" is not a valid label selector operator"],
    );
}

#[test]
fn a_new_holder_takes_an_address_from_the_former_pod() {
    let mut plan = Plan::default();
    let address = Ipv4Addr::new(10, 42, 0, 2);
    let facts = |app: &str| PodFacts {
        labels: [("app".to_owned(), app.to_owned())].into(),
        addresses: vec![address],
        ports: Vec::new(),
        is_local: true,
    };
    let object = json!({"metadata": {"name": "n", "namespace": "x"}, "spec": {"podSelector": {"matchLabels": {"app": "closed"}}}});
    let object: NetworkPolicy = serde_json::from_value(object).expect("policy");
    plan.set_policy(&object.key(), Some(parse(&object)));
    let (old, new) = (ObjectKey::new("x", "old"), ObjectKey::new("x", "new"));
    plan.set_pod(&old, Some(facts("open")));
    assert_eq!(plan.isolated().next(), None);
    plan.set_pod(&new, Some(facts("closed")));
    assert_eq!(plan.isolated().next(), Some(address));
    // The former pod is told of late: it does not get the address back.
    plan.set_pod(&old, Some(PodFacts { labels: BTreeMap::new(), ..facts("open") }));
    assert_eq!(plan.isolated().next(), Some(address));
    plan.set_pod(&new, None);
    assert_eq!(plan.isolated().next(), None);
}

#[test]
fn names_of_ports_that_no_selected_pod_has_are_told() {
    let mut plan = Plan::default();
    let ports =
        json!([{"port": "web"}, {"port": "web", "protocol": "UDP"}, {"port": "metrics"}, {"port": 80}]);
    let object = json!({"metadata": {"name": "n", "namespace": "x"}, "spec": {"podSelector": {}, "ingress": [{"ports": ports}]}});
    let object: NetworkPolicy = serde_json::from_value(object).expect("policy");
    plan.set_policy(&object.key(), Some(parse(&object)));
    assert!(plan.unknown_ports(&object.key()).is_empty(), "it selects no pod");
    let port = |protocol| NamedPort { protocol, name: "web".into(), port: 80 };
    let facts = PodFacts { ports: vec![port(6), port(17)], is_local: true, ..PodFacts::default() };
    plan.set_pod(&ObjectKey::new("x", "p"), Some(facts));
    assert_eq!(plan.unknown_ports(&object.key()), ["metrics".to_owned()].into());
}
