//! Reproducibility: with all controllers, the same seed gives the same run.

use std::time::Duration;

use k8s_core::api::api::{apps::v1::Deployment, batch::v1::CronJob, core::v1::Namespace};
use k8s_testing::{Faults, Lab, Running, controllers};

const EVERYTHING: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 81}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: pi}
spec:
  completions: 3
  parallelism: 2
  template:
    metadata: {annotations: {k8s-testing/exit-code: '0', k8s-testing/run-for: 3s}}
    spec: {restartPolicy: Never, containers: [{name: c, image: i}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: '* * * * *'
  jobTemplate:
    spec:
      template:
        metadata: {annotations: {k8s-testing/exit-code: '0', k8s-testing/run-for: 3s}}
        spec: {restartPolicy: OnFailure, containers: [{name: c, image: i}]}
";

#[test]
fn with_every_controller_the_same_seed_is_the_same_run() {
    let path = std::env::temp_dir().join(format!("alike-{}.jsonl", std::process::id()));
    let test = async |lab: Running| {
        lab.apply(EVERYTHING).await;
        lab.sleep(Duration::from_secs(150)).await;
        lab.edit("shop/web", |web: &mut Deployment| web.spec.as_mut().unwrap().replicas = Some(2)).await;
        lab.edit("tick", |tick: &mut CronJob| tick.spec.suspend = Some(true)).await;
        lab.sleep(Duration::from_secs(30)).await;
        lab.delete::<Namespace>("shop").await;
        lab.sleep(Duration::from_secs(120)).await;
    };
    let lab = || Lab::new().controllers(controllers::all()).nodes(3).faults(Faults::all().at_most(200));
    for seed in 0..3 {
        lab().seeds(seed..seed + 1).record(&path).run(test);
        lab().seeds(seed..seed + 1).replays(&path).run(test);
    }
    std::fs::remove_file(&path).unwrap();
}
