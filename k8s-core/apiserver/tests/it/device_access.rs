//! Rights that the storage of resource claims asks for, beside those of the request.

use k8s_apiserver::User;
use serde_json::{Value, json};

use crate::support::{Answer, ask_as, done, grant, server};

const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";

fn spec(admin: bool) -> Value {
    let exactly = json!({"deviceClassName": "gpu", "adminAccess": admin});
    json!({"devices": {"requests": [{"name": "g", "exactly": exactly}]}})
}

fn allocation(admin: bool) -> Value {
    let result = json!({"request": "g", "driver": "x.io", "pool": "p", "device": "d", "adminAccess": admin});
    let field = json!({"key": "metadata.name", "operator": "In", "values": ["n"]});
    json!({"devices": {"results": [result]}, "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [field]}]}})
}

fn refused(answer: &Answer, why: &str) {
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(answer.status == 422 && message.ends_with(why), "{}: {message}", answer.status);
}

#[tokio::test]
async fn admin_access_needs_a_label_of_the_namespace() {
    let server = server().await;
    let templates = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaimtemplates";
    let admin = User::new("admin", &["system:masters"]);
    let claim = json!({"metadata": {"name": "c"}, "spec": spec(true)});
    let template = json!({"metadata": {"name": "c"}, "spec": {"spec": spec(true)}});
    let why = "spec.devices.requests[0].adminAccess: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";
    refused(&ask_as(&server, &admin, "POST", CLAIMS, &claim).await, why);
    refused(&ask_as(&server, &admin, "POST", templates, &template).await, why);
    done(&server, "POST", CLAIMS, &json!({"metadata": {"name": "plain"}, "spec": spec(false)})).await;
    let status = json!({"status": {"allocation": allocation(true)}});
    let why = "status.allocation.devices.results[0].adminAccess: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";
    refused(&ask_as(&server, &admin, "PATCH", &format!("{CLAIMS}/plain/status"), &status).await, why);
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    done(&server, "PATCH", "/api/v1/namespaces/default", &label).await;
    done(&server, "POST", CLAIMS, &claim).await;
    done(&server, "POST", templates, &template).await;
    done(&server, "PATCH", &format!("{CLAIMS}/c/status"), &status).await;
}

#[tokio::test]
async fn who_says_which_devices_a_claim_has_needs_rights_of_its_own() {
    let server = server().await;
    let rule = |resource: &str, verb: &str| json!({"apiGroups": ["resource.k8s.io"], "resources": [resource], "verbs": [verb]});
    let status = rule("resourceclaims/status", "patch");
    grant(&server, "eve", json!([status])).await;
    grant(&server, "binder", json!([status, rule("resourceclaims/binding", "patch")])).await;
    grant(
        &server,
        "driver",
        json!([status, {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims/driver"],
        "verbs": ["arbitrary-node:patch"], "resourceNames": ["x.io"]}]),
    )
    .await;
    let local = "system:serviceaccount:default:driver";
    grant(&server, local, json!([status, rule("resourceclaims/driver", "associated-node:patch")])).await;
    done(&server, "POST", CLAIMS, &json!({"metadata": {"name": "c"}, "spec": spec(false)})).await;
    let write = async |user: &User, status: Value| {
        ask_as(&server, user, "PATCH", &format!("{CLAIMS}/c/status"), &json!({"status": status})).await
    };
    let (eve, binder, driver) = (User::new("eve", &[]), User::new("binder", &[]), User::new("driver", &[]));
    let why = "status.allocation: Forbidden: changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"patch\" permission: resourceclaims.resource.k8s.io is forbidden: User \"eve\" cannot patch resource \"resourceclaims/binding\" in API group \"resource.k8s.io\" at the cluster scope";
    refused(&write(&eve, json!({"allocation": allocation(false)})).await, why);
    let made = write(&binder, json!({"allocation": allocation(false)})).await;
    assert_eq!(made.status, 200, "{}", made.json());
    let user = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
    refused(&write(&driver, json!({"reservedFor": user})).await, "at the cluster scope");
    // An unchanged status needs no right.
    assert_eq!(write(&eve, json!({"allocation": allocation(false)})).await.status, 200);

    let device = |driver: &str| json!({"driver": driver, "pool": "p", "device": "d", "conditions": []});
    let why = "status.devices: Forbidden: changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[arbitrary-node:patch]\" permission: resourceclaims.resource.k8s.io \"x.io\" is forbidden: User \"binder\" cannot arbitrary-node:patch resource \"resourceclaims/driver\" in API group \"resource.k8s.io\" in the namespace \"default\"";
    refused(&write(&binder, json!({"devices": [device("x.io")]})).await, why);
    let made = write(&driver, json!({"devices": [device("x.io")]})).await;
    assert_eq!(made.status, 200, "{}", made.json());
    refused(&write(&driver, json!({"devices": [device("y.io")]})).await, "in the namespace \"default\"");
    let mut on_node = User::new(local, &[]);
    refused(&write(&on_node, json!({"devices": []})).await, "in the namespace \"default\"");
    on_node.extra.insert("authentication.kubernetes.io/node-name".into(), vec!["n".into()]);
    let made = write(&on_node, json!({"devices": []})).await;
    assert_eq!(made.status, 200, "{}", made.json());
}
