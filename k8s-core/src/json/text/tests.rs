use std::{collections::BTreeMap, fmt::Debug};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Event, Node, Pod, Secret, Service},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::{apis::meta::v1::MicroTime, util::intstr::IntOrString},
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
enum Variant {
    Unit,
    Newtype(u8),
    Tuple(u8, String),
    Struct { a: Option<u8> },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    A { n: u16 },
    B { s: String },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(f64),
    Words(Vec<String>),
    Map(BTreeMap<String, Value>),
}

#[derive(Debug, PartialEq, Deserialize)]
struct Wrapped(String);

#[derive(Debug, PartialEq, Deserialize)]
struct Unit;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Scalars {
    i8: i8,
    i16: i16,
    i32: i32,
    i64: i64,
    i128: i128,
    u8: u8,
    u16: u16,
    u32: u32,
    u64: u64,
    u128: u128,
    f32: f32,
    f64: f64,
    bool: bool,
    char: char,
    string: String,
    unit: (),
    option: Option<Option<i32>>,
    wrapped: Option<Wrapped>,
    nothing: Option<Unit>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Nested {
    #[serde(default)]
    variants: Vec<Variant>,
    tagged: Option<Tagged>,
    untagged: Option<Untagged>,
    tuple: Option<(u8, String, Option<bool>)>,
    pairs: Option<[i16; 2]>,
    numbers: Option<BTreeMap<i32, String>>,
    sizes: Option<BTreeMap<u64, Wrapped>>,
    names: Option<BTreeMap<Variant2, i8>>,
    deep: Option<Box<Nested>>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Variant2 {
    A,
    B,
}

fn bare(error: &Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ").map_or(text.clone(), |end| text[..end].to_owned())
}

/// Compares errors by their messages. Those of syntax depend on the type in serde_json.
fn same_error(ours: &Error, theirs: &Error, text: &str) {
    assert!(!ours.is_data() || !theirs.is_data() || bare(ours) == bare(theirs), "{ours}, {theirs}: {text}");
    assert!(ours.line() > 0, "{ours}: {text}");
}

/// Compares with serde_json: the same value, or the same error.
fn same<T: for<'a> Deserialize<'a> + Debug>(text: &str) {
    let (ours, theirs) = (decode::<T>(text, true, Rules::Strict), serde_json::from_str::<T>(text));
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{text}");
            let leniently = decode::<T>(text, true, Rules::Zero).map(|value| format!("{value:?}"));
            assert_eq!(leniently.unwrap(), format!("{ours:?}"), "{text}");
        }
        (Err(ours), Err(theirs)) => {
            same_error(&ours, &theirs, text);
        }
        (ours, theirs) => panic!("{text}\nours: {ours:?}\nserde_json: {theirs:?}"),
    }
}

fn same_for_all(text: &str) {
    same::<Value>(text);
    same::<Scalars>(text);
    same::<Nested>(text);
    same::<Vec<Variant>>(text);
    same::<BTreeMap<String, f64>>(text);
    same::<IntOrString>(text);
    same::<MicroTime>(text);
    same::<Pod>(text);
    same::<ConfigMap>(text);
    same::<Secret>(text);
    same::<Service>(text);
    same::<StatefulSet>(text);
    same::<CustomResourceDefinition>(text);
    same::<Option<Event>>(text);
}

/// A member's name and a value that it may have, right or wrong.
fn member() -> impl Strategy<Value = (String, Value)> {
    let names = prop::sample::select(vec![
        "i8",
        "i16",
        "i32",
        "i64",
        "i128",
        "u8",
        "u16",
        "u32",
        "u64",
        "u128",
        "f32",
        "f64",
        "bool",
        "char",
        "string",
        "unit",
        "option",
        "wrapped",
        "nothing",
        "variants",
        "tagged",
        "untagged",
        "tuple",
        "pairs",
        "numbers",
        "sizes",
        "names",
        "deep",
        "metadata",
        "spec",
        "status",
        "data",
        "kind",
        "apiVersion",
        "containers",
        "ports",
        "name",
        "conditions",
        "Newtype",
        "Tuple",
        "Struct",
        "a",
        "1",
        "-7",
        "true",
        "é\"",
    ]);
    (names.prop_map(str::to_owned), value())
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec![
        "",
        "a",
        "é",
        "\"\\/\u{1}\n",
        "Unit",
        "A",
        "Pod",
        "v1",
        "2026-01-01T00:00:00Z",
        "aGk=",
        "𝄞 long text, longer",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![0.0, -0.0, 3.0, 1e300]).prop_map(Value::from),
        text.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 32, 5, |inner| {
        let names = prop::sample::select(vec![
            "metadata",
            "name",
            "labels",
            "spec",
            "containers",
            "ports",
            "containerPort",
            "kind",
            "n",
            "s",
            "a",
            "A",
            "1",
            "true",
            "Newtype",
            "Struct",
            "i32",
            "string",
            "deep",
            "variants",
            "template",
            "items",
        ]);
        prop_oneof![
            prop::collection::vec((names, inner.clone()), 0..5)
                .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
        ]
    })
}

fn document() -> impl Strategy<Value = String> {
    let object = prop::collection::vec(member(), 0..6).prop_map(|m| Value::Object(m.into_iter().collect()));
    (prop_oneof![4 => object, 1 => value()], any::<bool>()).prop_map(|(value, pretty)| match pretty {
        true => serde_json::to_string_pretty(&value).unwrap(),
        false => value.to_string(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn documents_are_read_as_serde_json_reads_them(text in document()) {
        same_for_all(&text);
    }

    /// Cut, inserted and overwritten bytes.
    #[test]
    fn damaged_documents_are_read_as_serde_json_reads_them(
        text in document(),
        at in any::<prop::sample::Index>(),
        remove in 0..3usize,
        insert in prop::sample::select(vec![
            "", ",", ":", "\"", "\\", "\\u12", "\\ud800", "{", "}", "[", "]", "0", "-", "1.", "e5", "null", "nul",
            "true", " ", "\n", "\t", "\u{0}", "\u{b}", "é", "//", "1e999", "00", "\"\\u0041\"",
        ]),
    ) {
        let mut chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len() + 1);
        let end = (at + remove).min(chars.len());
        chars.splice(at..end, insert.chars());
        let text: String = chars.into_iter().collect();
        let (ours, theirs) = (decode::<Value>(&text, true, Rules::Strict), serde_json::from_str::<Value>(&text));
        match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
            (Err(ours), Err(theirs)) => same_error(ours, theirs, &text),
            _ => prop_assert!(false, "{text}\nours: {ours:?}\nserde_json: {theirs:?}"),
        }
        // Of a wrong type and wrong syntax, either may be found first.
        fn accepted<T: for<'a> Deserialize<'a>>(text: &str) -> [bool; 2] {
            [decode::<T>(text, true, Rules::Strict).is_ok(), serde_json::from_str::<T>(text).is_ok()]
        }
        for [ours, theirs] in [
            accepted::<Scalars>(&text), accepted::<Nested>(&text), accepted::<Pod>(&text), accepted::<IgnoredAny>(&text),
            accepted::<ConfigMap>(&text), accepted::<Box<RawValue>>(&text), accepted::<CustomResourceDefinition>(&text),
        ] {
            prop_assert_eq!(ours, theirs, "{}", text);
        }
    }
}

#[test]
fn corners_are_read_as_serde_json_reads_them() {
    let mut texts: Vec<String> = [
        "",
        " ",
        "null",
        "nul",
        "true",
        "tru",
        "0",
        "-0",
        "-",
        "01",
        "-01",
        "1.",
        "1.5",
        ".5",
        "1e5",
        "1E+2",
        "1e",
        "1e999",
        "123456789012345678",
        "1234567890123456789",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775808",
        "-9223372036854775809",
        "0.1",
        "0.30000000000000004",
        "3.0",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\",
        "\"\\x\"",
        "\"\\u00e9\"",
        "\"\\ud834\\udd1e\"",
        "\"\\ud834\"",
        "\"a\nb\"",
        "\"a\u{7f}\"",
        "[",
        "]",
        "[]",
        "[,]",
        "[1,]",
        "[1 2]",
        "[1,,2]",
        "[null]",
        "{",
        "}",
        "{}",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 \"b\":2}",
        "{a:1}",
        "{1:1}",
        "{\"a\" : 1 , \"b\":[ ]} ",
        "{} {}",
        "{}x",
        "[1]1",
        "{\"a\":1,\"a\":2}",
        "{\"i32\":1,\"i32\":2}",
        "{\"\\u0069\\u0033\\u0032\":7}",
        "[1,2,3]",
        "[\"Unit\",{\"Newtype\":3}]",
        "[{\"Tuple\":[1,\"x\"]},{\"Struct\":{\"a\":null}}]",
        "[{\"Newtype\":300}]",
        "[{\"Unit\":null}]",
        "[{\"Unit\":1}]",
        "[\"Other\"]",
        "{\"numbers\":{\"1\":\"a\",\"-2\":\"b\"}}",
        "{\"numbers\":{\"1.5\":\"a\"}}",
        "{\"numbers\":{\"x\":\"a\"}}",
        "{\"sizes\":{\"18446744073709551615\":\"a\"}}",
        "{\"true\":1,\"false\":2}",
        "{\"names\":{\"A\":1,\"B\":2}}",
        "{\"char\":\"ab\"}",
        "{\"i8\":128}",
        "{\"u8\":-1}",
        "{\"i32\":1.0}",
        "{\"f32\":0.1,\"f64\":1}",
        "{\"bool\":1}",
        "{\"i128\":170141183460469231731687303715884105727,\"u128\":340282366920938463463374607431768211455}",
        "{\"u128\":2.5}",
        "{\"i128\":-1e3}",
        "{\"i128\": 7 }",
        "{\"data\":{\"a\":null}}",
        "{\"data\":{\"a\":\"?\"}}",
        "{\"metadata\":{\"creationTimestamp\":\"x\"}}",
        "{\"metadata\":null,\"spec\":null}",
        "{\"kind\":\"Service\"}",
        "{\"apiVersion\":\"v2\"}",
        "\u{b}1",
        "{\"unknown\": {\"deep\": [1, {\"a\": \"}\"}]}, \"metadata\": {\"name\": \"n\"}}",
        "{\"unknown\": [1,}",
    ]
    .map(str::to_owned)
    .into();
    texts.extend([126, 127, 128, 129, 1000].map(|n| "[".repeat(n) + &"]".repeat(n)));
    texts.extend([125, 126, 127, 128].map(|n| "{\"deep\":".repeat(n) + "{}" + &"}".repeat(n)));
    texts.push(format!("{{\"unknown\":{}{}}}", "[".repeat(1000), "]".repeat(1000)));
    // Ends of plain strings at each offset of a word.
    texts.extend(
        (0..20)
            .flat_map(|n| ["\"", "\\n\"", "\n\"", "é\"", ""].map(|end| format!("\"{}{end}", "x".repeat(n)))),
    );
    same::<BTreeMap<Option<bool>, u8>>("{\"true\":1,\"false\":2}");
    for text in &texts {
        same_for_all(text);
        same::<f32>(text);
        same::<i64>(text);
        same::<u64>(text);
        same::<bool>(text);
        same::<String>(text);
        same::<Option<Vec<Option<u8>>>>(text);
        same::<Box<RawValue>>(text);
        same::<BTreeMap<i32, Value>>(text);
        same::<Node>(text);
        same::<Deployment>(text);
    }
}

#[test]
fn errors_have_the_place_and_the_path_of_the_strict_attempt() {
    let text = "{\"spec\": {\n  \"replicas\": \"three\"}}";
    let error = decode::<Deployment>(text, true, Rules::Strict).unwrap_err();
    assert_eq!(error.to_string(), "invalid type: string \"three\", expected i32 at line 2 column 21");
    assert_eq!(error.to_string(), serde_json::from_str::<Deployment>(text).unwrap_err().to_string());
    let cut = decode::<Deployment>("{\"spec\": {\"replicas\": 3", true, Rules::Strict).unwrap_err();
    assert!(cut.is_eof(), "{cut}");
    // Behind the value is the rest of another.
    assert_eq!(decode::<u8>("7, \"x", false, Rules::Strict).unwrap(), 7);
    assert!(decode::<Vec<u8>>("[7, ", false, Rules::Strict).unwrap_err().is_eof());
}
