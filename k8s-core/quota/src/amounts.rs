//! Amounts of resources by name.

use std::{collections::BTreeMap, fmt};

use k8s_quantity::Quantity;
use serde_json::Value;

/// Quantities by the name of their resource, in the order of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<String, Quantity>);

impl Amounts {
    /// Reads the map of a resource list. Absent and other values are empty.
    #[must_use]
    pub fn of(list: Option<&Value>) -> Self {
        let entries = list.and_then(Value::as_object).into_iter().flatten();
        Amounts(entries.map(|(name, amount)| (name.clone(), quantity(amount))).collect())
    }

    /// Returns the JSON of the resource list, with quantities in canonical form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.0.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string()))).collect()
    }

    /// Returns an amount, if there is one of the name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Quantity> {
        self.0.get(name).copied()
    }

    /// Sets an amount.
    pub fn set(&mut self, name: impl Into<String>, amount: Quantity) {
        self.0.insert(name.into(), amount);
    }

    /// Iterates over names and amounts, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Quantity)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Iterates over the names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns true if there are no names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds amounts.
    pub fn add(&mut self, other: &Amounts) {
        self.combine(other, |have, more| have + more);
    }

    /// Subtracts amounts. Nothing falls below 0.
    pub fn subtract(&mut self, other: &Amounts) {
        self.combine(other, |have, less| (have - less).max(Quantity::ZERO));
    }

    /// Raises each amount to at least the other's.
    pub fn raise_to(&mut self, other: &Amounts) {
        self.combine(other, Quantity::max);
    }

    /// Keeps the names that `keep` accepts.
    #[must_use]
    pub fn only(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|name, _| keep(name));
        self
    }

    /// Drops amounts of 0.
    #[must_use]
    pub fn without_zeros(mut self) -> Self {
        self.0.retain(|_, amount| !amount.is_zero());
        self
    }

    fn combine(&mut self, other: &Amounts, with: impl Fn(Quantity, Quantity) -> Quantity) {
        for (name, amount) in &other.0 {
            let have = self.get(name).unwrap_or(Quantity::ZERO);
            self.0.insert(name.clone(), with(have, *amount));
        }
    }
}

/// `a=1,b=2`, as messages about quotas have it.
impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, amount)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{name}={amount}")?;
        }
        Ok(())
    }
}

impl<N: Into<String>> FromIterator<(N, Quantity)> for Amounts {
    fn from_iter<I: IntoIterator<Item = (N, Quantity)>>(all: I) -> Self {
        Amounts(all.into_iter().map(|(name, amount)| (name.into(), amount)).collect())
    }
}

/// Reads a quantity: a string or a number.
fn quantity(amount: &Value) -> Quantity {
    let parsed = match amount {
        Value::String(text) => text.parse(),
        Value::Number(number) => number.to_string().parse(),
        _ => return Quantity::ZERO,
    };
    parsed.unwrap_or(Quantity::ZERO)
}
