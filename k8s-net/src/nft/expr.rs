//! The expressions of a rule: a small vocabulary over the nf_tables virtual machine.
//!
//! Registers are 32-bit words numbered from [`REG`]. The kernel rejects a rule that reads a register which
//! the same rule did not write.
use ipnet::Ipv4Net;

use crate::netlink::Messages;

/// The first of 16 registers.
pub(crate) const REG: u32 = 8;
/// Packet mark for masquerading (the bit that kube-proxy uses, too).
pub(crate) const MASQUERADE_MARK: u32 = 0x4000;

/// Verdict of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    /// Goes on after the jump that led to this chain.
    Return,
    Goto(String),
    Jump(String),
}

impl Verdict {
    pub(crate) fn write(&self, m: &mut Messages) {
        let (code, chain): (i32, _) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        m.nest(2, |m| {
            m.attr(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                m.attr_str(2, chain);
            }
        });
    }
}

/// Source or destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Packet metadata outside of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    Mark = 3,
    InName = 6,
    Family = 15,
    Protocol = 16,
    /// Group of the input link, in native byte order.
    InGroup = 21,
    /// Group of the output link, in native byte order.
    OutGroup = 22,
}

/// Comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    Equal = 0,
    Not = 1,
}

/// A rule: a sequence of expressions; the first that does not match ends it.
#[derive(Default, Debug)]
pub(crate) struct Rule(Messages);

impl Rule {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn push(mut self, name: &str, fill: impl FnOnce(&mut Messages)) -> Self {
        self.0.nest(1, |m| {
            m.attr_str(1, name);
            m.nest(2, fill);
        });
        self
    }

    /// register = bytes
    pub(crate) fn load(self, register: u32, bytes: &[u8]) -> Self {
        self.push("immediate", |m| {
            m.attr_be32(1, register).nest(2, |m| {
                m.attr(1, bytes);
            });
        })
    }

    /// Loads a constant into registers that a map lookup is about to overwrite. `nft` assumes that a lookup
    /// writes only its first register, and prints this constant for the others.
    pub(crate) fn shown(self, registers: &[u32]) -> Self {
        registers.iter().fold(self, |rule, register| rule.load(*register, &[0; 4]))
    }

    fn payload(self, register: u32, base: u32, offset: u32, length: u32) -> Self {
        self.push("payload", |m| {
            m.attr_be32(1, register).attr_be32(2, base).attr_be32(3, offset).attr_be32(4, length);
        })
    }

    /// register = the packet's source or destination address
    pub(crate) fn address(self, register: u32, side: Side) -> Self {
        self.payload(register, 1, if side == Side::Source { 12 } else { 16 }, 4)
    }

    /// register = the source address, but for the last bits of a prefix of this length
    pub(crate) fn source_prefix(self, register: u32, length: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
        self.address(register, Side::Source).bitwise(register, mask.to_be_bytes(), [0; 4])
    }

    /// register = destination port
    pub(crate) fn port(self, register: u32) -> Self {
        self.payload(register, 2, 2, 2)
    }

    /// register = meta
    pub(crate) fn meta(self, register: u32, key: Meta) -> Self {
        self.push("meta", |m| {
            m.attr_be32(1, register).attr_be32(2, key as u32);
        })
    }

    /// Matches if the register equals (or differs from) these bytes.
    pub(crate) fn compare(self, register: u32, is: Is, bytes: &[u8]) -> Self {
        self.push("cmp", |m| {
            m.attr_be32(1, register).attr_be32(2, is as u32).nest(3, |m| {
                m.attr(1, bytes);
            });
        })
    }

    /// register = (register & mask) ^ xor
    fn bitwise(self, register: u32, mask: [u8; 4], xor: [u8; 4]) -> Self {
        self.push("bitwise", |m| {
            m.attr_be32(1, register).attr_be32(2, register).attr_be32(3, 4);
            m.nest(4, |m| {
                m.attr(1, &mask);
            });
            m.nest(5, |m| {
                m.attr(1, &xor);
            });
        })
    }

    /// Matches if an address is in a CIDR, or is not.
    pub(crate) fn in_range(self, side: Side, is: Is, range: Ipv4Net) -> Self {
        self.address(REG, side).bitwise(REG, range.netmask().octets(), [0; 4]).compare(
            REG,
            is,
            &range.network().octets(),
        )
    }

    /// Matches the name of the input link.
    pub(crate) fn link(self, key: Meta, is: Is, name: &str) -> Self {
        let mut padded = [0; 16];
        for (to, from) in padded.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        self.meta(REG, key).compare(REG, is, &padded)
    }

    /// Matches if an address is local to the machine, or is not.
    pub(crate) fn local(self, side: Side, is: Is) -> Self {
        const ADDRESS_TYPE: u32 = 3;
        let flag = if side == Side::Source { 1 } else { 2 };
        self.push("fib", |m| {
            m.attr_be32(1, REG).attr_be32(2, ADDRESS_TYPE).attr_be32(3, flag);
        })
        .compare(REG, is, &2u32.to_ne_bytes())
    }

    /// Matches connections whose destination was translated (DNAT).
    pub(crate) fn was_redirected(self) -> Self {
        const STATUS: u32 = 2;
        const DST_NAT: u32 = 1 << 5;
        self.push("ct", |m| {
            m.attr_be32(1, REG).attr_be32(2, STATUS);
        })
        .bitwise(REG, DST_NAT.to_ne_bytes(), [0; 4])
        .compare(REG, Is::Not, &[0; 4])
    }

    /// Matches packets of connections that were allowed before, and errors about them.
    pub(crate) fn established(self) -> Self {
        const STATE: u32 = 0;
        const ESTABLISHED_OR_RELATED: u32 = 0b110;
        self.push("ct", |m| {
            m.attr_be32(1, REG).attr_be32(2, STATE);
        })
        .bitwise(REG, ESTABLISHED_OR_RELATED.to_ne_bytes(), [0; 4])
        .compare(REG, Is::Not, &[0; 4])
    }

    /// Matches TCP packets that do not open a connection.
    pub(crate) fn not_first_of_tcp(self) -> Self {
        const FIN_SYN_RST_ACK: u8 = 0x17;
        const SYN: u8 = 0x02;
        self.meta(REG, Meta::Protocol)
            .compare(REG, Is::Equal, &[6])
            .payload(REG, 2, 13, 1)
            .bitwise(REG, [FIN_SYN_RST_ACK, 0, 0, 0], [0; 4])
            .compare(REG, Is::Not, &[SYN, 0, 0, 0])
    }

    /// register (and the next one) = source address of the frame
    pub(crate) fn source_mac(self, register: u32) -> Self {
        self.payload(register, 0, 6, 6)
    }

    /// Matches the group of the input or output link.
    pub(crate) fn group(self, key: Meta, is: Is, group: u32) -> Self {
        self.meta(REG, key).compare(REG, is, &group.to_ne_bytes())
    }

    /// Matches packets in the original direction of their connection.
    pub(crate) fn original_direction(self) -> Self {
        const DIRECTION: u32 = 1;
        self.push("ct", |m| {
            m.attr_be32(1, REG).attr_be32(2, DIRECTION);
        })
        .compare(REG, Is::Equal, &[0])
    }

    /// Matches ICMP redirects.
    pub(crate) fn icmp_redirect(self) -> Self {
        self.meta(REG, Meta::Protocol).compare(REG, Is::Equal, &[1]).payload(REG, 2, 0, 1).compare(
            REG,
            Is::Equal,
            &[5],
        )
    }

    /// Matches if the set contains the key in these registers.
    pub(crate) fn in_set(self, register: u32, set: &str) -> Self {
        self.push("lookup", |m| {
            m.attr_str(1, set).attr_be32(2, register);
        })
    }

    /// to = map[key]; the rule ends if the map has no such key.
    pub(crate) fn map(self, register: u32, map: &str, to: u32) -> Self {
        self.push("lookup", |m| {
            m.attr_str(1, map).attr_be32(2, register).attr_be32(3, to);
        })
    }

    /// Applies the verdict that the map has for the key.
    pub(crate) fn dispatch(self, register: u32, map: &str) -> Self {
        self.map(register, map, 0)
    }

    /// register = a random number below `modulus`
    pub(crate) fn random(self, register: u32, modulus: u32) -> Self {
        self.push("numgen", |m| {
            m.attr_be32(1, register).attr_be32(2, modulus).attr_be32(3, 1).attr_be32(4, 0);
        })
    }

    fn dynamic(self, operation: u32, map: &str, key: u32, value: u32, timeout_ms: Option<u64>) -> Self {
        self.push("dynset", |m| {
            m.attr_str(1, map).attr_be32(3, operation).attr_be32(4, key).attr_be32(5, value);
            if let Some(timeout) = timeout_ms {
                m.attr(6, &timeout.to_be_bytes());
            }
        })
    }

    /// map[key] = value with a timeout; an existing entry keeps its value and gets a new timeout.
    pub(crate) fn remember(self, map: &str, key: u32, value: u32, timeout_ms: u64) -> Self {
        self.dynamic(1, map, key, value, Some(timeout_ms))
    }

    /// Removes map[key].
    pub(crate) fn forget(self, map: &str, key: u32, value: u32) -> Self {
        self.dynamic(2, map, key, value, None)
    }

    /// Translates the destination (DNAT) to the address and port in these registers.
    pub(crate) fn redirect(self, address: u32, port: u32) -> Self {
        self.push("nat", |m| {
            m.attr_be32(1, 1).attr_be32(2, 2).attr_be32(3, address).attr_be32(5, port);
        })
    }

    /// Translates the source to the address of the output link.
    pub(crate) fn masquerade(self) -> Self {
        self.push("masq", |_| {})
    }

    /// Marks the packet for [`Rule::masquerade`] in the postrouting chain.
    pub(crate) fn mark_masquerade(self) -> Self {
        let bit = MASQUERADE_MARK.to_ne_bytes();
        let keep = (!MASQUERADE_MARK).to_ne_bytes();
        self.meta(REG, Meta::Mark).bitwise(REG, keep, bit).push("meta", |m| {
            m.attr_be32(2, Meta::Mark as u32).attr_be32(3, REG);
        })
    }

    /// Matches packets marked by [`Rule::mark_masquerade`] and clears the mark.
    pub(crate) fn take_masquerade_mark(self) -> Self {
        let bit = MASQUERADE_MARK.to_ne_bytes();
        let keep = (!MASQUERADE_MARK).to_ne_bytes();
        self.meta(REG, Meta::Mark)
            .bitwise(REG, bit, [0; 4])
            .compare(REG, Is::Not, &[0; 4])
            .meta(REG, Meta::Mark)
            .bitwise(REG, keep, [0; 4])
            .push("meta", |m| {
                m.attr_be32(2, Meta::Mark as u32).attr_be32(3, REG);
            })
    }

    /// Resets a TCP connection; matches no other protocol. Resets are not rate-limited, unlike ICMP.
    pub(crate) fn reset(self) -> Self {
        self.meta(REG, Meta::Protocol).compare(REG, Is::Equal, &[6]).push("reject", |m| {
            m.attr_be32(1, 1);
        })
    }

    /// Rejects with "port unreachable": the client sees a refused connection at once.
    pub(crate) fn reject(self) -> Self {
        self.push("reject", |m| {
            m.attr_be32(1, 0).attr(2, &[3]);
        })
    }

    /// Ends the rule with a verdict.
    pub(crate) fn verdict(self, verdict: &Verdict) -> Self {
        self.push("immediate", |m| {
            m.attr_be32(1, 0).nest(2, |m| verdict.write(m));
        })
    }
}
