//! Objects that an expression makes: `Object{...}` with its parts, and `JSONPatch{...}`.

use std::sync::Arc;

use super::{Checked, Checker, Op, Text, Type, Value, field_name};
use crate::{
    ast::{Expr, Id},
    cost::Estimate,
    cost::MAP,
    types::declared::ObjectType,
};

const OBJECT: &str = "Object";
const PATCH: &str = "JSONPatch";

/// Fields of a JSONPatch, and whether their value is a text.
const PATCH_FIELDS: [(&str, bool); 4] = [("op", true), ("path", true), ("from", true), ("value", false)];

impl Checker<'_> {
    /// Checks the making of an object. It is a map at evaluation, with the fields' names as keys.
    pub(super) fn object(&mut self, at: u32, name: &str, fields: &[(String, Id, bool)]) -> Checked {
        let name = name.strip_prefix('.').unwrap_or(name);
        let is_object = name == OBJECT || name.starts_with("Object.");
        if !self.makes_objects || !(is_object || name == PATCH) {
            return self.error(at, format!("undeclared reference to '{name}' (in container '')"));
        }
        let mut ops = Vec::with_capacity(fields.len());
        let mut total = Estimate::fixed(MAP);
        for (field, value, optional) in fields {
            let value_at = self.ast.node(*value).at;
            if is_object {
                self.place(*value, &format!("{name}.{field}"));
            }
            let checked = self.expr(*value);
            let checked = self.unwrapped(checked, *optional, value_at);
            let known = PATCH_FIELDS.iter().find(|(known, _)| known == field);
            match known {
                _ if is_object => {}
                None => drop(self.error(at, format!("undefined field '{field}'"))),
                Some((_, true)) if !Type::String.accepts(&checked.ty) => {
                    let found = &checked.ty;
                    let why = format!(
                        "expected type of field '{field}' is 'string' but provided type is '{found}'"
                    );
                    self.error(value_at, why);
                }
                Some(_) => {}
            }
            let key = Value::String(Text::Shared(field_name(field).property.as_ref().into()));
            let key = self.op(Op::Const(key));
            total = total.plus(checked.cost);
            ops.push((key, checked.op, *optional));
        }
        let ty = Type::Object(Arc::new(ObjectType {
            name: name.to_owned(),
            fields: Default::default(),
            open: true,
        }));
        let mut done = self.done(ty, Op::Map(ops.into()), 0);
        done.cost = total;
        done
    }

    /// Checks that an object made in a place is named by the place; in a list, each of its elements.
    fn place(&mut self, value: Id, place: &str) {
        let node = self.ast.node(value);
        match &node.expr {
            Expr::Struct { name, .. } if name.strip_prefix('.').unwrap_or(name) != place && name != PATCH => {
                let why = format!(
                    "unexpected type name {name:?}, expected {place:?}, which matches field name path from root Object type"
                );
                self.error(node.at, why);
            }
            Expr::List(elements) => {
                for (element, _) in elements {
                    self.place(*element, place);
                }
            }
            _ => {}
        }
    }
}
