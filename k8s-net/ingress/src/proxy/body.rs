//! Bodies that pass through in parts, with limits of time and size. None is ever held as a whole.

#![expect(clippy::disallowed_methods, reason = "timeouts of connections are in real time")]

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{pool::Lease, record::Record};

/// A failure while a body passes through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body is larger than allowed")]
    TooLarge,
    #[error("the other side was silent for too long")]
    Silent,
    #[error("{0}")]
    Io(#[from] hyper::Error),
}

/// Time without progress.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Patience { limit, sleep: None, armed: false }
    }

    /// To be called while nothing comes; ready after the limit.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = || Instant::now() + self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline())));
        if !std::mem::replace(&mut self.armed, true) {
            sleep.as_mut().reset(deadline());
        }
        sleep.as_mut().poll(cx)
    }
}

/// Progress of a request's body, as its sender sees it.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    pub(crate) is_done: AtomicBool,
    pub(crate) frames: AtomicU64,
    pub(crate) is_too_large: AtomicBool,
}

/// The body of a request on its way to a backend.
#[derive(Debug)]
pub(crate) struct RequestBody(Option<Box<Passing>>);

#[derive(Debug)]
struct Passing {
    inner: Incoming,
    /// Bytes that may still come.
    left: u64,
    patience: Patience,
    sending: Arc<Sending>,
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        RequestBody(None)
    }

    /// Passes a body on; `limit` is in bytes, `patience` the time between two parts.
    pub(crate) fn passing(inner: Incoming, limit: Option<u64>, patience: Duration) -> (Self, Arc<Sending>) {
        let sending = Arc::new(Sending::default());
        let passing = Passing {
            inner,
            left: limit.unwrap_or(u64::MAX),
            patience: Patience::new(patience),
            sending: sending.clone(),
        };
        (RequestBody(Some(Box::new(passing))), sending)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(passing) = &mut self.0 else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut passing.inner).poll_frame(cx) else {
            ready!(passing.patience.poll_end(cx));
            return Poll::Ready(Some(Err(BodyError::Silent)));
        };
        passing.patience.armed = false;
        passing.sending.frames.fetch_add(1, Ordering::Relaxed);
        let out = match frame.transpose()? {
            None => None,
            Some(frame) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match passing.left.checked_sub(length) {
                    Some(left) => passing.left = left,
                    None => {
                        passing.sending.is_too_large.store(true, Ordering::Relaxed);
                        return Poll::Ready(Some(Err(BodyError::TooLarge)));
                    }
                }
                Some(frame)
            }
        };
        if out.is_none() || passing.inner.is_end_stream() {
            passing.sending.is_done.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(out).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|passing| passing.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |passing| passing.inner.size_hint())
    }
}

/// The body of an answer.
pub(crate) enum ResponseBody {
    /// A text of the proxy itself.
    Text(Bytes, Option<Box<Record>>),
    /// That of a backend.
    Passing(Box<Answer>),
}

/// A backend's answer on its way to the client.
pub(crate) struct Answer {
    inner: Incoming,
    patience: Patience,
    /// Goes back to the pool at the end of the body.
    lease: Option<Lease>,
    record: Box<Record>,
}

impl ResponseBody {
    pub(crate) fn text(text: &str) -> Self {
        ResponseBody::Text(Bytes::copy_from_slice(text.as_bytes()), None)
    }

    pub(crate) fn passing(
        inner: Incoming,
        patience: Duration,
        lease: Option<Lease>,
        record: Box<Record>,
    ) -> Self {
        let mut answer = Answer { inner, patience: Patience::new(patience), lease, record };
        if answer.inner.is_end_stream() {
            answer.end();
        }
        ResponseBody::Passing(Box::new(answer))
    }
}

impl Answer {
    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let answer = match self.get_mut() {
            ResponseBody::Text(text, _) if text.is_empty() => return Poll::Ready(None),
            ResponseBody::Text(text, record) => {
                if let Some(record) = record {
                    record.bytes += text.len() as u64;
                }
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(text)))));
            }
            ResponseBody::Passing(answer) => answer,
        };
        let Poll::Ready(frame) = Pin::new(&mut answer.inner).poll_frame(cx) else {
            ready!(answer.patience.poll_end(cx));
            let silent = io::Error::new(io::ErrorKind::TimedOut, BodyError::Silent);
            return Poll::Ready(Some(Err(silent)));
        };
        answer.patience.armed = false;
        match frame {
            Some(Ok(frame)) => {
                answer.record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if answer.inner.is_end_stream() {
                    answer.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(io::Error::other(error)))),
            None => {
                answer.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Text(text, _) => text.is_empty(),
            ResponseBody::Passing(answer) => answer.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Text(text, _) => SizeHint::with_exact(text.len() as u64),
            ResponseBody::Passing(answer) => answer.inner.size_hint(),
        }
    }
}
