//! A bespoke distribution: `hyperkube` under another name, without CronJobs, with a resource and controller of one's own and an admission function.

use std::process::ExitCode;

use k8s_apiserver::admission::{Admission, Operation};
use k8s_controllers::builtin;
use k8s_core::status::ApiStatus;
use k8s_examples::rds::{Databases, RdsDatabase, controller};

fn team(request: &mut Admission<'_>) -> Result<(), ApiStatus> {
    if request.resource.kind == "Pod" && request.operation == Operation::Create {
        request.object["metadata"]["labels"]["team"] = "shop".into();
    }
    Ok(())
}

fn main() -> ExitCode {
    hyperkube::distribution("shopkube")
        .admit(team)
        .resource::<RdsDatabase>()
        .controllers(builtin::all().without("cronjob"))
        .controller(controller(), || Databases)
        .main()
}
