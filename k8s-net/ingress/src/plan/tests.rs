use k8s_core::api::api::core::v1::Secret;
use serde_json::{Value, json};

use super::*;
use crate::certificates::tests::secret;

/// A cluster of a few objects.
#[derive(Default)]
struct World {
    ingresses: Vec<Arc<Ingress>>,
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    secrets: Vec<Arc<Secret>>,
    patterns: Patterns,
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

impl World {
    /// Adds a Service with the ports `http` (80) and `admin` (81), and one endpoint at 10.0.0.`last`.
    fn service(mut self, namespace: &str, name: &str, last: u8) -> Self {
        let metadata = json!({"namespace": namespace, "name": name});
        let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}, {"name": "admin", "port": 81, "targetPort": "adm"}]);
        self.services.push(object(json!({"metadata": metadata, "spec": {"ports": ports}})));
        self.slices.push(object(json!({
            "metadata": {"namespace": namespace, "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [format!("10.0.0.{last}")], "conditions": {"ready": true}},
                {"addresses": ["10.0.9.9"], "conditions": {"ready": false}},
                {"addresses": ["127.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["169.254.169.254"]},
            ],
            "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 9000}],
        })));
        self
    }

    /// Adds an Ingress that is younger than those before it.
    fn ingress(mut self, namespace: &str, name: &str, annotations: Value, spec: Value) -> Self {
        let time = format!("2026-01-01T00:00:{:02}Z", self.ingresses.len());
        let metadata = json!({"namespace": namespace, "name": name, "annotations": annotations, "creationTimestamp": time});
        let mut spec = spec;
        spec["ingressClassName"] = "hyperkube".into();
        self.ingresses.push(object(json!({"metadata": metadata, "spec": spec})));
        self
    }

    fn secret(mut self, namespace: &str, name: &str, hosts: &[&str]) -> Self {
        self.secrets.push(Arc::new(secret(namespace, name, hosts)));
        self
    }

    fn plan(&self) -> Plan {
        plan(&Objects {
            class: "hyperkube",
            ingresses: &self.ingresses,
            classes: &[],
            service: &|namespace, name| {
                self.services.iter().find(|s| (s.namespace(), s.name()) == (namespace, name)).cloned()
            },
            slices: &|namespace, name| {
                let of = |s: &&Arc<EndpointSlice>| {
                    s.namespace() == namespace && s.label("kubernetes.io/service-name") == Some(name)
                };
                self.slices.iter().filter(of).cloned().collect()
            },
            secret: &|namespace, name| {
                self.secrets.iter().find(|s| (s.namespace(), s.name()) == (namespace, name)).cloned()
            },
            certificate: &|secret| Certificate::read(secret).map(Arc::new),
            patterns: &self.patterns,
            refused: &[SocketAddr::from(([10, 0, 0, 66], 8080))],
            now: "2030-01-01T00:00:00Z".parse().unwrap(),
            seed: 0,
        })
    }
}

impl Plan {
    /// Returns the endpoints of a request, or the word for what it gets.
    fn leads(&self, host: &str, path: &str) -> String {
        match self.table.route(host, path) {
            None => "404".to_owned(),
            Some(route) => match &route.backend.endpoints[..] {
                [] => "503".to_owned(),
                all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            },
        }
    }

    fn problems(&self, name: &str) -> Vec<String> {
        let of = self.served.iter().filter(|(ingress, _)| ingress.name() == name);
        of.flat_map(|(_, problems)| problems).map(|p| format!("{}: {}", p.reason, p.message)).collect()
    }
}

fn backend(service: &str, port: Value) -> Value {
    json!({"service": {"name": service, "port": port}})
}

fn path(kind: &str, path: &str, service: &str) -> Value {
    json!({"pathType": kind, "path": path, "backend": backend(service, json!({"number": 80}))})
}

fn rule(host: &str, paths: &[Value]) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

#[test]
fn hosts_paths_and_default_backends() {
    let spec = |rules: &[Value]| json!({"rules": rules});
    let with_default = json!({
        "defaultBackend": backend("b", json!({"name": "admin"})),
        "rules": [rule("d.example.com", &[path("Exact", "/x", "a")])],
    });
    let world = World::default()
        .service("ns", "a", 1)
        .service("ns", "b", 2)
        .service("ns", "c", 3)
        .ingress(
            "ns",
            "one",
            json!({}),
            spec(&[
                rule("A.example.com", &[path("Prefix", "/", "a"), path("Exact", "/b", "b")]),
                rule("*.example.com", &[path("Prefix", "/", "c")]),
                rule("", &[path("Prefix", "/any", "b")]),
                rule("e.example.com", &[path("Prefix", "/none", "absent")]),
            ]),
        )
        .ingress("ns", "default", json!({}), with_default);
    let plan = world.plan();
    for (host, path, want) in [
        ("a.example.com", "/", "10.0.0.1:8080"),
        ("a.example.com", "/b", "10.0.0.2:8080"),
        ("x.example.com", "/b", "10.0.0.3:8080"),
        ("x.y.example.com", "/", "404"),
        ("example.com", "/", "404"),
        ("other.org", "/any/thing", "10.0.0.2:8080"),
        ("other.org", "/", "404"),
        ("d.example.com", "/x", "10.0.0.1:8080"),
        ("d.example.com", "/y", "10.0.0.2:9000"),
        // A host's own rules hide those of its wildcard and those without host.
        ("e.example.com", "/", "404"),
        ("e.example.com", "/any", "404"),
        ("e.example.com", "/none", "503"),
        ("", "/any", "10.0.0.2:8080"),
    ] {
        assert_eq!(plan.leads(host, path), want, "{host}{path}");
    }
    let catch_all = json!({"defaultBackend": backend("c", json!({"number": 81}))});
    let plan = world.ingress("ns", "all", json!({}), catch_all).plan();
    assert_eq!(plan.leads("other.org", "/"), "10.0.0.3:9000");
    assert_eq!(plan.leads("e.example.com", "/"), "10.0.0.3:9000");
    assert!(plan.served.iter().all(|(_, problems)| problems.is_empty()), "{:?}", plan.served);
}

#[test]
fn endpoints_that_are_the_proxy_or_the_machine_are_none() {
    let plan = World::default()
        .service("ns", "a", 66)
        .ingress("ns", "one", json!({}), json!({"rules": [rule("h", &[path("Prefix", "/", "a")])]}))
        .plan();
    assert_eq!(plan.leads("h", "/"), "503");
}

#[test]
fn the_older_has_a_path_and_the_younger_is_told() {
    let of = |service: &str| json!({"rules": [rule("h", &[path("Prefix", "/", service), path("Prefix", &format!("/{service}"), service)])]});
    let plan = World::default()
        .service("one", "a", 1)
        .service("two", "b", 2)
        .ingress("one", "old", json!({}), of("a"))
        .ingress("two", "young", json!({}), of("b"))
        .plan();
    assert_eq!(
        (plan.leads("h", "/x"), plan.leads("h", "/b")),
        ("10.0.0.1:8080".into(), "10.0.0.2:8080".into())
    );
    assert_eq!(plan.problems("old"), Vec::<String>::new());
    assert_eq!(
        plan.problems("young"),
        ["PathConflict: host \"h\" and path \"/\" is already defined in ingress one/old"]
    );
}

#[test]
fn what_cannot_be_used_is_told_and_the_rest_goes_on() {
    let mut world = World::default().service("ns", "a", 1).ingress(
        "ns",
        "one",
        json!({"nginx.ingress.kubernetes.io/use-regex": "true", "nginx.ingress.kubernetes.io/server-snippet": "x"}),
        json!({"rules": [rule("h", &[
            path("ImplementationSpecific", "/(", "a"),
            path("ImplementationSpecific", "/good[0-9]", "a"),
            path("Prefix", "/out", "out"),
            json!({"pathType": "Prefix", "path": "/res", "backend": {"resource": {"kind": "Bucket", "name": "b"}}}),
        ])]}),
    );
    let out = json!({"metadata": {"namespace": "ns", "name": "out"}, "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": 80}]}});
    world.services.push(object(out));
    let plan = world.plan();
    assert_eq!(plan.leads("h", "/GOOD7/x"), "10.0.0.1:8080");
    assert_eq!((plan.leads("h", "/out"), plan.leads("h", "/res")), ("503".into(), "404".into()));
    let problems = plan.problems("one");
    let reasons: Vec<_> = problems.iter().map(|p| p.split(':').next().unwrap()).collect();
    assert_eq!(
        reasons,
        ["SnippetRefused", "InvalidPath", "BackendRefused", "BackendRefused"],
        "{problems:?}"
    );
}

#[test]
fn certificates_are_of_the_ingress_namespace_and_of_its_hosts() {
    let with_tls = |host: &str, secret: &str| json!({"tls": [{"hosts": [host], "secretName": secret}], "rules": [rule(host, &[path("Prefix", "/", "a")])]});
    let without_hosts =
        json!({"tls": [{"secretName": "wild"}], "rules": [rule("x.shop.org", &[]), rule("other.org", &[])]});
    let plan = World::default()
        .secret("one", "a", &["a.org"])
        .secret("two", "b", &["b.org", "a.org"])
        .secret("one", "wild", &["*.shop.org"])
        .ingress("one", "good", json!({}), with_tls("a.org", "a"))
        .ingress("one", "foreign", json!({}), with_tls("b.org", "b"))
        .ingress("one", "wrong", json!({}), with_tls("c.org", "a"))
        .ingress("two", "late", json!({}), with_tls("a.org", "b"))
        .ingress("one", "wild", json!({}), without_hosts)
        .plan();
    let names = |host: &str| plan.table.certificate(host).map(|c| c.names.join(","));
    assert_eq!(names("a.org").as_deref(), Some("a.org"));
    assert_eq!(names("x.shop.org").as_deref(), Some("*.shop.org"));
    assert_eq!(
        (names("b.org"), names("c.org"), names("other.org"), names("y.shop.org")),
        (None, None, None, None)
    );
    let reason = |name: &str| plan.problems(name).first().map(|p| p.split(':').next().unwrap().to_owned());
    assert_eq!(reason("good"), None);
    assert_eq!(reason("foreign").as_deref(), Some("CertificateMissing"));
    assert_eq!(reason("wrong").as_deref(), Some("InvalidCertificate"));
    assert_eq!(plan.problems("late").len(), 2, "the path and the certificate: {:?}", plan.problems("late"));
}

#[test]
fn canaries_join_the_route_of_their_namespace() {
    let canary = json!({"nginx.ingress.kubernetes.io/canary": "true", "nginx.ingress.kubernetes.io/canary-weight": "10"});
    let of = |service: &str| json!({"rules": [rule("h", &[path("Prefix", "/", service)])]});
    let plan = World::default()
        .service("ns", "a", 1)
        .service("ns", "b", 2)
        .ingress("ns", "canary", canary.clone(), of("b"))
        .ingress("ns", "main", json!({}), of("a"))
        .ingress("other", "thief", canary, of("b"))
        .plan();
    assert_eq!(plan.leads("h", "/"), "10.0.0.1:8080");
    let route = plan.table.route("h", "/").unwrap();
    assert_eq!(route.canaries.len(), 1);
    assert_eq!(route.canaries[0].1.service, ObjectKey::new("ns", "b"));
    assert_eq!(plan.problems("canary"), Vec::<String>::new());
    assert!(plan.problems("thief")[0].starts_with("CanaryRefused"));
}

#[test]
fn only_services_of_the_own_namespace_are_asked() {
    let spec = || json!({"rules": [rule("h", &[path("Prefix", "/", "a")])]});
    for (url, want) in [
        ("http://auth.one.svc/check", Some("10.0.0.1:8080")),
        ("http://auth.one.SVC.cluster.local:81", Some("10.0.0.1:9000")),
        ("http://auth.two.svc/check", None),
        ("http://auth.two.Svc.cluster.local", None),
        ("http://auth.two.svc.", None),
    ] {
        let plan = World::default()
            .service("one", "a", 3)
            .service("one", "auth", 1)
            .service("two", "auth", 2)
            .ingress("one", "asks", json!({"nginx.ingress.kubernetes.io/auth-url": url}), spec())
            .plan();
        let auth = plan.table.route("h", "/").unwrap().settings.auth.clone().expect("it is never left out");
        let asked = match (&auth.uri, &auth.target) {
            (Some(_), AuthTarget::Service(backend)) => backend.endpoints.first().map(ToString::to_string),
            _ => None,
        };
        assert_eq!(asked.as_deref(), want, "{url}");
        assert_eq!(auth.uri.is_none(), want.is_none(), "nobody is let in: {url}");
        let problems = plan.problems("asks");
        assert_eq!(problems.len(), usize::from(want.is_none()), "{problems:?}");
        let told = "InvalidAnnotation: annotation nginx.ingress.kubernetes.io/auth-url: Service two/auth ";
        assert!(problems.iter().all(|problem| problem.starts_with(told)), "{problems:?}");
        assert!(!plan.services.contains(&ObjectKey::new("two", "auth")));
    }
}

#[test]
fn patterns_of_another_namespace_do_not_take_a_hosts_prefixes() {
    let regex = || json!({"nginx.ingress.kubernetes.io/use-regex": "true"});
    let plan = World::default()
        .service("one", "a", 1)
        .service("two", "b", 2)
        .ingress("one", "old", json!({}), json!({"rules": [rule("h", &[path("Prefix", "/", "a")])]}))
        .ingress(
            "two",
            "thief",
            regex(),
            json!({"rules": [
                rule("H", &[path("ImplementationSpecific", "/.*", "b"), path("Exact", "/x", "b")]),
                rule("own", &[path("ImplementationSpecific", "/.*", "b")]),
            ]}),
        )
        .ingress("two", "prefix", json!({}), json!({"rules": [rule("h", &[path("Prefix", "/b", "b")])]}))
        .ingress("one", "more", regex(), json!({"rules": [rule("h", &[path("Prefix", "/m.*", "a")])]}))
        .plan();
    for (host, path, want) in [
        ("h", "/x", "10.0.0.1:8080"),
        ("h", "/mm", "10.0.0.1:8080"),
        ("h", "/b", "10.0.0.2:8080"),
        ("own", "/x", "10.0.0.2:8080"),
    ] {
        assert_eq!(plan.leads(host, path), want, "{host}{path}");
    }
    assert_eq!(plan.table.route("h", "/mm").unwrap().ingress, ObjectKey::new("one", "more"));
    let problems = plan.problems("thief");
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems.iter().all(|p| p.starts_with("PathConflict: ") && p.contains("one/old")),
        "{problems:?}"
    );
    assert!(plan.problems("more").is_empty() && plan.problems("prefix").is_empty());
}

#[test]
fn patterns_are_bounded_in_number_and_kept_for_the_next_table() {
    let regex = || json!({"nginx.ingress.kubernetes.io/use-regex": "true"});
    let paths = |name: &str, count: usize| -> Vec<_> {
        (0..count).map(|i| path("ImplementationSpecific", &format!("/{name}-{i}-x*$"), "a")).collect()
    };
    let mut world = World::default().service("ns", "a", 1);
    for i in 0..9 {
        let name = format!("n{i}");
        let spec = json!({"rules": [rule(&name, &paths(&name, 100))]});
        world = world.ingress("ns", &name, regex(), spec);
    }
    let world = world
        .ingress("ns", "large", regex(), json!({"rules": [rule("large", &paths("large", 150))]}))
        .ingress("ns", "late", regex(), json!({"rules": [rule("late", &paths("late", 2))]}))
        .ingress("ns", "plain", json!({}), json!({"rules": [rule("late", &[path("Prefix", "/", "a")])]}));
    let plan = world.plan();
    assert_eq!(plan.leads("n0", "/n0-99-xx"), "10.0.0.1:8080");
    assert_eq!(plan.leads("large", "/large-99-x"), "10.0.0.1:8080");
    assert_eq!(plan.leads("large", "/large-100-x"), "404");
    let told = "InvalidPath: an Ingress has at most 100 patterns; the others have no effect";
    assert_eq!(plan.problems("large"), [told]);
    let late = plan.problems("late");
    assert!(late.len() == 2 && late[0].contains("1000 patterns already"), "{late:?}");
    assert_eq!(plan.table.route("late", "/late-0-x").unwrap().ingress.name, "plain");
    let again = world.plan();
    let of = |plan: &Plan| plan.table.route("n0", "/n0-99-xx").unwrap().pattern.clone().unwrap();
    assert!(Arc::ptr_eq(&of(&plan), &of(&again)));
}
