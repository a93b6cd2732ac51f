//! Packs endpoints into EndpointSlices of a limited size with as few changes to existing slices as possible.
//! Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_core::{
    api::{
        api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    },
    client::DeleteOptions,
};

use super::trigger;
use k8s_controllers::{Context, Error};

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Ports and the endpoints that serve them.
pub(super) type Group = (Vec<EndpointPort>, Vec<Endpoint>);

/// Properties that all slices of an owner have in common.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) owner: OwnerReference,
    pub(super) labels: BTreeMap<String, String>,
    /// Annotations of the slices; `None` keeps the existing ones.
    pub(super) annotations: Option<BTreeMap<String, String>>,
    /// Maximum number of endpoints per slice.
    pub(super) largest: usize,
    /// Keep one empty slice if there are no endpoints.
    pub(super) keeps_empty: bool,
    /// Value of the trigger time annotation.
    pub(super) trigger: Option<String>,
}

/// Slices to create, update and delete.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

impl Plan {
    /// Plans the slices of one family: keeps wanted endpoints where they are, fills free places, and creates
    /// slices for the rest.
    pub(super) fn add(
        &mut self,
        template: &Template,
        family: &str,
        present: Vec<Arc<EndpointSlice>>,
        mut desired: Vec<Group>,
    ) {
        let placeholder = desired.is_empty() && template.keeps_empty;
        if placeholder {
            desired.push((Vec::new(), Vec::new()));
        }
        let mut by_ports: BTreeMap<String, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
        for slice in present {
            by_ports.entry(ports_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
        }
        for (ports, endpoints) in desired {
            let mut wanted: BTreeMap<String, Endpoint> =
                endpoints.into_iter().map(|e| (endpoint_key(&e), e)).collect();
            let kept = by_ports.remove(&ports_key(&ports)).unwrap_or_default();
            let mut next: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
            for slice in kept {
                let still = |e: &Endpoint| wanted.remove(&endpoint_key(e));
                let endpoints = slice.endpoints.iter().flatten().filter_map(still).collect();
                next.push((slice, endpoints));
            }
            let mut fresh = wanted.into_values();
            // Fill slices that change anyway first, then the fullest of the others.
            next.sort_by_key(|(slice, endpoints)| {
                let changed = slice.endpoints.as_ref().is_none_or(|e| e.len() != endpoints.len());
                (!changed, std::cmp::Reverse(endpoints.len()))
            });
            for (_, endpoints) in &mut next {
                let room = template.largest.saturating_sub(endpoints.len());
                endpoints.extend(fresh.by_ref().take(room));
            }
            let mut place_held = false;
            for (slice, endpoints) in next {
                if endpoints.is_empty() && (!placeholder || place_held) {
                    self.delete.push(slice);
                    continue;
                }
                place_held = true;
                let mut updated = template.fill(family, &ports, endpoints, Some(&slice));
                if !same(&updated, &slice) {
                    trigger::write(&mut updated.metadata, template.trigger.as_deref());
                    self.update.push(updated);
                }
            }
            while fresh.len() > 0 || (placeholder && !place_held) {
                place_held = true;
                let endpoints = fresh.by_ref().take(template.largest).collect();
                let mut made = template.fill(family, &ports, endpoints, None);
                trigger::write(&mut made.metadata, template.trigger.as_deref());
                self.create.push(made);
            }
        }
        self.delete.extend(by_ports.into_values().flatten());
    }

    /// Applies the plan.
    pub(super) async fn act(self, cx: &Context) -> Result<(), Error> {
        for slice in &self.create {
            cx.create(slice).await?;
        }
        for slice in &self.update {
            cx.replace(slice).await?;
        }
        for slice in &self.delete {
            cx.delete(&**slice, DeleteOptions::default()).await?;
        }
        Ok(())
    }
}

impl Template {
    fn fill(
        &self,
        family: &str,
        ports: &[EndpointPort],
        endpoints: Vec<Endpoint>,
        live: Option<&EndpointSlice>,
    ) -> EndpointSlice {
        let mut metadata = live.map(|l| l.metadata.clone()).unwrap_or_else(|| ObjectMeta {
            generate_name: Some(format!("{}-", self.name)),
            namespace: Some(self.namespace.clone()),
            owner_references: Some(vec![self.owner.clone()]),
            ..ObjectMeta::default()
        });
        metadata.labels = Some(self.labels.clone());
        if let Some(wanted) = &self.annotations {
            let mut next = wanted.clone();
            let noted = metadata.annotations.iter().flatten().find(|(key, _)| *key == trigger::ANNOTATION);
            next.extend(noted.map(|(key, time)| (key.clone(), time.clone())));
            metadata.annotations = Some(next).filter(|a| !a.is_empty());
        }
        EndpointSlice {
            metadata,
            address_type: family.to_owned(),
            endpoints: Some(endpoints),
            ports: Some(ports.to_vec()).filter(|p| !p.is_empty()),
        }
    }
}

fn ports_key(ports: &[EndpointPort]) -> String {
    let mut all: Vec<String> = ports
        .iter()
        .map(|p| {
            let name = p.name.as_deref().unwrap_or_default();
            format!("{name:?}/{:?}/{:?}/{:?}", p.protocol, p.port, p.app_protocol)
        })
        .collect();
    all.sort();
    all.join(",")
}

fn endpoint_key(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref()).unwrap_or_default();
    format!("{}/{uid}", endpoint.addresses.first().map_or("", String::as_str))
}

/// Returns true if two slices are equivalent, ignoring order and the form of empty fields.
fn same(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    let by_key = |s: &EndpointSlice| -> BTreeMap<String, Endpoint> {
        s.endpoints.iter().flatten().map(|e| (endpoint_key(e), e.clone())).collect()
    };
    let key = |s: &EndpointSlice| ports_key(s.ports.as_deref().unwrap_or_default());
    let annotations = |s: &EndpointSlice| s.metadata.annotations.clone().unwrap_or_default();
    a.metadata.labels == b.metadata.labels
        && annotations(a) == annotations(b)
        && key(a) == key(b)
        && by_key(a) == by_key(b)
}

#[cfg(test)]
mod tests {
    use k8s_core::meta::ObjectExt;
    use proptest::prelude::*;

    use super::*;

    const LARGEST: usize = 100;

    fn template() -> Template {
        Template {
            name: "web".into(),
            namespace: "n".into(),
            owner: OwnerReference::default(),
            labels: BTreeMap::new(),
            annotations: None,
            largest: LARGEST,
            keeps_empty: true,
            trigger: None,
        }
    }

    fn group(port: i32, ids: &[u16]) -> Group {
        let ports = vec![EndpointPort { port: Some(port), ..EndpointPort::default() }];
        let endpoint = |id: &u16| Endpoint {
            addresses: vec![format!("10.0.{}.{}", id >> 8, id & 255)],
            ..Endpoint::default()
        };
        (ports, ids.iter().map(endpoint).collect())
    }

    proptest! {
        /// After a plan the slices have exactly the wanted endpoints and keep the size limit; a second plan
        /// is empty.
        #[test]
        fn slices_hold_exactly_what_is_wanted(
            rounds in proptest::collection::vec((proptest::collection::btree_set(0u16..400, 0..300), proptest::collection::btree_set(400u16..500, 0..20)), 1..6),
        ) {
            let template = template();
            let mut live: Vec<Arc<EndpointSlice>> = Vec::new();
            let mut next_name = 0;
            for (one, two) in rounds {
                let mut desired = Vec::new();
                if !one.is_empty() { desired.push(group(80, &one.iter().copied().collect::<Vec<_>>())); }
                if !two.is_empty() { desired.push(group(81, &two.iter().copied().collect::<Vec<_>>())); }
                for again in [false, true] {
                    let mut plan = Plan::default();
                    plan.add(&template, "IPv4", live.clone(), desired.clone());
                    if again {
                        prop_assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
                        continue;
                    }
                    let gone: Vec<String> = plan.delete.iter().map(|s| s.name().to_owned()).collect();
                    live.retain(|s| !gone.iter().any(|n| n == s.name()) && !plan.update.iter().any(|u| u.name() == s.name()));
                    live.extend(plan.update.into_iter().map(Arc::new));
                    for mut made in plan.create {
                        next_name += 1;
                        made.metadata.name = Some(format!("web-{next_name}"));
                        live.push(Arc::new(made));
                    }
                }
                let mut have: Vec<(String, String)> = live.iter()
                    .flat_map(|s| s.endpoints.iter().flatten().map(|e| (ports_key(s.ports.as_deref().unwrap_or_default()), endpoint_key(e)))).collect();
                have.sort();
                let mut want: Vec<(String, String)> = desired.iter()
                    .flat_map(|(p, e)| e.iter().map(|e| (ports_key(p), endpoint_key(e)))).collect();
                want.sort();
                prop_assert_eq!(have, want);
                prop_assert!(!live.is_empty());
                prop_assert!(live.iter().all(|s| s.endpoints.as_ref().is_none_or(|e| e.len() <= LARGEST)));
            }
        }
    }
}
