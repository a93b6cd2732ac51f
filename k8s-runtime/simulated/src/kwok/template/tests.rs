use proptest::prelude::*;
use serde_json::json;

use super::*;

struct Here;

impl Place for Here {
    fn now(&self) -> String {
        "2026-01-02T03:04:05Z".into()
    }
    fn start_time(&self) -> String {
        "2026-01-01T00:00:00Z".into()
    }
    fn node_conditions(&self) -> Value {
        json!([{"type": "Ready", "status": "True"}])
    }
    fn node_ips(&self, _: &str) -> Vec<String> {
        vec!["192.0.2.1".into()]
    }
    fn node_name(&self) -> String {
        "node-0".into()
    }
    fn pod_ips(&self, _: &str, on_host: bool) -> Vec<String> {
        vec![if on_host { "192.0.2.1".into() } else { "10.42.0.2".into() }]
    }
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web", "uid": "u", "annotations": {"a/b": "c"}},
        "spec": {"nodeName": "node-0", "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]},
        "status": {"allocatable": {"cpu": "1k"}},
    })
}

fn check(template: &str, wanted: &str) {
    let made = Template::parse(template).expect("a template").text(&pod(), &Here).expect("a text");
    assert_eq!(made, wanted, "{template}");
}

#[test]
fn texts() {
    check("{{ .metadata.name | Quote }}", "\"web\"");
    check("{{ $x := .metadata.name }}{{ $x }}", "web");
    check("{{ .missing.deep }}", "<no value>");
    check("{{ if .missing }}a{{ else if .spec }}b{{ else }}c{{ end }}", "b");
    check("{{ range $i, $c := .spec.containers }}{{ $i }}{{ $c.name }} {{ end }}", "0a 1b ");
    check("{{ range .missing }}x{{ else }}none{{ end }}", "none");
    check("{{ with .status.allocatable }}{{ YAML . 1 }}{{ else }}no{{ end }}", "{\"cpu\":\"1k\"}");
    check("{{ index .metadata.annotations \"a/b\" }}", "c");
    check(
        "{{ $f := false }}{{ range .spec.containers }}{{ if eq .name \"b\" }}{{ $f = true }}{{ end }}{{ end }}{{ $f }}",
        "true",
    );
    check("{{ or .missing ( not .spec ) `\"\"` }}", "\"\"");
    check("{{ printf \"kwok-%s\" Version }}", concat!("kwok-", env!("CARGO_PKG_VERSION")));
    check("a {{- /* no */ -}} b", "ab");
    check("{{ index ( PodIPsWith .spec.nodeName ( or .spec.hostNetwork false ) \"\" ) 0 }}", "10.42.0.2");
    check("{{ (index .spec.containers 1).image }}{{ $.metadata.uid }}", "ju");
}

/// As in kwok's own Stage for pods that become ready.
#[test]
fn a_status_of_kwok() {
    let template = "
        {{ $now := Now }}
        conditions:
        - {lastTransitionTime: {{ $now | Quote }}, status: \"True\", type: Ready}
        containerStatuses:
        {{ range .spec.containers }}
        - image: {{ .image | Quote }}
          name: {{ .name | Quote }}
          state: {running: {startedAt: {{ $now | Quote }}}}
        {{ end }}
        {{ $ips := NodeIPsWith .spec.nodeName }}
        {{ with $ips }}
        hostIP: {{ index . 0 | Quote }}
        {{ end }}
        phase: Running";
    let made = Template::parse(template).expect("a template").value(&pod(), &Here).expect("a value");
    assert_eq!((&made["phase"], &made["hostIP"]), (&json!("Running"), &json!("192.0.2.1")));
    assert_eq!(made["containerStatuses"][1]["image"], "j");
    assert_eq!(made["conditions"][0]["lastTransitionTime"], "2026-01-02T03:04:05Z");
}

#[test]
fn what_is_not_supported_is_refused_with_its_line() {
    for (text, told) in [
        ("a\n{{ Usage . }}", "line 2: function \"Usage\" is not supported"),
        ("{{ if .a }}", "line 1: \"if\" without \"end\""),
        ("{{ end }}", "without a beginning"),
        ("{{ .a", "line 1: no `}}`"),
        ("\n\n{{ template \"x\" }}", "line 3: \"template\" is not supported"),
        ("{{ .a .b }}", "called like a function"),
        ("{{ }}", "is missing"),
    ] {
        let refused = Template::parse(text).unwrap_err();
        assert!(refused.contains(told), "{refused}");
    }
    let deep = "{{ if 1 }}".repeat(5000);
    assert!(Template::parse(&deep).unwrap_err().contains("nested too deeply"));
    let run = |text: &str| Template::parse(text).expect("a template").text(&pod(), &Here).unwrap_err();
    assert!(run("{{ $x = 1 }}").contains("$x is not declared"));
    assert!(run("{{ not }}").contains("needs 1"));
    let nested = "{{ range $.list }}".repeat(6) + "x" + &"{{ end }}".repeat(6);
    let object = json!({"list": vec![0; 50]});
    assert!(
        Template::parse(&nested).expect("a template").text(&object, &Here).unwrap_err().contains("steps")
    );
}

/// Returns why a template ends, on a thread with little stack.
fn ends(template: String, object: Value) -> String {
    let run = move || Template::parse(&template).expect("a template").text(&object, &Here).unwrap_err();
    let small = std::thread::Builder::new().stack_size(1 << 20);
    small.spawn(run).expect("a thread").join().expect("no overflow")
}

#[test]
fn values_are_bounded() {
    let doubled = "{{ $x = print $x $x $x $x $x $x $x $x }}";
    let twice = "{{ $x = list $x $x }}";
    let start = "{{ $x := \"aaaaaaaaaaaaaaaa\" }}";
    for (template, why) in [
        (format!("{start}{}", doubled.repeat(10)), "the values of a template have more than 16777216 bytes"),
        (format!("{start}{}", twice.repeat(40)), "the values of a template have more than"),
        // Arguments count, not only what is made of them.
        (format!("{start}{}{{{{ len (list{}) }}}}", doubled.repeat(5), " $x".repeat(100)), "more than"),
        // Quotes grow: there is not enough room for what may come.
        (
            format!("{start}{}{{{{ $y := print $x $x $x $x }}}}{{{{ $y = Quote $y }}}}", doubled.repeat(5)),
            "more than 16777216 bytes",
        ),
        (format!("{start}{}{{{{ $x }}}}", doubled.repeat(6)), "ends after"),
        ("{{ $x := 1 }}".repeat(257), "more than 256 variables"),
    ] {
        let told = ends(template.clone(), json!({}));
        assert!(told.contains(why), "{template}: {told}");
    }
    // The object is charged as often as it is copied.
    let object = json!({"l": vec![0; 1000], "big": "a".repeat(1 << 20)});
    assert!(ends("{{ range $.l }}{{ $y := $.big }}{{ end }}".into(), object).contains("more than 16777216"));
    // An error shows values, but not all of them.
    let told = ends(format!("{start}{}{{{{ lt $x 1 }}}}", doubled.repeat(3)), json!({}));
    assert!(told.starts_with("lt of aaaa") && told.len() == 1024, "{told}");
}

#[test]
fn nesting_of_values_is_bounded() {
    for nest in ["list $x", "dict \"a\" $x"] {
        let template =
            format!("{{{{ $x := 1 }}}}{{{{ range $.l }}}}{{{{ $x = {nest} }}}}{{{{ end }}}}{{{{ $x }}}}");
        let told = ends(template.clone(), json!({"l": vec![0; 20_000]}));
        assert_eq!(told, "a value is nested more than 64 levels deep", "{nest}");
        let made = Template::parse(&template).expect("a template").text(&json!({"l": vec![0; 64]}), &Here);
        assert!(made.is_ok_and(|text| text.len() > 64), "{nest}");
    }
}

/// The text that a template makes is read as YAML, within bounds of its own.
#[test]
fn yaml_of_a_template_is_bounded() {
    for (template, what) in [
        ("{{ range $.l }}[{{ end }}", "lists"),
        ("{{ range $.l }}{a: {{ end }}", "maps"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x]{{ range $i, $x := $.l }}\na{{ add $i 1 }}: &a{{ add $i 1 }} \
             [*a{{ $i }}, *a{{ $i }}, *a{{ $i }}, *a{{ $i }}]{{ end }}",
            "aliases",
        ),
    ] {
        let run = move || {
            let template = Template::parse(template).expect("a template");
            template.value(&json!({"l": vec![0; 10_000]}), &Here).is_err()
        };
        let small = std::thread::Builder::new().stack_size(2 << 20);
        assert!(small.spawn(run).expect("a thread").join().expect("no overflow"), "{what}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\{\\{|\\}\\}| if | end| else| range|\\$x|:=|=|\\.a|\\||\\(|\\)|\"|`|-|or |index |eq |1|,|\n){0,24}") {
        if let Ok(template) = Template::parse(&text) {
            let _ = template.text(&pod(), &Here);
        }
    }
}
