//! Resource quantities (`100m`, `1.5Gi`, `2e3`): exact arithmetic and the canonical form.
//!
//! ```
//! use k8s_quantity::Quantity;
//! let memory: Quantity = "1.5Gi".parse()?;
//! assert_eq!((memory.units(), memory.to_string().as_str()), (1_610_612_736, "1536Mi"));
//! assert_eq!("0.25".parse::<Quantity>()?.milli(), 250);
//! assert!("1.2.3".parse::<Quantity>().is_err());
//! # Ok::<(), k8s_quantity::QuantityError>(())
//! ```
//!
//! Values are stored in billionths, the finest resolution of the API; finer values are rounded up, as the API
//! does (`k8s.io/apimachinery/pkg/api/resource`).
//!
//! Guarantees: parsing never panics; arithmetic saturates; the canonical form has the same value as the text.
//!
//! Features: `k8s-openapi` has the conversion from and to the type of the API. Not here: units' meanings (bytes,
//! CPUs), which the field of an object gives.

use std::{cmp::Ordering, fmt, str::FromStr};

const NANO: i128 = 1_000_000_000;
/// Maximum of the API: 2^63 - 1 whole units.
const MAX: i128 = (i64::MAX as i128) * NANO;

#[cfg(feature = "k8s-openapi")]
mod api {
    use super::{Quantity, QuantityError};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

    impl Quantity {
        /// Returns the API's type, in canonical form.
        ///
        /// ```
        /// use k8s_quantity::Quantity;
        /// let api = Quantity::from_milli(1500).to_api();
        /// assert_eq!(api.0, "1500m");
        /// assert_eq!(Quantity::try_from(&api).unwrap(), Quantity::from_milli(1500));
        /// ```
        #[must_use]
        pub fn to_api(&self) -> ApiQuantity {
            ApiQuantity(self.to_string())
        }
    }

    impl TryFrom<&ApiQuantity> for Quantity {
        type Error = QuantityError;
        fn try_from(q: &ApiQuantity) -> Result<Self, QuantityError> {
            q.0.parse()
        }
    }
}

/// Suffix format of a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Binary,
    Decimal,
    Exponent,
}

/// An exact quantity.
///
/// ```
/// use k8s_quantity::Quantity;
/// // A limit of 1 GiB, of which 256 MiB are used.
/// let left = Quantity::from_bytes(1 << 30) - "256Mi".parse().unwrap();
/// assert_eq!(left.to_string(), "768Mi");
/// assert!(left < "1G".parse().unwrap() && !left.is_negative());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Quantity {
    /// The quantity 0.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::Decimal };

    /// Creates a quantity from thousandths (milli-CPU).
    #[must_use]
    pub fn from_milli(milli: i64) -> Self {
        Quantity { nanos: i128::from(milli) * (NANO / 1000), format: Format::Decimal }
    }

    /// Creates a quantity from whole units, with decimal suffixes.
    #[must_use]
    pub fn from_units(units: i64) -> Self {
        Quantity { nanos: i128::from(units) * NANO, format: Format::Decimal }
    }

    /// Creates a quantity from bytes, with binary suffixes.
    #[must_use]
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nanos: i128::from(bytes) * NANO, format: Format::Binary }
    }

    /// Returns whole units, rounded up.
    #[must_use]
    pub fn units(&self) -> i64 {
        round_up(self.nanos, NANO)
    }

    /// Returns thousandths, rounded up; saturates.
    ///
    /// ```
    /// use k8s_quantity::Quantity;
    /// let cpu: Quantity = "0.0001".parse().unwrap();
    /// assert_eq!((cpu.milli(), cpu.units()), (1, 1)); // rounded up
    /// assert_eq!((Quantity::from_units(2) + cpu).milli(), 2001);
    /// ```
    #[must_use]
    pub fn milli(&self) -> i64 {
        round_up(self.nanos, NANO / 1000)
    }

    /// Returns true if it is negative.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Returns true if it is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
}

fn round_up(nanos: i128, unit: i128) -> i64 {
    let whole = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError);
        }
        let (multiplier, exponent, format) = suffix_of(suffix)?;
        let magnitude = scaled(whole, fraction, multiplier, exponent);
        Ok(Quantity { nanos: if negative { -magnitude } else { magnitude }, format })
    }
}

/// Returns power of two, power of ten and format of a suffix.
fn suffix_of(suffix: &str) -> Result<(i128, i32, Format), QuantityError> {
    if let Some((_, bits)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((1 << bits, 0, Format::Binary));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((1, *exponent, Format::Decimal));
    }
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
    let exponent: i32 = digits.parse().map_err(|_| QuantityError)?;
    Ok((1, exponent.clamp(-1000, 1000), Format::Exponent))
}

/// Computes `whole.fraction * multiplier * 10^exponent` in billionths, rounded up and limited to the maximum.
fn scaled(whole: &str, fraction: &str, multiplier: i128, exponent: i32) -> i128 {
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // value = digits * 10^power * multiplier, in billionths
    let power = exponent + 9 - i32::try_from(fraction.len()).unwrap_or(i32::MAX / 2);
    let length = i32::try_from(digits.len()).unwrap_or(i32::MAX / 2);
    if length.saturating_add(power) > 30 {
        return MAX;
    }
    if length.saturating_add(power) < -20 {
        return 1; // not zero, finer than a billionth: rounded up
    }
    // Cut insignificant digits, so that the rest fits.
    let keep = digits.len().min(28);
    let cut = i32::try_from(digits.len() - keep).unwrap_or(0);
    let dropped = digits[keep..].bytes().any(|b| b != b'0');
    let value: i128 = digits[..keep].parse().unwrap_or(MAX);
    let power = power + cut;
    let ten = |n: i32| 10i128.checked_pow(n.unsigned_abs());
    let Some(product) = value.checked_mul(multiplier) else {
        // Too large for exact arithmetic: divide first.
        let shrunk = if power < 0 { value / ten(power).unwrap_or(i128::MAX) } else { value };
        return shrunk.saturating_mul(multiplier).min(MAX);
    };
    let result = if power >= 0 {
        ten(power).and_then(|t| product.checked_mul(t)).unwrap_or(MAX)
    } else {
        let divisor = ten(power).unwrap_or(i128::MAX);
        product / divisor + i128::from(product % divisor != 0 || dropped)
    };
    result.min(MAX)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let (sign, magnitude) = if self.nanos < 0 { ("-", -self.nanos) } else { ("", self.nanos) };
        if self.format == Format::Binary && magnitude % NANO == 0 && magnitude / NANO >= 1024 {
            let units = magnitude / NANO;
            let (name, bits) = BINARY
                .iter()
                .rev()
                .find(|(_, bits)| units % (1i128 << bits) == 0)
                .copied()
                .unwrap_or(("", 0));
            return write!(f, "{sign}{}{name}", units >> bits);
        }
        // The largest power of a thousand that divides it.
        let mut value = magnitude;
        let mut exponent = -9;
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        if self.format == Format::Exponent && exponent != 0 {
            return write!(f, "{sign}{value}e{exponent}");
        }
        let name = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(name, _)| name);
        write!(f, "{sign}{value}{name}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos).clamp(-MAX, MAX), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        Quantity { nanos: self.nanos.saturating_sub(other.nanos).clamp(-MAX, MAX), format: self.format }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        for (input, want) in [
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("2e3", "2e3"),
            ("2000", "2k"),
            ("0.5Ki", "512"),
            ("-1.50", "-1500m"),
            ("0", "0"),
            ("1E", "1E"),
            ("12e6", "12e6"),
            ("1e-3", "1e-3"),
            ("0.0000000001", "1n"),
            ("1.0000000000000000000000000000000000001", "1000000001n"),
        ] {
            assert_eq!(input.parse::<Quantity>().unwrap().to_string(), want, "{input}");
        }
    }

    #[test]
    fn malformed() {
        for input in ["", "abc", "1.2.3", "1Kii", "e3", "1e", "--1", "1 Gi", ".", "1ei"] {
            assert!(input.parse::<Quantity>().is_err(), "{input}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+]?[0-9.]{0,60}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,12}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn canonical_form_keeps_the_value(nanos in -1_000_000_000_000_000_000i128..1_000_000_000_000_000_000) {
            for format in [Format::Binary, Format::Decimal, Format::Exponent] {
                let q = Quantity { nanos, format };
                prop_assert_eq!(q.to_string().parse::<Quantity>().unwrap(), q);
            }
        }

        #[test]
        fn addition_undoes_subtraction(a in any::<i32>(), b in any::<i32>()) {
            let (a, b) = (Quantity::from_milli(a.into()), Quantity::from_milli(b.into()));
            prop_assert_eq!(a - b + b, a);
        }
    }
}
