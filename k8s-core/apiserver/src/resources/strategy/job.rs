//! Jobs and CronJobs.

use serde_json::{Value, json};

use super::{
    BASE, Strategy, not_negative, pod,
    rule::{At, Check, Rule},
};
use crate::{
    invalid::FieldErrors,
    value::{child, default, default_text, list, text, truth},
};

fn default_spec(spec: &mut Value) {
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    default_text(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    let unlimited = spec.get("backoffLimitPerIndex").is_some();
    default(spec, "backoffLimit", if unlimited { i64::from(i32::MAX) } else { 6 });
    let replacement = if spec.get("podFailurePolicy").is_some() { "Failed" } else { "TerminatingOrFailed" };
    default_text(spec, "podReplacementPolicy", replacement);
    default(spec, "manualSelector", false);
    let rules = spec.pointer_mut("/podFailurePolicy/rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let conditions = rule.get_mut("onPodConditions").and_then(Value::as_array_mut);
        conditions.into_iter().flatten().for_each(|condition| default_text(condition, "status", "True"));
    }
    if let Some(template) = child(spec, "template") {
        child(template, "metadata");
        if let Some(spec) = child(template, "spec") {
            pod::default_spec(spec);
        }
    }
}

fn check_spec(spec: &Value, at: &str, errors: &mut FieldErrors) {
    let root = At::root(spec, at);
    root.check(RULES, errors);
    check_indexes(&root, errors);
    let template = spec.get("template").cloned().unwrap_or_default();
    pod::template_errors(&template, &format!("{at}.template"), errors);
    let policy = text(&template, "/spec/restartPolicy");
    if policy == "Always" {
        errors
            .required(format!("{at}.template.spec.restartPolicy"), "valid values: \"OnFailure\", \"Never\"");
    }
}

const RULES: &[Rule] = &[
    Rule("parallelism", &[Check::AtLeast(0)]),
    Rule("completions", &[Check::AtLeast(0)]),
    Rule("activeDeadlineSeconds", &[Check::AtLeast(0)]),
    Rule("backoffLimit", &[Check::AtLeast(0)]),
    Rule("ttlSecondsAfterFinished", &[Check::AtLeast(0)]),
    Rule("backoffLimitPerIndex", &[Check::AtLeast(0)]),
    Rule("maxFailedIndexes", &[Check::AtLeast(0)]),
    Rule("completionMode", &[Check::OneOf(&["Indexed", "NonIndexed"])]),
    Rule("selector", &[Check::Selector]),
    Rule("podReplacementPolicy", &[Check::Required(""), Check::OneOf(&["Failed", "TerminatingOrFailed"])]),
    Rule(
        "managedBy",
        &[Check::Is(|at, errors| {
            let good = at.as_text().split_once('/').is_some_and(|(domain, path)| {
                crate::invalid::names::is_subdomain(domain) && !path.is_empty()
            });
            if !good {
                at.invalid(errors, "must be a domain-prefixed path (such as \"acme.io/foo\")");
            } else if at.as_text().len() > 63 {
                errors.too_long(at, 63);
            }
        })],
    ),
    Rule("podFailurePolicy", &[Check::Has(FAILURE_POLICY)]),
    Rule("", &[Check::Is(check_failure_policy)]),
    Rule("successPolicy", &[Check::Has(SUCCESS_POLICY)]),
];

const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];

const FAILURE_POLICY: &[Rule] = &[
    Rule("rules", &[Check::Most(20)]),
    Rule("rules[*].action", &[Check::Required(""), Check::OneOf(ACTIONS)]),
    Rule(
        "rules[*]",
        &[Check::Is(|rule, errors| {
            match (rule.field("onExitCodes").value.is_null(), rule.field("onPodConditions").is_set()) {
                (false, true) => {
                    rule.invalid(errors, "specifying both OnExitCodes and OnPodConditions is not supported")
                }
                (true, false) => {
                    rule.invalid(errors, "specifying one of OnExitCodes and OnPodConditions is required")
                }
                _ => {}
            }
        })],
    ),
    Rule("rules[*].onExitCodes.operator", &[Check::Required(""), Check::OneOf(&["In", "NotIn"])]),
    Rule("rules[*].onExitCodes.values", &[Check::Is(check_exit_codes)]),
    Rule("rules[*].onPodConditions", &[Check::Most(20)]),
    Rule("rules[*].onPodConditions[*].type", &[Check::Required(""), Check::Qualified]),
    Rule(
        "rules[*].onPodConditions[*].status",
        &[Check::Required(""), Check::OneOf(&["False", "True", "Unknown"])],
    ),
];

fn check_exit_codes(values: &At<'_>, errors: &mut FieldErrors) {
    let codes: Vec<i64> = values.items().filter_map(|v| v.value.as_i64()).collect();
    if codes.is_empty() {
        values.invalid(errors, "at least one value is required");
    } else if codes.len() > 255 {
        errors.too_many(values, codes.len() as u64, 255);
    }
    let mut seen = std::collections::HashSet::new();
    for value in values.items() {
        if !seen.insert(value.value.as_i64()) {
            errors.duplicate(value, value.value.clone());
        }
        if value.value == &json!(0) {
            value.invalid(errors, "must not be 0 for the In operator");
        }
    }
    if !codes.is_sorted() {
        values.invalid(errors, "must be ordered");
    }
}

/// Requires `restartPolicy: Never` for a pod failure policy.
fn check_failure_policy(spec: &At<'_>, errors: &mut FieldErrors) {
    let policy = spec.field("podFailurePolicy");
    if policy.value.is_null() {
        return;
    }
    let restart = text(spec.value, "/template/spec/restartPolicy");
    if restart != "Never" {
        let (template, pod) = (spec.field("template"), "spec");
        let pod = template.field(pod);
        errors.invalid(
            pod.field("restartPolicy"),
            restart,
            "only \"Never\" is supported when podFailurePolicy is specified",
        );
    }
    if spec.text("podReplacementPolicy") == "TerminatingOrFailed" {
        errors.not_supported(spec.field("podReplacementPolicy"), "TerminatingOrFailed", &["Failed"]);
    }
    let containers: Vec<&str> = ["/template/spec/containers", "/template/spec/initContainers"]
        .into_iter()
        .flat_map(|p| list(spec.value, p))
        .map(|c| text(c, "/name"))
        .collect();
    for rule in policy.field("rules").items() {
        let codes = rule.field("onExitCodes");
        let name = codes.field("containerName");
        if name.is_set() && !containers.contains(&name.as_text()) {
            name.invalid(errors, "must be one of the container or initContainer names in the pod template");
        }
        if rule.text("action") == "FailIndex" && spec.field("backoffLimitPerIndex").value.is_null() {
            rule.field("action").invalid(errors, "requires the backoffLimitPerIndex to be set");
        }
    }
}

const SUCCESS_POLICY: &[Rule] = &[
    Rule(
        "rules",
        &[
            Check::Required("at least one rules must be specified when the successPolicy is specified"),
            Check::Most(20),
        ],
    ),
    Rule(
        "rules[*]",
        &[Check::Is(|rule, errors| {
            if rule.field("succeededCount").value.is_null() && rule.field("succeededIndexes").value.is_null()
            {
                errors.required(rule, "at least one of succeededCount or succeededIndexes must be specified");
            }
        })],
    ),
    Rule("rules[*].succeededCount", &[Check::AtLeast(0)]),
];

/// Maximum completions of an Indexed Job.
const MOST_INDEXES: i64 = 100_000;

/// Validates fields that only Indexed Jobs have, and those that they require.
fn check_indexes(spec: &At<'_>, errors: &mut FieldErrors) {
    let completions = spec.field("completions");
    if spec.text("completionMode") != "Indexed" {
        for (field, why) in [
            ("backoffLimitPerIndex", "requires indexed completion mode"),
            ("maxFailedIndexes", "requires indexed completion mode"),
            ("successPolicy", "requires indexed completion mode"),
        ] {
            if !spec.field(field).value.is_null() {
                spec.field(field).invalid(errors, why);
            }
        }
        return;
    }
    let Some(total) = completions.value.as_i64() else {
        return errors.required(completions, "when completion mode is Indexed");
    };
    if total > MOST_INDEXES && spec.integer("parallelism").unwrap_or(0) > MOST_INDEXES {
        spec.field("parallelism").invalid(
            errors,
            format!("must be less than or equal to {MOST_INDEXES} when completion mode is Indexed"),
        );
    }
    let failed = spec.field("maxFailedIndexes");
    if let Some(n) = failed.value.as_i64() {
        if spec.field("backoffLimitPerIndex").value.is_null() {
            errors.required(spec.field("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
        }
        if n > total {
            failed.invalid(errors, "must be less than or equal to completions");
        }
    } else if total > MOST_INDEXES && !spec.field("backoffLimitPerIndex").value.is_null() {
        errors.required(failed, &format!("must be specified when completions is above {MOST_INDEXES}"));
    }
    for rule in spec.field("successPolicy").field("rules").items() {
        let indexes = rule.field("succeededIndexes");
        if indexes.is_set() {
            match count_indexes(indexes.as_text(), total) {
                Err(why) => indexes.invalid(errors, format!("error parsing succeededIndexes: {why}")),
                Ok(count) if rule.integer("succeededCount").is_some_and(|n| n > count) => {
                    rule.field("succeededCount").invalid(errors, format!("must be less than or equal to {count} (the number of indexes in the specified succeededIndexes field)"));
                }
                Ok(_) => {}
            }
        }
    }
}

/// Counts the indexes in a list such as `1,3-5`, which must ascend and be below `total`.
fn count_indexes(text: &str, total: i64) -> Result<i64, String> {
    let (mut count, mut next) = (0, 0);
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |n: &str| {
            n.parse::<i64>().map_err(|_| format!("cannot convert string to integer for index: {n:?}"))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first < next || (last <= first && part.contains('-')) {
            return Err(format!("non-increasing order, previous: {}, current: {first}", next - 1));
        }
        if last >= total {
            return Err(format!("too large index: {last:?}"));
        }
        count += last - first + 1;
        next = last + 1;
    }
    Ok(count)
}

/// Strategy of Jobs: generates selector and labels from the uid.
pub static JOB: Strategy = Strategy {
    generation: true,
    default: |job| {
        if let Some(spec) = child(job, "spec") {
            default_spec(spec);
        }
        let labels = job.pointer("/spec/template/metadata/labels").cloned();
        if let (Some(labels), Some(metadata)) = (labels, child(job, "metadata")) {
            default(metadata, "labels", labels);
        }
    },
    create: |job| {
        job["status"] = json!({});
        let (uid, name) = (text(job, "/metadata/uid").to_owned(), text(job, "/metadata/name").to_owned());
        if truth(job, "/spec/manualSelector") {
            return;
        }
        if let Some(spec) = child(job, "spec") {
            let labels = [
                ("batch.kubernetes.io/controller-uid", &uid),
                ("batch.kubernetes.io/job-name", &name),
                ("controller-uid", &uid),
                ("job-name", &name),
            ];
            if let Some(target) =
                child(spec, "template").and_then(|t| child(t, "metadata")).and_then(|m| child(m, "labels"))
            {
                for (key, value) in labels {
                    target[key] = value.clone().into();
                }
            }
            if spec.get("selector").is_none() {
                spec["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
            }
        }
        let labels = job.pointer("/spec/template/metadata/labels").cloned();
        if let (Some(labels), Some(metadata)) = (labels, child(job, "metadata")) {
            default(metadata, "labels", labels);
        }
    },
    validate: |job, errors| {
        check_spec(job.get("spec").unwrap_or(&Value::Null), "spec", errors);
    },
    validate_update: |new, old, errors| {
        let suspended = truth(old, "/spec/suspend") && old.pointer("/status/startTime").is_none();
        for field in
            ["selector", "completionMode", "podFailurePolicy", "successPolicy", "backoffLimitPerIndex"]
        {
            super::immutable(new, old, &format!("/spec/{field}"), errors);
        }
        if !suspended {
            super::immutable(new, old, "/spec/template", errors);
        }
        if text(new, "/spec/completionMode") != "Indexed" {
            super::immutable(new, old, "/spec/completions", errors);
        }
    },
    ..BASE
};

/// Defaults and validation of CronJobs.
pub static CRON_JOB: Strategy = Strategy {
    generation: true,
    default: |cron| {
        let Some(spec) = child(cron, "spec") else { return };
        default_text(spec, "concurrencyPolicy", "Allow");
        default(spec, "suspend", false);
        default(spec, "successfulJobsHistoryLimit", 3);
        default(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = spec.pointer_mut("/jobTemplate/spec/template") {
            child(template, "metadata");
            if let Some(spec) = child(template, "spec") {
                pod::default_spec(spec);
            }
        }
    },
    create: |cron| cron["status"] = json!({}),
    validate: |cron, errors| {
        let schedule = text(cron, "/spec/schedule");
        if schedule.is_empty() {
            errors.required("spec.schedule", "");
        } else if let Err(why) = check_schedule(schedule) {
            errors.invalid("spec.schedule", schedule, why);
        }
        let policy = text(cron, "/spec/concurrencyPolicy");
        if !["Allow", "Forbid", "Replace"].contains(&policy) {
            errors.not_supported("spec.concurrencyPolicy", policy, &["Allow", "Forbid", "Replace"]);
        }
        for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            not_negative(cron, &format!("/spec/{field}"), errors);
        }
        check_time_zone(cron, errors);
        let mut job = cron.pointer("/spec/jobTemplate/spec").cloned().unwrap_or_default();
        default_spec(&mut job);
        check_spec(&job, "spec.jobTemplate.spec", errors);
        if text(cron, "/metadata/name").len() > 52 {
            errors.invalid(
                "metadata.name",
                text(cron, "/metadata/name"),
                "must be no more than 52 characters",
            );
        }
    },
    ..BASE
};

/// Requires an IANA time zone name, not the machine's local zone.
fn check_time_zone(cron: &Value, errors: &mut FieldErrors) {
    let schedule = text(cron, "/spec/schedule");
    if schedule.contains("TZ") {
        errors.invalid(
            "spec.schedule",
            schedule,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    }
    let Some(zone) = cron.pointer("/spec/timeZone").and_then(Value::as_str) else { return };
    if zone.is_empty() {
        errors.invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        errors.invalid(
            "spec.timeZone",
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    } else if jiff::tz::TimeZone::get(zone).is_err() {
        errors.invalid("spec.timeZone", zone, format!("unknown time zone {zone}"));
    }
}

/// Validates a cron schedule of five fields, or a macro such as `@daily`.
fn check_schedule(schedule: &str) -> Result<(), String> {
    if let Some(name) = schedule.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        return if known.contains(&name) || name.starts_with("every ") {
            Ok(())
        } else {
            Err(format!("unrecognized descriptor: {schedule}"))
        };
    }
    let fields: Vec<&str> = schedule.split_whitespace().filter(|f| !f.starts_with("TZ=")).collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let ranges = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    for (field, (low, high)) in fields.iter().zip(ranges) {
        for part in field.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
            if step.is_some_and(|s| s.parse::<u32>().map_or(true, |n| n == 0)) {
                return Err(format!("step of range should be a positive number: {part}"));
            }
            if range == "*" || range == "?" {
                continue;
            }
            let ends = range.split_once('-').map_or_else(|| vec![range], |(a, b)| vec![a, b]);
            for end in ends {
                let named = end.len() == 3
                    && end.bytes().all(|b| b.is_ascii_alphabetic())
                    && high <= 12
                    && high != 23;
                match end.parse::<u32>() {
                    _ if named => {}
                    Ok(n) if n < low => {
                        return Err(format!("beginning of range ({n}) below minimum ({low}): {part}"));
                    }
                    Ok(n) if n > high => {
                        return Err(format!("end of range ({n}) above maximum ({high}): {part}"));
                    }
                    Ok(_) => {}
                    Err(_) => {
                        return Err(format!(
                            "failed to parse int from {end}: strconv.Atoi: parsing {end:?}: invalid syntax"
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        assert_eq!(count_indexes("0,2-4,9", 10), Ok(5));
        for bad in ["", "a", "1-", "3,2", "2-2", "0-10", "4-3"] {
            assert!(count_indexes(bad, 10).is_err(), "{bad}");
        }
    }

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0 1,15 * 1-5", "@daily", "0 0 * JAN MON"] {
            assert_eq!(check_schedule(good), Ok(()), "{good}");
        }
        for bad in ["* * *", "60 * * * *", "*/0 * * * *", "x * * * *", "@never"] {
            assert!(check_schedule(bad).is_err(), "{bad}");
        }
    }
}
