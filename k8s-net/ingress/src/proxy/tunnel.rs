//! Connections that leave HTTP, such as WebSockets: bytes both ways until one side ends.

#![expect(clippy::disallowed_methods, reason = "the task ends with its connections")]

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use super::record::Record;

/// Bytes of a buffer, one for each direction.
const BUFFER: usize = 4096;

/// A stream that counts its reads.
struct Counted<T>(T, Arc<AtomicU64>);

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        if read.is_ready() {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Joins two upgraded connections, in a task. It ends when both sides have ended, or after `silence` without
/// a byte.
pub(crate) fn join(client: OnUpgrade, backend: OnUpgrade, silence: Duration, record: Box<Record>) {
    tokio::spawn(async move {
        let (client, backend) = match futures::future::try_join(client, backend).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade failed"),
        };
        let reads = Arc::new(AtomicU64::new(0));
        let mut client = Counted(TokioIo::new(client), reads.clone());
        let mut backend = Counted(TokioIo::new(backend), reads.clone());
        let copying = copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER);
        tokio::pin!(copying);
        let mut seen = 0;
        loop {
            tokio::select! {
                ended = &mut copying => {
                    tracing::debug!(?ended, "an upgraded connection ended");
                    break;
                }
                () = tokio::time::sleep(silence) => {
                    let now = reads.load(Ordering::Relaxed);
                    if std::mem::replace(&mut seen, now) == now {
                        break;
                    }
                }
            }
        }
        drop(record);
    });
}
