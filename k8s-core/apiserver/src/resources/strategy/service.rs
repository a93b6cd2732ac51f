//! Services. Addresses and node ports are allocated by [`crate::allocate`].

use std::{collections::HashSet, net::IpAddr};

use serde_json::{Value, json};

use super::{
    BASE, NameRule, Strategy,
    rule::{At, Check, Rule, check as check_rules, parse_cidr},
};
use crate::{
    invalid::{FieldErrors, names},
    value::{child, default, default_text, integer, list, map, text},
};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// Services.
pub static STRATEGY: Strategy = Strategy {
    name: NameRule::Label,
    returns_deleted: true,
    default: default_service,
    create: |service| service["status"] = json!({"loadBalancer": {}}),
    update: |new, old| {
        // An update that says nothing of addresses keeps them.
        let external = text(new, "/spec/type") == "ExternalName";
        if external {
            return;
        }
        let kept: Vec<(&str, Value)> =
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"]
                .into_iter()
                .filter_map(|f| Some((f, old.pointer(&format!("/spec/{f}"))?.clone())))
                .collect();
        let node_ports = ["NodePort", "LoadBalancer"].contains(&text(new, "/spec/type"));
        let old_ports = list(old, "/spec/ports").to_vec();
        let Some(spec) = child(new, "spec") else { return };
        for (field, value) in kept {
            if field == "clusterIPs"
                && text(spec, "/clusterIP") != value.pointer("/0").and_then(Value::as_str).unwrap_or_default()
            {
                continue;
            }
            default(spec, field, value);
        }
        if node_ports {
            for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                let same = |o: &&Value| {
                    integer(o, "/port") == integer(port, "/port")
                        && text(o, "/protocol") == text(port, "/protocol")
                };
                if let Some(node_port) = old_ports.iter().find(same).and_then(|o| o.get("nodePort")).cloned()
                {
                    default(port, "nodePort", node_port);
                }
            }
        }
    },
    validate: check,
    validate_update: |new, old, errors| {
        let (now, before) = (text(new, "/spec/clusterIP"), text(old, "/spec/clusterIP"));
        let stays = text(new, "/spec/type") != "ExternalName" && text(old, "/spec/type") != "ExternalName";
        if stays && !before.is_empty() && now != before {
            let value = if now.is_empty() { json!([]) } else { json!([now]) };
            errors.invalid("spec.clusterIPs[0]", value, "may not change once set");
        }
    },
    ..BASE
};

fn default_service(service: &mut Value) {
    let Some(spec) = child(service, "spec") else { return };
    default_text(spec, "sessionAffinity", "None");
    default_text(spec, "type", "ClusterIP");
    if text(spec, "/sessionAffinity") == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    if text(spec, "/sessionAffinity") == "None"
        && let Some(map) = spec.as_object_mut()
    {
        map.remove("sessionAffinityConfig");
    }
    let kind = text(spec, "/type").to_owned();
    let named_ip = text(spec, "/clusterIP").to_owned();
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
        if integer(port, "/nodePort") == Some(0)
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

/// What only services of some types have.
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
    let external = ["NodePort", "LoadBalancer"].contains(&kind) || there("externalIPs");
    if there("externalTrafficPolicy") && !external {
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
    let kind = text(service, "/spec/type");
    let headless = text(service, "/spec/clusterIP") == "None";
    let ports = list(service, "/spec/ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required("spec.ports", "");
    }
    let (mut seen, mut named) = (HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = text(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            errors.required(format!("{at}.name"), "");
        } else if !name.is_empty() && !names::is_label(name) {
            errors.invalid(format!("{at}.name"), name, names::LABEL_MESSAGE);
        } else if !name.is_empty() && !named.insert(name) {
            errors.duplicate(format!("{at}.name"), name);
        }
        let number = integer(port, "/port").unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.invalid(format!("{at}.port"), number, "must be between 1 and 65535, inclusive");
        }
        let protocol = text(port, "/protocol");
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
        if kind == "ClusterIP" && integer(port, "/nodePort").is_some() {
            errors.forbidden(format!("{at}.nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    if !TYPES.contains(&kind) {
        errors.not_supported("spec.type", kind, &TYPES);
    }
    let affinity = text(service, "/spec/sessionAffinity");
    if !["None", "ClientIP"].contains(&affinity) {
        errors.not_supported("spec.sessionAffinity", affinity, &["ClientIP", "None"]);
    }
    let ip = text(service, "/spec/clusterIP");
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
        let name = text(service, "/spec/externalName");
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
    let selector = map(service, "/spec/selector");
    if selector.is_some() {
        super::check_labels(service, "/spec/selector", "spec.selector", errors);
    }
}
