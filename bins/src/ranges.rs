//! IPv4 CIDRs as command line arguments, and their addresses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Default pod CIDR of a cluster.
pub(crate) const PODS: &str = "10.42.0.0/16";
/// Default service CIDR.
pub(crate) const SERVICES: &str = "10.43.0.0/16";
/// Default cluster DNS address.
pub(crate) const DNS: &str = "10.43.0.10";
/// Default cluster domain.
pub(crate) const DOMAIN: &str = "cluster.local";

/// Returns [`SERVICES`].
pub(crate) fn services() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16)
}

/// A text is not an IPv4 CIDR that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The text is no CIDR.
    #[error("{0:?} is no IPv4 range such as 10.42.0.0/16")]
    NoRange(String),
    /// The prefix is too short or too long.
    #[error("{0:?}: a prefix from 8 to 28 is needed")]
    Prefix(String),
}

/// Parses an IPv4 CIDR such as `10.42.0.0/16`, with a prefix from 8 to 28 bits. Clears host bits.
///
/// # Errors
/// [`RangeError`].
pub fn parse(text: &str) -> Result<Ipv4Net, RangeError> {
    let bad = || RangeError::NoRange(text.to_owned());
    let (network, prefix) = text.split_once('/').ok_or_else(bad)?;
    let (network, prefix): (Ipv4Addr, u8) =
        (network.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
    if !(8..=28).contains(&prefix) {
        return Err(RangeError::Prefix(text.to_owned()));
    }
    Ok(Ipv4Net::new(network, prefix).map_err(|_| bad())?.trunc())
}

/// Returns the address at an offset from the network address.
#[must_use]
pub fn nth(range: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(range.network().to_bits().wrapping_add(offset))
}

/// Returns true if the two ranges share an address.
#[must_use]
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = |text| parse(text).expect("a range");
        let pods = range("10.42.3.0/16");
        assert_eq!(pods.to_string(), "10.42.0.0/16");
        assert_eq!(nth(pods, 10), Ipv4Addr::new(10, 42, 0, 10));
        assert!(overlap(pods, range("10.42.7.0/24")) && overlap(range("10.42.7.0/24"), pods));
        assert!(!overlap(pods, range("10.43.0.0/16")));
        for (bad, message) in [
            ("10.42.0.0", "\"10.42.0.0\" is no IPv4 range such as 10.42.0.0/16"),
            ("x/16", "\"x/16\" is no IPv4 range such as 10.42.0.0/16"),
            ("10.42.0.0/40", "\"10.42.0.0/40\": a prefix from 8 to 28 is needed"),
            ("10.42.0.0/2", "\"10.42.0.0/2\": a prefix from 8 to 28 is needed"),
        ] {
            assert_eq!(parse(bad).expect_err(bad).to_string(), message);
        }
    }
}
