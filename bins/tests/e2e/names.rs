//! Cluster DNS that goes on without `up`, and its Corefile.

use std::time::Duration;

use libtest_mimic::Failed;

use crate::{
    Outcome,
    harness::{Cluster, run, until},
};

pub const TESTS: &[crate::Test] = &[("names_are_answered_while_up_is_away", names)];

const WEB: &str = "web.shop.svc.cluster.local";

fn lookup(cluster: &Cluster, name: &str) -> Result<String, Failed> {
    let mut command = cluster.net.command("busybox");
    command.args(["nslookup", name, "10.43.0.10"]);
    let said = run(&mut command, "", Duration::from_secs(10))?;
    Ok(said.out + &said.err)
}

fn answers(cluster: &Cluster, name: &str, wanted: &str) -> Outcome {
    let mut said = String::new();
    let found = until("a name is answered", Duration::from_secs(15), || {
        said = lookup(cluster, name).map_err(|e| format!("{e:?}"))?;
        Ok(said.contains(wanted))
    });
    found
        .map_err(|e| format!("{name}: {said:?} without {wanted}; {}", e.message().unwrap_or_default()).into())
}

/// Returns the names and numbers of the processes that hold the DNS server.
fn holders(cluster: &Cluster) -> Result<Vec<u32>, Failed> {
    let here = cluster.dir.path().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(line) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
        if line.starts_with("hyperkube-dns\0") && line.contains(&here) {
            found.push(entry.file_name().to_string_lossy().parse()?);
        }
    }
    Ok(found)
}

fn names() -> Outcome {
    let mut cluster = Cluster::up()?;
    let n = cluster.namespace("shop")?;
    n.ok(&["create", "service", "clusterip", "web", "--clusterip=10.43.7.7", "--tcp=80"], "")?;
    answers(&cluster, WEB, "10.43.7.7")?;
    let before = holders(&cluster)?;
    if before.len() != 1 {
        return Err(format!("one process holds the DNS server, not {before:?}").into());
    }

    // The Corefile is the user's: hosts, and a directive that is not there.
    let corefile = cluster
        .ok(&["get", "-n", "kube-system", "configmap", "coredns", "-o", "jsonpath={.data.Corefile}"], "")?;
    let edited = corefile.replace(
        "    errors\n",
        "    hosts {\n        192.0.2.7 db.corp\n        fallthrough\n    }\n    rewrite name a b\n",
    );
    let patch = serde_json::json!({"data": {"Corefile": edited}}).to_string();
    cluster.ok(&["patch", "-n", "kube-system", "configmap", "coredns", "--type=merge", "-p", &patch], "")?;
    answers(&cluster, "db.corp", "192.0.2.7")?;
    answers(&cluster, WEB, "10.43.7.7")?;
    until("an event names the directive", Duration::from_secs(15), || {
        let events = cluster.ok(&["get", "events", "-n", "kube-system"], "").map_err(|e| format!("{e:?}"))?;
        Ok(events.contains("InvalidCorefile") && events.contains("directive \"rewrite\" is not supported"))
    })?;

    cluster.processes.pop().ok_or("not running")?.kill();
    answers(&cluster, WEB, "10.43.7.7")?;
    answers(&cluster, "db.corp", "192.0.2.7")?;
    answers(&cluster, "none.shop.svc.cluster.local", "NXDOMAIN")?;

    cluster.start_up()?;
    let n = crate::harness::Namespace { cluster: &cluster, name: "shop".into() };
    n.ok(&["create", "service", "clusterip", "new", "--clusterip=10.43.7.8", "--tcp=80"], "")?;
    n.ok(&["delete", "service", "web"], "")?;
    answers(&cluster, "new.shop.svc.cluster.local", "10.43.7.8")?;
    answers(&cluster, WEB, "NXDOMAIN")?;
    answers(&cluster, "db.corp", "192.0.2.7")?;
    let after = holders(&cluster)?;
    if after != before {
        return Err(format!("{before:?} became {after:?}").into());
    }
    cluster.take_down()
}
