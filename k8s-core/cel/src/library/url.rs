//! Functions of URLs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Cost, Cx, Form, Function, function, global, member, no_overload};
use crate::{
    error::EvalError,
    types::{Opaque, T},
    value::{
        Entries, Key, Map, Value,
        url::{Url, is_escaped_well},
    },
};

const URL: T = T::Op(Opaque::Url);
const PART: &[(&[T], T)] = &[(&[URL], T::Str)];

pub(super) const FUNCTIONS: &[Function] =
    &[
        function("url", Form::Global, Cost::Traverse(1), &[(&[T::Str], URL), (&[URL], URL)], |_, args| {
            match args {
                [Value::Url(url)] => Ok(Value::Url(url.clone())),
                [Value::String(text)] => match Url::parse(text) {
                    Ok(url) => Ok(Value::Url(Arc::new(url))),
                    Err(why) => {
                        EvalError::failed(format!("URL parse error during conversion from string: {why}"))
                    }
                },
                _ => no_overload(),
            }
        }),
        global("isURL", &[(&[T::Str], T::Bool)], |cx, args| match args {
            [Value::String(text)] => {
                cx.meter.work(text.len() as u64)?;
                Ok(Value::Bool(Url::parse(text).is_ok()))
            }
            _ => no_overload(),
        }),
        member("getScheme", PART, |_, args| part(args, |url| &url.scheme)),
        member("getHost", PART, |_, args| part(args, |url| &url.host)),
        member("getHostname", PART, |_, args| part(args, |url| &url.hostname)),
        member("getPort", PART, |_, args| part(args, |url| &url.port)),
        member("getEscapedPath", PART, |_, args| part(args, |url| &url.path)),
        member("getQuery", &[(&[URL], T::Map(&T::Str, &T::List(&T::Str)))], query),
    ];

fn part<'a>(args: &[Value<'a>], get: fn(&Url) -> &String) -> Result<Value<'a>, EvalError> {
    match args {
        [Value::Url(url)] => Ok(get(url).clone().into()),
        _ => no_overload(),
    }
}

fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    is_escaped_well(&text)
        .then(|| percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned())
}

fn query<'a>(cx: &mut Cx<'_>, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    let [Value::Url(url)] = args else { return no_overload() };
    cx.meter.work(url.query.len() as u64 * 8)?;
    let mut all: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (decode(key), decode(value)) {
            all.entry(key).or_default().push(value.into());
        }
    }
    let entries = all.into_iter().map(|(key, values)| {
        let key: Arc<str> = key.into();
        (Key::String(key.clone()), (Value::String(crate::value::Text::Shared(key)), values.into()))
    });
    Ok(Value::Map(Map::Made(Arc::new(Entries(entries.collect(), None)))))
}
