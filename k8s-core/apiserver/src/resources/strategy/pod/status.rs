//! Rules for writes of a pod's status.

use std::net::IpAddr;

use serde_json::Value;

use super::super::rule::IP;
use crate::{
    invalid::FieldErrors,
    value::{integer, list, text},
};

/// The lists of container statuses.
const STATUSES: [&str; 3] = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];

/// Checks a status write. Addresses that the old status has are kept, valid or not.
pub(super) fn check(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if text(new, "/spec/nodeName") != text(old, "/spec/nodeName") {
        errors.forbidden("spec.nodeName", "may not be changed directly");
    }
    let had: Vec<&str> = addresses(old).map(|(_, ip)| ip).collect();
    for (field, ip) in addresses(new) {
        if !had.contains(&ip) && ip.parse::<IpAddr>().is_err() {
            errors.invalid(field, ip, IP);
        }
    }
    for kind in STATUSES {
        for (i, status) in list(new, &format!("/status/{kind}")).iter().enumerate() {
            if let Some(count) = integer(status, "/restartCount").filter(|count| *count < 0) {
                let field = format!("status.{kind}[{i}].restartCount");
                errors.invalid(field, count, "must be greater than or equal to 0");
            }
        }
    }
}

/// The addresses of a status with their fields. `podIP` and `hostIP` count as the first of their lists.
fn addresses(pod: &Value) -> impl Iterator<Item = (String, &str)> {
    ["podIP", "hostIP"].into_iter().flat_map(move |one| {
        let all = format!("{one}s");
        let first = text(pod, &format!("/status/{one}"));
        let listed: Vec<&str> =
            list(pod, &format!("/status/{all}")).iter().map(|entry| text(entry, "/ip")).collect();
        let single = (!first.is_empty() && listed.first() != Some(&first)).then_some((0, first));
        let all_of_them = single.into_iter().chain(listed.into_iter().enumerate());
        all_of_them.map(move |(i, ip)| (format!("status.{all}[{i}]"), ip)).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_has_canonical_addresses_and_counts_no_restarts_below_zero() {
        let pod = |status: Value| json!({"spec": {"nodeName": "n"}, "status": status});
        let check = |old: Value, new: Value| {
            let mut errors = FieldErrors::default();
            check(&pod(new), &pod(old), &mut errors);
            errors.lines()
        };
        let good = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "hostIP": "192.0.2.1",
            "containerStatuses": [{"name": "c", "restartCount": 0}]});
        assert_eq!(check(json!({}), good), Vec::<String>::new());
        for (bad, field) in [
            (json!({"podIP": "127.1"}), "status.podIPs[0]"),
            (
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "127.1"}]}),
                "status.podIPs[1]",
            ),
            (json!({"hostIP": "node"}), "status.hostIPs[0]"),
            (
                json!({"containerStatuses": [{"name": "c", "restartCount": -1}]}),
                "status.containerStatuses[0].restartCount",
            ),
        ] {
            let errors = check(json!({}), bad.clone());
            assert!(errors.len() == 1 && errors[0].starts_with(field), "{bad}: {errors:?}");
        }
        let old = json!({"podIP": "127.1"});
        assert_eq!(check(old.clone(), old), Vec::<String>::new(), "it was there before");
    }
}
