//! Selectors by what a pod must have, so that a pod is compared with few of them.

use std::collections::{BTreeMap, HashMap};

use k8s_core::meta::{LabelSelector, selector::Operator};

/// Numbers of selectors by namespace and by one label that they require.
#[derive(Default)]
pub(super) struct Lookup {
    by_namespace: HashMap<String, Labels>,
    everywhere: Labels,
}

#[derive(Default)]
struct Labels {
    required: HashMap<String, HashMap<String, Vec<usize>>>,
    rest: Vec<usize>,
}

/// Returns a label that every selected pod has.
fn required(selector: &LabelSelector) -> Option<(&str, &str)> {
    selector.requirements.iter().find_map(|requirement| match &requirement.operator {
        Operator::In(values) => match &values[..] {
            [value] => Some((requirement.key.as_str(), value.as_str())),
            _ => None,
        },
        _ => None,
    })
}

impl Labels {
    fn insert(&mut self, selector: &LabelSelector, number: usize) {
        let list = match required(selector) {
            Some((key, value)) => {
                self.required.entry(key.to_owned()).or_default().entry(value.to_owned()).or_default()
            }
            None => &mut self.rest,
        };
        list.push(number);
    }

    fn remove(&mut self, selector: &LabelSelector, number: usize) {
        let Some((key, value)) = required(selector) else {
            return self.rest.retain(|other| *other != number);
        };
        let Some(values) = self.required.get_mut(key) else { return };
        if let Some(list) = values.get_mut(value) {
            list.retain(|other| *other != number);
            if list.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.required.remove(key);
        }
    }

    fn is_empty(&self) -> bool {
        self.required.is_empty() && self.rest.is_empty()
    }

    fn collect(&self, labels: Option<&BTreeMap<String, String>>, into: &mut Vec<usize>) {
        into.extend(&self.rest);
        if self.required.is_empty() {
            return;
        }
        for (key, value) in labels.into_iter().flatten() {
            into.extend(self.required.get(key).and_then(|values| values.get(value)).into_iter().flatten());
        }
    }
}

impl Lookup {
    /// Adds a selector for pods of these namespaces; `None`: of all.
    pub(super) fn insert(&mut self, namespaces: Option<&[String]>, selector: &LabelSelector, number: usize) {
        let Some(namespaces) = namespaces else { return self.everywhere.insert(selector, number) };
        for namespace in namespaces {
            self.by_namespace.entry(namespace.clone()).or_default().insert(selector, number);
        }
    }

    /// Removes a selector as it was added.
    pub(super) fn remove(&mut self, namespaces: Option<&[String]>, selector: &LabelSelector, number: usize) {
        let Some(namespaces) = namespaces else { return self.everywhere.remove(selector, number) };
        for namespace in namespaces {
            if let Some(labels) = self.by_namespace.get_mut(namespace) {
                labels.remove(selector, number);
                if labels.is_empty() {
                    self.by_namespace.remove(namespace);
                }
            }
        }
    }

    /// Returns the selectors that may select a pod, each once.
    pub(super) fn of(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> Vec<usize> {
        let mut found = Vec::new();
        self.everywhere.collect(labels, &mut found);
        if let Some(own) = self.by_namespace.get(namespace) {
            own.collect(labels, &mut found);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_meets_the_selectors_that_may_select_it_and_nothing_stays() {
        let mut lookup = Lookup::default();
        let namespaces = ["a".to_owned(), "b".to_owned()];
        let all: Vec<(Option<&[String]>, LabelSelector)> = [
            (Some(&namespaces[..]), "app=x"),
            (Some(&namespaces[..1]), "tier in (1,2)"),
            (None, "app=x,tier=1"),
            (Some(&namespaces[..]), "tier=1"),
        ]
        .map(|(namespaces, selector)| (namespaces, selector.parse().unwrap()))
        .into();
        for (number, (namespaces, selector)) in all.iter().enumerate() {
            lookup.insert(*namespaces, selector, number);
        }
        let labels = [("app".to_owned(), "x".to_owned())].into();
        let of = |lookup: &Lookup, namespace: &str| {
            let mut found = lookup.of(namespace, Some(&labels));
            found.sort_unstable();
            found
        };
        assert_eq!(
            (of(&lookup, "a"), of(&lookup, "b"), of(&lookup, "c")),
            (vec![0, 1, 2], vec![0, 2], vec![2])
        );
        for (number, (namespaces, selector)) in all.iter().enumerate() {
            lookup.remove(*namespaces, selector, number);
        }
        assert!(lookup.by_namespace.is_empty() && lookup.everywhere.is_empty());
    }
}
