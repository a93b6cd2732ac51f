//! What an expression costs, before its values are known: upstream's `checker/cost.go` with `library/cost.go`.
//!
//! Where upstream knows nothing of a size (`string(1)`, the pieces of a split text), the bound here is the one that there is: an expression that
//! upstream accepts is accepted.

use super::{
    ast::LoopKind,
    library::{Cost, Function},
    types::Type,
};

/// A least and a most cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// It cannot cost less.
    pub min: u64,
    /// It cannot cost more.
    pub max: u64,
}

/// A least and a most size.
pub type Size = Estimate;

/// Making a list.
pub(super) const LIST: u64 = 10;
/// Making a map.
pub(super) const MAP: u64 = 30;

impl Estimate {
    /// One that is known.
    #[must_use]
    pub fn fixed(n: u64) -> Self {
        Estimate { min: n, max: n }
    }

    /// From nothing up to a most.
    pub(super) fn up_to(max: u64) -> Self {
        Estimate { min: 0, max }
    }

    /// A sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Estimate { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    /// A product.
    #[must_use]
    pub fn times(self, other: Self) -> Self {
        Estimate { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// Either of two.
    pub(super) fn or(self, other: Self) -> Self {
        Estimate { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// A part, rounded up.
    pub(super) fn part(self, of: u64) -> Self {
        Estimate { min: self.min.div_ceil(of), max: self.max.div_ceil(of) }
    }
}

/// What a loop costs beside what is in it: to begin, for each element, for an element that is taken, and for its result.
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

/// What is known of the size of an argument, and of its elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) size: Size,
    pub(super) element: Size,
}

/// The size of a value of a type, if nothing else is known.
pub(super) fn of_type(ty: &Type) -> Size {
    match ty {
        Type::String | Type::Bytes | Type::List(_) | Type::Map(_) | Type::Dyn => Size::up_to(u64::MAX),
        Type::Optional(of) => of_type(of),
        _ => Size::fixed(1),
    }
}

/// What a call costs.
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

/// The size of what a call returns.
pub(super) fn result_size(function: &Function, args: &[Known], first: Option<&Type>) -> Size {
    let size = |i: usize| args.get(i).map_or(Size::fixed(1), |known| known.size);
    let element = args.first().map_or(Size::fixed(1), |known| known.element);
    match function.name {
        "_+_" if matches!(first, Some(Type::String | Type::Bytes | Type::List(_) | Type::Dyn)) => {
            size(0).plus(size(1))
        }
        "replace" => {
            let (text, from, to) = (size(0), size(1), size(2));
            // Nothing stands before and behind each character; else the shortest text is replaced by the longest.
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
        // No longer than the longest of what it is made of.
        _ => Size::up_to(args.iter().map(|known| known.size.max).max().unwrap_or(0)),
    }
}

/// The size of the elements of what a call returns.
pub(super) fn result_element(function: &Function, args: &[Known]) -> Size {
    match function.name {
        "split" | "findAll" => Size::up_to(args.first().map_or(0, |known| known.size.max)),
        "validate" => Size::up_to(1024),
        "getQuery" => Size::up_to(u64::MAX),
        _ => Size::up_to(args.iter().map(|known| known.element.max).max().unwrap_or(u64::MAX)),
    }
}
