//! Stages: which objects one applies to, when, and what it does to them.
//!
//! Guarantee: a Stage is read whole or refused; the message names the field.

use std::{collections::BTreeMap, time::Duration};

use k8s_core::api::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{query::Query, template::Template};
use crate::duration;

/// Kinds whose objects Stages can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Pod,
}

/// A Stage that was read.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    requirements: Vec<Requirement>,
    weight: u64,
    weight_from: Option<Query>,
    duration: From,
    jitter: From,
    /// The next Stage is looked for even if this one has changed nothing.
    pub(crate) immediate: bool,
    pub(crate) steps: Vec<Step>,
}

/// A time that is fixed, or that the object says.
#[derive(Clone, Debug, Default)]
struct From {
    millis: Option<u64>,
    from: Option<Query>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: Query,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A step of a Stage.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Event { warning: bool, reason: String, message: String },
    Finalizers { add: Vec<String>, remove: Vec<String>, empty: bool },
    Delete,
    Patch { subresource: String, root: String, template: Template, form: Form },
}

/// Type of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Merge,
    Strategic,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSpec {
    resource_ref: RawRef,
    selector: Option<RawSelector>,
    #[serde(default)]
    weight: u64,
    weight_from: Option<RawFrom>,
    delay: Option<RawDelay>,
    next: Option<RawNext>,
    #[serde(default)]
    immediate_next_stage: Option<bool>,
    #[serde(default)]
    steps: Vec<RawStep>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRef {
    #[serde(default)]
    api_group: String,
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RawSelector {
    match_labels: BTreeMap<String, String>,
    match_annotations: BTreeMap<String, String>,
    match_expressions: Vec<RawExpression>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpression {
    jq: Option<RawJq>,
    key: Option<String>,
    operator: Option<Operator>,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJq {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFrom {
    jq: Option<RawExpressionJq>,
    expression_from: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpressionJq {
    expression: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RawDelay {
    duration_milliseconds: Option<u64>,
    duration_from: Option<RawFrom>,
    jitter_duration_milliseconds: Option<u64>,
    jitter_duration_from: Option<RawFrom>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RawNext {
    event: Option<RawEvent>,
    finalizers: Option<RawFinalizers>,
    delete: bool,
    patches: Vec<RawPatch>,
    status_template: String,
    status_subresource: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawStep {
    event: Option<RawEvent>,
    finalizers: Option<RawFinalizers>,
    delete: bool,
    patch: Option<RawPatch>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawEvent {
    r#type: String,
    reason: String,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawFinalizers {
    add: Vec<RawFinalizer>,
    remove: Vec<RawFinalizer>,
    empty: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFinalizer {
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPatch {
    subresource: String,
    root: String,
    template: String,
    r#type: Option<String>,
}

impl Stage {
    /// Reads the object of a Stage.
    ///
    /// # Errors
    /// The field that is not supported or not valid, and why.
    pub(crate) fn read(name: &str, spec: &Value) -> Result<Self, String> {
        let raw: RawSpec = serde_json::from_value(spec.clone()).map_err(|e| format!("spec: {e}"))?;
        let kind = match (raw.resource_ref.api_group.as_str(), raw.resource_ref.kind.as_str()) {
            ("" | "v1", "Pod") => Kind::Pod,
            ("" | "v1", "Node") => Kind::Node,
            (group, kind) => {
                return Err(format!(
                    "spec.resourceRef: {group} {kind} is not supported; v1 Pod and v1 Node are"
                ));
            }
        };
        let selector =
            raw.selector.ok_or("spec.selector: it is required; a Stage without it selects nothing")?;
        let delay = raw.delay.unwrap_or_default();
        Ok(Stage {
            name: name.to_owned(),
            kind,
            labels: selector.match_labels,
            annotations: selector.match_annotations,
            requirements: requirements(selector.match_expressions)?,
            weight: raw.weight,
            weight_from: from("spec.weightFrom", raw.weight_from)?,
            duration: From {
                millis: delay.duration_milliseconds,
                from: from("spec.delay.durationFrom", delay.duration_from)?,
            },
            jitter: From {
                millis: delay.jitter_duration_milliseconds,
                from: from("spec.delay.jitterDurationFrom", delay.jitter_duration_from)?,
            },
            immediate: raw.immediate_next_stage.unwrap_or(false),
            steps: steps(raw.next.unwrap_or_default(), raw.steps)?,
        })
    }

    /// Returns true if the Stage applies to an object now.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let has = |wanted: &BTreeMap<String, String>, place: &str| {
            wanted.iter().all(|(key, value)| object["metadata"][place][key].as_str() == Some(value))
        };
        has(&self.labels, "labels")
            && has(&self.annotations, "annotations")
            && self.requirements.iter().all(|requirement| requirement.holds(object))
    }

    fn weight(&self, object: &Value) -> u64 {
        let said = self.weight_from.as_ref().and_then(|query| query.values(object).into_iter().next());
        let said = said.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
        said.unwrap_or(self.weight)
    }

    /// Returns the time until the Stage is applied. `draw` returns a number below its argument.
    pub(crate) fn delay(&self, object: &Value, now: Timestamp, draw: impl FnOnce(u64) -> u64) -> Duration {
        let least = self.duration.of(object, now).unwrap_or_default();
        let Some(most) = self.jitter.of(object, now) else { return least };
        if most <= least {
            return most;
        }
        let spread = u64::try_from((most - least).as_millis()).unwrap_or(u64::MAX);
        if spread == 0 { least } else { least.saturating_add(Duration::from_millis(draw(spread))) }
    }
}

impl From {
    fn of(&self, object: &Value, now: Timestamp) -> Option<Duration> {
        let said = self.from.as_ref().and_then(|query| query.values(object).into_iter().next());
        let said = said.as_deref().and_then(Value::as_str).and_then(|text| match text.parse::<Timestamp>() {
            Ok(at) => Some(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
            Err(_) => duration::parse(text).ok(),
        });
        said.or(self.millis.map(Duration::from_millis))
    }
}

impl Requirement {
    fn holds(&self, object: &Value) -> bool {
        let found = self.key.values(object);
        let has = || {
            found.iter().any(|value| match &**value {
                Value::String(text) => self.values.contains(text),
                Value::Bool(_) | Value::Number(_) => self.values.contains(&value.to_string()),
                Value::Null | Value::Array(_) | Value::Object(_) => false,
            })
        };
        match self.operator {
            Operator::In => has(),
            Operator::NotIn => !has(),
            Operator::Exists => !found.is_empty(),
            Operator::DoesNotExist => found.is_empty(),
        }
    }
}

/// Returns the Stage to apply to an object: one that matches, by chance in proportion to the weights. Without
/// any weight all are alike; with some, those without are left out. `draw` returns a number below its
/// argument.
pub(crate) fn pick<'a, S: AsRef<Stage>>(
    stages: &'a [S],
    object: &Value,
    draw: impl FnOnce(u64) -> u64,
) -> Option<&'a S> {
    let found: Vec<(&S, u64)> = stages
        .iter()
        .filter(|stage| stage.as_ref().matches(object))
        .map(|stage| (stage, stage.as_ref().weight(object)))
        .collect();
    let total = found.iter().fold(0_u64, |sum, (_, weight)| sum.saturating_add(*weight));
    match found.as_slice() {
        [] => None,
        [(stage, _)] => Some(stage),
        all if total == 0 => {
            let at = draw(u64::try_from(all.len()).unwrap_or(u64::MAX));
            all.get(usize::try_from(at).unwrap_or(0)).map(|(stage, _)| *stage)
        }
        all => {
            let mut left = draw(total);
            let chosen = all.iter().find(|(_, weight)| {
                let chosen = left < *weight;
                left = left.saturating_sub(*weight);
                chosen
            });
            chosen.map(|(stage, _)| *stage)
        }
    }
}

fn requirements(raw: Vec<RawExpression>) -> Result<Vec<Requirement>, String> {
    let read = |(n, raw): (usize, RawExpression)| {
        let place = format!("spec.selector.matchExpressions[{n}]");
        let (key, operator, values) = match (raw.jq, raw.key, raw.operator) {
            (Some(jq), None, None) => (jq.key, jq.operator, jq.values),
            (None, Some(key), Some(operator)) => (key, operator, raw.values),
            _ => return Err(format!("{place}: it needs either jq, or key and operator")),
        };
        let wants_values = matches!(operator, Operator::In | Operator::NotIn);
        if wants_values == values.is_empty() {
            let needs = if wants_values { "needs" } else { "has no" };
            return Err(format!("{place}.values: {operator:?} {needs} values"));
        }
        Ok(Requirement {
            key: Query::parse(&key).map_err(|e| format!("{place}.key: {e}"))?,
            operator,
            values,
        })
    };
    raw.into_iter().enumerate().map(read).collect()
}

fn from(place: &str, raw: Option<RawFrom>) -> Result<Option<Query>, String> {
    let Some(raw) = raw else { return Ok(None) };
    let text = match (raw.jq, raw.expression_from) {
        (Some(jq), None) => jq.expression,
        (None, Some(text)) => text,
        _ => return Err(format!("{place}: it needs either jq or expressionFrom")),
    };
    Query::parse(&text).map(Some).map_err(|e| format!("{place}: {e}"))
}

fn steps(next: RawNext, steps: Vec<RawStep>) -> Result<Vec<Step>, String> {
    let mut all = Vec::new();
    let place = "spec.next";
    all.extend(event(place, next.event)?);
    all.extend(next.finalizers.map(finalizers));
    if next.delete {
        all.push(Step::Delete);
    }
    if next.status_subresource.is_some_and(|name| name != "status") {
        return Err("spec.next.statusSubresource: pods and nodes have \"status\" only".into());
    }
    if !next.status_template.trim().is_empty() {
        let template = template("spec.next.statusTemplate", &next.status_template)?;
        let (subresource, root) = ("status".to_owned(), "status".to_owned());
        all.push(Step::Patch { subresource, root, template, form: Form::Strategic });
    }
    for (n, raw) in next.patches.into_iter().enumerate() {
        all.push(patch(&format!("{place}.patches[{n}]"), raw)?);
    }
    for (n, step) in steps.into_iter().enumerate() {
        let place = format!("spec.steps[{n}]");
        all.extend(event(&place, step.event)?);
        all.extend(step.finalizers.map(finalizers));
        if step.delete {
            all.push(Step::Delete);
        }
        if let Some(raw) = step.patch {
            all.push(patch(&format!("{place}.patch"), raw)?);
        }
    }
    Ok(all)
}

fn template(place: &str, text: &str) -> Result<Template, String> {
    Template::parse(text).map_err(|e| format!("{place}: {e}"))
}

fn event(place: &str, raw: Option<RawEvent>) -> Result<Option<Step>, String> {
    let Some(raw) = raw else { return Ok(None) };
    let warning = match raw.r#type.as_str() {
        "Warning" => true,
        "Normal" | "" => false,
        other => return Err(format!("{place}.event.type: {other:?} is neither Normal nor Warning")),
    };
    Ok(Some(Step::Event { warning, reason: raw.reason, message: raw.message }))
}

fn finalizers(raw: RawFinalizers) -> Step {
    let names = |all: Vec<RawFinalizer>| all.into_iter().map(|item| item.value).collect();
    Step::Finalizers { add: names(raw.add), remove: names(raw.remove), empty: raw.empty }
}

fn patch(place: &str, raw: RawPatch) -> Result<Step, String> {
    let form = match raw.r#type.as_deref() {
        None | Some("" | "strategic") => Form::Strategic,
        Some("merge") => Form::Merge,
        Some("json") => Form::Json,
        Some(other) => return Err(format!("{place}.type: {other:?} is not json, merge or strategic")),
    };
    if !matches!(raw.subresource.as_str(), "" | "status") {
        return Err(format!("{place}.subresource: {:?} is not supported; status is", raw.subresource));
    }
    let template = template(&format!("{place}.template"), &raw.template)?;
    Ok(Step::Patch { subresource: raw.subresource, root: raw.root, template, form })
}

/// Returns a JSON patch that changes the finalizers of an object; `None`: they are as wanted.
pub(crate) fn finalizers_patch(
    object: &Value,
    add: &[String],
    remove: &[String],
    empty: bool,
) -> Option<Value> {
    let there = object["metadata"]["finalizers"].as_array();
    let there: Vec<&str> = there.into_iter().flatten().filter_map(Value::as_str).collect();
    let kept = there.iter().copied().filter(|name| !empty && !remove.iter().any(|gone| gone == name));
    let mut wanted: Vec<&str> = kept.collect();
    for name in add {
        if !wanted.contains(&name.as_str()) {
            wanted.push(name);
        }
    }
    let version = &object["metadata"]["resourceVersion"];
    let test = json!({"op": "test", "path": "/metadata/resourceVersion", "value": version});
    (wanted != there).then(|| {
        let change = match wanted.is_empty() {
            true => json!({"op": "remove", "path": "/metadata/finalizers"}),
            false => json!({"op": "add", "path": "/metadata/finalizers", "value": wanted}),
        };
        json!([test, change])
    })
}

impl AsRef<Stage> for Stage {
    fn as_ref(&self) -> &Stage {
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stage(spec: Value) -> Result<Stage, String> {
        let mut whole = json!({"resourceRef": {"apiGroup": "v1", "kind": "Pod"}, "selector": {}});
        let fields = spec.as_object().expect("an object").clone();
        whole.as_object_mut().expect("an object").extend(fields);
        Stage::read("s", &whole)
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    #[test]
    fn selectors() {
        let pod = json!({
            "metadata": {"labels": {"a": "1"}, "annotations": {"b": "2"}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let matches = |selector: Value| stage(json!({"selector": selector})).expect("a stage").matches(&pod);
        assert!(matches(json!({})) && matches(json!({"matchLabels": {"a": "1"}})));
        assert!(
            !matches(json!({"matchLabels": {"a": "2"}})) && !matches(json!({"matchAnnotations": {"c": "2"}}))
        );
        let expression = |key: &str, operator: &str, values: &[&str]| {
            let raw = json!({"key": key, "operator": operator, "values": values});
            let jq = json!({"jq": raw});
            let said = matches(json!({"matchExpressions": [raw]}));
            assert_eq!(said, matches(json!({"matchExpressions": [jq]})));
            said
        };
        assert!(expression(".status.phase", "In", &["Pending", "Running"]));
        assert!(expression(".metadata.deletionTimestamp", "DoesNotExist", &[]));
        let ready = ".status.conditions.[] | select(.type == \"Ready\") | .status";
        assert!(!expression(ready, "NotIn", &["True"]));
        // Iteration of null: no value.
        assert!(expression(".status.containerStatuses.[].name", "NotIn", &["c"]));
        assert!(!expression(".status.containerStatuses.[].name", "Exists", &[]));
    }

    #[test]
    fn delays() {
        let pod = json!({"metadata": {"annotations": {"d": "3s", "at": "2026-01-01T00:00:09Z", "bad": "x"}}});
        let delay = |spec: Value| {
            let stage = stage(json!({"delay": spec})).expect("a stage");
            stage.delay(&pod, now(), |below| below - 1).as_millis()
        };
        let from = |key: &str| json!({"expressionFrom": format!(".metadata.annotations[\"{key}\"]")});
        assert_eq!(delay(json!({})), 0);
        assert_eq!(delay(json!({"durationMilliseconds": 1000})), 1000);
        assert_eq!(delay(json!({"durationMilliseconds": 1000, "jitterDurationMilliseconds": 5000})), 4999);
        assert_eq!(delay(json!({"durationMilliseconds": 1000, "jitterDurationMilliseconds": 500})), 500);
        assert_eq!(delay(json!({"durationMilliseconds": 1, "durationFrom": from("d")})), 3000);
        assert_eq!(delay(json!({"durationMilliseconds": 7, "durationFrom": from("bad")})), 7);
        assert_eq!(delay(json!({"jitterDurationFrom": from("at")})), 8999);
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_field() {
        let refused = |spec: Value| stage(spec).unwrap_err();
        for (spec, told) in [
            (json!({"resourceRef": {"kind": "Service"}}), "spec.resourceRef: "),
            (json!({"selector": null}), "spec.selector: it is required"),
            (json!({"other": 1}), "unknown field `other`"),
            (json!({"selector": {"matchExpressions": [{"cel": {}}]}}), "unknown field `cel`"),
            (
                json!({"selector": {"matchExpressions": [{"key": "map(.a)", "operator": "Exists"}]}}),
                "matchExpressions[0].key: jq",
            ),
            (json!({"selector": {"matchExpressions": [{"key": ".a", "operator": "In"}]}}), "In needs values"),
            (
                json!({"next": {"statusTemplate": "{{ Usage }}"}}),
                "spec.next.statusTemplate: line 1: function",
            ),
            (json!({"next": {"statusPatchAs": {}}}), "unknown field `statusPatchAs`"),
            (json!({"next": {"patches": [{"type": "apply"}]}}), "spec.next.patches[0].type"),
            (json!({"steps": [{"apply": {}}]}), "unknown field `apply`"),
            (json!({"steps": [{"event": {"type": "Odd"}}]}), "spec.steps[0].event.type"),
        ] {
            let said = refused(spec);
            assert!(said.contains(told), "{said}");
        }
    }

    #[test]
    fn finalizers_are_changed_once() {
        let pod = json!({"metadata": {"finalizers": ["a", "b"], "resourceVersion": "7"}});
        let of = |add: &[&str], remove: &[&str], empty| {
            let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
            finalizers_patch(&pod, &names(add), &names(remove), empty).map(|patch| patch[1].clone())
        };
        assert_eq!(of(&["a"], &["c"], false), None);
        assert_eq!(of(&[], &[], true), Some(json!({"op": "remove", "path": "/metadata/finalizers"})));
        let added = of(&["c"], &["a"], false).expect("a patch");
        assert_eq!(added["value"], json!(["b", "c"]));
    }

    proptest! {
        #[test]
        fn a_pick_has_a_weight_if_any_has(weights in proptest::collection::vec(0..4_u64, 1..6), seed in any::<u64>()) {
            let stages: Vec<Stage> =
                weights.iter().map(|weight| stage(json!({"weight": weight})).expect("a stage")).collect();
            let picked = pick(&stages, &json!({}), |below| seed % below).expect("all match");
            prop_assert!(picked.weight > 0 || weights.iter().sum::<u64>() == 0);
        }

        #[test]
        fn a_delay_is_within_its_bounds(least in 0..9000_u64, most in 0..9000_u64, seed in any::<u64>()) {
            let delay = json!({"durationMilliseconds": least, "jitterDurationMilliseconds": most});
            let stage = stage(json!({"delay": delay})).expect("a stage");
            let delay = stage.delay(&json!({}), now(), |below| seed % below).as_millis();
            let (least, most) = (u128::from(least.min(most)), u128::from(most));
            prop_assert!((least..=most).contains(&delay));
        }
    }

    #[test]
    fn chance_follows_the_weights() {
        let of = |weight: u64| stage(json!({"weight": weight})).expect("a stage");
        let stages = [of(1), of(0), of(3)];
        let picked: Vec<u64> =
            (0..4).map(|n| pick(&stages, &json!({}), |_| n).expect("all match").weight).collect();
        assert_eq!(picked, [1, 3, 3, 3]);
    }
}
