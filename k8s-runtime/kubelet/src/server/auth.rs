//! Authentication and authorization of requests to the kubelet's listener.
//!
//! Flow: the client certificate's subject gives the user (common name) and the groups (organizations).
//! Without a certificate, a TokenReview asks the API server for the user of the bearer token. A
//! SubjectAccessReview asks the API server for access to the node's subresource: a fine-grained one first,
//! then `nodes/proxy`, as upstream's `KubeletFineGrainedAuthz` does. Requests from within this process were
//! authorized by the API server.
//! Guarantee: access is denied if the API server does not answer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Method, Response, StatusCode, header};
use k8s_core::client::Body;

use super::{path_parts, text};
use crate::{context::Context, types::*};

/// Lifetimes of cached answers. (Upstream's defaults are 5 min and 30 s.)
const ALLOWED: Duration = Duration::from_secs(60);
const DENIED: Duration = Duration::from_secs(10);
/// Maximum number of cached answers.
const MOST: usize = 1024;

/// The user of a client certificate or a bearer token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
    uid: Option<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Returns the user of a verified client certificate. `None`: it has no common name.
    pub(super) fn of(der: &[u8]) -> Option<User> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned));
        let groups = groups.chain(["system:authenticated".to_owned()]).collect();
        Some(User { name, groups, ..User::default() })
    }

    /// Returns the user of an answered TokenReview. `None`: the token is not valid.
    fn reviewed(status: TokenReviewStatus) -> Option<User> {
        let user = status.user.filter(|_| status.authenticated == Some(true))?;
        Some(User {
            name: user.username.filter(|name| !name.is_empty())?,
            groups: user.groups.unwrap_or_default(),
            uid: user.uid,
            extra: user.extra.unwrap_or_default(),
        })
    }
}

/// Returns the bearer token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

type Question = (User, &'static str, &'static str);

/// Sends TokenReviews and SubjectAccessReviews, and caches the answers.
#[derive(Default)]
pub(super) struct Gate {
    answers: Mutex<HashMap<Question, (bool, Timestamp)>>,
    /// Users of valid tokens. Invalid ones are not kept, so that many of them drive out no others.
    tokens: Mutex<HashMap<String, (User, Timestamp)>>,
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
    /// Returns the user of the request's bearer token. `None`: there is none, or it is not valid.
    ///
    /// # Errors
    /// The API server does not answer.
    pub(super) async fn token_user(
        &self,
        cx: &Context,
        headers: &HeaderMap,
    ) -> Result<Option<User>, k8s_core::client::Error> {
        let Some(token) = bearer(headers) else { return Ok(None) };
        let now = cx.clock.now();
        let holds = |at: Timestamp| {
            let age = now.duration_since(at);
            !age.is_negative() && age.unsigned_abs() < ALLOWED
        };
        {
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((user, _)) = tokens.get(token).filter(|(_, at)| holds(*at)) {
                return Ok(Some(user.clone()));
            }
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let answer = cx.client.all::<TokenReview>().create(&review).await?;
        let user = answer.status.and_then(User::reviewed);
        if let Some(user) = &user {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if tokens.len() >= MOST {
                tokens.retain(|_, (_, at)| holds(*at));
                if tokens.len() >= MOST {
                    tokens.clear();
                }
            }
            tokens.insert(token.to_owned(), (user.clone(), now));
        }
        Ok(user)
    }

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
                uid: user.uid.clone(),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
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
    fn tokens_of_requests() {
        for (value, want) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer ", None),
            ("Bearer", None),
            ("Basic YTpi", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(bearer(&headers), want, "{value:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

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
