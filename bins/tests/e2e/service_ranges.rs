//! Addresses of Services as users see them: IPAddresses, and ranges that are added and removed.

use crate::{
    Outcome,
    harness::{Cluster, deployment},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] = &[("service_ranges_are_added_and_removed", added)];

fn added(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    n.ok(&["apply", "-f", "-"], &deployment("web", 1).to_string())?;
    let range = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.211.0.0/24]}\n";
    n.ok(&["apply", "-f", "-"], range)?;
    n.ok(&["wait", "--for=condition=Ready", "servicecidr/more", "--timeout=20s"], "")?;
    n.ok(&["create", "service", "clusterip", "web", "--clusterip=10.211.0.7", "--tcp=80:8080"], "")?;
    let owner = n.jsonpath("ipaddress/10.211.0.7", "{.spec.parentRef.namespace}/{.spec.parentRef.name}")?;
    if owner != format!("{name}/web") {
        return Err(format!("10.211.0.7 is of {owner}").into());
    }
    n.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"], "")?;
    let wget = ["exec", "deployment/web", "--", "wget", "-q", "-O-", "http://10.211.0.7/"];
    n.until(&wget, "version 1", 20)?;
    // It stays while its address is in use.
    n.ok(&["delete", "servicecidr", "more", "--wait=false"], "")?;
    n.until(&["get", "servicecidr", "more", "-o", "yaml"], "There are still IPAddresses", 10)?;
    n.ok(&["delete", "service", "web"], "")?;
    n.ok(&["wait", "--for=delete", "servicecidr/more", "--timeout=40s"], "")?;
    Ok(())
}
