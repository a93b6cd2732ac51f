//! Comparison of secrets.

use sha2::{Digest, Sha256};

/// SHA-256 of a secret.
pub(super) type Hashed = [u8; 32];

/// Returns the hash of a secret.
pub(super) fn hashed(secret: &[u8]) -> Hashed {
    Sha256::digest(secret).into()
}

/// Compares two hashes in constant time. Hashing first hides the length, and what a prefix would tell.
pub(super) fn same(one: &Hashed, other: &Hashed) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same(&hashed(b"a"), &hashed(b"a")));
        for other in [&b"b"[..], b"", b"aa"] {
            assert!(!same(&hashed(b"a"), &hashed(other)));
        }
    }
}
