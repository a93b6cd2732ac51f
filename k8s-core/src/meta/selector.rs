//! Label and field selectors: parsing, matching, formatting.

use std::{collections::BTreeMap, fmt, str::FromStr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiLabelSelector;

/// The text or structure is not a valid selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// A requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Key of the label, such as `app.kubernetes.io/name`.
    pub key: String,
    /// Operator with its values.
    pub operator: Operator,
}

/// Operator of a requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label exists with one of these values.
    In(Vec<String>),
    /// The label does not exist, or has none of these values.
    NotIn(Vec<String>),
    /// The label exists, with any value.
    Exists,
    /// The label does not exist.
    DoesNotExist,
    /// The label is an integer above this one.
    GreaterThan(i64),
    /// The label is an integer below this one.
    LessThan(i64),
}

/// A label selector: all requirements must match; without any it matches everything.
///
/// ```
/// use k8s_core::meta::selector::LabelSelector;
/// let selector: LabelSelector = "app in (web, api),tier!=test".parse()?;
/// let labels = |app: &str| [("app".to_owned(), app.to_owned())].into();
/// assert!(selector.matches(Some(&labels("web"))) && !selector.matches(Some(&labels("db"))));
/// assert!("".parse::<LabelSelector>()?.is_everything());
/// assert!("app in web".parse::<LabelSelector>().is_err());
/// # Ok::<(), k8s_core::meta::selector::SelectorError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Requirements that must all be met; none selects everything.
    pub requirements: Vec<Requirement>,
}

impl Requirement {
    /// Returns true if a label value (`None`: absent) satisfies the requirement.
    #[must_use]
    pub fn accepts(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(limit) => number().is_some_and(|n| n > *limit),
            Operator::LessThan(limit) => number().is_some_and(|n| n < *limit),
        }
    }
}

impl LabelSelector {
    /// Creates a selector of objects with all these labels.
    #[must_use]
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) })
            .collect();
        LabelSelector { requirements }
    }

    /// Converts the API's structure. For most of the API an absent selector matches nothing; that is up to
    /// the caller.
    ///
    /// # Errors
    /// An operator is unknown or has the wrong number of values.
    pub fn from_api(selector: &ApiLabelSelector) -> Result<Self, SelectorError> {
        let mut result = LabelSelector::from_labels(&selector.match_labels.clone().unwrap_or_default());
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            let operator = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Operator::In(values),
                ("NotIn", false) => Operator::NotIn(values),
                ("Exists", true) => Operator::Exists,
                ("DoesNotExist", true) => Operator::DoesNotExist,
                ("In" | "NotIn", true) => {
                    return Err(SelectorError(format!(
                        "values of {:?} must be specified when `operator` is 'In' or 'NotIn'",
                        expression.key
                    )));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(SelectorError(format!(
                        "values of {:?} may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                        expression.key
                    )));
                }
                (other, _) => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            result.requirements.push(Requirement { key: expression.key.clone(), operator });
        }
        Ok(result)
    }

    /// Returns true if the labels satisfy all requirements.
    #[must_use]
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    /// As [`LabelSelector::matches`], for labels in any form.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.accepts(label(&r.key)))
    }

    /// Returns true if it matches everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            match &r.operator {
                Operator::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Operator::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Operator::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Operator::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Operator::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Comma,
    Open,
    Close,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, SelectorError> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { return Ok(out) };
        let special = |c: char| "=!(),<>".contains(c) || c.is_whitespace();
        let (token, length) = match first {
            ',' => (Token::Comma, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '>' => (Token::Greater, 1),
            '<' => (Token::Less, 1),
            '!' if rest.starts_with("!=") => (Token::NotEquals, 2),
            '!' => (Token::Not, 1),
            '=' if rest.starts_with("==") => (Token::Equals, 2),
            '=' => (Token::Equals, 1),
            _ => {
                let end = rest.find(special).unwrap_or(rest.len());
                (Token::Word(&rest[..end]), end)
            }
        };
        out.push(token);
        rest = &rest[length..];
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let error = |message: String| SelectorError(format!("unable to parse requirement: {message}"));
        let found = |token: Option<&Token<'_>>| match token {
            None => "''".to_owned(),
            Some(Token::Word(w)) => format!("'{w}'"),
            Some(Token::Comma) => "','".into(),
            Some(Token::Open) => "'('".into(),
            Some(Token::Close) => "')'".into(),
            Some(Token::Not) => "'!'".into(),
            Some(Token::Equals) => "'='".into(),
            Some(Token::NotEquals) => "'!='".into(),
            Some(Token::Greater) => "'>'".into(),
            Some(Token::Less) => "'<'".into(),
        };
        let all = tokens(text)?;
        let mut at = all.iter().peekable();
        let mut requirements = Vec::new();
        while at.peek().is_some() {
            let negated = at.next_if_eq(&&Token::Not).is_some();
            let key = match at.next() {
                Some(Token::Word(word)) => (*word).to_owned(),
                other => {
                    return Err(error(format!("found {}, expected: identifier", found(other))));
                }
            };
            check_key(&key).map_err(|m| error(format!("key: Invalid value: {key:?}: {m}")))?;
            let operator = if negated {
                Operator::DoesNotExist
            } else {
                match at.peek() {
                    None | Some(Token::Comma) => Operator::Exists,
                    Some(Token::Equals | Token::NotEquals) => {
                        let equal = at.next() == Some(&Token::Equals);
                        let value = match at.peek() {
                            Some(Token::Word(w)) => {
                                at.next();
                                (*w).to_owned()
                            }
                            None | Some(Token::Comma) => String::new(),
                            other => {
                                let other = found(other.copied());
                                return Err(error(format!("found {other}, expected: identifier")));
                            }
                        };
                        check_value(&value)
                            .map_err(|m| error(format!("values[0][{key}]: Invalid value: {value:?}: {m}")))?;
                        if equal { Operator::In(vec![value]) } else { Operator::NotIn(vec![value]) }
                    }
                    Some(Token::Greater | Token::Less) => {
                        let greater = at.next() == Some(&Token::Greater);
                        let value = at.next();
                        let number = match value {
                            Some(Token::Word(w)) => w.parse().ok(),
                            _ => None,
                        };
                        let Some(number) = number else {
                            return Err(error(format!(
                                "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                                found(value)
                            )));
                        };
                        if greater { Operator::GreaterThan(number) } else { Operator::LessThan(number) }
                    }
                    Some(Token::Word(word @ ("in" | "notin"))) => {
                        at.next();
                        if at.next() != Some(&Token::Open) {
                            return Err(error(format!("found '{word}', expected: '('")));
                        }
                        let mut values = Vec::new();
                        loop {
                            match at.next() {
                                Some(Token::Word(w)) => {
                                    check_value(w).map_err(|m| {
                                        error(format!("values[0][{key}]: Invalid value: {w:?}: {m}"))
                                    })?;
                                    values.push((*w).to_owned());
                                }
                                Some(Token::Comma) => continue,
                                Some(Token::Close) => break,
                                other => {
                                    return Err(error(format!(
                                        "found {}, expected: ',' or ')'",
                                        found(other)
                                    )));
                                }
                            }
                        }
                        if values.is_empty() {
                            values.push(String::new());
                        }
                        if *word == "in" { Operator::In(values) } else { Operator::NotIn(values) }
                    }
                    other => {
                        return Err(error(format!(
                            "found {}, expected: in, notin, =, ==, !=, gt, lt",
                            found(other.copied())
                        )));
                    }
                }
            };
            requirements.push(Requirement { key, operator });
            match at.next() {
                None => break,
                Some(Token::Comma) if at.peek().is_some() => {}
                Some(Token::Comma) => return Err(error("found '', expected: identifier after ','".into())),
                other => {
                    return Err(error(format!("found {}, expected: ',' or 'end of string'", found(other))));
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements })
    }
}

/// Validates a label key: a qualified name with an optional DNS prefix and a name of at most 63 characters.
fn check_key(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let prefix_ok = prefix.is_none_or(|p| {
        !p.is_empty()
            && p.len() <= 253
            && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
    });
    if prefix_ok && !name.is_empty() && is_name(name) {
        Ok(())
    } else {
        Err(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        )
    }
}

fn check_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || is_name(value) {
        Ok(())
    } else {
        Err(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        )
    }
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.len() <= 63
        && text.bytes().all(inner)
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && text.as_bytes().last().is_some_and(u8::is_ascii_alphanumeric)
}

/// A field selector: all terms must match.
///
/// ```
/// use k8s_core::meta::selector::FieldSelector;
/// let selector: FieldSelector = "spec.nodeName=n1,status.phase!=Failed".parse()?;
/// assert_eq!(selector.required("spec.nodeName"), Some("n1"));
/// let pod = |path: &str| if path == "spec.nodeName" { "n1" } else { "Running" }.to_owned();
/// assert!(selector.matches_with(pod));
/// # Ok::<(), k8s_core::meta::selector::SelectorError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field path, `true` for equality, value.
    pub terms: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// Returns true if all terms match. `field` returns a field's value as text; absent fields are empty.
    pub fn matches_with(&self, field: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|(path, equal, value)| (field(path) == *value) == *equal)
    }

    /// Returns the value that the selector requires for `path`, if any.
    #[must_use]
    pub fn required(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|(p, equal, _)| *equal && p == path).map(|(_, _, v)| v.as_str())
    }
}

impl FromStr for FieldSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in text.split(',').filter(|t| !t.is_empty()) {
            let (path, equal, value) = if let Some((p, v)) = term.split_once("!=") {
                (p, false, v)
            } else if let Some((p, v)) = term.split_once("==") {
                (p, true, v)
            } else if let Some((p, v)) = term.split_once('=') {
                (p, true, v)
            } else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            terms.push((path.trim().to_owned(), equal, value.trim().to_owned()));
        }
        Ok(FieldSelector { terms })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn matches() {
        let have = labels(&[("app", "web"), ("tier", "2")]);
        for (selector, want) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app!=web", false),
            ("missing!=web", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("!app", false),
            ("!x", true),
            ("tier>1", true),
            ("tier<2", false),
            ("app=", false),
        ] {
            let parsed: LabelSelector = selector.parse().unwrap();
            assert_eq!(parsed.matches(Some(&have)), want, "{selector}");
        }
    }

    #[test]
    fn malformed() {
        for selector in ["x===1", "a b", "a in b", "a in (b", ",", "a,", "=x", "a>x", "a=b c", "-a"] {
            assert!(selector.parse::<LabelSelector>().is_err(), "{selector}");
        }
    }

    #[test]
    fn fields() {
        let s: FieldSelector = "spec.nodeName=n1,status.phase!=Failed".parse().unwrap();
        assert!(s.matches_with(|p| if p == "spec.nodeName" { "n1".into() } else { String::new() }));
        assert_eq!(s.required("spec.nodeName"), Some("n1"));
        assert_eq!(s.required("status.phase"), None);
        assert!("nonsense".parse::<FieldSelector>().is_err());
    }

    proptest! {
        #[test]
        fn string_form_round_trips(key in "[a-z]{1,5}", values in proptest::collection::vec("[a-z]{1,3}", 1..4), not in any::<bool>()) {
            let operator = if not { Operator::NotIn(values) } else { Operator::In(values) };
            let selector = LabelSelector { requirements: vec![Requirement { key, operator }] };
            prop_assert_eq!(selector.to_string().parse::<LabelSelector>().unwrap(), selector);
        }

        #[test]
        fn never_panics(text in "[a-z=!(),<> /.-]{0,30}") {
            let _ = text.parse::<LabelSelector>();
            let _ = text.parse::<FieldSelector>();
        }
    }
}
