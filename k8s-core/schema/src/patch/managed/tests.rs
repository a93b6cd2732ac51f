//! Ownership after applies and updates.

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;

use super::*;
use crate::{builtin, generate};

fn schema() -> Schema {
    builtin(&[generate::<Pod>]).remove(0)
}

fn manager(name: &str) -> Manager {
    Manager { name: name.into(), api_version: "v1".into(), subresource: String::new() }
}

fn run(live: &Value, config: Value, who: &str, force: bool) -> Result<Value, Vec<Conflict>> {
    apply(live, &config, &schema(), &manager(who), force, "2026-01-01T00:00:00Z")
}

fn update(live: &Value, entries: Option<Value>, change: Option<(&str, &str)>, by: &Manager) -> Value {
    let mut new = live.clone();
    match entries {
        Some(entries) => new["metadata"]["managedFields"] = entries,
        None => drop(new["metadata"].as_object_mut().unwrap().remove("managedFields")),
    }
    if let Some((label, value)) = change {
        new["metadata"]["labels"][label] = value.into();
    }
    record_update(live, &mut new, &schema(), by, "2026-01-02T00:00:00Z");
    new["metadata"].get("managedFields").cloned().unwrap_or_default()
}

#[test]
fn entries_that_a_client_sends_replace_the_stored_ones() {
    let live = run(&nothing(), json!({"metadata": {"labels": {"a": "1", "b": "1"}}}), "m1", false).unwrap();
    let stored = live["metadata"]["managedFields"].clone();
    let by = manager("m2");
    assert_eq!(update(&live, None, None, &by), stored, "left out");
    assert_eq!(update(&live, Some(json!([])), None, &by), Value::Null, "reset");
    assert_eq!(update(&live, Some(json!([{}])), None, &by), Value::Null, "reset");
    let reset = update(&live, Some(json!([])), Some(("a", "2")), &by);
    assert_eq!(reset[0]["fieldsV1"], json!({"f:metadata": {"f:labels": {"f:a": {}}}}), "{reset}");
    assert_eq!(reset[1], Value::Null);
    let mut other = stored.clone();
    other[0]["manager"] = "m3".into();
    assert_eq!(update(&live, Some(other.clone()), None, &by), other);
    let both = update(&live, Some(other.clone()), Some(("a", "2")), &by);
    assert_eq!(both[0]["fieldsV1"], json!({"f:metadata": {"f:labels": {"f:b": {}}}}), "{both}");
    assert_eq!(both[1]["manager"], "m2");
    for (field, junk) in [
        ("operation", json!("Delete")),
        ("apiVersion", json!("")),
        ("fieldsType", json!("X")),
        ("fieldsV1", json!(5)),
    ] {
        let mut malformed = other.clone();
        malformed[0][field] = junk;
        assert_eq!(update(&live, Some(malformed), None, &by), stored, "malformed {field}");
    }
    let twice = json!([other[0], other[0]]);
    assert_eq!(update(&live, Some(twice), None, &by), other, "one entry for a manager");
    let status = Manager { subresource: "status".into(), ..by };
    assert_eq!(update(&live, Some(other), None, &status), stored, "subresources do not hand over fields");
}

#[test]
fn ownership() {
    let first =
        run(&nothing(), json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "1"}}}), "m1", false)
            .unwrap();
    let conflicts = run(&first, json!({"metadata": {"labels": {"a": "2"}}}), "m2", false).unwrap_err();
    assert_eq!(conflicts.len(), 1);
    assert_eq!((conflicts[0].manager.as_str(), conflicts[0].path.as_str()), ("m1", ".metadata.labels.a"));
    let second = run(&first, json!({"metadata": {"labels": {"a": "2"}}}), "m2", true).unwrap();
    assert_eq!(second["metadata"]["labels"], json!({"a": "2", "b": "1"}));
    // m1 no longer owns a, so omitting it removes only b.
    let third = run(&second, json!({"metadata": {"name": "p"}}), "m1", false).unwrap();
    assert_eq!(third["metadata"]["labels"], json!({"a": "2"}));
    // Applying the same value shares the field without conflict.
    run(&third, json!({"metadata": {"labels": {"a": "2"}}}), "m3", false).unwrap();
}

#[test]
fn keyed_lists_and_updates() {
    let live = run(
        &nothing(),
        json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}),
        "m1",
        false,
    )
    .unwrap();
    let mut updated = live.clone();
    updated["spec"]["containers"][0]["image"] = "2".into();
    record_update(&live, &mut updated, &schema(), &manager("kubectl-edit"), "2026-01-02T00:00:00Z");
    let conflicts = run(
        &updated,
        json!({"spec": {"containers": [{"name": "a", "image": "3"}, {"name": "b", "image": "1"}]}}),
        "m1",
        false,
    )
    .unwrap_err();
    assert_eq!(conflicts[0].path, ".spec.containers[name=\"a\"].image");
    let gone =
        run(&updated, json!({"spec": {"containers": [{"name": "b", "image": "1"}]}}), "m1", true).unwrap();
    // The element stays because kubectl-edit owns a field in it.
    assert_eq!(gone["spec"]["containers"].as_array().unwrap().len(), 2);
    let gone =
        run(&live, json!({"spec": {"containers": [{"name": "b", "image": "1"}]}}), "m1", false).unwrap();
    assert_eq!(gone["spec"]["containers"], json!([{"name": "b", "image": "1"}]));
}

fn config() -> impl Strategy<Value = Value> {
    let labels = proptest::collection::btree_map("[abc]", "[xy]", 0..3);
    let containers = proptest::collection::btree_map("[abc]", "[12]", 0..3);
    (labels, containers).prop_map(|(labels, containers)| {
        let containers: Vec<Value> =
            containers.into_iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
        json!({"metadata": {"labels": labels}, "spec": {"containers": containers}})
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_new_object_is_described_as_a_comparison_with_nothing_would(config in config(), bare: bool) {
        let mut new = config;
        let extra = if bare { json!({}) } else { json!({"tolerations": [{"key": "a"}], "nodeSelector": {}, "containers": [], "volumes": [{}],
            "imagePullSecrets": [{"name": "s"}], "securityContext": {"supplementalGroups": [1]}, "unheard": {"of": [1]}}) };
        new["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        new["metadata"]["name"] = "p".into();
        new["metadata"]["finalizers"] = json!(["f"]);
        new["kind"] = "Pod".into();
        new["empty"] = json!({});
        let schema = schema();
        let want = stripped(compare(&nothing(), &new, &schema).0).to_json();
        prop_assert_eq!(created(&new, &schema), want);
    }

    /// The optimized update equals one that decodes all entries.
    #[test]
    fn an_update_takes_what_it_changes_from_everybody_else(first in config(), second in config(), third in config()) {
        let schema = schema();
        let mut live = run(&nothing(), first, "applier", false).unwrap();
        for (config, who) in [(second, "a"), (third, "b")] {
            let mut new = config;
            new["metadata"]["name"] = "p".into();
            let (changed, removed) = compare(&live, &new, &schema);
            let (changed, removed) = (stripped(changed), stripped(removed));
            let want: Vec<Value> = entries_of(&live)
                .into_iter()
                .filter(|e| e.apply || e.manager != who)
                .map(|mut e| {
                    e.fields = e.fields.difference(&changed).difference(&removed);
                    e
                })
                .filter(|e| !e.fields.is_empty())
                .map(Entry::into_json)
                .collect();
            record_update(&live, &mut new, &schema, &manager(who), "2026-01-02T00:00:00Z");
            let entries = entries_of(&new);
            let others: Vec<Value> = entries.iter().filter(|e| e.apply || e.manager != who).cloned().map(Entry::into_json).collect();
            prop_assert_eq!(others, want);
            let own = entries.iter().find(|e| !e.apply && e.manager == who).map(|e| e.fields.clone()).unwrap_or_default();
            prop_assert_eq!(own, changed);
            live = new;
        }
    }

    #[test]
    fn applying_twice_is_applying_once_and_a_lone_manager_gets_what_it_says(first in config(), second in config()) {
        let once = run(&nothing(), first, "m", false).unwrap();
        let twice = run(&once, second.clone(), "m", false).unwrap();
        let again = run(&twice, second.clone(), "m", false).unwrap();
        prop_assert_eq!(&again, &twice);
        let labels = |v: &Value| v.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
        prop_assert_eq!(labels(&twice), labels(&second));
        let names = |v: &Value| v.pointer("/spec/containers").and_then(Value::as_array).cloned().unwrap_or_default();
        prop_assert_eq!(names(&twice), names(&second));
    }
}
