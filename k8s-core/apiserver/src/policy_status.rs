//! Status of ValidatingAdmissionPolicies: their expressions are checked against the types of their rules.
//!
//! A problem that is found is a warning in `status.typeChecking`; the policy stays in force as it is.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_cel::{Decl, Env, ObjectType, Type};
use k8s_schema::{Kind, NodeId, Schema};
use k8s_store::{Expect, Stored};
use serde_json::{Value, json};

use crate::{
    expressions::typed_environment,
    resources::{Registry, Resource},
    state::{Observer, State},
    storage::put,
    value::{array_at, int_at, str_at},
};

const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";

/// Maximum number of types that a policy is checked against, as upstream.
const MOST_TYPES: usize = 10;
/// Depth from which on values have dynamic type. Types that contain themselves have no end.
const DEPTH: usize = 12;

/// The observer of policies.
pub(crate) struct Policies;

#[async_trait]
impl Observer for Policies {
    fn observes(&self, resource: &Resource) -> bool {
        resource.storage.as_ref() == POLICIES
    }

    async fn after_write(&self, state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>) {
        if !state.admission.has("ValidatingAdmissionPolicy") {
            return;
        }
        let Ok(mut policy) = serde_json::from_slice::<Value>(&stored.json) else { return };
        let generation = int_at(&policy, "/metadata/generation");
        if policy.pointer("/metadata/deletionTimestamp").is_some()
            || generation == int_at(&policy, "/status/observedGeneration")
        {
            return;
        }
        let warnings = warnings(&policy, &state.registry.now());
        let mut checked = json!({});
        if !warnings.is_empty() {
            checked["expressionWarnings"] = warnings.into();
        }
        if !policy.get("status").is_some_and(Value::is_object) {
            policy["status"] = json!({});
        }
        policy["status"]["observedGeneration"] = generation.into();
        policy["status"]["typeChecking"] = checked;
        // A concurrent writer comes through here as well.
        let _ = put(state, resource, &stored.key, Expect::Revision(stored.revision), &policy).await;
    }

    async fn after_delete(&self, _: &Arc<State>, _: &Resource, _: &Value) {}
}

/// Returns the warnings about a policy's validations: `fieldRef` and `warning`.
fn warnings(policy: &Value, registry: &Registry) -> Vec<Value> {
    let params = policy.pointer("/spec/paramKind").filter(|kind| kind.is_object()).map(|kind| {
        let (group, version) = group_version(str_at(kind, "/apiVersion"));
        registry.by_kind(group, version, str_at(kind, "/kind")).map_or_else(Decl::any, |r| decl(r))
    });
    let checked: Vec<(String, Env)> = types(policy, registry)
        .into_iter()
        .map(|resource| {
            let name = format!("{}, Kind={}", resource.api_version(), resource.kind);
            (name, environment(policy, decl(&resource), params.clone()))
        })
        .collect();
    let mut warnings = Vec::new();
    for (i, validation) in array_at(policy, "/spec/validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let text = str_at(validation, &format!("/{field}"));
            if text.is_empty() {
                continue;
            }
            let problems: Vec<String> = checked
                .iter()
                .filter_map(|(name, env)| {
                    let problem = env.compile(text).err()?;
                    Some(format!("{name}: compilation failed: {problem}\n"))
                })
                .collect();
            if !problems.is_empty() {
                let field = format!("spec.validations[{i}].{field}");
                warnings.push(json!({"fieldRef": field, "warning": problems.join("\n")}));
            }
        }
    }
    warnings
}

fn group_version(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("", text))
}

/// The variables of a policy, with the type of the object.
fn environment(policy: &Value, object: Decl, params: Option<Decl>) -> Env {
    let mut env = typed_environment(object, params);
    for variable in array_at(policy, "/spec/variables") {
        let (name, text) = (str_at(variable, "/name"), str_at(variable, "/expression"));
        let decl = env
            .compile(text)
            .map_or_else(|_| Decl::any(), |program| Decl::new(program.result_type().clone()));
        env = env.variable(format!("variables.{name}"), decl);
    }
    env
}

/// Returns the resources that a policy's rules name. Rules with `*` name none.
fn types(policy: &Value, registry: &Registry) -> Vec<Arc<Resource>> {
    let mut found: Vec<Arc<Resource>> = Vec::new();
    for rule in array_at(policy, "/spec/matchConstraints/resourceRules") {
        let texts = |field: &str| -> Vec<&str> {
            let mut all: Vec<&str> = array_at(rule, field).iter().filter_map(Value::as_str).collect();
            all.sort_unstable();
            if all.iter().any(|text| text.contains('*')) { Vec::new() } else { all }
        };
        let resources = texts("/resources");
        for group in texts("/apiGroups") {
            for version in texts("/apiVersions") {
                for plural in resources.iter().filter(|plural| !plural.contains('/')) {
                    let named = registry.find(group, version, plural).cloned();
                    found.extend(named.filter(|r| !found.iter().any(|known| Arc::ptr_eq(known, r))));
                }
            }
        }
    }
    found.truncate(MOST_TYPES);
    found.sort_by_key(|r| (r.group.clone(), r.version.clone(), r.kind.clone()));
    found
}

/// Declares the objects of a resource.
fn decl(resource: &Resource) -> Decl {
    let schema = resource.request_schema();
    of(schema, schema.root_id(), &resource.kind, 0)
}

fn of(schema: &Schema, node: NodeId, name: &str, depth: usize) -> Decl {
    if depth > DEPTH {
        return Decl::any();
    }
    match &schema.node(node).kind {
        Kind::Object { fields, rest, preserve, .. } if fields.is_empty() => match rest {
            Some(values) if !preserve => {
                Decl::new(Type::map(of(schema, *values, name, depth + 1).ty().clone()))
            }
            _ => Decl::any(),
        },
        // Fields that no schema describes cannot be checked.
        Kind::Object { preserve: true, .. } | Kind::Object { rest: Some(_), .. } => Decl::any(),
        Kind::Object { fields, .. } => {
            let fields = fields.iter().map(|(field, inner)| {
                let inner = of(schema, inner.node, &format!("{name}.{field}"), depth + 1);
                (field.to_string(), Arc::new(inner))
            });
            Decl::object(ObjectType::new(name, fields))
        }
        Kind::List { item, .. } => Decl::new(Type::list(of(schema, *item, name, depth + 1).ty().clone())),
        Kind::String { format } => Decl::new(match &**format {
            "date-time" => Type::Timestamp,
            "byte" => Type::Bytes,
            _ => Type::String,
        }),
        Kind::Quantity => Decl::new(Type::String),
        Kind::Integer { .. } => Decl::new(Type::Int),
        Kind::Number => Decl::new(Type::Double),
        Kind::Boolean => Decl::new(Type::Bool),
        Kind::IntOrString | Kind::Any => Decl::any(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_checked_against_each_type() {
        let registry = Registry::new(&[]);
        let policy = |resources: Value, expression: &str| {
            json!({"spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": resources}]},
                "variables": [{"name": "n", "expression": "object.spec.replicas"}],
                "validations": [{"expression": expression}],
            }})
        };
        let both = json!(["deployments", "replicasets"]);
        assert_eq!(
            warnings(&policy(both.clone(), "variables.n > 1 && object.metadata.name == 'a'"), &registry),
            [] as [Value; 0]
        );
        let wrong = warnings(&policy(both.clone(), "object.spec.strategy.type == 'Recreate'"), &registry);
        assert_eq!((wrong.len(), &wrong[0]["fieldRef"]), (1, &json!("spec.validations[0].expression")));
        let text = wrong[0]["warning"].as_str().unwrap();
        assert!(
            text.starts_with("apps/v1, Kind=ReplicaSet: ") && text.contains("undefined field 'strategy'"),
            "{text}"
        );
        let types = warnings(&policy(json!(["deployments"]), "variables.n == 'x'"), &registry);
        assert!(types[0]["warning"].as_str().unwrap().contains("no matching overload"), "{types:?}");
        assert!(warnings(&policy(json!(["*"]), "object.nonsense"), &registry).is_empty(), "no type is named");
        let images = "object.spec.template.spec.containers.all(c, c.image.startsWith('a') && c.ports.all(p, p.containerPort > 1))";
        assert_eq!(warnings(&policy(both, images), &registry), [] as [Value; 0]);
    }
}
