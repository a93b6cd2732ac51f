//! The client side of a shim's socket.
//!
//! One task per connection owns the socket: it sends requests in order, matches replies to requests, and
//! passes events on.
//! Guarantee: when the connection to the shim ends, every pending request fails and `on_gone` runs once.

#![expect(clippy::disallowed_methods, reason = "the task ends with the connection to its shim")]

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    path::Path,
};

use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot},
};

use super::{
    protocol::{Call, Failure, Message, Reply, Request},
    wire::{Inbox, Outbox},
};
use crate::api::RuntimeError;

type Answer = Result<(Reply, Vec<OwnedFd>), Failure>;
type Waiting = (Request, oneshot::Sender<Answer>);

/// Client of a shim. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ShimClient {
    calls: mpsc::UnboundedSender<Waiting>,
}

/// Connects to the shim of a sandbox directory.
pub(super) fn connect(dir: &Path) -> io::Result<StdStream> {
    let handle = fs::File::open(dir)?;
    StdStream::connect(format!("/proc/self/fd/{}/shim.sock", handle.as_raw_fd()))
}

impl ShimClient {
    /// Starts the task for a connection. `on_event` gets the shim's events.
    pub(super) fn start(
        stream: StdStream,
        on_event: impl FnMut(Message) + Send + 'static,
        on_gone: impl FnOnce() + Send + 'static,
    ) -> io::Result<ShimClient> {
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let (calls, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, received, on_event).await {
                tracing::debug!(%error, "shim connection");
            }
            on_gone();
        });
        Ok(ShimClient { calls })
    }

    /// Sends a request and waits for its reply.
    pub(super) async fn call(
        &self,
        what: &'static str,
        id: &str,
        request: Request,
    ) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
        let gone = || RuntimeError::Other(format!("the shim of {what} {id} is gone"));
        let (sender, answer) = oneshot::channel();
        self.calls.send((request, sender)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|failure| match failure {
            Failure::NotFound => RuntimeError::NotFound { what, id: id.to_owned() },
            Failure::Start(message) => RuntimeError::Start(message),
            Failure::Other(message) => RuntimeError::Other(message),
        })
    }
}

async fn converse(
    stream: UnixStream,
    mut calls: mpsc::UnboundedReceiver<Waiting>,
    mut on_event: impl FnMut(Message),
) -> io::Result<()> {
    let (mut inbox, mut outbox) = (Inbox::default(), Outbox::default());
    let mut pending: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let mut seq = 0;
    loop {
        let interest =
            if outbox.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        tokio::select! {
            call = calls.recv() => match call {
                Some((request, sender)) => {
                    seq += 1;
                    pending.insert(seq, sender);
                    outbox.push(&Call { seq, request }, vec![])?;
                    // Usually the socket accepts the whole frame now; the remainder is sent when it becomes
                    // writable.
                    let _ = stream.try_io(Interest::WRITABLE, || outbox.flush(stream.as_fd()));
                }
                // The runtime was dropped: disconnect; the shim keeps running.
                None => return Ok(()),
            },
            ready = stream.ready(interest) => {
                let ready = ready?;
                if ready.is_writable() && !outbox.is_empty() {
                    would_block_is_fine(stream.try_io(Interest::WRITABLE, || outbox.flush(stream.as_fd())))?;
                }
                if ready.is_readable() {
                    let filled = stream.try_io(Interest::READABLE, || inbox.fill(stream.as_fd()));
                    match filled {
                        Ok(true) => {}
                        Ok(false) => return Ok(()),
                        Err(e) => would_block_is_fine(Err(e))?,
                    }
                    while let Some((message, fds)) = inbox.next::<Message>()? {
                        match message {
                            Message::Reply { seq, result } => {
                                if let Some(sender) = pending.remove(&seq) {
                                    let _ = sender.send(result.map(|reply| (reply, fds)));
                                }
                            }
                            event => on_event(event),
                        }
                    }
                }
            }
        }
    }
}

fn would_block_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}
