//! Ingress before networking.k8s.io/v1.

use crate::resources::types::generate;
use serde_json::{Map, Value, json};

use super::Conversion;

/// Conversion of networking.k8s.io/v1beta1: `serviceName` and `servicePort`.
pub(in crate::resources) static V1BETA1: Conversion = Conversion {
    to_storage: ingress_to_v1,
    from_storage: ingress_from_v1,
    generate: Some(generate::<k8s_core::legacy::Ingress>),
};

/// Conversion of extensions/v1beta1: the same, but without the default `pathType`, which most of its clients
/// do not know. (Otherwise `kubectl apply` would try to remove it on every run.)
pub(in crate::resources) static EXTENSIONS: Conversion = Conversion {
    to_storage: ingress_to_v1,
    from_storage: |object| {
        ingress_from_v1(object);
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
        for path in each_path(spec).filter_map(Value::as_object_mut) {
            if path.get("pathType").is_some_and(|t| t == IMPLEMENTATION_SPECIFIC) {
                path.remove("pathType");
            }
        }
    },
    generate: Some(generate::<k8s_core::legacy::Ingress>),
};

const IMPLEMENTATION_SPECIFIC: &str = "ImplementationSpecific";

fn each_path(spec: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    let rules = spec.get_mut("rules").and_then(Value::as_array_mut);
    rules
        .into_iter()
        .flatten()
        .filter_map(|rule| rule.pointer_mut("/http/paths").and_then(Value::as_array_mut))
        .flatten()
}

fn each_backend(spec: &mut Map<String, Value>, change: fn(&mut Value)) {
    each_path(spec).filter_map(|path| path.get_mut("backend")).for_each(change);
}

fn backend_to_v1(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let (name, port) = (map.remove("serviceName"), map.remove("servicePort"));
    if name.is_none() && port.is_none() {
        return;
    }
    let mut service = json!({"name": name.unwrap_or_default()});
    match port {
        Some(Value::String(port)) => match port.parse::<u16>() {
            Ok(number) => service["port"] = json!({"number": number}),
            Err(_) => service["port"] = json!({"name": port}),
        },
        Some(number) => service["port"] = json!({"number": number}),
        None => {}
    }
    map.insert("service".into(), service);
}

fn backend_from_v1(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let Some(service) = map.remove("service") else { return };
    map.insert("serviceName".into(), service.get("name").cloned().unwrap_or_default());
    let port = service.get("port");
    if let Some(port) = port.and_then(|p| p.get("number").or_else(|| p.get("name"))) {
        map.insert("servicePort".into(), port.clone());
    }
}

fn ingress_to_v1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(mut backend) = spec.remove("backend") {
        backend_to_v1(&mut backend);
        spec.insert("defaultBackend".into(), backend);
    }
    each_backend(spec, backend_to_v1);
    for path in each_path(spec).filter_map(Value::as_object_mut) {
        path.entry("pathType").or_insert_with(|| IMPLEMENTATION_SPECIFIC.into());
    }
}

fn ingress_from_v1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(mut backend) = spec.remove("defaultBackend") {
        backend_from_v1(&mut backend);
        spec.insert("backend".into(), backend);
    }
    each_backend(spec, backend_from_v1);
}

#[cfg(test)]
mod tests {
    use super::{super::tests::round_trip, *};

    #[test]
    fn old_ingresses_survive() {
        let paths = |path: Value| {
            json!({"spec": {"backend": {"serviceName": "d", "servicePort": "http"},
                "rules": [{"host": "h", "http": {"paths": [path]}}]}})
        };
        let backend = json!({"serviceName": "s", "servicePort": 80});
        round_trip(&V1BETA1, paths(json!({"path": "/a", "pathType": "Prefix", "backend": backend})));
        round_trip(&EXTENSIONS, paths(json!({"path": "/a", "pathType": "Prefix", "backend": backend})));
        round_trip(&EXTENSIONS, paths(json!({"path": "/a", "backend": backend})));
    }
}
