use clap::{CommandFactory, FromArgMatches};
use proptest::prelude::*;

use super::*;
use crate::commands::{Cli, Command as Chosen};

/// Parses a command line of `shopkube` with a `--config` file of this text.
fn parsed(args: &[&str], text: &str) -> Result<(Command, ArgMatches), String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("settings.yaml");
    std::fs::write(&file, text).unwrap();
    let command = named(Cli::command(), "shopkube");
    let file = file.to_string_lossy().into_owned();
    let line: Vec<OsString> =
        ["shopkube"].iter().chain(args).chain(&["--config", &file]).map(Into::into).collect();
    match parse(command.clone(), &line) {
        Ok(matches) => {
            Cli::from_arg_matches(&matches).map_err(|e| e.to_string())?;
            Ok((command, matches))
        }
        Err(Refused::Line(e)) => Err(e.to_string()),
        Err(Refused::File(e)) => Err(e.message.replace(&*directory.path().to_string_lossy(), "DIR")),
    }
}

fn printed(args: &[&str], text: &str) -> Map<String, Value> {
    let args = [args, &["--print-config"]].concat();
    let (command, matches) = parsed(&args, text).unwrap();
    serde_saphyr::from_str(&to_print(&command, &matches).unwrap()).unwrap()
}

#[test]
fn a_command_line_is_well_formed() {
    named(Cli::command(), "shopkube").debug_assert();
}

#[test]
fn a_flag_beats_the_file_and_the_file_the_default() {
    let text = "cluster-cidr: 10.1.0.0/16\nservice-cidr: 10.2.0.0/16\nforget-state: true\ntls-san: [a, b]\ncontrollers: ['*', -cronjob]\n";
    let map = printed(&["up", "--cluster-cidr", "10.3.0.0/16"], text);
    assert_eq!(map["cluster-cidr"], "10.3.0.0/16");
    assert_eq!(map["service-cidr"], "10.2.0.0/16");
    assert_eq!(map["https-listen-port"], 6443);
    assert_eq!(map["forget-state"], true);
    assert_eq!(map["tls-san"], serde_json::json!(["a", "b"]));
    assert_eq!(map["controllers"], serde_json::json!(["*", "-cronjob"]));
    let off = printed(&["up", "--forget-state=false", "--tls-san", "c"], text);
    assert_eq!((&off["forget-state"], &off["tls-san"]), (&false.into(), &serde_json::json!(["c"])));
    assert_eq!(printed(&["up", "--forget-state"], "")["forget-state"], true);
    // A required flag may be in the file.
    let map = printed(&["kube-scheduler"], "kubeconfig: /k\nleader-elect: false\n");
    assert_eq!((&map["kubeconfig"], &map["leader-elect"]), (&"/k".into(), &false.into()));
}

#[test]
fn a_mistake_in_a_file_names_the_file_and_the_key() {
    for (args, text, wanted) in [
        (
            &["up"][..],
            "cluster-cdir: 10.1.0.0/16",
            "--config DIR/settings.yaml: unknown key \"cluster-cdir\"; the keys are the flags of up",
        ),
        (&["server"], "node-name: n", "unknown key \"node-name\"; the keys are the flags of server"),
        (&["up"], "print-config: true", "unknown key \"print-config\""),
        (&["up"], "cluster-cidr: nonsense", "DIR/settings.yaml: cluster-cidr: invalid value 'nonsense' for"),
        (&["up"], "https-listen-port: 70000", "DIR/settings.yaml: https-listen-port: invalid value '70000'"),
        (&["up"], "cluster-domain: [a, b]", "cluster-domain: one value is needed, not a list"),
        (&["up"], "cluster-domain: {a: b}", "cluster-domain: text, a number, true or false is needed"),
        (&["up"], "- a", "a mapping of flag names to values is needed"),
        (&["up"], "kind: KubeletConfiguration", "up has no `kind` of configuration"),
        (&["kubelet", "--kubeconfig", "/k"], "kind: KubeletConfiguration\nmaxPods: 5", "maxPods"),
    ] {
        let refused = parsed(args, text).unwrap_err();
        assert!(refused.contains(wanted), "{text}: {refused}");
    }
}

#[test]
fn upstreams_kinds_are_read() {
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.9.0.10]\nclusterDomain: shop\nport: 10251\naddress: 127.0.0.1\npodCIDR: 10.9.1.0/24\nallowedUnsafeSysctls: [kernel.sem, net.*]\nevictionHard: {memory.available: 200Mi}\nmergeDefaultEvictionSettings: true\nevictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 1m30s}\nevictionMinimumReclaim: {nodefs.available: 1Gi}\nevictionMaxPodGracePeriod: -1\nevictionPressureTransitionPeriod: 30s\ntlsCipherSuites: [TLS_AES_128_GCM_SHA256]\ntlsMinVersion: VersionTLS13\n";
    let map = printed(&["kubelet", "--kubeconfig", "/k", "--port", "1"], text);
    for (key, value) in [
        ("cluster-dns", serde_json::json!("10.9.0.10")),
        ("cluster-domain", "shop".into()),
        ("port", 1.into()),
        ("address", "127.0.0.1".into()),
        ("pod-cidr", "10.9.1.0/24".into()),
        ("allowed-unsafe-sysctls", serde_json::json!(["kernel.sem", "net.*"])),
        (
            "eviction-hard",
            serde_json::json!([
                "imagefs.available<15%",
                "imagefs.inodesFree<5%",
                "memory.available<200Mi",
                "nodefs.available<10%",
                "nodefs.inodesFree<5%",
            ]),
        ),
        ("eviction-soft", serde_json::json!(["memory.available<1Gi"])),
        ("eviction-soft-grace-period", serde_json::json!(["memory.available=1m30s"])),
        ("eviction-minimum-reclaim", serde_json::json!(["nodefs.available=1Gi"])),
        ("eviction-max-pod-grace-period", serde_json::json!("-1")),
        ("eviction-pressure-transition-period", "30s".into()),
        ("tls-cipher-suites", serde_json::json!(["TLS_AES_128_GCM_SHA256"])),
        ("tls-min-version", "VersionTLS13".into()),
    ] {
        assert_eq!(map[key], value, "{key}");
    }
    let text = "kind: KubeletConfiguration\nevictionHard: {}\nevictionPressureTransitionPeriod: 0s";
    let map = printed(&["kubelet", "--kubeconfig", "/k"], text);
    assert_eq!(map["eviction-hard"], serde_json::json!([""]));
    assert_eq!(map["eviction-pressure-transition-period"], "5m");
    let text = "kind: KubeSchedulerConfiguration\nleaderElection: {leaderElect: false}\nclientConnection: {kubeconfig: /k}\nprofiles: [{schedulerName: mine}]";
    let map = printed(&["kube-scheduler"], text);
    assert_eq!((&map["leader-elect"], &map["kubeconfig"]), (&false.into(), &"/k".into()));
    assert!(map["scheduler-config"].as_str().is_some_and(|path| path.ends_with("settings.yaml")));
    let refused = parsed(&["kube-scheduler"], "kind: KubeSchedulerConfiguration\nprofile: []").unwrap_err();
    assert!(refused.contains("profile"), "{refused}");
    let text = "kind: KubeControllerManagerConfiguration\ncontrollers: ['*', '-job']";
    let map = printed(&["kube-controller-manager", "--kubeconfig", "/k"], text);
    assert_eq!(map["controllers"], serde_json::json!(["*", "-job"]));
    let text = "kind: KubeProxyConfiguration\nclusterCIDR: 10.7.0.0/16";
    assert_eq!(printed(&["kube-proxy", "--kubeconfig", "/k"], text)["cluster-cidr"], "10.7.0.0/16");
}

#[test]
fn a_distribution_has_its_name_in_variables_directories_and_help() {
    let command = named(Cli::command(), "shop-kube");
    let up = command.find_subcommand("up").unwrap();
    let of = |id: &str| up.get_arguments().find(|arg| arg.get_id() == id).unwrap();
    assert_eq!(of("data_dir").get_env().unwrap(), "SHOP_KUBE_DATA_DIR");
    assert_eq!(of("cluster_cidr").get_env().unwrap(), "SHOP_KUBE_CLUSTER_CIDR");
    assert_eq!(of("data_dir").get_default_values(), ["/var/lib/shop-kube"]);
    for (sub, id) in [("kubelet", "root_dir"), ("kube-apiserver", "data_dir"), ("reset", "data_dir")] {
        let sub = command.find_subcommand(sub).unwrap();
        let arg = sub.get_arguments().find(|arg| arg.get_id() == id).unwrap();
        assert_eq!(arg.get_default_values(), ["/var/lib/shop-kube"]);
    }
    let demo = command.find_subcommand("demo").unwrap();
    let demo = demo.get_arguments().find(|arg| arg.get_id() == "data_dir").unwrap();
    assert_eq!(demo.get_env(), None, "the demo removes its directory");
    for sub in command.get_subcommands() {
        let help = sub.clone().render_long_help().to_string();
        assert!(!help.contains("hyperkube"), "{help}");
    }
    let own = named(Cli::command(), "hyperkube");
    let up = own.find_subcommand("up").unwrap();
    for id in ["data_dir", "bind_address", "https_listen_port", "write_kubeconfig", "node_name"] {
        let arg = up.get_arguments().find(|arg| arg.get_id() == id).unwrap();
        assert_eq!(arg.get_env().unwrap().to_string_lossy(), format!("HYPERKUBE_{}", id.to_uppercase()));
    }
}

#[test]
fn variables_of_a_service_are_no_settings() {
    let check = |variable: &str, all: &[(&str, &str)], wanted: bool| {
        let value_of =
            |name: &str| all.iter().find(|(have, _)| *have == name).map(|(_, value)| OsString::from(*value));
        assert_eq!(is_service_link(variable, value_of), wanted, "{variable} of {all:?}");
    };
    // A Service `hyperkube`, and its namesake with a hyphen.
    check("HYPERKUBE_PORT", &[("HYPERKUBE_PORT", "tcp://10.43.0.9:80")], true);
    check("HYPERKUBE_SECURE_PORT", &[("HYPERKUBE_SECURE_PORT", "udp://[fd00::9]:53")], true);
    check("HYPERKUBE_PORT", &[("HYPERKUBE_PORT", "10251")], false);
    check("HYPERKUBE_PORT", &[], false);
    check("HYPERKUBE_ADDRESS", &[("HYPERKUBE_ADDRESS", "tcp://10.43.0.9:80")], false);
    // A Service `my`, for a distribution `my-service`.
    let of_a_service = [("MY_SERVICE_HOST", "10.43.0.9"), ("MY_SERVICE_PORT", "80")];
    check("MY_SERVICE_PORT", &of_a_service, true);
    check("MY_SERVICE_PORT", &of_a_service[1..], false);
}

/// The rule above knows two forms. No setting has a name of the others: NAME_SERVICE_HOST,
/// NAME_SERVICE_PORT_WEB, NAME_PORT_80_TCP, NAME_PORT_80_TCP_ADDR, ...
#[test]
fn no_setting_has_the_name_of_another_service_variable() {
    let command = named(Cli::command(), "hyperkube");
    let mut variables: Vec<&str> = Vec::new();
    for sub in command.get_subcommands() {
        variables.extend(sub.get_arguments().filter_map(|arg| arg.get_env()?.to_str()));
    }
    assert!(variables.contains(&"HYPERKUBE_PORT") && variables.len() > 50, "{variables:?}");
    for variable in variables {
        let digits = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
        let linked = variable.ends_with("_SERVICE_HOST")
            || variable.contains("_SERVICE_PORT_")
            || variable.split("_PORT_").skip(1).any(digits);
        assert!(!linked, "{variable} can be set by a Service");
    }
}

#[test]
fn the_file_reaches_the_typed_settings() {
    let (_, matches) =
        parsed(&["up"], "cluster-dns: 10.43.0.11\nsimulated-nodes: 3\nnode-name: 007\n").unwrap();
    let Chosen::Up(up) = Cli::from_arg_matches(&matches).unwrap().command else { panic!("another command") };
    let text = format!("{up:?}");
    for wanted in ["cluster_dns: Some(10.43.0.11)", "simulated_nodes: Some(3)"] {
        assert!(text.contains(wanted), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// `--config` reads back what `--print-config` prints.
    #[test]
    fn printed_settings_are_read_back(
        domain in "[ -~]{1,12}",
        name in "[a-z0-9.-]{1,8}",
        port in any::<u16>(),
        sans in proptest::collection::vec("[ -~]{1,8}", 0..4),
        forget in any::<bool>(),
        nodes in proptest::option::of(0usize..100),
    ) {
        let mut args = vec!["up".to_owned()];
        args.push(format!("--cluster-domain={domain}"));
        args.push(format!("--node-name={name}"));
        args.push(format!("--https-listen-port={port}"));
        args.push(format!("--forget-state={forget}"));
        args.extend(sans.iter().map(|san| format!("--tls-san={san}")));
        args.extend(nodes.map(|n| format!("--simulated-nodes={n}")));
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["--print-config"]).collect();
        let (command, matches) = parsed(&args, "").unwrap();
        let first = to_print(&command, &matches).unwrap();
        let (command, matches) = parsed(&["up", "--print-config"], &first).map_err(|e| TestCaseError::fail(format!("{e}\n{first}")))?;
        prop_assert_eq!(to_print(&command, &matches).unwrap(), first);
    }
}
