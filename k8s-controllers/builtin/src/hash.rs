//! Hashes of pod templates (`pod-template-hash`, `controller-revision-hash`).

use serde::Serialize;

/// Alphabet without vowels and ambiguous characters (`k8s.io/apimachinery/pkg/util/rand.SafeEncodeString`).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Returns a short hash of a value and the number of collisions. Deterministic.
#[must_use]
pub fn of(value: &impl Serialize, collisions: Option<i32>) -> String {
    // Our types always encode; maps are ordered, so the bytes are deterministic.
    let mut bytes = k8s_core::json::to_vec(value).unwrap_or_default();
    if let Some(count) = collisions {
        bytes.extend(count.to_le_bytes());
    }
    let number = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    number.to_string().bytes().map(|b| char::from(LETTERS[usize::from(b) % LETTERS.len()])).collect()
}
