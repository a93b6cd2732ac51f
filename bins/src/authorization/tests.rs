use super::*;

fn modes(args: &[&str]) -> Result<String, String> {
    let command = AuthorizationFlags::augment_args(Command::new("x").no_binary_name(true));
    let flags = AuthorizationFlags::from_arg_matches(&command.get_matches_from(args)).unwrap();
    flags.modes().map(|modes| format!("{modes:?}")).map_err(|e| e.to_string())
}

fn kubeconfig(directory: &Path) -> PathBuf {
    let file = directory.join("webhook.kubeconfig");
    let config = Kubeconfig::with_token("authz", "https://authz.example.com/authorize", "t");
    std::fs::write(&file, config.to_yaml()).unwrap();
    file
}

#[test]
fn modes_keep_their_order_and_wrong_ones_are_named() {
    assert_eq!(modes(&[]).unwrap(), "[Node, Rbac]");
    assert_eq!(modes(&["--authorization-mode=RBAC,Node"]).unwrap(), "[Rbac, Node]");
    assert_eq!(modes(&["--authorization-mode", "AlwaysDeny"]).unwrap(), "[AlwaysDeny]");
    let error = |args: &[&str]| modes(args).unwrap_err();
    assert!(error(&["--authorization-mode=Rbac"]).contains("\"Rbac\" is no mode"));
    assert!(error(&["--authorization-mode=RBAC,RBAC"]).contains("more than once"));
    assert!(error(&["--authorization-mode=ABAC"]).contains("needs a policy file"));
    assert!(error(&["--authorization-policy-file=/x"]).contains("add ABAC"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policies");
    std::fs::write(&file, "\n{}\n").unwrap();
    let flag = format!("--authorization-policy-file={}", file.display());
    assert!(error(&["--authorization-mode=ABAC", &flag]).contains("line 2"));
}

#[test]
fn a_webhook_is_a_kubeconfig() {
    let directory = tempfile::tempdir().unwrap();
    let file = format!("--authorization-webhook-config-file={}", kubeconfig(directory.path()).display());
    let made = modes(&["--authorization-mode=Node,Webhook", &file]).unwrap();
    assert!(made.starts_with("[Node, Webhook(") && made.contains("path: \"/authorize\""), "{made}");
    let error = |args: &[&str]| modes(args).unwrap_err();
    assert!(error(&["--authorization-mode=Webhook"]).contains("needs a kubeconfig"));
    assert!(error(&[&file]).contains("add Webhook"));
    let version = "--authorization-webhook-version=v2";
    assert!(error(&["--authorization-mode=Webhook", &file, version]).contains("v1 or v1beta1 is needed"));
    let absent = "--authorization-webhook-config-file=/nowhere";
    assert!(error(&["--authorization-mode=Webhook", absent]).contains("/nowhere"));
}

#[test]
fn a_configuration_is_a_chain() {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(directory.path());
    let file = directory.path().join("authorization.yaml");
    let made = |text: &str| {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";
        std::fs::write(&file, format!("{head}{}", text.replace("KUBECONFIG", &kubeconfig.to_string_lossy())))
            .unwrap();
        modes(&[&format!("--authorization-config={}", file.display())])
    };
    let webhook = "- type: Webhook
  name: NAME
  webhook:
    timeout: 3s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    failurePolicy: Deny
    connectionInfo: {type: KubeConfigFile, kubeConfigFile: KUBECONFIG}
    matchConditions: [{expression: \"request.resourceAttributes.namespace == 'kube-system'\"}]
";
    let named = |name: &str| webhook.replace("NAME", name);
    let chain = format!(
        "authorizers:\n- {{type: Node, name: node}}\n{}{}- {{type: RBAC, name: rbac}}\n",
        named("first"),
        named("second.example.com")
    );
    let modes_of_chain = made(&chain).unwrap();
    assert!(
        modes_of_chain.starts_with("[Node, Webhook(") && modes_of_chain.ends_with("Rbac]"),
        "{modes_of_chain}"
    );
    for (change, problem) in [
        (("type: Node", "type: RBAC"), "authorizers[3].type: \"RBAC\" is there twice"),
        (("type: Node", "type: Nod"), "authorizers[0].type: \"Nod\" is no mode"),
        (("name: node", "name: Node"), "authorizers[0].name"),
        (("name: second.example.com", "name: first"), "authorizers[2].name: \"first\" is there twice"),
        (("timeout: 3s", "timeout: 31s"), "authorizers[1].webhook.timeout: must be > 0s and <= 30s"),
        (("timeout: 3s", "authorizedTTL: 1s"), "authorizers[1].webhook.timeout: is required"),
        (
            ("failurePolicy: Deny", "failurePolicy: Allow"),
            "failurePolicy: \"Allow\": NoOpinion or Deny is needed",
        ),
        (
            ("Version: v1\n    failure", "Version: v2\n    failure"),
            "matchConditionSubjectAccessReviewVersion: \"v2\" where v1 is needed",
        ),
        (("type: KubeConfigFile", "type: InClusterConfig"), "connectionInfo.type: \"InClusterConfig\""),
        (
            ("request.resourceAttributes.namespace ==", "request.nothing =="),
            "webhook.matchConditions[0].expression: ERROR",
        ),
        (("authorizers:", "authorizer:"), "authorizer"),
        (("connectionInfo:", "more: 1\n    connectionInfo:"), "more"),
    ] {
        let told = made(&chain.replacen(change.0, change.1, 1)).unwrap_err();
        assert!(told.contains(problem), "{change:?}: {told}");
    }
    // A reload may change webhooks, and other authorizers only among those of the start.
    let flag = format!("--authorization-config={}", file.display());
    let command = AuthorizationFlags::augment_args(Command::new("x").no_binary_name(true));
    let flags = AuthorizationFlags::from_arg_matches(&command.get_matches_from([flag])).unwrap();
    let again = |types: &[&str]| {
        let rows: String =
            types.iter().map(|kind| format!("- {{type: {kind}, name: {}}}\n", kind.to_lowercase())).collect();
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n{rows}"
        );
        let started = [AuthorizationMode::Node, AuthorizationMode::Rbac];
        flags.reconfigured(&text, &started).map(|modes| format!("{modes:?}")).map_err(|e| e.to_string())
    };
    assert_eq!(again(&["RBAC"]).unwrap(), "[Rbac]");
    assert_eq!(again(&["RBAC", "Node"]).unwrap(), "[Rbac, Node]");
    let refused = again(&["RBAC", "AlwaysAllow"]).unwrap_err();
    let why = "authorizer type AlwaysAllow is not allowed if it was not enabled at initial server startup";
    assert!(refused.ends_with(why), "{refused}");
    assert!(made("authorizers: []\n").unwrap_err().contains("at least one"));
    let both = [format!("--authorization-config={}", file.display()), "--authorization-mode=RBAC".to_owned()];
    assert!(modes(&[&both[0], &both[1]]).unwrap_err().contains("cannot be combined"));
}
