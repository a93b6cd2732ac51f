//! The part of SPDY/3.1 that port-forward needs: the server side, with many streams over one connection.
//!
//! Format, all numbers big-endian. A control frame is `u16 0x8003, u16 type, u8 flags, u24 length`; a data
//! frame is `u32 stream, u8 flags, u24 length`. Headers (of `SYN_STREAM` and `SYN_REPLY`) are `u32 count` and
//! two strings with `u32` lengths per header. They are compressed as one zlib stream per direction, with the
//! dictionary of the specification.
//!
//! Flow: [`Session::start`] reads frames in a task. [`Session::accept`] returns each stream that the client
//! opens.
//! Ours, because no kept crate speaks SPDY, and clients before Kubernetes 1.31 speak nothing else for
//! port-forward.
//! Not here: push streams, priorities, flow control windows (Kubernetes clients use none of them).

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};

/// Maximum size of frames and headers, bytes; larger ones end the session.
const LONGEST_FRAME: usize = 1 << 20;
const LONGEST_HEADERS: usize = 64 * 1024;
const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// Status `CANCEL` of `RST_STREAM`.
const CANCEL: u32 = 5;

/// A mistake of the peer, or a broken connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    #[error("frame of {0} bytes is too long")]
    Long(usize),
    #[error("malformed {0}")]
    Malformed(&'static str),
    #[error("header compression: {0}")]
    Zlib(String),
}

const NAMES: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The header dictionary of the SPDY/3 specification.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for name in NAMES {
        bytes.put_u32(u32::try_from(name.len()).unwrap_or(0));
        bytes.put_slice(name.as_bytes());
    }
    bytes.put_slice(REST.as_bytes());
    bytes
}

/// Headers by lower-case name.
pub(super) type Headers = BTreeMap<String, String>;

struct HeaderReader {
    zlib: Decompress,
    dictionary: Vec<u8>,
}

impl HeaderReader {
    fn new() -> Self {
        HeaderReader { zlib: Decompress::new(true), dictionary: dictionary() }
    }

    fn read(&mut self, compressed: &[u8]) -> Result<Headers, SpdyError> {
        let plain = self.inflate(compressed)?;
        let mut plain = Bytes::from(plain);
        let short = || SpdyError::Malformed("headers");
        let count = plain.try_get_u32().map_err(|_| short())?;
        let mut headers = Headers::new();
        for _ in 0..count {
            let mut string = || {
                let length = plain.try_get_u32().map_err(|_| short())? as usize;
                if plain.len() < length {
                    return Err(short());
                }
                Ok(String::from_utf8_lossy(&plain.split_to(length)).into_owned())
            };
            let name = string()?;
            headers.insert(name.to_lowercase(), string()?);
        }
        Ok(headers)
    }

    fn inflate(&mut self, compressed: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let failed = |e: &dyn std::fmt::Display| SpdyError::Zlib(e.to_string());
        let mut plain = Vec::with_capacity(1024);
        let begun = self.zlib.total_in();
        loop {
            let used = usize::try_from(self.zlib.total_in() - begun).unwrap_or(usize::MAX);
            let input = compressed.get(used..).unwrap_or_default();
            let before = (self.zlib.total_in(), self.zlib.total_out());
            match self.zlib.decompress_vec(input, &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Ok(plain),
                Ok(_) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&self.dictionary).map_err(|e| failed(&e))?;
                    continue;
                }
                Err(e) => return Err(failed(&e)),
            }
            let moved = before != (self.zlib.total_in(), self.zlib.total_out());
            let room = plain.capacity() > plain.len();
            if room && (!moved || (self.zlib.total_in() - begun) as usize >= compressed.len()) {
                return Ok(plain);
            }
            if plain.len() > LONGEST_HEADERS {
                return Err(SpdyError::Long(plain.len()));
            }
            if !room {
                plain.reserve(1024);
            }
        }
    }
}

struct HeaderWriter(Compress);

impl HeaderWriter {
    fn new() -> Result<Self, SpdyError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary()).map_err(|e| SpdyError::Zlib(e.to_string()))?;
        Ok(HeaderWriter(zlib))
    }

    fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        let mut string = |text: &str| {
            plain.put_u32(u32::try_from(text.len()).unwrap_or(0));
            plain.put_slice(text.as_bytes());
        };
        for (name, value) in headers {
            string(name);
            string(value);
        }
        let mut whole = Vec::with_capacity(plain.len() + 4);
        whole.put_u32(u32::try_from(headers.len()).unwrap_or(0));
        whole.extend(plain);
        // A sync flush may need a few bytes beyond the length of the text.
        let mut compressed = Vec::with_capacity(whole.len() + 256);
        self.0
            .compress_vec(&whole, &mut compressed, FlushCompress::Sync)
            .map_err(|e| SpdyError::Zlib(e.to_string()))?;
        Ok(compressed)
    }
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(payload.len() + 8);
    frame.put_u16(VERSION);
    frame.put_u16(kind);
    frame.put_u32(u32::from(flags) << 24 | u32::try_from(payload.len()).unwrap_or(0) & 0xff_ffff);
    frame.put_slice(payload);
    frame.freeze()
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(payload.len() + 8);
    frame.put_u32(stream);
    frame.put_u32(u32::from(flags) << 24 | u32::try_from(payload.len()).unwrap_or(0) & 0xff_ffff);
    frame.put_slice(payload);
    frame.freeze()
}

/// A client's action on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Data(Bytes),
    /// The client sends nothing more on this stream.
    Fin,
    /// The client has reset the stream (`RST_STREAM`).
    Reset,
}

/// One stream of a session.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) headers: Headers,
    /// The client's actions; ends with the session.
    pub(super) incoming: mpsc::Receiver<Incoming>,
    outgoing: mpsc::Sender<Bytes>,
}

/// The sending half of a stream.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    id: u32,
    outgoing: mpsc::Sender<Bytes>,
}

impl Stream {
    pub(super) fn writer(&self) -> Writer {
        Writer { id: self.id, outgoing: self.outgoing.clone() }
    }
}

impl Writer {
    async fn put(&self, frame: Bytes) -> Result<(), SpdyError> {
        let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.outgoing.send(frame).await.map_err(|_| closed().into())
    }

    pub(super) async fn send(&self, bytes: &[u8]) -> Result<(), SpdyError> {
        self.put(data(self.id, 0, bytes)).await
    }

    /// Half-closes the stream (`FLAG_FIN`).
    pub(super) async fn finish(&self) -> Result<(), SpdyError> {
        self.put(data(self.id, FIN, b"")).await
    }

    /// Resets the stream (`RST_STREAM`).
    pub(super) async fn reset(&self) -> Result<(), SpdyError> {
        let mut payload = Vec::new();
        payload.put_u32(self.id);
        payload.put_u32(CANCEL);
        self.put(control(RST_STREAM, 0, &payload)).await
    }
}

/// The server side of a connection. Dropping it closes the connection.
pub(super) struct Session {
    streams: mpsc::Receiver<Stream>,
    _tasks: JoinSet<()>,
}

impl Session {
    /// Starts a session on a connection.
    pub(super) fn start<R, W>(read: R, write: W) -> Result<Self, SpdyError>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let headers = HeaderWriter::new()?;
        let (accepted, streams) = mpsc::channel(64);
        let (outgoing, frames) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(send_frames(write, frames));
        let reader = Reader {
            read,
            accepted,
            outgoing,
            open: HashMap::new(),
            headers_in: HeaderReader::new(),
            headers_out: headers,
        };
        tasks.spawn(async move {
            if let Err(e) = reader.run().await {
                tracing::debug!(error = %e, "SPDY session ended");
            }
        });
        Ok(Session { streams, _tasks: tasks })
    }

    /// Returns the next stream opened by the client. `None`: the session has ended.
    pub(super) async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

async fn send_frames<W: AsyncWrite + Unpin>(mut write: W, mut frames: mpsc::Receiver<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if write.write_all(&frame).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    // Fails if the peer has disconnected already.
    let _ = write.shutdown().await;
}

struct Reader<R> {
    read: R,
    accepted: mpsc::Sender<Stream>,
    outgoing: mpsc::Sender<Bytes>,
    open: HashMap<u32, mpsc::Sender<Incoming>>,
    headers_in: HeaderReader,
    headers_out: HeaderWriter,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> Result<(), SpdyError> {
        loop {
            let first = match self.read.read_u32().await {
                Ok(first) => first,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let second = self.read.read_u32().await?;
            let flags = (second >> 24) as u8;
            let length = (second & 0xff_ffff) as usize;
            if length > LONGEST_FRAME {
                return Err(SpdyError::Long(length));
            }
            let mut payload = BytesMut::zeroed(length);
            self.read.read_exact(&mut payload).await?;
            let payload = payload.freeze();
            if first & 0x8000_0000 == 0 {
                self.data(first, flags, payload).await;
                continue;
            }
            match (first & 0xffff) as u16 {
                SYN_STREAM => self.syn_stream(flags, payload).await?,
                RST_STREAM => {
                    let id = payload.clone().try_get_u32().map_err(|_| SpdyError::Malformed("RST_STREAM"))?;
                    if let Some(stream) = self.open.remove(&(id & 0x7fff_ffff)) {
                        let _ = stream.send(Incoming::Reset).await;
                    }
                }
                // A ping of the client (odd id) must be answered.
                PING if payload.last().is_some_and(|b| b % 2 == 1) => {
                    self.put(control(PING, 0, &payload)).await
                }
                GOAWAY => return Ok(()),
                _ => {}
            }
        }
    }

    async fn put(&mut self, frame: Bytes) {
        // The reader ends with the writer.
        let _ = self.outgoing.send(frame).await;
    }

    async fn data(&mut self, id: u32, flags: u8, payload: Bytes) {
        let Some(stream) = self.open.get(&id) else { return };
        // A stream without a reader takes nothing.
        if !payload.is_empty() {
            let _ = stream.send(Incoming::Data(payload)).await;
        }
        if flags & FIN != 0 {
            let _ = stream.send(Incoming::Fin).await;
            self.open.remove(&id);
        }
    }

    async fn syn_stream(&mut self, flags: u8, mut payload: Bytes) -> Result<(), SpdyError> {
        if payload.len() < 10 {
            return Err(SpdyError::Malformed("SYN_STREAM"));
        }
        let id = payload.get_u32() & 0x7fff_ffff;
        payload.advance(6);
        let headers = self.headers_in.read(&payload)?;
        let mut reply = Vec::new();
        reply.put_u32(id);
        reply.extend(self.headers_out.write(&Headers::new())?);
        self.put(control(SYN_REPLY, 0, &reply)).await;
        let (sender, incoming) = mpsc::channel(64);
        if flags & FIN != 0 {
            let _ = sender.send(Incoming::Fin).await;
        } else {
            self.open.insert(id, sender);
        }
        let stream = Stream { id, headers, incoming, outgoing: self.outgoing.clone() };
        // Fails if the session is being dropped.
        let _ = self.accepted.send(stream).await;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The client side, for tests.
    pub(crate) struct Client<S> {
        pub(crate) io: S,
        headers: HeaderWriter,
        replies: HeaderReader,
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
        pub(crate) fn new(io: S) -> Self {
            Client { io, headers: HeaderWriter::new().unwrap(), replies: HeaderReader::new() }
        }

        pub(crate) async fn open(&mut self, id: u32, headers: &[(&str, &str)], fin: bool) {
            let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let mut payload = Vec::new();
            payload.put_u32(id);
            payload.put_u32(0);
            payload.put_u16(0);
            payload.extend(self.headers.write(&headers).unwrap());
            self.io.write_all(&control(SYN_STREAM, u8::from(fin), &payload)).await.unwrap();
        }

        pub(crate) async fn send(&mut self, id: u32, bytes: &[u8], fin: bool) {
            self.io.write_all(&data(id, u8::from(fin), bytes)).await.unwrap();
        }

        /// Returns the next frame: `(control type or 0, stream, finished, payload)`.
        pub(crate) async fn next(&mut self) -> (u16, u32, bool, Vec<u8>) {
            let first = self.io.read_u32().await.unwrap();
            let second = self.io.read_u32().await.unwrap();
            let mut payload = vec![0; (second & 0xff_ffff) as usize];
            self.io.read_exact(&mut payload).await.unwrap();
            let fin = second >> 24 == 1;
            if first & 0x8000_0000 == 0 {
                return (0, first, fin, payload);
            }
            let kind = first as u16;
            let id = (&payload[..]).get_u32();
            if kind == SYN_REPLY {
                assert!(self.replies.read(&payload[4..]).unwrap().is_empty());
            }
            (kind, id, fin, payload)
        }
    }

    #[test]
    fn the_dictionary_is_the_specifications() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &bytes {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn headers_share_one_compression() {
        let (mut writer, mut reader) = (HeaderWriter::new().unwrap(), HeaderReader::new());
        for n in 0..5 {
            let headers: Headers = [
                ("streamtype".to_owned(), "data".to_owned()),
                ("port".to_owned(), n.to_string()),
                ("x".to_owned(), "y".repeat(n * 1500)),
            ]
            .into();
            let compressed = writer.write(&headers).unwrap();
            assert_eq!(reader.read(&compressed).unwrap(), headers);
        }
        assert!(reader.read(b"nonsense").is_err());
    }

    #[tokio::test]
    async fn streams() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (read, write) = tokio::io::split(ours);
        let mut session = Session::start(read, write).unwrap();
        let mut client = Client::new(theirs);
        client.open(1, &[("Port", "80")], false).await;
        let mut stream = session.accept().await.unwrap();
        assert_eq!(stream.headers["port"], "80");
        assert_eq!(client.next().await.0, SYN_REPLY);
        client.send(1, b"hello", false).await;
        client.send(1, b"", true).await;
        assert_eq!(stream.incoming.recv().await, Some(Incoming::Data("hello".into())));
        assert_eq!(stream.incoming.recv().await, Some(Incoming::Fin));
        stream.writer().send(b"world").await.unwrap();
        stream.writer().finish().await.unwrap();
        assert_eq!(client.next().await, (0, 1, false, b"world".to_vec()));
        assert_eq!(client.next().await, (0, 1, true, Vec::new()));
        client.io.write_all(&control(PING, 0, &[0, 0, 0, 3])).await.unwrap();
        assert_eq!(client.next().await.0, PING);
        drop(client);
        assert!(session.accept().await.is_none());
    }
}
