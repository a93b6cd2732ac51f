//! Table of all controls: a pod that breaks each, the message, and a pod at the edge that does not.

use k8s_schema::patch;
use serde_json::{Value, json};

use super::{
    controls::{CONTROLS, Control, NEWEST, broken, details, evaluate, reasons},
    pod::Pod,
    policy::{Level, LevelVersion, Policy, Version, WrongLabel},
};

/// A pod that level restricted allows in every version.
fn good() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container("a"), container("b")],
    }})
}

fn container(name: &str) -> Value {
    json!({"name": name, "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}})
}

/// The good pod with a merge patch; `each` is merged into container `b`, and into an init container `i`
/// that is added for it.
fn with(of_pod: &Value, each: &Value) -> Value {
    let mut pod = good();
    if !of_pod.is_null() {
        patch::merge(&mut pod, of_pod);
    }
    if !each.is_null() {
        let mut init = container("i");
        patch::merge(&mut init, each);
        pod["spec"]["initContainers"] = json!([init]);
        patch::merge(&mut pod["spec"]["containers"][1], each);
    }
    pod
}

struct Row {
    control: &'static str,
    /// Merged into the pod, and into two of its containers.
    bad: (Value, Value),
    message: &'static str,
    fine: (Value, Value),
}

fn context(of: Value) -> Value {
    json!({"securityContext": of})
}

fn rows() -> Vec<Row> {
    let row = |control, bad, message, fine| Row { control, bad, message, fine };
    let spec = |spec: Value| json!({"spec": spec});
    let none = Value::Null;
    vec![
        row(
            "appArmorProfile",
            (
                json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}},
                    "spec": context(json!({"appArmorProfile": {"type": "Unconfined"}}))}),
                context(json!({"appArmorProfile": {"type": "Odd"}})),
            ),
            r#"forbidden AppArmor profiles (pod and containers "i", "b" and annotation must not set AppArmor profile type to "Odd", "Unconfined", "container.apparmor.security.beta.kubernetes.io/a="unconfined"")"#,
            (
                json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "localhost/x"}}}),
                context(json!({"appArmorProfile": {"type": "Localhost"}})),
            ),
        ),
        row(
            "capabilities_baseline",
            (none.clone(), context(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN", "NET_RAW"]}}))),
            r#"non-default capabilities (containers "i", "b" must not include "NET_RAW", "SYS_ADMIN" in securityContext.capabilities.add)"#,
            (none.clone(), context(json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}}))),
        ),
        row(
            "hostNamespaces",
            (spec(json!({"hostNetwork": true, "hostPID": true, "hostIPC": true})), none.clone()),
            "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)",
            (spec(json!({"hostNetwork": false})), none.clone()),
        ),
        row(
            "hostPathVolumes",
            (spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})), none.clone()),
            r#"hostPath volumes (volume "v")"#,
            (spec(json!({"volumes": [{"name": "v", "emptyDir": {}}]})), none.clone()),
        ),
        row(
            "hostPorts",
            (
                none.clone(),
                json!({"ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 1, "hostPort": 9}]}),
            ),
            r#"hostPort (containers "i", "b" use hostPorts 80, 9)"#,
            (none.clone(), json!({"ports": [{"containerPort": 80, "hostPort": 0}]})),
        ),
        row(
            "hostProbesAndHostLifecycle",
            (
                none.clone(),
                json!({"livenessProbe": {"httpGet": {"host": "10.0.0.1"}}, "lifecycle": {"preStop": {"tcpSocket": {"host": "x"}}}}),
            ),
            r#"probe or lifecycle host (containers "b", "i" use probe or lifecycle hosts "10.0.0.1", "x")"#,
            (none.clone(), json!({"startupProbe": {"tcpSocket": {"host": ""}}})),
        ),
        row(
            "privileged",
            (none.clone(), context(json!({"privileged": true}))),
            r#"privileged (containers "i", "b" must not set securityContext.privileged=true)"#,
            (none.clone(), context(json!({"privileged": false}))),
        ),
        row(
            "procMount",
            (none.clone(), context(json!({"procMount": "Unmasked"}))),
            r#"procMount (containers "i", "b" must not set securityContext.procMount to "Unmasked")"#,
            (none.clone(), context(json!({"procMount": "Default"}))),
        ),
        row(
            "seLinuxOptions",
            (
                spec(context(json!({"seLinuxOptions": {"user": "u"}}))),
                context(json!({"seLinuxOptions": {"type": "odd_t", "role": "r"}})),
            ),
            r#"seLinuxOptions (pod and containers "i", "b" set forbidden securityContext.seLinuxOptions: type "odd_t"; user may not be set; role may not be set)"#,
            (none.clone(), context(json!({"seLinuxOptions": {"type": "container_init_t", "level": "s0"}}))),
        ),
        row(
            "seccompProfile_baseline",
            (
                json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}},
                    "spec": context(json!({"seccompProfile": {"type": "Unconfined"}}))}),
                none.clone(),
            ),
            r#"seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")"#,
            (
                json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "docker/default"}}}),
                context(json!({"seccompProfile": {"type": "Localhost"}})),
            ),
        ),
        row(
            "sysctls",
            (
                spec(context(
                    json!({"sysctls": [{"name": "kernel.sem"}, {"name": "net.ipv4.tcp_syncookies"}]}),
                )),
                none.clone(),
            ),
            "forbidden sysctls (kernel.sem)",
            (spec(context(json!({"sysctls": [{"name": "kernel.shm_rmid_forced"}]}))), none.clone()),
        ),
        row(
            "windowsHostProcess",
            (
                spec(context(json!({"windowsOptions": {"hostProcess": true}}))),
                context(json!({"windowsOptions": {"hostProcess": true}})),
            ),
            r#"hostProcess (pod and containers "i", "b" must not set securityContext.windowsOptions.hostProcess=true)"#,
            (none.clone(), context(json!({"windowsOptions": {"hostProcess": false}}))),
        ),
        row(
            "allowPrivilegeEscalation",
            (none.clone(), context(json!({"allowPrivilegeEscalation": null}))),
            r#"allowPrivilegeEscalation != false (containers "i", "b" must set securityContext.allowPrivilegeEscalation=false)"#,
            (none.clone(), none.clone()),
        ),
        row(
            "capabilities_restricted",
            (none.clone(), context(json!({"capabilities": {"drop": ["CHOWN"], "add": ["KILL"]}}))),
            r#"unrestricted capabilities (containers "i", "b" must set securityContext.capabilities.drop=["ALL"]; containers "i", "b" must not include "KILL" in securityContext.capabilities.add)"#,
            (none.clone(), context(json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}}))),
        ),
        row(
            "procMount_restricted",
            (spec(json!({"hostUsers": false})), context(json!({"procMount": "Unmasked"}))),
            r#"procMount (containers "i", "b" must not set securityContext.procMount to "Unmasked")"#,
            (none.clone(), context(json!({"procMount": "Default"}))),
        ),
        row(
            "restrictedVolumes",
            (
                spec(
                    json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "nfs": {}}, {"name": "x"}]}),
                ),
                none.clone(),
            ),
            r#"restricted volume types (volumes "v", "w", "x" use restricted volume types "hostPath", "nfs", "unknown")"#,
            (
                spec(
                    json!({"volumes": [{"name": "v", "secret": {}}, {"name": "w", "image": {}}, {"name": "x", "csi": {}}]}),
                ),
                none.clone(),
            ),
        ),
        row(
            "runAsNonRoot",
            (spec(context(json!({"runAsNonRoot": null}))), none.clone()),
            r#"runAsNonRoot != true (pod or containers "a", "b" must set securityContext.runAsNonRoot=true)"#,
            (none.clone(), context(json!({"runAsNonRoot": true}))),
        ),
        row(
            "runAsUser",
            (spec(context(json!({"runAsUser": 0}))), context(json!({"runAsUser": 0}))),
            r#"runAsUser=0 (pod and containers "i", "b" must not set runAsUser=0)"#,
            (spec(context(json!({"runAsUser": 1}))), none.clone()),
        ),
        row(
            "seccompProfile_restricted",
            (spec(context(json!({"seccompProfile": null}))), none.clone()),
            r#"seccompProfile (pod or containers "a", "b" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
            (spec(context(json!({"seccompProfile": {"type": "Localhost"}}))), none.clone()),
        ),
    ]
}

fn at(level: Level, minor: u32) -> LevelVersion {
    LevelVersion { level, version: Version::Minor(minor) }
}

const LEVELS: [Level; 2] = [Level::Baseline, Level::Restricted];

fn has(control: &Control, level: Level, minor: u32) -> bool {
    match level {
        Level::Privileged => false,
        Level::Baseline => control.baseline.contains(&minor),
        Level::Restricted => control.restricted.contains(&minor),
    }
}

#[test]
fn every_control_has_a_row() {
    let rows: Vec<&str> = rows().iter().map(|row| row.control).collect();
    let controls: Vec<&str> = CONTROLS.iter().map(|control| control.name).collect();
    assert_eq!(rows, controls);
}

#[test]
fn each_control_is_broken_in_its_levels_and_versions_only() {
    for row in rows() {
        let control = CONTROLS.iter().find(|control| control.name == row.control).unwrap();
        let pod = with(&row.bad.0, &row.bad.1);
        let pod = Pod::of(&pod).unwrap();
        let mut refused = 0;
        for level in LEVELS {
            for minor in 0..=NEWEST + 1 {
                let found = broken(at(level, minor), &pod).find(|(broken, _)| broken.name == row.control);
                assert_eq!(
                    found.is_some(),
                    has(control, level, minor.min(NEWEST)),
                    "{} {level} {minor}",
                    row.control
                );
                // Annotations of seccomp have another message.
                if let Some((_, violation)) =
                    found.filter(|_| row.control != "seccompProfile_baseline" || minor >= 19)
                {
                    assert_eq!(details(&[violation]), row.message, "{level} {minor}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{}", row.control);
        assert!(
            evaluate(LevelVersion { level: Level::Privileged, version: Version::Latest }, &pod).is_empty()
        );
    }
}

#[test]
fn pods_at_the_edge_are_allowed() {
    for row in rows() {
        let pod = with(&row.fine.0, &row.fine.1);
        for minor in 0..=NEWEST + 1 {
            for level in LEVELS {
                let found = evaluate(at(level, minor), &Pod::of(&pod).unwrap());
                assert!(found.is_empty(), "{} {level} {minor}: {found:?}", row.control);
            }
        }
    }
}

fn check(pod: &Value, level: Level, minor: u32, want: &str) {
    let found = evaluate(at(level, minor), &Pod::of(pod).unwrap());
    assert_eq!(details(&found), want, "{level} {minor}");
}

#[test]
fn versions_change_the_rules_of_a_control() {
    let sysctl =
        |name: &str| with(&json!({"spec": context(json!({"sysctls": [{"name": name}]}))}), &Value::Null);
    for (name, since) in [
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_wmem", 32),
    ] {
        check(&sysctl(name), Level::Baseline, since, "");
        check(&sysctl(name), Level::Restricted, since - 1, &format!("forbidden sysctls ({name})"));
    }
    let engine = json!({"spec": context(json!({"seLinuxOptions": {"type": "container_engine_t"}}))});
    let engine = with(&engine, &Value::Null);
    check(&engine, Level::Baseline, 31, "");
    check(
        &engine,
        Level::Baseline,
        30,
        r#"seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type "container_engine_t")"#,
    );
    let user_namespace =
        json!({"spec": {"hostUsers": false, "securityContext": {"runAsNonRoot": null, "runAsUser": 0}}});
    let user_namespace = with(&user_namespace, &Value::Null);
    check(&user_namespace, Level::Restricted, 35, "");
    check(
        &user_namespace,
        Level::Restricted,
        34,
        r#"runAsNonRoot != true (pod or containers "a", "b" must set securityContext.runAsNonRoot=true), runAsUser=0 (pod must not set runAsUser=0)"#,
    );
    let unmasked = with(&json!({"spec": {"hostUsers": false}}), &context(json!({"procMount": "Unmasked"})));
    check(&unmasked, Level::Baseline, 35, "");
    let windows = json!({"metadata": {}, "spec": {"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true},
        "containers": [{"name": "a"}]}});
    check(&windows, Level::Restricted, 25, "");
    let found = evaluate(at(Level::Restricted, 24), &Pod::of(&windows).unwrap());
    assert_eq!(
        reasons(&found),
        "allowPrivilegeEscalation != false, unrestricted capabilities, seccompProfile"
    );
    let annotated = json!({"metadata": {"annotations": {"container.seccomp.security.alpha.kubernetes.io/a": "unconfined"}},
        "spec": {"containers": [{"name": "a"}]}});
    check(&annotated, Level::Baseline, 19, "");
    check(
        &annotated,
        Level::Baseline,
        18,
        r#"seccompProfile (forbidden annotation container.seccomp.security.alpha.kubernetes.io/a="unconfined")"#,
    );
}

#[test]
fn a_plain_pod_has_the_four_well_known_violations_of_restricted() {
    let pod = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "nginx"}]}});
    let found = evaluate(
        LevelVersion { level: Level::Restricted, version: Version::Latest },
        &Pod::of(&pod).unwrap(),
    );
    assert_eq!(
        details(&found),
        r#"allowPrivilegeEscalation != false (container "x" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "x" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "x" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "x" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#
    );
    check(&pod, Level::Baseline, NEWEST, "");
}

#[test]
fn explicit_refusals_come_before_missing_fields() {
    let pod = with(
        &json!({"spec": context(json!({"runAsNonRoot": null}))}),
        &context(json!({"runAsNonRoot": false})),
    );
    check(
        &pod,
        Level::Restricted,
        NEWEST,
        r#"runAsNonRoot != true (containers "i", "b" must not set securityContext.runAsNonRoot=false)"#,
    );
    let profile = context(json!({"seccompProfile": {"type": "Unconfined"}}));
    let pod = with(&json!({"spec": context(json!({"seccompProfile": null}))}), &profile);
    check(
        &pod,
        Level::Restricted,
        NEWEST,
        r#"seccompProfile (containers "i", "b" must not set securityContext.seccompProfile.type to "Unconfined")"#,
    );
}

#[test]
fn labels_make_a_policy() {
    let of = |labels: Value| {
        let label = |name: &str| labels.get(name).and_then(Value::as_str);
        Policy::of_labels(label, &Policy::PRIVILEGED)
    };
    let text = |policy: &Policy| policy.modes().map(|(mode, level)| format!("{mode}={level}")).join(" ");
    let check = |labels: Value, want: &str| {
        let (policy, wrong) = of(labels);
        assert_eq!((text(&policy).as_str(), wrong.len()), (want, 0));
    };
    let label = |name: &str| format!("pod-security.kubernetes.io/{name}");
    check(json!({}), "enforce=privileged:latest audit=privileged:latest warn=privileged:latest");
    check(
        json!({label("enforce"): "restricted", label("enforce-version"): "v1.24"}),
        "enforce=restricted:v1.24 audit=privileged:latest warn=restricted:v1.24",
    );
    check(
        json!({label("enforce"): "restricted", label("warn-version"): "v1.30"}),
        "enforce=restricted:latest audit=privileged:latest warn=restricted:v1.30",
    );
    check(
        json!({label("enforce"): "restricted", label("warn"): "baseline", label("audit"): "baseline"}),
        "enforce=restricted:latest audit=baseline:latest warn=baseline:latest",
    );
    let (policy, wrong) =
        of(json!({label("enforce"): "strict", label("warn"): "x", label("audit-version"): "v1.01"}));
    assert_eq!(text(&policy), "enforce=restricted:latest audit=privileged:latest warn=privileged:latest");
    let lines: Vec<String> = wrong.iter().map(WrongLabel::to_string).collect();
    assert_eq!(
        lines,
        [
            r#"metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strict": must be one of privileged, baseline, restricted"#,
            r#"metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: "v1.01": must be "latest" or "v1.x""#,
            r#"metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: "x": must be one of privileged, baseline, restricted"#,
        ]
    );
    for version in ["1.2", "v1.", "v2.0", "v1.99999999999", "v1.+1", ""] {
        assert!(Version::parse(version).is_err(), "{version}");
    }
    assert_eq!(Version::parse("v1.0"), Ok(Version::Minor(0)));
}
