//! PodNodeSelector: pods of a namespace run on the nodes of the namespace's selector.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::Value;

use super::pods::handles_pods;
use crate::{
    admission::{Admission, Admit, Operation, matching::namespace},
    resources::Resource,
    value::{child, object_at},
};

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// The key of the selector for namespaces without their own.
const DEFAULT: &str = "clusterDefaultNodeSelector";

type Labels = BTreeMap<String, String>;

pub(super) struct PodNodeSelector {
    store: Store,
    /// The default selector, and the whitelist of each namespace.
    selectors: BTreeMap<String, Labels>,
}

/// Parses `a=b,c=d`.
fn parse(text: &str) -> Result<Labels, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok((key.trim().to_owned(), value.trim_start_matches('=').trim().to_owned()))
            }
            _ => Err(format!("invalid selector: {part:?}, want key=value")),
        })
        .collect()
}

fn labels(pod: &Value) -> Labels {
    let all = object_at(pod, "/spec/nodeSelector").into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

impl PodNodeSelector {
    /// Reads `podNodeSelectorPluginConfig`.
    ///
    /// # Errors
    /// A selector that is none.
    pub(super) fn new(store: Store, configuration: &Value) -> Result<Self, String> {
        let mut selectors = BTreeMap::new();
        for (name, selector) in object_at(configuration, "/podNodeSelectorPluginConfig").into_iter().flatten()
        {
            let text = selector.as_str().unwrap_or_default();
            let parsed = parse(text).map_err(|e| format!("podNodeSelectorPluginConfig.{name}: {e}"))?;
            selectors.insert(name.clone(), parsed);
        }
        Ok(PodNodeSelector { store, selectors })
    }

    fn of_namespace(&self, admission: &Admission<'_>) -> Result<Labels, ApiStatus> {
        let name = admission.request.namespace.as_str();
        let namespace =
            namespace(&self.store, name).ok_or_else(|| ApiStatus::not_found("", "namespaces", name))?;
        let annotated =
            object_at(&namespace, "/metadata/annotations").and_then(|all| all.get(ANNOTATION)?.as_str());
        match annotated {
            Some(text) => parse(text).map_err(ApiStatus::internal),
            None => Ok(self.selectors.get(DEFAULT).cloned().unwrap_or_default()),
        }
    }
}

#[async_trait]
impl Admit for PodNodeSelector {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create && handles_pods(operation, resource, part)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let (wanted, own) = (self.of_namespace(admission)?, labels(admission.object));
        if wanted.iter().any(|(key, value)| own.get(key).is_some_and(|other| other != value)) {
            let why = "pod node label selector conflicts with its namespace node label selector";
            return Err(admission.forbidden(why));
        }
        if !wanted.is_empty()
            && let Some(selector) =
                child(admission.object, "spec").and_then(|spec| child(spec, "nodeSelector"))
        {
            for (key, value) in wanted {
                selector[key] = value.into();
            }
        }
        Ok(())
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let (wanted, own) = (self.of_namespace(admission)?, labels(admission.object));
        if wanted.iter().any(|(key, value)| own.get(key).is_some_and(|other| other != value)) {
            let why = "pod node label selector conflicts with its namespace node label selector";
            return Err(admission.forbidden(why));
        }
        // An empty whitelist allows all.
        let Some(allowed) = self.selectors.get(&admission.request.namespace).filter(|all| !all.is_empty())
        else {
            return Ok(());
        };
        if own.iter().all(|(key, value)| allowed.get(key) == Some(value)) {
            return Ok(());
        }
        Err(admission.forbidden("pod node label selector labels conflict with its namespace whitelist"))
    }
}
