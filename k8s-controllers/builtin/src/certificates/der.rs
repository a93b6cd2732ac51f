//! The parts of DER that a certificate is made of.

use jiff::Timestamp;

/// The tag of a context-specific element that is encoded as another type.
pub(super) const fn implicit(number: u8) -> u8 {
    0x80 | number
}

/// The tag of a context-specific element that contains another one.
pub(super) const fn explicit(number: u8) -> u8 {
    0xa0 | number
}

/// Encodes an element.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    match content.len() {
        length @ 0..0x80 => bytes.push(u8::try_from(length).unwrap_or_default()),
        length => {
            let length = length.to_be_bytes();
            let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
            bytes.push(0x80 | u8::try_from(significant.len()).unwrap_or_default());
            bytes.extend(significant);
        }
    }
    bytes.extend(content);
    bytes
}

/// Encodes a sequence of encoded elements.
pub(super) fn sequence(elements: &[Vec<u8>]) -> Vec<u8> {
    element(0x30, &elements.concat())
}

/// Encodes a non-negative integer, big-endian.
pub(super) fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut content = bytes[zeros..].to_vec();
    if content.first().is_none_or(|byte| byte & 0x80 != 0) {
        content.insert(0, 0);
    }
    element(0x02, &content)
}

/// Encodes a string of whole bytes as bits.
pub(super) fn bits(bytes: &[u8]) -> Vec<u8> {
    element(0x03, &[&[0], bytes].concat())
}

/// Encodes named bits: bit 0 is the first. Trailing zeros are left out.
pub(super) fn flags(set: u16) -> Vec<u8> {
    let bytes = set.reverse_bits().to_be_bytes();
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let unused = bytes[..length].last().map_or(0, |byte| byte.trailing_zeros());
    element(0x03, &[&[u8::try_from(unused).unwrap_or_default()], &bytes[..length]].concat())
}

/// Encodes bytes.
pub(super) fn octets(bytes: &[u8]) -> Vec<u8> {
    element(0x04, bytes)
}

/// Encodes an object identifier of at least two arcs.
pub(super) fn oid(arcs: &[u64]) -> Vec<u8> {
    let first = arcs[0] * 40 + arcs[1];
    let mut content = Vec::new();
    for arc in std::iter::once(first).chain(arcs[2..].iter().copied()) {
        let groups = (0..10).rev().map(|n| (n, arc >> (7 * n))).skip_while(|(n, rest)| *n > 0 && *rest == 0);
        content.extend(groups.map(|(n, rest)| {
            let low = u8::try_from(rest & 0x7f).unwrap_or_default();
            if n > 0 { low | 0x80 } else { low }
        }));
    }
    element(0x06, &content)
}

/// Encodes a time, as certificates have it: with two digits of the year until 2049.
pub(super) fn time(at: Timestamp) -> Vec<u8> {
    let year = at.strftime("%Y").to_string();
    match year.as_str() < "2050" {
        true => element(0x17, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()),
        false => element(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_those_of_the_standard() {
        assert_eq!(oid(&[1, 2, 840, 113_549, 1, 1, 11]), [6, 9, 42, 134, 72, 134, 247, 13, 1, 1, 11]);
        assert_eq!(oid(&[2, 5, 29, 37, 0]), [6, 4, 85, 29, 37, 0]);
        assert_eq!(integer(&[0, 0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0]), [2, 1, 0]);
        // digitalSignature and keyEncipherment, as openssl encodes them.
        assert_eq!(flags(1 | 1 << 2), [3, 2, 5, 0xa0]);
        assert_eq!(flags(1 << 8), [3, 3, 7, 0, 0x80], "decipherOnly");
        assert_eq!(element(4, &[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(element(4, &[0; 300])[..4], [4, 0x82, 1, 44]);
        let at = |text: &str| time(text.parse().unwrap());
        assert_eq!(at("2026-11-28T14:00:01Z"), [&[0x17, 13][..], b"261128140001Z"].concat());
        assert_eq!(at("2050-01-01T00:00:00Z"), [&[0x18, 15][..], b"20500101000000Z"].concat());
    }
}
