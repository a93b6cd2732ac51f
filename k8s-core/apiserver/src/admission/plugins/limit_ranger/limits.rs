//! Bounds: `min`, `max` and `maxLimitRequestRatio` of containers, pods and claims, with upstream's messages.

use k8s_core::meta::Quantity;
use k8s_quota::{
    Amounts,
    pod::{of_container, of_pod as of_whole},
};
use serde_json::Value;

use crate::value::{array_at, str_at};

/// Greatest amount that is compared in thousandths.
const MOST_IN_MILLI: i64 = i64::MAX / 1000;

/// An amount and the bounds of its resource.
struct Bound<'a> {
    /// Type of the limit, such as `Container`.
    kind: &'a str,
    resource: &'a str,
    /// The bound.
    enforced: Quantity,
    request: Option<Quantity>,
    limit: Option<Quantity>,
}

/// Returns the problems of a pod with the items of a LimitRange.
pub(super) fn of_pod(limits: &[Value], pod: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(spec) = pod.get("spec") else { return problems };
    for item in limits {
        let mut check = |requests: Amounts, limits: Amounts| {
            for (field, rule) in RULES {
                problems.extend(each(item, field, &requests, &limits).filter_map(|bound| rule(&bound)));
            }
        };
        match str_at(item, "/type") {
            "Container" => {
                for container in array_at(spec, "/containers").iter().chain(array_at(spec, "/initContainers"))
                {
                    check(of_container(container, "requests"), of_container(container, "limits"));
                }
            }
            "Pod" => {
                let may = |name: &str| matches!(name, "cpu" | "memory");
                check(of_whole(spec, "requests", may), of_whole(spec, "limits", may));
            }
            _ => {}
        }
    }
    problems
}

/// Returns the problems of a claim with the items of a LimitRange.
pub(super) fn of_claim(limits: &[Value], claim: &Value) -> Vec<String> {
    let requests = Amounts::of(claim.pointer("/spec/resources/requests"));
    let none = Amounts::default();
    let items = limits.iter().filter(|item| str_at(item, "/type") == "PersistentVolumeClaim");
    items
        .flat_map(|item| {
            let min = each(item, "min", &requests, &none).filter_map(|bound| bound.min());
            let max = each(item, "max", &requests, &none).filter_map(|bound| bound.max_request());
            min.chain(max).collect::<Vec<_>>()
        })
        .collect()
}

/// A check of a bound, which returns the problem.
type Rule = fn(&Bound<'_>) -> Option<String>;

/// The rules of containers and pods, by the field of the bounds.
const RULES: [(&str, Rule); 3] = [
    ("min", |bound| bound.min()),
    ("max", |bound| bound.max()),
    ("maxLimitRequestRatio", |bound| bound.ratio()),
];

/// Returns the bounds in a field of a LimitRange's item.
fn each<'a>(
    item: &'a Value,
    field: &str,
    requests: &Amounts,
    limits: &Amounts,
) -> impl Iterator<Item = Bound<'a>> {
    let kind = str_at(item, "/type");
    let enforced = Amounts::of(item.get(field));
    let names = item.get(field).and_then(Value::as_object).into_iter().flat_map(|map| map.keys());
    let bounds: Vec<Bound<'a>> = names
        .filter_map(|resource| {
            let (request, limit) = (requests.get(resource), limits.get(resource));
            Some(Bound { kind, resource, enforced: enforced.get(resource)?, request, limit })
        })
        .collect();
    bounds.into_iter()
}

impl Bound<'_> {
    fn problem(&self, bound: &str, what: &str) -> String {
        let Bound { kind, resource, enforced, .. } = self;
        format!("{bound} {resource} usage per {kind} is {enforced}{what}")
    }

    fn min(&self) -> Option<String> {
        let Some(request) = self.request else {
            return Some(self.problem("minimum", ".  No request is specified"));
        };
        if request < self.enforced {
            return Some(self.problem("minimum", &format!(", but request is {request}")));
        }
        let limit = self.limit.filter(|limit| *limit < self.enforced)?;
        Some(self.problem("minimum", &format!(", but limit is {limit}")))
    }

    fn max(&self) -> Option<String> {
        let Some(limit) = self.limit else {
            return Some(self.problem("maximum", ".  No limit is specified"));
        };
        if limit > self.enforced {
            return Some(self.problem("maximum", &format!(", but limit is {limit}")));
        }
        let request = self.request.filter(|request| *request > self.enforced)?;
        Some(self.problem("maximum", &format!(", but request is {request}")))
    }

    /// The maximum of claims, which have no limits.
    fn max_request(&self) -> Option<String> {
        let Some(request) = self.request else {
            return Some(self.problem("maximum", ".  No request is specified"));
        };
        (request > self.enforced).then(|| self.problem("maximum", &format!(", but request is {request}")))
    }

    fn ratio(&self) -> Option<String> {
        let Bound { kind, resource, enforced, .. } = self;
        let problem = |what: &str| {
            Some(format!("{resource} max limit to request ratio per {kind} is {enforced}, but {what}"))
        };
        let Some(request) = self.request.filter(|request| !request.is_zero()) else {
            return problem("no request is specified or request is 0");
        };
        let Some(limit) = self.limit.filter(|limit| !limit.is_zero()) else {
            return problem("no limit is specified or limit is 0");
        };
        let is_large = [request, limit, *enforced].iter().any(|amount| amount.units() > MOST_IN_MILLI);
        let number = |amount: &Quantity| if is_large { float(amount.units()) } else { float(amount.milli()) };
        let ratio = number(&limit) / number(&request);
        let most = if is_large { float(enforced.units()) } else { float(enforced.milli()) / 1000.0 };
        if ratio > most { problem(&format!("provided ratio is {ratio:.6}")) } else { None }
    }
}

#[expect(clippy::cast_precision_loss, reason = "upstream compares ratios as floating-point numbers")]
fn float(number: i64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(requests: Value, limits: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}})
    }

    fn check(item: Value, pod: &Value, want: &[&str]) {
        assert_eq!(of_pod(&[item], pod), want, "{pod}");
    }

    #[test]
    fn bounds_have_upstreams_messages() {
        let none = || json!({});
        let item = |field: &str, amount: &str| json!({"type": "Container", field: {"cpu": amount}});
        let cpu = |amount: &str| json!({"cpu": amount});
        check(
            item("min", "100m"),
            &pod(none(), none()),
            &["minimum cpu usage per Container is 100m.  No request is specified"],
        );
        check(
            item("min", "0.1"),
            &pod(cpu("50m"), none()),
            &["minimum cpu usage per Container is 100m, but request is 50m"],
        );
        check(
            item("min", "100m"),
            &pod(cpu("200m"), cpu("50m")),
            &["minimum cpu usage per Container is 100m, but limit is 50m"],
        );
        check(item("min", "100m"), &pod(cpu("100m"), none()), &[]);
        check(
            item("max", "1"),
            &pod(none(), none()),
            &["maximum cpu usage per Container is 1.  No limit is specified"],
        );
        check(
            item("max", "1"),
            &pod(none(), cpu("1001m")),
            &["maximum cpu usage per Container is 1, but limit is 1001m"],
        );
        check(
            item("max", "1"),
            &pod(cpu("2"), cpu("1")),
            &["maximum cpu usage per Container is 1, but request is 2"],
        );
        check(item("max", "1"), &pod(cpu("1"), cpu("1000m")), &[]);
        let ratio = |amount: &str| item("maxLimitRequestRatio", amount);
        check(
            ratio("1.5"),
            &pod(cpu("100m"), cpu("151m")),
            &["cpu max limit to request ratio per Container is 1500m, but provided ratio is 1.510000"],
        );
        check(ratio("1.5"), &pod(cpu("100m"), cpu("150m")), &[]);
        check(
            ratio("2"),
            &pod(none(), cpu("1")),
            &[
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ],
        );
        check(
            ratio("2"),
            &pod(cpu("1"), none()),
            &["cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0"],
        );
    }

    #[test]
    fn pods_are_bounded_whole() {
        let container =
            |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let mut sidecar = container("2");
        sidecar["restartPolicy"] = "Always".into();
        let item = || json!({"type": "Pod", "max": {"cpu": "4"}});
        let mut pod = json!({"spec": {"containers": [container("1"), container("1")], "initContainers": [container("4"), sidecar]}});
        check(item(), &pod, &[]);
        pod["spec"]["initContainers"].as_array_mut().unwrap().push(container("3"));
        check(item(), &pod, &["maximum cpu usage per Pod is 4, but limit is 5"]);
        pod["spec"]["resources"] = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}});
        check(item(), &pod, &[]);
        let each = json!({"type": "Container", "max": {"cpu": "3"}});
        check(each, &pod, &["maximum cpu usage per Container is 3, but limit is 4"]);
    }

    #[test]
    fn claims_are_bounded_by_their_requests() {
        let item =
            [json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}})];
        let claim = |amount: &str| json!({"spec": {"resources": {"requests": {"storage": amount}}}});
        assert!(of_claim(&item, &claim("2Gi")).is_empty());
        assert_eq!(
            of_claim(&item, &claim("3Gi")),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        assert_eq!(
            of_claim(&item, &claim("1G")),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1G"]
        );
        assert_eq!(
            of_claim(&item, &json!({"spec": {}})),
            [
                "minimum storage usage per PersistentVolumeClaim is 1Gi.  No request is specified",
                "maximum storage usage per PersistentVolumeClaim is 2Gi.  No request is specified"
            ]
        );
    }
}
