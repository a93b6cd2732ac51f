//! Static cost estimation: upstream's `checker/cost.go` with `library/cost.go`.
//!
//! If upstream has no size estimate (`string(1)`, the parts of a split string), the actual bound is used
//! here, so that every expression that upstream accepts is accepted.

use super::{
    ast::LoopKind,
    library::{Cost, Function},
    types::Type,
};

/// A range of costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Cost of the cheapest evaluation.
    pub min: u64,
    /// Cost of the most expensive evaluation; `u64::MAX` without a bound.
    pub max: u64,
}

/// A range of sizes.
pub type Size = Estimate;

/// Cost of creating a list.
pub(super) const LIST: u64 = 10;
/// Cost of creating a map.
pub(super) const MAP: u64 = 30;

impl Estimate {
    /// Returns a known value.
    #[must_use]
    pub fn fixed(n: u64) -> Self {
        Estimate { min: n, max: n }
    }

    /// Returns the range from 0 to `max`.
    pub(super) fn up_to(max: u64) -> Self {
        Estimate { min: 0, max }
    }

    /// Adds two ranges; saturates.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Estimate { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    /// Multiplies two ranges; saturates.
    #[must_use]
    pub fn times(self, other: Self) -> Self {
        Estimate { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// Returns the smallest range that contains both.
    pub(super) fn or(self, other: Self) -> Self {
        Estimate { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Divides by `of`, rounding up.
    pub(super) fn part(self, of: u64) -> Self {
        Estimate { min: self.min.div_ceil(of), max: self.max.div_ceil(of) }
    }
}

/// Costs of a loop macro besides its expressions: initialization, per iteration, per accepted element,
/// result.
pub(super) fn of_loop(kind: LoopKind) -> (u64, u64, u64, u64) {
    match kind {
        LoopKind::All => (0, 3, 0, 1),
        LoopKind::Exists => (0, 4, 0, 1),
        LoopKind::ExistsOne => (0, 0, 2, 2),
        LoopKind::Map => (LIST, 1, LIST + 1, 1),
        LoopKind::Filter => (LIST, 1, LIST + 2, 1),
        LoopKind::TransformMap | LoopKind::TransformMapEntry => (MAP, 1, 2, 1),
    }
}

/// Size of an argument and of its elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) size: Size,
    pub(super) element: Size,
}

/// Returns the size of a value of a type without further knowledge.
pub(super) fn of_type(ty: &Type) -> Size {
    match ty {
        Type::String | Type::Bytes | Type::List(_) | Type::Map(_) | Type::Dyn => Size::up_to(u64::MAX),
        Type::Optional(of) => of_type(of),
        _ => Size::fixed(1),
    }
}

/// Returns the cost of a call.
pub(super) fn of_call(function: &Function, args: &[Known], first: Option<&Type>) -> Estimate {
    let size = |i: usize| args.get(i).map_or(Size::fixed(1), |known| known.size);
    let texts = matches!(first, Some(Type::String | Type::Bytes | Type::Dyn));
    match function.cost {
        Cost::Fixed(n) => Estimate::fixed(n),
        Cost::Traverse(times) => size(0).times(Size::fixed(times)).part(10),
        Cost::Second => size(1).part(10),
        Cost::Contains => size(0).part(10).times(size(1).part(10)),
        Cost::Pattern => size(0).plus(Size::fixed(1)).part(10).times(size(1).part(4)),
        Cost::In => size(1),
        Cost::Compare => {
            let max = size(0).max.min(size(1).max);
            Estimate { min: u64::from(max > 0), max: max.div_ceil(10) }
        }
        Cost::Add if texts => size(0).plus(size(1)).part(10),
        Cost::Add => Estimate::fixed(1),
        Cost::Join => result_size(function, args, first).part(10),
        Cost::Walk if matches!(first, Some(Type::String)) => size(0).part(10),
        Cost::Walk => {
            let element = args.first().map_or(Size::fixed(1), |known| known.element);
            size(0).times(Size::fixed(1).plus(element.part(10)))
        }
        Cost::Pairs => size(0).times(size(1)),
    }
}

/// Returns the size of a call's result.
pub(super) fn result_size(function: &Function, args: &[Known], first: Option<&Type>) -> Size {
    let size = |i: usize| args.get(i).map_or(Size::fixed(1), |known| known.size);
    let element = args.first().map_or(Size::fixed(1), |known| known.element);
    match function.name {
        "_+_" if matches!(first, Some(Type::String | Type::Bytes | Type::List(_) | Type::Dyn)) => {
            size(0).plus(size(1))
        }
        "replace" => {
            let (text, from, to) = (size(0), size(1), size(2));
            // An empty pattern matches before and after each character; otherwise the shortest pattern is
            // replaced by the longest text.
            let times = if from.min == 0 { text.max.saturating_add(1) } else { text.max.div_ceil(from.min) };
            let grown = if to.max <= from.min { 0 } else { times.saturating_mul(to.max) };
            Size::up_to(text.max.saturating_add(grown))
        }
        "join" => {
            let by = args.get(1).map_or(Size::default(), |known| known.size);
            Size::up_to(size(0).max.saturating_mul(element.max.saturating_add(by.max)))
        }
        "format" => {
            let list =
                args.get(1).copied().unwrap_or(Known { size: Size::default(), element: Size::default() });
            Size::up_to(size(0).max.saturating_add(list.size.max.saturating_mul(list.element.max.max(32))))
        }
        "string" => match first {
            Some(Type::String | Type::Bytes | Type::Dyn) => size(0),
            Some(Type::Bool) => Size::up_to(5),
            _ => Size::up_to(64),
        },
        "bytes" => Size { min: size(0).min, max: size(0).max.saturating_mul(4) },
        "strings.quote" => Size { min: size(0).min, max: size(0).max.saturating_mul(2).saturating_add(2) },
        "charAt" => Size::up_to(4),
        "_[_]" | "_[?_]" => element,
        "size" | "indexOf" | "lastIndexOf" => Size::fixed(1),
        "validate" => Size::up_to(4),
        "min" | "max" => element,
        "math.least" | "math.greatest" => Size::fixed(1),
        // Not longer than its longest argument.
        _ => Size::up_to(args.iter().map(|known| known.size.max).max().unwrap_or(0)),
    }
}

/// Returns the size of the elements of a call's result.
pub(super) fn result_element(function: &Function, args: &[Known]) -> Size {
    match function.name {
        "split" | "findAll" => Size::up_to(args.first().map_or(0, |known| known.size.max)),
        "validate" => Size::up_to(1024),
        "getQuery" => Size::up_to(u64::MAX),
        _ => Size::up_to(args.iter().map(|known| known.element.max).max().unwrap_or(u64::MAX)),
    }
}
