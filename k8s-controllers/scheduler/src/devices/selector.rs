//! CEL selectors of devices, compiled once, with a budget.

use std::collections::{BTreeMap, HashMap};

use k8s_cel::{Activation, Decl, Env, Meter, ObjectType, Opaque, Program, Type, Value};
use k8s_core::{api::api::resource::v1::DeviceAttribute, meta::Quantity};

use super::pools::Candidate;

/// Cost limit of one evaluation (upstream's `CELSelectorExpressionMaxCost`).
const MOST_COST: u64 = 1_000_000;
/// Cost limit of all evaluations of one decision.
const BUDGET: u64 = 20_000_000;

/// Limit of the trials of devices in all searches of one decision.
const MOST_TRIALS: usize = 1_000_000;

/// Selectors of one decision, with their results, and what the decision may still cost.
///
/// A decision keeps its slices until its end: results are kept by the place of a device in memory.
#[derive(Debug)]
pub(crate) struct Selectors {
    env: Env,
    /// Numbers of the expressions.
    numbers: HashMap<String, usize>,
    programs: Vec<Result<Program, String>>,
    /// By number of the expression, and address of the device.
    results: HashMap<(usize, usize), bool>,
    /// CEL cost.
    left: u64,
    /// Trials of devices.
    pub(super) trials: usize,
}

impl Default for Selectors {
    fn default() -> Self {
        let fields = [
            ("driver", Type::String),
            ("allowMultipleAllocations", Type::Bool),
            ("attributes", Type::map(Type::map(Type::Dyn))),
            ("capacity", Type::map(Type::map(Type::Opaque(Opaque::Quantity)))),
        ];
        let fields = fields.map(|(name, ty)| (name.to_owned(), Decl::new(ty).into()));
        let device = Decl::object(ObjectType::plain("kubernetes.DRADevice", fields));
        Selectors {
            env: Env::new().variable("device", device),
            numbers: HashMap::new(),
            programs: Vec::new(),
            results: HashMap::new(),
            left: BUDGET,
            trials: MOST_TRIALS,
        }
    }
}

impl Selectors {
    /// Returns the number of an expression, which is compiled once.
    pub(super) fn number(&mut self, expression: &str) -> usize {
        if let Some(number) = self.numbers.get(expression) {
            return *number;
        }
        let program = self.env.compile(expression).map_err(|e| format!("CEL compile error: {e}"));
        self.programs.push(program.and_then(|program| match program.result_type() {
            Type::Bool | Type::Dyn => Ok(program),
            other => Err(format!("CEL compile error: must evaluate to bool, not {other}")),
        }));
        let number = self.programs.len() - 1;
        self.numbers.insert(expression.to_owned(), number);
        number
    }

    /// Returns true if all expressions, given by their numbers, are true for the device.
    ///
    /// # Errors
    /// An expression is malformed, fails for this device, or costs too much.
    pub(super) fn accept(&mut self, expressions: &[usize], device: &Candidate<'_>) -> Result<bool, String> {
        let place = std::ptr::from_ref(device.device).addr();
        for (at, number) in expressions.iter().enumerate() {
            let known = match self.results.get(&(*number, place)) {
                Some(known) => *known,
                None => {
                    let result = self.evaluate(*number, device);
                    let result = result.map_err(|why| format!("selector #{at}: {why}"))?;
                    self.results.insert((*number, place), result);
                    result
                }
            };
            if !known {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn evaluate(&mut self, number: usize, device: &Candidate<'_>) -> Result<bool, String> {
        let program = self.programs[number].as_ref().map_err(Clone::clone)?;
        let mut meter = Meter::new(MOST_COST.min(self.left));
        let variable = Activation::new().value("device", value(device));
        let result = program.evaluate(&variable, &mut meter);
        // Work that has no cost of CEL, such as building the value, counts as well.
        self.left = self.left.saturating_sub(meter.cost() + 100);
        match result {
            Ok(Value::Bool(answer)) => Ok(answer),
            Ok(other) => Err(format!("CEL runtime error: the result is {}, not bool", other.type_name())),
            Err(why) => Err(format!("CEL runtime error: {why}")),
        }
    }
}

/// Returns the variable `device`. What is malformed is left out: one bad attribute of one device fails only
/// the expressions that read it.
fn value<'a>(candidate: &Candidate<'a>) -> Value<'a> {
    let driver = candidate.slice.spec.driver.as_str();
    let mut attributes = Domains::default();
    for (name, attribute) in candidate.device.attributes.iter().flatten() {
        if let Some(value) = scalar(attribute) {
            attributes.add(name, driver, value);
        }
    }
    let mut capacity = Domains::default();
    for (name, amount) in candidate.device.capacity.iter().flatten() {
        if let Ok(amount) = Quantity::try_from(&amount.value) {
            capacity.add(name, driver, Value::Quantity(amount));
        }
    }
    let shared = candidate.device.allow_multiple_allocations == Some(true);
    let fields = [
        ("driver".to_owned(), Value::from(driver)),
        ("allowMultipleAllocations".to_owned(), Value::Bool(shared)),
        ("attributes".to_owned(), attributes.value()),
        ("capacity".to_owned(), capacity.value()),
    ];
    Value::map(fields, None)
}

fn scalar(attribute: &DeviceAttribute) -> Option<Value<'_>> {
    if let Some(number) = attribute.int {
        return Some(Value::Int(number));
    }
    if let Some(truth) = attribute.bool {
        return Some(Value::Bool(truth));
    }
    if let Some(text) = &attribute.string {
        return Some(Value::from(text.as_str()));
    }
    attribute.version.as_deref().and_then(Value::semver)
}

/// Values by domain and name.
#[derive(Default)]
struct Domains<'a>(BTreeMap<String, BTreeMap<String, Value<'a>>>);

impl<'a> Domains<'a> {
    /// Adds a value. A name without a domain has the driver's.
    fn add(&mut self, name: &str, driver: &str, value: Value<'a>) {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        self.0.entry(domain.to_owned()).or_default().insert(id.to_owned(), value);
    }

    /// Returns a map of maps. An unknown domain is an empty map.
    fn value(self) -> Value<'a> {
        let domains = self.0.into_iter().map(|(domain, values)| (domain, Value::map(values, None)));
        Value::map(domains, Some(Value::map([], None)))
    }
}
