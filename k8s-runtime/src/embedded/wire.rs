//! Frames with file descriptors over a unix stream socket.
//!
//! A frame is its length and its number of descriptors (two little-endian `u32`), then JSON. The descriptors
//! are sent as `SCM_RIGHTS` with the first byte, so they have arrived when the frame is complete. The
//! receiver returns them in order. Both ends use this module; it never blocks.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Serialize, de::DeserializeOwned};

/// Maximum length of a frame, bytes. A longer one is a protocol error.
const MAX_FRAME: usize = 16 << 20;
const HEADER: usize = 8;
const MAX_FDS: usize = 16;

/// Received bytes and descriptors of incomplete frames.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Receives once. Returns `false` if the peer has disconnected, and `WouldBlock` if there is nothing to
    /// receive.
    pub(crate) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut chunk = [0u8; 8192];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut slices = [IoSliceMut::new(&mut chunk)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                self.fds.extend(fds.into_iter().map(adopt));
            }
        }
        let length = message.bytes;
        self.bytes.extend_from_slice(&chunk[..length]);
        Ok(length > 0)
    }

    /// Returns the next complete frame.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let count = u32::from_le_bytes([e, f, g, h]) as usize;
        if length > MAX_FRAME || count > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "oversized frame"));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        if self.fds.len() < count {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame without its descriptors"));
        }
        let value = serde_json::from_slice(body)?;
        let fds = self.fds.drain(..count).collect();
        self.bytes.drain(..HEADER + length);
        Ok(Some((value, fds)))
    }
}

/// Takes ownership of a received descriptor.
#[allow(unsafe_code)]
fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: a descriptor from SCM_RIGHTS is new and belongs to the receiver alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// Frames that are not completely sent yet.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: VecDeque<Frame>,
}

impl Outbox {
    /// Queues a message with its descriptors.
    pub(crate) fn push<T: Serialize>(&mut self, message: &T, fds: Vec<OwnedFd>) -> io::Result<()> {
        let mut bytes = vec![0; HEADER];
        serde_json::to_writer(&mut bytes, message)?;
        let length = bytes.len() - HEADER;
        if length > MAX_FRAME || fds.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long"));
        }
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&(fds.len() as u32).to_le_bytes());
        self.frames.push_back(Frame { bytes, sent: 0, fds });
        Ok(())
    }

    /// Returns `true` if everything is sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Sends as much as the socket accepts. Returns `WouldBlock` if something remains.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(frame) = self.frames.front_mut() {
            let raw: Vec<RawFd> = frame.fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
            let rights = [ControlMessage::ScmRights(&raw)];
            let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let slices = [IoSlice::new(&frame.bytes[frame.sent..])];
            let sent = sendmsg::<()>(socket.as_raw_fd(), &slices, control, flags, None)?;
            frame.fds.clear();
            frame.sent += sent;
            if frame.sent == frame.bytes.len() {
                self.frames.pop_front();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn frames_arrive_whole_with_their_descriptors() {
        let (left, right) = UnixStream::pair().expect("socketpair");
        let (read, write) = nix::unistd::pipe().expect("pipe");
        let mut outbox = Outbox::default();
        outbox.push(&"x".repeat(20_000), vec![]).expect("push");
        outbox.push(&"with a pipe", vec![write]).expect("push");
        outbox.flush(left.as_fd()).expect("fits in the socket's buffer");
        let mut inbox = Inbox::default();
        let mut got: Vec<(String, usize)> = Vec::new();
        while got.len() < 2 {
            assert!(inbox.fill(right.as_fd()).expect("fill"));
            while let Some((text, fds)) = inbox.next::<String>().expect("frame") {
                got.push((text, fds.len()));
                for fd in fds {
                    std::fs::File::from(fd).write_all(b"hello").expect("write");
                }
            }
        }
        assert_eq!(got[0], ("x".repeat(20_000), 0));
        assert_eq!(got[1], ("with a pipe".to_owned(), 1));
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).expect("read");
        assert_eq!(text, "hello");
        drop(left);
        assert!(!inbox.fill(right.as_fd()).expect("end"));
    }

    #[test]
    fn a_foreign_peer_is_an_error() {
        let (mut left, right) = UnixStream::pair().expect("socketpair");
        left.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("write");
        let mut inbox = Inbox::default();
        inbox.fill(right.as_fd()).expect("fill");
        assert!(inbox.next::<String>().is_err());
    }
}
