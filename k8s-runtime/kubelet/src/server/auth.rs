//! Authentication and authorization of requests to the kubelet's listener.
//!
//! Flow: the client certificate's subject gives the user (common name) and the groups (organizations). A
//! SubjectAccessReview asks the API server for access to the node's subresource: a fine-grained one first,
//! then `nodes/proxy`, as upstream's `KubeletFineGrainedAuthz` does. Requests from within this process were
//! authorized by the API server.
//! Guarantee: access is denied if the API server does not answer.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{Method, Response, StatusCode};
use k8s_core::client::Body;

use super::{path_parts, text};
use crate::{context::Context, types::*};

/// Lifetimes of cached answers. (Upstream's defaults are 5 min and 30 s.)
const ALLOWED: Duration = Duration::from_secs(60);
const DENIED: Duration = Duration::from_secs(10);
/// Maximum number of cached answers.
const MOST: usize = 1024;

/// User and groups of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

impl User {
    /// Returns the user of a verified client certificate. `None`: it has no common name.
    pub(super) fn of(der: &[u8]) -> Option<User> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned));
        let groups = groups.chain(["system:authenticated".to_owned()]).collect();
        Some(User { name, groups })
    }
}

type Question = (User, &'static str, &'static str);

/// Sends SubjectAccessReviews and caches the answers.
#[derive(Debug, Default)]
pub(super) struct Gate {
    answers: Mutex<HashMap<Question, (bool, Timestamp)>>,
}

/// Maps an HTTP method to a verb. Methods without a handler map to no verb of RBAC; only `*` allows them.
fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// Returns the subresources of the node any of which allows the request, by the first segment of its path.
fn subresources(first: &str) -> &'static [&'static str] {
    match first {
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        _ => &["proxy"],
    }
}

fn refuse(code: StatusCode, message: String) -> Response<Body> {
    let mut response = text(message);
    *response.status_mut() = code;
    response
}

impl Gate {
    /// Returns `Ok` if the request is allowed, else the response.
    pub(super) async fn check(
        &self,
        cx: &Context,
        user: Option<&User>,
        method: &Method,
        path: &str,
    ) -> Result<(), Box<Response<Body>>> {
        let Some(user) = user else {
            return Err(Box::new(refuse(StatusCode::UNAUTHORIZED, "Unauthorized".into())));
        };
        let (verb, parts) = (verb(method), path_parts(path));
        let subresources = subresources(parts.first().map(String::as_str).unwrap_or_default());
        for subresource in subresources {
            match self.allows(cx, (user.clone(), verb, *subresource)).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(user = user.name, %error, "request not authorized");
                    let message = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        user.name
                    );
                    return Err(Box::new(refuse(StatusCode::INTERNAL_SERVER_ERROR, message)));
                }
            }
        }
        let message = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        );
        Err(Box::new(refuse(StatusCode::FORBIDDEN, message)))
    }

    async fn allows(&self, cx: &Context, question: Question) -> Result<bool, k8s_core::client::Error> {
        let now = cx.clock.now();
        let holds = |(allowed, at): &(bool, Timestamp)| {
            // If the clock was set back, the entry counts as expired.
            let age = now.duration_since(*at);
            let longest = if *allowed { ALLOWED } else { DENIED };
            !age.is_negative() && age.unsigned_abs() < longest
        };
        {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = answers.get(&question).filter(|a| holds(a)) {
                return Ok(answer.0);
            }
        }
        let (user, verb, subresource) = &question;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some((*subresource).to_owned()),
                    name: Some(cx.config.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = cx.client.all::<SubjectAccessReview>().create(&review).await?;
        let allowed = answer.status.is_some_and(|s| s.allowed && s.denied != Some(true));
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.retain(|_, answer| holds(answer));
            if answers.len() >= MOST {
                answers.clear();
            }
        }
        answers.insert(question, (allowed, now));
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_each_path() {
        let of = |path: &str| {
            let parts = path_parts(path);
            subresources(parts.first().map(String::as_str).unwrap_or_default()).join(",")
        };
        for (path, want) in [
            ("/pods", "pods,proxy"),
            ("/runningpods/", "pods,proxy"),
            ("/healthz/log", "healthz,proxy"),
            ("/configz", "configz,proxy"),
            ("/stats/summary", "stats"),
            ("/metrics", "metrics"),
            ("/metrics/resource", "metrics"),
            ("/logs/", "log"),
            ("/exec/ns/p/c", "proxy"),
            ("/containerLogs/ns/p/c", "proxy"),
            ("/podsx", "proxy"),
            ("/", "proxy"),
            ("", "proxy"),
            // As the router parses it.
            ("//stats", "stats"),
            ("/%73tats/summary", "stats"),
            ("/stats%2Fsummary", "proxy"),
        ] {
            assert_eq!(of(path), want, "{path}");
        }
    }
}
