//! Parser of the `#[resource(...)]` attributes.

use proc_macro2::Span;
use syn::{
    DeriveInput, Error, Ident, LitStr, Path, Result, Token, Type, meta::ParseNestedMeta, parse::ParseStream,
    punctuated::Punctuated,
};

#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) kind_span: Option<Span>,
    pub(crate) namespaced: bool,
    pub(crate) status: Option<Type>,
    pub(crate) plural: Option<String>,
    pub(crate) singular: Option<String>,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) columns: Vec<Column>,
    pub(crate) spec_rules: Vec<(String, String)>,
    pub(crate) object_rules: Vec<(String, String)>,
    pub(crate) scale: Option<Scale>,
    pub(crate) versions: Vec<String>,
    /// Trait methods that delegate to a user's function.
    pub(crate) functions: Vec<(Ident, Path)>,
    pub(crate) core: Option<Path>,
}

#[derive(Default)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) kind: String,
    pub(crate) wide: bool,
}

#[derive(Default)]
pub(crate) struct Scale {
    pub(crate) spec: String,
    pub(crate) status: String,
    pub(crate) selector: String,
}

const FUNCTIONS: [&str; 5] = ["default", "validate", "validate_status", "from_version", "to_version"];

fn string(meta: &ParseNestedMeta<'_>) -> Result<String> {
    Ok(meta.value()?.parse::<LitStr>()?.value())
}

fn strings(meta: &ParseNestedMeta<'_>) -> Result<Vec<String>> {
    let inner;
    syn::parenthesized!(inner in meta.input);
    let all = Punctuated::<LitStr, Token![,]>::parse_terminated(&inner)?;
    Ok(all.iter().map(LitStr::value).collect())
}

fn rule(meta: &ParseNestedMeta<'_>) -> Result<(String, String)> {
    let mut both = strings(meta)?.into_iter();
    match (both.next(), both.next(), both.next()) {
        (Some(rule), Some(message), None) => Ok((rule, message)),
        _ => Err(meta.error("a rule takes two strings: a CEL expression and its message")),
    }
}

/// Parsed by hand, because `type` is a keyword and `parse_nested_meta` does not accept it.
fn column(input: ParseStream<'_>) -> Result<Column> {
    let mut column = Column { kind: "string".into(), ..Column::default() };
    while !input.is_empty() {
        let key: Ident = input.call(syn::ext::IdentExt::parse_any)?;
        if key == "wide" {
            column.wide = true;
        } else {
            input.parse::<Token![=]>()?;
            let value = input.parse::<LitStr>()?.value();
            match key.to_string().as_str() {
                "name" => column.name = value,
                "path" => column.path = value,
                "type" => column.kind = value,
                _ => return Err(Error::new(key.span(), "a column has name, path, type and wide")),
            }
        }
        if !input.is_empty() {
            input.parse::<Token![,]>()?;
        }
    }
    if column.name.is_empty() || !column.path.starts_with('.') {
        return Err(input.error("a column needs name = \"...\" and path = \".spec...\""));
    }
    Ok(column)
}

impl Attributes {
    pub(crate) fn read(input: &DeriveInput) -> Result<Self> {
        let mut all = Attributes::default();
        let mut any = false;
        for attribute in input.attrs.iter().filter(|a| a.path().is_ident("resource")) {
            any = true;
            attribute.parse_nested_meta(|meta| all.take(&meta))?;
        }
        let missing = [("group", &all.group), ("version", &all.version), ("kind", &all.kind)];
        let missing: Vec<&str> =
            missing.iter().filter(|(_, v)| v.is_empty()).map(|(name, _)| *name).collect();
        if !any || !missing.is_empty() {
            let what = missing.join(", ");
            let message = format!(
                "#[resource(...)] lacks {what}: for example group = \"example.com\", version = \"v1\", kind = \"Shop\""
            );
            return Err(Error::new(input.ident.span(), message));
        }
        if input.ident == all.kind {
            let message = "kind is the name of the type that is made, so the struct of the spec must have another, such as ...Spec";
            return Err(Error::new(all.kind_span.unwrap_or_else(|| input.ident.span()), message));
        }
        Ok(all)
    }

    fn take(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
        match name.as_str() {
            "group" => self.group = string(meta)?,
            "version" => self.version = string(meta)?,
            "kind" => {
                let kind = meta.value()?.parse::<LitStr>()?;
                self.kind_span = Some(kind.span());
                self.kind = kind.value();
                let fits = self.kind.starts_with(|c: char| c.is_ascii_uppercase())
                    && self.kind.chars().all(|c| c.is_ascii_alphanumeric());
                if !fits {
                    return Err(Error::new(
                        kind.span(),
                        "a kind is letters and digits, the first one a capital",
                    ));
                }
            }
            "namespaced" => self.namespaced = true,
            "status" => self.status = Some(meta.value()?.parse()?),
            "plural" => self.plural = Some(string(meta)?),
            "singular" => self.singular = Some(string(meta)?),
            "short_names" => self.short_names.extend(strings(meta)?),
            "categories" => self.categories.extend(strings(meta)?),
            "versions" => self.versions.extend(strings(meta)?),
            "rule" => self.spec_rules.push(rule(meta)?),
            "object_rule" => self.object_rules.push(rule(meta)?),
            "column" => {
                let inner;
                syn::parenthesized!(inner in meta.input);
                self.columns.push(column(&inner)?);
            }
            "scale" => {
                let mut scale = Scale::default();
                meta.parse_nested_meta(|part| {
                    match part.path.get_ident().map(ToString::to_string).as_deref() {
                        Some("spec") => scale.spec = string(&part)?,
                        Some("status") => scale.status = string(&part)?,
                        Some("selector") => scale.selector = string(&part)?,
                        _ => return Err(part.error("scale has spec, status and selector")),
                    }
                    Ok(())
                })?;
                self.scale = Some(scale);
            }
            "crate" => self.core = Some(meta.value()?.parse()?),
            _ if FUNCTIONS.contains(&name.as_str()) => {
                let function = meta.value()?.parse()?;
                self.functions.push((Ident::new(&name, Span::call_site()), function));
            }
            _ => return Err(meta.error("unknown argument: the crate page of k8s-derive lists all")),
        }
        Ok(())
    }

    /// Returns the plural: given, or formed by English rules.
    pub(crate) fn plural(&self) -> String {
        if let Some(plural) = &self.plural {
            return plural.clone();
        }
        let one = self.kind.to_lowercase();
        let before_y = one.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']));
        match before_y {
            Some(stem) => format!("{stem}ies"),
            None if ["s", "x", "z", "ch", "sh"].iter().any(|end| one.ends_with(end)) => format!("{one}es"),
            None => format!("{one}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Attributes> {
        Attributes::read(&syn::parse_str(&format!("#[resource({text})] struct S {{}}")).unwrap())
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |text: &str, want: &str| {
            let said = read(text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains(want), "{text}: {said:?}");
        };
        const FULL: &str = "group = \"g.io\", version = \"v1\", kind = \"K\"";
        check("group = \"g\", kind = \"K\"", "lacks version");
        check("group = \"g\", version = \"v1\", kind = \"S\"", "another");
        check("group = \"g\", version = \"v1\", kind = \"shop\"", "a capital");
        check(&format!("{FULL}, nonsense"), "unknown");
        check(&format!("{FULL}, rule(\"a\")"), "two strings");
        check(&format!("{FULL}, column(name = \"A\")"), "path");
        assert!(read(FULL).is_ok());
    }

    #[test]
    fn plurals() {
        let plural = |kind: &str| {
            read(&format!("group = \"g\", version = \"v1\", kind = \"{kind}\"")).unwrap().plural()
        };
        assert_eq!(
            ["Shop", "Policy", "Proxy", "Gateway", "Box"].map(plural),
            ["shops", "policies", "proxies", "gateways", "boxes"]
        );
    }
}
