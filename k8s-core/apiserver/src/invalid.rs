//! Validation errors: all errors of an object, returned as one 422.

use std::{collections::HashSet, fmt::Display};

use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::StatusCause,
    status::{ApiStatus, Reason},
};
use serde_json::Value;

/// A validation error of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    reason: &'static str,
    field: String,
    message: String,
}

/// Maximum number of errors per object.
const MOST: usize = 500;
/// Maximum size of an error message in bytes: messages quote values.
const LONGEST: usize = 16 << 10;

/// Maximum size of a field's path in bytes: keys are users'.
const LONGEST_FIELD: usize = 2 << 10;

fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push_str("...");
    }
    text
}

/// All validation errors of an object, in order of detection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(Vec<FieldError>);

fn with_detail(head: String, detail: &str) -> String {
    if detail.is_empty() { head } else { format!("{head}: {detail}") }
}

impl FieldErrors {
    fn push(&mut self, reason: &'static str, field: impl Display, message: String) {
        if self.0.len() >= MOST {
            return;
        }
        let field = shortened(field.to_string(), LONGEST_FIELD);
        self.0.push(FieldError { reason, field, message: shortened(message, LONGEST) });
    }

    /// Adds "Required value": the field is missing.
    pub fn required(&mut self, field: impl Display, detail: &str) {
        self.push("FieldValueRequired", field, with_detail("Required value".into(), detail));
    }

    /// Adds a `FieldValueInvalid` error: "Invalid value", the value, and the detail.
    pub fn invalid(&mut self, field: impl Display, value: impl Into<Value>, detail: impl Display) {
        let message = with_detail(format!("Invalid value: {}", value.into()), &detail.to_string());
        self.push("FieldValueInvalid", field, message);
    }

    /// Adds a `FieldValueInvalid` error that does not show the value, as of large or secret ones.
    pub fn invalid_unshown(&mut self, field: impl Display, detail: impl Display) {
        let message = with_detail("Invalid value".into(), &detail.to_string());
        self.push("FieldValueInvalid", field, message);
    }

    /// Adds "Unsupported value": not one of the allowed values.
    pub fn not_supported<S: AsRef<str>>(
        &mut self,
        field: impl Display,
        value: impl Into<Value>,
        supported: &[S],
    ) {
        let supported: Vec<String> = supported.iter().map(|s| format!("{:?}", s.as_ref())).collect();
        let message =
            format!("Unsupported value: {}: supported values: {}", value.into(), supported.join(", "));
        self.push("FieldValueNotSupported", field, message);
    }

    /// Adds "Forbidden": the field must be absent, or must not change.
    pub fn forbidden(&mut self, field: impl Display, detail: &str) {
        self.push("FieldValueForbidden", field, with_detail("Forbidden".into(), detail));
    }

    /// Adds "Duplicate value": another element has the value.
    pub fn duplicate(&mut self, field: impl Display, value: impl Into<Value>) {
        self.push("FieldValueDuplicate", field, format!("Duplicate value: {}", value.into()));
    }

    /// Adds "Not found": the value refers to something that does not exist.
    pub fn not_found(&mut self, field: impl Display, value: impl Into<Value>) {
        self.push("FieldValueNotFound", field, format!("Not found: {}", value.into()));
    }

    /// Adds a `FieldValueTooLong` error: "may not be more than `limit` bytes".
    pub fn too_long(&mut self, field: impl Display, limit: usize) {
        self.push("FieldValueTooLong", field, format!("Too long: may not be more than {limit} bytes"));
    }

    /// Adds "Too many" elements.
    pub fn too_many(&mut self, field: impl Display, have: u64, most: u64) {
        let items = if most == 1 { "item" } else { "items" };
        self.push("FieldValueTooMany", field, format!("Too many: {have}: must have at most {most} {items}"));
    }

    /// Appends all errors of `others`.
    pub fn append(&mut self, mut others: FieldErrors) {
        self.0.append(&mut others.0);
    }

    /// Keeps errors of the fields that `keep` accepts.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|error| keep(&error.field));
    }

    /// Formats each error as `field: message`.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    /// Returns the number of errors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no errors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the 422 status of an object; `kind` may be followed by `.group`.
    #[must_use]
    pub fn into_status(self, group: &str, kind: &str, name: &str) -> ApiStatus {
        let mut seen = HashSet::new();
        let mut lines: Vec<String> =
            self.lines().into_iter().filter(|line| seen.insert(line.clone())).collect();
        let what = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let problems = if lines.len() == 1 { lines.remove(0) } else { format!("[{}]", lines.join(", ")) };
        let causes = self
            .0
            .into_iter()
            .map(|e| StatusCause {
                reason: Some(e.reason.into()),
                message: Some(e.message),
                field: Some(e.field),
            })
            .collect();
        ApiStatus::of(Reason::Invalid, format!("{what} \"{name}\" is invalid: {problems}"))
            .about(group, kind, name)
            .causes(causes)
    }
}

/// Name validation with upstream's rules and messages.
pub mod names {
    /// Message for an invalid lower-case RFC 1123 label (at most 63 characters).
    pub const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    /// Message for an invalid lower-case RFC 1123 subdomain (at most 253 characters).
    pub const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    /// Message for an invalid RFC 1035 label.
    pub const LABEL_1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    /// Message for an invalid ConfigMap or Secret key.
    pub const KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

    fn alphanumeric(b: u8) -> bool {
        b.is_ascii_lowercase() || b.is_ascii_digit()
    }

    /// Returns true for a lower-case RFC 1123 label.
    #[must_use]
    pub fn is_label(name: &str) -> bool {
        let b = name.as_bytes();
        !b.is_empty()
            && b.len() <= 63
            && b.iter().all(|b| alphanumeric(*b) || *b == b'-')
            && alphanumeric(b[0])
            && alphanumeric(b[b.len() - 1])
    }

    /// Returns true for a lower-case RFC 1123 subdomain.
    #[must_use]
    pub fn is_subdomain(name: &str) -> bool {
        name.len() <= 253
            && name.split('.').all(|part| {
                let b = part.as_bytes();
                !b.is_empty()
                    && b.iter().all(|b| alphanumeric(*b) || *b == b'-')
                    && alphanumeric(b[0])
                    && alphanumeric(b[b.len() - 1])
            })
    }

    /// Returns true for an RFC 1035 label.
    #[must_use]
    pub fn is_label_1035(name: &str) -> bool {
        is_label(name) && name.as_bytes()[0].is_ascii_lowercase()
    }

    /// Returns true for a valid key of a ConfigMap or Secret.
    #[must_use]
    pub fn is_config_key(key: &str) -> bool {
        !key.is_empty()
            && key.len() <= 253
            && key != "."
            && key != ".."
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    }

    /// Returns true for a valid label or annotation key: an optional subdomain and a name.
    #[must_use]
    pub fn is_qualified(key: &str) -> bool {
        let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
        prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
    }

    /// Returns true for a valid label value.
    #[must_use]
    pub fn is_label_value(value: &str) -> bool {
        let b = value.as_bytes();
        b.is_empty()
            || (b.len() <= 63
                && b.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
                && b[0].is_ascii_alphanumeric()
                && b[b.len() - 1].is_ascii_alphanumeric())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_problem_stands_alone_and_several_in_brackets() {
        let mut errors = FieldErrors::default();
        errors.required("spec.containers", "");
        let one = errors.clone().into_status("", "Pod", "p");
        assert_eq!(one.message(), "Pod \"p\" is invalid: spec.containers: Required value");
        errors.not_supported("spec.restartPolicy", "Sometimes", &["Always", "Never"]);
        let two = errors.into_status("apps", "Deployment", "d");
        assert_eq!(
            two.message(),
            "Deployment.apps \"d\" is invalid: [spec.containers: Required value, spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\"]"
        );
        assert_eq!(two.code(), 422);
    }
}
