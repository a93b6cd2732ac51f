//! `fieldPath`: the field at which a violated rule is reported.

use serde_json::Value;

/// Resolves a path below a schema to the form used in errors.
///
/// # Errors
/// The path is not in the schema.
pub(super) fn normalize(path: &str, schema: &Value) -> Result<String, ()> {
    let mut at = schema;
    let mut out = String::new();
    let mut rest = path;
    while !rest.is_empty() {
        let name;
        (name, rest) = next(rest)?;
        let properties = at.get("properties").and_then(Value::as_object).filter(|p| !p.is_empty());
        match (properties, at.get("additionalProperties").filter(|a| a.is_object())) {
            (Some(properties), _) => {
                at = properties.get(&name).ok_or(())?;
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(&name);
            }
            (None, Some(values)) => {
                at = values;
                out.push('[');
                out.push_str(&name);
                out.push(']');
            }
            (None, None) => return Err(()),
        }
    }
    Ok(out)
}

/// Returns the next element, `.name` or `['name']`, and the rest.
fn next(path: &str) -> Result<(String, &str), ()> {
    if let Some(rest) = path.strip_prefix('.') {
        let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        return if name.is_empty() { Err(()) } else { Ok((name.to_owned(), rest)) };
    }
    let quoted = path.strip_prefix("['").ok_or(())?;
    let mut name = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\'' => {
                let rest = quoted.get(i + 1..).and_then(|rest| rest.strip_prefix(']')).ok_or(())?;
                return Ok((name, rest));
            }
            '\\' => name.push(match chars.next().map(|(_, c)| c) {
                Some('a') => '\u{7}',
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\u{b}',
                Some(c @ ('\'' | '\\')) => c,
                _ => return Err(()),
            }),
            c => name.push(c),
        }
    }
    Err(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_and_what_is_none() {
        let schema = json!({"properties": {"a": {"properties": {"b.c": {"type": "string"}}},
            "m": {"additionalProperties": {"properties": {"x": {"type": "string"}}}}, "l": {"items": {}}}});
        for (path, want) in [
            (".a", Ok("a")),
            (".a['b.c']", Ok("a.b.c")),
            (".m['k'].x", Ok("m[k].x")),
            (".m.k", Ok("m[k]")),
            (".z", Err(())),
            (".l[0]", Err(())),
            ("a", Err(())),
            (".a[", Err(())),
            (".", Err(())),
            (".a['b", Err(())),
        ] {
            assert_eq!(normalize(path, &schema), want.map(str::to_owned), "{path}");
        }
    }
}
