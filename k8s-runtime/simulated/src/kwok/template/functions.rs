//! The functions of templates.

use serde_json::{Map, Value, json};

/// The functions that templates may call.
pub(super) const NAMES: &[&str] = &[
    "Quote",
    "Now",
    "StartTime",
    "YAML",
    "Version",
    "NodeConditions",
    "NodeIP",
    "NodeIPs",
    "NodeName",
    "NodePort",
    "NodeIPWith",
    "NodeIPsWith",
    "PodIPWith",
    "PodIPsWith",
    "or",
    "and",
    "not",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "index",
    "len",
    "print",
    "printf",
    "dict",
    "list",
    "default",
    "quote",
    "toString",
    "add",
    "sub",
];

/// What functions say about the place of an object.
pub(crate) trait Place {
    /// The time, as in statuses.
    fn now(&self) -> String;
    /// The time at which the simulation started.
    fn start_time(&self) -> String;
    /// Conditions of a healthy node.
    fn node_conditions(&self) -> Value;
    /// Addresses of a node; empty name: of the node that the template is about.
    fn node_ips(&self, node: &str) -> Vec<String>;
    /// Name of the node that the template is about.
    fn node_name(&self) -> String;
    /// Addresses of the pod that the template is about, on this node.
    fn pod_ips(&self, node: &str, on_host: bool) -> Vec<String>;
}

/// Returns true for what Go's templates take for true.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(holds) => *holds,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Returns a value as Go prints it.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", show(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

fn quote(value: &Value) -> Value {
    match value {
        Value::String(_) => value.to_string().into(),
        other => Value::String(other.to_string()).to_string().into(),
    }
}

fn first(list: Vec<String>) -> Value {
    list.into_iter().next().unwrap_or_default().into()
}

/// Calls a function.
///
/// # Errors
/// The arguments do not fit.
pub(super) fn call(function: &str, arguments: Vec<Value>, place: &dyn Place) -> Result<Value, String> {
    let at = |n: usize| arguments.get(n).unwrap_or(&Value::Null);
    let text = |n: usize| at(n).as_str().unwrap_or_default();
    let count = arguments.len();
    let least = match function {
        "Quote" | "YAML" | "NodeIPWith" | "NodeIPsWith" | "not" | "or" | "and" | "index" | "len"
        | "printf" | "quote" | "toString" => 1,
        "PodIPWith" | "PodIPsWith" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "default" | "add" | "sub" => 2,
        _ => 0,
    };
    if count < least {
        return Err(format!("{function} has {count} arguments, and needs {least}"));
    }
    Ok(match function {
        "Quote" | "quote" => quote(at(0)),
        "Now" => place.now().into(),
        "StartTime" => place.start_time().into(),
        "Version" => env!("CARGO_PKG_VERSION").into(),
        "YAML" => yaml(at(0), at(1).as_u64().unwrap_or(0)),
        "NodeConditions" => place.node_conditions(),
        "NodeName" => place.node_name().into(),
        // No kubelet listens.
        "NodePort" => 0.into(),
        "NodeIP" => first(place.node_ips("")),
        "NodeIPs" => json!(place.node_ips("")),
        "NodeIPWith" => first(place.node_ips(text(0))),
        "NodeIPsWith" => json!(place.node_ips(text(0))),
        "PodIPWith" => first(place.pod_ips(text(0), is_true(at(1)))),
        "PodIPsWith" => json!(place.pod_ips(text(0), is_true(at(1)))),
        "or" => {
            arguments.iter().find(|value| is_true(value)).or(arguments.last()).cloned().unwrap_or_default()
        }
        "and" => {
            arguments.iter().find(|value| !is_true(value)).or(arguments.last()).cloned().unwrap_or_default()
        }
        "not" => (!is_true(at(0))).into(),
        "eq" => arguments[1..].iter().any(|other| other == at(0)).into(),
        "ne" => (at(0) != at(1)).into(),
        "lt" | "le" | "gt" | "ge" => compare(function, at(0), at(1))?,
        "index" => arguments[1..].iter().try_fold(at(0).clone(), |value, key| index(&value, key))?,
        "len" => match at(0) {
            Value::Null => 0.into(),
            Value::String(text) => text.len().into(),
            Value::Array(list) => list.len().into(),
            Value::Object(map) => map.len().into(),
            other => return Err(format!("len of {}", show(other))),
        },
        "print" => arguments.iter().map(show).collect::<String>().into(),
        "printf" => printf(text(0), arguments.get(1..).unwrap_or_default())?.into(),
        "dict" => {
            let pairs =
                arguments.chunks(2).map(|pair| (show(&pair[0]), pair.get(1).cloned().unwrap_or_default()));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        "list" => Value::Array(arguments),
        "default" => {
            if is_true(at(1)) {
                at(1).clone()
            } else {
                at(0).clone()
            }
        }
        "toString" => show(at(0)).into(),
        "add" | "sub" => {
            let numbers =
                arguments.iter().map(|n| n.as_i64().ok_or_else(|| format!("{function} of {}", show(n))));
            let numbers = numbers.collect::<Result<Vec<i64>, String>>()?;
            let rest = numbers[1..].iter().fold(0_i64, |sum, n| sum.saturating_add(*n));
            let result = if function == "add" {
                numbers[0].saturating_add(rest)
            } else {
                numbers[0].saturating_sub(rest)
            };
            result.into()
        }
        other => return Err(format!("function {other:?} is not supported")),
    })
}

fn compare(function: &str, a: &Value, b: &Value) -> Result<Value, String> {
    let order = match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    };
    let order = order.ok_or_else(|| format!("{function} of {} and {}", show(a), show(b)))?;
    Ok(match function {
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        _ => order.is_ge(),
    }
    .into())
}

fn index(value: &Value, key: &Value) -> Result<Value, String> {
    match (value, key) {
        (Value::Null, _) => Ok(Value::Null),
        (Value::Object(map), Value::String(key)) => Ok(map.get(key).cloned().unwrap_or_default()),
        (Value::Array(list), Value::Number(at)) => {
            let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
            Ok(at.and_then(|at| list.get(at)).cloned().unwrap_or_default())
        }
        _ => Err(format!("index of {} by {}", show(value), show(key))),
    }
}

fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let (mut out, mut rest, mut values) = (String::new(), format, arguments.iter());
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let mut verbs = after.chars();
        match verbs.next() {
            Some('%') => out.push('%'),
            Some(verb @ ('s' | 'd' | 'v' | 'q')) => {
                let value = values.next().ok_or_else(|| format!("printf {format:?} lacks an argument"))?;
                out.push_str(&if verb == 'q' { show(&quote(value)) } else { show(value) });
            }
            _ => return Err(format!("printf {format:?}: only %s, %d, %v and %q are supported")),
        }
        rest = verbs.as_str();
    }
    out.push_str(rest);
    Ok(out)
}

/// JSON is YAML; kept on one line, it fits any indentation.
fn yaml(value: &Value, _indent: u64) -> Value {
    value.to_string().into()
}
