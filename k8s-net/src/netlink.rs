//! A minimal netlink implementation: messages with nested attributes, and a blocking socket.
//!
//! A socket belongs for its whole life to the network namespace of the thread that opened it; that is how a
//! pod's namespace is configured (see [`crate::netns`]).
//!
//! Not here: the meaning of the messages (see `rtnl` for links, addresses and routes, `nft` for nf_tables).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Set on every request.
pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;

/// A buffer of one or more netlink messages.
#[derive(Default, Debug)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    /// Offset of the message under construction.
    start: usize,
}

impl Messages {
    /// Starts a message with the fixed header `head`.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, sequence: u32, head: &[u8]) -> &mut Self {
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(head);
        self.pad();
        self
    }

    /// Ends the message: patches in its length.
    pub(crate) fn end(&mut self) -> &mut Self {
        let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Appends an attribute. Its value must be shorter than 64 KiB.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a zero-terminated string.
    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends a number in native byte order (rtnetlink).
    pub(crate) fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network byte order (nfnetlink).
    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute that contains the attributes added by `fill`.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Appends raw bytes (a fixed header inside a nest, such as `ifinfomsg`).
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Adds flags to the message at offset `at`.
    pub(crate) fn set_flag(&mut self, at: usize, flag: u16) {
        if let Some(slot) = self.bytes.get_mut(at + 6..at + 8) {
            let flags = u16::from_ne_bytes([slot[0], slot[1]]) | flag;
            slot.copy_from_slice(&flags.to_ne_bytes());
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// Iterates over the attributes in `bytes`; stops at a truncated one.
pub(crate) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the value of the first attribute of a kind.
pub(crate) fn attr_of(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// Iterates over the messages of one datagram.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let head = bytes.get(..HEADER)?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = bytes.get(HEADER..length)?;
        let message = Received {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            sequence: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]),
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Parses an `NLMSG_ERROR` message; error code zero is an acknowledgement.
fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).map_or(-libc::EPROTO, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

/// A blocking netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a netlink family (`NETLINK_ROUTE`, ...) in the calling thread's network namespace.
    pub(crate) fn open(family: i32) -> io::Result<Self> {
        // SAFETY: plain system call; the descriptor is owned at once.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let timeout = libc::timeval { tv_sec: 10, tv_usec: 0 };
        // The kernel answers at once; a lost answer (receive buffer overflow) must not block the caller for
        // ever.
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        // A batch is sent as one datagram. Without CAP_NET_ADMIN the default buffer size has to do.
        let size: i32 = 32 << 20;
        let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &size);
        let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(4i32 << 20));
        // Do not echo the request in acknowledgements.
        let _ = set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &1i32);
        Ok(Socket { fd, sequence: 0, buffer: vec![0; 64 << 10] })
    }

    /// Returns the next sequence number.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer outlives the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&mut self, flags: i32) -> io::Result<usize> {
        loop {
            // SAFETY: the buffer outlives the call and its length is given.
            let got = unsafe {
                libc::recv(self.fd.as_raw_fd(), self.buffer.as_mut_ptr().cast(), self.buffer.len(), flags)
            };
            if got >= 0 {
                return Ok(got.unsigned_abs());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
    }

    /// Sends one request that was built with [`NLM_F_ACK`] and waits for its acknowledgement.
    pub(crate) fn acked(&mut self, build: impl FnOnce(&mut Messages, u32)) -> io::Result<()> {
        let sequence = self.next_sequence();
        let mut messages = Messages::default();
        build(&mut messages, sequence);
        self.send(messages.bytes())?;
        loop {
            let length = self.receive(0)?;
            for message in split(&self.buffer[..length]) {
                if message.sequence == sequence && message.kind == NLMSG_ERROR {
                    return error_of(message.body);
                }
            }
        }
    }

    /// Sends a batch in which only the message numbered `last` asks for an acknowledgement, and reads until
    /// that arrives. Returns the first error.
    pub(crate) fn batch(&mut self, messages: &Messages, last: u32) -> io::Result<()> {
        self.send(messages.bytes())?;
        let mut first_error = None;
        loop {
            // After an error the kernel aborts the batch and may answer nothing more.
            let length = match self.receive(if first_error.is_some() { libc::MSG_DONTWAIT } else { 0 }) {
                Ok(length) => length,
                Err(e) => return Err(first_error.unwrap_or(e)),
            };
            for message in split(&self.buffer[..length]) {
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                match error_of(message.body) {
                    Err(e) => first_error = first_error.or(Some(e)),
                    Ok(()) if message.sequence == last => {
                        return first_error.map_or(Ok(()), Err);
                    }
                    Ok(()) => {}
                }
            }
        }
    }

    /// Sends a dump request and calls `each` for every entry.
    pub(crate) fn dump(
        &mut self,
        build: impl FnOnce(&mut Messages, u32),
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let sequence = self.next_sequence();
        let mut messages = Messages::default();
        build(&mut messages, sequence);
        self.send(messages.bytes())?;
        loop {
            let length = self.receive(0)?;
            for message in split(&self.buffer[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return error_of(message.body),
                    kind => each(kind, message.body),
                }
            }
        }
    }
}

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the value outlives the call and its size is given.
    let done =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
