//! Asynchronous streams over descriptors received from a shim.

#![expect(clippy::disallowed_methods, reason = "the task ends with its terminal")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::unix::pipe,
    sync::mpsc,
};

use super::protocol::Streams;
use crate::api::{Attached, RuntimeError, TerminalSize};
use crate::sys;

/// Master side of a terminal.
#[derive(Debug)]
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    #[allow(unsafe_code)]
    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Terminal> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: an `OwnedFd` always returns the same descriptor, which is open during its lifetime.
        unsafe { AsyncFd::register_with_interest(fd, interest) }.map(Terminal).map_err(Into::into)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            match guard.try_io(|fd| nix::unistd::read(fd.get_ref(), room).map_err(Into::into)) {
                Ok(Ok(length)) => {
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // No process has the other side open any more.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| nix::unistd::write(fd.get_ref(), bytes).map_err(Into::into)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type Exit = futures::future::BoxFuture<'static, Result<i32, RuntimeError>>;

/// Builds [`Attached`] from the descriptors of a reply, in the order of the protocol.
pub(super) fn attached(streams: Streams, fds: Vec<OwnedFd>, stdin: bool, exit: Exit) -> io::Result<Attached> {
    let mut fds = fds.into_iter();
    let mut next = |wanted: bool| -> io::Result<Option<OwnedFd>> {
        if !wanted {
            return Ok(None);
        }
        fds.next()
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stream missing in a shim's reply"))
    };
    let (stdin_fd, stdout, stderr, terminal) =
        (next(streams.stdin)?, next(streams.stdout)?, next(streams.stderr)?, next(streams.terminal)?);
    let mut result = Attached { stdin: None, stdout: None, stderr: None, resize: None, exit };
    if let Some(fd) = stdin_fd {
        result.stdin = Some(if streams.terminal {
            Box::new(Terminal::new(fd, Interest::WRITABLE)?)
        } else {
            Box::new(pipe::Sender::from_owned_fd(fd)?)
        });
    }
    if let Some(fd) = stdout {
        result.stdout = Some(Box::new(pipe::Receiver::from_owned_fd(fd)?));
    }
    if let Some(fd) = stderr {
        result.stderr = Some(Box::new(pipe::Receiver::from_owned_fd(fd)?));
    }
    if let Some(fd) = terminal {
        if !streams.stdout {
            if stdin {
                result.stdin = Some(Box::new(Terminal::new(fd.try_clone()?, Interest::WRITABLE)?));
            }
            result.stdout = Some(Box::new(Terminal::new(fd.try_clone()?, Interest::READABLE)?));
        }
        result.resize = Some(resizer(fd));
    }
    Ok(result)
}

fn resizer(terminal: OwnedFd) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel::<TerminalSize>(4);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            if let Err(error) = sys::set_terminal_size(terminal.as_fd(), size.width, size.height) {
                tracing::debug!(%error, "set a terminal's size");
            }
        }
    });
    sender
}
