//! Patches and schemas.

use std::sync::LazyLock;

use k8s_core::api::api::core::v1::Pod;
use k8s_schema as schema;
use k8s_schema::Schema;
use k8s_schema::patch::{self, managed};
use serde_json::Value;

use crate::Target;

/// Splits the input into two JSON values at the first line end.
fn two(data: &[u8]) -> Option<(Value, Value)> {
    let at = data.iter().position(|b| *b == b'\n')?;
    let parse = |bytes: &[u8]| k8s_apiserver::decode::json(bytes).ok().map(|(value, _)| value);
    Some((parse(&data[..at])?, parse(&data[at + 1..])?))
}

/// The schema of a Pod: it has lists of every merge strategy.
static POD: LazyLock<Schema> =
    LazyLock::new(|| schema::builtin(&[schema::generate::<Pod>]).pop().unwrap_or_else(Schema::anything));

pub(crate) const JSON_PATCH: Target = Target {
    name: "json_patch",
    seeds: &[b"{\"a\":[1,{\"b\":2}]}\n[{\"op\":\"replace\",\"path\":\"/a/1/b\",\"value\":3},{\"op\":\"move\",\"from\":\"/a/0\",\"path\":\"/c\"},{\"op\":\"test\",\"path\":\"/c\",\"value\":1}]"],
    run: |data| {
        let Some((before, changes)) = two(data) else { return };
        let mut after = before.clone();
        if patch::json(&mut after, &changes).is_err() {
            assert_eq!(after, before, "a patch that fails changes nothing");
        }
    },
};

pub(crate) const MERGE_PATCH: Target = Target {
    name: "merge_patch",
    seeds: &[b"{\"a\":{\"b\":1,\"c\":2}}\n{\"a\":{\"b\":null,\"d\":[3]}}"],
    run: |data| {
        let Some((mut once, changes)) = two(data) else { return };
        patch::merge(&mut once, &changes);
        let mut twice = once.clone();
        patch::merge(&mut twice, &changes);
        assert_eq!(twice, once, "a merge patch applied again changes nothing");
    },
};

const PODS: &[&[u8]] = &[
    b"{\"metadata\":{\"name\":\"p\",\"finalizers\":[\"a\",\"b\"]},\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"i\",\"ports\":[{\"containerPort\":80,\"protocol\":\"TCP\"}]}]}}\n{\"metadata\":{\"$deleteFromPrimitiveList/finalizers\":[\"a\"]},\"spec\":{\"$setElementOrder/containers\":[{\"name\":\"d\"},{\"name\":\"c\"}],\"containers\":[{\"name\":\"d\",\"image\":\"j\"},{\"name\":\"c\",\"$patch\":\"delete\"}]}}",
    b"{\"spec\":{\"tolerations\":[{\"key\":\"a\"}],\"volumes\":[{\"name\":\"v\",\"emptyDir\":{}}]}}\n{\"spec\":{\"volumes\":[{\"name\":\"v\",\"$retainKeys\":[\"name\",\"hostPath\"],\"hostPath\":{\"path\":\"/\"}}],\"tolerations\":[{\"key\":\"b\"},{\"$patch\":\"replace\"}]}}",
];

pub(crate) const STRATEGIC_MERGE: Target = Target {
    name: "strategic_merge_patch",
    seeds: PODS,
    run: |data| {
        if let Some((mut target, changes)) = two(data) {
            let _ = patch::strategic(&mut target, &changes, &POD);
        }
    },
};

pub(crate) const APPLY: Target = Target {
    name: "server_side_apply",
    seeds: PODS,
    run: |data| {
        let Some((live, config)) = two(data) else { return };
        if !live.is_object() || !config.is_object() || managed::ambiguous(&config, &POD).is_some() {
            return;
        }
        let manager =
            managed::Manager { name: "fuzz".into(), api_version: "v1".into(), subresource: String::new() };
        let now = "2026-01-01T00:00:00Z";
        let _ = managed::apply(&live, &config, &POD, &manager, false, now);
        let Ok(once) = managed::apply(&live, &config, &POD, &manager, true, now) else { return };
        let twice = managed::apply(&once, &config, &POD, &manager, false, now);
        assert_eq!(twice.as_ref(), Ok(&once), "the same apply again changes nothing");
    },
};

pub(crate) const SCHEMA: Target = Target {
    name: "custom_schema",
    seeds: &[b"{\"type\":\"object\",\"properties\":{\"spec\":{\"type\":\"object\",\"required\":[\"a\"],\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":1,\"default\":2},\"l\":{\"type\":\"array\",\"x-kubernetes-list-type\":\"map\",\"x-kubernetes-list-map-keys\":[\"k\"],\"items\":{\"type\":\"object\",\"properties\":{\"k\":{\"type\":\"string\",\"pattern\":\"^a\"}}}}}}}}\n{\"spec\":{\"a\":\"x\",\"z\":1,\"l\":[{\"k\":\"b\"}]}}"],
    run: |data| {
        let Some((schema, mut value)) = two(data) else { return };
        let Ok(schema) = Schema::custom(&schema) else { return };
        let _ = schema.normalize(&mut value, true);
        schema.default(&mut value);
    },
};

pub(crate) const RULES: Target = Target {
    name: "custom_rules",
    seeds: &[
        b"{\"type\":\"object\",\"x-kubernetes-validations\":[{\"rule\":\"self.l.all(x, x > 0 && self.l.exists(y, y == x)) || has(self.a) && self.a.matches('^a+$')\"}],\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"^a\"},\"l\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}}}\n{\"a\":\"b\",\"l\":[1,2,3]}",
        b"{\"type\":\"object\",\"x-kubernetes-validations\":[{\"rule\":\"quantity(self.q).isGreaterThan(quantity('1Gi'))\",\"messageExpression\":\"'x' + self.q\"}],\"properties\":{\"q\":{\"type\":\"string\"}}}\n{\"q\":\"1Mi\"}",
    ],
    run: |data| {
        let Some((schema, value)) = two(data) else { return };
        let _ = k8s_apiserver::resources::custom::validate(&schema, &value, Some(&value));
    },
};
