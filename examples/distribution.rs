//! A custom distribution: `hyperkube` under another name, without the CronJob controller, with its own
//! resource, controller and admission function.
//!
//! Run it: `cargo run -p k8s-examples --bin distribution -- up --simulated-nodes 1 --data-dir /tmp/shopkube`

use std::process::ExitCode;

use k8s_apiserver::admission::Request;
use k8s_builtin as builtin;
use k8s_core::{api::api::core::v1::Pod, meta::ObjectExt};
use k8s_examples::rds::{Databases, RdsDatabase, controller};

fn main() -> ExitCode {
    hyperkube::distribution("shopkube")
        .admit(|r: &mut Request<Pod>| r.object.set_label("team", r.user.group_or("shop")))
        .resource::<RdsDatabase>()
        .controllers(builtin::all().without("cronjob"))
        .controller(controller(), Databases)
        .main()
}
