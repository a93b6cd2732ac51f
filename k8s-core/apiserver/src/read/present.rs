//! Encoding of stored objects for one request: format and version.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use k8s_core::{client::Body, clock::Clock, status::ApiStatus};
use k8s_schema::proto::{self, Definition, ListHead};
use serde_json::{Value, json};

use super::table::{metadata_only, row, table};
use crate::{
    accept::{Encoding, Form, Offer, PROTOBUF, negotiate},
    call::Call,
    resources::Resource,
    respond::{json_bytes, status_value},
    state::State,
    value::{encode, metadata_of, str_at},
};

/// Responds with a stored object in the requested format and version.
pub(crate) fn object_response(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    code: StatusCode,
    json: &Bytes,
) -> Result<Response<Body>, ApiStatus> {
    let presenter = Presenter::from_call(state, call, resource)?;
    Ok(json_bytes(code, presenter.object(json)))
}

/// Encodes stored objects for one request.
#[derive(Clone, Debug)]
pub(crate) struct Presenter {
    resource: Arc<Resource>,
    form: Form,
    /// Lists and watches in protobuf: the type of their objects.
    protobuf: Option<Definition>,
    /// Object in a Table's rows: `None`, `Metadata` or `Object`.
    include: String,
    /// Clock for ages, which are computed when a row is written.
    clock: Clock,
    /// `{"kind":…,"apiVersion":…,` as stored objects begin: elements of lists of built-in types leave it out.
    identity: String,
}

impl Presenter {
    /// Reads the format and version from a request.
    ///
    /// # Errors
    /// 406 if no accepted format can be served.
    pub(crate) fn from_call(
        state: &Arc<State>,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Self, ApiStatus> {
        let own = Definition::of(&resource.api_version(), &resource.kind).filter(|_| !resource.custom);
        let offer = match own {
            protobuf if call.info.verb == "watch" => Offer::Stream { protobuf: protobuf.is_some() },
            Some(_) => Offer::All,
            None => Offer::Text,
        };
        let (form, encoding) = negotiate(&call.headers, offer)?;
        let protobuf = match (encoding, form) {
            (Encoding::Json | Encoding::Yaml, _) => None,
            (Encoding::Protobuf, Form::Metadata) => Definition::of("meta.k8s.io/v1", "PartialObjectMetadata"),
            (Encoding::Protobuf, _) => own,
        };
        Ok(Presenter {
            resource: resource.clone(),
            form,
            protobuf,
            include: call.query.get("includeObject").to_owned(),
            clock: state.clock.clone(),
            identity: format!(
                "{{\"kind\":{},\"apiVersion\":{},",
                Value::from(resource.kind.as_str()),
                Value::from(resource.api_version())
            ),
        })
    }

    /// Returns true if stored bytes are served unchanged.
    pub(crate) fn is_verbatim(&self) -> bool {
        self.form == Form::Whole && self.resource.is_storage_version()
    }

    /// Returns an object in the requested version.
    fn served(&self, json: &[u8]) -> Value {
        let mut object = stored(json);
        self.resource.from_storage(&mut object);
        object
    }

    /// An object as a row of a Table.
    fn row(&self, json: &[u8]) -> Value {
        let stored = stored(json);
        let mut served = stored.clone();
        self.resource.from_storage(&mut served);
        row(&self.resource, &stored, &served, &self.include, self.clock.now())
    }

    /// The media type of lists and (`watch`) of streams of events.
    pub(super) fn content_type(&self, watch: bool) -> &'static str {
        match (self.protobuf.is_some(), watch) {
            (true, true) => "application/vnd.kubernetes.protobuf;stream=watch",
            (true, false) => PROTOBUF,
            (false, _) => "application/json",
        }
    }

    /// One object by itself, as JSON: it is turned into protobuf where it leaves the server.
    pub(crate) fn object(&self, json: &Bytes) -> Bytes {
        if self.is_verbatim() {
            return json.clone();
        }
        let mut out = Vec::new();
        self.write_alone(json, true, &mut out);
        out.into()
    }

    /// Appends one object by itself. Metadata is the same in all versions, so its bytes are copied.
    fn write_alone(&self, json: &[u8], columns: bool, out: &mut Vec<u8>) {
        if self.is_verbatim() {
            out.extend_from_slice(json);
        } else if let (Form::Metadata, Some(metadata)) = (self.form, metadata_of(json)) {
            const HEAD: &[u8] =
                b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":";
            out.reserve(HEAD.len() + metadata.len() + 1);
            out.extend_from_slice(HEAD);
            out.extend_from_slice(metadata);
            out.push(b'}');
        } else {
            out.extend_from_slice(&encode(&self.alone(json, columns)));
        }
    }

    /// One object by itself; a Table has its column definitions or, after the first of a watch, not.
    fn alone(&self, json: &[u8], columns: bool) -> Value {
        let object = self.served(json);
        match self.form {
            Form::Whole => object,
            Form::Metadata => metadata_only(&object),
            Form::Table => {
                let revision = json!({"resourceVersion": str_at(&object, "/metadata/resourceVersion")});
                table(&self.resource, vec![self.row(json)], revision, columns)
            }
        }
    }

    /// Returns the bytes before the first element of a list, whose objects are `objects`.
    pub(super) fn list_head<'a>(&self, metadata: &Value, objects: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
        let (kind, version) = match self.form {
            Form::Whole => (self.resource.list_kind.clone(), self.resource.api_version()),
            Form::Metadata => ("PartialObjectMetadataList".into(), "meta.k8s.io/v1".into()),
            Form::Table => {
                let empty = encode(&table(&self.resource, Vec::new(), metadata.clone(), true));
                // The rows are the last of a Table's fields.
                let end = empty.len() - b"]}".len();
                return empty[..end].to_vec();
            }
        };
        if self.protobuf.is_some() {
            // The total length comes before the first element. Elements are encoded twice, so that memory
            // does not grow with the list.
            let mut one = Vec::new();
            let length = objects.map(|json| {
                one.clear();
                self.list_element(json, &mut one);
                one.len()
            });
            let length = length.sum();
            return ListHead::new(&version, &kind, metadata).bytes(length);
        }
        let (kind, version) = (Value::from(kind), Value::from(version));
        format!("{{\"kind\":{kind},\"apiVersion\":{version},\"metadata\":{metadata},\"items\":[").into_bytes()
    }

    /// Appends one element of a list.
    pub(super) fn list_element(&self, json: &[u8], out: &mut Vec<u8>) {
        if let Some(definition) = self.protobuf {
            return definition.list_element(&self.alone(json, false), out);
        }
        let bare = !self.resource.custom;
        if self.is_verbatim() {
            match json.strip_prefix(self.identity.as_bytes()) {
                Some(rest) if bare => {
                    out.push(b'{');
                    out.extend_from_slice(rest);
                }
                _ => out.extend_from_slice(json),
            }
            return;
        }
        if self.form == Form::Metadata {
            return self.write_alone(json, false, out);
        }
        if self.form == Form::Table {
            out.extend_from_slice(&encode(&self.row(json)));
            return;
        }
        let mut object = self.served(json);
        if let (true, Some(map)) = (bare, object.as_object_mut()) {
            map.remove("kind");
            map.remove("apiVersion");
        }
        out.extend_from_slice(&encode(&object));
    }

    /// Returns the bytes between two elements, and after the last.
    pub(super) fn list_marks(&self) -> (&'static [u8], &'static [u8]) {
        if self.protobuf.is_some() { (b"", b"") } else { (b",", b"]}") }
    }

    /// Returns a list of objects that are in the requested version already.
    pub(crate) fn list(&self, metadata: &Value, objects: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
        let (between, tail) = self.list_marks();
        let mut out = self.list_head(metadata, std::iter::empty());
        for (i, json) in objects.enumerate() {
            if i > 0 {
                out.extend_from_slice(between);
            }
            self.list_element(&json, &mut out);
        }
        out.extend_from_slice(tail);
        out
    }

    /// Appends one event of a watch. The first event of a watch of Tables tells the columns.
    pub(crate) fn event(&self, kind: &str, json: &[u8], first: bool, out: &mut Vec<u8>) {
        if self.protobuf.is_some() {
            return self.told(kind, &self.alone(json, first), out);
        }
        line(kind, |out| self.write_alone(json, first, out), out);
    }

    /// Appends the event that ends a watch with a failure.
    pub(crate) fn failure(&self, status: &ApiStatus, out: &mut Vec<u8>) {
        self.told("ERROR", &status_value(status), out);
    }

    /// Appends an event with an object of the requested version and format.
    fn told(&self, kind: &str, object: &Value, out: &mut Vec<u8>) {
        match self.protobuf {
            Some(_) => out.extend(proto::watch_frame(kind, object).unwrap_or_default()),
            None => line(kind, |out| out.extend_from_slice(&encode(object)), out),
        }
    }

    /// Appends a bookmark; `initial` marks the end of the initial events.
    pub(crate) fn bookmark(&self, revision: u64, initial: bool, out: &mut Vec<u8>) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let of =
            |kind: &str, version: &str| json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        let whole = of(&self.resource.kind, &self.resource.api_version());
        let object = match self.form {
            Form::Whole => whole,
            Form::Metadata => of("PartialObjectMetadata", "meta.k8s.io/v1"),
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": null, "rows": [{"cells": [], "object": metadata_only(&whole)}],
            }),
        };
        self.told("BOOKMARK", &object, out);
    }
}

/// Decodes the bytes of a stored object.
fn stored(json: &[u8]) -> Value {
    // The store holds only what this server encoded.
    serde_json::from_slice(json).unwrap_or_default()
}

/// Appends a line of a watch.
fn line(kind: &str, object: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    for part in [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":"] {
        out.extend_from_slice(part);
    }
    object(out);
    out.extend_from_slice(b"}\n");
}
