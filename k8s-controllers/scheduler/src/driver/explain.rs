//! Explanations of decisions, made by the code that decides.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_core::{
    api::api::core::v1::{Namespace, Node, Pod},
    cache::Cache,
    client::{Client, Error, ListParams},
    meta::{Object, ObjectExt},
};
use rand::{SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{Builder, is_terminal, node_of};
use crate::{
    Cluster, NodeInfo, Nomination, PodInfo, Reject,
    config::ConfigError,
    decide::{Decision, Kept, Trace},
    extender,
    volumes::{Controllers, Devices, Lists},
};

/// The reasons of a decision: for each node the first plugin that refused it or the scores, and the outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Namespace and name of the pod.
    pub pod: String,
    /// Name of the profile.
    pub scheduler_name: String,
    /// The chosen node; of several with the highest score one is taken by chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The text of the event that the decision leads to.
    pub message: String,
    /// A plugin that refused the pod on all nodes, or holds it back from the queue; or an extender that
    /// failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The pods that would be deleted to make room, with their node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption: Option<Preemption>,
    /// The nodes: the highest score first, then the refused ones by name.
    pub nodes: Vec<Verdict>,
}

/// A plugin's or an extender's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Name of the plugin, or URL of the extender.
    pub plugin: String,
    /// Its messages; an extender need not give any.
    pub reasons: Vec<String>,
    /// True if deletions of pods could resolve it.
    pub resolvable: bool,
}

/// Pods that would be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preemption {
    /// Name of the node.
    pub node: String,
    /// Namespaces and names of the pods.
    pub victims: Vec<String>,
}

/// The decision about one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Name of the node.
    pub node: String,
    /// The first refusal. `None`: the node is feasible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The sum of the weighted scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
    /// The score of each plugin that has one for this pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<PluginScore>,
}

/// A plugin's or an extender's score for a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginScore {
    /// Name of the plugin, or URL of the extender.
    pub plugin: String,
    /// The score as the plugin, or from 0 to 10 the extender, gave it.
    pub raw: i64,
    /// The score from 0 to 100.
    pub normalized: i64,
    /// The plugin's weight.
    pub weight: i64,
    /// The normalized score times the weight.
    pub weighted: i64,
}

/// A decision cannot be explained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The pod is another scheduler's.
    #[error("no profile has the schedulerName {0:?} of the pod")]
    NoProfile(String),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A list could not be read.
    #[error(transparent)]
    Client(#[from] Error),
}

#[derive(Default)]
struct Record {
    refusal: Option<Refusal>,
    nodes: BTreeMap<String, Verdict>,
}

impl Refusal {
    fn new(plugin: &str, reject: &Reject) -> Self {
        Refusal {
            plugin: plugin.to_owned(),
            reasons: reject.reasons.iter().map(ToString::to_string).collect(),
            resolvable: reject.resolvable,
        }
    }
}

impl Record {
    fn of(&mut self, node: &str) -> &mut Verdict {
        self.nodes.entry(node.to_owned()).or_insert_with(|| Verdict {
            node: node.to_owned(),
            refusal: None,
            total: None,
            scores: Vec::new(),
        })
    }
}

impl Trace for Record {
    const FULL: bool = true;

    fn refused(&mut self, node: Option<&NodeInfo>, plugin: &str, reject: &Reject) {
        let refusal = Refusal::new(plugin, reject);
        match node {
            Some(node) => self.of(node.name()).refusal = Some(refusal),
            None => self.refusal = Some(refusal),
        }
    }

    fn scored(&mut self, plugin: &str, weight: i64, nodes: &[&NodeInfo], raw: &[i64], normalized: &[i64]) {
        for (node, (raw, normalized)) in nodes.iter().zip(raw.iter().zip(normalized)) {
            let weighted = weight.saturating_mul(*normalized);
            let verdict = self.of(node.name());
            verdict.total = Some(verdict.total.unwrap_or(0).saturating_add(weighted));
            verdict.scores.push(PluginScore {
                plugin: plugin.to_owned(),
                raw: *raw,
                normalized: *normalized,
                weight,
                weighted,
            });
        }
    }
}

impl Builder {
    /// Explains the decision about a pod on a cluster. A pod that has a node is explained as if it had none.
    /// Extenders are asked with all their verbs but that of binding.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use k8s_core::api::{Node, Pod};
    /// use k8s_scheduler::{Cluster, Scheduler};
    /// use serde_json::json;
    ///
    /// let mut cluster = Cluster::default();
    /// for (name, cpu) in [("small", "1"), ("large", "8")] {
    ///     let status = json!({"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}});
    ///     let node: Node = serde_json::from_value(json!({"metadata": {"name": name}, "status": status}))?;
    ///     cluster.set_node(Arc::new(node));
    /// }
    /// let pod: Pod = serde_json::from_value(json!({
    ///     "metadata": {"name": "web", "namespace": "shop"},
    ///     "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]},
    /// }))?;
    /// let why = Scheduler::builder().explain(&mut cluster, &pod).await?;
    /// assert_eq!(why.node.as_deref(), Some("large"));
    /// let refusal = why.nodes[1].refusal.as_ref().expect("the small one is refused");
    /// assert_eq!(refusal.plugin, "NodeResourcesFit");
    /// assert_eq!(refusal.reasons, ["Insufficient cpu"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The pod is of another scheduler, or the configuration cannot be used.
    pub async fn explain(&self, cluster: &mut Cluster, pod: &Pod) -> Result<Explanation, ExplainError> {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let (profiles, extenders) = (self.profiles()?, self.extenders()?);
        let profile = profiles.iter().find(|p| p.name == name);
        let profile = profile.ok_or_else(|| ExplainError::NoProfile(name.to_owned()))?;
        let mut pod = pod.clone();
        if let Some(spec) = &mut pod.spec {
            spec.node_name = None;
        }
        cluster.remove_pod(pod.uid());
        cluster.withdraw(pod.uid());
        let info = PodInfo::new(Arc::new(pod));
        let mut record = Record::default();
        let mut explanation = Explanation {
            pod: info.key.to_string(),
            scheduler_name: name.to_owned(),
            node: None,
            message: String::new(),
            refusal: None,
            preemption: None,
            nodes: Vec::new(),
        };
        let gates = profile.rows.iter().filter_map(|row| Some((row, row.pre_enqueue.as_ref()?)));
        for (row, gate) in gates {
            if let Err(reject) = gate.pre_enqueue(&info) {
                explanation.message = reject.reasons.join(", ");
                explanation.refusal = Some(Refusal::new(&row.name, &reject));
                return Ok(explanation);
            }
        }
        let mut rng = StdRng::seed_from_u64(0);
        let kept = &mut Kept::default();
        match extender::decide(profile, &extenders, cluster, &info, kept, &mut rng, &mut record).await {
            Ok(Decision::Fits(fit)) => {
                explanation.message = format!("Successfully assigned {} to {}", info.key, fit.node);
                explanation.node = Some(fit.node);
            }
            Err(error) => {
                explanation.message = error.to_string();
                let reject = Reject::never(error.to_string());
                record.refusal = Some(Refusal::new(&error.by, &reject));
            }
            Ok(Decision::Nowhere(why)) => {
                explanation.message.clone_from(&why.message);
                let mut nomination = profile.post_filter(cluster, &info, &why, kept);
                if let Nomination::Candidates(candidates) = nomination {
                    nomination = extenders.preempt(cluster, &info, candidates).await;
                }
                match nomination {
                    // The extenders have chosen.
                    Nomination::Candidates(_) => {}
                    Nomination::No(reason) if reason.is_empty() => {}
                    Nomination::No(reason) | Nomination::Wait(reason) => {
                        explanation.message = format!("{} {reason}", why.message)
                    }
                    Nomination::Preempt { node, victims } => {
                        let victims = victims.iter().map(|v| v.key.to_string()).collect();
                        explanation.preemption = Some(Preemption { node, victims });
                    }
                }
            }
        }
        explanation.refusal = record.refusal;
        explanation.nodes = record.nodes.into_values().collect();
        let chosen = explanation.node.clone();
        explanation.nodes.sort_by_key(|v| {
            (
                v.refusal.is_some(),
                chosen.as_ref() != Some(&v.node),
                std::cmp::Reverse(v.total),
                v.node.clone(),
            )
        });
        Ok(explanation)
    }

    /// Explains the decision about a pod of a cluster that the client reads.
    ///
    /// # Errors
    /// As [`Builder::explain`]; or the pod does not exist, or a list could not be read.
    pub async fn explain_pod(
        &self,
        client: &Client,
        namespace: &str,
        name: &str,
    ) -> Result<Explanation, ExplainError> {
        let pod = client.namespaced::<Pod>(namespace).get(name).await?;
        let lists = Lists {
            claims: read(client).await?,
            volumes: read(client).await?,
            classes: read(client).await?,
            csi_nodes: read(client).await?,
            csi_drivers: read(client).await?,
            capacities: read(client).await?,
            budgets: read(client).await?,
            services: read(client).await?,
            controllers: Controllers {
                replication: read(client).await?,
                replica_sets: read(client).await?,
                stateful_sets: read(client).await?,
            },
            devices: Devices {
                claims: read(client).await?,
                classes: read(client).await?,
                slices: read(client).await?,
            },
        };
        let mut cluster = Cluster::watching(read::<Namespace>(client).await?, lists);
        for node in client.all::<Node>().list(&ListParams::default()).await? {
            cluster.set_node(Arc::new(node));
        }
        for other in client.all::<Pod>().list(&ListParams::default()).await? {
            let other = Arc::new(other);
            if is_terminal(&other) {
                continue;
            }
            let info = Arc::new(PodInfo::new(other.clone()));
            let nominated = other.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
            match node_of(&other) {
                Some(node) => cluster.set_pod(info, node),
                None => cluster.nominate(&info, nominated),
            }
        }
        self.explain(&mut cluster, &pod).await
    }
}

async fn read<K: Object>(client: &Client) -> Result<Cache<K>, Error> {
    let cache = Cache::new();
    cache.replace(client.all::<K>().list(&ListParams::default()).await?, 1);
    Ok(cache)
}

/// A table for people.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Pod:        {}", self.pod)?;
        writeln!(f, "Scheduler:  {}", self.scheduler_name)?;
        writeln!(f, "Node:       {}", self.node.as_deref().unwrap_or("<none>"))?;
        writeln!(f, "Message:    {}", self.message)?;
        if let Some(refusal) = &self.refusal {
            writeln!(f, "Refused by: {}: {}", refusal.plugin, refusal.reasons.join(", "))?;
        }
        if let Some(Preemption { node, victims }) = &self.preemption {
            writeln!(f, "Preemption: on {node}, of {}", victims.join(", "))?;
        }
        let chosen = self.nodes.first().filter(|first| self.node.as_ref() == Some(&first.node));
        if let Some(Verdict { node, total, scores, .. }) = chosen {
            writeln!(f, "\nScores of {node}:")?;
            let width = scores.iter().map(|s| s.plugin.len()).max().unwrap_or(0).max("PLUGIN".len());
            writeln!(
                f,
                "  {:width$}  {:>6}  {:>10}  {:>6}  {:>8}",
                "PLUGIN", "RAW", "NORMALIZED", "WEIGHT", "WEIGHTED"
            )?;
            for PluginScore { plugin, raw, normalized, weight, weighted } in scores {
                writeln!(f, "  {plugin:width$}  {raw:>6}  {normalized:>10}  {weight:>6}  {weighted:>8}")?;
            }
            writeln!(f, "  {:width$}  {:>6}  {:>10}  {:>6}  {:>8}", "total", "", "", "", total.unwrap_or(0))?;
        }
        if !self.nodes.is_empty() {
            writeln!(f, "\nNodes:")?;
            let width = self.nodes.iter().map(|v| v.node.len()).max().unwrap_or(0).max("NODE".len());
            writeln!(f, "  {:width$}  {:>5}  REFUSED BY", "NODE", "SCORE")?;
            for Verdict { node, refusal, total, .. } in &self.nodes {
                let score = match refusal {
                    Some(_) => "-".to_owned(),
                    None => total.unwrap_or(0).to_string(),
                };
                let refused = refusal.as_ref().map_or_else(
                    || "-".to_owned(),
                    |refusal| format!("{}: {}", refusal.plugin, refusal.reasons.join(", ")),
                );
                writeln!(f, "  {node:width$}  {score:>5}  {refused}")?;
            }
        }
        Ok(())
    }
}
