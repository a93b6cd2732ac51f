//! IPv4 CIDR ranges.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 CIDR such as `10.42.0.0/24`. Host bits are cleared when it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// The text is not an IPv4 CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 range such as 10.42.0.0/24")]
pub struct CidrError(pub String);

impl Cidr {
    /// Returns the CIDR of `prefix` bits (clamped to 32) that contains `address`.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Cidr { base: u32::from(address) & mask_of(prefix), prefix }
    }

    /// Returns the network address.
    #[must_use]
    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// Returns the prefix length in bits, 0 to 32.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Returns the netmask (such as `255.255.255.0`).
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(mask_of(self.prefix))
    }

    /// Returns the number of addresses, network and broadcast address included.
    #[must_use]
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// Returns the address at `offset`, or `None` if that is outside of the CIDR.
    #[must_use]
    pub fn nth(&self, offset: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(offset).ok().filter(|o| u64::from(*o) < self.size())?;
        Some(Ipv4Addr::from(self.base | offset))
    }

    /// Returns the offset of `address`, or `None` if it is outside of the CIDR.
    #[must_use]
    pub fn offset_of(&self, address: Ipv4Addr) -> Option<u64> {
        self.contains(address).then(|| u64::from(u32::from(address) - self.base))
    }

    /// Returns true if the CIDR contains `address`.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask_of(self.prefix) == self.base
    }

    /// Returns true if `other` is a subset of the CIDR.
    #[must_use]
    pub fn covers(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.base())
    }

    /// Returns true if the two CIDRs share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Cidr) -> bool {
        let mask = mask_of(self.prefix.min(other.prefix));
        self.base & mask == other.base & mask
    }
}

fn mask_of(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parts = text.split_once('/').and_then(|(address, prefix)| {
            let prefix = prefix.parse::<u8>().ok().filter(|p| *p <= 32)?;
            Some(Cidr::new(address.parse().ok()?, prefix))
        });
        parts.ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_and_contain() {
        let range: Cidr = "10.42.7.9/24".parse().expect("valid");
        assert_eq!(range.to_string(), "10.42.7.0/24");
        assert_eq!(range.size(), 256);
        assert!(range.contains(Ipv4Addr::new(10, 42, 7, 255)));
        assert!(!range.contains(Ipv4Addr::new(10, 42, 8, 0)));
        assert_eq!(range.nth(256), None);
        let all: Cidr = "0.0.0.0/0".parse().expect("valid");
        assert!(all.contains(Ipv4Addr::BROADCAST) && all.overlaps(&range));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "::/0"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
