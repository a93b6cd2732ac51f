//! The first request of a connection with a URI that is longer than the `http` crate takes.
//!
//! Flow: [`FirstLine::read`] sees the bytes of an HTTP/1 connection before hyper. A first request line of up
//! to [`LONG`] bytes goes through as it is. Of a longer one, up to [`MOST`] bytes, the query is cut off and
//! kept; hyper gets the rest. A client of `exec` opens a connection for each request, so the first request is
//! enough.
//!
//! Guarantee: clients without credentials can make the server hold at most [`PLACES`] long lines at a time. A
//! further one goes to hyper as it is, which refuses it.

use std::sync::Arc;

use k8s_core::client::LongQuery;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Minimum size in bytes of a request line whose query is cut off. Below the `http` crate's limit of 65,534.
const LONG: usize = 60_000;

/// Maximum size of a request line in bytes, as in Go.
const MOST: usize = 1 << 20;

/// Maximum number of connections of a listener that hold a long request line, 1 MiB each.
pub(super) const PLACES: usize = 32;

/// The state of a connection's first request line.
#[derive(Debug)]
pub(super) enum FirstLine {
    /// Not complete; the bytes that were held back so far.
    Reading { held: Vec<u8>, places: Arc<Semaphore>, place: Option<OwnedSemaphorePermit> },
    /// Complete; bytes that hyper has not got yet, and the number of those that it has.
    Passing(Vec<u8>, usize),
    /// Complete; all bytes go through.
    Over,
}

/// The effect of bytes that were read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// More bytes are needed; hyper gets none.
    Incomplete,
    /// The bytes can be passed on.
    Complete(Option<LongQuery>),
}

impl FirstLine {
    /// Returns the state of a new connection. `places` are the long lines that may be held.
    pub(super) fn new(places: Arc<Semaphore>) -> Self {
        FirstLine::Reading { held: Vec::new(), places, place: None }
    }

    /// Takes the next bytes of the connection; none is its end.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Seen {
        let FirstLine::Reading { held, places, place } = self else { return Seen::Complete(None) };
        let before = held.len();
        held.extend_from_slice(bytes);
        let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| before + at);
        if end.unwrap_or(held.len()) >= LONG && place.is_none() {
            *place = places.clone().try_acquire_owned().ok();
        }
        let may_wait = held.len() < LONG || (place.is_some() && held.len() < MOST);
        if end.is_none() && !bytes.is_empty() && may_wait {
            return Seen::Incomplete;
        }
        let mut held = std::mem::take(held);
        let end = end.filter(|end| place.is_some() && (LONG..MOST).contains(end));
        let query = end.and_then(|end| cut(&mut held, end));
        *self = FirstLine::Passing(held, 0);
        Seen::Complete(query)
    }

    /// Returns held bytes, at most `most`.
    pub(super) fn pass(&mut self, most: usize) -> &[u8] {
        if matches!(self, FirstLine::Passing(held, passed) if *passed == held.len()) {
            *self = FirstLine::Over;
        }
        let FirstLine::Passing(held, passed) = self else { return &[] };
        let from = *passed;
        *passed = held.len().min(from.saturating_add(most));
        &held[from..*passed]
    }
}

/// Cuts the query out of the request line that ends before `end`. `None`, and no change, for a line without
/// one and for bytes that are not of a request line.
fn cut(held: &mut Vec<u8>, end: usize) -> Option<LongQuery> {
    let line = &held[..end];
    let target = line.iter().position(|byte| *byte == b' ')? + 1;
    let mark = target + line[target..].iter().position(|byte| *byte == b'?')?;
    let after = mark + line[mark..].iter().position(|byte| *byte == b' ')?;
    let query = &line[mark + 1..after];
    let query = query.iter().all(u8::is_ascii_graphic).then(|| std::str::from_utf8(query).ok())??;
    let query = LongQuery::new(query);
    held.drain(mark..after);
    Some(query)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes that hyper gets and the query that is kept, of a connection that arrives in `parts`.
    fn passed(parts: &[&[u8]]) -> (Vec<u8>, Option<LongQuery>) {
        passed_with(1, parts)
    }

    fn passed_with(places: usize, parts: &[&[u8]]) -> (Vec<u8>, Option<LongQuery>) {
        let mut line = FirstLine::new(Arc::new(Semaphore::new(places)));
        let (mut out, mut query) = (Vec::new(), None);
        for part in parts.iter().copied().chain([&[][..]]) {
            if matches!(line, FirstLine::Over) {
                out.extend_from_slice(part);
                continue;
            }
            if let Seen::Complete(found) = line.read(part) {
                query = query.or(found);
                while !matches!(line, FirstLine::Over) {
                    out.extend_from_slice(line.pass(1000));
                }
            }
        }
        (out, query)
    }

    #[test]
    fn lines_at_the_limits() {
        let query = |length: usize| format!("command={}", "a".repeat(length));
        let request = |query: &str| format!("GET /exec?{query} HTTP/1.1\r\nHost: x\r\n\r\nrest");
        for (length, is_cut) in
            [(10, false), (LONG - 100, false), (LONG, true), (MOST - 100, true), (MOST, false)]
        {
            let query = query(length);
            let (out, kept) = passed(&[request(&query).as_bytes()]);
            let want =
                if is_cut { request(&query).replacen(&format!("?{query}"), "", 1) } else { request(&query) };
            assert!(out == want.as_bytes(), "{length}");
            assert_eq!(kept, is_cut.then(|| LongQuery::new(&query)), "{length}");
        }
        let path = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(LONG));
        assert_eq!(passed(&[path.as_bytes()]), (path.clone().into_bytes(), None));
    }

    #[test]
    fn without_a_place_a_long_line_is_neither_held_nor_cut() {
        let request = format!("GET /exec?command={} HTTP/1.1\r\n\r\n", "a".repeat(2 * LONG));
        let (one, two) = request.as_bytes().split_at(LONG + 5);
        assert_eq!(passed_with(0, &[one, two]), (request.clone().into_bytes(), None));
        let places = Arc::new(Semaphore::new(1));
        let mut waiting = FirstLine::new(places.clone());
        assert_eq!(waiting.read(one), Seen::Incomplete);
        let mut late = FirstLine::new(places.clone());
        assert_eq!(late.read(one), Seen::Complete(None));
        drop(waiting);
        assert_eq!(places.available_permits(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_the_bytes_arrive(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            length in prop_oneof![0..200_usize, LONG..LONG + 200],
            at in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            let mut bytes = format!("POST /a?b={} HTTP/1.1\r\n", "c".repeat(length)).into_bytes();
            bytes.extend_from_slice(&noise);
            let mut cuts: Vec<usize> = at.iter().map(|i| i.index(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).filter(|p| !p.is_empty()).collect();
            prop_assert_eq!(passed(&parts), passed(&[&bytes]));
            let mut whole = passed(&parts);
            if whole.1.take().is_some() {
                let query = format!("?b={}", "c".repeat(length));
                whole.0.splice(7..7, query.into_bytes());
            }
            prop_assert_eq!(whole.0, bytes);
        }
    }
}
