//! Extenders: webhooks that take part in decisions (`extenders` of a KubeSchedulerConfiguration).
//!
//! Flow: the plugins' filters find feasible nodes; the extenders are asked about them in turn ([`filter`]),
//! and at once for scores ([`prioritize`]), which are added to those of the plugins. If no node is feasible,
//! they may change the candidates of a preemption ([`preempt`]). The first one with a bind verb binds the
//! pod. A pod is sent to an extender only if it asks for one of its resources, if it has any. [`wire`] has
//! the bodies,
//! [`http`] the requests.
//!
//! Guarantees:
//! 1. An extender only takes away: a node or a candidate of a preemption that was not sent to it is an error.
//! 2. No pod is deleted for an extender that is not of lower priority than the pod that needs room.
//! 3. An answer of more than 32 MiB, a slow one, and one of another shape are errors. Those of an ignorable
//!    extender, and all about scores, are as if it were not there. Every other ends the attempt; the pod is
//!    tried again after a back-off.
//!
//! [`filter`]: Extenders::filter
//! [`prioritize`]: Extenders::prioritize
//! [`preempt`]: Extenders::preempt

mod decide;
mod http;
mod preempt;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use k8s_core::api::api::core::v1::{Container, Node, Pod};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::debug;

use self::wire::{Args, Binding, BindingResult, FilterResult, NodeList, Priority};
pub(crate) use self::{decide::decide, http::Http};
use crate::{NodeInfo, PodInfo, Reject, decide::Trace};

/// Highest score of a node by a plugin, over that by an extender.
const SCALE: i64 = 100 / 10;
/// Longest text of an extender that is passed on, in bytes.
const LONGEST: usize = 1024;

/// An extender was not asked, or its answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtenderError {
    /// The extender's own message.
    #[error("{0}")]
    Said(String),
    /// The extender answered with another status than 200.
    #[error("failed {verb} with extender at URL {url}, code {code}")]
    Code { verb: String, url: String, code: u16 },
    /// The connection failed, or the answer is too long or too late.
    #[error("Post {url:?}: {reason}")]
    Failed { url: String, reason: String },
    /// The answer has another shape, or names what was not sent.
    #[error("extender {name:?}: {reason}")]
    Answer { name: String, reason: String },
}

/// The failure of an extender that is not ignorable, which ends an attempt.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Failing {
    /// Name of the extender.
    pub(crate) by: String,
    pub(crate) error: ExtenderError,
}

/// The connection to an extender.
#[async_trait]
pub(crate) trait Post: Send + Sync + 'static {
    /// Posts a body, and returns the body of the answer.
    ///
    /// # Errors
    /// The answer is not 200 within time and size.
    async fn post(&self, verb: &str, body: Vec<u8>) -> Result<Vec<u8>, ExtenderError>;
}

/// An extender.
#[derive(Clone)]
pub(crate) struct Extender {
    /// Its URL.
    pub(crate) name: String,
    /// Empty: not supported. So are the other verbs.
    pub(crate) filter: String,
    pub(crate) prioritize: String,
    pub(crate) preempt: String,
    pub(crate) bind: String,
    pub(crate) weight: i64,
    /// True if it knows the nodes, and gets their names alone.
    pub(crate) knows_nodes: bool,
    /// Resources that it manages. Empty: it is asked about every pod.
    pub(crate) resources: BTreeSet<String>,
    pub(crate) ignorable: bool,
    pub(crate) post: Arc<dyn Post>,
}

/// A node that an extender refused.
pub(crate) struct Refusal<'a> {
    pub(crate) node: &'a NodeInfo,
    /// Name of the extender.
    pub(crate) by: &'a str,
    pub(crate) reject: Reject,
}

/// The extenders of a scheduler; the ignorable ones are last.
#[derive(Clone, Default)]
pub(crate) struct Extenders(Vec<Extender>);

impl Extender {
    /// Returns true if the pod is sent to the extender.
    fn is_interested(&self, pod: &Pod) -> bool {
        let asks = |container: &Container| {
            let resources = container.resources.as_ref();
            let requests = resources.and_then(|r| r.requests.as_ref());
            let limits = resources.and_then(|r| r.limits.as_ref());
            requests
                .into_iter()
                .chain(limits)
                .flat_map(BTreeMap::keys)
                .any(|name| self.resources.contains(name))
        };
        let spec = pod.spec.as_ref();
        let containers =
            spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        self.resources.is_empty() || containers.into_iter().any(asks)
    }

    /// Posts a body, and parses the answer. `null` is the empty answer.
    async fn send<A: DeserializeOwned + Default>(
        &self,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<A, ExtenderError> {
        let body = serde_json::to_vec(body).map_err(|e| self.bad(format!("the request: {e}")))?;
        let answer = self.post.post(verb, body).await?;
        // As Go's decoder, what follows the first value is ignored.
        let mut parser = serde_json::Deserializer::from_slice(&answer);
        let parsed = Option::<A>::deserialize(&mut parser);
        Ok(parsed.map_err(|e| self.bad(format!("the answer to {verb}: {e}")))?.unwrap_or_default())
    }

    fn bad(&self, reason: String) -> ExtenderError {
        ExtenderError::Answer { name: self.name.clone(), reason: short(&reason).to_owned() }
    }

    fn args<'a>(&self, pod: &'a PodInfo, nodes: &[&'a NodeInfo]) -> Args<'a> {
        let (mut list, mut names) = (None, None);
        if self.knows_nodes {
            names = Some(nodes.iter().map(|node| node.name()).collect());
        } else {
            list = Some(NodeList::new(nodes.iter().map(|node| -> &Node { &node.node }).collect()));
        }
        Args { pod: &pod.pod, nodes: list, node_names: names }
    }

    /// Asks about nodes: returns those that pass, and the refused ones.
    async fn filter<'a>(
        &'a self,
        pod: &PodInfo,
        nodes: &[&'a NodeInfo],
    ) -> Result<(Vec<&'a NodeInfo>, Vec<Refusal<'a>>), ExtenderError> {
        let answer: FilterResult = self.send(&self.filter, &self.args(pod, nodes)).await?;
        if !answer.error.is_empty() {
            return Err(ExtenderError::Said(short(&answer.error).to_owned()));
        }
        let names = match (answer.node_names, answer.nodes) {
            (Some(names), _) if self.knows_nodes => names,
            (_, Some(list)) => list.names(),
            (_, None) => Vec::new(),
        };
        let sent: BTreeSet<&str> = nodes.iter().map(|node| node.name()).collect();
        let passed: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        if let Some(name) = passed.difference(&sent).next() {
            let (extender, name) = (&self.name, short(name));
            return Err(ExtenderError::Said(format!(
                "extender {extender:?} claims a filtered node {name:?} which is not found in the input node list"
            )));
        }
        let (passing, others): (Vec<&NodeInfo>, Vec<&NodeInfo>) =
            nodes.iter().partition(|node| passed.contains(node.name()));
        let refuse = |node: &'a NodeInfo| {
            let never = answer.unresolvable.get(node.name());
            let failed = answer.failed.get(node.name()).filter(|_| never.is_none());
            let reason = never.or(failed).and_then(Option::as_deref).unwrap_or_default();
            let reasons = Some(short(reason)).filter(|reason| !reason.is_empty());
            let reject = Reject {
                reasons: reasons.map(|reason| reason.to_owned().into()).into_iter().collect(),
                resolvable: failed.is_some(),
            };
            Refusal { node, by: &self.name, reject }
        };
        Ok((passing, others.into_iter().map(refuse).collect()))
    }

    /// Asks for scores, 0 to 10 and unweighted, of nodes by their names.
    async fn prioritize(
        &self,
        pod: &PodInfo,
        nodes: &[&NodeInfo],
    ) -> Result<HashMap<String, i64>, ExtenderError> {
        let answer: Vec<Priority> = self.send(&self.prioritize, &self.args(pod, nodes)).await?;
        let mut scores: HashMap<String, i64> = HashMap::new();
        for Priority { host, score } in answer {
            let sum = scores.entry(host).or_default();
            *sum = sum.saturating_add(score);
        }
        Ok(scores)
    }
}

impl Extenders {
    /// Orders extenders: the ignorable ones are last.
    pub(crate) fn new(mut all: Vec<Extender>) -> Self {
        all.sort_by_key(|extender| extender.ignorable);
        Extenders(all)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Extender> {
        self.0.iter()
    }

    /// Returns true without extenders.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the extenders with a verb that a pod is sent to.
    fn asked<'a>(
        &'a self,
        pod: &'a PodInfo,
        verb: fn(&Extender) -> &String,
    ) -> impl Iterator<Item = &'a Extender> {
        self.0.iter().filter(move |extender| !verb(extender).is_empty() && extender.is_interested(&pod.pod))
    }

    /// Asks the extenders in turn about feasible nodes, and returns those that pass all. The refused ones are
    /// added to `refused`.
    ///
    /// # Errors
    /// An extender that is not ignorable fails.
    async fn filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        mut nodes: Vec<&'a NodeInfo>,
        refused: &mut Vec<Refusal<'a>>,
    ) -> Result<Vec<&'a NodeInfo>, Failing> {
        for extender in self.asked(pod, |extender| &extender.filter) {
            if nodes.is_empty() {
                break;
            }
            match extender.filter(pod, &nodes).await {
                Ok((passing, others)) => {
                    nodes = passing;
                    refused.extend(others);
                }
                Err(error) if extender.ignorable => {
                    debug!(pod = %pod.key, extender = extender.name, %error, "extender ignored");
                }
                Err(error) => return Err(Failing { by: extender.name.clone(), error }),
            }
        }
        Ok(nodes)
    }

    /// Asks all extenders at once for scores of feasible nodes, and returns the sums of the weighted ones.
    /// One that fails has none.
    async fn prioritize<T: Trace>(&self, pod: &PodInfo, nodes: &[&NodeInfo], trace: &mut T) -> Vec<i64> {
        let asked: Vec<&Extender> = self.asked(pod, |extender| &extender.prioritize).collect();
        let answers = asked.iter().map(|extender| extender.prioritize(pod, nodes));
        let mut totals = vec![0i64; nodes.len()];
        for (extender, answer) in asked.iter().zip(futures::future::join_all(answers).await) {
            let scores = match answer {
                Ok(scores) => scores,
                Err(error) => {
                    debug!(pod = %pod.key, extender = extender.name, %error, "no scores of the extender");
                    continue;
                }
            };
            let raw: Vec<i64> =
                nodes.iter().map(|node| scores.get(node.name()).copied().unwrap_or(0)).collect();
            let scaled: Vec<i64> = raw.iter().map(|score| score.saturating_mul(SCALE)).collect();
            trace.scored(&extender.name, extender.weight, nodes, &raw, &scaled);
            for (total, score) in totals.iter_mut().zip(&scaled) {
                *total = total.saturating_add(score.saturating_mul(extender.weight));
            }
        }
        totals
    }

    /// Lets the first extender with a bind verb bind the pod. `false`: the plugins bind it.
    ///
    /// # Errors
    /// The extender fails and is not ignorable.
    pub(crate) async fn bind(&self, pod: &PodInfo, node: &str) -> Result<bool, ExtenderError> {
        for extender in self.asked(pod, |extender| &extender.bind) {
            let binding = Binding {
                pod_name: &pod.key.name,
                pod_namespace: &pod.key.namespace,
                pod_uid: pod.uid(),
                node,
            };
            let answer = match extender.send::<BindingResult>(&extender.bind, &binding).await {
                Ok(BindingResult { error }) if !error.is_empty() => {
                    Err(ExtenderError::Said(short(&error).to_owned()))
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            match answer {
                Ok(()) => return Ok(true),
                Err(error) if extender.ignorable => {
                    debug!(pod = %pod.key, extender = extender.name, %error, "extender ignored");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Returns the beginning of a text of an extender.
fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

impl std::fmt::Debug for Extender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extender").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Extenders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

#[cfg(test)]
mod tests;
