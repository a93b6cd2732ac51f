//! Table-driven validation: a [`Rule`] has a path and the checks of its values.
//!
//! Most rules are of a few kinds (required, one of, between, a name, unique, exactly one of these). As data
//! they can be compared with the specification, and each message is worded in one place. Special rules are
//! functions ([`Check::Is`]).
//!
//! A path has field names with dots and list elements with `[*]`: `spec.ports[*].name`. A rule applies to
//! values whose parents exist. As upstream's validators with Go's zero values, absent or empty values are
//! examined only by [`Check::Required`], [`Check::Within`] and [`Check::Above`].

use std::{collections::HashSet, fmt, net::IpAddr};

use k8s_core::meta::Quantity;
use serde_json::Value;

use super::NameRule;
use crate::invalid::{FieldErrors, names};

/// Checks of the values at a path. They run in order up to the first failure; special and nested checks
/// ([`Check::Is`], [`Check::Has`]) do not stop the others.
pub(in crate::resources) struct Rule(
    pub(in crate::resources) &'static str,
    pub(in crate::resources) &'static [Check],
);

/// A check of a value.
pub(in crate::resources) enum Check {
    /// Required and not empty; with a detail for the message.
    Required(&'static str),
    /// Forbidden; with the reason.
    Never(&'static str),
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A number not below this.
    AtLeast(i64),
    /// A number in a range.
    Between(i64, i64),
    /// A number in a range; absent counts as 0.
    Within(i64, i64),
    /// A number above this; absent counts as 0.
    Above(i64),
    /// A name of an object, or of a part of it.
    Name(NameRule),
    /// A label or annotation key.
    Qualified,
    /// A map of labels.
    Labels,
    /// A structured label selector.
    Selector,
    /// A port number or name.
    Port,
    /// A port name: at most 15 of lower-case letters, digits and `-`, with a letter.
    PortName,
    /// An IPv4 or IPv6 address.
    Ip,
    /// An IPv4 or IPv6 range: `10.0.0.0/8`.
    Cidr,
    /// A quantity, or a map of quantities, not negative.
    NotNegative,
    /// An integer or percentage, not negative.
    Share,
    /// A path without `..`.
    NoDots,
    /// Maximum length in bytes.
    Longest(usize),
    /// Maximum number of elements of a list or map.
    Most(u64),
    /// A list of scalars without duplicates.
    Unique,
    /// Elements unique by these fields; the error names the last one.
    UniqueBy(&'static [&'static str]),
    /// A union with a discriminator (first): pairs of its value and the member.
    Member(&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str),
    /// An object, or each object of a list, to which these rules apply.
    Has(&'static [Rule]),
    /// A special check, which reports its own errors.
    Is(fn(&At<'_>, &mut FieldErrors)),
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root(&'a str),
    Field(&'a str),
    Item(usize),
    Key(&'a str),
}

/// A value and its path in the object.
#[derive(Clone, Copy)]
pub(in crate::resources) struct At<'a> {
    up: Option<&'a At<'a>>,
    step: Step<'a>,
    /// The value; null if absent.
    pub(in crate::resources) value: &'a Value,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(up) = self.up {
            up.fmt(f)?;
        }
        match self.step {
            Step::Root(path) => f.write_str(path),
            Step::Field(name) if self.up.is_some_and(|up| !matches!(up.step, Step::Root(""))) => {
                write!(f, ".{name}")
            }
            Step::Field(name) => f.write_str(name),
            Step::Item(at) => write!(f, "[{at}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

static NULL: Value = Value::Null;

/// Returns true if a value counts as absent: null, or an empty string, list or map.
pub(in crate::resources) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

impl<'a> At<'a> {
    /// Starts at an object, with the path that messages use for it.
    pub(in crate::resources) fn root(value: &'a Value, path: &'a str) -> Self {
        At { up: None, step: Step::Root(path), value }
    }

    /// Returns a field; null if absent.
    pub(in crate::resources) fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        At { up: Some(self), step: Step::Field(name), value: self.value.get(name).unwrap_or(&NULL) }
    }

    /// Returns the value of a map's key.
    pub(in crate::resources) fn key<'b>(&'b self, key: &'b str) -> At<'b> {
        At { up: Some(self), step: Step::Key(key), value: self.value.get(key).unwrap_or(&NULL) }
    }

    /// Iterates over the elements of a list.
    pub(in crate::resources) fn items<'b>(&'b self) -> impl Iterator<Item = At<'b>> {
        let items = self.value.as_array().into_iter().flatten().enumerate();
        items.map(|(i, value)| At { up: Some(self), step: Step::Item(i), value })
    }

    /// Iterates over the entries of a map.
    pub(in crate::resources) fn entries<'b>(&'b self) -> impl Iterator<Item = (&'b str, At<'b>)> {
        let entries = self.value.as_object().into_iter().flatten();
        entries.map(|(key, value)| (key.as_str(), At { up: Some(self), step: Step::Key(key), value }))
    }

    /// Returns true if the value is neither null nor empty.
    pub(in crate::resources) fn is_set(&self) -> bool {
        !is_empty(self.value)
    }

    /// Returns a string field; empty if absent.
    pub(in crate::resources) fn text(&self, field: &str) -> &'a str {
        self.value.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the value as a string; empty if it is not one.
    pub(in crate::resources) fn as_text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    /// Returns an integer field.
    pub(in crate::resources) fn integer(&self, field: &str) -> Option<i64> {
        self.value.get(field).and_then(Value::as_i64)
    }

    /// Returns a boolean field; false if absent.
    pub(in crate::resources) fn truth(&self, field: &str) -> bool {
        self.value.get(field).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Adds an "Invalid value" error at this field.
    pub(in crate::resources) fn invalid(&self, errors: &mut FieldErrors, detail: impl fmt::Display) {
        errors.invalid(self, self.value.clone(), detail);
    }

    /// Applies rules to the value.
    pub(in crate::resources) fn check(&self, rules: &[Rule], errors: &mut FieldErrors) {
        for Rule(path, checks) in rules {
            self.visit(path, &mut |at| {
                for check in *checks {
                    let before = errors.len();
                    check.apply(at, errors);
                    if errors.len() != before && !matches!(check, Check::Is(_) | Check::Has(_)) {
                        break;
                    }
                }
            });
        }
    }

    /// Calls `f` for each value at a path.
    fn visit(&self, path: &str, f: &mut dyn FnMut(&At<'_>)) {
        if path.is_empty() {
            return f(self);
        }
        if let Some(rest) = path.strip_prefix("[*]") {
            for item in self.items() {
                item.visit(rest.trim_start_matches('.'), f);
            }
            return;
        }
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (name, rest) = path.split_at(end);
        let child = self.field(name);
        match (rest, child.value.is_null()) {
            ("", _) => f(&child),
            (_, true) => {}
            (rest, false) => child.visit(rest.trim_start_matches('.'), f),
        }
    }
}

/// Applies rules to an object.
pub(in crate::resources) fn check(object: &Value, rules: &[Rule], errors: &mut FieldErrors) {
    At::root(object, "").check(rules, errors);
}

/// Reports changes of the fields at these pointers.
pub(in crate::resources) fn frozen(new: &Value, old: &Value, pointers: &[&str], errors: &mut FieldErrors) {
    for pointer in pointers {
        super::immutable(new, old, pointer, errors);
    }
}

pub(in crate::resources) const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// Message for an invalid address.
pub(in crate::resources) const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const PORT: &str = "must be between 1 and 65535, inclusive";

/// Parses a CIDR as (address, prefix length).
pub(in crate::resources) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok().filter(|_| prefix.bytes().all(|b| b.is_ascii_digit()))?;
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

/// Parses a quantity from a string or a number; `None` if it is neither.
pub(in crate::resources) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}

impl Check {
    fn apply(&self, at: &At<'_>, errors: &mut FieldErrors) {
        let number = at.value.as_i64();
        match self {
            Check::Required(detail) if !at.is_set() => errors.required(at, detail),
            Check::Required(_) => {}
            Check::Never(detail) if !at.value.is_null() => errors.forbidden(at, detail),
            Check::Never(_) => {}
            Check::Within(low, high) => between(at, number.unwrap_or(0), *low, *high, errors),
            Check::Above(limit) if number.unwrap_or(0) <= *limit => {
                errors.invalid(at, number.unwrap_or(0), format!("must be greater than {limit}"));
            }
            Check::Above(_) => {}
            _ if at.value.is_null() => {}
            Check::AtLeast(limit) => {
                if let Some(n) = number.filter(|n| n < limit) {
                    errors.invalid(at, n, format!("must be greater than or equal to {limit}"));
                }
            }
            Check::Between(low, high) => {
                if let Some(n) = number {
                    between(at, n, *low, *high, errors);
                }
            }
            Check::Most(most) => {
                let have = at.value.as_array().map_or(0, Vec::len)
                    + at.value.as_object().map_or(0, serde_json::Map::len);
                if have as u64 > *most {
                    errors.too_many(at, have as u64, *most);
                }
            }
            Check::Unique => {
                let mut seen = HashSet::new();
                for item in at.items() {
                    if !seen.insert(item.value.to_string()) {
                        errors.duplicate(item, item.value.clone());
                    }
                }
            }
            Check::UniqueBy(fields) => {
                let mut seen = HashSet::new();
                for item in at.items() {
                    let key: Vec<&Value> = fields.iter().map(|f| item.field(f).value).collect();
                    if key.iter().all(|v| is_empty(v)) {
                        continue;
                    }
                    let told = fields.last().copied().unwrap_or_default();
                    if !seen.insert(format!("{key:?}")) {
                        errors.duplicate(item.field(told), item.field(told).value.clone());
                    }
                }
            }
            Check::Member(kind, members, none, more) => {
                let kind = at.text(kind);
                let Some((_, own)) = members.iter().find(|(k, _)| *k == kind) else { return };
                if at.field(own).value.is_null() {
                    errors.required(at.field(own), none);
                }
                let others = members.iter().map(|(_, m)| m).filter(|m| *m != own);
                for other in others.map(|m| at.field(m)).filter(|m| !m.value.is_null()) {
                    errors.forbidden(other, more);
                }
            }
            Check::Labels => check_labels(at, errors),
            Check::Selector => check_selector(at, errors),
            Check::NotNegative => not_negative(at, errors),
            Check::Share => check_share(at, errors),
            Check::Port => check_port(at, errors),
            Check::Has(rules) => at.check(rules, errors),
            Check::Is(check) => check(at, errors),
            _ if at.as_text().is_empty() => {}
            text => text.apply_text(at, at.as_text(), errors),
        }
    }

    /// Applies the checks of non-empty strings.
    fn apply_text(&self, at: &At<'_>, text: &str, errors: &mut FieldErrors) {
        match self {
            Check::OneOf(values) if !values.contains(&text) => {
                errors.not_supported(at, text, values);
            }
            Check::Name(rule) => rule.check(&at.to_string(), text, errors),
            Check::Qualified => {
                let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(p, n)| (Some(p), n));
                if name.len() > 63 {
                    errors.invalid(at, text, "name part must be no more than 63 characters");
                } else if prefix == Some("") {
                    errors.invalid(at, text, "prefix part must be non-empty");
                } else if prefix.is_some_and(|p| !names::is_subdomain(p)) {
                    errors.invalid(at, text, format!("prefix part {}", names::SUBDOMAIN_MESSAGE));
                } else if !names::is_qualified(text) {
                    errors.invalid(at, text, QUALIFIED);
                }
            }
            Check::PortName => check_port_name(at, text, errors),
            Check::Ip if text.parse::<IpAddr>().is_err() => errors.invalid(at, text, IP),
            Check::Cidr if parse_cidr(text).is_none() => errors.invalid(at, text, CIDR),
            Check::NoDots if text.split('/').any(|part| part == "..") => {
                errors.invalid(at, text, "must not contain '..'");
            }
            Check::Longest(most) if text.len() > *most => errors.too_long(at, *most),
            _ => {}
        }
    }
}

fn between(at: &At<'_>, n: i64, low: i64, high: i64, errors: &mut FieldErrors) {
    if !(low..=high).contains(&n) {
        errors.invalid(at, n, format!("must be between {low} and {high}, inclusive"));
    }
}

fn check_labels(at: &At<'_>, errors: &mut FieldErrors) {
    for (key, value) in at.entries() {
        if !names::is_qualified(key) {
            errors.invalid(at, key, QUALIFIED);
        }
        if !names::is_label_value(value.as_text()) {
            let long = value.as_text().len() > 63;
            errors.invalid(
                at,
                value.as_text(),
                if long { "must be no more than 63 bytes" } else { LABEL_VALUE },
            );
        }
    }
}

const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

fn check_selector(at: &At<'_>, errors: &mut FieldErrors) {
    check_labels(&at.field("matchLabels"), errors);
    for expression in at.field("matchExpressions").items() {
        let (operator, values) = (expression.text("operator"), expression.field("values"));
        match operator {
            "In" | "NotIn" if !values.is_set() => {
                errors.required(values, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if values.is_set() => {
                errors
                    .forbidden(values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            _ if OPERATORS.contains(&operator) => {}
            _ => expression.field("operator").invalid(errors, "not a valid selector operator"),
        }
        Check::Required("").apply(&expression.field("key"), errors);
        if expression.text("key").is_empty() {
            continue;
        }
        let key = expression.field("key");
        if !names::is_qualified(key.as_text()) {
            key.invalid(errors, QUALIFIED);
        }
        for value in values.items().filter(|v| !names::is_label_value(v.as_text())) {
            value.invalid(errors, LABEL_VALUE);
        }
    }
}

fn not_negative(at: &At<'_>, errors: &mut FieldErrors) {
    for (_, value) in at.entries() {
        not_negative(&value, errors);
    }
    if quantity(at.value).is_some_and(|q| q.is_negative()) {
        at.invalid(errors, "must be greater than or equal to 0");
    }
}

fn check_share(at: &At<'_>, errors: &mut FieldErrors) {
    match at.value {
        Value::Number(_) => Check::AtLeast(0).apply(at, errors),
        Value::String(text) => {
            let digits = text.strip_suffix('%').filter(|d| !d.is_empty());
            if !digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit())) {
                at.invalid(errors, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
            }
        }
        _ => {}
    }
}

/// Rejects percentages above 100.
pub(in crate::resources) fn at_most_all(at: &At<'_>, errors: &mut FieldErrors) {
    let percent = at.as_text().strip_suffix('%').and_then(|d| d.parse::<u64>().ok());
    if percent.is_some_and(|p| p > 100) {
        at.invalid(errors, "must not be greater than 100%");
    }
}

fn check_port(at: &At<'_>, errors: &mut FieldErrors) {
    match at.value {
        Value::Number(n) if !n.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => at.invalid(errors, PORT),
        Value::String(name) => check_port_name(at, name, errors),
        _ => {}
    }
}

fn check_port_name(at: &At<'_>, name: &str, errors: &mut FieldErrors) {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let problems = [
        (name.len() > 15, "must be no more than 15 characters"),
        (!plain, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"),
        (!name.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (name.contains("--"), "must not contain consecutive hyphens"),
        (name.starts_with('-') || name.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    for (_, problem) in problems.iter().filter(|(wrong, _)| *wrong) {
        errors.invalid(at, name, problem);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(rules: &[Rule], object: Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        check(&object, rules, &mut errors);
        errors.lines()
    }

    #[test]
    fn rules_concern_values_whose_parents_exist() {
        const RULES: &[Rule] = &[
            Rule("a.b", &[Check::Required("why")]),
            Rule("l[*].n", &[Check::Within(1, 3)]),
            Rule("l[*].kind", &[Check::OneOf(&["X", "Y"])]),
        ];
        assert_eq!(problems(RULES, json!({})), [""; 0]);
        assert_eq!(
            problems(RULES, json!({"a": {}, "l": [{"n": 2, "kind": "X"}, {"kind": "Z"}]})),
            [
                "a.b: Required value: why",
                "l[1].n: Invalid value: 0: must be between 1 and 3, inclusive",
                "l[1].kind: Unsupported value: \"Z\": supported values: \"X\", \"Y\"",
            ]
        );
    }

    #[test]
    fn unions_tell_what_is_missing_or_too_much() {
        const MEMBER: &[Rule] =
            &[Rule("m[*]", &[Check::Member("type", &[("A", "a"), ("B", "b")], "none", "more")])];
        assert_eq!(
            problems(MEMBER, json!({"m": [{"type": "A", "b": {}}, {"type": "B", "b": {}}]})),
            ["m[0].a: Required value: none", "m[0].b: Forbidden: more"]
        );
    }

    #[test]
    fn lists_without_repetition() {
        const RULES: &[Rule] =
            &[Rule("l", &[Check::UniqueBy(&["k", "n"])]), Rule("s", &[Check::Most(2), Check::Unique])];
        assert_eq!(
            problems(RULES, json!({"l": [{"n": "x"}, {"n": "x", "k": 1}, {"n": "x"}], "s": [1, 1]})),
            ["l[2].n: Duplicate value: \"x\"", "s[1]: Duplicate value: 1"]
        );
        assert_eq!(problems(RULES, json!({"s": [1, 2, 3]})), ["s: Too many: 3: must have at most 2 items"]);
    }

    #[test]
    fn ranges_of_addresses() {
        assert!(parse_cidr("10.0.0.0/8").is_some() && parse_cidr("fd00::/128").is_some());
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/+8", "10.0.0.0/"] {
            assert!(parse_cidr(bad).is_none(), "{bad}");
        }
    }
}
