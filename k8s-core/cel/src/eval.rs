//! Evaluates a plan.

use std::sync::Arc;

use super::{
    Activation, Binding,
    ast::LoopKind,
    cost::{self, LIST, MAP},
    error::EvalError,
    library::{self, Cx, Function, Patterns},
    meter::Meter,
    plan::{FieldName, LoopOp, Op, OpId, Plan},
    value::{Entries, Map, Text, Value},
};

type Evaluated<'a> = Result<Value<'a>, EvalError>;

/// Bytes that a list element or map entry counts as.
const ELEMENT: u64 = 64;

/// Evaluates a plan with these variables, and charges the meter for each step.
pub(super) fn run<'a>(plan: &'a Plan, activation: &Activation<'a>, meter: &mut Meter) -> Evaluated<'a> {
    let variables = plan.variables.iter().map(|(name, decl)| {
        let found = activation.bindings.iter().find(|(bound, _)| bound == name).map(|(_, binding)| binding);
        match found {
            Some(Binding::Value(value)) => Ok(value.clone()),
            Some(Binding::Failed(error)) => Err(error.clone()),
            Some(Binding::Json(json)) => Value::declared(json, Some(decl)),
            Some(Binding::OptionalJson(Some(json))) => {
                Value::declared(json, decl.element.as_deref()).map(|value| Some(value).into())
            }
            Some(Binding::OptionalJson(None)) => Ok(None.into()),
            None => EvalError::failed(format!("no such attribute(s): {name}")),
        }
    });
    let mut runner = Runner {
        plan,
        variables: variables.collect(),
        locals: Vec::new(),
        patterns: Patterns::default(),
        meter,
    };
    runner.eval(plan.root)
}

struct Runner<'a, 'm> {
    plan: &'a Plan,
    variables: Vec<Evaluated<'a>>,
    /// Values of bound names. An error is raised where the name is used.
    locals: Vec<Evaluated<'a>>,
    patterns: Patterns,
    meter: &'m mut Meter,
}

impl<'a> Runner<'a, '_> {
    fn eval(&mut self, id: OpId) -> Evaluated<'a> {
        self.meter.work(1)?;
        let plan = self.plan;
        let Some(op) = plan.ops.get(id as usize) else { return EvalError::failed("no such operation") };
        match op {
            Op::Const(value) => Ok(constant(value)),
            Op::Variable(index) => self.variable(*index),
            Op::Local(slot) => self.local(*slot),
            Op::Select { operand, field, optional } => self.select(*operand, field, *optional),
            Op::Has { operand, field } => self.has(*operand, field),
            Op::Call { function, args } => self.call(function, args),
            Op::Otherwise { operand, other, flat } => self.otherwise(*operand, *other, *flat),
            Op::And(terms) => self.logic(terms, false),
            Op::Or(terms) => self.logic(terms, true),
            Op::Conditional(test, yes, no) => self.conditional(*test, *yes, *no),
            Op::List(elements) => self.list(elements),
            Op::Map(entries) => self.map(entries),
            Op::Loop(one) => self.loop_(one),
            Op::Bind { slot, value, body } => {
                let value = self.eval(*value);
                self.bind(*slot, value)?;
                self.eval(*body)
            }
            Op::OptMap { operand, slot, body, flat } => self.opt_map(*operand, *slot, *body, *flat),
        }
    }

    fn variable(&mut self, index: usize) -> Evaluated<'a> {
        self.meter.charge(1)?;
        self.variables.get(index).cloned().unwrap_or(Err(EvalError::NoSuchOverload))
    }

    fn local(&mut self, slot: usize) -> Evaluated<'a> {
        self.meter.charge(1)?;
        self.locals.get(slot).cloned().unwrap_or(Err(EvalError::NoSuchOverload))
    }

    fn bind(&mut self, slot: usize, value: Evaluated<'a>) -> Result<(), EvalError> {
        if let Err(EvalError::Cost) = value {
            return Err(EvalError::Cost);
        }
        if self.locals.len() <= slot {
            self.locals.resize(slot + 1, Ok(Value::Null));
        }
        if let Some(place) = self.locals.get_mut(slot) {
            *place = value;
        }
        Ok(())
    }

    fn select(&mut self, operand: OpId, field: &'a FieldName, optional: bool) -> Evaluated<'a> {
        let of = self.eval(operand)?;
        self.meter.charge(1)?;
        let found = |map: &Map<'a>| map.field(&field.name, &field.property);
        match &of {
            Value::Map(map) if optional => found(map).map(Value::from),
            Value::Map(map) => match found(map)? {
                Some(value) => Ok(value),
                None => Err(EvalError::NoSuchKey(field.property.to_string())),
            },
            Value::Optional(None) => Ok(None.into()),
            Value::Optional(Some(inner)) => match &**inner {
                Value::Map(map) => found(map).map(Value::from),
                _ => Err(EvalError::NoSuchOverload),
            },
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn has(&mut self, operand: OpId, field: &'a FieldName) -> Evaluated<'a> {
        let of = self.eval(operand)?;
        let found = |map: &Map<'a>| Ok(Value::Bool(map.field(&field.name, &field.property)?.is_some()));
        match &of {
            Value::Map(map) => found(map),
            Value::Optional(None) => Ok(Value::Bool(false)),
            Value::Optional(Some(inner)) => match &**inner {
                Value::Map(map) => found(map),
                _ => Err(EvalError::NoSuchOverload),
            },
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn call(&mut self, function: &'static Function, args: &'a [OpId]) -> Evaluated<'a> {
        match args {
            [] => self.apply(function, &[]),
            [a] => {
                let args = [self.eval(*a)?];
                self.apply(function, &args)
            }
            [a, b] => {
                let args = [self.eval(*a)?, self.eval(*b)?];
                self.apply(function, &args)
            }
            args => {
                let args = args.iter().map(|arg| self.eval(*arg)).collect::<Result<Vec<_>, _>>()?;
                self.apply(function, &args)
            }
        }
    }

    fn apply(&mut self, function: &'static Function, args: &[Value<'a>]) -> Evaluated<'a> {
        library::charge(function.cost, args, self.meter)?;
        let mut cx = Cx { meter: self.meter, patterns: &mut self.patterns, written: &self.plan.patterns };
        (function.call)(&mut cx, args)
    }

    fn otherwise(&mut self, operand: OpId, other: OpId, flat: bool) -> Evaluated<'a> {
        let of = self.eval(operand)?;
        self.meter.charge(1)?;
        match of {
            Value::Optional(Some(value)) if flat => Ok(Value::Optional(Some(value))),
            Value::Optional(Some(value)) => Ok((*value).clone()),
            Value::Optional(None) => self.eval(other),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    /// `&&` and `||`: one deciding term is enough, even if other terms fail.
    fn logic(&mut self, terms: &'a [OpId], deciding: bool) -> Evaluated<'a> {
        let mut failed = None;
        for term in terms {
            match self.eval(*term) {
                Ok(Value::Bool(b)) if b == deciding => return Ok(Value::Bool(deciding)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(EvalError::NoSuchOverload)),
                Err(EvalError::Cost) => return Err(EvalError::Cost),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Value::Bool(!deciding)), Err)
    }

    fn conditional(&mut self, test: OpId, yes: OpId, no: OpId) -> Evaluated<'a> {
        match self.eval(test)? {
            Value::Bool(true) => self.eval(yes),
            Value::Bool(false) => self.eval(no),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn list(&mut self, elements: &'a [(OpId, bool)]) -> Evaluated<'a> {
        self.meter.work(ELEMENT * elements.len() as u64)?;
        let mut items = Vec::with_capacity(elements.len());
        for (element, optional) in elements {
            match (self.eval(*element)?, optional) {
                (value, false) => items.push(value),
                (Value::Optional(Some(value)), true) => items.push((*value).clone()),
                (Value::Optional(None), true) => {}
                _ => return Err(EvalError::NoSuchOverload),
            }
        }
        self.meter.charge(LIST)?;
        Ok(items.into())
    }

    fn insert(
        &mut self,
        entries: &mut Entries<'a>,
        key: Value<'a>,
        value: Value<'a>,
    ) -> Result<(), EvalError> {
        self.meter.work(ELEMENT * 2 + key.size())?;
        let Some(id) = key.key() else {
            return EvalError::failed(format!("unsupported key type: {}", key.type_name()));
        };
        if entries.0.contains_key(&id) {
            return EvalError::failed("Failed with repeated key");
        }
        entries.0.insert(id, (key, value));
        Ok(())
    }

    fn map(&mut self, all: &'a [(OpId, OpId, bool)]) -> Evaluated<'a> {
        let mut entries = Entries::default();
        for (key, value, optional) in all {
            let (key, value) = (self.eval(*key)?, self.eval(*value)?);
            let value = match (value, optional) {
                (value, false) => value,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                (Value::Optional(None), true) => continue,
                _ => return Err(EvalError::NoSuchOverload),
            };
            self.insert(&mut entries, key, value)?;
        }
        self.meter.charge(MAP)?;
        Ok(Value::Map(Map::Made(Arc::new(entries))))
    }

    fn opt_map(&mut self, operand: OpId, slot: usize, body: OpId, flat: bool) -> Evaluated<'a> {
        let of = self.eval(operand)?;
        self.meter.charge(1)?;
        match of {
            Value::Optional(None) => Ok(None.into()),
            Value::Optional(Some(value)) => {
                self.bind(slot, Ok((*value).clone()))?;
                let value = self.eval(body)?;
                match value {
                    value if !flat => Ok(Some(value).into()),
                    Value::Optional(value) => Ok(Value::Optional(value)),
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn loop_(&mut self, one: &'a LoopOp) -> Evaluated<'a> {
        let range = self.eval(one.range)?;
        let (begin, ..) = cost::of_loop(one.kind);
        self.meter.charge(begin)?;
        let mut made = Made::default();
        match &range {
            Value::List(list) => {
                for i in 0..list.len() {
                    let key = Value::Int(i64::try_from(i).unwrap_or(i64::MAX));
                    let value = list.get(i)?.unwrap_or(Value::Null);
                    if self.step(one, key, value, true, &mut made)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for entry in map.entries() {
                    let (key, value) = entry?;
                    if self.step(one, key, value, false, &mut made)? {
                        break;
                    }
                }
            }
            _ => return Err(EvalError::NoSuchOverload),
        }
        self.finish(one.kind, made)
    }

    /// Evaluates one iteration; returns true if it decides the loop.
    fn step(
        &mut self,
        one: &'a LoopOp,
        key: Value<'a>,
        value: Value<'a>,
        list: bool,
        made: &mut Made<'a>,
    ) -> Result<bool, EvalError> {
        let (_, each, taken, _) = cost::of_loop(one.kind);
        self.meter.charge(each)?;
        let only = if list { &value } else { &key };
        let element = matches!(one.kind, LoopKind::Filter).then(|| only.clone());
        let place = matches!(one.kind, LoopKind::TransformMap).then(|| key.clone());
        match one.second {
            None => self.bind(one.slot, Ok(if list { value } else { key }))?,
            Some(second) => {
                self.bind(one.slot, Ok(key))?;
                self.bind(second, Ok(value))?;
            }
        }
        if let Some(filter) = one.filter {
            match self.eval(filter)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(false),
                _ => return Err(EvalError::NoSuchOverload),
            }
        }
        let result = self.eval(one.body);
        match one.kind {
            LoopKind::All | LoopKind::Exists => {
                let deciding = one.kind == LoopKind::Exists;
                match result {
                    Ok(Value::Bool(b)) if b == deciding => {
                        made.decided = true;
                        return Ok(true);
                    }
                    Ok(Value::Bool(_)) => {}
                    Ok(_) => made.failed = made.failed.take().or(Some(EvalError::NoSuchOverload)),
                    Err(EvalError::Cost) => return Err(EvalError::Cost),
                    Err(error) => made.failed = made.failed.take().or(Some(error)),
                }
                return Ok(false);
            }
            LoopKind::ExistsOne => match result? {
                Value::Bool(true) => made.count += 1,
                Value::Bool(false) => return Ok(false),
                _ => return Err(EvalError::NoSuchOverload),
            },
            LoopKind::Filter => match (result?, element) {
                (Value::Bool(true), Some(element)) => made.items.push(element),
                (Value::Bool(false), _) => return Ok(false),
                _ => return Err(EvalError::NoSuchOverload),
            },
            LoopKind::Map => made.items.push(result?),
            LoopKind::TransformMap => {
                let value = result?;
                self.insert(&mut made.entries, place.unwrap_or(Value::Null), value)?;
            }
            LoopKind::TransformMapEntry => {
                let Value::Map(map) = result? else { return Err(EvalError::NoSuchOverload) };
                for entry in map.entries() {
                    let (key, value) = entry?;
                    self.insert(&mut made.entries, key, value)?;
                }
            }
        }
        self.meter.work(ELEMENT)?;
        self.meter.charge(taken)?;
        Ok(false)
    }

    fn finish(&mut self, kind: LoopKind, made: Made<'a>) -> Evaluated<'a> {
        let (.., end) = cost::of_loop(kind);
        self.meter.charge(end)?;
        match kind {
            LoopKind::All | LoopKind::Exists if made.decided => Ok(Value::Bool(kind == LoopKind::Exists)),
            LoopKind::All | LoopKind::Exists => {
                made.failed.map_or(Ok(Value::Bool(kind == LoopKind::All)), Err)
            }
            LoopKind::ExistsOne => Ok(Value::Bool(made.count == 1)),
            LoopKind::Map | LoopKind::Filter => Ok(made.items.into()),
            LoopKind::TransformMap | LoopKind::TransformMapEntry => {
                Ok(Value::Map(Map::Made(Arc::new(made.entries))))
            }
        }
    }
}

/// Intermediate result of a loop.
#[derive(Default)]
struct Made<'a> {
    decided: bool,
    failed: Option<EvalError>,
    count: u64,
    items: Vec<Value<'a>>,
    entries: Entries<'a>,
}

/// Borrows a literal from its plan.
fn constant<'a>(value: &'a Value<'static>) -> Value<'a> {
    match value {
        Value::String(Text::Shared(text)) => Value::String(Text::Borrowed(text)),
        value => value.clone(),
    }
}
