//! The allocator against a naive model, and single features.

use proptest::prelude::*;
use serde_json::{Value, json};

use k8s_core::api::api::resource::v1::ResourceSlice;

use super::*;

fn node(name: &str) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": "a"}}})).unwrap()
}

fn slice(name: &str, spec: Value) -> Arc<ResourceSlice> {
    let mut full = json!({"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}});
    full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": name, "uid": name, "resourceVersion": "1"});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": full})).unwrap())
}

fn claim(devices: Value) -> Arc<ResourceClaim> {
    let metadata = json!({"name": "c", "namespace": "n"});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": {"devices": devices}})).unwrap())
}

fn request(name: &str, more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "any"});
    exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": name, "exactly": exactly})
}

fn class(name: &str) -> Option<Arc<DeviceClass>> {
    let config = json!([{"opaque": {"driver": "d", "parameters": {"a": 1}}}]);
    let class = json!({"metadata": {"name": name}, "spec": {"config": config}});
    (name == "any").then(|| Arc::new(serde_json::from_value(class).unwrap()))
}

type Answer = Result<Option<Vec<AllocationResult>>, String>;

fn allocate_on(
    node: &Node,
    slices: &[Arc<ResourceSlice>],
    used: &[&str],
    claims: &[Arc<ResourceClaim>],
) -> Answer {
    let in_use = used.iter().map(|name| ("d".to_owned(), "p".to_owned(), (*name).to_owned())).collect();
    let inventory = Inventory::new(slices.to_vec());
    allocate(node, &inventory, &class, &in_use, claims, &mut Selectors::default())
}

/// Returns the given devices as `REQUEST=DEVICE`, or why there are none.
fn say(answer: Answer) -> String {
    match answer {
        Err(why) => format!("error: {why}"),
        Ok(None) => "none".into(),
        Ok(Some(all)) => given(&all).iter().map(|(_, r, d)| format!("{r}={d}")).collect::<Vec<_>>().join(" "),
    }
}

fn given(all: &[AllocationResult]) -> Vec<(usize, String, String)> {
    let results = |one: &AllocationResult| one.devices.clone().and_then(|d| d.results).unwrap_or_default();
    let each = all.iter().enumerate().flat_map(|(at, one)| results(one).into_iter().map(move |r| (at, r)));
    each.map(|(at, result)| (at, result.request, result.device)).collect()
}

#[track_caller]
fn check(devices: Value, wanted: Value, want: &str) {
    let slices = [slice("s", json!({"nodeName": "n0", "devices": devices}))];
    assert_eq!(say(allocate_on(&node("n0"), &slices, &["used"], &[claim(wanted)])), want);
}

#[test]
fn requests_get_devices_that_they_select() {
    let kind = |name: &str, kind: &str| json!({"name": name, "attributes": {"kind": {"string": kind}}});
    let devices = json!([kind("used", "x"), kind("x0", "x"), kind("y0", "y"), kind("x1", "x")]);
    let with = |text: &str| json!([{"cel": {"expression": text}}]);
    let x = with("device.attributes['d'].kind == 'x'");
    check(devices.clone(), json!({"requests": [request("r", json!({"selectors": x}))]}), "r=x0");
    check(
        devices.clone(),
        json!({"requests": [request("r", json!({"selectors": x, "count": 2}))]}),
        "r=x0 r=x1",
    );
    check(devices.clone(), json!({"requests": [request("r", json!({"selectors": x, "count": 3}))]}), "none");
    // One is in use, so that not all can be given.
    let all = json!({"selectors": x, "allocationMode": "All"});
    check(devices.clone(), json!({"requests": [request("r", all)]}), "none");
    let y = json!({"selectors": with("device.attributes['d'].kind == 'y'"), "allocationMode": "All"});
    check(devices.clone(), json!({"requests": [request("r", y)]}), "r=y0");
    let admin = json!({"selectors": x, "allocationMode": "All", "adminAccess": true});
    check(devices.clone(), json!({"requests": [request("r", admin)]}), "r=used r=x0 r=x1");
    let unknown = with("'kind' in device.attributes['other']");
    check(devices.clone(), json!({"requests": [request("r", json!({"selectors": unknown}))]}), "none");
    let absent = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "none"}}]});
    check(devices.clone(), absent, "error: claim n/c, request r: device class none does not exist");
    let wrong = with("device.attributes['d'].kind == 1 && device.driver");
    let answer = say(allocate_on(
        &node("n0"),
        &[slice("s", json!({"nodeName": "n0", "devices": devices}))],
        &[],
        &[claim(json!({"requests": [request("r", json!({"selectors": wrong}))]}))],
    ));
    assert!(answer.starts_with("error: claim n/c, request r: selector #0: CEL compile error"), "{answer}");
}

#[test]
fn versions_and_capacities_compare() {
    let devices = json!([{"name": "a", "attributes": {"v": {"version": "1.2.0"}}, "capacity": {"mem": {"value": "1Gi"}}},
        {"name": "b", "attributes": {"v": {"version": "1.10.0"}}, "capacity": {"mem": {"value": "4Gi"}}}]);
    for text in [
        "device.attributes['d'].v.isGreaterThan(semver('1.9.0'))",
        "device.capacity['d'].mem.compareTo(quantity('2Gi')) >= 0",
    ] {
        let selectors = json!([{"cel": {"expression": text}}]);
        check(devices.clone(), json!({"requests": [request("r", json!({"selectors": selectors}))]}), "r=b");
    }
}

#[test]
fn alternatives_are_tried_in_order_and_constraints_hold() {
    let rack = |name: &str, rack: i64| json!({"name": name, "attributes": {"d/rack": {"int": rack}}});
    let devices = json!([rack("a0", 1), rack("b0", 2), rack("b1", 2), {"name": "z"}]);
    let same = json!([{"matchAttribute": "d/rack", "requests": ["r", "s"]}]);
    let two = json!([request("r", json!({})), request("s", json!({}))]);
    check(devices.clone(), json!({"requests": two, "constraints": same}), "r=b0 s=b1");
    let three = json!([request("r", json!({"count": 3}))]);
    let all = json!([{"matchAttribute": "d/rack"}]);
    check(devices.clone(), json!({"requests": three, "constraints": all}), "none");
    let first = json!([{"name": "r", "firstAvailable": [
        {"name": "many", "deviceClassName": "any", "count": 9}, {"name": "one", "deviceClassName": "any"}]}]);
    check(devices, json!({"requests": first}), "r/one=a0");
}

#[test]
fn taints_keep_off_all_that_do_not_tolerate_them() {
    let taint = |effect: &str| json!([{"key": "bad", "effect": effect}]);
    let one = |effect: &str| json!([{"name": "a", "taints": taint(effect)}]);
    let plain = json!({"requests": [request("r", json!({}))]});
    check(one("NoSchedule"), plain.clone(), "none");
    check(one("NoExecute"), plain.clone(), "none");
    check(one("None"), plain, "r=a");
    let tolerant = json!({"tolerations": [{"key": "bad", "operator": "Exists"}]});
    check(one("NoSchedule"), json!({"requests": [request("r", tolerant)]}), "r=a");
    let other = json!({"tolerations": [{"key": "worse", "operator": "Exists"}]});
    check(one("NoSchedule"), json!({"requests": [request("r", other)]}), "none");
}

#[test]
fn only_whole_and_newest_pools_of_the_node_count() {
    let devices = json!([{"name": "a"}]);
    let plain = [claim(json!({"requests": [request("r", json!({}))]}))];
    let all = [claim(json!({"requests": [request("r", json!({"allocationMode": "All"}))]}))];
    let one = |place: Value| {
        let mut spec = json!({"devices": devices});
        spec.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
        slice("s", spec)
    };
    let on = |node: &Node, place: Value| say(allocate_on(node, &[one(place)], &[], &plain));
    let expression = |value: &str| json!([{"key": "zone", "operator": "In", "values": [value]}]);
    let zone = |value: &str| json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": expression(value)}]}});
    let n0 = node("n0");
    assert_eq!(on(&n0, json!({"nodeName": "n0"})), "r=a");
    assert_eq!(on(&n0, json!({"nodeName": "n1"})), "none");
    assert_eq!(on(&n0, json!({"allNodes": true})), "r=a");
    assert_eq!(on(&n0, zone("a")), "r=a");
    assert_eq!(on(&n0, zone("b")), "none");
    let per_device = json!({"perDeviceNodeSelection": true, "devices": [{"name": "a", "nodeName": "n1"}, {"name": "b", "nodeName": "n0"}]});
    assert_eq!(on(&n0, per_device), "r=b");
    let selector =
        allocate_on(&n0, &[one(zone("a"))], &[], &plain).unwrap().unwrap()[0].node_selector.clone();
    assert_eq!(json!(selector), zone("a")["nodeSelector"]);
    let half = json!({"allNodes": true, "pool": {"name": "p", "generation": 1, "resourceSliceCount": 2}});
    assert_eq!(on(&n0, half.clone()), "none");
    let refused =
        "error: claim n/c, request r: asks for all devices, but resource pool d/p is currently being updated";
    assert_eq!(say(allocate_on(&n0, &[one(half)], &[], &all)), refused);
    // A node that writes into the pool of another one takes nothing from it, whatever the generation.
    for generation in [1, 2] {
        let pool = json!({"name": "p", "generation": generation, "resourceSliceCount": 1});
        let both = [one(json!({"nodeName": "n0"})), slice("t", json!({"nodeName": "n1", "pool": pool}))];
        assert_eq!(say(allocate_on(&n0, &both, &[], &plain)), "r=a");
        assert_eq!(say(allocate_on(&n0, &both, &[], &all)), "r=a");
    }
    // Of two slices one is replaced already, and the new one has nothing here.
    let old = json!({"nodeName": "n0", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 2}});
    let newer = json!({"nodeName": "n1", "pool": {"name": "p", "generation": 2, "resourceSliceCount": 1}});
    assert_eq!(say(allocate_on(&n0, &[one(old), slice("t", newer)], &[], &plain)), "none");
    let twice = json!({"allNodes": true, "devices": [{"name": "a"}, {"name": "a"}]});
    assert_eq!(on(&n0, twice), "error: invalid resource pools were encountered");
}

#[test]
fn configurations_of_classes_and_claims_come_with_the_devices() {
    let opaque = json!({"driver": "d", "parameters": {"b": 2}});
    let config = json!([{"requests": ["r"], "opaque": opaque}, {"requests": ["none"], "opaque": opaque}]);
    let wanted = json!({"requests": [request("r", json!({})), request("s", json!({}))], "config": config});
    let slices = [slice("s", json!({"allNodes": true, "devices": [{"name": "a"}, {"name": "b"}]}))];
    let found = allocate_on(&node("n0"), &slices, &[], &[claim(wanted)]).unwrap().unwrap();
    let config = found[0].devices.clone().unwrap().config.unwrap();
    let said: Vec<_> = config.into_iter().map(|c| (c.source, c.requests.unwrap())).collect();
    let text = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    assert_eq!(said, [("FromClass".to_owned(), text(&["r", "s"])), ("FromClaim".to_owned(), text(&["r"]))]);
    assert_eq!(found[0].node_selector, None);
}

#[test]
fn a_malformed_attribute_fails_only_what_reads_it() {
    let devices = json!([{"name": "a", "attributes": {"fw": {"version": "v1"}, "kind": {"string": "x"}}}]);
    let slices = [slice("s", json!({"allNodes": true, "devices": devices}))];
    let asked = |text: &str| {
        let selectors = json!({"selectors": [{"cel": {"expression": text}}]});
        say(allocate_on(&node("n0"), &slices, &[], &[claim(json!({"requests": [request("r", selectors)]}))]))
    };
    assert_eq!(asked("device.attributes['d'].kind == 'x'"), "r=a");
    assert!(asked("device.attributes['d'].fw.major() == 1").starts_with("error: claim n/c, request r"));
}

#[test]
fn a_request_that_no_device_fits_ends_the_search_at_once() {
    let devices: Vec<Value> = (0..16).map(|n| json!({"name": format!("d{n}")})).collect();
    let slices = [slice("s", json!({"allNodes": true, "devices": devices}))];
    let mut requests: Vec<Value> = (0..15).map(|n| request(&format!("r{n}"), json!({}))).collect();
    let none = json!({"selectors": [{"cel": {"expression": "device.driver == 'none'"}}]});
    requests.push(request("last", none));
    let answer = say(allocate_on(&node("n0"), &slices, &[], &[claim(json!({"requests": requests}))]));
    assert_eq!(answer, "none", "15! arrangements");
}

#[test]
fn a_search_without_end_ends() {
    let devices: Vec<Value> =
        (0..64).map(|n| json!({"name": format!("d{n}"), "attributes": {"d/a": {"int": n % 32}}})).collect();
    let slices = [slice("s", json!({"allNodes": true, "devices": devices}))];
    // Sixteen pairs find each other, but no seventeenth request finds three of a kind.
    let mut requests: Vec<Value> = (0..14).map(|n| request(&format!("r{n}"), json!({"count": 2}))).collect();
    requests.push(request("last", json!({"count": 3})));
    let mut constraints: Vec<Value> =
        (0..14).map(|n| json!({"matchAttribute": "d/a", "requests": [format!("r{n}")]})).collect();
    constraints.push(json!({"matchAttribute": "d/a", "requests": ["last"]}));
    let wanted = [claim(json!({"requests": requests, "constraints": constraints}))];
    let answer = say(allocate_on(&node("n0"), &slices, &[], &wanted));
    assert_eq!(answer, "error: node n0: timed out trying to allocate devices");
    let deep: Vec<_> =
        (0..40).map(|_| claim(json!({"requests": [request("r", json!({"count": 32}))]}))).collect();
    let answer = say(allocate_on(&node("n0"), &slices, &[], &deep));
    assert!(answer.contains("exceeds the limit of 1024"), "{answer}");
    // A costly selector is stopped, and the rest of the budget with it.
    let list = "[1,2,3,4,5,6,7,8,9,10]";
    let text = format!(
        "{list}.all(a, {list}.all(b, {list}.all(c, {list}.all(d, {list}.all(e, {list}.all(f, a+b+c+d+e+f > 0))))))"
    );
    let costly = json!({"selectors": [{"cel": {"expression": text}}]});
    let answer =
        say(allocate_on(&node("n0"), &slices, &[], &[claim(json!({"requests": [request("r", costly)]}))]));
    assert!(answer.starts_with("error: claim n/c, request r: selector #0: CEL runtime error"), "{answer}");
}

/// A request of the model: number of devices, kinds that it accepts, and whether they must be of one rack.
type Ask = (usize, Option<i64>, bool);

/// Tries every assignment of devices to the requests in turn.
fn naive(free: &[(i64, i64)], asks: &[Ask]) -> bool {
    let Some(((count, kind, same), rest)) = asks.split_first() else { return true };
    let subsets = (0u32..1 << free.len()).filter(|set| set.count_ones() as usize == *count);
    subsets.into_iter().any(|set| {
        let taken = |at: &usize| set & (1 << at) != 0;
        let chosen: Vec<(i64, i64)> = (0..free.len()).filter(taken).map(|at| free[at]).collect();
        let left: Vec<(i64, i64)> = (0..free.len()).filter(|at| !taken(at)).map(|at| free[at]).collect();
        chosen.iter().all(|(k, _)| kind.is_none_or(|kind| kind == *k))
            && (!same || chosen.windows(2).all(|pair| pair[0].1 == pair[1].1))
            && naive(&left, rest)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_choice_is_found_if_there_is_one_and_gives_no_device_twice(
        devices in prop::collection::vec((0i64..3, 0i64..3, any::<bool>()), 0..8),
        claims in prop::collection::vec(
            prop::collection::vec((1usize..4, prop::option::of(0i64..3), any::<bool>()), 1..3), 1..3),
    ) {
        let name = |at: usize| format!("d{at}");
        let listed: Vec<Value> = devices.iter().enumerate().map(|(at, (kind, rack, _))| {
            json!({"name": name(at), "attributes": {"kind": {"int": kind}, "d/rack": {"int": rack}}})
        }).collect();
        let slices = [slice("s", json!({"allNodes": true, "devices": listed}))];
        let used: Vec<String> = (0..devices.len()).filter(|at| devices[*at].2).map(name).collect();
        let used: Vec<&str> = used.iter().map(String::as_str).collect();
        let asked: Vec<Arc<ResourceClaim>> = claims.iter().map(|asks: &Vec<Ask>| {
            let requests: Vec<Value> = asks.iter().enumerate().map(|(r, (count, kind, _))| {
                let text = kind.map(|kind| format!("device.attributes['d'].kind == {kind}"));
                let selectors: Vec<Value> = text.map(|t| json!({"cel": {"expression": t}})).into_iter().collect();
                request(&format!("r{r}"), json!({"count": count, "selectors": selectors}))
            }).collect();
            let constraints: Vec<Value> = (0..asks.len()).filter(|r| asks[*r].2)
                .map(|r| json!({"matchAttribute": "d/rack", "requests": [format!("r{r}")]})).collect();
            claim(json!({"requests": requests, "constraints": constraints}))
        }).collect();
        let free: Vec<(i64, i64)> = devices.iter().filter(|d| !d.2).map(|d| (d.0, d.1)).collect();
        let all: Vec<Ask> = claims.iter().flatten().copied().collect();
        let found = allocate_on(&node("n0"), &slices, &used, &asked).unwrap();
        prop_assert_eq!(found.is_some(), naive(&free, &all));
        let given = given(&found.unwrap_or_default());
        let mut names: Vec<&str> = given.iter().map(|(_, _, device)| device.as_str()).collect();
        prop_assert!(names.iter().all(|name| !used.contains(name)));
        let total = names.len();
        names.sort_unstable();
        names.dedup();
        prop_assert_eq!(names.len(), total, "a device was given twice");
        if total > 0 {
            prop_assert_eq!(total, all.iter().map(|(count, ..)| count).sum::<usize>());
        }
    }
}

/// The depth of the search is the number of devices: it must fit the stack of a runtime's thread.
#[test]
fn the_deepest_search_fits_the_stack() {
    let slices: Vec<_> = (0..MOST_DEVICES / 128)
        .map(|at| {
            let devices: Vec<Value> = (0..128).map(|n| json!({"name": format!("d-{at}-{n}")})).collect();
            let pool = json!({"name": format!("p{at}"), "generation": 1, "resourceSliceCount": 1});
            slice(&format!("s{at}"), json!({"allNodes": true, "pool": pool, "devices": devices}))
        })
        .collect();
    let wanted = claim(json!({"requests": [request("a", json!({"count": MOST_RESULTS}))]}));
    let claims = vec![wanted; MOST_DEVICES / MOST_RESULTS];
    let answer = allocate_on(&node("n"), &slices, &[], &claims);
    assert_eq!(answer.map(|all| all.map(|all| given(&all).len())), Ok(Some(MOST_DEVICES)));
}
