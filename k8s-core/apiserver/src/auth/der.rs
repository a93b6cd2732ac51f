//! PEM blocks and the parts of DER that keys are made of.

/// Tags of DER values.
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
#[cfg(any(feature = "jwt", test))]
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_ID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;

/// Returns the label and the bytes of each PEM block of a text.
pub(super) fn pem(text: &str) -> Vec<(String, Vec<u8>)> {
    k8s_core::pem::blocks(text).into_iter().map(|block| (block.label, block.contents)).collect()
}

/// A reader of consecutive DER values.
#[derive(Clone, Copy)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    /// Takes the next value: its tag and its content.
    pub(super) fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, mut rest) = rest.split_first()?;
        let length = if *first < 0x80 {
            usize::from(*first)
        } else {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            // Keys and certificates end far before 16 MiB.
            if bytes.is_empty() || bytes.len() > 3 {
                return None;
            }
            rest = after;
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// Takes the next value if it has this tag.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let (found, content) = ahead.next()?;
        (found == tag).then(|| {
            *self = ahead;
            content
        })
    }

    /// Takes a sequence.
    pub(super) fn sequence(&mut self) -> Option<Der<'a>> {
        self.take(SEQUENCE).map(Der)
    }

    /// Takes a positive integer, without leading zeros.
    pub(super) fn unsigned(&mut self) -> Option<&'a [u8]> {
        let bytes = self.take(INTEGER)?;
        let start = bytes.iter().position(|b| *b != 0)?;
        Some(&bytes[start..])
    }
}

/// Encodes a value.
pub(super) fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().position(|b| *b != 0).unwrap_or(length.len() - 1)..];
    let mut all = vec![tag];
    if content.len() >= 0x80 {
        // At most eight bytes of length.
        #[allow(clippy::cast_possible_truncation)]
        all.push(0x80 | length.len() as u8);
    }
    all.extend_from_slice(length);
    all.extend_from_slice(content);
    all
}

/// Encodes a positive integer.
pub(super) fn encode_unsigned(bytes: &[u8]) -> Vec<u8> {
    let mut content = bytes.to_vec();
    if content.first().is_none_or(|b| *b >= 0x80) {
        content.insert(0, 0);
    }
    encode(INTEGER, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let bytes = encode(OCTET_STRING, &vec![7; length]);
            let mut der = Der(&bytes);
            assert_eq!(der.take(OCTET_STRING).map(<[u8]>::len), Some(length));
            assert!(der.0.is_empty());
        }
        assert_eq!(Der(&encode_unsigned(&[0x80, 1])).unsigned(), Some(&[0x80, 1][..]));
        // Lengths that say more than there is.
        for bad in [&[0x30, 5, 1][..], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0x80], &[0x30], &[]] {
            assert!(Der(bad).next().is_none(), "{bad:?}");
        }
    }
}
