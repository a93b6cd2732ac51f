//! Authorization: authorizers in order, of which the first that allows or denies decides.
//!
//! Order: the authorizers that a distribution added, `system:masters`, then the server's modes.

use std::{
    borrow::Cow,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_core::status::{ApiStatus, Reason};
use k8s_metrics::{Counter, Registry};
use k8s_store::Store;

use super::{
    AuthorizationMode,
    abac::Policies,
    access_webhook::WebhookAuthorizer,
    metrics::Authorizations,
    node::NodeAuthorizer,
    rbac::{Rbac, Rule, aggregate, is_master},
};
use crate::{
    request::{Attributes, RequestInfo},
    stages::{Authorize, Decision},
    user::User,
};

/// An authorizer of the chain.
struct Row {
    authorizer: Authorizer,
    /// Counters of what it allowed and denied. `None` for those that no mode names.
    decisions: Option<[Counter; 2]>,
}

/// The kinds of authorizers.
enum Authorizer {
    /// Of a distribution.
    Added(Arc<dyn Authorize>),
    /// Everything, for `system:masters`.
    Masters,
    Node(Box<NodeAuthorizer>),
    Rbac,
    Abac(Policies),
    Webhook(WebhookAuthorizer),
    AlwaysAllow,
    AlwaysDeny,
}

/// The decision about a request.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) decision: Decision,
    /// The reason of the decision; those of all authorizers, a line each, if none decided.
    pub(crate) reason: String,
    /// Problems of authorizers.
    pub(crate) error: Option<String>,
}

/// The rules of a user in a namespace.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) rules: Vec<Rule>,
    /// The user may have further rights.
    pub(crate) incomplete: bool,
    /// Problems of authorizers.
    pub(crate) error: Option<String>,
}

/// Answer of one authorizer.
struct Answer {
    decision: Decision,
    reason: Cow<'static, str>,
    error: Option<String>,
}

impl Answer {
    fn new(decision: Decision, reason: impl Into<Cow<'static, str>>) -> Self {
        Answer { decision, reason: reason.into(), error: None }
    }
}

/// Decides what users may do.
pub(crate) struct Authorization {
    rows: RwLock<Arc<Vec<Row>>>,
    added: Vec<Arc<dyn Authorize>>,
    registry: Registry,
    metrics: Authorizations,
    pub(crate) rbac: Rbac,
    pub(crate) store: Store,
}

impl Authorization {
    /// Creates the chain of the authorizers that a distribution added and the server's modes.
    pub(crate) fn new(
        store: Store,
        added: Vec<Arc<dyn Authorize>>,
        modes: &[AuthorizationMode],
        registry: &Registry,
    ) -> Self {
        let authorization = Authorization {
            rows: RwLock::default(),
            added,
            registry: registry.clone(),
            metrics: Authorizations::new(registry),
            rbac: Rbac::default(),
            store,
        };
        authorization.replace(modes);
        authorization
    }

    /// Replaces the server's modes. Requests that are being decided finish with the former ones.
    pub(crate) fn replace(&self, modes: &[AuthorizationMode]) {
        let row = |authorizer| Row { authorizer, decisions: None };
        let of = |mode: &AuthorizationMode| {
            let (kind, name, authorizer) = match mode {
                AuthorizationMode::Node => {
                    ("Node", "node", Authorizer::Node(Box::new(NodeAuthorizer::new(self.store.clone()))))
                }
                AuthorizationMode::Rbac => ("RBAC", "rbac", Authorizer::Rbac),
                AuthorizationMode::Abac(policies) => ("ABAC", "abac", Authorizer::Abac(policies.clone())),
                AuthorizationMode::Webhook(webhook) => {
                    webhook.measure(&self.registry);
                    ("Webhook", webhook.name(), Authorizer::Webhook(webhook.clone()))
                }
                AuthorizationMode::AlwaysAllow => ("AlwaysAllow", "alwaysallow", Authorizer::AlwaysAllow),
                AuthorizationMode::AlwaysDeny => ("AlwaysDeny", "alwaysdeny", Authorizer::AlwaysDeny),
            };
            Row { authorizer, decisions: Some(self.metrics.decisions(kind, name)) }
        };
        let added = self.added.iter().cloned().map(Authorizer::Added);
        let rows = added.chain([Authorizer::Masters]).map(row).chain(modes.iter().map(of)).collect();
        *self.rows.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rows);
    }

    fn rows(&self) -> Arc<Vec<Row>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask(&self, authorizer: &Authorizer, user: &User, a: &Attributes<'_>) -> Answer {
        match authorizer {
            Authorizer::Added(added) => match added.authorize(user, a).await {
                Decision::Deny(why) => Answer::new(Decision::Deny(String::new()), why),
                other => Answer::new(other, ""),
            },
            Authorizer::Masters if is_master(user) => Answer::new(Decision::Allow, ""),
            Authorizer::Masters => Answer::new(Decision::NoOpinion, ""),
            Authorizer::Node(node) => {
                let (decision, reason) = node.decide(user, a);
                Answer::new(decision, reason)
            }
            Authorizer::Rbac => match self.rbac.reason(&self.store, user, a) {
                Ok(reason) => Answer::new(Decision::Allow, reason.to_string()),
                Err(why) => Answer::new(Decision::NoOpinion, why),
            },
            Authorizer::Abac(policies) if policies.allow(user, a) => Answer::new(Decision::Allow, ""),
            Authorizer::Abac(_) => Answer::new(Decision::NoOpinion, "No policy matched."),
            Authorizer::Webhook(webhook) => {
                let answer = webhook.decide(user, a).await;
                Answer { decision: answer.decision, reason: answer.reason.into(), error: answer.error }
            }
            Authorizer::AlwaysAllow => Answer::new(Decision::Allow, ""),
            Authorizer::AlwaysDeny => Answer::new(Decision::NoOpinion, "Everything is forbidden."),
        }
    }

    /// Decides about a request.
    pub(crate) async fn decide(&self, user: &User, a: &Attributes<'_>) -> Outcome {
        let (mut reasons, mut errors) = (Vec::new(), Vec::new());
        for row in self.rows().iter() {
            let answer = self.ask(&row.authorizer, user, a).await;
            if answer.decision != Decision::NoOpinion {
                if let Some([allowed, denied]) = &row.decisions {
                    let counter = if answer.decision == Decision::Allow { allowed } else { denied };
                    counter.inc();
                }
                let reason = answer.reason.into_owned();
                return Outcome { decision: answer.decision, reason, error: answer.error };
            }
            if !answer.reason.is_empty() {
                reasons.push(answer.reason);
            }
            errors.extend(answer.error);
        }
        Outcome { decision: Decision::NoOpinion, reason: reasons.join("\n"), error: aggregate(errors) }
    }

    /// Decides about a request of a client, and counts the decision.
    #[expect(clippy::disallowed_methods, reason = "the duration of a decision, in virtual time as well")]
    pub(crate) async fn decide_request(&self, user: &User, a: &Attributes<'_>) -> Outcome {
        let begun = tokio::time::Instant::now();
        let outcome = self.decide(user, a).await;
        self.metrics.take(&outcome.decision, outcome.error.is_some(), begun.elapsed());
        outcome
    }

    /// Returns the rules that a user has in a namespace, of all authorizers.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> Rules {
        let mut all = Rules::default();
        let mut errors = Vec::new();
        for row in self.rows().iter() {
            match &row.authorizer {
                Authorizer::Added(_) => all.incomplete = true,
                Authorizer::Node(_) if super::node::node_of(user).is_some() => {
                    all.incomplete = true;
                    errors.push("node authorizer does not support user rule resolution".to_owned());
                }
                Authorizer::Rbac => {
                    let (rules, problems) = self.rbac.rules_and_problems(&self.store, user, namespace);
                    all.rules.extend(rules);
                    errors.extend(problems);
                }
                Authorizer::Abac(policies) => all.rules.extend(policies.rules(user, namespace)),
                Authorizer::Webhook(_) => {
                    all.incomplete = true;
                    errors.push("webhook authorizer does not support user rule resolution".to_owned());
                }
                Authorizer::AlwaysAllow => all.rules.push(Rule::everything()),
                Authorizer::Masters | Authorizer::Node(_) | Authorizer::AlwaysDeny => {}
            }
        }
        all.error = aggregate(errors);
        all
    }

    /// Checks that `user` may do it.
    ///
    /// # Errors
    /// 403 with the reason.
    pub(crate) async fn authorize(&self, user: &User, a: &Attributes<'_>) -> Result<(), ApiStatus> {
        self.decide(user, a).await.granted(user, a)
    }

    /// Checks that a caller may `create` what a request is about ([`Attributes::create`]).
    ///
    /// # Errors
    /// 403 with the reason.
    pub(crate) async fn may_create(&self, user: &User, info: &RequestInfo) -> Result<(), ApiStatus> {
        self.authorize(user, &Attributes::create(info)).await
    }
}

impl Outcome {
    /// Returns the annotations of audit events.
    pub(crate) fn annotations(&self) -> [(String, String); 2] {
        let decision = if self.decision == Decision::Allow { "allow" } else { "forbid" };
        [
            ("authorization.k8s.io/decision".to_owned(), decision.to_owned()),
            ("authorization.k8s.io/reason".to_owned(), self.reason.clone()),
        ]
    }

    /// Checks that the decision about a request allows it.
    ///
    /// # Errors
    /// 403 with the reason.
    pub(crate) fn granted(self, user: &User, a: &Attributes<'_>) -> Result<(), ApiStatus> {
        if self.decision == Decision::Allow {
            return Ok(());
        }
        let reason = match self.reason {
            reason if reason.is_empty() => reason,
            reason => format!(": {reason}"),
        };
        let why = if a.path.is_empty() {
            let resource = if a.subresource.is_empty() {
                a.resource.to_owned()
            } else {
                format!("{}/{}", a.resource, a.subresource)
            };
            let scope = if a.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{}\"", a.namespace)
            };
            format!(
                "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{reason}",
                user.name, a.verb, a.group
            )
        } else {
            let why =
                format!("forbidden: User \"{}\" cannot {} path \"{}\"{reason}", user.name, a.verb, a.path);
            return Err(ApiStatus::of(Reason::Forbidden, why).about("", "", ""));
        };
        Err(ApiStatus::forbidden(a.group, a.resource, a.name, &why))
    }
}
