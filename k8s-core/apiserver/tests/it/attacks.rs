//! Ways around rights, admission and quotas that were tried and are closed.

use k8s_apiserver::User;
use serde_json::{Value, json};

use crate::support::{ask_as, done, grant, server};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";

/// Expressions show their parameters: nobody has one show what they may not read.
#[tokio::test]
async fn policies_show_no_parameters_that_their_writer_may_not_read() {
    let server = server().await;
    let all = json!({"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]});
    grant(&server, "eve", json!([all])).await;
    let maps = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]});
    grant(&server, "reader", json!([all, maps])).await;
    let (eve, reader) = (User::new("eve", &[]), User::new("reader", &[]));
    let constraints = json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
        "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let validations = json!([{"expression": "false", "messageExpression": "string(params.data.x)"}]);
    let change = json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]);
    for kind in ["validating", "mutating"] {
        let policies = format!("{POLICIES}/{kind}admissionpolicies");
        let bindings = format!("{POLICIES}/{kind}admissionpolicybindings");
        let policy = |name: &str, of: &str| {
            let mut policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": constraints,
                "paramKind": {"apiVersion": "v1", "kind": of}}});
            if kind == "validating" {
                policy["spec"]["validations"] = validations.clone();
            } else {
                policy["spec"]["mutations"] = change.clone();
                policy["spec"]["reinvocationPolicy"] = "Never".into();
            }
            policy
        };
        let binding = |policy: &str, reference: Value| {
            let mut binding =
                json!({"metadata": {"name": "b"}, "spec": {"policyName": policy, "paramRef": reference}});
            binding["spec"]["paramRef"]["parameterNotFoundAction"] = "Allow".into();
            if kind == "validating" {
                binding["spec"]["validationActions"] = json!(["Deny"]);
            }
            binding
        };
        let refused = async |user: &User, method: &str, path: &str, body: &Value, why: &str| {
            let answer = ask_as(&server, user, method, path, body).await;
            let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
            assert!(answer.status == 422 && message.ends_with(why), "{path}: {} {message}", answer.status);
        };
        let secrets = "spec.paramKind: Forbidden: user &{reader  [system:authenticated] map[]} must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)";
        refused(&reader, "POST", &policies, &policy("p", "Secret"), secrets).await;
        refused(&reader, "POST", &format!("{policies}?dryRun=All"), &policy("p", "Secret"), secrets).await;
        let maps = "(kind=ConfigMap, apiVersion=v1)";
        refused(&eve, "POST", &policies, &policy("p", "ConfigMap"), maps).await;
        let made = ask_as(&server, &reader, "POST", &policies, &policy("p", "ConfigMap")).await;
        assert_eq!(made.status, 201, "{}", made.json());
        let turned = json!({"spec": {"paramKind": {"kind": "Secret"}}});
        refused(&reader, "PATCH", &format!("{policies}/p"), &turned, secrets).await;
        // What stays needs nothing.
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        let kept = ask_as(&server, &eve, "PATCH", &format!("{policies}/p"), &labelled).await;
        assert_eq!(kept.status, 200, "{}", kept.json());

        let one = json!({"name": "m", "namespace": "default"});
        let why = "spec.paramRef: Forbidden: user &{eve  [system:authenticated] map[]} does not have \"get\" permission on the object referenced by paramRef";
        refused(&eve, "POST", &bindings, &binding("p", one.clone()), why).await;
        let many = json!({"selector": {}, "namespace": "default"});
        let why = "does not have \"list\" permission on the object referenced by paramRef";
        refused(&reader, "POST", &bindings, &binding("p", many), why).await;
        let made = ask_as(&server, &reader, "POST", &bindings, &binding("p", one.clone())).await;
        assert_eq!(made.status, 201, "{}", made.json());
        // A policy that is not there yet may turn out to be about anything.
        let why = "does not have \"get\" permission for all groups, versions and resources";
        let turned = json!({"spec": {"policyName": "later"}});
        refused(&reader, "PATCH", &format!("{bindings}/b"), &turned, why).await;
        done(&server, "POST", &policies, &policy("secret", "Secret")).await;
        done(&server, "PATCH", &format!("{bindings}/b"), &json!({"spec": {"policyName": "secret"}})).await;
    }
}
