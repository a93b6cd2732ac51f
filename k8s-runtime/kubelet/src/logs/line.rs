//! Parser for one line of a CRI log.

use std::borrow::Cow;

use crate::types::Timestamp;

/// A line such as `2026-01-02T03:04:05.678901234Z stdout F text`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// The time in the line's own text.
    pub(crate) time: &'a str,
    pub(crate) stream: &'a str,
    /// Tag `P`: the container's line continues in the next log line.
    pub(crate) partial: bool,
    /// Text without the line feed.
    pub(crate) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses a line. `None`: the rest of a line that was cut, or garbage.
    pub(crate) fn parse(raw: &'a [u8]) -> Option<Self> {
        let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
        let mut parts = raw.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = std::str::from_utf8(parts.next()?).ok()?;
        let tag = parts.next()?;
        let text = parts.next().unwrap_or_default();
        if !matches!(stream, "stdout" | "stderr") || !time.contains('T') {
            return None;
        }
        let partial = tag.split(|b| *b == b':').next() == Some(b"P");
        Some(Line { time, stream, partial, text })
    }

    /// The time at which it was written.
    pub(crate) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }

    /// Returns the text with a line feed unless it is partial: the bytes that the container wrote.
    pub(crate) fn text_with_end(&self) -> Cow<'a, [u8]> {
        if self.partial {
            return Cow::Borrowed(self.text);
        }
        let mut text = self.text.to_vec();
        text.push(b'\n');
        Cow::Owned(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = Line::parse(b"2026-01-02T03:04:05.5Z stderr P a b \n").unwrap();
        assert_eq!((line.stream, line.partial, line.text), ("stderr", true, &b"a b "[..]));
        assert!(line.timestamp().is_some());
        let empty = Line::parse(b"2026-01-02T03:04:05Z stdout F \n").unwrap();
        assert_eq!(&*empty.text_with_end(), b"\n");
        for bad in [&b"garbage"[..], b"", b"x stdout F y", b"2026-01-02T03:04:05Z other F y"] {
            assert_eq!(Line::parse(bad), None);
        }
    }
}
