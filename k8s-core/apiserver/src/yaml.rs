//! Lists in YAML, written element by element as clients read them: memory does not grow with their length.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::client::{Body, BoxError};
use serde_json::{Map, Value};

use crate::{
    blocking::run_blocking_if,
    limits::{Place, Ticket},
};

/// Bytes that are gathered before they are sent.
const CHUNK: usize = 64 << 10;
/// The fields that hold a list's elements. They are the last that a list's JSON has.
const ELEMENTS: [&str; 2] = ["items", "rows"];

/// Rewrites a list's JSON (or any other) as YAML. A ticket bounds how many answers work at once and how many
/// hold a piece that their client has not taken.
pub(crate) fn list(body: Body, ticket: Option<Arc<Ticket>>) -> Body {
    let writing = (Some(body), Writing::default(), None::<Place>);
    let frames = stream::try_unfold(writing, move |(body, mut writing, place)| {
        let ticket = ticket.clone();
        async move {
            let Some(mut body) = body else { return Ok(None) };
            // Its client has taken the last piece.
            drop(place);
            let place = piece(ticket.as_deref()).await;
            loop {
                let frame = body.frame().await.transpose()?;
                let more = frame.map(|frame| frame.into_data().unwrap_or_default());
                let work = heavy(ticket.as_deref()).await;
                let mut done = Ok(());
                run_blocking_if(true, || {
                    done = match &more {
                        Some(more) => writing.read(more),
                        None => writing.end(),
                    };
                });
                drop(work);
                done?;
                if more.is_none() || writing.out.len() >= CHUNK {
                    let out = Frame::data(Bytes::from(std::mem::take(&mut writing.out)));
                    let body = more.map(|_| body);
                    return Ok::<_, BoxError>(Some((out, (body, writing, place))));
                }
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

async fn piece(ticket: Option<&Ticket>) -> Option<Place> {
    match ticket {
        Some(ticket) => Some(ticket.piece().await),
        None => None,
    }
}

async fn heavy(ticket: Option<&Ticket>) -> Option<Place> {
    match ticket {
        Some(ticket) => Some(ticket.heavy().await),
        None => None,
    }
}

/// Part of the text that is being read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Part {
    /// Before the first element.
    #[default]
    Head,
    Elements,
    /// After the last one.
    Tail,
}

#[derive(Debug, Default)]
struct Writing {
    place: Part,
    /// Text that was read and is not yet written: the head, or the beginning of an element.
    text: Vec<u8>,
    depth: usize,
    quoted: bool,
    escaped: bool,
    /// The list's other fields, as far as they come after its elements in the order of names.
    rest: Map<String, Value>,
    elements: &'static str,
    any: bool,
    out: Vec<u8>,
}

impl Writing {
    fn read(&mut self, json: &[u8]) -> Result<(), BoxError> {
        for &byte in json {
            if self.place == Part::Tail {
                return Ok(());
            }
            self.text.push(byte);
            if self.quoted {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.quoted = false,
                    _ => {}
                }
                continue;
            }
            match (byte, self.place) {
                (b'"', _) => self.quoted = true,
                (b'[', Part::Head) if self.depth == 1 && self.begins() => self.head()?,
                (b',', Part::Elements) if self.depth == 0 => self.text.clear(),
                (b']', Part::Elements) if self.depth == 0 => self.tail()?,
                (b'{' | b'[', _) => self.depth += 1,
                (b'}' | b']', _) => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 && self.place == Part::Elements {
                        self.element()?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// True if the bracket that was just read begins the elements.
    fn begins(&mut self) -> bool {
        let name = ELEMENTS.into_iter().find(|name| self.text.ends_with(format!("\"{name}\":[").as_bytes()));
        self.elements = name.unwrap_or_default();
        name.is_some()
    }

    fn head(&mut self) -> Result<(), BoxError> {
        let mut text = std::mem::take(&mut self.text);
        text.truncate(text.len() - self.elements.len() - "\"\":[".len());
        if text.last() == Some(&b',') {
            text.pop();
        }
        text.push(b'}');
        let mut fields: Map<String, Value> = serde_json::from_slice(&text)?;
        fields.retain(|name, value| {
            let after = **name > *self.elements;
            if after {
                self.rest.insert(name.clone(), value.take());
            }
            !after
        });
        self.fields(&fields)?;
        self.out.extend_from_slice(self.elements.as_bytes());
        self.place = Part::Elements;
        self.depth = 0;
        Ok(())
    }

    fn fields(&mut self, fields: &Map<String, Value>) -> Result<(), BoxError> {
        if !fields.is_empty() {
            self.out.extend_from_slice(serde_saphyr::to_string(fields)?.as_bytes());
            self.end_line();
        }
        Ok(())
    }

    fn end_line(&mut self) {
        if self.out.last() != Some(&b'\n') {
            self.out.push(b'\n');
        }
    }

    fn element(&mut self) -> Result<(), BoxError> {
        if !std::mem::replace(&mut self.any, true) {
            self.out.extend_from_slice(b":\n");
        }
        // Its room is given back: an answer may wait for long before it goes on.
        let text = std::mem::take(&mut self.text);
        let element: Value = serde_json::from_slice(&text)?;
        drop(text);
        for (i, line) in serde_saphyr::to_string(&element)?.lines().enumerate() {
            let indent = if i == 0 { "- " } else { "  " };
            if !line.is_empty() {
                self.out.extend_from_slice(indent.as_bytes());
                self.out.extend_from_slice(line.as_bytes());
            }
            self.out.push(b'\n');
        }
        Ok(())
    }

    fn tail(&mut self) -> Result<(), BoxError> {
        if !self.any {
            self.out.extend_from_slice(b": []\n");
        }
        self.place = Part::Tail;
        let rest = std::mem::take(&mut self.rest);
        self.fields(&rest)
    }

    /// Writes what was no list, whole.
    fn end(&mut self) -> Result<(), BoxError> {
        match self.place {
            Part::Tail => Ok(()),
            Part::Elements => Err("the list broke off".into()),
            Part::Head => {
                let value: Value = serde_json::from_slice(&self.text)?;
                self.out.extend_from_slice(serde_saphyr::to_string(&value)?.as_bytes());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::client::body_from_bytes;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn yaml(json: &[u8], piece: usize) -> String {
        let pieces: Vec<_> =
            json.chunks(piece).map(|p| Ok::<_, BoxError>(Frame::data(Bytes::copy_from_slice(p)))).collect();
        let body = list(StreamBody::new(stream::iter(pieces)).boxed_unsync(), None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_list_reads_as_upstreams() {
        let list = br#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[{"data":{"a":"x\ny"}},{}]}"#;
        let want = "apiVersion: v1\nitems:\n- data:\n    a: |-\n      x\n      y\n- {}\nkind: ConfigMapList\nmetadata:\n  resourceVersion: \"7\"\n";
        assert_eq!(yaml(list, 5), want);
        assert_eq!(yaml(br#"{"kind":"List","items":[]}"#, 3), "items: []\nkind: List\n");
    }

    proptest! {
        #[test]
        fn means_the_same(
            texts in proptest::collection::vec("[a\\[\\]{}\",:\\\\\n -]{0,12}", 0..6),
            table: bool,
            piece in 1usize..40,
        ) {
            let elements: Vec<Value> =
                texts.iter().map(|t| json!({"metadata": {"name": t, "labels": {}}, "items": [t, {"rows": [t]}]})).collect();
            let name = if table { "rows" } else { "items" };
            let head = json!({"apiVersion": "v1", "kind": "K", "columnDefinitions": [{"items": [1]}], "metadata": {"continue": texts.concat()}});
            let mut text = head.to_string();
            text.pop();
            text += &format!(",\"{name}\":{}}}", Value::from(elements.clone()));
            let mut want = head;
            want[name] = elements.into();
            let back: Value = serde_saphyr::from_str(&yaml(text.as_bytes(), piece)).unwrap();
            prop_assert_eq!(back, want);
        }
    }

    #[test]
    fn what_is_no_list_is_written_whole() {
        assert_eq!(yaml(br#"{"kind":"Pod"}"#, 4), "kind: Pod\n");
        let broken = list(body_from_bytes(r#"{"items":[{"a":1}"#), None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(broken.collect()).is_err());
    }
}
