//! IP addresses and CIDRs.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Cost, Cx, Form, Function, function, member, no_overload};
use crate::{
    error::{EvalError, short},
    types::{Opaque, T},
    value::Value,
};

const IP: T = T::Op(Opaque::Ip);
const CIDR: T = T::Op(Opaque::Cidr);
const TEST: &[(&[T], T)] = &[(&[IP], T::Bool)];
const TEXT_TEST: &[(&[T], T)] = &[(&[T::Str], T::Bool)];

pub(super) const FUNCTIONS: &[Function] =
    &[
        function("ip", Form::Either, Cost::Traverse(1), &[(&[T::Str], IP), (&[CIDR], IP)], |_, args| {
            match args {
                [Value::String(text)] => parse_ip(text).map(Value::Ip).or_else(EvalError::failed),
                [Value::Cidr(network)] => Ok(Value::Ip(network.addr())),
                _ => no_overload(),
            }
        }),
        function("isIP", Form::Global, Cost::Traverse(1), TEXT_TEST, |_, args| match args {
            [Value::String(text)] => Ok(Value::Bool(parse_ip(text).is_ok())),
            _ => no_overload(),
        }),
        function("ip.isCanonical", Form::Global, Cost::Traverse(2), TEXT_TEST, |_, args| match args {
            [Value::String(text)] => match parse_ip(text) {
                Ok(ip) => Ok(Value::Bool(ip.to_string() == **text)),
                Err(why) => EvalError::failed(why),
            },
            _ => no_overload(),
        }),
        member("family", &[(&[IP], T::Int)], |_, args| match args {
            [Value::Ip(ip)] => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
            _ => no_overload(),
        }),
        member("isUnspecified", TEST, |_, args| test(args, |ip| ip.is_unspecified())),
        member("isLoopback", TEST, |_, args| test(args, |ip| ip.is_loopback())),
        member("isLinkLocalMulticast", TEST, |_, args| test(args, is_link_local_multicast)),
        member("isLinkLocalUnicast", TEST, |_, args| test(args, is_link_local)),
        member("isGlobalUnicast", TEST, |_, args| test(args, is_global_unicast)),
        function("cidr", Form::Global, Cost::Traverse(1), &[(&[T::Str], CIDR)], |_, args| match args {
            [Value::String(text)] => match parse_cidr(text) {
                Ok(network) => Ok(Value::Cidr(network)),
                Err(why) => EvalError::failed(why),
            },
            _ => no_overload(),
        }),
        function("isCIDR", Form::Global, Cost::Traverse(1), TEXT_TEST, |_, args| match args {
            [Value::String(text)] => Ok(Value::Bool(parse_cidr(text).is_ok())),
            _ => no_overload(),
        }),
        member("prefixLength", &[(&[CIDR], T::Int)], |_, args| match args {
            [Value::Cidr(network)] => Ok(Value::Int(network.prefix_len().into())),
            _ => no_overload(),
        }),
        member("masked", &[(&[CIDR], CIDR)], |_, args| match args {
            [Value::Cidr(network)] => Ok(Value::Cidr(network.trunc())),
            _ => no_overload(),
        }),
        function(
            "containsIP",
            Form::Member,
            Cost::Fixed(4),
            &[(&[CIDR, IP], T::Bool), (&[CIDR, T::Str], T::Bool)],
            has_ip,
        ),
        function(
            "containsCIDR",
            Form::Member,
            Cost::Fixed(6),
            &[(&[CIDR, CIDR], T::Bool), (&[CIDR, T::Str], T::Bool)],
            has_cidr,
        ),
    ];

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let wrong =
        |why: &str| format!("IP Address {:?} parse error during conversion from string: {why}", short(text));
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(wrong("IPv4-mapped IPv6 address is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(wrong("unable to parse IP")),
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let wrong = |why: &str| format!("network address parse error during conversion from string: {why}");
    let (ip, bits) = text.split_once('/').ok_or_else(|| wrong("no '/'"))?;
    let ip = parse_ip(ip).map_err(|why| wrong(&why))?;
    let canonical = bits == "0" || (!bits.starts_with('0') && bits.bytes().all(|b| b.is_ascii_digit()));
    let network = bits.parse().ok().filter(|_| canonical).and_then(|bits| IpNet::new(ip, bits).ok());
    network.ok_or_else(|| wrong("bad bits after slash"))
}

fn test<'a>(args: &[Value<'a>], holds: fn(&IpAddr) -> bool) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Ip(ip)] => Ok(Value::Bool(holds(ip))),
        _ => no_overload(),
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_global_unicast(ip: &IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !broadcast && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !is_link_local(ip)
}

fn has_ip<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Cidr(network), Value::Ip(ip)] => Ok(Value::Bool(network.contains(ip))),
        [Value::Cidr(network), Value::String(text)] => match parse_ip(text) {
            Ok(ip) => Ok(Value::Bool(network.contains(&ip))),
            Err(why) => EvalError::failed(why),
        },
        _ => no_overload(),
    }
}

fn has_cidr<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Cidr(network), Value::Cidr(inner)] => Ok(Value::Bool(network.contains(inner))),
        [Value::Cidr(network), Value::String(text)] => match parse_cidr(text) {
            Ok(inner) => Ok(Value::Bool(network.contains(&inner))),
            Err(why) => EvalError::failed(why),
        },
        _ => no_overload(),
    }
}
