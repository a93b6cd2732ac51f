//! The bodies of requests and answers: `k8s.io/kube-scheduler/extender/v1`.
//!
//! Upstream's types have no JSON names, so that the names of their fields are sent (`NodeNames`). Answers may
//! have them in any case (`nodenames`), because Go's decoder ignores it.

use std::{collections::BTreeMap, fmt};

use k8s_core::api::api::core::v1::{Node, Pod};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

/// `ExtenderArgs`: the body of filter and prioritize.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Args<'a> {
    pub(super) pod: &'a Pod,
    /// For extenders that know no nodes.
    pub(super) nodes: Option<NodeList<'a>>,
    /// For the others.
    pub(super) node_names: Option<Vec<&'a str>>,
}

/// A NodeList.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: BTreeMap<(), ()>,
    items: Vec<&'a Node>,
}

impl<'a> NodeList<'a> {
    pub(super) fn new(items: Vec<&'a Node>) -> Self {
        NodeList { kind: "NodeList", api_version: "v1", metadata: BTreeMap::new(), items }
    }
}

/// `ExtenderBindingArgs`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Binding<'a> {
    pub(super) pod_name: &'a str,
    pub(super) pod_namespace: &'a str,
    #[serde(rename = "PodUID")]
    pub(super) pod_uid: &'a str,
    pub(super) node: &'a str,
}

/// `ExtenderPreemptionArgs`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Preemption<'a> {
    pub(super) pod: &'a Pod,
    /// By node; for extenders that know no nodes.
    pub(super) node_name_to_victims: Option<BTreeMap<&'a str, Victims<&'a Pod>>>,
    /// By node; for the others.
    pub(super) node_name_to_meta_victims: Option<BTreeMap<&'a str, Victims<Uid>>>,
}

/// `Victims` and `MetaVictims` of a node.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Victims<P> {
    pub(super) pods: Vec<P>,
    #[serde(rename = "NumPDBViolations")]
    pub(super) violations: usize,
}

/// `MetaPod`.
#[derive(Serialize)]
pub(super) struct Uid {
    #[serde(rename = "UID")]
    pub(super) uid: String,
}

/// Defines a JSON object of an answer. Names are matched in any case; `null` is the default.
macro_rules! answer {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $text:literal: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(super) struct $name {
            $(pub(super) $field: $kind,)*
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;

                impl<'de> Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut all = $name::default();
                        while let Some(key) = map.next_key::<String>()? {
                            $(if key.eq_ignore_ascii_case($text) {
                                let value = map.next_value::<Option<$kind>>();
                                let value = value.map_err(|e| A::Error::custom(format!("{}: {e}", $text)))?;
                                all.$field = value.unwrap_or_default();
                                continue;
                            })*
                            map.next_value::<IgnoredAny>()?;
                        }
                        Ok(all)
                    }
                }

                deserializer.deserialize_map(Fields)
            }
        }
    };
}

answer! {
    /// `ExtenderFilterResult`. Of the nodes only the names are kept.
    FilterResult {
        nodes = "Nodes": Option<Nodes>,
        node_names = "NodeNames": Option<Vec<String>>,
        failed = "FailedNodes": BTreeMap<String, Option<String>>,
        unresolvable = "FailedAndUnresolvableNodes": BTreeMap<String, Option<String>>,
        error = "Error": String,
    }
}

answer! { Nodes { items = "items": Vec<Item>, } }
answer! { Item { metadata = "metadata": Metadata, } }
answer! { Metadata { name = "name": String, } }

impl Nodes {
    pub(super) fn names(self) -> Vec<String> {
        self.items.into_iter().map(|item| item.metadata.name).collect()
    }
}

answer! {
    /// `HostPriority`.
    Priority {
        host = "Host": String,
        score = "Score": i64,
    }
}

answer! {
    /// `ExtenderBindingResult`.
    BindingResult { error = "Error": String, }
}

answer! {
    /// `ExtenderPreemptionResult`.
    PreemptionResult { nodes = "NodeNameToMetaVictims": BTreeMap<String, Option<MetaVictims>>, }
}

answer! {
    MetaVictims {
        pods = "Pods": Vec<Option<MetaPod>>,
        violations = "NumPDBViolations": i64,
    }
}

answer! { MetaPod { uid = "UID": String, } }
