//! Policies for the reachability test: each case is a set of policies over three namespaces (`x`, `y`, `z`)
//! of three pods (`a`, `b`, `c`). The kinds of case are those of upstream's tests.

use serde_json::{Value, json};

/// A policy: namespace and `spec`.
pub(super) type Case = (&'static str, Vec<(&'static str, Value)>);

fn pod(name: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"pod": name}}})
}

fn of(namespace: &str) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"ns": namespace}}})
}

fn both(namespace: &str, name: &str) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"ns": namespace}}, "podSelector": {"matchLabels": {"pod": name}}})
}

fn block(range: &str, except: &[&str]) -> Value {
    json!({"ipBlock": {"cidr": range, "except": except}})
}

fn ingress(selector: Value, from: Value, ports: Value) -> Value {
    json!({"podSelector": selector, "policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]})
}

fn egress(selector: Value, to: Value, ports: Value) -> Value {
    json!({"podSelector": selector, "policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}]})
}

pub(super) fn all() -> Vec<Case> {
    let (every, a) = (json!({}), json!({"matchLabels": {"pod": "a"}}));
    let not_a = json!({"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a"]}]});
    let a_or_b = json!({"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "b"]}]});
    let none = json!([]);
    let deny = |types: Value| json!({"podSelector": {}, "policyTypes": types});
    let tcp80 = json!([{"port": 80}]);
    let udp81 = json!([{"port": 81, "protocol": "UDP"}]);
    let named = json!([{"port": "serve-80"}]);
    let (deny_in, deny_out) = (deny(json!(["Ingress"])), deny(json!(["Egress"])));
    let allow_x = |spec: Value| vec![("x", spec)];
    vec![
        ("no policy", vec![]),
        ("deny all ingress of a namespace", allow_x(deny_in.clone())),
        ("deny all egress of a namespace", allow_x(deny_out.clone())),
        ("deny both", allow_x(deny(json!(["Ingress", "Egress"])))),
        (
            "deny everything everywhere",
            ["x", "y", "z"].map(|ns| (ns, deny(json!(["Ingress", "Egress"])))).into(),
        ),
        ("a policy without types isolates for ingress", allow_x(json!({"podSelector": {}}))),
        (
            "without types, with egress rules",
            allow_x(json!({"podSelector": a, "egress": [{"to": [pod("b")]}]})),
        ),
        ("allow all ingress", allow_x(ingress(every.clone(), none.clone(), none.clone()))),
        ("allow all egress", allow_x(egress(every.clone(), none.clone(), none.clone()))),
        (
            "from pods of the own namespace",
            allow_x(ingress(every.clone(), json!([{"podSelector": {}}]), none.clone())),
        ),
        ("from a pod of the own namespace", allow_x(ingress(a.clone(), json!([pod("b")]), none.clone()))),
        ("from another namespace", allow_x(ingress(a.clone(), json!([of("y")]), none.clone()))),
        (
            "from all namespaces",
            allow_x(ingress(a.clone(), json!([{"namespaceSelector": {}}]), none.clone())),
        ),
        (
            "from a pod of another namespace",
            allow_x(ingress(a.clone(), json!([both("y", "a")]), none.clone())),
        ),
        (
            "from pods of all namespaces",
            allow_x(ingress(
                a.clone(),
                json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}]),
                none.clone(),
            )),
        ),
        (
            "namespace or pod, two peers",
            allow_x(ingress(a.clone(), json!([of("y"), pod("c")]), none.clone())),
        ),
        (
            "namespaces by expression",
            allow_x(ingress(
                every.clone(),
                json!([{"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x", "y"]}]}}]),
                none.clone(),
            )),
        ),
        (
            "namespace by its name",
            allow_x(ingress(
                every.clone(),
                json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "z"}}}]),
                none.clone(),
            )),
        ),
        (
            "pods by expression",
            allow_x(ingress(a_or_b.clone(), json!([{"podSelector": not_a}]), none.clone())),
        ),
        ("selected by what they are not", allow_x(ingress(not_a.clone(), json!([pod("a")]), none.clone()))),
        ("one port", allow_x(ingress(a.clone(), none.clone(), tcp80.clone()))),
        ("one UDP port from one namespace", allow_x(ingress(a.clone(), json!([of("y")]), udp81.clone()))),
        ("two ports", allow_x(ingress(a.clone(), json!([of("z")]), json!([{"port": 80}, {"port": 81}])))),
        (
            "a protocol without a port",
            allow_x(ingress(every.clone(), none.clone(), json!([{"protocol": "UDP"}]))),
        ),
        (
            "a range of ports",
            allow_x(ingress(
                every.clone(),
                none.clone(),
                json!([{"port": 70, "endPort": 80}, {"port": 80, "endPort": 90, "protocol": "UDP"}]),
            )),
        ),
        ("a named port", allow_x(ingress(a.clone(), json!([of("y")]), named.clone()))),
        ("a name that no pod has", allow_x(ingress(a.clone(), none.clone(), json!([{"port": "nothing"}])))),
        (
            "a name and a number",
            allow_x(ingress(a.clone(), none.clone(), json!([{"port": "nothing"}, {"port": 81}]))),
        ),
        (
            "two rules",
            allow_x(
                json!({"podSelector": a, "ingress": [{"from": [of("y")], "ports": tcp80}, {"from": [of("z")], "ports": udp81}]}),
            ),
        ),
        (
            "two policies of one pod",
            vec![
                ("x", ingress(a.clone(), json!([of("y")]), tcp80.clone())),
                ("x", ingress(a.clone(), json!([of("z")]), udp81.clone())),
            ],
        ),
        (
            "allow all beside deny all",
            vec![("x", deny_in.clone()), ("x", ingress(every.clone(), none.clone(), none.clone()))],
        ),
        ("to one pod", allow_x(egress(a.clone(), json!([both("y", "b")]), none.clone()))),
        ("to one namespace on one port", allow_x(egress(every.clone(), json!([of("y")]), tcp80.clone()))),
        ("to a named port", allow_x(egress(a.clone(), none.clone(), named.clone()))),
        ("to a named port of one namespace", allow_x(egress(a.clone(), json!([of("z")]), named))),
        (
            "egress of one, ingress of the other",
            vec![
                ("x", egress(a.clone(), json!([of("y")]), none.clone())),
                ("y", ingress(a.clone(), json!([of("x")]), tcp80.clone())),
            ],
        ),
        (
            "egress allows what ingress denies",
            vec![("x", egress(every.clone(), none.clone(), none.clone())), ("y", deny_in.clone())],
        ),
        (
            "ingress allows what egress denies",
            vec![("x", deny_out.clone()), ("y", ingress(every.clone(), none.clone(), none.clone()))],
        ),
        (
            "from an address block",
            allow_x(ingress(every.clone(), json!([block("192.0.2.0/24", &[])]), none.clone())),
        ),
        (
            "from everywhere but the pods",
            allow_x(ingress(every.clone(), json!([block("0.0.0.0/0", &["10.42.0.0/16"])]), none.clone())),
        ),
        (
            "from some pods by address",
            allow_x(ingress(every.clone(), json!([block("10.42.0.0/29", &["10.42.0.4/31"])]), tcp80.clone())),
        ),
        (
            "to an address outside",
            allow_x(egress(every.clone(), json!([block("192.0.2.1/32", &[])]), none.clone())),
        ),
        (
            "to everywhere but outside",
            allow_x(egress(a.clone(), json!([block("0.0.0.0/0", &["192.0.2.0/24"])]), none.clone())),
        ),
        (
            "blocks that overlap",
            allow_x(ingress(
                every.clone(),
                json!([block("10.42.0.0/16", &["10.42.0.0/30"]), block("10.42.0.2/32", &[])]),
                none.clone(),
            )),
        ),
        (
            "address blocks and selectors",
            allow_x(ingress(every.clone(), json!([block("192.0.2.0/24", &[]), of("z")]), tcp80)),
        ),
        ("an IPv6 block", allow_x(ingress(every, json!([block("2001:db8::/32", &[])]), none))),
    ]
}
