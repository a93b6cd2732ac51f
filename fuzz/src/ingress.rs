//! The Ingress controller: paths of requests, and annotations.

use std::collections::BTreeMap;

use k8s_ingress::{normalize, read};

use crate::Target;

/// Paths of requests: the normal form stays below the root, and is its own normal form.
pub(crate) const PATH: Target = Target {
    name: "ingress_path",
    seeds: &[b"/a/../b//c/%2e%2E/%41", b"/api/v1?x=/../y", b"/%zz/%00"],
    run: |data| {
        let text = String::from_utf8_lossy(data);
        let Some(normal) = normalize(&text) else { return };
        assert!(normal.starts_with('/') && !normal.contains("//"));
        assert!(!normal.split('/').any(|segment| segment == ".." || segment == "."));
        if !normal.contains('%') {
            assert_eq!(normalize(&normal).as_deref(), Some(&*normal));
        }
    },
};

/// Annotations: each line is a name and a value.
pub(crate) const ANNOTATIONS: Target = Target {
    name: "ingress_annotations",
    seeds: &[
        b"rewrite-target=/$2\nuse-regex=true\nproxy-body-size=8m",
        b"canary=true\ncanary-by-header=X\ncanary-by-header-pattern=^(a|b)+$\ncanary-weight=30",
        b"auth-url=http://auth.shop.svc:8080/x\nauth-response-headers=A, B\nwhitelist-source-range=10.0.0.0/8,::1",
        b"affinity=cookie\nsession-cookie-name=a\nlimit-rps=5\nbackend-protocol=GRPCS",
    ],
    run: |data| {
        let text = String::from_utf8_lossy(data);
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let named = |(key, value): (&str, &str)| (format!("nginx.ingress.kubernetes.io/{key}"), value.to_owned());
        let annotations: BTreeMap<_, _> = pairs.map(named).collect();
        let (settings, problems) = read(&annotations);
        assert!(problems.len() <= 64 + 2 * annotations.len() + text.matches(',').count());
        assert!(settings.read_timeout.as_secs() >= 1 && settings.limits.burst > 0);
        if let Some(rewrite) = &settings.rewrite {
            assert!(rewrite.bytes().all(|b| b.is_ascii_graphic()));
        }
    },
};
