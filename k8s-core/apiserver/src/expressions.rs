//! The variables of CEL expressions over requests: match conditions, and the expressions of policies.

use std::sync::{Arc, LazyLock};

use k8s_cel::{Decl, Env, ObjectType, Opaque, Program, Type};

/// The type of the variable `request`.
static REQUEST: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = || Arc::new(Decl::new(Type::String));
    let object = |name: &str, fields: Vec<(&str, Arc<Decl>)>| {
        let fields = fields.into_iter().map(|(name, decl)| (name.to_owned(), decl));
        Arc::new(Decl::object(ObjectType::new(name, fields)))
    };
    let named = |name: &str, last: &'static str| {
        object(name, vec![("group", text()), ("version", text()), (last, text())])
    };
    let user = object(
        "kubernetes.UserInfo",
        vec![
            ("username", text()),
            ("uid", text()),
            ("groups", Arc::new(Decl::new(Type::list(Type::String)))),
            ("extra", Arc::new(Decl::new(Type::map(Type::list(Type::String))))),
        ],
    );
    object(
        "kubernetes.AdmissionRequest",
        vec![
            ("kind", named("kubernetes.GroupVersionKind", "kind")),
            ("resource", named("kubernetes.GroupVersionResource", "resource")),
            ("subResource", text()),
            ("requestKind", named("kubernetes.GroupVersionKind", "kind")),
            ("requestResource", named("kubernetes.GroupVersionResource", "resource")),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Arc::new(Decl::new(Type::Bool))),
            ("options", Arc::new(Decl::any())),
        ],
    )
});

/// The type of the variable `namespaceObject`: what of a namespace an expression may see.
static NAMESPACE: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = || Arc::new(Decl::new(Type::String));
    let object = |name: &str, fields: Vec<(&str, Arc<Decl>)>| {
        let fields = fields.into_iter().map(|(name, decl)| (name.to_owned(), decl));
        Arc::new(Decl::object(ObjectType::new(name, fields)))
    };
    let texts = || Arc::new(Decl::new(Type::map(Type::String)));
    let list = || Arc::new(Decl::new(Type::list(Type::String)));
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        vec![
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", texts()),
            ("annotations", texts()),
            ("UID", text()),
            ("creationTimestamp", Arc::new(Decl::new(Type::Timestamp))),
            ("deletionGracePeriodSeconds", Arc::new(Decl::new(Type::Int))),
            ("deletionTimestamp", Arc::new(Decl::new(Type::Timestamp))),
            ("generation", Arc::new(Decl::new(Type::Int))),
            ("resourceVersion", text()),
            ("finalizers", list()),
        ],
    );
    let spec = object("kubernetes.NamespaceSpec", vec![("finalizers", list())]);
    let status = object("kubernetes.NamespaceStatus", vec![("phase", text())]);
    object("kubernetes.Namespace", vec![("metadata", metadata), ("spec", spec), ("status", status)])
});

/// The variables of match conditions: the objects, the request, and the rights of its user.
pub(crate) fn environment() -> Env {
    with_rights(plain())
}

fn plain() -> Env {
    let env = Env::new().variable("object", Decl::any()).variable("oldObject", Decl::any());
    env.variable("request", REQUEST.clone())
}

fn with_rights(env: Env) -> Env {
    env.variable("authorizer", Decl::new(Type::Opaque(Opaque::Authorizer)))
        .variable("authorizer.requestResource", Decl::new(Type::Opaque(Opaque::ResourceCheck)))
}

/// The variables of policies: those of match conditions, the namespace, and the parameters if there are any.
pub(crate) fn policy_environment(has_params: bool) -> Env {
    with_rights(message_environment(has_params))
}

/// The variables of a policy's messages and audit annotations: all but the user's rights.
pub(crate) fn message_environment(has_params: bool) -> Env {
    let env = plain().variable("namespaceObject", NAMESPACE.clone());
    if has_params { env.variable("params", Decl::any()) } else { env }
}

/// The variables of a policy about objects of a known type, and parameters if it has them.
pub(crate) fn typed_environment(object: Decl, params: Option<Decl>) -> Env {
    let object = Arc::new(object);
    let env = Env::new().variable("object", object.clone()).variable("oldObject", object);
    let env = env.variable("request", REQUEST.clone()).variable("namespaceObject", NAMESPACE.clone());
    let env = with_rights(env);
    match params {
        Some(params) => env.variable("params", params),
        None => env,
    }
}

/// Compiles an expression whose result must be of one of these types.
///
/// # Errors
/// Upstream's text for the problem.
pub(crate) fn compile(env: &Env, text: &str, results: &[Type]) -> Result<Program, String> {
    let program = env.compile(text).map_err(|e| format!("compilation failed: {e}"))?;
    let is = |wanted: &Type| std::mem::discriminant(wanted) == std::mem::discriminant(program.result_type());
    if results.is_empty() || results.iter().any(is) {
        return Ok(program);
    }
    let names: Vec<String> = results.iter().map(ToString::to_string).collect();
    Err(match names.as_slice() {
        [one] => format!("must evaluate to {one}"),
        _ => format!("must evaluate to one of [{}]", names.join(" ")),
    })
}
