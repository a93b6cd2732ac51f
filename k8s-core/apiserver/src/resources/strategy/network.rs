//! Ingresses, IngressClasses, NetworkPolicies, EndpointSlices, IPAddresses and ServiceCIDRs.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    BASE, METADATA_OF_CLIENTS, NameRule, Strategy, immutable,
    rule::{At, Check, Rule, check, frozen, parse_cidr},
};
use crate::{
    invalid::{FieldErrors, names},
    value::{array_at, child, default_text, str_at},
};

/// Defaults and validation of Ingresses.
pub static INGRESS: Strategy = Strategy {
    generation: true,
    create: |ingress| ingress["status"] = json!({"loadBalancer": {}}),
    validate: |ingress, errors| {
        if array_at(ingress, "/spec/rules").is_empty() && ingress.pointer("/spec/defaultBackend").is_none() {
            errors.invalid("spec", json!({}), "either `defaultBackend` or `rules` must be specified");
        }
        check(ingress, INGRESS_RULES, errors);
    },
    ..BASE
};

const INGRESS_RULES: &[Rule] = &[
    Rule("spec.tls[*].hosts[*]", &[Check::Is(check_host)]),
    Rule("spec.defaultBackend", BACKEND),
    Rule("spec.rules[*].host", &[Check::Is(check_host)]),
    Rule("spec.rules[*].http.paths", &[Check::Required("")]),
    Rule("spec.rules[*].http.paths[*]", &[Check::Is(check_path)]),
    Rule("spec.rules[*].http.paths[*].backend", BACKEND),
    Rule("spec.ingressClassName", &[Check::Name(NameRule::Subdomain)]),
];

/// Validates a host name, with an optional `*.` prefix.
fn check_host(host: &At<'_>, errors: &mut FieldErrors) {
    let name = host.as_text();
    if name.is_empty() {
        return;
    }
    if name.parse::<IpAddr>().is_ok() {
        host.invalid(errors, "must be a DNS name, not an IP address");
    } else if name.contains('*') {
        if !name.strip_prefix("*.").is_some_and(names::is_subdomain) {
            host.invalid(errors, "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')");
        }
    } else if !names::is_subdomain(name) {
        host.invalid(errors, names::SUBDOMAIN_MESSAGE);
    }
}

fn check_path(path: &At<'_>, errors: &mut FieldErrors) {
    let (kind, value) = (path.text("pathType"), path.text("path"));
    match kind {
        "" => errors.required(path.field("pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            let field = path.field("path");
            if !value.starts_with('/') {
                errors.invalid(field, value, "must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if value.contains(sequence) {
                    errors.invalid(field, value, format!("must not contain '{sequence}'"));
                }
            }
            for suffix in ["/..", "/."] {
                if value.ends_with(suffix) {
                    errors.invalid(field, value, format!("cannot end with '{suffix}'"));
                }
            }
        }
        "ImplementationSpecific" if !value.is_empty() && !value.starts_with('/') => {
            errors.invalid(path.field("path"), value, "must be an absolute path");
        }
        "ImplementationSpecific" => {}
        other => {
            errors.not_supported(
                path.field("pathType"),
                other,
                &["Exact", "ImplementationSpecific", "Prefix"],
            );
        }
    }
}

const BACKEND: &[Check] = &[Check::Is(|backend, errors| {
    let at = backend.to_string();
    check_backend(backend.value, &at, errors);
})];

fn check_backend(backend: &Value, at: &str, errors: &mut FieldErrors) {
    match (backend.get("service"), backend.get("resource")) {
        (Some(_), Some(_)) => errors.invalid(at, "", "cannot set both resource and service backends"),
        (None, Some(resource)) => {
            const RESOURCE: &[Rule] = &[
                Rule("kind", &[Check::Required(""), Check::Name(NameRule::Segment)]),
                Rule("name", &[Check::Required(""), Check::Name(NameRule::Segment)]),
                Rule("apiGroup", &[Check::Name(NameRule::Subdomain)]),
            ];
            At::root(resource, &format!("{at}.resource")).check(RESOURCE, errors);
        }
        (None, None) => errors.required(at, "resource or service backend is required"),
        (Some(service), None) => {
            let name = str_at(service, "/name");
            if name.is_empty() {
                errors.required(format!("{at}.service.name"), "");
            } else if !names::is_label(name) {
                errors.invalid(format!("{at}.service.name"), name, names::LABEL_MESSAGE);
            }
            match (backend.pointer("/service/port/number"), backend.pointer("/service/port/name")) {
                (None, None) => {
                    errors.required(format!("{at}.service.port"), "port name or number is required")
                }
                (Some(_), Some(_)) => {
                    errors.invalid(
                        format!("{at}.service.port"),
                        "",
                        "cannot set both port name & port number",
                    );
                }
                (Some(number), None) if !number.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => {
                    errors.invalid(
                        format!("{at}.service.port.number"),
                        number.clone(),
                        "must be between 1 and 65535, inclusive",
                    );
                }
                (None, Some(name)) => {
                    const NAME: &[Rule] = &[Rule("", &[Check::PortName])];
                    At::root(name, &format!("{at}.service.port.name")).check(NAME, errors);
                }
                _ => {}
            }
        }
    }
}

/// Defaults and validation of IngressClasses.
pub static INGRESS_CLASS: Strategy = Strategy {
    generation: true,
    default: |class| {
        if let Some(parameters) = class.pointer_mut("/spec/parameters").filter(|p| p.is_object()) {
            default_text(parameters, "scope", "Cluster");
        }
    },
    validate: |class, errors| {
        const RULES: &[Rule] = &[
            Rule("spec", &[Check::Required("")]),
            Rule("spec.controller", &[Check::Required(""), Check::Longest(250), Check::Is(check_controller)]),
            Rule("spec.parameters.apiGroup", &[Check::Name(NameRule::Subdomain)]),
            Rule(
                "spec.parameters.kind",
                &[Check::Required("kind is required"), Check::Name(NameRule::Segment)],
            ),
            Rule(
                "spec.parameters.name",
                &[Check::Required("name is required"), Check::Name(NameRule::Segment)],
            ),
            Rule("spec.parameters.scope", &[Check::Required(""), Check::OneOf(&["Cluster", "Namespace"])]),
            Rule("spec.parameters", &[Check::Is(check_parameters)]),
        ];
        check(class, RULES, errors);
    },
    validate_update: |new, old, errors| frozen(new, old, &["/spec/controller"], errors),
    ..BASE
};

fn check_controller(at: &At<'_>, errors: &mut FieldErrors) {
    let good = at.as_text().split_once('/').is_some_and(|(domain, path)| {
        names::is_subdomain(domain)
            && !path.is_empty()
            && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b))
    });
    if !good {
        at.invalid(errors, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    }
}

fn check_parameters(at: &At<'_>, errors: &mut FieldErrors) {
    let namespace = at.field("namespace");
    match at.text("scope") {
        "Namespace" if namespace.value.is_null() => {
            errors.required(namespace, "`parameters.scope` is set to 'Namespace'");
        }
        "Namespace" => NameRule::Label.check(&namespace.to_string(), namespace.as_text(), errors),
        "Cluster" if !namespace.value.is_null() => {
            errors.forbidden(namespace, "`parameters.scope` is set to 'Cluster'");
        }
        _ => {}
    }
}

/// Defaults and validation of NetworkPolicies.
pub static NETWORK_POLICY: Strategy = Strategy {
    generation: true,
    default: |policy| {
        let egress = !array_at(policy, "/spec/egress").is_empty();
        if let Some(spec) = child(policy, "spec") {
            child(spec, "podSelector");
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            crate::value::default(spec, "policyTypes", types);
            for direction in ["ingress", "egress"] {
                for rule in spec.get_mut(direction).and_then(Value::as_array_mut).into_iter().flatten() {
                    for port in rule.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                        default_text(port, "protocol", "TCP");
                    }
                }
            }
        }
    },
    validate: |policy, errors| {
        const RULES: &[Rule] = &[
            Rule("spec.podSelector", &[Check::Selector]),
            Rule("spec.ingress[*].ports[*]", &[Check::Has(POLICY_PORT)]),
            Rule("spec.ingress[*].from[*]", &[Check::Has(PEER)]),
            Rule("spec.egress[*].ports[*]", &[Check::Has(POLICY_PORT)]),
            Rule("spec.egress[*].to[*]", &[Check::Has(PEER)]),
            Rule(
                "spec.policyTypes",
                &[Check::Is(|at, errors| {
                    if at.items().count() > 2 {
                        at.invalid(errors, "may not specify more than two policyTypes");
                    }
                })],
            ),
            Rule("spec.policyTypes[*]", &[Check::OneOf(&["Egress", "Ingress"])]),
        ];
        check(policy, RULES, errors);
    },
    ..BASE
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

const POLICY_PORT: &[Rule] = &[
    Rule("protocol", &[Check::OneOf(PROTOCOLS)]),
    Rule("port", &[Check::Port]),
    Rule("", &[Check::Is(check_end_port)]),
];

fn check_end_port(at: &At<'_>, errors: &mut FieldErrors) {
    let end = at.field("endPort");
    let Some(last) = end.value.as_i64() else { return };
    match at.field("port").value {
        Value::Number(first) if first.as_i64().is_some_and(|first| last < first) => {
            end.invalid(errors, "must be greater than or equal to `port`");
        }
        Value::Number(_) => {}
        Value::String(_) => end.invalid(errors, "may not be specified when `port` is non-numeric"),
        _ => return end.invalid(errors, "must be specified with `port`"),
    }
    if last > 65535 {
        end.invalid(errors, "must be between 1 and 65535, inclusive");
    }
}

const PEER: &[Rule] = &[
    Rule("podSelector", &[Check::Selector]),
    Rule("namespaceSelector", &[Check::Selector]),
    Rule("ipBlock", &[Check::Has(IP_BLOCK)]),
    Rule(
        "",
        &[Check::Is(|at, errors| {
            let there = |name| !at.field(name).value.is_null();
            let selects = there("podSelector") || there("namespaceSelector");
            if there("ipBlock") && selects {
                errors.forbidden(at, "may not specify both ipBlock and another peer");
            } else if !there("ipBlock") && !selects {
                errors.required(at, "must specify a peer");
            }
        })],
    ),
];

const IP_BLOCK: &[Rule] = &[
    Rule("cidr", &[Check::Required(""), Check::Cidr]),
    Rule("except[*]", &[Check::Cidr]),
    Rule(
        "",
        &[Check::Is(|block, errors| {
            let Some(outer) = parse_cidr(block.text("cidr")) else { return };
            for except in block.field("except").items() {
                let Some(inner) = parse_cidr(except.as_text()) else { continue };
                if !(contains(outer, inner.0) && outer.1 < inner.1) {
                    except.invalid(
                        errors,
                        format!("must be a strict subset of `cidr`: \"{}\"", block.text("cidr")),
                    );
                }
            }
        })],
    ),
];

/// Returns true if the CIDR contains the address.
fn contains((network, prefix): (IpAddr, u8), address: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    network.is_ipv4() == address.is_ipv4() && bits(network) & mask == bits(address) & mask
}

/// Defaults and validation of EndpointSlices.
pub static ENDPOINT_SLICE: Strategy = Strategy {
    generation: true,
    default: |slice| {
        for port in slice.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            crate::value::default(port, "name", "");
            default_text(port, "protocol", "TCP");
        }
    },
    validate: |slice, errors| {
        const RULES: &[Rule] = &[
            Rule("addressType", &[Check::Required(""), Check::OneOf(&["FQDN", "IPv4", "IPv6"])]),
            Rule("endpoints", &[Check::Most(1000)]),
            Rule("endpoints[*]", &[Check::Has(ENDPOINT)]),
            Rule("ports", &[Check::Most(20_000), Check::UniqueBy(&["name"])]),
            Rule("ports[*].name", &[Check::Name(NameRule::Label)]),
            Rule("ports[*].protocol", &[Check::Required(""), Check::OneOf(PROTOCOLS)]),
            Rule("ports[*].port", &[Check::Between(1, 65535)]),
            Rule("ports[*].appProtocol", &[Check::Qualified]),
        ];
        check(slice, RULES, errors);
        let kind = str_at(slice, "/addressType");
        let root = At::root(slice, "");
        for endpoint in root.field("endpoints").items() {
            for address in endpoint.field("addresses").items() {
                check_address(kind, &address, errors);
            }
        }
    },
    validate_update: |new, old, errors| immutable(new, old, "/addressType", errors),
    ..BASE
};

const ENDPOINT: &[Rule] = &[
    Rule("addresses", &[Check::Required("must contain at least 1 address"), Check::Most(100), Check::Unique]),
    Rule("hostname", &[Check::Name(NameRule::Label)]),
    Rule("nodeName", &[Check::Name(NameRule::Subdomain)]),
    Rule("deprecatedTopology", &[Check::Most(16), Check::Labels]),
    Rule("hints.forZones", &[Check::Most(8), Check::UniqueBy(&["name"])]),
    Rule(
        "hints.forZones[*].name",
        &[
            Check::Required(""),
            Check::Is(|at, errors| {
                if !names::is_label_value(at.as_text()) {
                    at.invalid(errors, "must be a valid label value");
                }
            }),
        ],
    ),
    Rule("hints.forNodes", &[Check::Most(8), Check::UniqueBy(&["name"])]),
    Rule("hints.forNodes[*].name", &[Check::Required(""), Check::Name(NameRule::Subdomain)]),
];

fn check_address(kind: &str, at: &At<'_>, errors: &mut FieldErrors) {
    let parsed: Option<IpAddr> = at.as_text().parse().ok();
    match kind {
        "IPv4" if !parsed.is_some_and(|ip| ip.is_ipv4()) => {
            at.invalid(errors, "must be a valid IPv4 address")
        }
        "IPv6" if !parsed.is_some_and(|ip| ip.is_ipv6()) => {
            at.invalid(errors, "must be a valid IPv6 address")
        }
        "FQDN" if !names::is_subdomain(at.as_text().trim_end_matches('.')) => {
            at.invalid(errors, names::SUBDOMAIN_MESSAGE);
        }
        _ => {
            if let Some(ip) = parsed {
                check_endpoint_ip(at, ip, errors);
            }
        }
    }
}

/// Rejects loopback, link-local and similar addresses as endpoints.
pub(super) fn check_endpoint_ip(at: &At<'_>, ip: IpAddr, errors: &mut FieldErrors) {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    let problems = [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_local_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ];
    for (_, problem) in problems.iter().filter(|(wrong, _)| *wrong) {
        at.invalid(errors, problem);
    }
}

/// Strategy of IPAddresses, whose name is the address.
pub static IP_ADDRESS: Strategy = Strategy {
    name: NameRule::Segment,
    generation: true,
    validate: |address, errors| {
        let name = str_at(address, "/metadata/name");
        match name.parse::<IpAddr>() {
            Err(_) => errors.invalid("metadata.name", name, super::rule::IP),
            Ok(ip) if ip.to_string() != name => {
                errors.invalid("metadata.name", name, format!("must be in canonical form (\"{ip}\")"));
            }
            Ok(_) => {}
        }
        const RULES: &[Rule] = &[
            Rule("spec.parentRef", &[Check::Required("")]),
            Rule("spec.parentRef.group", &[Check::Name(NameRule::Subdomain)]),
            Rule("spec.parentRef.resource", &[Check::Required(""), Check::Name(NameRule::Segment)]),
            Rule("spec.parentRef.namespace", &[Check::Name(NameRule::Segment)]),
            Rule("spec.parentRef.name", &[Check::Required(""), Check::Name(NameRule::Segment)]),
        ];
        check(address, RULES, errors);
    },
    validate_update: |new, old, errors| frozen(new, old, &["/spec/parentRef"], errors),
    ..BASE
};

/// Defaults and validation of ServiceCIDRs.
pub static SERVICE_CIDR: Strategy = Strategy {
    fixed_by_status: &METADATA_OF_CLIENTS,
    generation: true,
    validate: |range, errors| {
        let ranges = array_at(range, "/spec/cidrs");
        if ranges.is_empty() {
            errors.required("spec.cidrs", "at least one CIDR required");
        }
        if ranges.len() > 2 {
            errors.invalid("spec", range["spec"].clone(), "may only hold up to 2 values");
        }
        const RULES: &[Rule] = &[Rule(
            "spec.cidrs[*]",
            &[
                Check::Cidr,
                Check::Is(|at, errors| {
                    if let Some((address, prefix)) = parse_cidr(at.as_text())
                        && !is_network(address, prefix)
                    {
                        at.invalid(
                            errors,
                            "must be in canonical form: the address has bits beyond the prefix",
                        );
                    }
                }),
            ],
        )];
        check(range, RULES, errors);
        if let [first, second] = ranges {
            let family = |v: &Value| v.as_str().and_then(parse_cidr).map(|(ip, _)| ip.is_ipv4());
            if family(first).is_some() && family(first) == family(second) {
                errors.invalid("spec.cidrs", ranges.to_vec(), "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96");
            }
        }
    },
    validate_update: |new, old, errors| {
        let (now, before) = (array_at(new, "/spec/cidrs"), array_at(old, "/spec/cidrs"));
        for (i, range) in before.iter().enumerate() {
            if now.get(i) != Some(range) {
                errors.invalid(
                    format!("spec.cidrs[{i}]"),
                    now.get(i).cloned().unwrap_or_default(),
                    "field is immutable",
                );
            }
        }
    },
    ..BASE
};

fn is_network(address: IpAddr, prefix: u8) -> bool {
    let host_bits = |bits: u128, width: u8| {
        let host = u32::from(width.saturating_sub(prefix));
        bits & 1u128.checked_shl(host).map_or(u128::MAX, |top| top - 1)
    };
    match address {
        IpAddr::V4(v4) => host_bits(v4.to_bits().into(), 32) == 0,
        IpAddr::V6(v6) => host_bits(v6.to_bits(), 128) == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ranges() {
        let range = |text| parse_cidr(text).unwrap();
        assert!(contains(range("10.0.0.0/8"), "10.1.2.3".parse().unwrap()));
        assert!(!contains(range("10.0.0.0/8"), "11.0.0.0".parse().unwrap()));
        assert!(contains(range("0.0.0.0/0"), "11.0.0.0".parse().unwrap()));
        assert!(!contains(range("::/0"), "11.0.0.0".parse().unwrap()));
        assert!(contains(range("fd00::/64"), "fd00::1".parse().unwrap()));
        for (text, whole) in
            [("10.0.0.0/8", true), ("10.0.0.1/8", false), ("::/0", true), ("fd00::1/64", false)]
        {
            let (address, prefix) = range(text);
            assert_eq!(is_network(address, prefix), whole, "{text}");
        }
    }
}
