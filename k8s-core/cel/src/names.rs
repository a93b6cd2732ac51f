//! Escapes property names that are not CEL identifiers (`namespace`, `a-b`, `a/b`), as Kubernetes does.

/// Reserved words of CEL.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

const SIGNS: [(&str, &str); 4] = [("__", "underscores"), (".", "dot"), ("-", "dash"), ("/", "slash")];

/// Returns true for a reserved word.
pub(super) fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// Escapes a property name. `None` if it cannot be escaped.
///
/// ```
/// assert_eq!(k8s_cel::escape("a-b").as_deref(), Some("a__dash__b"));
/// assert_eq!(k8s_cel::escape("namespace").as_deref(), Some("__namespace__"));
/// assert_eq!(k8s_cel::escape("a b"), None);
/// ```
#[must_use]
pub fn escape(property: &str) -> Option<String> {
    if property.is_empty() || property.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if is_reserved(property) {
        return Some(format!("__{property}__"));
    }
    let mut out = String::with_capacity(property.len());
    let mut rest = property;
    while let Some(first) = rest.chars().next() {
        if let Some((sign, name)) = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign)) {
            out.push_str("__");
            out.push_str(name);
            out.push_str("__");
            rest = rest.get(sign.len()..)?;
        } else if first.is_ascii_alphanumeric() || first == '_' {
            out.push(first);
            rest = rest.get(1..)?;
        } else {
            return None;
        }
    }
    Some(out)
}

/// Unescapes a name to the property name. `None` if it is not a valid escaped name.
///
/// ```
/// assert_eq!(k8s_cel::unescape("a__dash__b").as_deref(), Some("a-b"));
/// assert_eq!(k8s_cel::unescape("__strange__"), None);
/// ```
#[must_use]
pub fn unescape(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(start) = rest.find("__") {
        let inner = rest.get(start + 2..)?;
        let Some(end) = inner.find('_') else { break };
        let word = inner.get(..end)?;
        if word.is_empty() || !inner.get(end..)?.starts_with("__") {
            // Not an escape sequence: continue after its first character.
            let next = start + 1;
            out.push_str(rest.get(..next)?);
            rest = rest.get(next..)?;
            continue;
        }
        out.push_str(rest.get(..start)?);
        match SIGNS.iter().find(|(_, name)| *name == word) {
            Some((sign, _)) => out.push_str(sign),
            None if is_reserved(word) && name.len() == word.len() + 4 => out.push_str(word),
            None => return None,
        }
        rest = inner.get(end + 2..)?;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_their_escapes() {
        for (property, name) in [
            ("foo", "foo"),
            ("namespace", "__namespace__"),
            ("x-prop", "x__dash__prop"),
            ("redact__d", "redact__underscores__d"),
            ("a.b/c", "a__dot__b__slash__c"),
            ("_x_", "_x_"),
            ("a_", "a_"),
        ] {
            assert_eq!(escape(property).as_deref(), Some(name), "{property}");
            assert_eq!(unescape(name).as_deref(), Some(property), "{name}");
        }
        assert_eq!(escape("1a"), None);
        assert_eq!(escape("é"), None);
    }

    proptest! {
        #[test]
        fn unescaping_undoes_escaping(property in "[a-zA-Z.\\-/][a-zA-Z0-9.\\-/]{0,12}(_[a-z]{0,3})?") {
            let name = escape(&property).unwrap();
            prop_assert_eq!(unescape(&name), Some(property));
        }

        #[test]
        fn never_panics(text in "\\PC{0,20}") {
            let _ = (escape(&text), unescape(&text));
        }
    }
}
