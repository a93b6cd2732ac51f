//! The short names of pod templates (`pod-template-hash`, `controller-revision-hash`).

use serde::Serialize;

/// No vowels and no look-alikes, so that no words arise (`k8s.io/apimachinery/pkg/util/rand.SafeEncodeString`).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name for a value: the same for the same value and number of collisions.
#[must_use]
pub fn of(value: &impl Serialize, collisions: Option<i32>) -> String {
    // Our types always encode; maps are ordered, so the bytes are the same every time.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    if let Some(count) = collisions {
        bytes.extend(count.to_le_bytes());
    }
    let number = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    number.to_string().bytes().map(|b| char::from(LETTERS[usize::from(b) % LETTERS.len()])).collect()
}
