//! Addresses of an IPv4 CIDR by their offset.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Returns the number of addresses, network and broadcast address included.
pub(crate) fn size(range: Ipv4Net) -> u64 {
    1 << (32 - u32::from(range.prefix_len()))
}

/// Returns the address at `offset`, or `None` if that is outside of the CIDR.
pub(crate) fn nth(range: Ipv4Net, offset: u64) -> Option<Ipv4Addr> {
    let offset = u32::try_from(offset).ok().filter(|o| u64::from(*o) < size(range))?;
    Some(Ipv4Addr::from(range.network().to_bits() | offset))
}

/// Returns the offset of `address`, or `None` if it is outside of the CIDR.
pub(crate) fn offset_of(range: Ipv4Net, address: Ipv4Addr) -> Option<u64> {
    range.contains(&address).then(|| u64::from(address.to_bits() - range.network().to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_stay_inside_the_range() {
        let range: Ipv4Net = "10.42.7.9/24".parse().expect("valid");
        assert_eq!(size(range), 256);
        assert_eq!(nth(range, 0), Some(Ipv4Addr::new(10, 42, 7, 0)));
        assert_eq!(nth(range, 255), Some(Ipv4Addr::new(10, 42, 7, 255)));
        assert_eq!(nth(range, 256), None);
        assert_eq!(offset_of(range, Ipv4Addr::new(10, 42, 7, 255)), Some(255));
        assert_eq!(offset_of(range, Ipv4Addr::new(10, 42, 8, 0)), None);
        let all: Ipv4Net = "0.0.0.0/0".parse().expect("valid");
        assert_eq!(offset_of(all, Ipv4Addr::BROADCAST), Some(u64::from(u32::MAX)));
        assert_eq!(nth(all, 1 << 32), None);
    }
}
