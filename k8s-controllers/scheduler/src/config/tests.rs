//! Configuration files: what they make of the plugins, and the refusals.

use serde_json::json;

use super::*;
use crate::{Cycle, NodeInfo, PodInfo, Score, ScoreExt};

struct Mine;

impl Score for Mine {
    fn score(&self, _: &Cycle<'_>, _: &PodInfo, _: &NodeInfo) -> i64 {
        1
    }
}

fn profiles(file: Value) -> Result<Vec<Profile>, String> {
    let file = Configuration::deserialize(file).map_err(|e| e.to_string())?;
    file.profiles(&[Mine.weight(5).points()], false).map_err(|e| e.to_string())
}

fn one(profile: Value) -> Profile {
    profiles(json!({"profiles": [profile]})).unwrap().remove(0)
}

fn scores(profile: &Profile) -> Vec<(&str, i64)> {
    profile.rows.iter().filter(|row| row.score.is_some()).map(|row| (row.name(), row.weight)).collect()
}

#[test]
fn without_a_file_plugins_and_weights_are_upstreams() {
    let all = profiles(json!({})).unwrap();
    assert_eq!((all.len(), all[0].name.as_str(), all[0].enough), (1, "default-scheduler", Enough::All));
    assert_eq!(
        scores(&all[0]),
        [
            ("TaintToleration", 3),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 1),
            ("PodTopologySpread", 2),
            ("InterPodAffinity", 2),
            ("NodeResourcesBalancedAllocation", 1),
            ("ImageLocality", 1),
            ("Mine", 5),
        ]
    );
}

#[test]
fn plugins_are_enabled_and_disabled_by_extension_point() {
    let packer = one(json!({
        "schedulerName": "packer",
        "percentageOfNodesToScore": 50,
        "plugins": {
            "multiPoint": {"disabled": [{"name": "VolumeZone"}], "enabled": [{"name": "ImageLocality", "weight": 9}]},
            "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 4}, {"name": "Mine"}]},
            "postFilter": {"disabled": [{"name": "DefaultPreemption"}]},
        },
        "pluginConfig": [{"name": "NodeResourcesFit", "args": {
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "NodeResourcesFitArgs",
            "scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 1}]},
        }}],
    }));
    assert_eq!((packer.name.as_str(), packer.enough), ("packer", Enough::Percentage(50)));
    assert_eq!(scores(&packer), [("NodeResourcesFit", 4), ("Mine", 5)]);
    assert!(packer.rows.iter().all(|row| row.name() != "VolumeZone"));
    let preempts = |row: &Points| row.name() == "DefaultPreemption" && row.post_filter.is_some();
    assert!(!packer.rows.iter().any(preempts));
    let only_filter = one(json!({"plugins": {
        "multiPoint": {"disabled": [{"name": "NodeResourcesFit"}]},
        "filter": {"enabled": [{"name": "NodeResourcesFit"}]},
    }}));
    let fit = only_filter.rows.iter().find(|row| row.name() == "NodeResourcesFit").unwrap();
    assert!(fit.filter.is_some() && fit.score.is_none() && fit.enqueue.is_some());
}

#[test]
fn each_field_is_checked_and_named() {
    for (file, wanted) in [
        (json!({"profile": []}), "unknown field `profile`"),
        (json!({"profiles": [{"pluginConfigs": []}]}), "unknown field `pluginConfigs`"),
        (json!({"profiles": [{"plugins": {"scores": {}}}]}), "unknown field `scores`"),
        (
            json!({"apiVersion": "kubescheduler.config.k8s.io/v1beta3"}),
            "apiVersion: \"kubescheduler.config.k8s.io/v1beta3\" is not",
        ),
        (json!({"percentageOfNodesToScore": 101}), "percentageOfNodesToScore: 101 is not in the range 0-100"),
        (json!({"podInitialBackoffSeconds": 0}), "podInitialBackoffSeconds: must be greater than 0"),
        (json!({"podInitialBackoffSeconds": 20}), "podMaxBackoffSeconds: must be greater than or equal"),
        (
            json!({"profiles": [{}, {}]}),
            "profiles[1].schedulerName: \"default-scheduler\" is the name of another profile",
        ),
        (json!({"profiles": [{"schedulerName": ""}]}), "profiles[0].schedulerName: must not be empty"),
        (
            json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "Nowhere"}]}}}]}),
            "profiles[0].plugins.score.enabled[0].name: no plugin \"Nowhere\"; there are SchedulingGates, ",
        ),
        (
            json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "NodeName"}]}}}]}),
            "profiles[0].plugins.score.enabled[0]: NodeName has no extension point score",
        ),
        (
            json!({"profiles": [{"plugins": {"bind": {"disabled": [{"name": "*"}]}}}]}),
            "profiles[0].plugins.bind: no plugin binds; enable DefaultBinder",
        ),
        (
            json!({"profiles": [{"plugins": {"queueSort": {"disabled": [{"name": "PrioritySort"}]}}}]}),
            "profiles[0].plugins.queueSort: exactly one plugin must be enabled",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "Mine", "args": {}}]}]}),
            "profiles[0].pluginConfig[0].name: no built-in plugin \"Mine\"",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "NodeName", "args": {}}]}]}),
            "profiles[0].pluginConfig[0].args: the plugin has no arguments",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 101}}]}]}),
            "profiles[0].pluginConfig[0].args: hardPodAffinityWeight: not in the range 0-100",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "NodeAffinity", "args": {"addAffinity": {}}}]}]}),
            "profiles[0].pluginConfig[0].args: unknown field `addAffinity`",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "RequestedToCapacityRatio"}}}]}]}),
            "args: scoringStrategy.requestedToCapacityRatio.shape: at least one point",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "PodTopologySpread", "args": {"defaultConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"}]}}]}]}),
            "args: defaultingType: when .defaultConstraints are specified, it must be \"List\"",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": "DefaultPreemption", "args": {"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0}}]}]}),
            "args: minCandidateNodesAbsolute: cannot be zero",
        ),
    ] {
        let refused = profiles(file.clone()).unwrap_err();
        assert!(refused.contains(wanted), "{file}: {refused}");
    }
}

fn extenders(extenders: Value) -> Result<Vec<(String, i64, bool)>, String> {
    let file = Configuration::deserialize(json!({"extenders": extenders})).map_err(|e| e.to_string())?;
    let all = file.extenders().map_err(|e| e.to_string())?;
    Ok(all.iter().map(|e| (e.name.clone(), e.weight, e.ignorable)).collect())
}

#[test]
fn extenders_are_as_in_upstreams_files() {
    let all = extenders(json!([
        {"urlPrefix": "http://a.example:8888/v1", "ignorable": true, "filterVerb": "filter"},
        {
            "urlPrefix": "https://b.example", "filterVerb": "api/filter", "preemptVerb": "p",
            "prioritizeVerb": "prioritize", "weight": 5, "bindVerb": "bind", "enableHTTPS": true,
            "tlsConfig": {"insecure": false, "serverName": "b"}, "httpTimeout": "1m30s",
            "nodeCacheCapable": true,
            "managedResources": [{"name": "example.com/licence", "ignoredByScheduler": true}],
        },
    ]));
    let want = [("https://b.example".to_owned(), 5, false), ("http://a.example:8888/v1".to_owned(), 0, true)];
    assert_eq!(all.unwrap(), want, "the ignorable one is last");
}

#[test]
fn extenders_that_cannot_be_used_are_refused_by_field() {
    let url = "http://a.example";
    let resource = |name: &str| json!([{"urlPrefix": url, "managedResources": [{"name": name}]}]);
    let at = |field: &str, value: Value| json!([{"urlPrefix": url, field: value}]);
    let tls = |tls: Value| json!([{"urlPrefix": "https://a.example", "tlsConfig": tls}]);
    let cases = [
        (at("prioritizeVerb", json!("p")), "extenders[0].weight: must have a positive weight applied to it"),
        (
            resource("cpu"),
            "extenders[0].managedResources[0].name: \"cpu\" is an invalid extended resource name",
        ),
        (resource("kubernetes.io/x"), "is an invalid extended resource name"),
        (resource("requests.example.com/x"), "is an invalid extended resource name"),
        (resource("example.com/-"), "is an invalid extended resource name"),
        (resource("Example.com/x"), "is an invalid extended resource name"),
        (resource(""), "is an invalid extended resource name"),
        (
            json!([
                {"urlPrefix": url, "managedResources": [{"name": "e.com/x"}]},
                {"urlPrefix": url, "managedResources": [{"name": "e.com/x"}]},
            ]),
            "extenders[1].managedResources[0].name: \"e.com/x\": duplicate extender managed resource name",
        ),
        (
            json!([{"urlPrefix": url, "bindVerb": "b"}, {"urlPrefix": url, "bindVerb": "b"}]),
            "extenders: found 2 extenders implementing bind, only one extender can implement bind",
        ),
        (json!([{"filterVerb": "f"}]), "extenders[0].urlPrefix: "),
        (json!([{"urlPrefix": "a.example"}]), "extenders[0].urlPrefix: "),
        (json!([{"urlPrefix": "ftp://a.example"}]), "extenders[0].urlPrefix: "),
        (json!([{"urlPrefix": "http://u:p@a.example"}]), "extenders[0].urlPrefix: must not have a user name"),
        (json!([{"urlPrefix": "http://a.example/?a=b"}]), "extenders[0].urlPrefix: must not have a query"),
        (at("filterVerb", json!("a b")), "extenders[0].filterVerb: "),
        (at("httpTimeout", json!("soon")), "extenders[0].httpTimeout: \"soon\" is not a duration"),
        (at("httpTimeout", json!("-1s")), "extenders[0].httpTimeout: \"-1s\" is negative"),
        (at("retries", json!(3)), "unknown field `retries`"),
        (tls(json!({})), "extenders[0].tlsConfig: set caData or caFile"),
        (tls(json!({"caData": "?"})), "extenders[0].tlsConfig.caData: not base64"),
        (tls(json!({"caFile": "/nowhere/ca"})), "extenders[0].tlsConfig.caFile: /nowhere/ca: "),
        (tls(json!({"caData": "YQ==", "insecure": true})), "extenders[0].tlsConfig.insecure: "),
        (tls(json!({"insecure": true, "certData": "YQ=="})), "extenders[0].tlsConfig: a client certificate"),
    ];
    for (file, want) in cases {
        let error = extenders(file.clone()).unwrap_err();
        assert!(error.contains(want), "{file}: {error}");
    }
    let builder = crate::Scheduler::builder();
    let file = json!({"extenders": [{"urlPrefix": url, "prioritizeVerb": "p"}]});
    assert!(builder.configured(Configuration::deserialize(file).unwrap()).is_err(), "when it is read");
}

#[test]
fn resources_that_only_an_extender_checks_are_ignored_by_the_fit() {
    let place = |ignored: bool| {
        let file = json!({"extenders": [{
            "urlPrefix": "http://a.example",
            "managedResources": [{"name": "e.com/x", "ignoredByScheduler": ignored}],
        }]});
        let profile = profiles(file).unwrap().remove(0);
        let fit =
            profile.rows.iter().find(|row| row.name() == "NodeResourcesFit").unwrap().filter.clone().unwrap();
        let pod =
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"e.com/x": "1"}}}]}});
        let node = json!({"status": {"allocatable": {"pods": "9"}}});
        let pod = PodInfo::new(std::sync::Arc::new(serde_json::from_value(pod).unwrap()));
        let node = NodeInfo::new(std::sync::Arc::new(serde_json::from_value(node).unwrap()));
        fit.filter(&Cycle::new(&crate::Cluster::default()), &pod, &node).is_ok()
    };
    assert!(place(true) && !place(false));
}
