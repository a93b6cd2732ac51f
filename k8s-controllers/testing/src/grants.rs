//! The permissions of a program, from the manifests of its role.

use serde_json::{Value, json};

use crate::objects;

const GROUP: &str = "rbac.authorization.k8s.io";

/// A user with permissions, and the objects that grant them.
#[derive(Debug)]
pub(crate) struct Grants {
    /// Name of the user.
    pub(crate) user: String,
    /// Objects for the initial cluster.
    pub(crate) manifests: Vec<Value>,
}

impl Grants {
    /// Reads the roles and bindings of a YAML text for a program. Other objects of the text are passed over.
    ///
    /// The user is the service account of the first binding. Without bindings it is the account `program` in
    /// the namespace `default`, and every role is bound to it.
    ///
    /// # Errors
    /// The text is not YAML or has no role.
    pub(crate) fn read(yaml: &str, program: &str) -> Result<Self, String> {
        let documents = objects::documents(yaml)?;
        let of_kind = |kinds: &'static [&'static str]| {
            let wanted = |object: &&Value| {
                let group =
                    object["apiVersion"].as_str().and_then(|v| v.split_once('/')).map(|(group, _)| group);
                group == Some(GROUP) && object["kind"].as_str().is_some_and(|kind| kinds.contains(&kind))
            };
            documents.iter().filter(wanted).cloned().collect::<Vec<_>>()
        };
        let roles = of_kind(&["ClusterRole", "Role"]);
        if roles.is_empty() {
            return Err("there is no Role or ClusterRole".into());
        }
        let mut bindings = of_kind(&["ClusterRoleBinding", "RoleBinding"]);
        let account = bindings.iter().find_map(|binding| {
            let subjects = binding["subjects"].as_array()?;
            let subject = subjects.iter().find(|subject| subject["kind"] == "ServiceAccount")?;
            let namespace = subject["namespace"].as_str().or(binding["metadata"]["namespace"].as_str());
            Some((namespace.unwrap_or("default").to_owned(), subject["name"].as_str()?.to_owned()))
        });
        if account.is_none() && !bindings.is_empty() {
            return Err("no binding has a ServiceAccount as subject".into());
        }
        let (namespace, name) = account.unwrap_or_else(|| ("default".into(), account_name(program)));
        if bindings.is_empty() {
            bindings = roles.iter().map(|role| binding(role, &namespace, &name)).collect();
        }
        let mut manifests = Vec::new();
        for object in roles.iter().chain(&bindings) {
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                let namespace =
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                if !manifests.contains(&namespace) {
                    manifests.push(namespace);
                }
            }
        }
        manifests.extend(roles);
        manifests.extend(bindings);
        Ok(Grants { user: format!("system:serviceaccount:{namespace}:{name}"), manifests })
    }
}

/// Returns a name of a service account: that of the program, as far as it is a valid one.
fn account_name(program: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = program.chars().map(valid).collect();
    format!("lab-{}", name.trim_matches('-'))
}

/// Returns a binding of a role to a service account.
fn binding(role: &Value, namespace: &str, name: &str) -> Value {
    let (kind, metadata) = (&role["kind"], &role["metadata"]);
    let mut binding = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": format!("{}Binding", kind.as_str().unwrap_or_default()),
        "metadata": {"name": metadata["name"]},
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": metadata["name"]},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}],
    });
    if kind == "Role" {
        binding["metadata"]["namespace"] = metadata["namespace"].as_str().unwrap_or("default").into();
    }
    binding
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str =
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r, namespace: shop}}";

    #[test]
    fn a_role_alone_is_bound_to_an_account_of_the_programs_name() {
        let grants = Grants::read(ROLE, "Doc Controller").unwrap();
        assert_eq!(grants.user, "system:serviceaccount:default:lab-doc-controller");
        let kinds: Vec<_> = grants.manifests.iter().filter_map(|m| m["kind"].as_str()).collect();
        assert_eq!(kinds, ["Namespace", "Role", "RoleBinding"]);
        assert_eq!(grants.manifests[2]["metadata"], json!({"name": "r", "namespace": "shop"}));
    }

    #[test]
    fn the_account_of_a_chart_is_that_of_its_binding() {
        let chart = format!(
            "{ROLE}\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: b, namespace: shop}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}}\nsubjects: [{{kind: ServiceAccount, name: docs}}]\n\
             ---\n{{apiVersion: v1, kind: Service, metadata: {{name: docs}}}}\n"
        );
        let grants = Grants::read(&chart, "docs").unwrap();
        assert_eq!(grants.user, "system:serviceaccount:shop:docs");
        assert_eq!(grants.manifests.iter().filter(|m| m["kind"] == "RoleBinding").count(), 1);
        assert!(grants.manifests.iter().all(|m| m["kind"] != "Service"));
    }

    #[test]
    fn a_text_without_a_role_is_refused() {
        assert!(Grants::read("{apiVersion: v1, kind: Service}", "a").unwrap_err().contains("no Role"));
        assert!(Grants::read("a: [", "a").unwrap_err().contains("not YAML"));
    }
}
