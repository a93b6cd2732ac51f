//! Functions of `authorizer`: may the user do it?

use std::sync::Arc;

use super::{Cost, Form, Function, function, member, no_overload};
use crate::{
    error::EvalError,
    types::{Opaque, T},
    value::{
        Value,
        access::{Access, Stage},
    },
};

const AUTHORIZER: T = T::Op(Opaque::Authorizer);
const PATH: T = T::Op(Opaque::PathCheck);
const GROUP: T = T::Op(Opaque::GroupCheck);
const RESOURCE: T = T::Op(Opaque::ResourceCheck);
const DECISION: T = T::Op(Opaque::Decision);

/// Upstream's cost of a question.
const CHECK: u64 = 350_000;

pub(super) const FUNCTIONS: &[Function] = &[
    member("path", &[(&[AUTHORIZER, T::Str], PATH)], |_, args| {
        with(args, Stage::Path, |access, text| match text {
            "" => Err("path must not be empty".to_owned()),
            path => {
                path.clone_into(&mut access.check.path);
                Ok(())
            }
        })
    }),
    member("group", &[(&[AUTHORIZER, T::Str], GROUP)], |_, args| {
        with(args, Stage::Group, |access, text| {
            text.clone_into(&mut access.check.group);
            Ok(())
        })
    }),
    member("serviceAccount", &[(&[AUTHORIZER, T::Str, T::Str], AUTHORIZER)], |_, args| match args {
        [Value::Access(access), Value::String(namespace), Value::String(name)] => {
            let is_name = |text: &str, most: usize| {
                !text.is_empty()
                    && text.len() <= most
                    && text.split('.').all(|label| {
                        let inner =
                            label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
                        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
                    })
            };
            if !is_name(name, 253) {
                return EvalError::failed("Invalid service account name");
            }
            if namespace.contains('.') || !is_name(namespace, 63) {
                return EvalError::failed("Invalid service account namespace");
            }
            let mut access = Access::clone(access);
            access.check.service_account = Some((namespace.to_string(), name.to_string()));
            Ok(Value::Access(Arc::new(access)))
        }
        _ => no_overload(),
    }),
    member("resource", &[(&[GROUP, T::Str], RESOURCE)], |_, args| {
        with(args, Stage::Resource, |access, text| {
            text.clone_into(&mut access.check.resource);
            Ok(())
        })
    }),
    member("subresource", &[(&[RESOURCE, T::Str], RESOURCE)], |_, args| {
        with(args, Stage::Resource, |access, text| {
            text.clone_into(&mut access.check.subresource);
            Ok(())
        })
    }),
    member("namespace", &[(&[RESOURCE, T::Str], RESOURCE)], |_, args| {
        with(args, Stage::Resource, |access, text| {
            text.clone_into(&mut access.check.namespace);
            Ok(())
        })
    }),
    member("name", &[(&[RESOURCE, T::Str], RESOURCE)], |_, args| {
        with(args, Stage::Resource, |access, text| {
            text.clone_into(&mut access.check.name);
            Ok(())
        })
    }),
    function("fieldSelector", Form::Member, Cost::Second, &[(&[RESOURCE, T::Str], RESOURCE)], |_, args| {
        with(args, Stage::Resource, |access, text| {
            text.clone_into(&mut access.check.field_selector);
            Ok(())
        })
    }),
    function("labelSelector", Form::Member, Cost::Second, &[(&[RESOURCE, T::Str], RESOURCE)], |_, args| {
        with(args, Stage::Resource, |access, text| {
            text.clone_into(&mut access.check.label_selector);
            Ok(())
        })
    }),
    function(
        "check",
        Form::Member,
        Cost::Fixed(CHECK),
        &[(&[PATH, T::Str], DECISION), (&[RESOURCE, T::Str], DECISION)],
        |_, args| match args {
            [Value::Access(access), Value::String(verb)] => {
                let mut access = Access::clone(access);
                access.check.verb = verb.to_string();
                access.answer = access.authority.decide(&access.check).ok_or(EvalError::Pending)?;
                access.stage = Stage::Decision;
                Ok(Value::Access(Arc::new(access)))
            }
            _ => no_overload(),
        },
    ),
    member("allowed", &[(&[DECISION], T::Bool)], |_, args| match args {
        [Value::Access(access)] => Ok(Value::Bool(access.answer.allowed)),
        _ => no_overload(),
    }),
    member("reason", &[(&[DECISION], T::Str)], |_, args| match args {
        [Value::Access(access)] => Ok(access.answer.reason.clone().into()),
        _ => no_overload(),
    }),
    member("errored", &[(&[DECISION], T::Bool)], |_, args| match args {
        [Value::Access(access)] => Ok(Value::Bool(access.answer.error.is_some())),
        _ => no_overload(),
    }),
    member("error", &[(&[DECISION], T::Str)], |_, args| match args {
        [Value::Access(access)] => Ok(access.answer.error.clone().unwrap_or_default().into()),
        _ => no_overload(),
    }),
];

/// Adds a text to a question.
fn with<'a>(
    args: &[Value<'a>],
    stage: Stage,
    set: impl FnOnce(&mut Access, &str) -> Result<(), String>,
) -> Result<Value<'a>, EvalError> {
    let [Value::Access(access), Value::String(text)] = args else { return no_overload() };
    let mut access = Access::clone(access);
    access.stage = stage;
    set(&mut access, text).map_err(EvalError::Failed)?;
    Ok(Value::Access(Arc::new(access)))
}
