//! Named formats: `format.dns1123Label().validate(x)`.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Cost, Cx, Form, Function, function, global, no_overload};
use crate::{
    error::EvalError,
    types::{Opaque, T},
    value::{Value, format::Format, time, url::Url},
};

const FORMAT: T = T::Op(Opaque::Format);
const MAKE: &[(&[T], T)] = &[(&[], FORMAT)];

static FORMATS: [Format; 13] = [
    Format { name: "dns1123Label", check: |text| label(text) },
    Format { name: "dns1123Subdomain", check: |text| subdomain(text) },
    Format { name: "dns1035Label", check: |text| label_1035(text) },
    Format { name: "qualifiedName", check: qualified_name },
    Format { name: "dns1123LabelPrefix", check: |text| label(&masked(text)) },
    Format { name: "dns1123SubdomainPrefix", check: |text| subdomain(&masked(text)) },
    Format { name: "dns1035LabelPrefix", check: |text| label_1035(&masked(text)) },
    Format { name: "labelValue", check: label_value },
    Format { name: "uri", check: |text| told(Url::parse(text).is_ok(), "invalid URI for request") },
    Format { name: "uuid", check: |text| told(is_uuid(text), "does not match the UUID format") },
    Format { name: "byte", check: |text| told(STANDARD.decode(text).is_ok(), "invalid base64") },
    Format { name: "date", check: |text| told(time::parse_date(text).is_some(), "invalid date") },
    Format {
        name: "datetime",
        check: |text| told(time::parse_timestamp(text).is_some(), "invalid datetime"),
    },
];

/// Defines a constructor function for each of [`FORMATS`].
macro_rules! makers {
    ($($i:literal $name:literal),*) => {
        &[
            $(global(concat!("format.", $name), MAKE, |_, _| Ok(Value::Format(&FORMATS[$i]))),)*
            global("format.named", &[(&[T::Str], T::Opt(&FORMAT))], named),
            function("validate", Form::Member, Cost::Second, &[(&[FORMAT, T::Str], T::Opt(&T::List(&T::Str)))], validate),
        ]
    };
}

pub(super) const FUNCTIONS: &[Function] = makers![
    0 "dns1123Label", 1 "dns1123Subdomain", 2 "dns1035Label", 3 "qualifiedName", 4 "dns1123LabelPrefix",
    5 "dns1123SubdomainPrefix", 6 "dns1035LabelPrefix", 7 "labelValue", 8 "uri", 9 "uuid", 10 "byte", 11 "date", 12 "datetime"
];

fn named<'a>(_: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::String(name)] => {
            Ok(FORMATS.iter().find(|format| format.name == &**name).map(Value::Format).into())
        }
        _ => no_overload(),
    }
}

fn validate<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [Value::Format(format), Value::String(text)] = args else { return no_overload() };
    cx.meter.work(text.len() as u64 * 4)?;
    let wrong = (format.check)(text);
    let wrong = (!wrong.is_empty()).then(|| wrong.into_iter().map(Value::from).collect::<Vec<_>>().into());
    Ok(wrong.into())
}

fn told(good: bool, what: &str) -> Vec<String> {
    if good { Vec::new() } else { vec![what.into()] }
}

/// Makes a trailing dash valid: a generated name continues after a prefix.
fn masked(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if text.len() > 1 => format!("{rest}a"),
        _ => text.to_owned(),
    }
}

fn longest(text: &str, most: usize) -> Vec<String> {
    told(text.len() <= most, &format!("must be no more than {most} bytes"))
}

fn is_part(text: &str, first: fn(u8) -> bool) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match text.as_bytes() {
        [] => false,
        [one] => first(*one),
        [start, middle @ .., end] => {
            first(*start) && inner(*end) && middle.iter().all(|b| inner(*b) || *b == b'-')
        }
    }
}

fn is_start(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn label(text: &str) -> Vec<String> {
    const WRONG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let mut out = longest(text, 63);
    out.extend(told(is_part(text, is_start), WRONG));
    out
}

fn label_1035(text: &str) -> Vec<String> {
    const WRONG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    let mut out = longest(text, 63);
    out.extend(told(is_part(text, |b| b.is_ascii_lowercase()), WRONG));
    out
}

fn subdomain(text: &str) -> Vec<String> {
    const WRONG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let mut out = longest(text, 253);
    out.extend(told(text.split('.').all(|part| is_part(part, is_start)), WRONG));
    out
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

fn label_value(text: &str) -> Vec<String> {
    const WRONG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    let mut out = longest(text, 63);
    out.extend(told(text.is_empty() || is_name(text), WRONG));
    out
}

fn qualified_name(text: &str) -> Vec<String> {
    const WRONG: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let mut out = Vec::new();
    match prefix {
        Some("") => out.push("prefix part must be non-empty".into()),
        Some(prefix) => out.extend(subdomain(prefix).into_iter().map(|wrong| format!("prefix part {wrong}"))),
        None => {}
    }
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else {
        out.extend(longest(name, 63).into_iter().map(|wrong| format!("name part {wrong}")));
    }
    out.extend(told(is_name(name), WRONG));
    out
}

fn is_uuid(text: &str) -> bool {
    let hex = text.bytes().filter(|b| *b != b'-');
    text.len() <= 36 && hex.clone().count() == 32 && hex.into_iter().all(|b| b.is_ascii_hexdigit())
}
