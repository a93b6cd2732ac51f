//! Jobs and CronJobs.

use serde_json::{Value, json};

use super::{BASE, Strategy, not_negative, pod};
use crate::{
    invalid::FieldErrors,
    value::{child, default, default_text, integer, list, text, truth},
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
    if let Some(template) = child(spec, "template") {
        child(template, "metadata");
        if let Some(spec) = child(template, "spec") {
            pod::default_spec(spec);
        }
    }
}

fn check_spec(spec: &Value, at: &str, errors: &mut FieldErrors) {
    for field in
        ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
    {
        if let Some(n) = integer(spec, &format!("/{field}"))
            && n < 0
        {
            errors.invalid(format!("{at}.{field}"), n, "must be greater than or equal to 0");
        }
    }
    let mode = text(spec, "/completionMode");
    if !["NonIndexed", "Indexed"].contains(&mode) {
        errors.not_supported(format!("{at}.completionMode"), mode, &["Indexed", "NonIndexed"]);
    }
    if mode == "Indexed" && spec.get("completions").is_none() {
        errors.required(format!("{at}.completions"), "when completion mode is Indexed");
    }
    let template = spec.get("template").cloned().unwrap_or_default();
    pod::template_errors(&template, &format!("{at}.template"), errors);
    let policy = text(&template, "/spec/restartPolicy");
    if policy == "Always" {
        errors
            .required(format!("{at}.template.spec.restartPolicy"), "valid values: \"OnFailure\", \"Never\"");
    }
}

/// Jobs: selector and labels made from the uid.
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
        for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
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

/// CronJobs.
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
        let mut job = cron.pointer("/spec/jobTemplate/spec").cloned().unwrap_or_default();
        default_spec(&mut job);
        check_spec(&job, "spec.jobTemplate.spec", errors);
        if list(cron, "/metadata/name").is_empty() && text(cron, "/metadata/name").len() > 52 {
            errors.invalid(
                "metadata.name",
                text(cron, "/metadata/name"),
                "must be no more than 52 characters",
            );
        }
    },
    ..BASE
};

/// Whether a schedule has the five fields of cron (or is a macro such as `@daily`).
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
    fn schedules() {
        for good in ["* * * * *", "*/5 0 1,15 * 1-5", "@daily", "0 0 * JAN MON"] {
            assert_eq!(check_schedule(good), Ok(()), "{good}");
        }
        for bad in ["* * *", "60 * * * *", "*/0 * * * *", "x * * * *", "@never"] {
            assert!(check_schedule(bad).is_err(), "{bad}");
        }
    }
}
