//! Every example runs to its end and says what it should.

use std::process::Command;

fn check(program: &str, wanted: &[&str]) {
    let out = Command::new(program).output().expect("the example is built with its tests");
    let (said, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program}: {}\n{said}\n{err}", out.status);
    for want in wanted {
        assert!(said.contains(want), "{program} did not say {want:?}:\n{said}\n{err}");
    }
}

#[test]
fn embed_cluster() {
    check(env!("CARGO_BIN_EXE_embed_cluster"), &["web-", " Running"]);
}

#[test]
fn custom_controller() {
    check(
        env!("CARGO_BIN_EXE_custom_controller"),
        &[
            "CustomResourceDefinition: orders is ready: Postgres with 20 GB",
            "CustomResourceDefinition: gone with all it owned",
            "ThirdPartyResource: orders is ready",
            "secret with 2 entries",
            "ThirdPartyResource: gone with all it owned",
        ],
    );
}

#[test]
fn kube_controller() {
    check(env!("CARGO_BIN_EXE_kube_controller"), &["hello, world"]);
}

#[test]
fn admission() {
    check(env!("CARGO_BIN_EXE_admission"), &["refused: ", "nobody's", "\"team\":"]);
}
