//! Get and list. Watch is in [`watch`].
//!
//! A list is served from an immutable snapshot and written piece by piece as the client takes it: its memory
//! does not grow with its length, and it blocks no writer.

mod present;
mod revision;
mod selection;
pub(crate) mod table;
mod watch;

pub(crate) use present::{Presenter, object_response};
pub(crate) use selection::Selection;
pub(crate) use watch::watch;

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::{
    client::{Body, BoxError},
    status::ApiStatus,
};
use k8s_store::Stored;
use serde_json::json;

use crate::{
    call::Call,
    errors::{Read, gone, page_gone},
    resources::Resource,
    state::State,
};
use revision::{Continue, Moment};
use selection::Selected;

/// Bytes that are collected before they are sent.
const CHUNK: usize = 64 << 10;

/// GET of an object.
pub(crate) fn get(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
) -> Result<Response<Body>, ApiStatus> {
    let key = resource.key(&call.info.namespace, &call.info.name);
    let stored = state
        .store
        .get(&resource.storage, &key)
        .ok_or_else(|| ApiStatus::not_found(&resource.group, &resource.plural, &call.info.name))?;
    object_response(state, call, resource, StatusCode::OK, &stored.json)
}

/// GET of a collection.
pub(crate) fn list(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
) -> Result<Response<Body>, ApiStatus> {
    let presenter = Presenter::from_call(state, call, resource)?;
    let selection = Selection::from_call(call, resource)?;
    let store = &state.store;
    let moment = revision::of_list(call, store)?;
    let at = match &moment {
        Moment::Newest => None,
        Moment::Exact(revision) => Some(*revision),
        Moment::Next(from) => from.revision(),
    };
    let selected = selection.select(store, &resource.storage, at).map_err(|e| match &moment {
        Moment::Next(from) => page_gone(from.inconsistent().encode()),
        _ => gone(Read::List, &e),
    })?;
    let (after, given) = match moment {
        // Objects may have come and gone meanwhile: those before the page are counted anew.
        Moment::Next(from) if at.is_none() => {
            let before = selected.total().saturating_sub(selected.after(&from.after).count());
            (from.after, before)
        }
        Moment::Next(from) => (from.after, from.given),
        _ => (String::new(), 0),
    };
    let limit = call.query.number("limit").and_then(|l| usize::try_from(l).ok()).filter(|l| *l > 0);
    let mut metadata = json!({"resourceVersion": selected.revision().to_string()});
    let page = Page::new(&selected, &after, limit);
    if let (Some(last), true) = (&page.last, page.more) {
        let given = given + page.length;
        metadata["continue"] = Continue::new(selected.revision(), last, given).encode().into();
        if selected.is_whole_namespace() {
            let remaining = if selected.is_all() {
                selected.total().saturating_sub(given)
            } else {
                selected.after(last).count()
            };
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let head = presenter.list_head(&metadata, page.objects(&selected, &after).map(|o| &*o.json));
    let content_type = HeaderValue::from_static(presenter.content_type(false));
    let chunks = chunks(presenter, selected, after, page, head).map(|b| Ok::<_, BoxError>(Frame::data(b)));
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// The end of a page of a list.
struct Page {
    /// Last key of the page. `None`: the page is the end of the list.
    last: Option<Arc<str>>,
    /// Number of objects, if there is a last key.
    length: usize,
    /// True if there are objects after the page.
    more: bool,
}

impl Page {
    /// Walks up to `limit` objects.
    fn new(selected: &Selected, after: &str, limit: Option<usize>) -> Self {
        let Some(limit) = limit else { return Page { last: None, length: 0, more: false } };
        let mut objects = selected.after(after);
        let (mut last, mut length) = (None, 0);
        for object in objects.by_ref().take(limit) {
            (last, length) = (Some(object.key.clone()), length + 1);
        }
        Page { last, length, more: objects.next().is_some() }
    }

    /// Returns the page's objects after a key.
    fn objects<'a>(
        &'a self,
        selected: &'a Selected,
        after: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Stored>> {
        let last = self.last.as_deref();
        selected.after(after).take_while(move |object| last.is_none_or(|last| *object.key <= *last))
    }
}

/// Streams the bytes of a list.
fn chunks(
    presenter: Presenter,
    selected: Selected,
    after: String,
    page: Page,
    head: Vec<u8>,
) -> impl Stream<Item = Bytes> + Send {
    struct Writing {
        out: Vec<u8>,
        after: Arc<str>,
        first: bool,
        done: bool,
    }
    let (between, tail) = presenter.list_marks();
    let begin = Writing { out: head, after: after.into(), first: true, done: false };
    stream::unfold(begin, move |mut writing| {
        if writing.done {
            return futures::future::ready(None);
        }
        // Continues after the last key: an iterator cannot live as long as the snapshot that it borrows from.
        let from = writing.after.clone();
        writing.done = true;
        for object in page.objects(&selected, &from) {
            if writing.out.len() >= CHUNK {
                writing.done = false;
                break;
            }
            if !std::mem::take(&mut writing.first) {
                writing.out.extend_from_slice(between);
            }
            presenter.list_element(&object.json, &mut writing.out);
            writing.after = object.key.clone();
        }
        let mut out = std::mem::take(&mut writing.out);
        if writing.done {
            out.extend_from_slice(tail);
        } else {
            writing.out.reserve(CHUNK + 4096);
        }
        futures::future::ready(Some((Bytes::from(out), writing)))
    })
}
