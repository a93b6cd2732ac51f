//! Services. The module `allocate` gives them addresses and node ports.

use std::{collections::HashSet, net::IpAddr};

use serde_json::{Value, json};

use super::{
    BASE, NameRule, Proxied, Strategy,
    rule::{At, Check, Rule, check as check_rules, parse_cidr},
};
use crate::{
    invalid::{FieldErrors, names},
    value::{array_at, child, default, default_text, int_at, object_at, str_at},
};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// Defaults and validation of Services.
pub static STRATEGY: Strategy = Strategy {
    allow_create_on_update: true,
    allocates: true,
    proxied: Some(Proxied::Service),
    name: NameRule::Label,
    returns_deleted: true,
    default: default_service,
    create: |service| service["status"] = json!({"loadBalancer": {}}),
    update: |new, old| {
        drop_fields_of_the_old_type(new, old);
        keep_allocated(new, old);
    },
    validate: check,
    validate_update: |new, old, errors| {
        let (now, before) = (str_at(new, "/spec/clusterIP"), str_at(old, "/spec/clusterIP"));
        let stays =
            str_at(new, "/spec/type") != "ExternalName" && str_at(old, "/spec/type") != "ExternalName";
        if stays && !before.is_empty() && now != before {
            let value = if now.is_empty() { json!([]) } else { json!([now]) };
            errors.invalid("spec.clusterIPs[0]", value, "may not change once set");
        }
        let port = |service: &Value| int_at(service, "/spec/healthCheckNodePort").filter(|port| *port != 0);
        if has_health_port(new) && has_health_port(old) && port(old).is_some() && port(new) != port(old) {
            errors.forbidden("spec.healthCheckNodePort", "field is immutable");
        }
    },
    ..BASE
};

const NODE_PORT_TYPES: [&str; 2] = ["NodePort", "LoadBalancer"];

/// Returns true if external traffic can reach a Service, so that it has an external traffic policy.
fn is_external(service: &Value) -> bool {
    NODE_PORT_TYPES.contains(&str_at(service, "/spec/type"))
        || !array_at(service, "/spec/externalIPs").is_empty()
}

/// Returns true if a Service has a health check node port.
fn has_health_port(service: &Value) -> bool {
    str_at(service, "/spec/type") == "LoadBalancer"
        && str_at(service, "/spec/externalTrafficPolicy") == "Local"
}

/// A type-dependent field of the spec, and the condition under which a Service may have it.
type Dependent = (&'static [&'static str], fn(&Value) -> bool);

/// Fields of the spec that depend on the Service's type. Fields of one row are dropped together, and only if
/// none was changed.
const DEPENDENT: &[Dependent] = &[
    (&["clusterIP", "clusterIPs"], |s| str_at(s, "/spec/type") != "ExternalName"),
    (&["ipFamilies"], |s| str_at(s, "/spec/type") != "ExternalName"),
    (&["ipFamilyPolicy"], |s| str_at(s, "/spec/type") != "ExternalName"),
    (&["healthCheckNodePort"], has_health_port),
    (&["allocateLoadBalancerNodePorts"], |s| str_at(s, "/spec/type") == "LoadBalancer"),
    (&["loadBalancerClass"], |s| str_at(s, "/spec/type") == "LoadBalancer"),
    (&["externalTrafficPolicy"], is_external),
];

/// Drops unchanged fields of the old type after a type change (upstream's `dropTypeDependentFields`). Fields
/// that the user changed stay, and are rejected by validation.
fn drop_fields_of_the_old_type(new: &mut Value, old: &Value) {
    let gone: Vec<&str> = DEPENDENT
        .iter()
        .filter(|(fields, may_have)| {
            let same = |f: &&str| new.pointer(&format!("/spec/{f}")) == old.pointer(&format!("/spec/{f}"));
            may_have(old) && !may_have(new) && fields.iter().all(same)
        })
        .flat_map(|(fields, _)| fields.iter().copied())
        .collect();
    let had: HashSet<i64> =
        array_at(old, "/spec/ports").iter().filter_map(|p| int_at(p, "/nodePort")).collect();
    let loses_ports = NODE_PORT_TYPES.contains(&str_at(old, "/spec/type"))
        && !NODE_PORT_TYPES.contains(&str_at(new, "/spec/type"))
        && array_at(new, "/spec/ports")
            .iter()
            .filter_map(|p| int_at(p, "/nodePort"))
            .all(|p| had.contains(&p));
    let balanced = str_at(new, "/spec/type") == "LoadBalancer";
    if let Some(spec) = child(new, "spec").and_then(Value::as_object_mut) {
        spec.retain(|field, _| !gone.contains(&field.as_str()));
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut).filter(|_| loses_ports);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    if let Some(status) = new.get_mut("status").filter(|_| !balanced) {
        status["loadBalancer"] = json!({});
    }
}

/// Keeps allocated addresses and node ports that an update omits.
fn keep_allocated(new: &mut Value, old: &Value) {
    if str_at(new, "/spec/type") == "ExternalName" {
        return;
    }
    let kept: Vec<(&str, Value)> = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]
        .into_iter()
        .chain(has_health_port(new).then_some("healthCheckNodePort"))
        .filter_map(|f| Some((f, old.pointer(&format!("/spec/{f}"))?.clone())))
        .collect();
    let node_ports = NODE_PORT_TYPES.contains(&str_at(new, "/spec/type"));
    let old_ports = array_at(old, "/spec/ports").to_vec();
    let Some(spec) = child(new, "spec") else { return };
    for (field, value) in kept {
        if field == "clusterIPs"
            && str_at(spec, "/clusterIP") != value.pointer("/0").and_then(Value::as_str).unwrap_or_default()
        {
            continue;
        }
        default(spec, field, value);
    }
    if !node_ports {
        return;
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = |o: &&Value| {
            int_at(o, "/port") == int_at(port, "/port") && str_at(o, "/protocol") == str_at(port, "/protocol")
        };
        if let Some(node_port) = old_ports.iter().find(same).and_then(|o| o.get("nodePort")).cloned() {
            default(port, "nodePort", node_port);
        }
    }
}

fn default_service(service: &mut Value) {
    let Some(spec) = child(service, "spec") else { return };
    default_text(spec, "sessionAffinity", "None");
    default_text(spec, "type", "ClusterIP");
    if str_at(spec, "/sessionAffinity") == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    if str_at(spec, "/sessionAffinity") == "None"
        && let Some(map) = spec.as_object_mut()
    {
        map.remove("sessionAffinityConfig");
    }
    let kind = str_at(spec, "/type").to_owned();
    let named_ip = str_at(spec, "/clusterIP").to_owned();
    if !named_ip.is_empty() {
        default(spec, "clusterIPs", json!([named_ip]));
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default_text(port, "protocol", "TCP");
        if port.get("targetPort").is_none_or(|t| t == "" || t == 0)
            && let Some(number) = port.get("port").cloned()
        {
            port["targetPort"] = number;
        }
        if int_at(port, "/nodePort") == Some(0)
            && let Some(map) = port.as_object_mut()
        {
            map.remove("nodePort");
        }
    }
    if kind == "ExternalName" {
        return;
    }
    default_text(spec, "internalTrafficPolicy", "Cluster");
    if kind == "NodePort" || kind == "LoadBalancer" {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    default(spec, "ipFamilies", json!(["IPv4"]));
    default_text(spec, "ipFamilyPolicy", "SingleStack");
}

const POLICIES: &[Check] = &[Check::OneOf(&["Cluster", "Local"])];

const RULES: &[Rule] = &[
    Rule(
        "spec.externalIPs[*]",
        &[
            Check::Ip,
            Check::Is(|at, errors| {
                if let Ok(ip) = at.as_text().parse() {
                    super::network::check_endpoint_ip(at, ip, errors);
                }
            }),
        ],
    ),
    Rule("spec.ports[*].nodePort", &[Check::Between(0, 65535)]),
    Rule("spec.healthCheckNodePort", &[Check::Between(0, 65535)]),
    Rule("spec.ports[*].appProtocol", &[Check::Qualified]),
    Rule(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        &[Check::Is(|at, errors| {
            if at.value.as_i64().is_some_and(|n| !(1..=86400).contains(&n)) {
                at.invalid(errors, "must be greater than 0 and less than 86400");
            }
        })],
    ),
    Rule("spec.internalTrafficPolicy", POLICIES),
    Rule("spec.externalTrafficPolicy", POLICIES),
    Rule("spec.ipFamilyPolicy", &[Check::OneOf(&["PreferDualStack", "RequireDualStack", "SingleStack"])]),
    Rule("spec.ipFamilies", &[Check::Most(2), Check::Unique]),
    Rule("spec.ipFamilies[*]", &[Check::OneOf(&["IPv4", "IPv6"])]),
    Rule("spec.trafficDistribution", &[Check::OneOf(&["PreferClose", "PreferSameNode", "PreferSameZone"])]),
    Rule("spec.loadBalancerClass", &[Check::Qualified]),
    Rule(
        "spec.loadBalancerSourceRanges[*]",
        &[Check::Is(|at, errors| {
            if parse_cidr(at.as_text().trim()).is_none() {
                at.invalid(errors, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
            }
        })],
    ),
];

/// Validates fields that depend on the type.
fn check_type(service: &Value, errors: &mut FieldErrors) {
    let root = At::root(service, "");
    let spec = root.field("spec");
    let (kind, there) = (spec.text("type"), |field: &str| spec.field(field).is_set());
    if kind != "LoadBalancer" {
        for field in ["loadBalancerSourceRanges", "loadBalancerClass", "allocateLoadBalancerNodePorts"] {
            if there(field) {
                errors.forbidden(spec.field(field), "may only be used when `type` is 'LoadBalancer'");
            }
        }
    }
    if there("externalTrafficPolicy") && !is_external(service) {
        spec.field("externalTrafficPolicy")
            .invalid(errors, "may only be set for externally-accessible services");
    }
    if spec.integer("healthCheckNodePort").is_some_and(|n| n != 0)
        && !(kind == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local")
    {
        spec.field("healthCheckNodePort").invalid(
            errors,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
    let mut node_ports = HashSet::new();
    for port in spec.field("ports").items() {
        let number = port.integer("nodePort").filter(|n| *n != 0);
        if let Some(number) = number
            && !node_ports.insert((number, port.text("protocol")))
        {
            errors.duplicate(port.field("nodePort"), number);
        }
    }
}

fn check(service: &Value, errors: &mut FieldErrors) {
    let kind = str_at(service, "/spec/type");
    let headless = str_at(service, "/spec/clusterIP") == "None";
    let ports = array_at(service, "/spec/ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required("spec.ports", "");
    }
    let (mut seen, mut named) = (HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = str_at(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            errors.required(format!("{at}.name"), "");
        } else if !name.is_empty() && !names::is_label(name) {
            errors.invalid(format!("{at}.name"), name, names::LABEL_MESSAGE);
        } else if !name.is_empty() && !named.insert(name) {
            errors.duplicate(format!("{at}.name"), name);
        }
        let number = int_at(port, "/port").unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.invalid(format!("{at}.port"), number, "must be between 1 and 65535, inclusive");
        }
        let protocol = str_at(port, "/protocol");
        if !["TCP", "UDP", "SCTP"].contains(&protocol) {
            errors.not_supported(format!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        }
        match port.get("targetPort") {
            Some(Value::Number(n)) if !n.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => {
                errors.invalid(
                    format!("{at}.targetPort"),
                    n.as_i64().unwrap_or(0),
                    "must be between 1 and 65535, inclusive",
                );
            }
            Some(Value::String(name)) if name.len() > 15 || !names::is_label(name) => {
                errors.invalid(
                    format!("{at}.targetPort"),
                    name.as_str(),
                    "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                );
            }
            _ => {}
        }
        if !seen.insert((number, protocol)) {
            errors.duplicate(&at, json!({"port": number, "protocol": protocol}));
        }
        if kind == "ClusterIP" && int_at(port, "/nodePort").is_some() {
            errors.forbidden(format!("{at}.nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    if !TYPES.contains(&kind) {
        errors.not_supported("spec.type", kind, &TYPES);
    }
    let affinity = str_at(service, "/spec/sessionAffinity");
    if !["None", "ClientIP"].contains(&affinity) {
        errors.not_supported("spec.sessionAffinity", affinity, &["ClientIP", "None"]);
    }
    let ip = str_at(service, "/spec/clusterIP");
    if !ip.is_empty() && !headless && ip.parse::<IpAddr>().is_err() {
        errors.invalid(
            "spec.clusterIPs[0]",
            ip,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
    if headless && (kind == "NodePort" || kind == "LoadBalancer") {
        errors.invalid("spec.clusterIPs[0]", "None", format!("may not be set to 'None' for {kind} services"));
    }
    if kind == "ExternalName" {
        let name = str_at(service, "/spec/externalName");
        if name.is_empty() {
            errors.required("spec.externalName", "");
        } else if !names::is_subdomain(name.trim_end_matches('.')) {
            errors.invalid("spec.externalName", name, names::SUBDOMAIN_MESSAGE);
        }
        if !ip.is_empty() {
            errors.forbidden("spec.clusterIPs", "may not be set for ExternalName services");
        }
    }
    check_rules(service, RULES, errors);
    check_type(service, errors);
    let selector = object_at(service, "/spec/selector");
    if selector.is_some() {
        super::check_labels(service, "/spec/selector", "spec.selector", errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: &Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec, "status": {"loadBalancer": {}}});
        default_service(&mut service);
        service
    }

    /// Applies `change` to `old`; returns the resulting spec, or the rejected fields.
    fn change(old: &Value, change: &Value) -> Result<Value, Vec<String>> {
        let mut new = old.clone();
        k8s_schema::patch::merge(&mut new["spec"], change);
        default_service(&mut new);
        (STRATEGY.update)(&mut new, old);
        let mut errors = FieldErrors::default();
        (STRATEGY.validate)(&new, &mut errors);
        (STRATEGY.validate_update)(&new, old, &mut errors);
        let field = |line: String| line.split(':').next().unwrap_or_default().to_owned();
        if errors.is_empty() {
            Ok(new["spec"].take())
        } else {
            Err(errors.lines().into_iter().map(field).collect())
        }
    }

    fn names(spec: &Value) -> Vec<&str> {
        spec.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn a_change_of_type_drops_what_belonged_to_the_old_one() {
        let addresses = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]});
        let made = |kind: &str, more: Value| {
            let mut spec = json!({"type": kind, "ports": [{"port": 80, "nodePort": 30001}]});
            k8s_schema::patch::merge(&mut spec, &addresses);
            k8s_schema::patch::merge(&mut spec, &more);
            service(&spec)
        };
        let node_port = made("NodePort", json!({}));
        let plain = change(&node_port, &json!({"type": "ClusterIP"})).unwrap();
        assert_eq!(plain["clusterIP"], "10.0.0.1");
        assert!(plain["ports"][0].get("nodePort").is_none());
        assert!(plain.get("externalTrafficPolicy").is_none());

        let outside = json!({"type": "ExternalName", "externalName": "x.example"});
        let external = change(&node_port, &outside).unwrap();
        for gone in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "externalTrafficPolicy"] {
            assert!(!names(&external).contains(&gone), "{gone}");
        }

        let balanced = made(
            "LoadBalancer",
            json!({"loadBalancerClass": "a.b/c", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30002}),
        );
        let ports = change(&balanced, &json!({"type": "NodePort"})).unwrap();
        for gone in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            assert!(!names(&ports).contains(&gone), "{gone}");
        }
        assert_eq!(
            (&ports["ports"][0]["nodePort"], &ports["externalTrafficPolicy"]),
            (&json!(30001), &json!("Local"))
        );
    }

    #[test]
    fn a_field_that_was_changed_with_the_type_is_refused() {
        let old = service(
            &json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "nodePort": 30001}]}),
        );
        let refused = |c: Value| change(&old, &c).unwrap_err();
        assert_eq!(
            refused(json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30009}]})),
            ["spec.ports[0].nodePort"]
        );
        assert_eq!(
            refused(json!({"type": "ClusterIP", "externalTrafficPolicy": "Local"})),
            ["spec.externalTrafficPolicy"]
        );
        assert_eq!(
            refused(json!({"type": "NodePort", "allocateLoadBalancerNodePorts": false})),
            ["spec.allocateLoadBalancerNodePorts"]
        );
    }
}
