//! Fault injection into a watch: late, duplicated and lost events.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::{
    client::{Body, BoxError},
    status::ApiStatus,
};
use serde_json::json;

use crate::{
    actor::Process,
    faults::{Fault, Opportunity},
    hub::Hub,
    trace::What,
};

struct Watch {
    body: Body,
    buffer: BytesMut,
    /// An event to be delivered again.
    again: Option<Bytes>,
    ended: bool,
    hub: Arc<Hub>,
    process: Arc<Process>,
    path: String,
}

/// Wraps a watch's body and injects faults into its events.
pub(crate) fn events(body: Body, hub: Arc<Hub>, process: Arc<Process>, path: String) -> Body {
    let watch = Watch { body, buffer: BytesMut::new(), again: None, ended: false, hub, process, path };
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((line.map(Frame::data), watch))
    });
    StreamBody::new(lines).boxed_unsync()
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        if let Some(again) = self.again.take() {
            return Some(Ok(self.delivered(again)));
        }
        if self.ended {
            return None;
        }
        let line = match self.line().await? {
            Ok(line) => line,
            Err(e) => return Some(Err(e)),
        };
        // Bookmarks carry no change, so faults on them would be wasted.
        if line.starts_with(br#"{"type":"BOOKMARK""#) {
            return Some(Ok(self.delivered(line)));
        }
        let path = self.path.split('?').next().unwrap_or_default().to_owned();
        let strike = self.hub.strike(&self.process, "event", path, Opportunity::Event);
        match strike.map(|s| s.kind) {
            Some(Fault::WatchBroken) => {
                self.ended = true;
                // A watch can break with or without a transport error.
                return strike
                    .filter(|s| s.other_way())
                    .map(|_| Err("connection reset by peer (injected)".into()));
            }
            Some(Fault::Gone) => {
                self.ended = true;
                let status = ApiStatus::expired("too old resource version");
                let line = json!({"type": "ERROR", "object": status.status()}).to_string() + "\n";
                return Some(Ok(self.delivered(line.into())));
            }
            Some(Fault::WatchDelayed | Fault::Stale) => {
                if let Some(strike) = strike {
                    tokio::time::sleep(strike.delay()).await;
                }
            }
            Some(Fault::WatchDuplicated) => self.again = Some(line.clone()),
            _ => {}
        }
        Some(Ok(self.delivered(line)))
    }

    fn delivered(&self, line: Bytes) -> Bytes {
        if self.hub.state().trace.is_whole() {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.hub.note(&self.process, What::Event { path: self.path.clone(), line: text });
        }
        line
    }

    /// Returns the next line with its newline.
    async fn line(&mut self) -> Option<Result<Bytes, BoxError>> {
        let mut scanned = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[scanned..]) {
                return Some(Ok(self.buffer.split_to(scanned + at + 1).freeze()));
            }
            scanned = self.buffer.len();
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}
