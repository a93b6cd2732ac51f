//! IPv4 ranges (CIDRs) as command line arguments.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 CIDR such as `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl Range {
    /// Returns the address at an offset.
    #[must_use]
    pub fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network).wrapping_add(n))
    }

    /// Returns true if the two ranges share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Range) -> bool {
        let bits = self.prefix.min(other.prefix);
        let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        u32::from(self.network) & mask == u32::from(other.network) & mask
    }
}

impl FromStr for Range {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no IPv4 range such as 10.42.0.0/16");
        let (network, prefix) = text.split_once('/').ok_or_else(bad)?;
        let (network, prefix): (Ipv4Addr, u8) =
            (network.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
        if !(8..=28).contains(&prefix) {
            return Err(format!("{text:?}: a prefix from 8 to 28 is needed"));
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        Ok(Range { network: Ipv4Addr::from(u32::from(network) & mask), prefix })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let pods: Range = "10.42.3.0/16".parse().unwrap();
        assert_eq!(pods.to_string(), "10.42.0.0/16");
        assert_eq!(pods.nth(10), Ipv4Addr::new(10, 42, 0, 10));
        assert!(pods.overlaps(&"10.42.7.0/24".parse().unwrap()));
        assert!(!pods.overlaps(&"10.43.0.0/16".parse().unwrap()));
        for bad in ["10.42.0.0", "x/16", "10.42.0.0/40", "10.42.0.0/2"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }
}
